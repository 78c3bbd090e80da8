// InfoCMR of a small batch as one operator, on CUDA: six launches forward, the last of which
// computes the weights of the gradient, and one launch backward.

#include "cuda/small_batch/contrastive_binding.h"
#include "cuda/small_batch/info_cmr.h"

namespace itm::cuda {
namespace {

// Allocates from one block of memory. Without memory, it only counts the bytes.
class Arena {
 public:
  explicit Arena(char* base = nullptr) : base_(base) {}
  template <typename T>
  T* take(int64_t count) {
    char* const at = base_ ? base_ + used_ : nullptr;
    used_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), 16) * 16;
    return reinterpret_cast<T*>(at);
  }
  int64_t used() const { return used_; }

 private:
  static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
  char* base_;
  int64_t used_ = 0;
};

// Operands of all launches of a step.
struct Step {
  CmrUnitRows units{};
  DotProducts all{};
  Cmr cmr{};
  CmrScoreWeights weights{};

  // Lays out the rows of both sides and of the noise, and everything that is computed from them.
  void lay_out(Arena& arena, const Tensor& image, const Tensor& text, const OptionalTensor& noise,
               bool kam, bool gradients) {
    const int64_t N = image.size(0), M = text.size(0), D = image.size(1), K = cmr.clusters;
    const int64_t Z = noise.has_value() ? noise->size(0) : 0, padded = (D + 3) / 4 * 4;
    units = {{any_rows_of(image), any_rows_of(text)},
             D,
             padded,
             arena.take<double>((N + M + Z) * padded),
             arena.take<double>(N + M + Z)};
    if (Z) units.of[2] = any_rows_of(*noise);
    const auto unit = [&](int64_t first, int64_t rows) {
      return Matrix{units.unit + first * padded, rows, padded, 0};
    };
    const Matrix of_image = unit(0, N), of_text = unit(N, M), of_noise = unit(N + M, Z);
    all = {};
    all.D = padded;
    const auto product = [&](const Matrix& x, const Matrix& y) { all.of[all.count++] = {x, y}; };
    product(of_image, of_text);
    if (Z) product(of_image, of_noise), product(of_text, of_noise);
    if (K) product(of_image, of_image), product(of_text, of_text);
    all.plan = plan_dot_products(all);
    all.ticket = cmr.ticket = arena.take<unsigned>(1);
    for (int i = 0; i < all.count; ++i)
      all.of[i].parts = arena.take<double>(all.plan.parts * all.of[i].x.rows * all.of[i].y.rows);
    const auto scores = [&](int i) {
      return ScoreParts{all.of[i].parts, all.plan.parts, all.of[i].x.rows, all.of[i].y.rows};
    };
    cmr.cosines = scores(0);
    cmr.image.noise = Z ? scores(1) : ScoreParts{nullptr, 1, N, 0};
    cmr.text.noise = Z ? scores(2) : ScoreParts{nullptr, 1, M, 0};
    cmr.image.rows = N, cmr.text.rows = M;
    cmr.image.norm = units.norm, cmr.text.norm = units.norm + N;
    weights.noise_norm = units.norm + N + M;
    for (CmrSide* side : {&cmr.image, &cmr.text}) {
      const int64_t rows = side->rows, others = N + M - rows;
      if (!K) continue;
      side->gram = scores(all.count - (side == &cmr.image ? 2 : 1));
      side->added = arena.take<double>(all.plan.parts > 1 ? rows * rows : 0);
      side->assignment = arena.take<int64_t>(rows);
      side->order = arena.take<int32_t>(2 * rows), side->span = arena.take<int32_t>(4 * K);
      side->score = arena.take<double>(K * rows), side->half_square = arena.take<double>(K);
      if (kam) side->inverse = arena.take<double>(rows * rows);
      if (kam) side->sweep = arena.take<double>(2 * rows);
      side->cosine = arena.take<double>(rows * K), side->factor = arena.take<double>(rows * K);
      if (gradients) side->weight = arena.take<double>(rows * others);
    }
    cmr.anchors = arena.take<double>(4 * (N + M));
    cmr.loss = arena.take<double>(N + M), cmr.of_scale = arena.take<double>(N + M);
  }
};

OptionalTensor draws_of(const OptionalTensor& draws) {
  return draws.has_value() ? OptionalTensor(draws->to(at::kFloat).contiguous()) : draws;
}

using Found = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Found info_cmr_total_forward(const Tensor& image, const Tensor& text, const OptionalTensor& learnt,
                             const OptionalTensor& noise, const OptionalTensor& image_draws,
                             const OptionalTensor& text_draws, const OptionalTensor& positive,
                             const OptionalTensor& image_ids, const OptionalTensor& text_ids,
                             double scale, int64_t num_clusters, int64_t iterations, double sigma,
                             std::string_view weights, double ridge, double weight,
                             bool gradients) {
  const OnDevice device(image);
  const int64_t N = image.size(0), M = text.size(0);
  const int64_t Z = noise.has_value() ? noise->size(0) : 0;
  TORCH_CHECK(std::max({N, M, Z}) <= kMostRows, "itm_kernels: ", N, " x ", M, " rows and ", Z,
              " of noise; the CUDA kernels of InfoCMR accept up to ", kMostRows, " of each");
  const PairIds ids(positive, image_ids, text_ids);
  const OptionalTensor of_images = draws_of(image_draws), of_texts = draws_of(text_draws);
  const ScalarTensor factor(learnt, scale, image);
  const auto wide = image.options().dtype(wide_type(image));
  Tensor total = at::empty({}, wide), of_scale = at::empty({}, wide);
  Tensor of_image = at::empty({gradients ? N : 0, M + Z}, wide);
  Tensor of_text = at::empty({gradients ? N + Z : 0, M}, wide);
  Tensor of_rows = at::empty({2, gradients ? N + M : 0}, wide);

  Step step;
  step.cmr.clusters = num_clusters, step.cmr.iterations = iterations;
  const auto lay_out = [&](Arena arena) {
    step.lay_out(arena, image, text, noise, weights == "kam", gradients);
    return arena.used();
  };
  const Tensor memory =
      at::empty({lay_out(Arena()) / int64_t{sizeof(double)}}, image.options().dtype(at::kDouble));
  lay_out(Arena(static_cast<char*>(memory.mutable_data_ptr())));
  Cmr& cmr = step.cmr;
  const Pairing pairing = ids.at();
  cmr.positive = pairing.positive;
  cmr.image.ids = pairing.image_ids, cmr.text.ids = pairing.text_ids;
  if (of_images.has_value()) cmr.image.draws = of_images->const_data_ptr<float>();
  if (of_texts.has_value()) cmr.text.draws = of_texts->const_data_ptr<float>();
  cmr.sigma = sigma, cmr.ridge = ridge, cmr.weight = weight;
  cmr.scale = factor.at();
  cmr.total = total.mutable_data_ptr(), cmr.scale_grad = of_scale.mutable_data_ptr();

  const Type type = type_of(image);
  cmr_unit_rows(type, step.units, device.stream());
  device.check_launch();
  dot_products(Type::kDouble, step.all, device.stream());
  device.check_launch();
  if (num_clusters) {
    cmr_cluster(cmr, device.stream());
    device.check_launch();
  }
  cmr_total(type, cmr, device.stream());
  device.check_launch();
  if (gradients) {
    step.weights.of_image = of_image.mutable_data_ptr();
    step.weights.of_text = of_text.mutable_data_ptr();
    step.weights.along = of_rows.mutable_data_ptr();
    step.weights.inverse = of_rows.select(0, 1).mutable_data_ptr();
    cmr_score_gradient(type, cmr, step.weights, device.stream());
    device.check_launch();
  }
  return {total, of_image, of_text, of_rows, of_scale};
}

std::tuple<Tensor, Tensor, Tensor> info_cmr_total_backward(
    const Tensor& grad, const Tensor& image, const Tensor& text, const OptionalTensor& noise,
    const Tensor& of_image, const Tensor& of_text, const Tensor& of_rows, const Tensor& of_scale) {
  const OnDevice device(image);
  const Tensor x = pad_to_four(image.unsqueeze(0)), y = pad_to_four(text.unsqueeze(0));
  const Tensor z = noise.has_value() ? pad_to_four(noise->unsqueeze(0)) : Tensor();
  const Tensor total_grad = grad.to(wide_type(image));
  Tensor to_image = at::empty(image.sizes(), image.options());
  Tensor to_text = at::empty(text.sizes(), text.options());
  Tensor to_scale = at::empty({}, of_scale.options());
  const Tensor kept[] = {of_image.contiguous(), of_text.contiguous(), of_rows.contiguous()};
  cmr_gradient(type_of(image),
               {.of_image = kept[0].const_data_ptr(),
                .of_text = kept[1].const_data_ptr(),
                .along = kept[2].const_data_ptr(),
                .inverse = kept[2].select(0, 1).const_data_ptr(),
                .noise = z.defined() ? matrix_of(z) : Matrix{},
                .grad = total_grad.const_data_ptr(),
                .of_scale = of_scale.const_data_ptr(),
                .to_scale = to_scale.mutable_data_ptr()},
               {matrix_of(x), matrix_of(y), image.size(1), to_image.mutable_data_ptr(),
                to_text.mutable_data_ptr()},
               device.stream());
  device.check_launch();
  return {to_image, to_text, to_scale};
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("info_cmr_total_forward", info_cmr_total_forward);
  m.impl("info_cmr_total_backward", info_cmr_total_backward);
}

}  // namespace
}  // namespace itm::cuda
