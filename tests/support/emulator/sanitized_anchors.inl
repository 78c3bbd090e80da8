// k-means, synthesis and bands of stored scores, for sanitized.cpp.

// Two problems with rows of multiples of 1/8: one iteration from their first rows.
template <typename T>
void check_kmeans(Type type, int64_t M, int64_t K, int64_t D, std::mt19937& random) {
  using C = Wide<T>;
  const auto x = numbers<T>(M * D, random);
  const DistancePlan plan = plan_distances(1, M, M, D);
  std::vector<C> parts(plan.parts * M * M), product(M * M);
  std::vector<C> centroids(2 * K * D), half(2 * K), score(2 * K * M);
  for (int64_t i = 0; i < 2 * K * D; ++i) centroids[i] = widen(x[i % (M * D)]);
  std::vector<int64_t> assignment(2 * M);
  std::vector<int32_t> order(4 * M), span(8 * K);
  const auto member = std::make_unique<bool[]>(2 * M);
  for (int64_t i = 0; i < 2 * M; ++i) member[i] = i % 5 != 0;
  score_parts(type, matrix(x, M, D), matrix(x, M, D), D, plan, parts.data(), nullptr);
  add_parts(type, {parts.data(), plan.parts, M, M}, product.data(), nullptr);
  kmeans(type, matrix(x, M, D), D,
         {2, K, 1, product.data(), member.get(), centroids.data(), assignment.data(), score.data(),
          half.data(), order.data(), span.data()},
         nullptr);
  for (int64_t i = 0; i < 2 * M; ++i) {
    expect(assignment[i] < 0, !member[i], "member");
    if (assignment[i] < 0) continue;
    const auto score = [&](int64_t k) {
      double sum = 0;
      for (int64_t d = 0; d < D; ++d) {
        const double c = centroids[(i / M * K + k) * D + d];
        sum += (widen(x[i % M * D + d]) - c / 2) * c;
      }
      return sum;
    };
    double best = score(0);
    for (int64_t k = 1; k < K; ++k) best = std::max(best, score(k));
    expect(score(assignment[i]), best, "nearest");
  }
}

// Two problems with rows of multiples of 1/8, so that distances are exact: each centroid is the row
// of the largest distance / draw.
template <typename T>
void check_kmeans_plus_plus(Type type, int64_t M, int64_t K, int64_t D, std::mt19937& random) {
  using C = Wide<T>;
  const auto x = numbers<T>(M * D, random);
  std::vector<float> draws(K * M);
  for (float& draw : draws) draw = 1 + static_cast<float>(random() % 1024) / 1024;
  const DistancePlan plan = plan_distances(1, M, M, D);
  std::vector<C> squares(plan.parts * M * M), centroids(2 * K * D);
  const auto member = std::make_unique<bool[]>(2 * M);
  for (int64_t i = 0; i < 2 * M; ++i) member[i] = i % 5 != 0;
  square_parts(type, matrix(x, M, D), matrix(x, M, D), D, plan, squares.data(), nullptr);
  kmeans_plus_plus(type, {x.data(), M, D, 1}, D, {squares.data(), plan.parts, M, M},
                   {2, K, member.get(), draws.data(), centroids.data()}, nullptr);
  for (int64_t problem = 0; problem < 2; ++problem) {
    const C* const own = centroids.data() + problem * K * D;
    for (int64_t k = 0; k < K; ++k) {
      C most = -1;
      int64_t row = 0;
      for (int64_t m = 0; m < M; ++m) {
        C nearest = member[problem * M + m];
        for (int64_t before = 0; before < k && nearest > 0; ++before) {
          C square = 0;
          for (int64_t d = 0; d < D; ++d) {
            const C gap = widen(x[m * D + d]) - own[before * D + d];
            square += gap * gap;
          }
          nearest = before == 0 ? square : std::min(nearest, square);
        }
        if (nearest / draws[k * M + m] > most) most = nearest / draws[k * M + m], row = m;
      }
      for (int64_t d = 0; d < D; ++d) expect(own[k * D + d], widen(x[row * D + d]), "centroid");
    }
  }
}

// Synthesis with a kernel associative memory and one clustering per anchor: softmax, kernel
// matrices and vectors, then both gradients, whose memory accesses only the sanitizers check.
template <typename T>
void check_synthesis(Type type, int64_t N, int64_t M, int64_t K, int64_t D, std::mt19937& random) {
  using C = Wide<T>;
  const auto q = numbers<T>(N * D, random), x = numbers<T>(M * D, random);
  std::vector<int64_t> assignment(N * M), anchor_ids(N), member_ids(M);
  for (int64_t i = 0; i < N * M; ++i) assignment[i] = i % (K + 1) - (K > 1);
  for (int64_t m = 0; m < M; ++m) member_ids[m] = m % N;
  for (int64_t n = 0; n < N; ++n) anchor_ids[n] = n;
  const double sigma = std::sqrt(D), ridge = 0.01;
  std::vector<double> distance(M * M), inverse(N * M * M), sweep(2 * N * M), weights(N * M);
  for (int64_t i = 0; i < M * M; ++i)
    for (int64_t d = 0; d < D; ++d)
      distance[i] += std::pow(widen(x[i / M * D + d]) - widen(x[i % M * D + d]), 2);
  std::vector<int32_t> order(N * M), span(2 * N * K);
  std::vector<C> khat(N * M), vectors(N * K * D), cosines(N * K);
  const auto valid = std::make_unique<bool[]>(N * K);
  const SynthesisRound round{.type = type,
                             .anchors = matrix(q, N, D),
                             .members = matrix(x, M, D),
                             .D = D,
                             .clusters = K,
                             .assignment = assignment.data(),
                             .per_anchor = true,
                             .anchor_ids = anchor_ids.data(),
                             .member_ids = member_ids.data(),
                             .sigma = sigma,
                             .ridge = ridge,
                             .order = order.data(),
                             .span = span.data(),
                             .valid = valid.get(),
                             .khat = khat.data(),
                             .distance = distance.data(),
                             .inverse = inverse.data(),
                             .sweep = sweep.data(),
                             .weights = weights.data()};
  list_members(round, nullptr);
  kam_solve(round, nullptr);
  synthesise(round, vectors.data(), nullptr, nullptr);
  synthesise(round, nullptr, cosines.data(), nullptr);
  for (int64_t i = 0; i < N * M; ++i) {
    const int64_t n = i / M, m = i % M, k = assignment[i];
    if (k < 0 || k >= K) continue;
    double sum = ridge * weights[i];
    for (int64_t j = 0; j < M; ++j)
      if (assignment[n * M + j] == k)
        sum += std::exp(-distance[m * M + j] / (2 * sigma * sigma)) * weights[n * M + j];
    expect(sum, khat[i], "system");
  }
  for (int64_t i = 0; i < N * K * D; ++i) {
    double sum = 0;
    for (int64_t m = 0; m < M; ++m)
      if (assignment[i / K / D * M + m] == i / D % K)
        sum += weights[i / K / D * M + m] * widen(x[m * D + i % D]);
    expect(vectors[i], sum, "vector");
  }
  std::vector<C> alpha(2 * N * K), grad_scores(N * M), member_weights(N * M), grad_anchors(N * D);
  std::vector<C> grad_members(M * D), grad_vectors(N * K * D);
  std::vector<double> grad_khat(N * M), grad_kernel(M * M);
  for (const bool detach : {false, true}) {
    anchor_gradient(round,
                    {cosines.data(), grad_vectors.data(), detach, alpha.data(), grad_scores.data(),
                     member_weights.data(), grad_khat.data(), grad_anchors.data()},
                    nullptr);
    if (detach) continue;
    member_gradient(round,
                    {grad_vectors.data(), grad_scores.data(), grad_khat.data(), grad_kernel.data(),
                     true, true, grad_members.data()},
                    nullptr);
    for (const C value : grad_members) expect(value - value, 0, "gradient");
  }
}

// The gradient of unit rows is orthogonal to them, with one warp per row and with several.
template <typename T>
void check_unit_rows(Type type, int64_t N, int64_t D, std::mt19937& random) {
  using C = Wide<T>;
  const auto x = numbers<T>(N * D, random);
  const auto grad = numbers<C>(N * D, random);
  std::vector<C> unit(N * D), row_norm(N);
  std::vector<T> out(N * D);
  unit_rows(type, {x.data(), N, D, 1}, D, unit.data(), row_norm.data(), nullptr);
  unit_rows_gradient(type, {grad.data(), N, D, 1}, D, unit.data(), row_norm.data(), out.data(),
                     nullptr);
  for (int64_t n = 0; n < N; ++n) {
    double square = 0, along = 0, most = 0;
    for (int64_t d = n * D; d < (n + 1) * D; ++d) {
      square += std::pow(unit[d] * row_norm[n], 2);
      along += widen(out[d]) * unit[d];
      most += std::abs(widen(out[d]) * unit[d]);
    }
    expect(std::sqrt(square), row_norm[n], "row_norm");
    expect(along / (1 + 10 * most), 0, "gradient along its row");
  }
}

// A band over cosines of unit rows, and its gradient, with an incoming gradient of 1.
template <typename T>
void check_stored_band(Type type, int64_t N, int64_t D, std::mt19937& random) {
  using C = Wide<T>;
  const auto x = numbers<T>(N * D, random);
  std::vector<C> unit(N * D), row_norm(N), scores(N * N), row(N), low(N), high(N), norm(N);
  unit_rows(type, {x.data(), N, D, 1}, D, unit.data(), row_norm.data(), nullptr);
  for (int64_t n = 0; n < N; ++n) {
    double square = 0;
    for (int64_t d = 0; d < D; ++d) square += std::pow(unit[n * D + d] * row_norm[n], 2);
    expect(std::sqrt(square), row_norm[n], "row_norm");
  }
  for (int64_t i = 0; i < N * N; ++i)
    for (int64_t d = 0; d < D; ++d) scores[i] += unit[i / N * D + d] * unit[i % N * D + d];
  const int64_t words = ceil_div(N, 32);
  std::vector<uint32_t> mask(N * words);
  stored_band(type,
              {{scores.data(), 1, N, N},
               true,
               false,
               false,
               0.5,
               1.2,
               nullptr,
               row.data(),
               low.data(),
               high.data(),
               norm.data(),
               mask.data(),
               words},
              nullptr);
  // The gradient over differences of rows, as if all distances were 2, and over rows, followed by
  // the gradient of the normalisation.
  const C one = 1;
  const Type wide = type == Type::kDouble ? Type::kDouble : Type::kFloat;
  std::vector<C> of_unit(N * D), out(N * D), differences(N * D), distance(N * N, 2);
  StoredBandGradient in{.mask = mask.data(),
                        .words = words,
                        .grad = {&one, 0},
                        .sign = -1,
                        .y = matrix(unit, N, D),
                        .distance = distance.data(),
                        .row_sum = nullptr,
                        .out = differences.data()};
  stored_band_gradient(wide, in, D, nullptr);
  in.distance = nullptr, in.row_sum = row.data(), in.out = of_unit.data();
  stored_band_gradient(wide, in, D, nullptr);
  unit_rows_gradient(wide, {of_unit.data(), N, D, 1}, D, unit.data(), row_norm.data(), out.data(),
                     nullptr);
  for (int64_t n = 0; n < N; ++n) {
    double sum = 0, along = 0;
    std::vector<double> rows(D), gaps(D);
    for (int64_t m = 0; m < N; ++m) {
      const double key = C(1) - scores[n * N + m];
      const bool inside = key > C(0.5) && key < C(1.2) && n != m;
      if (inside) sum += key;
      expect(mask[n * words + m / 32] >> m % 32 & 1, inside, "bit");
      for (int64_t d = 0; d < D && inside; ++d) {
        rows[d] -= 2 * unit[m * D + d];
        gaps[d] -= unit[n * D + d] - unit[m * D + d];
      }
    }
    expect(row[n], sum, "band");
    for (int64_t d = 0; d < D; ++d) {
      expect(of_unit[n * D + d], rows[d], "rows of a band");
      expect(differences[n * D + d], gaps[d], "differences of a band");
      along += out[n * D + d] * unit[n * D + d];
    }
    expect(along, 0, "gradient along its row");
  }
}
