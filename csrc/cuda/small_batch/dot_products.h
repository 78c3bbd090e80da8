#pragma once
// Dot products of the rows of several pairs of matrices, and squared norms of rows, in one launch:
// everything that a small-batch loss reads of its embeddings.

#include "cuda/small_batch/small_batch.h"

namespace itm::cuda {

// x y^T in parts [parts, x.rows, y.rows], and the squared norms of the rows of either side in parts
// [parts, rows], or null. All in fp32, or fp64 for fp64.
struct DotProduct {
  Matrix x, y;
  void *parts = nullptr, *x_squares = nullptr, *y_squares = nullptr;
};

constexpr int kMostProducts = 6;

struct DotProducts {
  DotProduct of[kMostProducts];
  int count;
  int64_t D;                   // padded columns of all matrices
  DistancePlan plan;           // from plan_dot_products
  unsigned* ticket = nullptr;  // set to 0, for the total of a later launch
};

// How D is split, so that the tiles of all pairs keep a GPU busy.
DistancePlan plan_dot_products(const DotProducts& grid);

void dot_products(Type type, const DotProducts& grid, void* stream);

}  // namespace itm::cuda
