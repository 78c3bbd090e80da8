#pragma once
// The max of hinges with a band over the cosines of both sides: one reduction for all three sums
// and their total. The backward pass is one launch of products, whose weights are counts of hinges
// and bits of masks.

#include "cuda/small_batch/imc.h"
#include "cuda/small_batch/max_of_hinges.cuh"
#include "cuda/small_batch/row_gradient.cuh"
#include "cuda/small_batch/stored_band.cuh"

namespace itm::cuda {

template <typename C>
struct BandReduction {
  Scores<C> scores;
  BandRule<C> rule;
  uint32_t* mask;
  int words;
  C weight;
  C* values;

  BandReduction(const ImcBand& band, double low, double high, C* values)
      : scores(band.scores),
        rule{band.ids, static_cast<C>(low), static_cast<C>(high), false, false, true},
        mask(band.mask),
        words(static_cast<int>(band.words)),
        weight(static_cast<C>(band.weight)),
        values(values) {}

  // Called by the warp of row n.
  __device__ __forceinline__ void run(int n) const {
    uint32_t* const own = mask + n * words;
    const auto sum = static_cast<C>(sum_band(scores, rule, n, own));
    if (lane()) return;
    values[n] = weight * sum;
    if (sum - sum != 0) own[n / 32] |= 1u << n % 32;
  }
};

// The number of an image's pairs whose hinge with its hardest text is active: all have the same
// hardest text.
template <typename C>
struct ImageReduction {
  int32_t* hardest_text;
  C* violations;

  __device__ __forceinline__ void run(const HingeReduction<C>& hinges, int n) const {
    const Scores<C>& scores = hinges.scores;
    const auto text = reduce_row<Hardest<C>>(scores, hinges.pairing, n, MineHardest<C>{});
    Sum<C> count;
    for (int first = lane(); first < scores.M; first += 32 * kAtOnce) {
      const unsigned own = pairs_of_image(hinges.pairing, n, first, scores.M);
      int at[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) at[k] = n * scores.M + within(first + 32 * k, scores.M);
      C positive[kAtOnce];
      scores.read(at, positive);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const bool finite = positive[k] - positive[k] == 0;  // otherwise the pair's loss is NaN
        if (own >> k & 1 && finite && hinges.margin + text.value - positive[k] > 0) count.sum += 1;
      }
    }
    merge_lanes<16, 1>(count);
    if (lane()) return;
    hardest_text[n] = text.index;
    violations[n] = count.sum;
  }
};

template <typename C>
__global__ void __launch_bounds__(kReductionThreads, kReductionBlocks)
    imc_kernel(int64_t first_block, HingeReduction<C> hinges, ImageReduction<C> images,
               BandReduction<C> of_image, BandReduction<C> of_text, GridTotal<C> total) {
  wait_for_launch_before();
  const int N = hinges.scores.N, M = hinges.scores.M;
  const int texts = (M + kAnchors - 1) / kAnchors * kAnchors, first = first_anchor(first_block);
  if (first < texts) {
    hinges.run(first);
    if (first + warp() < M) of_text.run(first + warp());
  } else if (first - texts + warp() < N) {
    images.run(hinges, first - texts + warp());
    of_image.run(first - texts + warp());
  }
  total.add(M + N + M);
}

// Source 0 holds the hinges, source 1 the pairs within the band among a side's own rows.
template <typename C>
struct ImcGradient : ScoreGradientBase<C> {
  static constexpr int kSources = 2;
  static constexpr bool kSparse = true;

  struct Band {
    const uint32_t* mask;
    int words;
    C weight;  // of a pair, in the gradient of both of its rows
    Matrix rows;
  };
  const C* grad;
  const int64_t *positive, *text_index, *image_index;
  const int32_t* hardest_text;
  const C* violations;
  Band image, text;

  struct Read {
    uint32_t word = 0;                      // of a mask
    int hardest = -1, own_image = -1;       // an image's hardest text; a text's image
    int text_index = -1, image_index = -1;  // a text's hardest text and image
    C violations = 0;
  };
  __device__ __forceinline__ Read read(bool of_x, int source, int own, int other) const {
    Read found;
    if (source) {
      const Band& band = of_x ? image : text;
      found.word = band.mask[own * band.words + other / 32] >> other % 32 & 1;
      return found;
    }
    const int n = of_x ? own : other, t = of_x ? other : own;
    const int i = positive_of(positive, t);
    found.own_image = i < 0 ? 0 : i;  // an unmatched text: its indices are kNanPair
    found.hardest = hardest_text[n], found.violations = violations[n];
    found.text_index = static_cast<int>(text_index[t]);
    found.image_index = static_cast<int>(image_index[t]);
    return found;
  }
  __device__ __forceinline__ PairWeight<C> weight_of(bool of_x, int source, int own, int other,
                                                     const Read& read) const {
    if (source) {
      const C weight = own == other ? kNan<C> : of_x ? image.weight : text.weight;
      return {read.word ? weight : C(0), C(0)};
    }
    const int n = of_x ? own : other, t = of_x ? other : own;
    C weight = read.hardest == t ? read.violations : C(0);
    if (read.image_index == n) weight += 1;
    if (read.own_image == n)
      weight -= read.text_index == kNanPair
                    ? kNan<C>
                    : static_cast<C>((read.text_index >= 0) + (read.image_index >= 0));
    return {weight, C(0)};
  }
  static __device__ __forceinline__ bool counts(int, const Read& read, C weight) {
    return read.word || weight != 0;
  }

  template <typename T>
  __device__ __forceinline__ Rows<T> rows(bool of_x, int) const {
    const Matrix& own = of_x ? image.rows : text.rows;
    return {static_cast<const T*>(own.data), own.rows, own.stride, 0};
  }
  __device__ __forceinline__ C factor() const { return *grad; }
};

}  // namespace itm::cuda
