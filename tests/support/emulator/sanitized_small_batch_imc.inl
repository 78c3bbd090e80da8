// The max of hinges with bands over cosines, for sanitized.cpp: a loss and its gradients against
// loops.

// A band that holds half of all products, in addition to the hinges.
template <typename T>
void SmallBatchProblem<T>::imc() const {
  const Matrix rows[] = {matrix(x, N, D), matrix(y, M, D)};
  unsigned ticket = 7;
  DotProducts all{.of = {{rows[0], rows[1]}, {rows[0], rows[0]}, {rows[1], rows[1]}},
                  .count = 3,
                  .D = D,
                  .plan = {},
                  .ticket = &ticket};
  all.plan = plan_dot_products(all);
  std::vector<C> found[3], values(2 * M + N), violations(N);
  for (int i = 0; i < 3; ++i) {
    found[i].resize(all.plan.parts * all.of[i].x.rows * all.of[i].y.rows);
    all.of[i].parts = found[i].data();
  }
  dot_products(type, all, nullptr);
  std::vector<int64_t> text_index(M), image_index(M);
  std::vector<int32_t> hardest(N);
  std::vector<uint32_t> image_mask(N * ceil_div(N, 32)), text_mask(M * ceil_div(M, 32));
  const C grad = 2;
  C total = 0;
  const auto scores_of = [&](int i) {
    return ScoreParts{found[i].data(), all.plan.parts, all.of[i].x.rows, all.of[i].y.rows};
  };
  const Imc in{.scores = scores_of(0),
               .pairing = pairing,
               .image = {scores_of(1), pairing.image_ids, image_mask.data(), ceil_div(N, 32), 0.5},
               .text = {scores_of(2), pairing.text_ids, text_mask.data(), ceil_div(M, 32), 0.25},
               .margin = 0.25,
               .low = -90.06,
               .high = 0.06,
               .text_index = text_index.data(),
               .image_index = image_index.data(),
               .hardest_text = hardest.data(),
               .violations = violations.data(),
               .values = values.data(),
               .total = {1, &ticket, &total}};
  itm::cuda::imc(type, in, nullptr);
  std::vector<T> to_x(N * D), to_y(M * D);
  imc_gradient(type, in, &grad, {rows[0], rows[1], D, to_x.data(), to_y.data()}, nullptr);
  std::vector<double> wanted_x(N * D), wanted_y(M * D);
  double sum = 0;
  const auto add = [&](int64_t i, int64_t j, double weight) {
    for (int64_t d = 0; d < D; ++d) {
      wanted_x[i * D + d] += weight * at(y, j, d);
      wanted_y[j * D + d] += weight * at(x, i, d);
    }
  };
  for (int64_t j = 0; j < M; ++j) {
    const int64_t i = j % N;
    sum += values[j];
    if (text_index[j] >= 0) add(i, text_index[j], 2), add(i, j, -2);
    if (image_index[j] >= 0) add(image_index[j], j, 2), add(i, j, -2);
  }
  const auto band = [&](const std::vector<T>& of, int64_t rows, const std::vector<int64_t>& ids,
                        double weight, std::vector<double>& wanted) {
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t m = 0; m < rows; ++m) {
        double product = 0;
        for (int64_t d = 0; d < D; ++d) product += at(of, n, d) * at(of, m, d);
        if (ids[n] == ids[m] || product <= -90.06 || product >= 0.06) continue;
        sum += weight * product;
        for (int64_t d = 0; d < D; ++d) wanted[n * D + d] += 4 * weight * at(of, m, d);
      }
  };
  band(x, N, image_ids, 0.5, wanted_x), band(y, M, text_ids, 0.25, wanted_y);
  expect(total, sum, "total with bands");
  const auto compare = [&](const std::vector<T>& grads, const std::vector<double>& wanted) {
    for (size_t k = 0; k < wanted.size(); ++k) {
      T rounded;
      narrow(static_cast<C>(wanted[k]), rounded);
      expect(widen(grads[k]), widen(rounded), "gradient with bands");
    }
  };
  compare(to_x, wanted_x), compare(to_y, wanted_y);
}
