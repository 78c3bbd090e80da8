// Contrastive losses as one operator, for sanitized.cpp: the total and the gradients of rows, scale
// and bias against loops. Five texts per image, unless the batch is square.

template <typename T>
struct ContrastProblem {
  using C = Wide<T>;
  Type type;
  int64_t N, M, D, parts = 0;
  std::vector<T> x, y;
  std::vector<int64_t> image_ids, text_ids;
  std::vector<C> products, x_squares, y_squares;
  std::vector<double> x_norm, y_norm, cosines;
  unsigned ticket = 7;
  const C scale = 3, bias = -0.5, grad = 2;
  const double weight = 0.25;

  ContrastProblem(Type type, int64_t N, int64_t M, int64_t D, std::mt19937& random)
      : type(type),
        N(N),
        M(M),
        D(D),
        x(numbers<T>(N * D, random)),
        y(numbers<T>(M * D, random)),
        image_ids(N),
        text_ids(M),
        x_norm(N),
        y_norm(M),
        cosines(N * M) {
    for (int64_t n = 0; n < N; ++n) image_ids[n] = n;
    for (int64_t m = 0; m < M; ++m) text_ids[m] = m % N;
    DotProducts all{.of = {{matrix(x, N, D), matrix(y, M, D)}}, .count = 1, .D = D, .plan = {}};
    all.ticket = &ticket;
    all.plan = plan_dot_products(all);
    parts = all.plan.parts;
    products.resize(parts * N * M), x_squares.resize(parts * N), y_squares.resize(parts * M);
    all.of[0].parts = products.data();
    all.of[0].x_squares = x_squares.data(), all.of[0].y_squares = y_squares.data();
    itm::cuda::dot_products(type, all, nullptr);
    for (int64_t n = 0; n < N; ++n) x_norm[n] = std::sqrt(product(x, n, x, n));
    for (int64_t m = 0; m < M; ++m) y_norm[m] = std::sqrt(product(y, m, y, m));
    for (int64_t i = 0; i < N * M; ++i)
      cosines[i] = product(x, i / M, y, i % M) / x_norm[i / M] / y_norm[i % M];
  }

  double product(const std::vector<T>& a, int64_t n, const std::vector<T>& b, int64_t m) const {
    double sum = 0;
    for (int64_t d = 0; d < D; ++d)
      sum += static_cast<double>(widen(a[n * D + d])) * widen(b[m * D + d]);
    return sum;
  }
  Pairing pairing() const {
    return N == M ? Pairing{} : Pairing{text_ids.data(), image_ids.data(), text_ids.data()};
  }
  CosineParts from() const {
    return {{products.data(), parts, N, M}, x_squares.data(), y_squares.data()};
  }

  // Runs a loss's launchers and compares the total and the gradients derived from those of all
  // cosines.
  template <typename Forward, typename Backward>
  void expect_loss(double wanted, const std::vector<double>& of_cosines, double wanted_of_scale,
                   double wanted_of_bias, int64_t numbers_of_anchor, Forward&& forward,
                   Backward&& backward) {
    const int64_t most = std::max(N, M);
    C total, of_scale, of_bias = 0, to_scale, to_bias = 0;
    std::vector<C> scores(N * M), of_anchors(3 * most);
    std::vector<Four<C>> anchors(N + M);  // aligned, like a tensor
    std::vector<C> inverses(N + M);
    void* const left =
        numbers_of_anchor == 4 ? static_cast<void*>(anchors.data()) : inverses.data();
    forward(ContrastiveResult{weight, &ticket, &total, &of_scale, &of_bias, scores.data(), left,
                              of_anchors.data()});
    expect(total, wanted, "total");
    for (int64_t i = 0; i < N * M; ++i) expect(scores[i], cosines[i], "cosine");
    std::vector<T> to_x(N * D), to_y(M * D);
    backward(ContrastiveGradient{&grad,
                                 &of_scale,
                                 &of_bias,
                                 scores.data(),
                                 left,
                                 weight,
                                 true,
                                 {matrix(x, N, D), matrix(y, M, D), D, to_x.data(), to_y.data()},
                                 &to_scale,
                                 &to_bias});
    expect(to_scale, grad * wanted_of_scale, "scale");
    expect(to_bias, grad * wanted_of_bias, "bias");
    const auto compare = [&](bool of_x, int64_t own, int64_t d) {
      const auto& mine = of_x ? x : y;
      const auto& others = of_x ? y : x;
      const auto &own_norm = of_x ? x_norm : y_norm, &norm = of_x ? y_norm : x_norm;
      double sum = 0;
      for (int64_t other = 0; other < (of_x ? M : N); ++other) {
        const int64_t i = of_x ? own * M + other : other * M + own;
        sum += of_cosines[i] * (widen(others[other * D + d]) / norm[other] -
                                cosines[i] * widen(mine[own * D + d]) / own_norm[own]);
      }
      sum *= grad / own_norm[own];
      const double bit = sizeof(T) == 2 ? std::abs(sum) / 128 : 0;
      const double off = widen((of_x ? to_x : to_y)[own * D + d]) - sum;
      expect(std::max(0.0, std::abs(off) - bit), 0, "gradient of a row");
    };
    for (int64_t d = 0; d < D; ++d) {
      for (int64_t n = 0; n < N; ++n) compare(true, n, d);
      for (int64_t m = 0; m < M; ++m) compare(false, m, d);
    }
  }

  void info_nce() {
    std::vector<double> row(N), column(M), of_cosines(N * M);
    double total = 0, of_scale = 0;
    const auto e = [&](int64_t i) { return std::exp(scale * cosines[i]); };
    for (int64_t i = 0; i < N * M; ++i) row[i / M] += e(i), column[i % M] += e(i);
    std::vector<double> row_share(N), row_own(N);  // a row's positives are excluded from its sum
    for (int64_t m = 0; m < M; ++m) row_own[m % N] += e(m % N * M + m);
    const auto negatives = [&](int64_t n) { return row[n] - row_own[n]; };
    for (int64_t m = 0; m < M; ++m) {
      const int64_t i = m % N * M + m;
      const double others = negatives(m % N);
      total += std::log1p(others / e(i)) + std::log(column[m] / e(i));
      const double share = others / (others + e(i)), of_column = 1 - e(i) / column[m];
      row_share[m % N] += share;
      of_cosines[i] -= share + of_column;
      for (int64_t n = 0; n < N; ++n)
        if (n != m % N) of_cosines[n * M + m] += e(n * M + m) / column[m];
    }
    for (int64_t i = 0; i < N * M; ++i)
      if (i / M != i % M % N) of_cosines[i] += row_share[i / M] * e(i) / negatives(i / M);
    for (int64_t i = 0; i < N * M; ++i)
      of_scale += weight * of_cosines[i] * cosines[i], of_cosines[i] *= weight * scale;
    expect_loss(
        weight * total, of_cosines, of_scale, 0, 4,
        [&](const ContrastiveResult& to) {
          itm::cuda::info_nce(type, from(), pairing(), {&scale, 0}, to, nullptr);
        },
        [&](const ContrastiveGradient& gradient) {
          info_nce_gradient(type, pairing(), {nullptr, scale}, gradient, nullptr);
        });
  }

  void sigmoid() {
    std::vector<double> of_cosines(N * M);
    double total = 0, of_scale = 0, of_bias = 0;
    for (int64_t i = 0; i < N * M; ++i) {
      const double sign = i / M == i % M % N ? -1 : 1;
      const double e = std::exp(sign * (scale * cosines[i] + bias));
      const double slope = weight * sign * e / (1 + e);
      total += weight * std::log1p(e);
      of_scale += slope * cosines[i], of_bias += slope, of_cosines[i] = scale * slope;
    }
    ticket = 0;
    expect_loss(
        total, of_cosines, of_scale, of_bias, 1,
        [&](const ContrastiveResult& to) {
          sigmoid_total(type, from(), pairing(), {nullptr, scale}, {&bias, 0}, to, nullptr);
        },
        [&](const ContrastiveGradient& gradient) {
          sigmoid_total_gradient(type, pairing(), {&scale, 0}, {nullptr, bias}, gradient, nullptr);
        });
  }
};

template <typename T>
void check_contrast(Type type, std::mt19937& random) {
  // One pair; ragged blocks of both sides, with D in several parts.
  const int64_t sizes[][3] = {{1, 1, 4}, {9, 45, 68}, {35, 35, 516}};
  for (const auto& [N, M, D] : sizes) {
    ContrastProblem<T> problem(type, N, M, D, random);
    problem.info_nce();
    problem.sigmoid();
  }
}
