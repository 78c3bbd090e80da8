// The kernel associative memory: Gram matrices K of the clusters and systems (K + ridge I) c =
// khat, all in fp64, because near-duplicates raise the condition number of K + ridge I to 1 /
// ridge.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cholesky_inverse.h>
#include <ATen/ops/cholesky_solve.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>

#include "cpu/rbf_synthesis.h"

namespace itm::cpu {
namespace {

// Smaller pivots of a matrix with a unit diagonal are rounding errors: with ridge 0, duplicates
// leave a pivot of 0 or of about 1e-16 |x|^2 / sigma^2.
constexpr double kSmallestPivot = 1e-13;

// Calls visit(r, index) for the members of every cluster of every anchor with its own clustering,
// anchors in parallel. The threads need their own guard to run ATen below autograd.
template <typename Index, typename Visit>
void for_each_system(const Anchors& block, int64_t clusters, Index&& groups_of, Visit&& visit) {
  parallel_for(0, block.rows, 1, [&](int64_t r0, int64_t r1) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (int64_t r = r0; r < r1; ++r) {
      Groups groups = groups_of(r);
      for (int64_t k = 0; k < clusters; ++k) {
        const int64_t first = groups.start[k], size = groups.start[k + 1] - first;
        if (size > 0) visit(r, at::from_blob(groups.order.data() + first, {size}, at::kLong));
      }
    }
  });
}

// Returns A^-1 right from the Cholesky factor of A, which `cholesky_solve` would copy.
Tensor solve_factored(const Tensor& factor, const Tensor& right) {
  const Tensor half = at::linalg_solve_triangular(factor, right, /*upper=*/false);
  return at::linalg_solve_triangular(factor.t(), half, /*upper=*/true);
}

}  // namespace

// Matrices of m x m for m <= D are no larger than their m members and are stored; a larger one is
// discarded after its system is solved. Vectors are computed from A^-1 x: that is one system with D
// right-hand sides instead of N, in fp64. The alternative weights A^-1 khat of two near-duplicates
// are in the thousands and cancel, which costs vectors and anchors a factor of 100 in precision.
// Cosines through Gram matrices need the weights.
void Synthesis::add_matrices(bool with_grams) {
  const bool grams = with_grams && q_.scalar_type() == at::kFloat;
  for (Cluster& cluster : clusters_) {
    cluster.x = x_.narrow(0, cluster.first, cluster.size);
    const bool small = cluster.size <= dimension();
    if (cluster.size == 0 || !(kam_ || grams) || (per_anchor() && !small)) continue;
    const Tensor rows = cluster.x.to(at::kDouble);
    if (!small) {
      if (kam_)
        cluster.values =
            solve_factored(factor_of(kernel_of(gram_of(rows))), rows).to(x_.scalar_type());
      continue;
    }
    const Cluster& shared = clusters_[0];
    if (per_anchor() && &cluster != &shared) {
      cluster.gram = shared.gram;
      continue;
    }
    const Tensor gram = gram_of(rows);
    // In fp64 Gram matrices are not used: the vectors themselves are the most precise way.
    if (grams) cluster.gram = gram;
    if (!kam_) continue;
    cluster.kernel = kernel_of(grams ? gram.clone() : gram);
    if (per_anchor()) continue;
    cluster.inverse = at::cholesky_inverse(factor_of(cluster.kernel.clone()));
    if (!grams) cluster.values = at::mm(cluster.inverse, rows).to(x_.scalar_type());
  }
}

Tensor Synthesis::gram_of(const Tensor& x) const {
  const Tensor rows = x.to(at::kDouble);
  return at::mm(rows, rows.t());
}

// Returns e^(-|x_i - x_j|^2 / 2 sigma^2), in the memory of the Gram matrix.
Tensor Synthesis::kernel_of(Tensor gram) const {
  const Tensor square = gram.diagonal().clone();
  const Tensor distance = gram.mul_(-2).add_(square.unsqueeze(1)).add_(square).clamp_min_(0);
  return distance.div_(-2 * sigma_ * sigma_).exp_();
}

Tensor Synthesis::kernel_of_members(const Tensor& index) const {
  const Tensor& whole = clusters_[0].kernel;
  if (whole.defined()) return whole.index_select(0, index).index_select(1, index);
  return kernel_of(gram_of(x_.index_select(0, index)));
}

// Returns the Cholesky factor of A = kernel + ridge I in the memory of the kernel, NaN if A is not
// positive definite.
Tensor Synthesis::factor_of(Tensor kernel) const {
  kernel.diagonal().add_(ridge_);
  Tensor factor = kernel.t(), info = at::empty({}, kernel.options().dtype(at::kInt));
  at::linalg_cholesky_ex_out(factor, info, factor);  // in place: column-major, as LAPACK
  const double pivot = factor.diagonal().square().min().item<double>();
  if (info.item<int64_t>() != 0 || !(pivot > kSmallestPivot))
    factor.fill_(std::numeric_limits<double>::quiet_NaN());
  return factor;
}

// Returns whether the weights of any cluster are A^-1 khat.
bool Synthesis::has_kam_weights() const {
  return kam_ && std::any_of(clusters_.begin(), clusters_.end(), [](const Cluster& cluster) {
           return cluster.size > 0 && !cluster.values.defined();
         });
}

// Multiplies the columns of each cluster by the inverse of the cluster's matrix, unless its values
// include the inverse.
Tensor Synthesis::solve(const Anchors& block, const Tensor& right) const {
  Tensor out = at::zeros_like(right);
  if (!per_anchor()) {
    for (const Cluster& cluster : clusters_) {
      if (cluster.size == 0) continue;
      Tensor part = out.narrow(1, cluster.first, cluster.size);
      const Tensor own = right.narrow(1, cluster.first, cluster.size);
      if (cluster.values.defined())
        part.copy_(own);
      else
        at::mm_out(part, own, cluster.inverse);
    }
    return out;
  }
  for_each_system(
      block, num_clusters(), [&](int64_t r) { return groups(block, r); },
      [&](int64_t r, const Tensor& index) {
        const Tensor part = right.select(0, r).index_select(0, index).unsqueeze(1);
        const Tensor c = at::cholesky_solve(part, factor_of(kernel_of_members(index)));
        out.select(0, r).index_copy_(0, index, c.squeeze(1));
      });
  return out;
}

// With c = A^-1 khat and A = K + ridge I: dL/dkhat = A^-1 dL/dc, dL/dA = -c (dL/dkhat)^T.
void Synthesis::kernel_backward(const Anchors& block, const Tensor& of_khat,
                                MemberGradient& members) const {
  for (int64_t k = 0; k < num_clusters(); ++k) {
    Tensor& of_kernel = members.kernel[matrix_of(k)];
    if (of_kernel.defined())
      of_kernel.addmm_(columns(block.weights, block, k).t(), columns(of_khat, block, k), 1, -1);
  }
  if (!per_anchor() || members.kernel[0].defined()) return;
  for (int64_t r = 0; r < block.rows; ++r) {
    Groups parts = groups(block, r);
    for (int64_t k = 0; k < num_clusters(); ++k) {
      const int64_t first = parts.start[k], size = parts.start[k + 1] - first;
      if (size == 0) continue;
      const Tensor index = at::from_blob(parts.order.data() + first, {size}, at::kLong);
      const Tensor c = block.weights.select(0, r).index_select(0, index).unsqueeze(1);
      const Tensor d = of_khat.select(0, r).index_select(0, index).unsqueeze(0);
      const Tensor factor = kernel_to_member_factor(kernel_of_members(index), at::mm(c, d).neg_());
      const Tensor rows = x_.index_select(0, index);
      members.rows.index_add_(0, index,
                              at::mm(factor, rows.to(at::kDouble)).to(rows.scalar_type()));
    }
  }
}

// With values V, A^-1 dL/dV is accumulated with the weights A^-1 khat. A tall cluster accumulates
// dL/dV with khat, in fp64, because A^-1 amplifies its rounding by up to 1 / ridge.
void Synthesis::add_rows(const Anchors& block, int64_t k, const Tensor& grad,
                         MemberGradient& members) const {
  const Cluster& cluster = clusters_[k];
  Tensor weights = columns(block.weights, block, k);
  if (cluster.values.defined()) weights = weights.to(at::kDouble);
  if (cluster.values.defined() && !cluster.tall()) weights = at::mm(weights, cluster.inverse);
  Tensor to = cluster.values.defined() ? members.values[k]
                                       : members.rows.narrow(0, cluster.first, cluster.size);
  to.addmm_(weights.to(to.scalar_type()).t(), grad.to(to.scalar_type()));
}

// With V = A^-1 x: dL/dx = A^-1 dL/dV plus the gradient through A, dL/dA = -(A^-1 dL/dV) V^T.
Tensor Synthesis::values_backward(const Cluster& cluster, const Tensor& of_values) const {
  const Tensor x = cluster.x.to(at::kDouble), given = of_values.to(at::kDouble);
  const Tensor kernel = cluster.tall() ? kernel_of(gram_of(x)) : cluster.kernel;
  const Tensor direct = cluster.tall() ? solve_factored(factor_of(kernel.clone()), given) : given;
  const Tensor of_kernel =
      at::mm(direct.to(cluster.values.scalar_type()), cluster.values.t()).neg_().to(at::kDouble);
  return at::addmm(direct, kernel_to_member_factor(kernel, of_kernel), x);
}

// dK_ij = -K_ij (x_i - x_j) (dx_i - dx_j) / sigma^2: with U = (dL/dK + its transpose) K
// elementwise, dL/dX = (U - diag(row sums of U)) X / sigma^2. Returns the factor of X.
Tensor Synthesis::kernel_to_member_factor(const Tensor& kernel, const Tensor& grad) const {
  Tensor U = grad.add(grad.t()).mul_(kernel);
  U.diagonal().zero_();
  U.diagonal().copy_(U.sum(1).neg_());
  return U.div_(sigma_ * sigma_);
}

}  // namespace itm::cpu
