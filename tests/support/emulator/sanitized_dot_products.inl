// Dot products of several pairs of matrices in one launch, for sanitized.cpp: each against a loop.

template <typename T>
void check_dot_products(Type type, std::mt19937& random) {
  using C = Wide<T>;
  constexpr int64_t kD = 132, kRows[] = {37, 70, 1};
  std::vector<T> rows[3];
  for (int i = 0; i < 3; ++i) rows[i] = numbers<T>(kRows[i] * kD, random);
  const int pairs[][2] = {{0, 1}, {0, 0}, {2, 1}};
  unsigned ticket = 7;
  DotProducts all{.of = {}, .count = 3, .D = kD, .plan = {}, .ticket = &ticket};
  for (int i = 0; i < 3; ++i)
    for (int side = 0; side < 2; ++side)
      (side ? all.of[i].y : all.of[i].x) = matrix(rows[pairs[i][side]], kRows[pairs[i][side]], kD);
  all.plan = plan_dot_products(all);
  const int64_t parts = all.plan.parts;
  std::vector<C> found[3], squares[2];
  for (int i = 0; i < 3; ++i) {
    found[i].resize(parts * all.of[i].x.rows * all.of[i].y.rows);
    all.of[i].parts = found[i].data();
  }
  squares[0].resize(parts * kRows[0]), squares[1].resize(parts * kRows[1]);
  all.of[0].x_squares = squares[0].data(), all.of[0].y_squares = squares[1].data();
  dot_products(type, all, nullptr);
  expect(ticket, 0, "ticket");
  const auto product = [&](int a, int64_t n, int b, int64_t m) {
    double sum = 0;
    for (int64_t d = 0; d < kD; ++d)
      sum += static_cast<double>(widen(rows[a][n * kD + d])) * widen(rows[b][m * kD + d]);
    return sum;
  };
  const auto added = [&](const std::vector<C>& in, int64_t at) {
    double sum = 0;
    for (int64_t p = 0; p < parts; ++p) sum += in[p * static_cast<int64_t>(in.size()) / parts + at];
    return sum;
  };
  for (int i = 0; i < 3; ++i) {
    const auto [a, b] = pairs[i];
    for (int64_t n = 0; n < kRows[a]; ++n)
      for (int64_t m = 0; m < kRows[b]; ++m)
        expect(added(found[i], n * kRows[b] + m), product(a, n, b, m), "product");
  }
  for (int a = 0; a < 2; ++a)
    for (int64_t n = 0; n < kRows[a]; ++n)
      expect(added(squares[a], n), product(a, n, a, n), "square");
}
