// Launches hard negative synthesis.

#include "cuda/dispatch.cuh"
#include "cuda/launch.h"
#include "cuda/small_batch/rbf_synthesis.h"
#include "cuda/small_batch/rbf_synthesis_gradient.cuh"

namespace itm::cuda {

namespace {

template <typename T>
Synthesis<T> synthesis_of(const SynthesisRound& round) {
  using C = Wide<T>;
  return {rows_of<T>(round.anchors),
          rows_of<T>(round.members),
          round.D,
          round.clusters,
          round.assignment,
          round.per_anchor,
          round.anchor_ids,
          round.member_ids,
          static_cast<C>(1 / (round.sigma * round.sigma)),
          {round.order, round.span},
          round.valid,
          static_cast<C*>(round.khat),
          round.inverse,
          round.weights};
}

}  // namespace

void list_members(const SynthesisRound& round, void* stream) {
  in_launches(round.problems(), [&](int64_t first, int64_t count) {
    launch(cluster_members_kernel, count, kClusterThreads, 0, stream, round.assignment,
           round.members.rows, round.clusters, first, ClusterMembers{round.order, round.span});
  });
}

void kam_solve(const SynthesisRound& round, void* stream) {
  const KamSystems systems{round.distance, round.inverse,
                           round.sweep,    round.members.rows,
                           round.clusters, 1 / (round.sigma * round.sigma),
                           round.ridge,    {round.order, round.span}};
  in_launches(round.problems() * round.clusters, [&](int64_t first, int64_t count) {
    launch(kam_solve_kernel, count, kSystemThreads, SystemInShared::kNumbers * sizeof(double),
           stream, systems, first);
  });
}

void synthesise(const SynthesisRound& round, void* vectors, void* cosines, void* stream) {
  with_type(round.type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    in_launches(round.anchors.rows, [&](int64_t first, int64_t count) {
      launch(synthesis_kernel<T>, count, kClusterThreads, 0, stream, synthesis_of<T>(round), first,
             static_cast<C*>(vectors), static_cast<C*>(cosines));
    });
  });
}

void anchor_gradient(const SynthesisRound& round, const AnchorGradient& grad, void* stream) {
  with_type(round.type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    const Gradient<T> of{static_cast<const C*>(grad.cosines),
                         static_cast<C*>(grad.vectors),
                         grad.detach,
                         static_cast<C*>(grad.alpha),
                         static_cast<C*>(grad.scores),
                         static_cast<C*>(grad.member_weights),
                         grad.khat,
                         static_cast<C*>(grad.anchors)};
    in_launches(round.anchors.rows, [&](int64_t first, int64_t count) {
      launch(anchor_gradient_kernel<T>, count, kClusterThreads, 0, stream, synthesis_of<T>(round),
             first, of);
    });
  });
}

void member_gradient(const SynthesisRound& round, const MemberGradient& grad, void* stream) {
  with_type(round.type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    const MemberSums<T> to{static_cast<const C*>(grad.vectors),
                           static_cast<const C*>(grad.scores),
                           grad.khat,
                           round.distance,
                           grad.kernel,
                           1 / (round.sigma * round.sigma),
                           grad.first,
                           grad.last,
                           static_cast<C*>(grad.members)};
    in_launches(round.members.rows, [&](int64_t first, int64_t count) {
      launch(member_gradient_kernel<T>, count, kMemberThreads, 0, stream, synthesis_of<T>(round),
             first, to);
    });
  });
}

}  // namespace itm::cuda
