// k-means: rows are compared with the centroids of all problems in one product over tiles, and a
// cluster's mean is the sum of its own rows, not a product with mostly zeros.

#include <ATen/Dispatch.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include <atomic>
#include <limits>

#include "binding/common.h"
#include "binding/pairs.h"

namespace itm {
namespace {

// Problems b < B over the rows of x, each with its own members and K centroids.
template <typename T>
class Problems {
 public:
  Problems(const Tensor& x, const OptionalTensor& member, const Tensor& centroids,
           const Tensor& assignment)
      : B(centroids.size(0)),
        K(centroids.size(1)),
        M(x.size(0)),
        D(x.size(1)),
        x_(x),
        centroids_(centroids),
        member_(member.has_value() ? member->contiguous() : Tensor()),
        assigned_(assignment.mutable_data_ptr<int64_t>()) {}

  // Sends every member to its nearest centroid, that of the largest x.c - |c|^2 / 2 (|x|^2 is the
  // same for all); NaN is the nearest, as for torch's argmin. Returns whether any has moved.
  bool assign() {
    const Tensor flat = centroids_.view({B * K, D});
    const Tensor offset = flat.square().sum(-1).div_(-2);
    const T* const offsets = offset.const_data_ptr<T>();
    const auto& loop = cpu::loops<T>(kernels());
    // A row's best so far in the problem that a tile may break off.
    std::vector<T> best(M);
    std::vector<int64_t> index(M);
    std::atomic<bool> moved = false;
    const T one = 1;
    for_each_tile<T>(x_, flat, 1, [&](const Tile<T>& t) {
      parallel_for(0, t.rows, grain(2 * t.columns), [&](int64_t r0, int64_t r1) {
        bool here = false;
        for (int64_t r = r0; r < r1; ++r) {
          const int64_t i = t.first_row + r;
          loop.add_rows(t.row(r), offsets + t.first_column, nullptr, &one, 1, t.columns);
          here |= nearest_in_tile(t, r, best[i], index[i]);
        }
        if (here) moved.store(true, std::memory_order_relaxed);
      });
    });
    return moved;
  }

  // Moves every centroid to the mean of its members; without any it stays.
  void update() {
    for (int64_t b = 0; b < B; b += kTogether) update(b, std::min(kTogether, B - b));
  }

 private:
  // Problems whose sums share a strip of columns of x while it lies in a cache.
  static constexpr int64_t kTogether = 64, kStrip = 64;

  bool nearest_in_tile(const Tile<T>& t, int64_t r, T& best, int64_t& index) {
    const auto& loop = cpu::loops<T>(kernels());
    const int64_t i = t.first_row + r, end = t.first_column + t.columns;
    const bool* const member = member_.defined() ? member_.const_data_ptr<bool>() : nullptr;
    bool moved = false;
    for (int64_t first = t.first_column, stop; first < end; first = stop) {
      const int64_t b = first / K, k = first % K;
      stop = std::min(end, (b + 1) * K);
      if (member && !member[b * M + i]) continue;
      if (k == 0) best = -std::numeric_limits<T>::infinity(), index = 0;
      loop.row_max(t.row(r) + first - t.first_column, stop - first, 0, 1, k, &best, &index);
      if (stop != (b + 1) * K) continue;
      moved |= assigned_[b * M + i] != index;
      assigned_[b * M + i] = index;
    }
    return moved;
  }

  void update(int64_t first, int64_t problems) {
    std::vector<Groups> groups;
    for (int64_t b = first; b < first + problems; ++b) groups.emplace_back(assigned_ + b * M, M, K);
    const auto& loop = cpu::loops<T>(kernels());
    const T* const rows = x_.template const_data_ptr<T>();
    T* const to = centroids_.template mutable_data_ptr<T>() + first * K * D;
    const int64_t strips = (D + kStrip - 1) / kStrip;
    parallel_for(0, strips * problems, grain(M * kStrip), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t d = task / problems * kStrip, b = task % problems;
        const int64_t size = std::min(kStrip, D - d);
        for (int64_t k = 0; k < K; ++k) {
          const int64_t start = groups[b].start[k], count = groups[b].start[k + 1] - start;
          if (!count) continue;
          T* const mean = to + (b * K + k) * D + d;
          loop.sum_of_rows(rows + d, D, groups[b].order.data() + start, count, mean, size);
          for (int64_t c = 0; c < size; ++c) mean[c] /= static_cast<T>(count);
        }
      }
    });
  }

  const int64_t B, K, M, D;
  const Tensor x_, centroids_, member_;
  int64_t* const assigned_;
};

std::tuple<Tensor, Tensor> kmeans(const Tensor& x, const OptionalTensor& member,
                                  const Tensor& centroids, int64_t iterations) {
  const Tensor rows = wide(x);
  const Tensor found = centroids.to(rows.scalar_type(), /*non_blocking=*/false, /*copy=*/true,
                                    at::MemoryFormat::Contiguous);
  const Tensor assignment =
      at::full({found.size(0), rows.size(0)}, -1, rows.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "kmeans", [&] {
    Problems<scalar_t> problems(rows, member, found, assignment);
    // Where nobody moves, nothing will: the same means again, for all iterations that are left.
    bool moved = problems.assign();
    for (int64_t k = 0; k < iterations && moved; ++k) {
      problems.update();
      moved = problems.assign();
    }
  });
  return {assignment, found};
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) { m.impl("kmeans", kmeans); }

}  // namespace
}  // namespace itm
