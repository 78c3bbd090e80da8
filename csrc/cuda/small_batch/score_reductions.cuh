#pragma once
// Reductions over the rows and columns of a small matrix of scores. A block processes 8 rows and 8
// columns: a warp reads a row contiguously, and 8 columns at once, so that every sector of 32 bytes
// is used completely. 128 pairs take 16 blocks, 1,024 take 128.
//
// A State accumulates scores one by one and merges with another State of the same anchor. The order
// of merges is fixed, so sums have the same bits in every run.

#include <limits>

#include "cuda/compat.cuh"
#include "cuda/launch.h"
#include "cuda/partial_sums.cuh"
#include "cuda/small_batch/small_batch.h"
#include "cuda/warp.cuh"

namespace itm::cuda {

template <typename C>
constexpr C kInfinity = std::numeric_limits<C>::infinity();
template <typename C>
constexpr C kNan = std::numeric_limits<C>::quiet_NaN();

constexpr int kAtOnce = 4;  // pairs per lane whose loads are in flight at once
__device__ __forceinline__ int within(int i, int count) { return i < count ? i : count - 1; }

// 32-bit indices suffice: N, M <= 1024.
template <typename C>
struct Scores {
  const C* data;
  int parts, N, M;

  explicit __host__ __device__ Scores(const ScoreParts& from)
      : data(static_cast<const C*>(from.data)),
        parts(static_cast<int>(from.parts)),
        N(static_cast<int>(from.N)),
        M(static_cast<int>(from.M)) {}

  template <int kCount>
  __device__ __forceinline__ void read(const int (&at)[kCount], C (&sum)[kCount]) const {
    read_parts(data, parts, N * M, at, sum);
  }
  __device__ __forceinline__ C at(int n, int m) const {
    C sum[1];
    read({n * M + m}, sum);
    return sum[0];
  }
};

__device__ __forceinline__ int positive_of(const int64_t* positive, int j) {
  return positive ? static_cast<int>(positive[j]) : j;
}
__device__ __forceinline__ bool same_id(const Pairing& pairing, int n, int m) {
  return pairing.image_ids ? pairing.image_ids[n] == pairing.text_ids[m] : n == m;
}

template <typename C>
__device__ __forceinline__ C positive_score(const Scores<C>& scores, const Pairing& pairing,
                                            int j) {
  const int i = positive_of(pairing.positive, j);
  return i < 0 ? kNan<C> : scores.at(i, j);
}

// The scores of the positives of columns j, j + kStep, ...: NaN without an image. Beyond the last
// column, any value.
template <int kStep, typename C, int kCount>
__device__ __forceinline__ void positive_scores(const Scores<C>& scores, const Pairing& pairing,
                                                int j, C (&to)[kCount]) {
  int image[kCount], at[kCount];
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const int column = within(j + k * kStep, scores.M);
    image[k] = positive_of(pairing.positive, column);
    at[k] = (image[k] < 0 ? 0 : image[k]) * scores.M + column;
  }
  scores.read(at, to);
#pragma unroll
  for (int k = 0; k < kCount; ++k)
    if (image[k] < 0) to[k] = kNan<C>;
}

// Bit k of the result is set if n is the image of column j + 32 k.
__device__ __forceinline__ unsigned pairs_of_image(const Pairing& pairing, int n, int j, int M) {
  int image[kAtOnce];
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) image[k] = positive_of(pairing.positive, within(j + 32 * k, M));
  unsigned bits = 0;
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) bits |= (j + 32 * k < M && image[k] == n ? 1u : 0u) << k;
  return bits;
}

template <typename C>
struct Strided {
  const C* data;
  int64_t stride;

  explicit Strided(const PerRow& from)
      : data(static_cast<const C*>(from.data)), stride(from.stride) {}
  __device__ __forceinline__ C operator[](int64_t i) const { return data[i * stride]; }
};

// [x]+ that propagates NaN.
template <typename C>
__device__ __forceinline__ C hinge(C x) {
  return x <= 0 ? C(0) : x;
}

constexpr int kAnchors = 8, kReductionThreads = 32 * kAnchors;  // one warp per anchor
// Blocks per multiprocessor: a batch has at most 128 blocks, and 128 registers hold the loads in
// flight.
constexpr int kReductionBlocks = 2;

template <int kFirst, int kLast, typename State>
__device__ __forceinline__ void merge_lanes(State& state) {
#pragma unroll
  for (int lanes = kFirst; lanes >= kLast; lanes /= 2) state.merge(state.from_lane(lanes));
}

template <typename C>
struct Sum {
  C sum = 0;

  __device__ __forceinline__ void merge(const Sum& other) { sum += other.sum; }
  __device__ __forceinline__ Sum from_lane(int lanes) const {
    return {__shfl_xor_sync(~0u, sum, lanes)};
  }
};

// The largest score and its index. Ties go to the lowest index, and NaN is larger than all numbers.
template <typename C>
struct Hardest {
  C value = -kInfinity<C>;
  int index = -1;  // no score yet

  __device__ __forceinline__ void merge(const Hardest& other) {
    if (other.beats(*this)) *this = other;
  }
  __device__ __forceinline__ void add(C score, int at) { merge({score, at}); }
  __device__ __forceinline__ Hardest from_lane(int lanes) const {
    return {__shfl_xor_sync(~0u, value, lanes), __shfl_xor_sync(~0u, index, lanes)};
  }

 private:
  __device__ __forceinline__ bool beats(const Hardest& other) const {
    if (index < 0 || other.index < 0) return index > other.index;
    const bool nan = value != value, others = other.value != other.value;
    if (nan != others) return nan;
    return value > other.value || ((nan || value == other.value) && index < other.index);
  }
};

// One lane calls visit(n, m, score, same_id) for kAtOnce pairs from (n, m) on. Pairs beyond the
// matrix are read at its edge and not visited.
template <int kRowStep, int kColumnStep, typename C, typename Visit>
__device__ __forceinline__ void visit_pairs(const Scores<C>& scores, const Pairing& pairing, int n,
                                            int m, Visit&& visit) {
  int at[kAtOnce];
  int64_t image[kAtOnce], text[kAtOnce];
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
    const int row = within(n + k * kRowStep, scores.N);
    const int column = within(m + k * kColumnStep, scores.M);
    at[k] = row * scores.M + column;
    image[k] = pairing.image_ids ? pairing.image_ids[row] : row;
    text[k] = pairing.image_ids ? pairing.text_ids[column] : column;
  }
  C score[kAtOnce];
  scores.read(at, score);
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
    const int row = n + k * kRowStep, column = m + k * kColumnStep;
    if (row < scores.N && column < scores.M) visit(row, column, score[k], image[k] == text[k]);
  }
}

// One warp calls visit(state, m, score, same) for every column m of row n; all lanes return the
// result.
template <typename State, typename C, typename Visit>
__device__ __forceinline__ State reduce_row(const Scores<C>& scores, const Pairing& pairing, int n,
                                            Visit&& visit) {
  State state;
  for (int m = lane(); m < scores.M; m += 32 * kAtOnce)
    visit_pairs<0, 32>(scores, pairing, n, m, [&](int, int column, C score, bool same) {
      visit(state, column, score, same);
    });
  merge_lanes<16, 1>(state);
  return state;
}

// The block calls visit(state, n, score, same) for every row n of columns [first, first + 8), with
// one barrier. A lane visits column first + lane % 8, and warp w returns that of column first + w.
template <typename State, typename C, typename Visit>
__device__ __forceinline__ State reduce_columns(const Scores<C>& scores, const Pairing& pairing,
                                                int first, Visit&& visit) {
  constexpr int kRows = 4 * kAnchors;
  const auto shared = Shared<State>::template all<kAnchors * kAnchors>();
  const int m = first + lane() % kAnchors;
  State state;
  if (m < scores.M)
    for (int n = warp() * 4 + lane() / kAnchors; n < scores.N; n += kRows * kAtOnce)
      visit_pairs<kRows, 0>(scores, pairing, n, m, [&](int row, int, C score, bool same) {
        visit(state, row, score, same);
      });
  merge_lanes<16, kAnchors>(state);
  if (lane() < kAnchors) shared.write(warp() * kAnchors + lane(), state);
  __syncthreads();
  state = shared.read(lane() % kAnchors * kAnchors + warp());
  merge_lanes<kAnchors / 2, 1>(state);
  return state;
}

__device__ __forceinline__ int first_anchor(int64_t first_block) {
  return (static_cast<int>(first_block) + static_cast<int>(blockIdx.x)) * kAnchors;
}

// Launches a reduction of `anchors` rows or columns; arguments follow the first block.
template <typename... Parameters, typename... Arguments>
void launch_reduction(void (*kernel)(int64_t, Parameters...), int64_t anchors, size_t state_bytes,
                      void* stream, const Arguments&... arguments) {
  in_launches(ceil_div(anchors, kAnchors), [&](int64_t first, int64_t count) {
    launch(kernel, count, kReductionThreads, kAnchors * kAnchors * state_bytes, stream, first,
           arguments...);
  });
}

}  // namespace itm::cuda
