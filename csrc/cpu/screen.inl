// Loops over scores in bf16 (as 16-bit words): where could a maximum be, before anyone knows?

inline float widened(uint16_t half) {
  return std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
}

inline float screen_row_max(const uint16_t* row, int64_t columns, float best) {
  constexpr int64_t kLanes = 32;
  float lane[kLanes];
  for (int64_t k = 0; k < kLanes; ++k) lane[k] = best;
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) {
      const float s = widened(row[c + k]);
      lane[k] = s > lane[k] ? s : lane[k];
    }
  for (int64_t k = 0; k < kLanes; ++k) best = lane[k] > best ? lane[k] : best;
  for (; c < columns; ++c) best = widened(row[c]) > best ? widened(row[c]) : best;
  return best;
}

inline void screen_column_max(const uint16_t* tile, int64_t rows, int64_t stride, int64_t columns,
                              float* best) {
  for (int64_t r = 0; r < rows; ++r) {
    const uint16_t* row = tile + r * stride;
    for (int64_t c = 0; c < columns; ++c) {
      const float s = widened(row[c]);
      best[c] = s > best[c] ? s : best[c];
    }
  }
}

// Hits are rare: a block is searched only where a count of it says so.
template <typename Limit>
inline int64_t screen_above(const uint16_t* row, int64_t columns, Limit limit, int32_t* found) {
  constexpr int64_t kBlock = 64;
  int64_t hits = 0;
  for (int64_t b = 0; b < columns; b += kBlock) {
    const int64_t size = b + kBlock < columns ? kBlock : columns - b;
    int32_t any = 0;
    if (size == kBlock)
      for (int64_t c = 0; c < kBlock; ++c) any |= widened(row[b + c]) >= limit(b + c);
    else
      any = 1;
    if (!any) continue;
    for (int64_t c = b; c < b + size; ++c)
      if (widened(row[c]) >= limit(c)) found[hits++] = static_cast<int32_t>(c);
  }
  return hits;
}

struct OneLimit {
  float limit;
  float operator()(int64_t) const { return limit; }
};

struct LimitOfColumn {
  const float* limit;
  float operator()(int64_t c) const { return limit[c]; }
};

inline int64_t screen_row_above(const uint16_t* row, int64_t columns, float limit, int32_t* found) {
  return screen_above(row, columns, OneLimit{limit}, found);
}

inline int64_t screen_columns_above(const uint16_t* row, int64_t columns, const float* limit,
                                    int32_t* found) {
  return screen_above(row, columns, LimitOfColumn{limit}, found);
}

// The product of two rows: exact terms, summed in fp64 in one order wherever it is computed.
inline double exact_product(const float* x, const float* y, int64_t D) {
  constexpr int64_t kLanes = 16;
  double lane[kLanes] = {}, sum = 0;
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes)
    for (int64_t k = 0; k < kLanes; ++k)
      lane[k] += static_cast<double>(x[d + k]) * static_cast<double>(y[d + k]);
  for (; d < D; ++d) sum += static_cast<double>(x[d]) * static_cast<double>(y[d]);
  for (int64_t k = 0; k < kLanes; ++k) sum += lane[k];
  return sum;
}

// |x|^2, |half|^2 and |x - half|^2 of a row and its bf16 rounding.
inline void rounding_squares(const float* x, const uint16_t* half, int64_t D, double* squares) {
  constexpr int64_t kLanes = 8;
  double whole[kLanes] = {}, kept[kLanes] = {}, lost[kLanes] = {};
  for (int64_t d = 0; d < D; d += kLanes) {
    const int64_t size = d + kLanes < D ? kLanes : D - d;
    for (int64_t k = 0; k < size; ++k) {
      const double a = x[d + k], b = widened(half[d + k]);
      whole[k] += a * a;
      kept[k] += b * b;
      lost[k] += (a - b) * (a - b);
    }
  }
  squares[0] = squares[1] = squares[2] = 0;
  for (int64_t k = 0; k < kLanes; ++k)
    squares[0] += whole[k], squares[1] += kept[k], squares[2] += lost[k];
}
