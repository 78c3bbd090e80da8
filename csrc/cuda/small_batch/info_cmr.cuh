#pragma once
// InfoCMR of a small batch from Gram matrices of unit rows. A block processes one anchor: it forms
// the anchor's synthetic vectors, as weights of members, and computes the loss of its pairs.

#include "cuda/small_batch/info_cmr_clusters.cuh"
#include "cuda/small_batch/info_nce.cuh"

namespace itm::cuda {

// A member in list order, and the range of its cluster's list.
struct alignas(16) CmrPlace {
  int member, cluster, begin, end;
};

// Shared memory of an anchor's block, in values: cosines with the other side, members' weights and
// terms in list order, places, and the values that warps exchange.
constexpr int kCmrWeights = static_cast<int>(kMostRows), kCmrTerms = 2 * kCmrWeights;
constexpr int kCmrPlaces = 3 * kCmrWeights, kPlaceNumbers = sizeof(CmrPlace) / sizeof(double);
constexpr int kCmrRoom = kCmrPlaces + kPlaceNumbers * kCmrWeights;
constexpr int kCmrShared = kCmrRoom + 3 * kAnchors;

// Sums kCount values over the block, in a fixed order; `scratch` holds kCount values per warp.
template <int kCount>
__device__ __forceinline__ void block_sums(const Shared<double>& shared, int scratch,
                                           double (&value)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    value[i] = warp_sum(value[i]);
    if (lane() == 0) shared.write(scratch + warp() * kCount + i, value[i]);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    value[i] = 0;
    for (int w = 0; w < kAnchors; ++w) value[i] += shared.read(scratch + w * kCount + i);
  }
  __syncthreads();
}

// A block's anchor: one row of one side, and all rows of the other.
struct CmrAnchor {
  CmrSide own, other;
  int n, M, Z;
  bool of_image;
  Scores<double> cosines, noise;
  const int64_t* positive;

  __device__ __forceinline__ CmrAnchor(const Cmr& in, int block)
      : of_image(block < in.image.rows),
        cosines(in.cosines),
        noise(block < in.image.rows ? in.image.noise : in.text.noise),
        positive(in.positive) {
    own = of_image ? in.image : in.text;
    other = of_image ? in.text : in.image;
    n = of_image ? block : block - static_cast<int>(in.image.rows);
    M = static_cast<int>(other.rows);
    Z = noise.M;
  }

  // Returns whether a row of the other side has this anchor's id, so that it is not a negative.
  __device__ __forceinline__ bool same(int m) const {
    return own.ids ? own.ids[n] == other.ids[m] : n == m;
  }
  __device__ __forceinline__ bool paired(int m) const {
    return of_image ? positive_of(positive, m) == n : positive_of(positive, n) == m;
  }
  // The anchor's cosines with rows m of the other side, stored as [N, M], and with rows z of the
  // noise.
  template <int kCount>
  __device__ __forceinline__ void read(const int (&m)[kCount], double (&to)[kCount]) const {
    int at[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) at[k] = of_image ? n * cosines.M + m[k] : m[k] * cosines.M + n;
    cosines.read(at, to);
  }
  template <int kCount>
  __device__ __forceinline__ void read_noise(const int (&z)[kCount], double (&to)[kCount]) const {
    int at[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) at[k] = n * Z + z[k];
    noise.read(at, to);
  }
};

// Calls visit(i, cosine) for every kReductionThreads-th i from this thread's index on. Several
// cosines are loaded at once.
template <typename Read, typename Visit>
__device__ __forceinline__ void visit_cosines(int count, Read&& read, Visit&& visit) {
  for (int first = static_cast<int>(threadIdx.x); first < count;
       first += kReductionThreads * kAtOnce) {
    int at[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) at[k] = within(first + k * kReductionThreads, count);
    double cosine[kAtOnce];
    read(at, cosine);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * kReductionThreads < count) visit(at[k], cosine[k]);
  }
}

// The synthetic vectors of an anchor, as weights of members, and their cosines with it. Shared
// memory holds the anchor's cosines with members.
__device__ __forceinline__ void synthesise(const CmrAnchor& in, const Shared<double>& shared, int K,
                                           double scale) {
  const CmrSide& x = in.other;
  const int M = in.M, thread = static_cast<int>(threadIdx.x);
  const double* const gram = gram_of(x);
  const auto place = [&](int i) {
    return shared.template read<CmrPlace>(kCmrPlaces + kPlaceNumbers * i);
  };
  // The logits of a softmax: -inf for members that have the anchor's id.
  for (int i = thread; i < M; i += kReductionThreads) {
    const int m = x.order[i], k = static_cast<int>(x.assignment[m]);
    shared.write(kCmrPlaces + kPlaceNumbers * i, CmrPlace{m, k, x.span[2 * k], x.span[2 * k + 1]});
    const double logit = (shared.read(m) - gram[m * M + m] / 2) * scale;
    shared.write(kCmrWeights + i, in.same(m) ? -INFINITY : logit);
  }
  __syncthreads();
  for (int k = warp(); k < K; k += kAnchors) {
    const int first = x.span[2 * k] + lane(), end = x.span[2 * k + 1];
    double most = -INFINITY, sum = 0;
    bool any = false;
    for (int i = first; i < end; i += 32) {
      const double logit = shared.read(kCmrWeights + i);
      any |= logit != -INFINITY;  // NaN counts as present
      most = logit > most ? logit : most;
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const double other = __shfl_xor_sync(~0u, most, lanes);
      most = other > most ? other : most;
    }
    for (int i = first; i < end; i += 32) {
      const double logit = shared.read(kCmrWeights + i);
      const double part = logit == -INFINITY ? 0 : exponential(logit - most);
      shared.write(kCmrWeights + i, part);
      sum += part;
    }
    sum = warp_sum(sum);
    const bool valid = __ballot_sync(~0u, any) != 0;
    for (int i = first; i < end; i += 32)
      shared.write(kCmrWeights + i, valid ? shared.read(kCmrWeights + i) / sum : 0);
    if (lane() == 0) in.own.cosine[in.n * K + k] = valid ? 0 : -INFINITY;
  }
  __syncthreads();
  // Terms: a cluster's matrix times its weights. Inverses and Gram matrices are symmetric, so
  // adjacent threads read adjacent values, and 8 at once.
  const auto multiply = [&](auto&& entry) {
    for (int i = thread; i < M; i += kReductionThreads) {
      const CmrPlace own = place(i);
      double sum = 0;
#pragma unroll 8
      for (int j = own.begin; j < own.end; ++j)
        sum += entry(i, j, own.member) * shared.read(kCmrWeights + j);
      shared.write(kCmrTerms + i, sum);
    }
    __syncthreads();
  };
  if (x.inverse) {
    multiply([&](int i, int j, int) { return x.inverse[j * M + i]; });
    for (int i = thread; i < M; i += kReductionThreads)
      shared.write(kCmrWeights + i, shared.read(kCmrTerms + i));
    __syncthreads();
  }
  multiply([&](int, int j, int member) { return gram[place(j).member * M + member]; });
  // q| is 1, or less for a row that is shorter than the smallest norm.
  const double norm = in.own.norm[in.n], own = at_least(norm / divisor(norm));
  for (int k = warp(); k < K; k += kAnchors) {
    const int end = x.span[2 * k + 1];
    double dot = 0, square = 0;
    for (int i = x.span[2 * k] + lane(); i < end; i += 32) {
      const double weight = shared.read(kCmrWeights + i);
      dot += weight * shared.read(place(i).member);
      square += weight * shared.read(kCmrTerms + i);
    }
    dot = warp_sum(dot), square = warp_sum(square);
    if (lane()) continue;
    const int at = in.n * K + k;
    const double factor = 1 / at_least(root(square < 0 ? 0 : square)) / own;
    in.own.factor[at] = factor;
    if (in.own.cosine[at] == 0) in.own.cosine[at] = dot * factor;
  }
  __syncthreads();
  if (!in.own.weight) return;
  for (int i = thread; i < M; i += kReductionThreads) {
    const CmrPlace at = place(i);
    in.own.weight[in.n * M + at.member] =
        shared.read(kCmrWeights + i) * in.own.factor[in.n * K + at.cluster];
  }
}

// The loss of an anchor's pairs, which share all of its negatives.
template <typename C>
__global__ void __launch_bounds__(kReductionThreads, 2)
    cmr_total_kernel(Cmr all, DeviceScalar<C> given, int64_t first_block) {
  wait_for_launch_before();
  using State = ExpMoments<double>;
  const auto shared = Shared<double>::all<kCmrShared>();
  const int block = static_cast<int>(first_block) + static_cast<int>(blockIdx.x);
  const int K = static_cast<int>(all.clusters), thread = static_cast<int>(threadIdx.x);
  const double scale = given.get();
  {
    const CmrAnchor in(all, block);
    visit_cosines(
        in.M, [&](const auto& at, auto& to) { in.read(at, to); },
        [&](int m, double cosine) { shared.write(m, cosine); });
    __syncthreads();
    if (K > 0) synthesise(in, shared, K, 1 / (all.sigma * all.sigma));

    State state;
    for (int m = thread; m < in.M; m += kReductionThreads)
      if (!in.same(m)) state.add(scale * shared.read(m), shared.read(m));
    for (int k = thread; k < K; k += kReductionThreads) {
      const double cosine = in.own.cosine[in.n * K + k];
      if (cosine != -INFINITY) state.add(scale * cosine, cosine);
    }
    visit_cosines(
        in.Z, [&](const auto& at, auto& to) { in.read_noise(at, to); },
        [&](int, double cosine) { state.add(scale * cosine, cosine); });
    merge_lanes<16, 1>(state);
    if (lane() == 0) shared.write(kCmrRoom + 3 * warp(), state);
    __syncthreads();
    state = shared.read<State>(kCmrRoom + 3 * (lane() % kAnchors));
    merge_lanes<kAnchors / 2, 1>(state);
    __syncthreads();

    PositiveSums<double> pairs;
    if (!in.of_image || !in.positive) {
      const int own = in.of_image ? in.n : positive_of(in.positive, in.n);
      if (thread == 0) pairs.add(state, own < 0 ? kNan<double> : shared.read(own), scale);
    } else {  // unmatched texts count towards the first image
      for (int m = thread; m < in.M; m += kReductionThreads) {
        const int image = positive_of(in.positive, m);
        if ((image < 0 ? 0 : image) == in.n)
          pairs.add(state, image < 0 ? kNan<double> : shared.read(m), scale);
      }
    }
    double found[3] = {pairs.loss, pairs.grad_log_sum, pairs.of_scale};
    block_sums(shared, kCmrRoom, found);
    if (thread == 0) {
      reinterpret_cast<Anchor<double>*>(all.anchors)[block] = {
          state.base(), state.log_sum(), all.weight * found[1], 1 / divisor(in.own.norm[in.n])};
      all.loss[block] = found[0], all.of_scale[block] = found[2];
    }
  }
  const int anchors = static_cast<int>(all.image.rows + all.text.rows);
  if (!is_last_block(all.ticket, anchors)) return;
  if (warp() == 0)
    ScalarSum<C, double>{all.loss, static_cast<C*>(all.total), all.weight}.add(anchors);
  if (warp() == 1)
    ScalarSum<C, double>{all.of_scale, static_cast<C*>(all.scale_grad), all.weight}.add(anchors);
}

}  // namespace itm::cuda
