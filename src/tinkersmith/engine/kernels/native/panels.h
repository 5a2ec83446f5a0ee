// Rows in panels of ROWS in fp32, on every processor: (panels, features, ROWS). One number of every
// row stands side by side, so vectors run over rows, and weights are read as they lie in memory.
// Each output is summed over its inputs in their order, so that a row's digits do not depend on how
// many rows there are, on threads, or on vectors.
//
// Axes: N rows, I and O input and output size of a linear layer.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "exponential.h"
#include "interface.h"

namespace tinkersmith_panels {

#if defined(__AVX512F__)
constexpr i64 LANES = 16;
constexpr int SUMS = 24;  // vectors of sums that stay in registers
#elif defined(__AVX__)
constexpr i64 LANES = 8;
constexpr int SUMS = 12;
#elif defined(__aarch64__)
constexpr i64 LANES = 4;
constexpr int SUMS = 24;
#else
constexpr i64 LANES = 4;
constexpr int SUMS = 12;
#endif
// A weight that is read for 2 vectors holds up products less.
constexpr i64 ROWS = FLOAT_PANEL == LANES ? 2 * LANES : FLOAT_PANEL;
constexpr int VECTORS = ROWS / LANES;  // of a panel
#if defined(__x86_64__)
constexpr int OUTPUTS = 12;  // at a time: so many addresses of weights stay in registers
#else
constexpr int OUTPUTS = SUMS;
#endif
constexpr i64 TILE = 48;               // outputs that a thread takes at a time
constexpr i64 PREFETCHED = 16;         // numbers that are prefetched at once

typedef float Vector __attribute__((vector_size(4 * LANES)));

inline Vector load(const float* from) {
  Vector numbers;
  std::memcpy(&numbers, from, sizeof numbers);
  return numbers;
}

inline void store(float* to, Vector numbers) { std::memcpy(to, &numbers, sizeof numbers); }

inline Vector all(float number) { return number - Vector{}; }

// sum + a * b, rounded once where the processor can: in every place alike.
inline Vector add_product(Vector sum, Vector a, Vector b) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, sum);
#elif defined(__AVX__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, sum);
#else
  return sum + a * b;
#endif
}

typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

// exp(x) = 2^(whole + rest), see exponential.h.
inline Vector exponential(Vector x) {
  const Vector low = all(-126.0f), high = all(127.0f);
  Vector power = x * LOG2_E;
  power = power < low ? low : power;
  power = power > high ? high : power;
  constexpr float factors[] = EXP2_REST;
  const Vector magic = all(12582912.0f);  // 1.5 * 2^23: added, it leaves no digit for a fraction
  const Vector whole = (power + magic) - magic, rest = power - whole;
  Vector sum = all(EXP2_FIRST);
#pragma GCC unroll 5
  for (int i = 0; i < 5; ++i) sum = add_product(all(factors[i]), sum, rest);
  const Integers bits = (__builtin_convertvector(whole, Integers) + 127) << 23;
  return sum * std::bit_cast<Vector>(bits);
}

inline i64 round_up(i64 count, i64 step) { return (count + step - 1) / step * step; }

// Memory that is allocated once and grows; what was in it is lost then.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(numbers_); }

  float* reserve(i64 count) {
    if (count > count_) {
      std::free(numbers_);
      count_ = round_up(count + count / 4, 16);
      numbers_ = static_cast<float*>(std::aligned_alloc(64, count_ * sizeof(float)));
    }
    return numbers_;
  }

  const float* numbers() const { return numbers_; }

 private:
  float* numbers_ = nullptr;
  i64 count_ = 0;
};

// Weights of a linear layer, in fp32, or in bf16 and cast where they are used.
struct Weights {
  const float* exact;
  const bf16* narrow;  // null where `exact` is not
  i64 inputs;

  // `count` rows from `first` on, in fp32: in place, or cast into the buffer.
  const float* rows(i64 first, i64 count, Buffer& buffer) const {
    if (exact != nullptr) return exact + first * inputs;
    float* numbers = buffer.reserve(count * inputs);
    const bf16* from = narrow + first * inputs;
#pragma omp simd
    for (i64 i = 0; i < count * inputs; ++i)
      numbers[i] = std::bit_cast<float>(static_cast<uint32_t>(from[i]) << 16);
    return numbers;
  }
};

// sums (COUNT outputs, USED vectors of rows) += rows of weights (COUNT, I) times a panel (I, ROWS).
template <int USED, int COUNT>
inline void add_products(Vector (&sums)[COUNT][USED], const float* weights, i64 inputs,
                         const float* panel) {
  const float* next = weights + COUNT * inputs;  // those of the outputs that follow
  for (i64 k = 0; k < inputs; ++k) {
#pragma GCC unroll 2
    for (int i = 0; i < COUNT; i += PREFETCHED) __builtin_prefetch(next + k * COUNT + i, 0, 2);
    Vector x[USED];
#pragma GCC unroll 4
    for (int j = 0; j < USED; ++j) x[j] = load(panel + k * ROWS + j * LANES);
#pragma GCC unroll 24
    for (int o = 0; o < COUNT; ++o) {
      const Vector weight = all(weights[o * inputs + k]);
#pragma GCC unroll 4
      for (int j = 0; j < USED; ++j) sums[o][j] = add_product(sums[o][j], weight, x[j]);
    }
  }
}

// For the outputs from `first` to `end`, COUNT at a time: calls `finish` with (output, sums). The
// last ones begin early enough that COUNT are left: their sums come twice, and are the same.
template <int USED, int COUNT, class Finish>
inline void outputs_of(const float* weights, i64 first, i64 end, i64 inputs, const float* panel,
                       const Finish& finish) {
  for (i64 next = first; next < end; next += COUNT) {
    const i64 output = std::max(first, std::min(next, end - COUNT));
    Vector sums[COUNT][USED] = {};
    add_products<USED, COUNT>(sums, weights + (output - first) * inputs, inputs, panel);
    finish(output, sums);
  }
}

// outputs_of for as many vectors as a panel of `rows` rows uses.
template <class Finish>
inline void outputs_of(i64 rows, const float* weights, i64 first, i64 end, i64 inputs,
                       const float* panel, const Finish& finish) {
  auto run = [&]<int USED>() {
    constexpr int MANY = std::min(OUTPUTS, SUMS / USED);
    if (end - first >= MANY)
      outputs_of<USED, MANY>(weights, first, end, inputs, panel, finish);
    else
      outputs_of<USED, 1>(weights, first, end, inputs, panel, finish);
  };
  const i64 used = (rows + LANES - 1) / LANES;
  if constexpr (VECTORS > 2) {
    if (used == 4) return run.template operator()<4>();
    if (used == 3) return run.template operator()<3>();
  }
  if constexpr (VECTORS > 1)
    if (used == 2) return run.template operator()<2>();
  run.template operator()<1>();
}

// How many tiles some outputs are divided into, and where tile `index` begins.
inline i64 tile_count(i64 outputs) { return (outputs + TILE - 1) / TILE; }
inline i64 tile_start(i64 outputs, i64 index) { return outputs * index / tile_count(outputs); }

// x (rows, features), rows `ld` apart -> a panel (features, ROWS); missing rows are 0.
inline void to_panel(const float* x, i64 ld, i64 rows, i64 features, float* panel) {
  for (i64 i = 0; i < features; ++i)
    for (i64 row = 0; row < ROWS; ++row) panel[i * ROWS + row] = row < rows ? x[row * ld + i] : 0;
}

// The first rows of a panel (features, ROWS) -> y (rows, features), rows `ld` apart.
inline void from_panel(const float* panel, i64 rows, i64 features, float* y, i64 ld) {
  for (i64 row = 0; row < rows; ++row)
    for (i64 i = 0; i < features; ++i) y[row * ld + i] = panel[i * ROWS + row];
}

}  // namespace tinkersmith_panels
