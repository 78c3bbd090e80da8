// The operators over all pairs of a small batch, for sanitized.cpp: each against a loop. Five texts
// per image, unless the batch is square.

template <typename T>
struct SmallBatchProblem {
  using C = Wide<T>;
  Type type;
  int64_t N, M, D;
  std::vector<T> x, y;
  std::vector<int64_t> image_ids, text_ids;
  std::vector<C> parts;
  ScoreParts scores;
  Pairing pairing;

  SmallBatchProblem(Type type, int64_t N, int64_t M, int64_t D, std::mt19937& random)
      : type(type),
        N(N),
        M(M),
        D(D),
        x(numbers<T>(N * D, random)),
        y(numbers<T>(M * D, random)),
        image_ids(N),
        text_ids(M) {
    for (int64_t n = 0; n < N; ++n) image_ids[n] = n;
    for (int64_t m = 0; m < M; ++m) text_ids[m] = m % N;
    const DistancePlan plan = plan_distances(1, N, M, D);
    parts.resize(plan.parts * N * M);
    score_parts(type, matrix(x, N, D), matrix(y, M, D), D, plan, parts.data(), nullptr);
    scores = {parts.data(), plan.parts, N, M};
    pairing = N == M ? Pairing{} : Pairing{text_ids.data(), image_ids.data(), text_ids.data()};
  }

  double at(const std::vector<T>& rows, int64_t row, int64_t d) const {
    return widen(rows[row * D + d]);
  }
  double score(int64_t n, int64_t m) const {
    double sum = 0;
    for (int64_t d = 0; d < D; ++d) sum += at(x, n, d) * at(y, m, d);
    return sum;
  }

  RowGradients rows(std::vector<T>& to_x, std::vector<T>& to_y) const {
    to_x.resize(N * D), to_y.resize(M * D);
    return {{x.data(), N, D, 1}, {y.data(), M, D, 1}, D, to_x.data(), to_y.data()};
  }

  // Compares the gradients of rows with those derived from the gradients of scores, [N, M].
  void expect_gradients(const std::vector<double>& of_scores, const std::vector<T>& to_x,
                        const std::vector<T>& to_y) const {
    const auto compare = [&](const std::vector<T>& found, int64_t row, int64_t d, double sum) {
      // Sums of exponentials are not exact: the last bit of fp16 and bf16 may differ.
      const double bit = sizeof(T) == 2 ? std::abs(sum) / 128 : 0;
      const double off = widen(found[row * D + d]) - sum;
      expect(std::max(0.0, std::abs(off) - bit), 0, "gradient of scores");
    };
    for (int64_t d = 0; d < D; ++d) {
      for (int64_t n = 0; n < N; ++n) {
        double sum = 0;
        for (int64_t m = 0; m < M; ++m) sum += of_scores[n * M + m] * at(y, m, d);
        compare(to_x, n, d, sum);
      }
      for (int64_t m = 0; m < M; ++m) {
        double sum = 0;
        for (int64_t n = 0; n < N; ++n) sum += of_scores[n * M + m] * at(x, n, d);
        compare(to_y, m, d, sum);
      }
    }
  }

  // The same with a workspace, for sums over all pairs; `launch` receives the pointers.
  template <typename Launch>
  void expect_weighted(const std::vector<double>& of_scores, Launch&& launch) const {
    const int64_t most = std::max(N, M);
    std::vector<C> weights(N * M), of_rows(most), of_columns(most);
    std::vector<T> to_x(N * D), to_y(M * D);
    launch(Workspace{weights.data(), of_rows.data(), of_columns.data()},
           SideGradients{matrix(x, N, D), matrix(y, M, D), D, to_x.data(), to_y.data()});
    expect_gradients(of_scores, to_x, to_y);
  }

  void sum_of_hinges() const {
    const double margin = 4;
    std::vector<C> loss(M), kept(N * M), grad(M);
    itm::cuda::sum_of_hinges(type, scores, pairing, margin, loss.data(), kept.data(), nullptr);
    std::vector<double> of_scores(N * M);
    for (int64_t j = 0; j < M; ++j) {
      const int64_t i = j % N;
      grad[j] = C(1 + j % 3);
      double sum = 0;
      const auto visit = [&](int64_t n, int64_t m) {
        const double hinge = margin + score(n, m) - score(i, j);
        if (n == m % N || hinge <= 0) return;
        sum += hinge;
        of_scores[n * M + m] += grad[j];
        of_scores[i * M + j] -= grad[j];
      };
      for (int64_t m = 0; m < M; ++m) visit(i, m);
      for (int64_t n = 0; n < N; ++n) visit(n, j);
      expect(loss[j], sum, "sum of hinges");
    }
    expect_weighted(of_scores, [&](const Workspace& work, const SideGradients& to) {
      sum_of_hinges_gradient(type, {grad.data(), 1}, {kept.data(), 1, N, M}, pairing, margin, work,
                             to, nullptr);
    });
  }

  // Scores times 1/8: over all pairs, or over negatives, with the positives' logits separately.
  void log_sum_exp(bool of_negatives) const {
    const C scale = 0.125, one = 1;
    const Pairing ids{text_ids.data(), image_ids.data(), text_ids.data()};
    const Pairing pairs = of_negatives ? ids : Pairing{};
    std::vector<C> row(N), column(M), row_highest(N), column_highest(M), own(M), kept(N * M);
    itm::cuda::log_sum_exp(type, scores, pairs, &scale,
                           {row.data(), column.data(), row_highest.data(), column_highest.data(),
                            of_negatives ? own.data() : nullptr},
                           kept.data(), nullptr);
    std::vector<double> of_scores(N * M), of_row(N), of_column(M);
    double of_scale = 0;
    const auto left_out = [&](int64_t n, int64_t m) { return of_negatives && n == m % N; };
    for (int64_t n = 0; n < N; ++n)
      for (int64_t m = 0; m < M; ++m) {
        const double share = left_out(n, m) ? 0 : std::exp(0.125 * score(n, m));
        of_row[n] += share, of_column[m] += share;
      }
    for (int64_t n = 0; n < N; ++n)
      if (of_row[n] > 0) expect(row[n] + row_highest[n], std::log(of_row[n]), "log of a row");
    for (int64_t m = 0; m < M; ++m) {
      if (of_column[m] > 0)
        expect(column[m] + column_highest[m], std::log(of_column[m]), "of a column");
      if (of_negatives) expect(own[m], 0.125 * score(m % N, m), "a positive's logit");
    }
    for (int64_t k = 0; k < N * M; ++k) {
      const int64_t n = k / M, m = k % M;
      const double e = std::exp(0.125 * score(n, m));
      const double share = left_out(n, m) ? 1 : e / of_row[n] + e / of_column[m];
      of_scores[k] = 0.125 * share;
      of_scale += share * score(n, m);
    }
    C grad_scale;
    const auto gradient = [&](const Workspace& work, const SideGradients& to) {
      log_sum_exp_gradient(
          type, {&one, 0}, {&one, 0}, {&one, 0},
          {row.data(), column.data(), row_highest.data(), column_highest.data(), nullptr},
          {kept.data(), 1, N, M}, pairs, &scale, work, to, &grad_scale, nullptr);
    };
    expect_weighted(of_scores, gradient);
    expect(grad_scale, of_scale, "scale");
  }

  void sigmoid() const {
    const C scale = 0.125, bias = -0.5, one = 1;
    std::vector<C> loss(M), kept(N * M);
    itm::cuda::sigmoid(type, scores, pairing, &scale, &bias, loss.data(), kept.data(), nullptr);
    std::vector<double> of_scores(N * M), wanted(M);
    double of_scale = 0, of_bias = 0;
    for (int64_t k = 0; k < N * M; ++k) {
      const int64_t n = k / M, m = k % M;
      const double sign = n == m % N ? -1 : 1, own = score(n, m);
      const double e = std::exp(sign * (0.125 * own - 0.5)), share = sign * e / (1 + e);
      wanted[m] += std::log1p(e);
      of_scores[k] = 0.125 * share, of_scale += share * own, of_bias += share;
    }
    for (int64_t m = 0; m < M; ++m) expect(loss[m], wanted[m], "sigmoid");
    C grad_scale, grad_bias;
    expect_weighted(of_scores, [&](const Workspace& work, const SideGradients& to) {
      sigmoid_gradient(type, {&one, 0}, {kept.data(), 1, N, M}, pairing, &scale, &bias, work, to,
                       &grad_scale, &grad_bias, nullptr);
    });
    expect(grad_scale, of_scale, "scale");
    expect(grad_bias, of_bias, "bias");
  }

  void max_of_hinges() const {
    std::vector<C> loss(M), grad(M);
    std::vector<int64_t> text_index(M), image_index(M);
    unsigned ticket = 0;
    C total = 0;
    itm::cuda::max_of_hinges(type, scores, pairing, 0.25, false, loss.data(), text_index.data(),
                             image_index.data(), {0.5, &ticket, &total}, nullptr);
    std::vector<double> of_scores(N * M);
    double sum = 0;
    for (int64_t j = 0; j < M; ++j) {
      const int64_t i = j % N, text = text_index[j], image = image_index[j];
      grad[j] = C(1 + j % 3);
      double a = 0, b = 0;
      for (int64_t m = 0; m < M; ++m)
        if (m % N != i) a = std::max(a, 0.25 + score(i, m) - score(i, j));
      for (int64_t n = 0; n < N; ++n)
        if (n != i) b = std::max(b, 0.25 + score(n, j) - score(i, j));
      expect(loss[j], a + b, "max of hinges");
      sum += loss[j] / 2;
      if (text >= 0) of_scores[i * M + text] += grad[j];
      if (image >= 0) of_scores[image * M + j] += grad[j];
      of_scores[i * M + j] -= grad[j] * ((text >= 0) + (image >= 0));
    }
    std::vector<T> to_x, to_y;
    expect(total, sum, "total");
    max_of_hinges_gradient(type, {{grad.data(), 1}}, pairing.positive, text_index.data(),
                           image_index.data(), rows(to_x, to_y), nullptr);
    expect_gradients(of_scores, to_x, to_y);
  }

  void imc() const;  // in sanitized_small_batch_imc.inl

  void hardest_negatives() const {
    std::vector<C> positive(M), text_score(N), image_score(M);
    std::vector<int64_t> text_index(N), image_index(M);
    itm::cuda::hardest_negatives(type, scores, pairing,
                                 {positive.data(), text_score.data(), text_index.data(),
                                  image_score.data(), image_index.data()},
                                 nullptr);
    std::vector<double> of_scores(N * M);
    for (int64_t n = 0; n < N; ++n) {
      if (text_index[n] < 0) continue;
      expect(text_score[n], score(n, text_index[n]), "hardest text");
      of_scores[n * M + text_index[n]] += text_score[n];
    }
    for (int64_t m = 0; m < M; ++m) {
      of_scores[m % N * M + m] += positive[m];
      if (image_index[m] < 0) continue;
      expect(image_score[m], score(image_index[m], m), "hardest image");
      of_scores[image_index[m] * M + m] += image_score[m];
    }
    std::vector<T> to_x, to_y;
    hardest_negatives_gradient(type, {positive.data(), 1}, {text_score.data(), 1},
                               {image_score.data(), 1}, pairing.positive, text_index.data(),
                               image_index.data(), rows(to_x, to_y), nullptr);
    expect_gradients(of_scores, to_x, to_y);
  }
};

template <typename T>
void check_small_batch(Type type, std::mt19937& random) {
  // One pair; ragged blocks of both sides, with D in several parts.
  const int64_t sizes[][3] = {{1, 1, 4}, {9, 45, 68}, {35, 35, 516}};
  for (const auto& [N, M, D] : sizes) {
    const SmallBatchProblem<T> problem(type, N, M, D, random);
    problem.max_of_hinges();
    problem.hardest_negatives();
    problem.imc();
    problem.sum_of_hinges();
    for (const bool of_negatives : {false, true}) problem.log_sum_exp(of_negatives);
    problem.sigmoid();
  }
}
