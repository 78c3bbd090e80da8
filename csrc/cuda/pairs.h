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

// Which image is whose positive, and which pairs are no negatives; all null for the diagonal.
struct Pairing {
  const int64_t *positive, *image_ids, *text_ids;  // [M], [N], [M]
};

// A number for every row in fp32 or fp64. The stride may be 0: the gradient of a sum is one number.
struct PerRow {
  const void* data;
  int64_t stride;
};

// Rows with any strides.
struct AnyRows {
  const void* data;
  int64_t rows, stride, column_stride;
};

// max_of_hinges_forward: loss, text_index and image_index [M].
void max_of_hinges(Type type, const ScoreParts& scores, const Pairing& pairing, double margin,
                   bool semihard, void* loss, int64_t* text_index, int64_t* image_index,
                   void* stream);

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
void max_of_hinges_gradient(Type type, const PerRow& grad, const int64_t* positive,
                            const int64_t* text_index, const int64_t* image_index,
                            const RowGradients& rows, void* stream);
void hardest_negatives_gradient(Type type, const PerRow& of_positive, const PerRow& of_text,
                                const PerRow& of_image, const int64_t* positive,
                                const int64_t* text_index, const int64_t* image_index,
                                const RowGradients& rows, void* stream);

}  // namespace itm::cuda
