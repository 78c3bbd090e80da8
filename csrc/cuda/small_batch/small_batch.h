#pragma once
// The launchers of the kernels over all pairs of a small batch: its scores fit into memory, and a
// loss costs what its launches cost, not its arithmetic.

#include "cuda/launch.h"

namespace itm::cuda {

// Of either side. Scores then take 8 MiB at most, and lists of pairs fit into shared memory.
constexpr int64_t kMostRows = 1024;

// x y^T in parts [parts, N, M], fp32 or fp64: whoever reads a score adds its parts in their order.
struct ScoreParts {
  const void* data;
  int64_t parts, N, M;
};

// Writes the parts, as plan_distances(1, N, M, D) shares out D.
void score_parts(Type type, const Matrix& x, const Matrix& y, int64_t D, const DistancePlan& plan,
                 void* parts, void* stream);
// The same of squared distances, by differences.
void square_parts(Type type, const Matrix& x, const Matrix& y, int64_t D, const DistancePlan& plan,
                  void* parts, void* stream);

// Adds the parts, for readers that come back often: out [N, M].
void add_parts(Type type, const ScoreParts& scores, void* out, void* stream);

// Which image is whose positive, and which pairs are no negatives; all null for the diagonal.
struct Pairing {
  const int64_t *positive, *image_ids, *text_ids;  // [M], [N], [M]
};

// What a fold's last block adds up: all its numbers, in one order, times a weight. The ticket is 0
// before the launch; without one there is no total.
struct TotalOf {
  double weight = 1;
  unsigned* ticket = nullptr;
  void* total = nullptr;  // in fp32 or fp64
};

// max_of_hinges_forward: loss, text_index and image_index [M].
void max_of_hinges(Type type, const ScoreParts& scores, const Pairing& pairing, double margin,
                   bool semihard, void* loss, int64_t* text_index, int64_t* image_index,
                   const TotalOf& total, void* stream);

// Anchors' hardest negatives: of texts [M], of images [N].
struct HardestOut {
  void* positive;
  void* text_score;
  int64_t* text_index;
  void* image_score;
  int64_t* image_index;
};
void hardest_negatives(Type type, const ScoreParts& scores, const Pairing& pairing,
                       const HardestOut& to, void* stream);

// The gradients of the scores that indices name, at the rows that made them, [N, D] and [M, D] in
// the type of the rows.
struct RowGradients {
  AnyRows image, text;
  int64_t D;
  void *to_image, *to_text;
};
// The gradient of a pair's loss is grad times a weight. The texts of mistaken pairs, which have no
// image, get NaN for a gradient, and so does the first image, if there are to be mistakes.
struct HingeShares {
  PerRow grad;
  double weight = 1;
  bool mistakes = false;
};
void max_of_hinges_gradient(Type type, const HingeShares& shares, const int64_t* positive,
                            const int64_t* text_index, const int64_t* image_index,
                            const RowGradients& rows, void* stream);
void hardest_negatives_gradient(Type type, const PerRow& of_positive, const PerRow& of_text,
                                const PerRow& of_image, const int64_t* positive,
                                const int64_t* text_index, const int64_t* image_index,
                                const RowGradients& rows, void* stream);

// sum_of_hinges_forward: loss [M]; kept [N, M] gets the scores, unless it is null.
void sum_of_hinges(Type type, const ScoreParts& scores, const Pairing& pairing, double margin,
                   void* loss, void* kept, void* stream);

// Log-sum-exp of rows [N] and columns [M] relative to their highest logits, which is where they are
// not finite 0; the logits of positives [M], or null.
template <typename Pointer>
struct ExpSums {
  Pointer row, column, row_highest, column_highest, positive;
};

// log_sum_exp_forward; scale is one number on the device.
void log_sum_exp(Type type, const ScoreParts& scores, const Pairing& pairing, const void* scale,
                 const ExpSums<void*>& to, void* kept, void* stream);

// sigmoid_forward: loss [M]; scale and bias are one number each, on the device.
void sigmoid(Type type, const ScoreParts& scores, const Pairing& pairing, const void* scale,
             const void* bias, void* loss, void* kept, void* stream);

// Between the two launches of a backward pass, in fp32 or fp64.
struct Workspace {
  void* weights;               // [N, M]
  void *of_rows, *of_columns;  // [max(N, M)] each
};

// Rows in fours, and the gradients [N, D] and [M, D] that they get, in their type, without the
// zeros beyond D.
struct WeightedRows {
  Matrix x, y;
  int64_t D;
  void *to_x, *to_y;
};
void sum_of_hinges_gradient(Type type, const PerRow& grad, const ScoreParts& scores,
                            const Pairing& pairing, double margin, const Workspace& work,
                            const WeightedRows& to, void* stream);
void log_sum_exp_gradient(Type type, const PerRow& grad_row, const PerRow& grad_column,
                          const PerRow& grad_positive, const ExpSums<const void*>& sums,
                          const ScoreParts& scores, const Pairing& pairing, const void* scale,
                          const Workspace& work, const WeightedRows& to, void* grad_scale,
                          void* stream);
void sigmoid_gradient(Type type, const PerRow& grad, const ScoreParts& scores,
                      const Pairing& pairing, const void* scale, const void* bias,
                      const Workspace& work, const WeightedRows& to, void* grad_scale,
                      void* grad_bias, void* stream);

// k-means++ over rows of x, for problems with members of their own.
struct Drawing {
  int64_t problems, clusters;
  const bool* member;  // [problems, rows] or null
  const float* draws;  // [clusters, rows]
  void* centroids;     // [problems, clusters, D] in fp32 or fp64
};
void kmeans_plus_plus(Type type, const AnyRows& x, int64_t D, const ScoreParts& squares,
                      const Drawing& to, void* stream);

}  // namespace itm::cuda
