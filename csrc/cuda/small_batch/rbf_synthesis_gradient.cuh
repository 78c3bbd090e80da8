#pragma once
// The gradient of synthetic vectors, and of their cosines. With a vector v = x^T c, c = khat
// (attention) or A^-1 khat (kam), and g = dL/dv:
//   dL/dc = x g and dL/dx += c g^T; with kam dL/dkhat = A^-1 dL/dc and dL/dA = -c (dL/dkhat)^T;
//   dL/ds = khat (dL/dkhat - khat . dL/dkhat), s = (q x - |x|^2 / 2) / sigma^2, and on to q and x.
// One block per anchor writes the weights of its pairs; one block per member adds them in the order
// of the anchors. For a cosine a v / (|a| |v|) with gradient h, g = alpha a + beta v with alpha = h
// / (|a| |v|) and beta = -h cos / v^2; the anchor receives alpha v and a multiple of itself.

#include "cuda/small_batch/rbf_synthesis.cuh"

namespace itm::cuda {

template <typename T>
struct Gradient {
  using C = Wide<T>;
  const C* cosines;  // or null
  C* vectors;
  bool detach;
  C *alpha, *scores, *member_weights;
  double* khat;
  C* anchors;

  __device__ Gradient of_anchor(int64_t n, int64_t M, int64_t K, int64_t D) const {
    Gradient own = *this;
    if (cosines) own.cosines += n * K, own.alpha += 2 * n * K;
    if (vectors) own.vectors += n * K * D;
    own.scores += n * M, own.member_weights += n * M;
    if (khat) own.khat += n * M;
    own.anchors += n * D;
    return own;
  }
};

// x / norm, or 0 if the norm is 0, where it has no derivative.
template <typename C>
__device__ __forceinline__ C over_norm(C x, C norm) {
  return norm == 0 ? C(0) : x / norm;
}

// From the gradient of cosines, computes that of vectors, alpha, and the anchor's multiple of
// itself.
template <typename T>
__device__ void through_cosines(const Synthesis<T>& in, const Gradient<T>& grad) {
  using C = Wide<T>;
  const C norm = norm_of_anchor(in);
  for (int64_t k = warp(); k < in.K; k += kClusterWarps) {
    C* to = grad.vectors + k * in.D;
    const auto v = angle(in, k, [&](int64_t d, const Four<C>& part) {
      if (!grad.detach) *reinterpret_cast<Four<C>*>(to + d) = part;
    });
    const bool valid = in.valid[k];
    const C alpha = valid ? grad.cosines[k] / at_least(norm) / at_least(v.norm) : C(0);
    const C through = -alpha * v.dot;  // -h cos
    if (lane() == 0) {
      grad.alpha[2 * k] = alpha;
      grad.alpha[2 * k + 1] = valid ? over_norm(through / at_least(norm), norm) : C(0);
    }
    if (grad.detach) continue;
    const C beta = over_norm(through / at_least(v.norm), v.norm);
    for (int64_t d = 4 * lane(); d < in.D; d += 128) {
      const Four<C> own = load_four(to + d), q = load_four(in.q.data + d);
      Four<C> g;
#pragma unroll
      for (int e = 0; e < 4; ++e) g.v[e] = valid ? alpha * q.v[e] + beta * own.v[e] : C(0);
      *reinterpret_cast<Four<C>*>(to + d) = g;
    }
  }
}

// grad_scores = dL/dc = x g, for members that are in a cluster.
template <typename T>
__device__ void weights_gradient(const Synthesis<T>& in, const Gradient<T>& grad) {
  using C = Wide<T>;
  constexpr int kRows = std::is_same_v<T, double> ? 2 : 4;
  const int count = in.listed();
  for (int i = kRows * warp(); i < count; i += kRows * kClusterWarps) {
    C sum[kRows] = {};
    const T* x[kRows];
    const C* g[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int m = in.lists.order[i + r < count ? i + r : i];
      x[r] = in.row(m);
      g[r] = grad.vectors + in.assignment[m] * in.D;
    }
#pragma unroll 1  // 8 loads in flight are enough: with more, sm_80 spills
    for (int64_t d = 4 * lane(); d < in.D; d += 128)
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const Four<C> a = load_four(x[r] + d), b = load_four(g[r] + d);
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[r] += a.v[e] * b.v[e];
      }
    const C product = scattered_sum(sum);
    const int own = i + lane() / (32 / kRows);
    if (lane() % (32 / kRows) == 0 && own < count) grad.scores[in.lists.order[own]] = product;
  }
}

// From grad_scores = dL/dc, or grad_khat, computes dL/ds and the weights of members in the anchor's
// gradient.
template <typename T>
__device__ void softmax_gradient(const Synthesis<T>& in, const Gradient<T>& grad) {
  using C = Wide<T>;
  for (int64_t k = warp(); k < in.K; k += kClusterWarps) {
    const int first = in.begin(k) + lane(), end = in.end(k);
    const auto slope = [&](int m) {
      return in.inverse ? static_cast<C>(grad.khat[m]) : grad.scores[m];
    };
    C mean = 0;
    for (int i = first; i < end && !grad.detach; i += 32) {
      const int m = in.lists.order[i];
      mean += in.khat[m] * slope(m);
    }
    mean = warp_sum(mean);
    for (int i = first; i < end; i += 32) {
      const int m = in.lists.order[i];
      const C own = grad.detach ? C(0) : in.khat[m] * (slope(m) - mean) * in.scale;
      grad.scores[m] = own;
      grad.member_weights[m] =
          grad.cosines && in.valid[k] ? own + grad.alpha[2 * k] * in.weight(m) : own;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kClusterThreads, 1)
    anchor_gradient_kernel(Synthesis<T> all, int64_t first, Gradient<T> of_all) {
  wait_for_launch_before();
  using C = Wide<T>;
  const int64_t n = first + blockIdx.x;
  const Synthesis<T> in = all.of_anchor(n);
  const Gradient<T> grad = of_all.of_anchor(n, in.x.count, in.K, in.D);
  compute_weights(in);
  if (grad.cosines) {
    through_cosines(in, grad);
    __syncthreads();
  }
  if (!grad.detach) {
    weights_gradient(in, grad);
    __syncthreads();
    if (in.inverse) {
      solve(in, grad.scores, grad.khat);
      __syncthreads();
    }
  }
  softmax_gradient(in, grad);
  __syncthreads();
  C along = 0;
  for (int64_t k = 0; k < in.K && grad.cosines; ++k) along += grad.alpha[2 * k + 1];
  const int count = in.listed();
  for (int64_t d = 4 * threadIdx.x; d < in.D; d += 4 * kClusterThreads) {
    Four<C> sum = {};
#pragma unroll(2 * kLoads<T>)
    for (int i = 0; i < count; ++i) {
      const int m = in.lists.order[i];
      const C weight = grad.member_weights[m];
      const Four<C> x = load_four(in.row(m) + d);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum.v[e] += weight * x.v[e];
    }
    const Four<C> q = load_four(in.q.data + d);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum.v[e] += grad.cosines ? along * q.v[e] : C(0);
    *reinterpret_cast<Four<C>*>(grad.anchors + d) = sum;
  }
}

constexpr int kMemberThreads = 256;

template <typename T>
struct MemberSums {
  using C = Wide<T>;
  const C *grad_vectors, *grad_scores;
  const double *grad_khat, *distance;  // null without kam
  double* grad_kernel;
  double scale;  // 1 / sigma^2
  bool first, last;
  C* grad_members;
};

// Computes a row of dL/dK from all anchors of the round and, in the last round, the weight of x_j -
// x_m: dK_ij = -K_ij (x_i - x_j) (dx_i - dx_j) / sigma^2.
template <typename T>
__device__ void kernel_gradient_row(const Synthesis<T>& in, const MemberSums<T>& to, int64_t m) {
  const int64_t M = in.x.count;
  for (int64_t j = threadIdx.x; j < M; j += kMemberThreads) {
    double sum = to.first ? 0 : to.grad_kernel[m * M + j];
    for (int64_t n = 0; n < in.q.count && j != m; ++n) {
      const int64_t* cluster = in.assignment + (in.per_anchor ? n * M : 0);
      if (cluster[j] != cluster[m] || cluster[m] < 0 || cluster[m] >= in.K) continue;
      sum -= in.weights[n * M + m] * to.grad_khat[n * M + j] +
             in.weights[n * M + j] * to.grad_khat[n * M + m];
    }
    if (to.last && sum != 0) sum *= exponential(-to.distance[m * M + j] * to.scale / 2) * to.scale;
    to.grad_kernel[m * M + j] = sum;
  }
}

// The sum over j of factor[j] (x_j - x), for columns [d, d + 4).
template <typename T>
__device__ Four<double> through_kernel(const Synthesis<T>& in, const double* factor,
                                       const Four<Wide<T>>& x, int64_t d) {
  Four<double> sum = {};
  for (int64_t j = 0; j < in.x.count; ++j) {
    if (factor[j] == 0) continue;
    const auto other = load_four(in.row(j) + d);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      sum.v[e] += factor[j] * (static_cast<double>(other.v[e]) - static_cast<double>(x.v[e]));
  }
  return sum;
}

template <typename T>
__global__ void __launch_bounds__(kMemberThreads, 2)
    member_gradient_kernel(Synthesis<T> in, int64_t first, MemberSums<T> to) {
  wait_for_launch_before();
  using C = Wide<T>;
  const int64_t m = first + blockIdx.x, M = in.x.count;
  if (to.grad_kernel) kernel_gradient_row(in, to, m);
  __syncthreads();
  for (int64_t d = 4 * threadIdx.x; d < in.D; d += 4 * kMemberThreads) {
    const Four<C> x = load_four(in.row(m) + d);
    C* out = to.grad_members + m * in.D + d;
    Four<C> sum = {};
    if (!to.first) sum = load_four(out);
#pragma unroll 4
    for (int64_t n = 0; n < in.q.count; ++n) {
      const int64_t k = in.assignment[(in.per_anchor ? n * M : 0) + m];
      if (k < 0 || k >= in.K) continue;
      const C weight = in.inverse ? static_cast<C>(in.weights[n * M + m]) : in.khat[n * M + m];
      const C grad_score = to.grad_scores[n * M + m];
      const Four<C> g = load_four(to.grad_vectors + (n * in.K + k) * in.D + d);
      const Four<C> q = load_four(in.q.data + n * in.q.stride + d);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum.v[e] += weight * g.v[e] + grad_score * (q.v[e] - x.v[e]);
    }
    if (to.grad_kernel && to.last) {
      const Four<double> found = through_kernel(in, to.grad_kernel + m * M, x, d);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum.v[e] += static_cast<C>(found.v[e]);
    }
    *reinterpret_cast<Four<C>*>(out) = sum;
  }
}

}  // namespace itm::cuda
