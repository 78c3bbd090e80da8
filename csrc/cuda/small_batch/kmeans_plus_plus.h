#pragma once
// The launcher of k-means++.

#include "cuda/distances/similarity.h"

namespace itm::cuda {

// k-means++ over the rows of x, for several problems with their own members.
struct KMeansPlusPlus {
  int64_t problems, clusters;
  const bool* member;  // [problems, rows] or null
  const float* draws;  // [clusters, rows]
  void* centroids;     // [problems, clusters, D] in fp32 or fp64
};
void kmeans_plus_plus(Type type, const AnyRows& x, int64_t D, const ScoreParts& squares,
                      const KMeansPlusPlus& to, void* stream);

}  // namespace itm::cuda
