// Operators of the namespace itm_testing, which only the tests call: the noise of sample_negatives
// word by word, screening without its fallback, and which cosines of cross attention are computed
// in fp64. They are part of the extension because they must run the code that is shipped, for the
// instruction set that is chosen; no public function and no list of operators includes them.

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <vector>

#include "aten/optional_ids.h"
#include "cpu/cross_attention.h"
#include "cpu/hardest_negatives.h"
#include "cpu/instruction_set.h"
#include "cpu/same_id.h"
#include "cpu/simd/philox.h"

namespace itm::cpu {
namespace {

// Returns the four words of Philox4x32-10.
std::vector<int64_t> philox(at::IntArrayRef counter, at::IntArrayRef key) {
  TORCH_CHECK(counter.size() == 4 && key.size() == 2);
  const auto word = [](int64_t value) { return static_cast<uint32_t>(value); };
  const auto w =
      simd::philox({word(counter[0]), word(counter[1]), word(counter[2]), word(counter[3])},
                   word(key[0]), word(key[1]));
  return {w.a, w.b, w.c, w.d};
}

// Returns the Gumbel noise of random words [N], in fp32.
Tensor gumbel(const Tensor& words) {
  const auto* word = words.const_data_ptr<int64_t>();
  const std::vector<uint32_t> narrow(word, word + words.numel());
  Tensor noise = at::empty({words.numel()}, words.options().dtype(at::kFloat));
  loop_table().gumbel(narrow.data(), noise.mutable_data_ptr<float>(), words.numel());
  return noise;
}

// Returns the results of hardest_negatives_forward, or nothing if screening gives up.
std::vector<Tensor> screened(const Tensor& image, const Tensor& text,
                             const OptionalTensor& image_ids, const OptionalTensor& text_ids) {
  const auto found = screened_negatives(image.contiguous(), text.contiguous(), nullptr,
                                        SameId(image_ids, text_ids));
  if (!found) return {};
  const auto& [positive, row, column] = *found;
  return {positive, row.value, row.index, column.value, column.index};
}

// Returns how many cosines of fp32 queries and what they attend to are computed in fp64.
int64_t cosines_in_double(const Tensor& context, const Tensor& query, double smooth) {
  const AttendedSets<float> p{{context, {}}, {query, {}}, {"none", smooth, "mean", 1}};
  SetTiles<float> tiles(p.context, p.query);
  int64_t exact = 0;
  for (const Span contexts : tiles.contexts)
    for (const Span queries : tiles.queries)
      exact += p.for_each_attention(tiles.computed(contexts, queries),
                                    grams_of(p.context, contexts), [](auto&&...) {});
  return exact;
}

TORCH_LIBRARY_FRAGMENT(itm_testing, m) {
  m.def("philox(int[] counter, int[] key) -> int[]", philox);
  m.def("cosines_in_double(Tensor context, Tensor query, float smooth) -> int", cosines_in_double);
  m.def("gumbel(Tensor words) -> Tensor", gumbel);
  m.def(
      "screened_negatives(Tensor image, Tensor text, Tensor? image_ids, Tensor? text_ids) -> "
      "Tensor[]",
      screened);
}

}  // namespace
}  // namespace itm::cpu
