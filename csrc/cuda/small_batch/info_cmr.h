#pragma once
// Launchers of InfoCMR as one operator: InfoNCE with synthetic negatives, which are constants, from
// one clustering per side, and noise. All dot products of rows come from a few Gram matrices;
// neither centroids nor synthetic vectors are formed. The matrices are in fp64, because the weights
// of near duplicates are thousands that cancel: |a|^2 = k^T G k would lose all digits of fp32.

#include "cuda/small_batch/contrastive.h"

namespace itm::cuda {

// Unit rows of up to three matrices of one type, concatenated, and their norms.
struct CmrUnitRows {
  AnyRows of[3];
  int64_t D, padded;    // columns, and the padded number of columns
  double *unit, *norm;  // [all rows, padded], [all rows]
};
void cmr_unit_rows(Type type, const CmrUnitRows& sources, void* stream);

// One side of the batch. Its rows are the anchors of their own pairs, and the members of the
// clusters from which the vectors for the other side's anchors are formed.
struct CmrSide {
  int64_t rows;
  const int64_t* ids;  // or null
  const double* norm;  // [rows]
  ScoreParts noise;    // cosines with the noise, [parts, rows, Z]
  // With clusters:
  ScoreParts gram;     // cosines of its own rows
  const float* draws;  // [K, rows], or null: all draws are 1
  // Workspace:
  double* added;                // gram in one part
  int64_t* assignment;          // [rows]
  int32_t *order, *span;        // [2, rows], [2, K, 2]
  double *score, *half_square;  // [K, rows], [K]
  double *inverse, *sweep;      // [rows, rows], [2, rows], or null: attention
  // For its anchors, with M rows on the other side:
  double *cosine, *factor;  // [rows, K]: cosines with vectors, -inf without one; 1 / both norms
  double* weight;           // [rows, M]: members' weights in the vectors, times the factor, or null
};

struct Cmr {
  CmrSide image, text;
  ScoreParts cosines;       // [parts, N, M]
  const int64_t* positive;  // [M], or null: the diagonal
  int64_t clusters, iterations;
  double sigma, ridge;
  Scalar scale;
  double weight;  // of every pair in the total
  // Workspace:
  double* anchors;           // [N + M, 4], as for info_nce
  double *loss, *of_scale;   // [N + M]
  unsigned* ticket;          // 0
  void *total, *scale_grad;  // one value each, in fp32, or fp64 for fp64
};

// Clusters the rows of both sides, and inverts the clusters' kernel matrices.
void cmr_cluster(const Cmr& in, void* stream);
// Computes synthesis and both cross-entropies of every anchor, and the total.
void cmr_total(Type type, const Cmr& in, void* stream);

// The gradient of unit rows as weights of raw rows: [N, M + Z] and, transposed for its reader, [N +
// Z, M]; along [N + M], the component of each row's gradient along the row; inverse [N + M], 1 /
// norm.
struct CmrScoreWeights {
  const double* noise_norm;                    // [Z]
  void *of_image, *of_text, *along, *inverse;  // in fp32, or fp64 for fp64
};
void cmr_score_gradient(Type type, const Cmr& in, const CmrScoreWeights& to, void* stream);

// Computes the gradients of raw rows and of the scale, times the gradient of the loss.
struct CmrGradient {
  const void *of_image, *of_text, *along, *inverse;  // as CmrScoreWeights
  Matrix noise;                                      // raw rows, padded
  const void *grad, *of_scale;                       // one value each
  void* to_scale;
};
void cmr_gradient(Type type, const CmrGradient& in, const SideGradients& to, void* stream);

}  // namespace itm::cuda
