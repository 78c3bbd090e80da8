// Cosines of anchors with their synthetic vectors without computing the vectors: for v = x^T c,
// a v = c . (x a) follows from the scores, and v^2 = c . (G c) from the Gram matrix G = x x^T of
// the cluster. The vectors of a block are computed if that is less work or more precise.
//
// Backward, with gradient g of cos = a v / (|a| |v|): dL/dv = alpha a + beta v with
// alpha = g / (|a| |v|), beta = -g cos / v^2, and dL/da likewise. As v = x^T c,
//   dL/dc = x dL/dv = alpha (x a) + beta G c, dL/dx += alpha c a^T + beta (c c^T) x.
// The first term of dL/dx and that of dL/da = alpha v have the form of a gradient of the scores.

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <limits>

#include "cpu/rbf_synthesis.h"

namespace itm::cpu {
namespace {

constexpr double kSmallest = 1e-8;  // norm, as in torch.nn.functional.cosine_similarity

Tensor norm_of(const Tensor& rows) {
  return at::linalg_vector_norm(rows, 2, {1}, false, at::kDouble);
}

// Returns the divisors of cosines. A zero row has no direction: its divisor is infinite, so that
// its cosine and its gradient are 0.
Tensor divisor_of(const Tensor& norm) {
  return norm.clamp_min(kSmallest).masked_fill_(norm.eq(0),
                                                std::numeric_limits<double>::infinity());
}

// Weights that cancel (kam, near-duplicates) amplify the rounding of the scores in the cosine.
// Above this factor the vectors are computed: their rounding averages out in the cosine.
constexpr double kMostCancellation = 32;

// The parts of a block's cosines with the vectors of one cluster, in fp64.
struct Vectors {
  Tensor weights;   // [rows, size], the block's
  Tensor rows;      // [rows, D], if they are computed
  Tensor products;  // [rows, size] with the cluster's members, otherwise
  Tensor norm;      // [rows]
  Tensor dot;       // [rows] with the anchors

  Vectors(const Synthesis& synthesis, const Anchors& block, int64_t k)
      : weights(synthesis.columns(block.weights, block, k).to(at::kDouble)) {
    const Cluster& cluster = synthesis.cluster(k);
    if (cluster.gram.defined() && through_gram(cluster.gram)) {
      dot = weights.mul(synthesis.columns(block.scores, block, k)).sum(1);
    } else {
      rows = at::mm(weights.to(cluster.rows().scalar_type()), cluster.rows());
      norm = norm_of(rows);
      dot = rows.mul(block.q).sum({1}, false, at::kDouble);
    }
  }

 private:
  bool through_gram(const Tensor& gram) {
    products = at::mm(weights, gram);
    norm = products.mul(weights).sum(1).clamp_min_(0).sqrt_();
    const Tensor largest = gram.diagonal().max().sqrt_();
    const Tensor added = weights.abs().sum(1).mul_(largest);
    return added.le(norm.mul(kMostCancellation)).all().item<bool>();
  }
};

std::tuple<Tensor, Tensor> logits_of(const Problem& problem) {
  const int64_t K = problem.num_clusters;
  if (problem.one_by_one()) {
    std::vector<Tensor> cosines(K), valid(K);
    problem.for_each_alone([&](int64_t k, const Problem& alone) {
      std::tie(cosines[k], valid[k]) = logits_of(alone);
    });
    return {at::cat(cosines, 1), at::cat(valid, 1)};
  }
  Synthesis synthesis(problem, /*with_grams=*/true);
  Tensor cosine = at::zeros({synthesis.size(), K}, synthesis.options());
  synthesis.for_each_block([&](const Anchors& block) {
    const Tensor divisor = divisor_of(norm_of(block.q));
    for (int64_t k = 0; k < K; ++k) {
      if (synthesis.cluster(k).size == 0) continue;
      const Vectors v(synthesis, block, k);
      cosine.narrow(0, block.first, block.rows)
          .select(1, k)
          .copy_(v.dot.div(divisor_of(v.norm)).div_(divisor));
    }
  });
  cosine.masked_fill_(synthesis.valid().logical_not(), 0);
  return {cosine, synthesis.valid()};
}

// Returns x / y, 0 where y is 0: the gradient of a norm is 0 at a zero row.
Tensor over_norm(const Tensor& x, const Tensor& y) { return x.div(y).masked_fill_(y.eq(0), 0); }

// Returns the gradients of anchors and members in the precision of the computation. That of
// detached members is undefined.
std::tuple<Tensor, Tensor> logits_gradient(const Problem& problem, const Tensor& grad,
                                           bool detach) {
  if (problem.one_by_one())
    return problem.sum_of_gradients(grad, [&](const Problem& alone, const Tensor& own) {
      return logits_gradient(alone, own, detach);
    });
  Synthesis synthesis(problem, /*with_grams=*/true);
  MemberGradient of_members = detach ? MemberGradient() : synthesis.member_gradient();
  Tensor of_anchors = at::empty({synthesis.size(), synthesis.dimension()}, synthesis.options());
  synthesis.for_each_block([&](const Anchors& block) {
    const Tensor a = norm_of(block.q), a_least = divisor_of(a);
    const Tensor valid = synthesis.valid().narrow(0, block.first, block.rows);
    const Tensor g = grad.narrow(0, block.first, block.rows).to(at::kDouble).mul(valid);
    Tensor along = at::zeros_like(a), straight;  // coefficients of a, and sums of vectors of values
    Tensor direct = at::zeros_like(block.khat), of_weights;
    if (!detach) of_weights = at::zeros_like(block.khat);
    for (int64_t k = 0; k < synthesis.num_clusters(); ++k) {
      const Cluster& cluster = synthesis.cluster(k);
      if (cluster.size == 0) continue;
      Vectors v(synthesis, block, k);
      const Tensor v_least = divisor_of(v.norm);
      const Tensor alpha = g.select(1, k).div(a_least).div_(v_least);
      const Tensor through = alpha.mul(v.dot).neg_();  // -g cos
      along.add_(over_norm(through.div(a_least), a));
      const Tensor beta = over_norm(through.div(v_least), v.norm).unsqueeze(1);
      if (cluster.values.defined()) {
        const Tensor scaled = v.rows.mul(alpha.unsqueeze(1));
        straight = straight.defined() ? straight.add_(scaled) : scaled;
        if (detach) continue;
        const Tensor of_rows = block.q.mul(alpha.unsqueeze(1)).add_(v.rows.mul(beta));
        synthesis.add_rows(block, k, of_rows, of_members);
        const Tensor of_own = at::mm(of_rows.to(v.rows.scalar_type()), cluster.values.t());
        synthesis.put_columns(of_weights, block, k, of_own.to(of_weights.scalar_type()));
        continue;
      }
      const Tensor scaled = v.weights.mul(alpha.unsqueeze(1));
      synthesis.put_columns(direct, block, k, scaled.to(direct.scalar_type()));
      if (detach) continue;
      const Tensor by_beta = v.weights.mul(beta);
      if (v.rows.defined()) {
        of_members.rows.narrow(0, cluster.first, cluster.size)
            .addmm_(by_beta.t().to(v.rows.scalar_type()), v.rows);
        v.products = at::mm(v.rows, cluster.x.t());
      } else {
        of_members.products[synthesis.matrix_of(k)].addmm_(by_beta.t(), v.weights);
      }
      Tensor of_own = synthesis.columns(block.scores, block, k).mul(alpha.unsqueeze(1));
      of_own.add_(v.products.mul(beta));
      synthesis.put_columns(of_weights, block, k, of_own.to(of_weights.scalar_type()));
    }
    if (!detach) direct.add_(synthesis.scores_gradient(block, of_weights, of_members));
    synthesis.accumulate_scores(block, direct, of_anchors, detach ? nullptr : &of_members);
    Tensor own = of_anchors.narrow(0, block.first, block.rows);
    own.add_(block.q.mul(along.unsqueeze(1).to(block.q.scalar_type())));
    if (straight.defined()) own.add_(straight);
  });
  return {of_anchors, detach ? Tensor() : synthesis.finish(of_members)};
}

std::tuple<Tensor, Tensor, Tensor> rbf_synthesis_logits_forward(
    const Tensor& anchors, const Tensor& members, const Tensor& assignment,
    const OptionalTensor& anchor_ids, const OptionalTensor& member_ids, int64_t num_clusters,
    double sigma, std::string_view weights, double ridge, bool detach, bool keep_scores) {
  Problem problem(anchors, members, assignment, anchor_ids, member_ids, num_clusters, sigma,
                  weights, ridge);
  const Tensor scores = scores_to_keep(keep_scores, problem.q, problem.x);
  problem.write_scores(scores);
  const auto [cosine, valid] = logits_of(problem);
  return {cosine, valid, scores};
}

std::tuple<Tensor, Tensor> rbf_synthesis_logits_backward(
    const Tensor& grad, const Tensor& scores, const Tensor& anchors, const Tensor& members,
    const Tensor& assignment, const OptionalTensor& anchor_ids, const OptionalTensor& member_ids,
    int64_t num_clusters, double sigma, std::string_view weights, double ridge, bool detach) {
  Problem problem(anchors, members, assignment, anchor_ids, member_ids, num_clusters, sigma,
                  weights, ridge);
  problem.read_scores(scores);
  const auto [of_anchors, of_members] = logits_gradient(problem, grad, detach);
  return {of_anchors.to(anchors.scalar_type()),
          detach ? at::zeros_like(members) : of_members.to(members.scalar_type())};
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("rbf_synthesis_logits_forward", rbf_synthesis_logits_forward);
  m.impl("rbf_synthesis_logits_backward", rbf_synthesis_logits_backward);
}

}  // namespace
}  // namespace itm::cpu
