#pragma once
// Launchers of max of hinges and of hardest negatives.

#include "cuda/small_batch/small_batch.h"

namespace itm::cuda {

// max_of_hinges_forward: loss, text_index and image_index [M].
void max_of_hinges(Type type, const ScoreParts& scores, const Pairing& pairing, double margin,
                   bool semihard, void* loss, int64_t* text_index, int64_t* image_index,
                   const Total& total, void* stream);

// The hardest negatives of texts [M] and of images [N].
struct HardestOut {
  void* positive;
  void* text_score;
  int64_t* text_index;
  void* image_score;
  int64_t* image_index;
};
void hardest_negatives(Type type, const ScoreParts& scores, const Pairing& pairing,
                       const HardestOut& to, void* stream);

// The rows of both sides and their gradients [N, D] and [M, D], in the type of the rows, from the
// gradients of the scores that indices select.
struct RowGradients {
  AnyRows image, text;
  int64_t D;
  void *to_image, *to_text;
};
// The gradient of a pair's loss: grad times a weight. With nan_if_unmatched, texts without an image
// get a gradient of NaN, and so does the first image.
struct LossGradient {
  PerRow grad;
  double weight = 1;
  bool nan_if_unmatched = false;
};
void max_of_hinges_gradient(Type type, const LossGradient& grad, const int64_t* positive,
                            const int64_t* text_index, const int64_t* image_index,
                            const RowGradients& rows, void* stream);
void hardest_negatives_gradient(Type type, const PerRow& of_positive, const PerRow& of_text,
                                const PerRow& of_image, const int64_t* positive,
                                const int64_t* text_index, const int64_t* image_index,
                                const RowGradients& rows, void* stream);

}  // namespace itm::cuda
