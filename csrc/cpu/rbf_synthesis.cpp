// Synthetic vectors. Those of each cluster are one product of a block's weights with the members of
// the cluster, so that all clusters together cost as much as one over all members.
//
// Backward, with vector v = V^T khat, V = x (attention) or A^-1 x (kam), g = dL/dv:
//   dL/dkhat = V g and dL/dV += khat g^T, which continues through A (kam_gram.cpp); from
//   khat = softmax(s), dL/ds = khat (dL/dkhat - khat . dL/dkhat) continues through
//   s = (q x - |x|^2 / 2) / sigma^2 to q and x.
// With one clustering per anchor, A differs between anchors, and kam computes v = x^T c, c = A^-1
// khat.

#include "cpu/rbf_synthesis.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

namespace itm::cpu {
namespace {

std::tuple<Tensor, Tensor> vectors_of(const Problem& problem) {
  const int64_t N = problem.q.size(0), K = problem.num_clusters, D = problem.q.size(1);
  const Tensor vectors = empty_in_huge_pages({N, K, D}, problem.q.options());
  if (problem.one_by_one()) {
    Tensor valid = at::empty({N, K}, vectors.options().dtype(at::kBool));
    problem.for_each_alone([&](int64_t k, const Problem& alone) {
      const auto [own, any] = vectors_of(alone);
      vectors.narrow(1, k, 1).copy_(own), valid.narrow(1, k, 1).copy_(any);
    });
    return {vectors, valid};
  }
  Synthesis synthesis(problem, /*with_grams=*/false);
  synthesis.for_each_block([&](const Anchors& block) {
    const Tensor weights = block.weights.to(vectors.scalar_type());
    for (int64_t k = 0; k < K; ++k) {
      const Cluster& cluster = synthesis.cluster(k);
      Tensor own = vectors.narrow(0, block.first, block.rows).select(1, k);
      at::mm_out(own, synthesis.columns(weights, block, k), cluster.rows());
    }
  });
  // The vector of a cluster without members is 0, also if 0 was multiplied by NaN or infinity.
  const Tensor invalid = synthesis.valid().logical_not();
  if (invalid.any().item<bool>()) vectors.masked_fill_(invalid.unsqueeze(2), 0);
  return {vectors, synthesis.valid()};
}

// Returns the gradients of anchors and members in the precision of the computation.
std::tuple<Tensor, Tensor> vectors_gradient(const Problem& problem, const Tensor& grad) {
  if (problem.one_by_one()) return problem.sum_of_gradients(grad, vectors_gradient);
  Synthesis synthesis(problem, /*with_grams=*/false);
  MemberGradient of_members = synthesis.member_gradient();
  Tensor of_anchors = at::empty({synthesis.size(), synthesis.dimension()}, synthesis.options());
  synthesis.for_each_block([&](const Anchors& block) {
    const Tensor g = grad.narrow(0, block.first, block.rows).to(of_anchors.scalar_type());
    Tensor of_weights = at::zeros_like(block.khat);
    for (int64_t k = 0; k < synthesis.num_clusters(); ++k) {
      const Cluster& cluster = synthesis.cluster(k);
      if (cluster.size == 0) continue;
      const Tensor own = g.select(1, k);
      synthesis.put_columns(of_weights, block, k, at::mm(own, cluster.rows().t()));
      synthesis.add_rows(block, k, own, of_members);
    }
    const Tensor of_scores = synthesis.scores_gradient(block, of_weights, of_members);
    synthesis.accumulate_scores(block, of_scores, of_anchors, &of_members);
  });
  return {of_anchors, synthesis.finish(of_members)};
}

std::tuple<Tensor, Tensor, Tensor> rbf_synthesis_forward(
    const Tensor& anchors, const Tensor& members, const Tensor& assignment,
    const OptionalTensor& anchor_ids, const OptionalTensor& member_ids, int64_t num_clusters,
    double sigma, std::string_view weights, double ridge, bool keep_scores) {
  Problem problem(anchors, members, assignment, anchor_ids, member_ids, num_clusters, sigma,
                  weights, ridge);
  const Tensor scores = scores_to_keep(keep_scores, problem.q, problem.x);
  problem.write_scores(scores);
  const auto [vectors, valid] = vectors_of(problem);
  return {vectors, valid, scores};
}

std::tuple<Tensor, Tensor> rbf_synthesis_backward(
    const Tensor& grad, const Tensor& scores, const Tensor& anchors, const Tensor& members,
    const Tensor& assignment, const OptionalTensor& anchor_ids, const OptionalTensor& member_ids,
    int64_t num_clusters, double sigma, std::string_view weights, double ridge) {
  Problem problem(anchors, members, assignment, anchor_ids, member_ids, num_clusters, sigma,
                  weights, ridge);
  problem.read_scores(scores);
  const auto [of_anchors, of_members] = vectors_gradient(problem, grad);
  return {of_anchors.to(anchors.scalar_type()), of_members.to(members.scalar_type())};
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("rbf_synthesis_forward", rbf_synthesis_forward);
  m.impl("rbf_synthesis_backward", rbf_synthesis_backward);
}

}  // namespace
}  // namespace itm::cpu
