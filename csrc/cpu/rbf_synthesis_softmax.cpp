// The masked softmax of a block of anchors over the members of each cluster, and its gradient.

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "cpu/rbf_synthesis.h"

namespace itm::cpu {
namespace {

// A softmax needs all members of its cluster, so that a block of anchors holds whole rows of
// scores: 4 MiB in fp32, and no more rows than speed up the products.
constexpr int64_t kBlockScores = 1 << 20, kMostRowsOfBlock = 512;

// Returns -1 for assignments outside [0, num_clusters), which would index out of bounds.
Tensor valid_assignment(const Tensor& assignment, int64_t num_clusters) {
  const Tensor inside = assignment.ge(0).logical_and_(assignment.lt(num_clusters));
  return at::where(inside, assignment, -1).contiguous();
}

}  // namespace

Synthesis::Synthesis(const Problem& problem, bool with_grams)
    : kam_(problem.kam),
      sigma_(problem.sigma),
      ridge_(problem.ridge),
      num_members_(problem.x.size(0)),
      saved_(problem.saved),
      q_(problem.q),
      x_(problem.x),
      valid_(at::zeros({q_.size(0), problem.num_clusters}, q_.options().dtype(at::kBool))),
      clusters_(problem.num_clusters) {
  const Tensor& assignment = problem.assignment;
  OptionalTensor ids = problem.member_ids;
  if (assignment.dim() == 1) {
    const Tensor cluster = valid_assignment(assignment, num_clusters());
    const Groups groups(cluster.const_data_ptr<int64_t>(), num_members_, num_clusters());
    order_ = at::empty({static_cast<int64_t>(groups.order.size())}, cluster.options());
    std::copy(groups.order.begin(), groups.order.end(), order_.mutable_data_ptr<int64_t>());
    cluster_of_column_ = cluster.index_select(0, order_);
    x_ = x_.index_select(0, order_);
    if (ids.has_value()) ids = ids->index_select(0, order_);
    for (int64_t k = 0; k < num_clusters(); ++k) {
      clusters_[k].first = groups.start[k];
      clusters_[k].size = groups.start[k + 1] - groups.start[k];
    }
  } else {
    assignment_ = assignment;
    for (Cluster& cluster : clusters_) cluster.first = 0, cluster.size = num_members_;
  }
  half_square_ = x_.square().sum(1).div_(2);
  if (ids.has_value()) same_.emplace(problem.anchor_ids, ids);
  most_rows_ =
      std::clamp<int64_t>(kBlockScores / std::max<int64_t>(1, x_.size(0)), 1, kMostRowsOfBlock);
  if (problem.scores.defined()) kept_ = problem.scores.narrow(1, 0, x_.size(0));
  add_matrices(with_grams);
}

Anchors Synthesis::block(int64_t first, int64_t rows) {
  Anchors block{first, rows, q_.narrow(0, first, rows), {}, {}, {}, {}};
  if (per_anchor())
    block.assignment = valid_assignment(assignment_.narrow(0, first, rows), num_clusters());
  block.scores =
      kept_.defined() ? kept_.narrow(0, first, rows) : at::empty({rows, x_.size(0)}, options());
  if (!saved_) at::mm_out(block.scores, block.q, x_.t());
  block.khat = block.scores.clone(at::MemoryFormat::Contiguous);
  AT_DISPATCH_FLOATING_TYPES(q_.scalar_type(), "rbf_synthesis", [&] { softmax<scalar_t>(block); });
  block.weights = has_kam_weights() ? solve(block, block.khat.to(at::kDouble)) : block.khat;
  return block;
}

Groups Synthesis::groups(const Anchors& block, int64_t r) const {
  const int64_t* cluster = block.assignment.const_data_ptr<int64_t>() + r * num_members_;
  return Groups(cluster, num_members_, num_clusters());
}

// Calls visit(k, size, row, other) for every cluster that has columns, with its entries of two
// rows. The first row is written. The entries of a cluster are contiguous, with one clustering per
// anchor in gathered copies.
template <typename T, typename Visit>
void Synthesis::for_each_cluster_in_row(const Anchors& block, int64_t r, T* row, const T* other,
                                        Visit&& visit) const {
  if (!per_anchor()) {
    for (int64_t k = 0; k < num_clusters(); ++k) {
      const auto [first, size] = std::pair(clusters_[k].first, clusters_[k].size);
      if (size > 0) visit(k, size, row + first, other + first);
    }
    return;
  }
  const Groups parts = groups(block, r);
  const auto size = static_cast<int64_t>(parts.order.size());
  std::vector<T> own(size), others(size);
  for (int64_t c = 0; c < size; ++c) {
    own[c] = row[parts.order[c]];
    others[c] = other[parts.order[c]];
  }
  std::fill(row, row + num_members_, T(0));  // for members of no cluster
  for (int64_t k = 0; k < num_clusters(); ++k) {
    const int64_t first = parts.start[k], columns = parts.start[k + 1] - first;
    if (columns > 0) visit(k, columns, own.data() + first, others.data() + first);
  }
  for (int64_t c = 0; c < size; ++c) row[parts.order[c]] = own[c];
}

// Turns the scores in khat into the softmax of (q x - |x|^2 / 2) / sigma^2 over the members of each
// cluster that do not share the anchor's id. The term |q|^2 of the squared distance cancels.
template <typename T>
void Synthesis::softmax(const Anchors& block) {
  const auto& loop = loops<T>();
  const int64_t M = x_.size(0), K = num_clusters();
  const Tile<T> tile{block.first, block.rows, 0, M, block.khat.mutable_data_ptr<T>()};
  const T* half = half_square_.const_data_ptr<T>();
  const T scale = static_cast<T>(1 / (sigma_ * sigma_));
  const int64_t* cluster =
      (per_anchor() ? block.assignment : cluster_of_column_).const_data_ptr<int64_t>();
  bool* valid = valid_.mutable_data_ptr<bool>();
  parallel_for(0, block.rows, grain(16 * M), [&](int64_t r0, int64_t r1) {
    std::vector<int64_t> excluded(K);
    for (int64_t r = r0; r < r1; ++r) {
      std::fill(excluded.begin(), excluded.end(), 0);
      const int64_t* of_column = per_anchor() ? cluster + r * M : cluster;
      if (same_)
        same_->for_each_in_row(tile, r, [&](int64_t c) {
          tile.row(r)[c] = -std::numeric_limits<T>::infinity();
          if (of_column[c] >= 0) ++excluded[of_column[c]];
        });
      for_each_cluster_in_row(block, r, tile.row(r), half,
                              [&](int64_t k, int64_t size, T* scores, const T* halves) {
                                const bool any = excluded[k] < size;
                                valid[(block.first + r) * K + k] = any;
                                if (any)
                                  loop.softmax_row(scores, halves, size, scale);
                                else
                                  std::fill(scores, scores + size, T(0));
                              });
    }
  });
}

Tensor Synthesis::columns(const Tensor& all, const Anchors& block, int64_t k) const {
  if (!per_anchor()) return all.narrow(1, clusters_[k].first, clusters_[k].size);
  return all.masked_fill(block.assignment.ne(k), 0);
}

void Synthesis::put_columns(Tensor& all, const Anchors& block, int64_t k, Tensor part) const {
  if (per_anchor())
    all.add_(part.masked_fill_(block.assignment.ne(k), 0));
  else
    all.narrow(1, clusters_[k].first, clusters_[k].size).copy_(part);
}

MemberGradient Synthesis::member_gradient() const {
  MemberGradient members{at::zeros_like(x_), at::zeros_like(half_square_), {}, {}, {}};
  const int64_t matrices = per_anchor() ? 1 : num_clusters();
  for (int64_t k = 0; k < matrices; ++k) {
    const Cluster& cluster = clusters_[k];
    const Tensor& values = cluster.values;
    for (const auto& [list, like] :
         {std::pair(&members.kernel, values.defined() ? Tensor() : cluster.kernel),
          std::pair(&members.products, cluster.gram),
          std::pair(&members.values, cluster.tall() ? values.to(at::kDouble) : values)})
      list->push_back(like.defined() ? at::zeros_like(like) : Tensor());
  }
  return members;
}

Tensor Synthesis::scores_gradient(const Anchors& block, const Tensor& of_weights,
                                  MemberGradient& members) const {
  Tensor grad = of_weights;
  if (has_kam_weights()) {
    const Tensor of_khat = solve(block, of_weights.to(at::kDouble));
    kernel_backward(block, of_khat, members);
    grad = of_khat.to(q_.scalar_type());
  }
  AT_DISPATCH_FLOATING_TYPES(q_.scalar_type(), "rbf_synthesis_backward", [&] {
    const auto& loop = loops<scalar_t>();
    const int64_t M = x_.size(0);
    const auto scale = static_cast<scalar_t>(1 / (sigma_ * sigma_));
    auto* to = grad.template mutable_data_ptr<scalar_t>();
    const auto* khat = block.khat.const_data_ptr<scalar_t>();
    parallel_for(0, block.rows, grain(8 * M), [&](int64_t r0, int64_t r1) {
      for (int64_t r = r0; r < r1; ++r)
        for_each_cluster_in_row(block, r, to + r * M, khat + r * M,
                                [&](int64_t, int64_t size, scalar_t* row, const scalar_t* softmax) {
                                  loop.softmax_gradient(row, softmax, size, scale);
                                });
    });
  });
  members.total.add_(grad.sum(0));
  return grad;
}

void Synthesis::accumulate_scores(const Anchors& block, const Tensor& of_scores,
                                  Tensor& grad_anchors, MemberGradient* members) const {
  Tensor own = grad_anchors.narrow(0, block.first, block.rows);
  at::mm_out(own, of_scores, x_);
  if (members != nullptr) members->rows.addmm_(of_scores.t(), block.q);
}

Tensor Synthesis::finish(MemberGradient& members) const {
  members.rows.addcmul_(members.total.unsqueeze(1), x_, -1);
  for (size_t k = 0; k < members.kernel.size(); ++k) {
    const Cluster& cluster = clusters_[k];
    Tensor factor = members.products[k];  // rows += factor x
    if (members.kernel[k].defined()) {
      const Tensor of_kernel = kernel_to_member_factor(cluster.kernel, members.kernel[k]);
      factor = factor.defined() ? factor.add_(of_kernel) : of_kernel;
    }
    Tensor own = members.rows.narrow(0, cluster.first, cluster.size);
    if (factor.defined()) own.add_(at::mm(factor, cluster.x.to(at::kDouble)));
    if (cluster.values.defined()) own.add_(values_backward(cluster, members.values[k]));
  }
  if (per_anchor()) return members.rows;
  return at::zeros({num_members_, dimension()}, x_.options()).index_copy_(0, order_, members.rows);
}

}  // namespace itm::cpu
