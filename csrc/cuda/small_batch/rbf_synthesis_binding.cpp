// Hard negative synthesis on CUDA: one launch lists the members, one processes all anchors and,
// backward, one all members; a kernel associative memory takes two or three more. Large batches are
// processed in rounds of anchors, which bounds the workspace.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "cuda/distances/similarity_binding.h"
#include "cuda/small_batch/rbf_synthesis.h"

namespace itm::cuda {
namespace {

// Values that a round may store, or as many as the rows have, if that is more.
#ifdef ITM_EMULATED
constexpr int64_t kKept = 1 << 12;  // so that tests cover several rounds
#else
constexpr int64_t kKept = 8 << 20;
#endif

// The arguments of a synthesis, as its kernels require them, and its rounds.
class Rounds {
 public:
  Rounds(const OnDevice& device, const Tensor& anchors, const Tensor& members,
         const Tensor& assignment, const OptionalTensor& anchor_ids,
         const OptionalTensor& member_ids, int64_t num_clusters, double sigma,
         std::string_view weights, double ridge, int64_t kept_per_cluster = 0)
      : device_(device),
        q_(pad_to_four(anchors.unsqueeze(0))),
        x_(pad_to_four(members.unsqueeze(0))),
        assignment_(assignment.contiguous()),
        K_(num_clusters),
        sigma_(sigma),
        ridge_(ridge),
        kam_(weights == "kam"),
        per_anchor_(assignment.dim() == 2) {
    if (anchor_ids.has_value()) {
      anchor_ids_ = anchor_ids->contiguous();
      member_ids_ = member_ids->contiguous();
    }
    const int64_t M = size(), per_row = M * (kam_ ? 8 : 4) + K_ * kept_per_cluster +
                                        (per_anchor_ && kam_ ? 2 * M * M : 0);
    const int64_t kept = std::max(kKept, (anchors.size(0) + M) * D());
    count_ = std::clamp<int64_t>(kept / per_row, 1, anchors.size(0));
    const int64_t problems = per_anchor_ ? count_ : 1;
    order_ = empty(at::kInt, {problems, M});
    span_ = empty(at::kInt, {problems, K_, 2});
    khat_ = empty(wide_type(q_), {count_, M});
    if (!kam_) return;
    const Tensor rows = pad_to_four(x_.to(at::kDouble));
    distance_ = distances_of(device, Metric::kSquare, rows, rows)[0];
    inverse_ = empty(at::kDouble, {problems, M, M});
    sweep_ = empty(at::kDouble, {problems, 2, M});
    weights_ = empty(at::kDouble, {count_, M});
  }

  int64_t anchors() const { return q_.size(1); }
  int64_t size() const { return x_.size(1); }
  int64_t D() const { return q_.size(2); }
  int64_t clusters() const { return K_; }
  int64_t at_once() const { return count_; }
  bool kam() const { return kam_; }
  const OnDevice& device() const { return device_; }
  Type type() const { return type_of(q_); }
  at::ScalarType wide() const { return wide_type(q_); }
  Tensor empty(at::ScalarType type, at::IntArrayRef shape) const {
    return at::empty(shape, q_.options().dtype(type));
  }

  // Calls visit(first, count, round) for all anchors, in increasing order; this fills `valid`.
  template <typename Visit>
  void for_each(const Tensor& valid, Visit&& visit) const {
    for (int64_t first = 0; first < anchors(); first += count_) {
      const SynthesisRound round = round_from(first, valid);
      if (per_anchor_ || first == 0) {
        list_members(round, device_.stream());
        device_.check_launch();
        if (kam_) kam_solve(round, device_.stream());
        device_.check_launch();
      }
      visit(first, round.anchors.rows, round);
      device_.check_launch();
    }
  }

 private:
  SynthesisRound round_from(int64_t first, const Tensor& valid) const {
    const auto number = [](const Tensor& t) {
      return t.defined() ? t.mutable_data_ptr<double>() : nullptr;
    };
    const auto ids = [](const Tensor& t, int64_t from) {
      return t.defined() ? t.const_data_ptr<int64_t>() + from : nullptr;
    };
    return {.type = type(),
            .anchors = matrix_of(q_.narrow(1, first, std::min(count_, anchors() - first))),
            .members = matrix_of(x_),
            .D = D(),
            .clusters = K_,
            .assignment = ids(assignment_, per_anchor_ ? first * size() : 0),
            .per_anchor = per_anchor_,
            .anchor_ids = ids(anchor_ids_, first),
            .member_ids = ids(member_ids_, 0),
            .sigma = sigma_,
            .ridge = ridge_,
            .order = order_.mutable_data_ptr<int32_t>(),
            .span = span_.mutable_data_ptr<int32_t>(),
            .valid = valid.mutable_data_ptr<bool>() + first * K_,
            .khat = khat_.mutable_data_ptr(),
            .distance = number(distance_),
            .inverse = number(inverse_),
            .sweep = number(sweep_),
            .weights = number(weights_)};
  }

  const OnDevice& device_;
  const Tensor q_, x_, assignment_;
  Tensor anchor_ids_, member_ids_;
  const int64_t K_;
  const double sigma_, ridge_;
  const bool kam_, per_anchor_;
  int64_t count_;
  Tensor order_, span_, khat_, distance_, inverse_, sweep_, weights_;
};

// A pointer to row `first` of a contiguous tensor.
void* from_row(const Tensor& t, int64_t first) {
  return t.narrow(0, first, t.size(0) - first).mutable_data_ptr();
}

std::tuple<Tensor, Tensor, Tensor> rbf_synthesis_forward(
    const Tensor& anchors, const Tensor& members, const Tensor& assignment,
    const OptionalTensor& anchor_ids, const OptionalTensor& member_ids, int64_t num_clusters,
    double sigma, std::string_view weights, double ridge, bool /*keep_scores: false*/) {
  const OnDevice device(anchors);
  const Rounds rounds(device, anchors, members, assignment, anchor_ids, member_ids, num_clusters,
                      sigma, weights, ridge);
  const Tensor vectors = rounds.empty(rounds.wide(), {rounds.anchors(), num_clusters, rounds.D()});
  const Tensor valid = rounds.empty(at::kBool, {rounds.anchors(), num_clusters});
  rounds.for_each(valid, [&](int64_t first, int64_t, const SynthesisRound& round) {
    synthesise(round, from_row(vectors, first), nullptr, device.stream());
  });
  return {vectors.narrow(2, 0, anchors.size(1)).contiguous(), valid,
          rounds.empty(rounds.wide(), {0, 0})};
}

// The gradient of anchors and members, from that of vectors [N, K, padded D], or of cosines [N, K],
// whose vectors are formed again.
std::tuple<Tensor, Tensor> gradient(const Rounds& rounds, const Tensor& grad, bool cosines,
                                    bool detach, const Tensor& anchors, const Tensor& members) {
  const auto wide = rounds.wide();
  const int64_t M = rounds.size(), K = rounds.clusters(), count = rounds.at_once();
  const bool kam = rounds.kam() && !detach;
  const Tensor valid = rounds.empty(at::kBool, {rounds.anchors(), K});
  const Tensor grad_scores = rounds.empty(wide, {count, M}),
               member_weights = rounds.empty(wide, {count, M});
  const Tensor alpha = rounds.empty(wide, {cosines ? count : 0, K, 2});
  const Tensor formed = rounds.empty(wide, {cosines && !detach ? count : 0, K, rounds.D()});
  const Tensor grad_khat = rounds.empty(at::kDouble, {kam ? count : 0, M});
  const Tensor grad_kernel = rounds.empty(at::kDouble, {kam ? M : 0, M});
  const Tensor grad_anchors = rounds.empty(wide, {rounds.anchors(), rounds.D()});
  const Tensor grad_members = rounds.empty(wide, {detach ? 0 : M, rounds.D()});
  auto* const khat = kam ? grad_khat.mutable_data_ptr<double>() : nullptr;
  rounds.for_each(valid, [&](int64_t first, int64_t rows, const SynthesisRound& round) {
    void* const grad_vectors = cosines ? formed.mutable_data_ptr() : from_row(grad, first);
    anchor_gradient(round,
                    {.cosines = cosines ? from_row(grad, first) : nullptr,
                     .vectors = grad_vectors,
                     .detach = detach,
                     .alpha = alpha.mutable_data_ptr(),
                     .scores = grad_scores.mutable_data_ptr(),
                     .member_weights = member_weights.mutable_data_ptr(),
                     .khat = khat,
                     .anchors = from_row(grad_anchors, first)},
                    rounds.device().stream());
    if (detach) return;
    rounds.device().check_launch();
    member_gradient(round,
                    {.vectors = grad_vectors,
                     .scores = grad_scores.const_data_ptr(),
                     .khat = khat,
                     .kernel = kam ? grad_kernel.mutable_data_ptr<double>() : nullptr,
                     .first = first == 0,
                     .last = first + rows == rounds.anchors(),
                     .members = grad_members.mutable_data_ptr()},
                    rounds.device().stream());
  });
  const auto as_input = [](const Tensor& found, const Tensor& like) {
    return found.narrow(1, 0, like.size(1)).to(like.scalar_type()).contiguous();
  };
  return {as_input(grad_anchors, anchors),
          detach ? at::zeros_like(members) : as_input(grad_members, members)};
}

std::tuple<Tensor, Tensor> rbf_synthesis_backward(
    const Tensor& grad, const Tensor& /*scores*/, const Tensor& anchors, const Tensor& members,
    const Tensor& assignment, const OptionalTensor& anchor_ids, const OptionalTensor& member_ids,
    int64_t num_clusters, double sigma, std::string_view weights, double ridge) {
  const OnDevice device(anchors);
  const Rounds rounds(device, anchors, members, assignment, anchor_ids, member_ids, num_clusters,
                      sigma, weights, ridge);
  const Tensor grad_vectors = pad_to_four(grad.to(rounds.wide()).contiguous());
  return gradient(rounds, grad_vectors, /*cosines=*/false, /*detach=*/false, anchors, members);
}

std::tuple<Tensor, Tensor, Tensor> rbf_synthesis_logits_forward(
    const Tensor& anchors, const Tensor& members, const Tensor& assignment,
    const OptionalTensor& anchor_ids, const OptionalTensor& member_ids, int64_t num_clusters,
    double sigma, std::string_view weights, double ridge, bool /*detach*/,
    bool /*keep_scores: false*/) {
  const OnDevice device(anchors);
  const Rounds rounds(device, anchors, members, assignment, anchor_ids, member_ids, num_clusters,
                      sigma, weights, ridge);
  const Tensor cosines = rounds.empty(rounds.wide(), {rounds.anchors(), num_clusters});
  const Tensor valid = rounds.empty(at::kBool, {rounds.anchors(), num_clusters});
  rounds.for_each(valid, [&](int64_t first, int64_t, const SynthesisRound& round) {
    synthesise(round, nullptr, from_row(cosines, first), device.stream());
  });
  return {cosines, valid, rounds.empty(rounds.wide(), {0, 0})};
}

std::tuple<Tensor, Tensor> rbf_synthesis_logits_backward(
    const Tensor& grad, const Tensor& /*scores*/, const Tensor& anchors, const Tensor& members,
    const Tensor& assignment, const OptionalTensor& anchor_ids, const OptionalTensor& member_ids,
    int64_t num_clusters, double sigma, std::string_view weights, double ridge, bool detach) {
  const OnDevice device(anchors);
  const Rounds rounds(device, anchors, members, assignment, anchor_ids, member_ids, num_clusters,
                      sigma, weights, ridge, /*kept_per_cluster=*/detach ? 2 : members.size(1) + 5);
  return gradient(rounds, grad.to(rounds.wide()).contiguous(), /*cosines=*/true, detach, anchors,
                  members);
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("rbf_synthesis_forward", rbf_synthesis_forward);
  m.impl("rbf_synthesis_backward", rbf_synthesis_backward);
  m.impl("rbf_synthesis_logits_forward", rbf_synthesis_logits_forward);
  m.impl("rbf_synthesis_logits_backward", rbf_synthesis_logits_backward);
}

}  // namespace
}  // namespace itm::cuda
