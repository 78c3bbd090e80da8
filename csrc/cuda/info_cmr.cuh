#pragma once
// InfoCMR of a small batch from Gram matrices of unit rows. Both sides are two problems of every
// launch: k-means++ and k-means have a block each, systems a block a cluster, synthesis and loss a
// block an anchor.

#include "cuda/info_cmr.h"
#include "cuda/info_nce.cuh"
#include "cuda/kmeans.cuh"
#include "cuda/kmeans_plus_plus.cuh"
#include "cuda/systems.cuh"

namespace itm::cuda {

// -- unit rows --

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4)
    unit_sources_kernel(UnitSources in, RowShare share, int64_t first_block) {
  wait_for_launch_before();
  const auto room = Shared<double>::all<kRowWarps>();
  const int64_t n = share.row(first_block), end = share.end(n);
  // Places of an array that is a kernel's argument are known when it is compiled.
  AnyRows of = in.of[0];
  int64_t row = n;
#pragma unroll
  for (int i = 1; i < 3; ++i)
    if (row >= of.rows) row -= of.rows, of = in.of[i];
  const T* const from = static_cast<const T*>(of.data) + row * of.stride;
  const auto value = [&](int64_t d) {
    return d < in.D ? static_cast<double>(widen(from[d * of.column_stride])) : 0.0;
  };
  double square = 0;
#pragma unroll 4
  for (int64_t d = share.start(); d < end; d += share.step()) square += value(d) * value(d);
  const double length = root(sum_of_warps(room, square, share.warps));
  if (n < share.rows && share.start() == 0) in.length[n] = length;
  const double inverse = 1 / divisor(length);
#pragma unroll 4
  for (int64_t d = share.start(); d < end; d += share.step())
    in.unit[n * in.padded + d] = value(d) * inverse;
}

// -- clusters --

// |x_i - x_j|^2 of rows of a Gram matrix. Equal rows have equal products: theirs is exactly 0.
struct GramSquares {
  const double* gram;
  int64_t M;
  __device__ __forceinline__ double operator()(int64_t i, int64_t j) const {
    const double square = gram[i * M + i] + gram[j * M + j] - 2 * gram[i * M + j];
    return square <= 0 ? 0 : square;  // NaN stays
  }
};

// A Gram matrix in one part.
__device__ __forceinline__ const double* gram_of(const CmrSide& side) {
  return side.gram.parts > 1 ? side.added : static_cast<const double*>(side.gram.data);
}

__device__ __forceinline__ void add_gram(const CmrSide& side) {
  const Scores<double> gram(side.gram);
  const int size = gram.N * gram.M;
  for (int first = static_cast<int>(threadIdx.x); first < size;
       first += kClusterThreads * kAtOnce) {
    int at[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) at[k] = within(first + k * kClusterThreads, size);
    double sum[kAtOnce];
    gram.read(at, sum);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * kClusterThreads < size) side.added[at[k]] = sum[k];
  }
}

// k-means++, k-means, and the lists of members, of the side that a block has.
__global__ void __launch_bounds__(kClusterThreads, 1)
    cmr_cluster_kernel(CmrSide image, CmrSide text, int64_t K, int64_t iterations, int64_t first) {
  wait_for_launch_before();
  const auto shared = Shared<Farthest<double>>::all<2 * kClusterWarps>();
  const CmrSide side = first + blockIdx.x == 0 ? image : text;
  const int64_t M = side.rows;
  if (side.gram.parts > 1) add_gram(side);
  __syncthreads();
  const GramSquares squares{gram_of(side), M};
  choose_rows<kClusterThreads, double>(
      shared, static_cast<int>(M), K, nullptr, side.draws,
      [&](int chosen, const auto& row, auto& own) {
#pragma unroll
        for (int k = 0; k < static_cast<int>(sizeof(own) / sizeof(*own)); ++k)
          own[k] = squares(chosen, row[k]);
      },
      [&](int64_t k, int row) {  // products of a centroid that is a row
        for (int64_t m = threadIdx.x; m < M; m += kClusterThreads)
          side.score[k * M + m] = squares.gram[row * M + m];
        if (threadIdx.x == 0) side.half_square[k] = squares.gram[row * M + row] / 2;
      });
  __syncthreads();
  const Lists lists{side.order, side.span};
  const KMeans<double> problem{{nullptr, M, 0, 0},
                               0,
                               K,
                               iterations,
                               squares.gram,
                               nullptr,
                               nullptr,
                               side.assignment,
                               side.score,
                               side.half_square,
                               lists,
                               {side.order + M, side.span + 2 * K}};
  iterate(problem);
  __syncthreads();
  lists.fill(side.assignment, M, K);
}

// The systems of clusters of images, then of texts.
__global__ void __launch_bounds__(kSystemThreads, 2)
    cmr_systems_kernel(CmrSide image, CmrSide text, int64_t K, double scale, double ridge,
                       int64_t first) {
  wait_for_launch_before();
  const int64_t block = first + blockIdx.x, k = block % K;
  const CmrSide side = block < K ? image : text;
  const int64_t M = side.rows;
  const int begin = side.span[2 * k], size = side.span[2 * k + 1] - begin;
  invert_system(Shared<double>::all<SystemInShared::kNumbers>(), side.order + begin, size, M, scale,
                ridge, GramSquares{gram_of(side), M}, side.inverse + begin * M + begin,
                side.sweep + begin);
}

// -- anchors --

// Shared memory of an anchor's block, in numbers: cosines with the other side, weights and terms of
// synthesis, and what warps tell one another.
constexpr int kCmrWeights = static_cast<int>(kMostRows), kCmrTerms = 2 * kCmrWeights;
constexpr int kCmrRoom = 3 * kCmrWeights, kCmrShared = kCmrRoom + 3 * kAnchors;

// Sums kCount numbers over the block, in one order; `room` is for so many of every warp.
template <int kCount>
__device__ __forceinline__ void block_sums(const Shared<double>& shared, int room,
                                           double (&value)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    value[i] = warp_sum(value[i]);
    if (lane() == 0) shared.write(room + warp() * kCount + i, value[i]);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    value[i] = 0;
    for (int w = 0; w < kAnchors; ++w) value[i] += shared.read(room + w * kCount + i);
  }
  __syncthreads();
}

// A block's anchor: a row of one side, and all of the other.
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

  // Whether a row of the other side has this anchor's id: no negative.
  __device__ __forceinline__ bool same(int m) const {
    return own.ids ? own.ids[n] == other.ids[m] : n == m;
  }
  __device__ __forceinline__ bool paired(int m) const {
    return of_image ? positive_of(positive, m) == n : positive_of(positive, n) == m;
  }
  // Of cosines that lie as [N, M], and of those with noise: numbers first, first + kStep, ...
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

// Calls see(i, cosine) for i from this thread's number on, several of which are read at once.
template <typename Read, typename See>
__device__ __forceinline__ void see_cosines(int count, Read&& read, See&& see) {
  for (int first = static_cast<int>(threadIdx.x); first < count; first += kFoldThreads * kAtOnce) {
    int at[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) at[k] = within(first + k * kFoldThreads, count);
    double cosine[kAtOnce];
    read(at, cosine);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * kFoldThreads < count) see(at[k], cosine[k]);
  }
}

// The vectors of an anchor, as weights of members in the order of their lists, and their cosines
// with it. shared has M cosines with members, and behind them room for weights and terms.
__device__ __forceinline__ void synthesise(const CmrAnchor& in, const Shared<double>& shared, int K,
                                           double scale) {
  constexpr int kWeights = kCmrWeights, kTerms = kCmrTerms;
  const CmrSide& x = in.other;
  const int M = in.M;
  const double* const gram = gram_of(x);
  // khat: a softmax over a cluster's members without the anchor's id.
  for (int k = warp(); k < K; k += kAnchors) {
    const int first = x.span[2 * k] + lane(), end = x.span[2 * k + 1];
    double most = -INFINITY, sum = 0;
    bool any = false;
    for (int i = first; i < end; i += 32) {
      const int m = x.order[i];
      if (in.same(m)) continue;
      const double logit = (shared.read(m) - gram[m * M + m] / 2) * scale;
      shared.write(kWeights + i, logit);
      any = true;
      most = logit > most ? logit : most;
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const double other = __shfl_xor_sync(~0u, most, lanes);
      most = other > most ? other : most;
    }
    for (int i = first; i < end; i += 32) {
      const double part = in.same(x.order[i]) ? 0 : exponential(shared.read(kWeights + i) - most);
      shared.write(kWeights + i, part);
      sum += part;
    }
    sum = warp_sum(sum);
    const bool valid = __ballot_sync(~0u, any) != 0;
    for (int i = first; i < end; i += 32)
      shared.write(kWeights + i, valid ? shared.read(kWeights + i) / sum : 0);
    if (lane() == 0) in.own.cosine[in.n * K + k] = valid ? 0 : -INFINITY;
  }
  __syncthreads();
  // Systems and Gram matrices are symmetric: neighbouring threads read neighbours.
  const auto times = [&](auto&& entry, int to) {
    for (int i = static_cast<int>(threadIdx.x); i < M; i += kFoldThreads) {
      const int64_t k = x.assignment[x.order[i]];
      const int end = x.span[2 * k + 1];
      double sum = 0;
#pragma unroll 4
      for (int j = x.span[2 * k]; j < end; ++j) sum += entry(i, j) * shared.read(kWeights + j);
      shared.write(to + i, sum);
    }
    __syncthreads();
  };
  if (x.inverse) {
    times([&](int i, int j) { return x.inverse[j * M + i]; }, kTerms);
    for (int i = static_cast<int>(threadIdx.x); i < M; i += kFoldThreads)
      shared.write(kWeights + i, shared.read(kTerms + i));
    __syncthreads();
  }
  times([&](int i, int j) { return gram[x.order[j] * M + x.order[i]]; }, kTerms);
  // |q| is 1, or less for a row that is shorter than rows may be.
  const double length = in.own.length[in.n], own = at_least(length / divisor(length));
  for (int k = warp(); k < K; k += kAnchors) {
    double dot = 0, square = 0;
    for (int i = x.span[2 * k] + lane(); i < x.span[2 * k + 1]; i += 32) {
      const double weight = shared.read(kWeights + i);
      dot += weight * shared.read(x.order[i]);
      square += weight * shared.read(kTerms + i);
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
  for (int i = static_cast<int>(threadIdx.x); i < M; i += kFoldThreads) {
    const int m = x.order[i];
    in.own.weight[in.n * M + m] =
        shared.read(kWeights + i) * in.own.factor[in.n * K + x.assignment[m]];
  }
}

// The loss of an anchor's pairs, which have all of its negatives in common.
template <typename C>
__global__ void __launch_bounds__(kFoldThreads, 2)
    cmr_total_kernel(Cmr all, GivenNumber<C> given, int64_t first_block) {
  wait_for_launch_before();
  using State = ExpMoments<double>;
  const auto shared = Shared<double>::all<kCmrShared>();
  const int block = static_cast<int>(first_block) + static_cast<int>(blockIdx.x);
  const int K = static_cast<int>(all.clusters), thread = static_cast<int>(threadIdx.x);
  const double scale = given.get();
  {
    const CmrAnchor in(all, block);
    see_cosines(
        in.M, [&](const auto& at, auto& to) { in.read(at, to); },
        [&](int m, double cosine) { shared.write(m, cosine); });
    __syncthreads();
    if (K > 0) synthesise(in, shared, K, 1 / (all.sigma * all.sigma));

    State state;
    for (int m = thread; m < in.M; m += kFoldThreads)
      if (!in.same(m)) state.see(scale * shared.read(m), shared.read(m));
    for (int k = thread; k < K; k += kFoldThreads) {
      const double cosine = in.own.cosine[in.n * K + k];
      if (cosine != -INFINITY) state.see(scale * cosine, cosine);
    }
    see_cosines(
        in.Z, [&](const auto& at, auto& to) { in.read_noise(at, to); },
        [&](int, double cosine) { state.see(scale * cosine, cosine); });
    join_lanes<16, 1>(state);
    if (lane() == 0) shared.write(kCmrRoom + 3 * warp(), state);
    __syncthreads();
    state = shared.read<State>(kCmrRoom + 3 * (lane() % kAnchors));
    join_lanes<kAnchors / 2, 1>(state);
    __syncthreads();

    OfPositives<double> pairs;
    if (!in.of_image || !in.positive) {
      const int own = in.of_image ? in.n : positive_of(in.positive, in.n);
      if (thread == 0) pairs.see(state, own < 0 ? kNan<double> : shared.read(own), scale);
    } else {  // the first image has the texts without one
      for (int m = thread; m < in.M; m += kFoldThreads) {
        const int image = positive_of(in.positive, m);
        if ((image < 0 ? 0 : image) == in.n)
          pairs.see(state, image < 0 ? kNan<double> : shared.read(m), scale);
      }
    }
    double found[3] = {pairs.loss, pairs.push, pairs.of_scale};
    block_sums(shared, kCmrRoom, found);
    if (thread == 0) {
      reinterpret_cast<Anchor<double>*>(all.anchors)[block] = {
          state.base(), state.log_sum(), all.weight * found[1], 1 / divisor(in.own.length[in.n])};
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

// -- gradient --

template <typename C>
__global__ void __launch_bounds__(kFoldThreads, 2)
    cmr_weigh_kernel(Cmr all, GivenNumber<C> given, CmrWeights to, int64_t first_block) {
  wait_for_launch_before();
  const auto shared = Shared<double>::all<kAnchors>();
  const int block = static_cast<int>(first_block) + static_cast<int>(blockIdx.x);
  const CmrAnchor in(all, block);
  const double scale = given.get();
  // Where the loss is NaN, because of a row or of ids that are wrong, so is the gradient of all.
  const C total = *static_cast<const C*>(all.total);
  const double pull = total == total ? scale : kNan<double>;
  const auto* const anchors = reinterpret_cast<const Anchor<double>*>(all.anchors);
  const auto* const others = anchors + (in.of_image ? all.image.rows : 0);
  const Anchor<double> mine = anchors[block];
  const auto write = [&](int i, double weight) {
    if (in.of_image)
      static_cast<C*>(to.of_image)[in.n * (in.M + in.Z) + i] = static_cast<C>(weight);
    else
      static_cast<C*>(to.of_text)[i * static_cast<int>(in.own.rows) + in.n] =
          static_cast<C>(weight);
  };
  double along[1] = {0};
  see_cosines(
      in.M, [&](const auto& at, auto& cosine) { in.read(at, cosine); },
      [&](int m, double cosine) {
        const Anchor<double> other = others[m];
        const double logit = scale * cosine;
        double weight = 0;
        if (in.paired(m))
          weight = -all.weight * (logistic(mine.over(logit)) + logistic(other.over(logit)));
        else if (!in.same(m))
          weight = mine.push * mine.share(logit) + other.push * other.share(logit);
        if (all.clusters) {
          const double vector = in.own.cosine[in.n * all.clusters + in.other.assignment[m]];
          if (vector != -INFINITY)
            weight += mine.push * mine.share(scale * vector) * in.own.weight[in.n * in.M + m];
        }
        along[0] += pull * weight * cosine;
        write(m, pull * weight * other.inverse);
      });
  see_cosines(
      in.Z, [&](const auto& at, auto& cosine) { in.read_noise(at, cosine); },
      [&](int z, double cosine) {
        const double weight = pull * mine.push * mine.share(scale * cosine);
        along[0] += weight * cosine;
        write(in.M + z, weight / divisor(to.noise_length[z]));
      });
  block_sums(shared, 0, along);
  if (threadIdx.x) return;
  static_cast<C*>(to.along)[block] = static_cast<C>(along[0]);
  static_cast<C*>(to.inverse)[block] = static_cast<C>(mine.inverse);
}

// The weights as they were stored, for the products with raw rows.
template <typename C>
struct CmrPairs : PairsOf<C> {
  static constexpr int kSources = 2;
  static constexpr bool kUnit = true, kScalars = true;
  using Read = C;

  const C *of_image, *of_text, *lengthwise, *inverses, *grad, *of_scale;
  C* to_scale;
  Matrix noise;
  int N, M;

  __device__ __forceinline__ Read read(bool of_image_, int source, int own, int other) const {
    const int at = source ? other + (of_image_ ? M : N) : other;
    return of_image_ ? of_image[own * (M + static_cast<int>(noise.rows)) + at]
                     : of_text[at * M + own];
  }
  __device__ __forceinline__ Weighed<C> weigh(bool, int, int, int, Read weight) const {
    return {weight, 0};
  }
  template <typename T>
  __device__ __forceinline__ Rows<T> rows(bool, int) const {
    return {static_cast<const T*>(noise.data), noise.rows, noise.stride, 0};
  }
  __device__ __forceinline__ C inverse(bool of_image_, int n) const {
    return inverses[of_image_ ? n : N + n];
  }
  __device__ __forceinline__ C along(bool of_image_, int n) const {
    return lengthwise[of_image_ ? n : N + n];
  }
  __device__ __forceinline__ C factor() const { return *grad; }
  __device__ __forceinline__ void finish() const {
    if (threadIdx.x == 0) *to_scale = *grad * *of_scale;
  }
};

}  // namespace itm::cuda
