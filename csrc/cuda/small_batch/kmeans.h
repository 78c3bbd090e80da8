#pragma once
// The launcher of k-means.

#include "cuda/operands.h"

namespace itm::cuda {

// k-means over the rows of x, for several problems with their own members and centroids. Workspaces
// are in fp32, or fp64 for fp64.
struct Clustering {
  int64_t problems, clusters, iterations;
  const void* product;    // [rows, rows] x.x
  const bool* member;     // [problems, rows] or null
  void* centroids;        // [problems, clusters, D]: the start, and the result
  int64_t* assignment;    // [problems, rows]
  void* score;            // workspace [problems, clusters, rows]
  void* half_square;      // workspace [problems, clusters]
  int32_t *order, *span;  // workspaces [2, problems, rows], [2, problems, clusters, 2]
};
void kmeans(Type type, const Matrix& x, int64_t D, const Clustering& to, void* stream);

}  // namespace itm::cuda
