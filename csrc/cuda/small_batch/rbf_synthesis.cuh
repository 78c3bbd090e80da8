#pragma once
// Hard negative synthesis, one block per anchor: scores of all members, a softmax per cluster, sums
// of members. Members are read from L2 twice, with M values kept in between. A vector is not
// written if only its cosine is needed.

#include "cuda/small_batch/cluster_members.cuh"
#include "cuda/small_batch/kam_solve.cuh"

namespace itm::cuda {

template <typename T>
struct Synthesis {
  using C = Wide<T>;
  Rows<T> q, x;
  int64_t D, K;  // D padded
  const int64_t* assignment;
  bool per_anchor;
  const int64_t *anchor_ids, *member_ids;
  C scale;  // 1 / sigma^2
  ClusterMembers lists;
  bool* valid;
  C* khat;
  const double* inverse;
  double* weights;

  __device__ Synthesis of_anchor(int64_t n) const {
    Synthesis own = *this;
    own.q.data += n * q.stride;
    if (per_anchor) own.assignment += n * x.count;
    if (per_anchor) own.lists = lists.of_problem(n, x.count, K);
    if (per_anchor && inverse) own.inverse += n * x.count * x.count;
    if (anchor_ids) own.anchor_ids += n;
    own.valid += n * K;
    own.khat += n * x.count;
    if (inverse) own.weights += n * x.count;
    return own;
  }

  __device__ const T* row(int64_t m) const { return x.data + m * x.stride; }
  __device__ bool allowed(int64_t m) const { return !anchor_ids || *anchor_ids != member_ids[m]; }
  __device__ int begin(int64_t k) const { return lists.span[2 * k]; }
  __device__ int end(int64_t k) const { return lists.span[2 * k + 1]; }
  __device__ int listed() const { return end(K - 1); }
  // The weight of a member in its cluster's vector.
  __device__ C weight(int64_t m) const { return inverse ? static_cast<C>(weights[m]) : khat[m]; }
};

// khat = (q x - |x|^2 / 2) / sigma^2 of all members: |q|^2 cancels in a softmax.
template <typename T>
__device__ void score(const Synthesis<T>& in) {
  using C = Wide<T>;
  const int64_t M = in.x.count;
  for (int64_t m = 4 * warp(); m < M; m += 4 * kClusterWarps) {
    C sum[8] = {};  // q x of four members, then x^2
    for (int64_t d = 4 * lane(); d < in.D; d += 128) {
      const Four<C> q = load_four(in.q.data + d);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const Four<C> x = load_four(in.row(m + r < M ? m + r : m) + d);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          sum[r] += q.v[e] * x.v[e];
          sum[4 + r] += x.v[e] * x.v[e];
        }
      }
    }
    const C product = scattered_sum(sum);
    const C square = __shfl_xor_sync(~0u, product, 16);
    const int64_t own = m + lane() / 4;
    if (lane() < 16 && lane() % 4 == 0 && own < M) in.khat[own] = (product - square / 2) * in.scale;
  }
}

// Replaces scores by their softmax over a cluster's members that do not have the anchor's id.
template <typename T>
__device__ void soften(const Synthesis<T>& in) {
  using C = Wide<T>;
  for (int64_t k = warp(); k < in.K; k += kClusterWarps) {
    const int first = in.begin(k) + lane(), end = in.end(k);
    C most = -INFINITY, sum = 0;
    bool any = false;
    for (int i = first; i < end; i += 32) {
      const int m = in.lists.order[i];
      if (!in.allowed(m)) continue;
      any = true;
      most = in.khat[m] > most ? in.khat[m] : most;
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const C other = __shfl_xor_sync(~0u, most, lanes);
      most = other > most ? other : most;
    }
    for (int i = first; i < end; i += 32) {
      const int m = in.lists.order[i];
      const C part = in.allowed(m) ? exponential(in.khat[m] - most) : C(0);
      in.khat[m] = part;
      sum += part;
    }
    sum = warp_sum(sum);
    const bool valid = __ballot_sync(~0u, any) != 0;
    for (int i = first; i < end; i += 32) {
      const int m = in.lists.order[i];
      in.khat[m] = valid ? in.khat[m] / sum : C(0);
    }
    if (lane() == 0) in.valid[k] = valid;
  }
}

// to = (K + ridge I)^-1 from, cluster by cluster; one warp per row.
template <typename T>
__device__ void solve(const Synthesis<T>& in, const Wide<T>* from, double* to) {
  for (int i = warp(); i < in.listed(); i += kClusterWarps) {
    const int own = in.lists.order[i];
    const int64_t k = in.assignment[own];
    double sum = 0;
    for (int j = in.begin(k) + lane(); j < in.end(k); j += 32)
      sum += in.inverse[i * in.x.count + j] * from[in.lists.order[j]];
    sum = warp_sum(sum);
    if (lane() == 0) to[own] = sum;
  }
}

// The weights of all vectors, complete for all threads on return.
template <typename T>
__device__ void compute_weights(const Synthesis<T>& in) {
  score(in);
  __syncthreads();
  soften(in);
  __syncthreads();
  if (!in.inverse) return;
  solve(in, in.khat, in.weights);
  __syncthreads();
}

// Members loaded at once; fewer in fp64, which takes twice the registers.
template <typename T>
constexpr int kLoads = std::is_same_v<T, double> ? 2 : 4;

// Columns [d, d + 4) of a cluster's vector; exactly 0 if the cluster has no member, even if rows
// are infinite.
template <typename T>
__device__ __forceinline__ Four<Wide<T>> vector(const Synthesis<T>& in, int64_t k, int64_t d) {
  using C = Wide<T>;
  Four<C> sum = {};
  if (!in.valid[k]) return sum;
  const int end = in.end(k);
#pragma unroll(kLoads<T>)
  for (int i = in.begin(k); i < end; ++i) {
    const int m = in.lists.order[i];
    const C weight = in.weight(m);
    const Four<C> x = load_four(in.row(m) + d);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum.v[e] += weight * x.v[e];
  }
  return sum;
}

// The anchor's norm; every warp computes it.
template <typename T>
__device__ Wide<T> norm_of_anchor(const Synthesis<T>& in) {
  Wide<T> square = 0;
  for (int64_t d = 4 * lane(); d < in.D; d += 128) {
    const auto q = load_four(in.q.data + d);
#pragma unroll
    for (int e = 0; e < 4; ++e) square += q.v[e] * q.v[e];
  }
  return root(warp_sum(square));
}

// The dot product of a cluster's vector v with its anchor, and v's norm. A warp computes v and
// passes its columns to keep(d, v).
template <typename C>
struct Angle {
  C dot, norm;
};
template <typename T, typename Keep>
__device__ Angle<Wide<T>> angle(const Synthesis<T>& in, int64_t k, Keep&& keep) {
  using C = Wide<T>;
  C dot = 0, square = 0;
  for (int64_t d = 4 * lane(); d < in.D; d += 128) {
    const Four<C> v = vector(in, k, d), q = load_four(in.q.data + d);
    keep(d, v);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      dot += v.v[e] * q.v[e];
      square += v.v[e] * v.v[e];
    }
  }
  return {warp_sum(dot), root(warp_sum(square))};
}

template <typename T>
__global__ void __launch_bounds__(kClusterThreads, 1)
    synthesis_kernel(Synthesis<T> all, int64_t first, Wide<T>* vectors,  // [N, K, D]; null: cosines
                     Wide<T>* cosines) {                                 // [N, K]
  wait_for_launch_before();
  const int64_t n = first + blockIdx.x;
  const Synthesis<T> in = all.of_anchor(n);
  compute_weights(in);
  const int64_t fours = in.D / 4;
  for (int64_t i = threadIdx.x; vectors && i < in.K * fours; i += kClusterThreads)
    *reinterpret_cast<Four<Wide<T>>*>(vectors + n * in.K * in.D + 4 * i) =
        vector(in, i / fours, i % fours * 4);
  if (vectors) return;
  const Wide<T> norm = at_least(norm_of_anchor(in));
  for (int64_t k = warp(); k < in.K; k += kClusterWarps) {
    const auto found = angle(in, k, [](int64_t, const auto&) {});
    if (lane() == 0)
      cosines[n * in.K + k] = in.valid[k] ? found.dot / at_least(found.norm) / norm : 0;
  }
}

// Lists the members of every cluster, for every clustering.
__global__ void __launch_bounds__(kClusterThreads, 1)
    cluster_members_kernel(const int64_t* assignment, int64_t M, int64_t K, int64_t first,
                           ClusterMembers lists) {
  wait_for_launch_before();
  const int64_t p = first + blockIdx.x;
  lists.of_problem(p, M, K).fill(assignment + p * M, M, K);
}

// The kernel matrices of every cluster of every clustering.
struct KamSystems {
  const double* distance;   // [M, M]
  double *inverse, *sweep;  // [P, M, M], [P, 2, M]
  int64_t M, K;
  double scale, ridge;  // 1 / sigma^2
  ClusterMembers lists;
};

__global__ void __launch_bounds__(kSystemThreads, 2)
    kam_solve_kernel(KamSystems all, int64_t first) {
  wait_for_launch_before();
  const int64_t p = (first + blockIdx.x) / all.K, k = (first + blockIdx.x) % all.K;
  const ClusterMembers lists = all.lists.of_problem(p, all.M, all.K);
  const int begin = lists.span[2 * k], size = lists.span[2 * k + 1] - begin;
  invert_system(
      Shared<double>::all<SystemInShared::kNumbers>(), lists.order + begin, size, all.M, all.scale,
      all.ridge, [&](int64_t row, int64_t column) { return all.distance[row * all.M + column]; },
      all.inverse + (p * all.M + begin) * all.M + begin, all.sweep + 2 * p * all.M + begin);
}

}  // namespace itm::cuda
