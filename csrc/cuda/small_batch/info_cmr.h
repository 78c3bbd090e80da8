#pragma once
// The launchers of InfoCMR as one operator: InfoNCE with synthetic negatives, which are constants
// of one clustering per side, and noise. Everything that is a product of two rows comes from a few
// Gram matrices: no centroid and no synthetic vector exists. They are in fp64, because weights of
// near duplicates are thousands that cancel: |a|^2 = k^T G k would lose all digits of fp32.

#include "cuda/small_batch/contrastive.h"

namespace itm::cuda {

// Unit rows of up to three matrices of one type, one after another, and their lengths.
struct CmrUnitRows {
  AnyRows of[3];
  int64_t D, padded;    // columns as they come, and in fours
  double *unit, *norm;  // [rows of all, padded], [rows of all]
};
void cmr_unit_rows(Type type, const CmrUnitRows& sources, void* stream);

// One side of the batch: rows that are anchors of their own texts or images, and members of the
// clusters from which vectors for the other side's anchors are made.
struct CmrSide {
  int64_t rows;
  const int64_t* ids;  // or null
  const double* norm;  // [rows]
  ScoreParts noise;    // cosines with the noise, [parts, rows, Z]
  // With clusters:
  ScoreParts gram;     // cosines with one another
  const float* draws;  // [K, rows], or null: every row as far as it is
  // Room for:
  double* added;                // gram in one part
  int64_t* assignment;          // [rows]
  int32_t *order, *span;        // [2, rows], [2, K, 2]
  double *score, *half_square;  // [K, rows], [K]
  double *inverse, *sweep;      // [rows, rows], [2, rows], or null: attention
  // Of its anchors, with M rows on the other side:
  double *cosine, *factor;  // [rows, K]: with vectors, -inf without one; 1 / both lengths
  double* weight;           // [rows, M]: members' in the vectors, times the factor, or null
};

struct Cmr {
  CmrSide image, text;
  ScoreParts cosines;       // [parts, N, M]
  const int64_t* positive;  // [M], or null: the diagonal
  int64_t clusters, iterations;
  double sigma, ridge;
  Scalar scale;
  double weight;  // of every pair in the total
  // Room:
  double* anchors;           // [N + M, 4], as info_nce
  double *loss, *of_scale;   // [N + M]
  unsigned* ticket;          // 0
  void *total, *scale_grad;  // one number each, in fp32 or fp64 for fp64
};

// Clusters of the rows of both sides, and their systems.
void cmr_cluster(const Cmr& in, void* stream);
// Synthesis and both cross-entropies of every anchor, and the total.
void cmr_total(Type type, const Cmr& in, void* stream);

// The gradient of unit rows as weights of raw rows: [N, M + Z] and, as who reads them likes them,
// [N + Z, M]; along [N + M] what a row's gradient has along it; inverse [N + M] 1 / length.
struct CmrScoreWeights {
  const double* noise_norm;                    // [Z]
  void *of_image, *of_text, *along, *inverse;  // in fp32, or fp64 for fp64
};
void cmr_score_gradient(Type type, const Cmr& in, const CmrScoreWeights& to, void* stream);

// The gradients of raw rows and of the scale, times one number.
struct CmrGradient {
  const void *of_image, *of_text, *along, *inverse;  // as CmrScoreWeights
  Matrix noise;                                      // raw rows in fours
  const void *grad, *of_scale;                       // one number each
  void* to_scale;
};
void cmr_gradient(Type type, const CmrGradient& in, const SideGradients& to, void* stream);

}  // namespace itm::cuda
