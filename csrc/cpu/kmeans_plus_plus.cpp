// k-means++: each problem draws its initial centroids one after another, a row with a probability
// proportional to its squared distance from the nearest earlier one. Problems share their random
// draws, so that most of them choose the same few rows: the distances from such a row are computed
// once for all problems that chose it.

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "aten/optional_ids.h"
#include "aten/wide.h"
#include "cpu/instruction_set.h"
#include "cpu/parallel.h"

namespace itm::cpu {
namespace {

// Distances [problems, M] of the problems that are processed together: 4 MiB in fp32.
constexpr int64_t kDistances = 1 << 20;

template <typename T>
class InitialCentroids {
 public:
  InitialCentroids(const Tensor& x, const OptionalTensor& member, const Tensor& draws,
                   const Tensor& centroids)
      : B_(centroids.size(0)),
        K_(centroids.size(1)),
        M_(x.size(0)),
        D_(x.size(1)),
        x_(x.const_data_ptr<T>()),
        member_(member.has_value() ? member->const_data_ptr<bool>() : nullptr),
        draws_(draws.const_data_ptr<float>()),
        centroids_(centroids.mutable_data_ptr<T>()),
        identity_(M_) {
    std::iota(identity_.begin(), identity_.end(), 0);
  }

  void choose() {
    const int64_t together = std::max<int64_t>(1, kDistances / M_);
    for (int64_t b = 0; b < B_; b += together) choose(b, std::min(together, B_ - b));
  }

 private:
  // Problems [first, first + count).
  void choose(int64_t first, int64_t count) {
    std::vector<T> distance(count * M_, T(1));
    for (int64_t i = 0; member_ && i < count * M_; ++i) distance[i] = member_[first * M_ + i];
    std::vector<int64_t> chosen(count), start(count), order(count), group(count);
    std::iota(order.begin(), order.end(), 0);
    for (int64_t k = 0; k < K_; ++k) {
      parallel_for(0, count, grain(4 * M_), [&](int64_t begin, int64_t end) {
        std::vector<T> key(M_);
        for (int64_t p = begin; p < end; ++p) {
          chosen[p] =
              draw(distance.data() + p * M_, draws_ + k * M_, key.data(), k ? start[p] : -1);
          const T* const row = x_ + chosen[p] * D_;
          std::copy(row, row + D_, centroids_ + ((first + p) * K_ + k) * D_);
        }
      });
      if (k == 0) start = chosen;
      if (k + 1 < K_) lower_distances(first, k == 0, chosen, order, group, distance);
    }
  }

  // Returns the row of the largest distance / draw, or the first centroid again if no distance is
  // positive or one is NaN.
  int64_t draw(const T* distance, const float* draws, T* key, int64_t start) const {
    T sum = 0, best = -std::numeric_limits<T>::infinity();
    for (int64_t m = 0; m < M_; ++m) sum += distance[m];
    if (start >= 0 && !(sum > 0)) return start;
    for (int64_t m = 0; m < M_; ++m) key[m] = distance[m] / draws[m];
    int64_t index = 0;
    loops<T>().row_max(key, M_, 0, 1, 0, &best, &index);
    return index;
  }

  // Lowers each distance to that from the row that its problem has just chosen, if it is nearer.
  void lower_distances(int64_t first, bool is_first, const std::vector<int64_t>& chosen,
                       std::vector<int64_t>& order, std::vector<int64_t>& group,
                       std::vector<T>& distance) const {
    std::sort(order.begin(), order.end(),
              [&](int64_t a, int64_t b) { return chosen[a] < chosen[b]; });
    std::vector<int64_t> rows;
    for (const int64_t p : order) {
      if (rows.empty() || rows.back() != chosen[p]) rows.push_back(chosen[p]);
      group[p] = static_cast<int64_t>(rows.size()) - 1;
    }
    std::vector<T> square(rows.size() * M_);
    parallel_for(0, square.size(), grain(2 * D_), [&](int64_t begin, int64_t end) {
      for (int64_t stop; begin < end; begin = stop) {
        const int64_t row = begin / M_, m = begin % M_;
        stop = std::min(end, (row + 1) * M_);
        loops<T>().squared_pairs(x_ + rows[row] * D_, x_, identity_.data() + m, stop - begin, D_,
                                 square.data() + begin);
      }
    });
    parallel_for(0, static_cast<int64_t>(order.size()), grain(2 * M_), [&](int64_t p, int64_t end) {
      for (; p < end; ++p) {
        const T* const from = square.data() + group[p] * M_;
        const bool* const member = member_ ? member_ + (first + p) * M_ : nullptr;
        T* const to = distance.data() + p * M_;
        for (int64_t m = 0; m < M_; ++m) {
          const T own = !member || member[m] ? from[m] : T(0);
          // A distance that is NaN stays NaN.
          to[m] = is_first || own < to[m] || own != own ? own : to[m];
        }
      }
    });
  }

  const int64_t B_, K_, M_, D_;
  const T* const x_;
  const bool* const member_;
  const float* const draws_;
  T* const centroids_;
  std::vector<int64_t> identity_;  // identity_[m] = m: indices of consecutive rows
};

Tensor kmeans_plus_plus(const Tensor& x, const OptionalTensor& member, const Tensor& draws) {
  const Tensor rows = wide(x), numbers = draws.to(at::kFloat).contiguous();
  const OptionalTensor members =
      member.has_value() ? OptionalTensor(member->contiguous()) : OptionalTensor();
  const Tensor centroids = at::empty(
      {members.has_value() ? members->size(0) : 1, draws.size(0), rows.size(1)}, rows.options());
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "kmeans_plus_plus", [&] {
    InitialCentroids<scalar_t>(rows, members, numbers, centroids).choose();
  });
  return centroids;
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) { m.impl("kmeans_plus_plus", kmeans_plus_plus); }

}  // namespace
}  // namespace itm::cpu
