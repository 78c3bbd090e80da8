// Loops over bf16 scores, as 16-bit words, that find the candidates for row and column maxima.

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

template <int64_t kBlock, typename Limit>
inline bool any_above(const uint16_t* row, Limit limit, int64_t first) {
  int32_t any = 0;
  for (int64_t c = first; c < first + kBlock; ++c) any |= widened(row[c]) >= limit(c);
  return any;
}

// Hits are rare: a block is searched only if it contains one.
template <typename Limit>
inline int64_t screen_above(const uint16_t* row, int64_t columns, Limit limit, int32_t* found) {
  constexpr int64_t kBlock = 64, kPart = 16;
  int64_t hits = 0;
  const auto search = [&](int64_t first, int64_t end) {
    for (int64_t c = first; c < end; ++c)
      if (widened(row[c]) >= limit(c)) found[hits++] = static_cast<int32_t>(c);
  };
  int64_t b = 0;
  for (; b + kBlock <= columns; b += kBlock) {
    if (!any_above<kBlock>(row, limit, b)) continue;
    for (int64_t p = b; p < b + kBlock; p += kPart)
      if (any_above<kPart>(row, limit, p)) search(p, p + kPart);
  }
  search(b, columns);
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

// Rounds a row to the nearest bf16, ties to even; squares are |x|^2 and |2^9 (x - half)|^2, which
// has about the same magnitude. The rounding of NaN is unspecified.
inline void round_row(const float* x, int64_t D, uint16_t* half, double* squares) {
  constexpr int64_t kLanes = 32;
  float whole[kLanes] = {}, lost[kLanes] = {};
  const auto add = [&](int64_t d, int64_t k) {
    const uint32_t bits = std::bit_cast<uint32_t>(x[d + k]);
    const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    half[d + k] = static_cast<uint16_t>(rounded >> 16);
    const float a = x[d + k];
    const float l = 512 * (a - std::bit_cast<float>(rounded & 0xffff0000u));
    whole[k] += a * a;
    lost[k] += l * l;
  };
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) add(d, k);
  for (int64_t k = 0; d + k < D; ++k) add(d, k);
  squares[0] = sum_of_lanes(whole);
  squares[1] = sum_of_lanes(lost);
}
