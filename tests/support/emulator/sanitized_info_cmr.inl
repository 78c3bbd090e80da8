// InfoCMR as one operator, for sanitized.cpp: all launches, and the loss and a gradient against
// loops. Vectors are compared as sums of members by attention; with a kernel associative memory
// only the sanitizers check the accesses.

template <typename T>
struct CmrProblem {
  using C = Wide<T>;
  Type type;
  int64_t N, M, D, K, Z;
  std::vector<T> image, text, noise;
  std::vector<double> unit, norm;
  std::vector<int64_t> positive, image_ids, text_ids;
  std::vector<float> draws;
  std::vector<std::vector<double>> numbers_of;  // workspace
  std::vector<std::vector<int32_t>> lists;
  std::vector<int64_t> assignment[2];
  unsigned ticket = 7;
  C total = 0, of_scale = 0;
  Cmr cmr{};

  CmrProblem(Type type, int64_t N, int64_t M, int64_t D, int64_t K, int64_t Z, std::mt19937& random)
      : type(type),
        N(N),
        M(M),
        D(D),
        K(K),
        Z(Z),
        image(numbers<T>(N * D, random)),
        text(numbers<T>(M * D, random)),
        noise(numbers<T>(Z * D, random)),
        unit((N + M + Z) * D),
        norm(N + M + Z),
        draws(K * std::max(N, M)) {
    for (int64_t j = 0; j < M; ++j) positive.push_back(j % N), text_ids.push_back(3 * (j % N));
    for (int64_t i = 0; i < N; ++i) image_ids.push_back(3 * i);
    for (float& draw : draws) draw = 1 + static_cast<float>(random() % 1024) / 1024;
  }

  double* workspace(int64_t size) { return numbers_of.emplace_back(size).data(); }
  int32_t* list(int64_t size) { return lists.emplace_back(size).data(); }
  double cosine(int64_t a, int64_t b) const {  // of two rows of the three matrices
    double sum = 0;
    for (int64_t d = 0; d < D; ++d) sum += unit[a * D + d] * unit[b * D + d];
    return sum;
  }

  void run(bool kam) {
    const auto any = [&](const std::vector<T>& rows) {
      return AnyRows{rows.data(), static_cast<int64_t>(rows.size()) / D, D, 1};
    };
    cmr_unit_rows(type, {{any(image), any(text), any(noise)}, D, D, unit.data(), norm.data()},
                  nullptr);
    const auto rows = [&](int64_t first, int64_t count) {
      return Matrix{unit.data() + first * D, count, D, 0};
    };
    const Matrix v = rows(0, N), c = rows(N, M), g = rows(N + M, Z);
    DotProducts all{.of = {}, .count = 0, .D = D, .plan = {}, .ticket = &ticket};
    for (const auto& [x, y] : {std::pair{v, c}, {v, v}, {c, c}, {v, g}, {c, g}})
      if (y.rows) all.of[all.count++] = {.x = x, .y = y};
    all.plan = plan_dot_products(all);
    ScoreParts scores[5] = {{}, {}, {}, {nullptr, 1, N, 0}, {nullptr, 1, M, 0}};
    for (int i = 0; i < all.count; ++i) {
      DotProduct& of = all.of[i];
      of.parts = workspace(all.plan.parts * of.x.rows * of.y.rows);
      scores[i] = {of.parts, all.plan.parts, of.x.rows, of.y.rows};
    }
    dot_products(Type::kDouble, all, nullptr);
    for (int side = 0; side < 2; ++side) {
      const int64_t own = side ? M : N, others = N + M - own;
      assignment[side].resize(own);
      (side ? cmr.text : cmr.image) = CmrSide{.rows = own,
                                              .ids = (side ? text_ids : image_ids).data(),
                                              .norm = norm.data() + side * N,
                                              .noise = scores[3 + side],
                                              .gram = scores[1 + side],
                                              .draws = draws.data(),
                                              .added = workspace(own * own),
                                              .assignment = assignment[side].data(),
                                              .order = list(2 * own),
                                              .span = list(4 * K),
                                              .score = workspace(K * own),
                                              .half_square = workspace(K),
                                              .inverse = kam ? workspace(own * own) : nullptr,
                                              .sweep = workspace(2 * own),
                                              .cosine = workspace(own * K),
                                              .factor = workspace(own * K),
                                              .weight = workspace(own * others)};
    }
    cmr.cosines = scores[0], cmr.positive = positive.data();
    cmr.clusters = K, cmr.iterations = 3;
    cmr.sigma = 0.5, cmr.ridge = 1e-2, cmr.scale.value = 2, cmr.weight = 0.5;
    cmr.anchors = workspace(4 * (N + M)), cmr.loss = workspace(N + M),
    cmr.of_scale = workspace(N + M);
    cmr.ticket = &ticket, cmr.total = &total, cmr.scale_grad = &of_scale;
    cmr_cluster(cmr, nullptr);
    cmr_total(type, cmr, nullptr);
  }

  // The sum of e^logit over an anchor's negatives.
  double negatives(int64_t anchor) const {
    const bool is_image = anchor < N;
    const int64_t first = is_image ? N : 0, count = is_image ? M : N;
    const auto id = [&](int64_t row) { return row < N ? image_ids[row] : text_ids[row - N]; };
    double sum = 0;
    for (int64_t m = first; m < first + count; ++m)
      if (id(m) != id(anchor)) sum += std::exp(2 * cosine(anchor, m));
    for (int64_t z = N + M; z < N + M + Z; ++z) sum += std::exp(2 * cosine(anchor, z));
    for (int64_t k = 0; k < K; ++k) {
      std::vector<double> vector(D);
      double dot = 0, square = 0;
      bool any = false;
      for (int64_t m = first; m < first + count; ++m) {
        if (assignment[is_image][m - first] != k || id(m) == id(anchor)) continue;
        any = true;
        for (int64_t d = 0; d < D; ++d)
          vector[d] += std::exp((cosine(anchor, m) - cosine(m, m) / 2) / 0.25) * unit[m * D + d];
      }
      for (int64_t d = 0; d < D; ++d)
        dot += vector[d] * unit[anchor * D + d], square += vector[d] * vector[d];
      if (any) sum += std::exp(square > 0 ? 2 * dot / std::sqrt(square) : 0);
    }
    return sum;
  }

  void expect_total() const {
    double sum = 0;
    for (int64_t j = 0; j < M; ++j)
      for (const int64_t anchor : {positive[j], N + j}) {
        const double logit = 2 * cosine(positive[j], N + j);
        sum += std::log1p(negatives(anchor) / std::exp(logit));
      }
    expect(total, sum / 2, "InfoCMR");
  }

  void expect_gradient() {
    std::vector<C> of_image(N * (M + Z)), of_text((N + Z) * M), along(N + M), inverse(N + M);
    std::vector<T> to_image(N * D), to_text(M * D);
    cmr_score_gradient(
        type, cmr,
        {norm.data() + N + M, of_image.data(), of_text.data(), along.data(), inverse.data()},
        nullptr);
    const C grad = 3;
    C to_scale = 0;
    cmr_gradient(type,
                 {of_image.data(), of_text.data(), along.data(), inverse.data(),
                  matrix(noise, Z, D), &grad, &of_scale, &to_scale},
                 {matrix(image, N, D), matrix(text, M, D), D, to_image.data(), to_text.data()},
                 nullptr);
    expect(to_scale, 3 * of_scale, "gradient of the scale");
    for (int64_t i = 0; i < N * D; ++i) {
      double sum = -along[i / D] * inverse[i / D] * widen(image[i]);
      for (int64_t j = 0; j < M + Z; ++j)
        sum += of_image[i / D * (M + Z) + j] *
               widen(j < M ? text[j * D + i % D] : noise[(j - M) * D + i % D]);
      T wanted;
      narrow(static_cast<C>(3 * sum * inverse[i / D]), wanted);
      expect(widen(to_image[i]), widen(wanted), "gradient of an image");
    }
  }
};

template <typename T>
void check_info_cmr(Type type, int64_t N, int64_t M, int64_t D, int64_t K, int64_t Z,
                    std::mt19937& random) {
  for (const bool kam : {false, true}) {
    CmrProblem<T> problem(type, N, M, D, K, Z, random);
    problem.run(kam);
    if (!kam) problem.expect_total();
    problem.expect_gradient();
  }
}
