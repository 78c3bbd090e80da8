#pragma once
// The shared part of synthetic vectors and their cosines: the order of members in columns, the
// softmax khat of a block of anchors, and the kernel matrices of the clusters.
//
// With one clustering, members are sorted by cluster: the scores are one product, and everything
// computed from them is a product with the columns of one cluster. With one clustering per anchor,
// columns are the members in their given order, and a cluster is a mask over them.

#include <ATen/Dispatch.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "aten/optional_ids.h"
#include "aten/wide.h"
#include "cpu/groups.h"
#include "cpu/same_id.h"
#include "cpu/score_tiles.h"

namespace itm::cpu {

// Anchors [first, + rows); columns are members.
struct Anchors {
  int64_t first, rows;
  Tensor q;           // [rows, D]
  Tensor assignment;  // [rows, M] with one clustering per anchor, else undefined
  Tensor scores;      // [rows, M] q x^T
  Tensor khat;        // [rows, M]
  Tensor weights;     // [rows, M] with which vectors sum Cluster::rows(): khat, or A^-1 khat
};

// The arguments of a synthesis, rows in the precision of the computation.
struct Problem {
  Tensor q, x;        // [N, D], [M, D]
  Tensor assignment;  // [M] or [N, M]
  OptionalTensor anchor_ids, member_ids;
  int64_t num_clusters;
  double sigma, ridge;
  bool kam;
  // q x^T, which a forward pass may save for its backward pass, or undefined. Its columns are
  // ordered as the members of clusters, and there may be more of them. `saved` if they are to be
  // read.
  Tensor scores = {};
  bool saved = false;

  Problem(const Tensor& anchors, const Tensor& members, const Tensor& assignment,
          const OptionalTensor& anchor_ids, const OptionalTensor& member_ids, int64_t num_clusters,
          double sigma, std::string_view weights, double ridge)
      : q(wide(anchors)),
        x(wide(members)),
        assignment(assignment),
        anchor_ids(anchor_ids),
        member_ids(member_ids),
        num_clusters(num_clusters),
        sigma(sigma),
        ridge(ridge),
        kam(weights == "kam") {}

  void write_scores(const Tensor& kept) { scores = if_kept(kept); }
  void read_scores(const Tensor& kept) {
    scores = if_kept(kept);
    saved = scores.defined();
  }

  // Returns whether clusters are processed one after another, so that the matrices of only one are
  // stored at a time. Tall clusters share nothing but the anchors.
  bool one_by_one() const {
    return kam && assignment.dim() == 1 && num_clusters > 1 && x.size(0) > num_clusters * x.size(1);
  }

  // Calls visit(k, problem) for every cluster k with a problem in which it is the only one.
  template <typename Visit>
  void for_each_alone(Visit&& visit) const {
    Problem own = *this;
    own.num_clusters = 1;
    int64_t first = 0;
    for (int64_t k = 0; k < num_clusters; ++k) {
      const Tensor inside = assignment.eq(k);
      own.assignment = at::where(inside, 0, -1);
      if (scores.defined()) {
        const auto columns = inside.sum().item<int64_t>();
        own.scores = scores.narrow(1, first, columns);
        first += columns;
      }
      visit(k, own);
    }
  }

  // Sums the gradients of anchors and members that gradient(problem, grad) returns for each cluster
  // alone. Those of members may be undefined.
  template <typename Gradient>
  std::tuple<Tensor, Tensor> sum_of_gradients(const Tensor& grad, Gradient&& gradient) const {
    Tensor of_anchors, of_members;
    for_each_alone([&](int64_t k, const Problem& own) {
      const auto [of_q, of_x] = gradient(own, grad.narrow(1, k, 1));
      of_anchors = k ? of_anchors.add_(of_q) : of_q;
      if (of_x.defined()) of_members = k ? of_members.add_(of_x) : of_x;
    });
    return {of_anchors, of_members};
  }
};

// The columns of a cluster, the rows x of their members and, if needed, its matrices: all but
// values in fp64.
struct Cluster {
  int64_t first, size;
  Tensor x;        // [size, D]
  Tensor kernel;   // [size, size] e^(-|x_i - x_j|^2 / 2 sigma^2)
  Tensor inverse;  // [size, size] A^-1, for one clustering
  Tensor gram;     // [size, size] x x^T
  Tensor values;   // [size, D] A^-1 x: vectors are khat times these

  // Returns whether it has more members than D; then its matrices are not stored.
  bool tall() const { return values.defined() && !inverse.defined(); }
  // Returns the rows whose weighted sums are the vectors.
  const Tensor& rows() const { return values.defined() ? values : x; }
};

// The gradient of the members, accumulated over all anchors, in column order.
struct MemberGradient {
  Tensor rows;   // [M, D]
  Tensor total;  // [M]: of q x^T - |x|^2 / 2, whose second term is added in finish()
  // Per cluster [size, size] in fp64: the gradient of its kernel matrix, and the matrix that
  // multiplies its members. One for all clusters if they share their columns.
  std::vector<Tensor> kernel, products;
  // Per cluster with values V, [size, D]: A^-1 dL/dV, or dL/dV in fp64 if A^-1 is not stored.
  std::vector<Tensor> values;
};

class Synthesis {
 public:
  // with_grams: store x x^T where products of vectors with members cost less through it.
  Synthesis(const Problem& problem, bool with_grams);

  int64_t size() const { return q_.size(0); }
  int64_t dimension() const { return q_.size(1); }
  int64_t num_clusters() const { return static_cast<int64_t>(clusters_.size()); }
  const Cluster& cluster(int64_t k) const { return clusters_[k]; }
  at::TensorOptions options() const { return q_.options(); }
  // [N, K], true where the cluster has a member for the anchor. Complete after all blocks.
  const Tensor& valid() const { return valid_; }

  // Calls visit(block) for all anchors, in increasing order.
  template <typename Visit>
  void for_each_block(Visit&& visit) {
    for (int64_t n = 0; n < size(); n += most_rows_)
      visit(block(n, std::min(most_rows_, size() - n)));
  }

  // Returns the columns of cluster k in a matrix [rows, M], 0 for members of other clusters.
  Tensor columns(const Tensor& all, const Anchors& block, int64_t k) const;
  // Writes the columns of cluster k into a matrix that is 0 there.
  void put_columns(Tensor& all, const Anchors& block, int64_t k, Tensor part) const;

  MemberGradient member_gradient() const;
  // Accumulates the gradient of a block's vectors of cluster k [rows, D] on its rows().
  void add_rows(const Anchors& block, int64_t k, const Tensor& grad, MemberGradient& members) const;
  int64_t matrix_of(int64_t k) const { return per_anchor() ? 0 : k; }
  // Returns the gradient of q x^T from that of a block's weights, and accumulates the remaining
  // terms on the members.
  Tensor scores_gradient(const Anchors& block, const Tensor& of_weights,
                         MemberGradient& members) const;
  // Accumulates the gradient of q x^T on the block's anchors and, unless null, on the members.
  void accumulate_scores(const Anchors& block, const Tensor& of_scores, Tensor& grad_anchors,
                         MemberGradient* members) const;
  // Returns the gradient of the members in their given order.
  Tensor finish(MemberGradient& members) const;

 private:
  bool per_anchor() const { return assignment_.defined(); }
  Anchors block(int64_t first, int64_t rows);
  Groups groups(const Anchors& block, int64_t r) const;
  template <typename T, typename Visit>
  void for_each_cluster_in_row(const Anchors& block, int64_t r, T* row, const T* other,
                               Visit&& visit) const;
  template <typename T>
  void softmax(const Anchors& block);

  void add_matrices(bool with_grams);
  Tensor gram_of(const Tensor& x) const;
  Tensor kernel_of(Tensor gram) const;
  Tensor kernel_of_members(const Tensor& index) const;
  Tensor factor_of(Tensor kernel) const;
  bool has_kam_weights() const;
  Tensor solve(const Anchors& block, const Tensor& right) const;
  void kernel_backward(const Anchors& block, const Tensor& of_khat, MemberGradient& members) const;
  Tensor kernel_to_member_factor(const Tensor& kernel, const Tensor& grad) const;
  Tensor values_backward(const Cluster& cluster, const Tensor& of_values) const;

  bool kam_;
  double sigma_, ridge_;
  int64_t num_members_, most_rows_;
  Tensor kept_;  // [N, M] in column order, or undefined
  bool saved_;
  Tensor q_, x_, half_square_, valid_;  // x [M, D] and |x|^2 / 2 [M] in column order
  Tensor order_, cluster_of_column_;    // member and cluster of each column, for one clustering
  Tensor assignment_;                   // [N, M] with one clustering per anchor
  std::optional<SameId> same_;
  std::vector<Cluster> clusters_;
};

}  // namespace itm::cpu
