#pragma once
// The launchers of hard negative synthesis. A round is as many anchors as its workspace is for;
// what is said per anchor begins with the round's first.

#include "cuda/operands.h"

namespace itm::cuda {

// Numbers are in fp32, or fp64 for fp64, where nothing else is said.
struct SynthesisRound {
  Type type;
  Matrix anchors, members;
  int64_t D, clusters;
  const int64_t* assignment;  // [M], or [N, M] with one clustering per anchor
  bool per_anchor;
  const int64_t *anchor_ids, *member_ids;  // [N], [M], or both null
  double sigma, ridge;
  // Room, for each clustering P or each anchor N:
  int32_t *order, *span;  // [P, M], [P, clusters, 2]: the members of every cluster
  bool* valid;            // [N, clusters]: has the cluster a member for the anchor?
  void* khat;             // [N, M]: softmax
  // The kernel associative memory, or null:
  const double* distance = nullptr;  // [M, M] |x_i - x_j|^2
  double* inverse = nullptr;         // [P, M, M] (K + ridge I)^-1 of every cluster, in lists' order
  double* sweep = nullptr;           // [P, 2, M]
  double* weights = nullptr;         // [N, M] inverse khat

  int64_t problems() const { return per_anchor ? anchors.rows : 1; }
};

void list_members(const SynthesisRound& round, void* stream);
void kam_solve(const SynthesisRound& round, void* stream);

// Vectors [N, clusters, D], or, without them, cosines [N, clusters].
void synthesise(const SynthesisRound& round, void* vectors, void* cosines, void* stream);

// The gradient of what an anchor's block knows alone: of_anchors [N, D], and what members need.
struct AnchorGradient {
  const void* of_cosines;  // [N, clusters], or null: of_vectors is given
  void* of_vectors;        // [N, clusters, D], or room for it
  bool detach;             // vectors are constants: cosines alone have a gradient, of the anchor
  void* alpha;             // room for [N, clusters, 2], with cosines
  void *of_scores, *member_weights;  // [N, M]; pull: what members are added to of_anchors with
  double* of_khat;                   // [N, M] with a kernel associative memory
  void* of_anchors;
};
void anchor_gradient(const SynthesisRound& round, const AnchorGradient& grad, void* stream);

// That of members [M, D], over all rounds.
struct MemberGradient {
  const void *of_vectors, *of_scores;
  const double* of_khat;
  double* of_kernel;  // [M, M] with a kernel associative memory
  bool first, last;   // of the rounds
  void* of_members;
};
void member_gradient(const SynthesisRound& round, const MemberGradient& grad, void* stream);

}  // namespace itm::cuda
