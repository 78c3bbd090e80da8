// k-means of many problems over the same rows. Rows are compared with the centroids of all problems
// in one tiled product; the mean of a cluster is the sum of its own rows, not a product with a
// mostly zero matrix. Many problems over few rows share the products of rows with rows, whose means
// are the products of rows with centroids: an iteration of a problem then adds M x M numbers and
// multiplies nothing.

#include <ATen/Dispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <atomic>
#include <limits>
#include <optional>

#include "aten/optional_ids.h"
#include "cpu/groups.h"
#include "cpu/score_tiles.h"

namespace itm::cpu {
namespace {

// Problems b < B over the rows of x, each with its own members and K centroids.
struct Clustering {
  const int64_t B, K, M, D;
  const Tensor x_, centroids_, member_;
  int64_t* const assigned_;

  Clustering(const Tensor& x, const OptionalTensor& member, const Tensor& centroids,
             const Tensor& assignment)
      : B(centroids.size(0)),
        K(centroids.size(1)),
        M(x.size(0)),
        D(x.size(1)),
        x_(x),
        centroids_(centroids),
        member_(member.has_value() ? member->contiguous() : Tensor()),
        assigned_(assignment.mutable_data_ptr<int64_t>()) {}
};

// Writes the mean of the rows of group k, for `size` columns of rows `stride` apart. Leaves `mean`
// unchanged if the group is empty.
template <typename T>
void mean_of_rows(const T* rows, int64_t stride, const Groups& groups, int64_t k, T* mean,
                  int64_t size) {
  const int64_t start = groups.start[k], count = groups.start[k + 1] - start;
  if (!count) return;
  loops<T>().sum_of_rows(rows, stride, groups.order.data() + start, count, mean, size);
  for (int64_t c = 0; c < size; ++c) mean[c] /= static_cast<T>(count);
}

template <typename T>
class Problems : Clustering {
 public:
  using Clustering::Clustering;

  // Assigns every member to its nearest centroid, the one with the largest x.c - |c|^2 / 2 (|x|^2
  // is the same for all). NaN counts as nearest, as in torch.argmin. Returns whether any assignment
  // has changed.
  bool assign() {
    const Tensor flat = centroids_.view({B * K, D});
    const Tensor offset = flat.square().sum(-1).div_(-2);
    const T* const offsets = offset.const_data_ptr<T>();
    const auto& loop = loops<T>();
    // The running maximum of each row in a problem whose centroids span two tiles.
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

  // Sets every centroid to the mean of its members. A cluster without members keeps its centroid.
  void update() {
    for (int64_t b = 0; b < B; b += kTogether) update(b, std::min(kTogether, B - b));
  }

 private:
  // Problems whose sums read the same strip of columns of x while it is in a cache.
  static constexpr int64_t kTogether = 64, kStrip = 64;

  bool nearest_in_tile(const Tile<T>& t, int64_t r, T& best, int64_t& index) {
    const auto& loop = loops<T>();
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
    const T* const rows = x_.const_data_ptr<T>();
    T* const to = centroids_.mutable_data_ptr<T>() + first * K * D;
    const int64_t strips = (D + kStrip - 1) / kStrip;
    parallel_for(0, strips * problems, grain(M * kStrip), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t d = task / problems * kStrip, b = task % problems;
        const int64_t size = std::min(kStrip, D - d);
        for (int64_t k = 0; k < K; ++k)
          mean_of_rows(rows + d, D, groups[b], k, to + (b * K + k) * D + d, size);
      }
    });
  }
};

// The same for batches in which the products of all rows with all rows, [M, M], cost less than
// those with the centroids.
template <typename T>
class SmallProblems : Clustering {
 public:
  // Every row needs M additions per iteration instead of 2 K D operations. 512 problems with K = 8
  // are 5 times as fast at M = 512 and D = 1024, and 1.3 times at M = 1024 and D = 256. The
  // products of 2,048 rows are 16 MiB and do not fit a cache: 5 times as slow.
  static bool pays(int64_t B, int64_t K, int64_t M, int64_t D) {
    return B > 1 && M <= B * K && M <= 1024 && 2 * M <= K * D;
  }

  SmallProblems(const Tensor& x, const OptionalTensor& member, const Tensor& centroids,
                const Tensor& assignment)
      : Clustering(x, member, centroids, assignment), product_(at::mm(x, x.t())) {}

  void run(int64_t iterations) {
    const int64_t together = std::max<int64_t>(1, kTogether / (K * M));
    for (int64_t first = 0; first < B; first += together) {
      const int64_t count = std::min(together, B - first);
      const Tensor flat = centroids_.narrow(0, first, count).view({count * K, D});
      const Tensor offset = flat.square().sum(-1, true).div_(-2);
      const Tensor scores = at::addmm(offset.expand({count * K, M}), flat, x_.t());
      T* const score = scores.template mutable_data_ptr<T>();
      parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) run(first + b, score + b * K * M, iterations);
      });
    }
  }

 private:
  // Scores of the problems whose centroids are multiplied at once.
  static constexpr int64_t kTogether = 1 << 21;

  // Runs one problem from its scores x.c - |c|^2 / 2, [K, M].
  void run(int64_t b, T* score, int64_t iterations) const {
    int64_t* const assigned = assigned_ + b * M;
    std::optional<Groups> before;
    bool moved = assign(b, score, assigned);
    for (int64_t i = 0; i < iterations && moved; ++i) {
      const Groups groups(assigned, M, K);
      // A cluster that has lost its last member keeps its centroid.
      if (before) write_means(b, *before, &groups);
      for (int64_t k = 0; k < K; ++k) score_mean(groups, k, score + k * M);
      before = groups;
      moved = assign(b, score, assigned);
    }
    if (before) write_means(b, *before, nullptr);
  }

  bool assign(int64_t b, const T* score, int64_t* assigned) const {
    const bool* const member = member_.defined() ? member_.const_data_ptr<bool>() + b * M : nullptr;
    std::vector<T> best(M, -std::numeric_limits<T>::infinity());
    std::vector<int64_t> index(M, 0);
    loops<T>().column_max(score, K, M, 0, M, 0, best.data(), index.data());
    bool moved = false;
    for (int64_t m = 0; m < M; ++m) {
      const int64_t found = !member || member[m] ? index[m] : -1;
      moved |= assigned[m] != found;
      assigned[m] = found;
    }
    return moved;
  }

  // Writes the scores of all rows for the mean of a cluster; |c|^2 is the mean of x.c over the
  // cluster.
  void score_mean(const Groups& groups, int64_t k, T* score) const {
    const int64_t begin = groups.start[k], end = groups.start[k + 1], count = end - begin;
    if (!count) return;
    mean_of_rows(product_.const_data_ptr<T>(), M, groups, k, score, M);
    double square = 0;
    for (int64_t i = begin; i < end; ++i) square += score[groups.order[i]];
    const auto half = static_cast<T>(square / static_cast<double>(2 * count));
    for (int64_t m = 0; m < M; ++m) score[m] -= half;
  }

  // Writes the means of the clusters that have no members in `unless`.
  void write_means(int64_t b, const Groups& groups, const Groups* unless) const {
    for (int64_t k = 0; k < K; ++k) {
      if (unless && unless->start[k] != unless->start[k + 1]) continue;
      T* const mean = centroids_.mutable_data_ptr<T>() + (b * K + k) * D;
      mean_of_rows(x_.const_data_ptr<T>(), D, groups, k, mean, D);
    }
  }

  const Tensor product_;  // [M, M]
};

std::tuple<Tensor, Tensor> kmeans(const Tensor& x, const OptionalTensor& member,
                                  const Tensor& centroids, int64_t iterations) {
  const Tensor rows = wide(x);
  const Tensor found = centroids.to(rows.scalar_type(), /*non_blocking=*/false, /*copy=*/true,
                                    at::MemoryFormat::Contiguous);
  const Tensor assignment =
      at::full({found.size(0), rows.size(0)}, -1, rows.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "kmeans", [&] {
    if (SmallProblems<scalar_t>::pays(found.size(0), found.size(1), rows.size(0), rows.size(1)))
      return SmallProblems<scalar_t>(rows, member, found, assignment).run(iterations);
    Problems<scalar_t> problems(rows, member, found, assignment);
    // Without a changed assignment the means, and all further iterations, stay the same.
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
}  // namespace itm::cpu
