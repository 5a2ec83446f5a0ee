// Matrix products in bf16 with sums in fp32, ROWS rows times PANEL columns at a time, and the
// layout of their operands. All products in bf16 here are made of `dot`.
//
// A panel holds PANEL columns of a matrix that is summed over its rows k: for every pair of rows
// k, k + 1 the PANEL pairs of numbers stand together, in the order that one instruction reads
// them.
#pragma once

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "exponential.h"
#include "interface.h"

namespace tinkersmith {

constexpr int ROWS = 6;    // of a tile; by_tiles needs fewer than 8
constexpr i64 LANES = 16;  // numbers in fp32 of a vector
constexpr int VECTORS = PANEL / LANES;
constexpr i64 DEPTH = 4096;  // rows of a panel that stays in a core's own cache

constexpr i64 round_up(i64 count, i64 step) { return (count + step - 1) / step * step; }

// A buffer that a thread reuses in its next call.
template <class T>
class Scratch {
 public:
  T* reserve(i64 count) {
    if (count > size_) {
      std::free(data_);
      data_ = static_cast<T*>(std::aligned_alloc(64, round_up(count * sizeof(T), 64)));
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = count;
    }
    return data_;
  }
  ~Scratch() { std::free(data_); }

 private:
  T* data_ = nullptr;
  i64 size_ = 0;
};

inline __mmask16 first_lanes(i64 count) {
  return count >= LANES ? 0xffff : static_cast<__mmask16>((1u << std::max<i64>(count, 0)) - 1);
}

inline __m512 to_fp32(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline float to_float(bf16 x) { return _mm512_cvtss_f32(to_fp32(_mm256_set1_epi16(x))); }

inline __m512 load(const bf16* from) {
  return to_fp32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline __m512 load(const bf16* from, i64 count) {
  return to_fp32(_mm256_maskz_loadu_epi16(first_lanes(count), from));
}

inline __m256i to_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

inline void store(bf16* to, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bf16(x));
}

inline void store(bf16* to, __m512 x, i64 count) {
  if (count >= LANES) return store(to, x);
  _mm256_mask_storeu_epi16(to, first_lanes(count), to_bf16(x));
}

// exp(x) = 2^(whole + rest), see exponential.h.
inline __m512 exponential(__m512 x) {
  const __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(LOG2_E));
  const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(power, whole);
  __m512 sum = _mm512_set1_ps(EXP2_FIRST);
  for (const float factor : EXP2_REST) sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
  return _mm512_scalef_ps(sum, whole);
}

// sum (COUNT, PANEL) += x (COUNT, depth), rows `ld_x` apart, times columns FIRST * LANES to
// LAST * LANES of a panel.
template <int FIRST = 0, int LAST = VECTORS, int COUNT>
__attribute__((always_inline)) inline void dot(__m512 (&sum)[COUNT][VECTORS], const bf16* x,
                                               i64 ld_x, const bf16* panel, i64 depth) {
  for (i64 k = 0; k < depth; k += 2, panel += 2 * PANEL) {
    __m512bh columns[VECTORS];
#pragma GCC unroll 8
    for (int j = FIRST; j < LAST; ++j)
      columns[j] = (__m512bh)_mm512_loadu_si512(panel + 2 * LANES * j);
#pragma GCC unroll 24
    for (int i = 0; i < COUNT; ++i) {
      int pair;
      std::memcpy(&pair, x + i * ld_x + k, sizeof pair);
      const __m512bh row = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
      for (int j = FIRST; j < LAST; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], row, columns[j]);
    }
  }
}

// Calls rows<COUNT>(row) for all rows from first to last, with COUNT = ROWS as long as possible.
template <class Rows>
inline void by_tiles(i64 first, i64 last, Rows rows) {
  for (; first + ROWS <= last; first += ROWS) rows.template operator()<ROWS>(first);
  const i64 left = last - first;
  if (left & 4) rows.template operator()<4>(first);
  if (left & 2) rows.template operator()<2>(first + (left & 4));
  if (left & 1) rows.template operator()<1>(last - 1);
}

template <int COUNT>
inline void clear(__m512 (&sum)[COUNT][VECTORS]) {
#pragma GCC unroll 24
  for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) sum[i][j] = _mm512_setzero_ps();
}

// 16 x 16 numbers of 32 bits: row i of `r` becomes column i.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

// A panel from the transpose of a matrix: `columns` rows of `depth` numbers, `ld` apart, become its
// columns. Missing columns, and the second row of the last pair if the depth is odd, are zero.
inline void pack_rows(const bf16* matrix, i64 ld, i64 columns, i64 depth, bf16* panel,
                      i64 width = PANEL) {
  for (i64 n = 0; n < width; n += LANES)
    for (i64 k = 0; k < depth; k += 2 * LANES) {
      const i64 left = depth - k;
      const __mmask32 mask = left >= 32 ? 0xffffffffu : (1u << left) - 1;
      __m512i r[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        r[i] = n + i < columns ? _mm512_maskz_loadu_epi16(mask, matrix + (n + i) * ld + k)
                               : _mm512_setzero_si512();
      transpose(r);
      const i64 pairs = std::min<i64>(16, (left + 1) / 2);
      for (i64 i = 0; i < pairs; ++i)
        _mm512_storeu_si512(panel + ((k / 2 + i) * PANEL + n) * 2, r[i]);
    }
}

// A panel from a matrix: `depth` rows of `columns` numbers, `ld` apart.
inline void pack_columns(const bf16* matrix, i64 ld, i64 columns, i64 depth, bf16* panel) {
  alignas(64) uint16_t order[2][32];
  for (int i = 0; i < 32; ++i) {
    order[0][i] = i / 2 + (i % 2) * 32;
    order[1][i] = i / 2 + 16 + (i % 2) * 32;
  }
  const __m512i low = _mm512_load_si512(order[0]), high = _mm512_load_si512(order[1]);
  for (i64 k = 0; k < depth; k += 2)
    for (i64 n = 0; n < PANEL; n += 2 * LANES) {
      const i64 left = columns - n;
      const __mmask32 mask = left >= 32 ? 0xffffffffu : left <= 0 ? 0 : (1u << left) - 1;
      // The rows are too far apart for the processor to prefetch them itself.
      _mm_prefetch(matrix + (k + 16) * ld + n, _MM_HINT_T0);
      _mm_prefetch(matrix + (k + 17) * ld + n, _MM_HINT_T0);
      const __m512i even_row = _mm512_maskz_loadu_epi16(mask, matrix + k * ld + n);
      const __m512i odd_row = k + 1 < depth
                                  ? _mm512_maskz_loadu_epi16(mask, matrix + (k + 1) * ld + n)
                                  : _mm512_setzero_si512();
      bf16* to = panel + (k * PANEL + 2 * n);
      _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even_row, low, odd_row));
      _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi16(even_row, high, odd_row));
    }
}

// numbers (rows, PANEL), rows `ld` apart, += x (rows, depth) times a panel.
inline void add_product(i64 rows, const bf16* x, i64 ld_x, const bf16* panel, i64 depth,
                        float* numbers, i64 ld) {
  by_tiles(0, rows, [&]<int COUNT>(i64 row) {
    __m512 sum[COUNT][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j)
        sum[i][j] = _mm512_loadu_ps(numbers + (row + i) * ld + j * LANES);
    dot(sum, x + row * ld_x, ld_x, panel, depth);
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j)
        _mm512_storeu_ps(numbers + (row + i) * ld + j * LANES, sum[i][j]);
  });
}

// output = exp(score - largest) in bf16 for the first `visible` scores, zeros from there to `end`.
// Returns the largest score and the sum of the exponentials.
inline std::pair<float, float> soft_max(const float* scores, i64 visible, i64 end, bf16* output) {
  __m512 largest = _mm512_set1_ps(-INFINITY);
  for (i64 k = 0; k < visible; k += LANES)
    largest =
        _mm512_mask_max_ps(largest, first_lanes(visible - k), largest, _mm512_loadu_ps(scores + k));
  const float shift = _mm512_reduce_max_ps(largest);
  __m512 sum = _mm512_setzero_ps();
  i64 k = 0;
  for (; k < visible; k += LANES) {
    const __m512 gap = _mm512_sub_ps(_mm512_loadu_ps(scores + k), _mm512_set1_ps(shift));
    const __m512 value = _mm512_maskz_mov_ps(first_lanes(visible - k), exponential(gap));
    sum = _mm512_add_ps(sum, value);
    store(output + k, value);
  }
  for (; k < end; k += LANES) store(output + k, _mm512_setzero_ps());
  return {shift, _mm512_reduce_add_ps(sum)};
}

}  // namespace tinkersmith
