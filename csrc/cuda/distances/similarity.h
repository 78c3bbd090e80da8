#pragma once
// Launchers of pairwise scores: distances of all pairs of rows, and partial sums over D.

#include "cuda/operands.h"

namespace itm::cuda {

// How D is split into parts, so that a few pairs keep a GPU busy. The plan depends on sizes alone,
// so every GPU adds in the same order.
struct DistancePlan {
  bool small;
  int64_t parts, depth;
};
DistancePlan plan_distances(int64_t batch, int64_t N, int64_t M, int64_t D);
// The plan of a number of tiles of 32 x 32 pairs.
DistancePlan split_depth(int64_t tiles, int64_t D);

// out [batch, N, M] in the type of the rows; partial [parts, batch, N, M] in fp32 or fp64, if there
// are several parts.
void distances(Type type, Metric metric, const Matrix& x, const Matrix& y, int64_t batch, int64_t D,
               const DistancePlan& plan, void* out, void* partial, void* stream);

// Partial sums of the scores of all pairs, [parts, N, M] in fp32 or fp64. Every reader adds the
// parts in increasing order.
struct ScoreParts {
  const void* data;
  int64_t parts, N, M;
};

// Writes the parts of x y^T. The plan is plan_distances(1, N, M, D).
void score_parts(Type type, const Matrix& x, const Matrix& y, int64_t D, const DistancePlan& plan,
                 void* parts, void* stream);
// Writes the parts of squared distances, which are sums of squared differences.
void square_parts(Type type, const Matrix& x, const Matrix& y, int64_t D, const DistancePlan& plan,
                  void* parts, void* stream);

// Adds the parts to out [N, M], for kernels that read a score many times.
void add_parts(Type type, const ScoreParts& scores, void* out, void* stream);

}  // namespace itm::cuda
