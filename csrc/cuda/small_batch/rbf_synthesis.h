#pragma once
// Launchers of hard negative synthesis. Anchors are processed in rounds sized by the workspace;
// per-anchor arguments start at the round's first anchor.

#include "cuda/operands.h"

namespace itm::cuda {

// Values are in fp32, or fp64 for fp64, unless stated otherwise.
struct SynthesisRound {
  Type type;
  Matrix anchors, members;
  int64_t D, clusters;
  const int64_t* assignment;  // [M], or [N, M] with one clustering per anchor
  bool per_anchor;
  const int64_t *anchor_ids, *member_ids;  // [N], [M], or both null
  double sigma, ridge;
  // Workspace, for P clusterings or N anchors:
  int32_t *order, *span;  // [P, M], [P, clusters, 2]: the members of every cluster
  bool* valid;            // [N, clusters]: whether the cluster has a member for the anchor
  void* khat;             // [N, M]: softmax
  // For the kernel associative memory, or null:
  const double* distance = nullptr;  // [M, M] |x_i - x_j|^2
  double* inverse = nullptr;         // [P, M, M] (K + ridge I)^-1 of every cluster, in list order
  double* sweep = nullptr;           // [P, 2, M]
  double* weights = nullptr;         // [N, M] inverse khat

  int64_t problems() const { return per_anchor ? anchors.rows : 1; }
};

void list_members(const SynthesisRound& round, void* stream);
void kam_solve(const SynthesisRound& round, void* stream);

// Writes vectors [N, clusters, D] or, if they are null, cosines [N, clusters].
void synthesise(const SynthesisRound& round, void* vectors, void* cosines, void* stream);

// The gradients that one anchor's block computes, each under the name of its input: that of anchors
// [N, D], and the operands of MemberGradient.
struct AnchorGradient {
  const void* cosines;  // [N, clusters]; null: that of vectors is given
  void* vectors;        // [N, clusters, D], or its workspace
  bool detach;  // vectors are constants: only cosines have a gradient, with respect to the anchor
  void* alpha;  // workspace [N, clusters, 2], with cosines
  void *scores, *member_weights;  // [N, M]; weights of members in the anchors' gradient
  double* khat;                   // [N, M] with a kernel associative memory
  void* anchors;
};
void anchor_gradient(const SynthesisRound& round, const AnchorGradient& grad, void* stream);

// The gradient of members [M, D], over all rounds, and its operands.
struct MemberGradient {
  const void *vectors, *scores;
  const double* khat;
  double* kernel;    // [M, M] with a kernel associative memory
  bool first, last;  // of the rounds
  void* members;
};
void member_gradient(const SynthesisRound& round, const MemberGradient& grad, void* stream);

}  // namespace itm::cuda
