// Row and column maxima of a tile of scores, with their indices.
//
// A row searches for the index only if its maximum has increased, which is rare: the common pass is
// a plain maximum that the compiler vectorises.

// Returns whether s replaces the maximum m: it is larger, or the first NaN.
template <typename T>
inline bool replaces(T s, T m) {
  return !(s <= m) && m == m;
}

template <typename T>
void row_max(const T* tile, int64_t columns, int64_t r0, int64_t r1, int64_t first_column, T* best,
             int64_t* index) {
  constexpr int64_t kLanes = 64 / sizeof(T);
  for (int64_t r = r0; r < r1; ++r) {
    const T* row = tile + r * columns;
    if (best[r] != best[r]) continue;
    T lane[kLanes], unordered[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) lane[l] = best[r], unordered[l] = 0;
    int64_t c = 0;
    for (; c + kLanes <= columns; c += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) {
        const T s = row[c + l];
        lane[l] = s > lane[l] ? s : lane[l];
        unordered[l] = s != s ? T(1) : unordered[l];
      }
    }
    T m = best[r];
    bool nan = false;
    for (int64_t l = 0; l < kLanes; ++l) m = lane[l] > m ? lane[l] : m, nan |= unordered[l] != 0;
    for (; c < columns; ++c) m = row[c] > m ? row[c] : m, nan |= row[c] != row[c];
    if (!nan && !(m > best[r])) continue;
    for (c = 0; nan ? row[c] == row[c] : row[c] != m; ++c) {
    }
    best[r] = row[c];
    index[r] = first_column + c;
  }
}

template <typename T, bool kLimited>
inline void column_max_block(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                             int64_t first_row, const T* limit, T* best, int64_t* index) {
  using Index = typename SameWidth<T>::type;
  constexpr int64_t kBlock = 512;  // values and indices of a block fit the first-level cache
  for (int64_t b = c0; b < c1; b += kBlock) {
    const int64_t size = b + kBlock < c1 ? kBlock : c1 - b;
    Index from[kBlock];
    for (int64_t c = 0; c < size; ++c) from[c] = -1;
    T* m = best + b;
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = tile + r * columns + b;
      for (int64_t c = 0; c < size; ++c) {
        const T s = row[c];
        bool larger = replaces(s, m[c]);
        if (kLimited) larger = larger && !(s >= limit[b + c]);
        m[c] = larger ? s : m[c];
        from[c] = larger ? static_cast<Index>(r) : from[c];
      }
    }
    for (int64_t c = 0; c < size; ++c)
      if (from[c] >= 0) index[b + c] = first_row + from[c];
  }
}

template <typename T>
void column_max(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                int64_t first_row, T* best, int64_t* index) {
  column_max_block<T, false>(tile, rows, columns, c0, c1, first_row, nullptr, best, index);
}

template <typename T>
void column_max_below(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                      int64_t first_row, const T* limit, T* best, int64_t* index) {
  column_max_block<T, true>(tile, rows, columns, c0, c1, first_row, limit, best, index);
}

template <typename T>
void row_max_below(const T* row, int64_t columns, int64_t first_column, T limit, T* best,
                   int64_t* index) {
  for (int64_t c = 0; c < columns; ++c) {
    if (replaces(row[c], *best) && !(row[c] >= limit)) {
      *best = row[c];
      *index = first_column + c;
    }
  }
}
