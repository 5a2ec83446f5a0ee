// The product of a few rows in fp32 with a weight in fp32 or bf16, on every processor: a decoding
// step's, where time goes by how often the weight is read. The compiler turns vectors that the
// processor has not into such as it has.
//
// Axes: N rows, K what is summed over, M outputs.
#include <omp.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using bf16 = uint16_t;
using i64 = int64_t;

#if defined(__AVX512F__)
constexpr i64 LANES = 16;
constexpr int ROWS = 4;
#elif defined(__AVX__)
constexpr i64 LANES = 8;
constexpr int ROWS = 2;  // all sums stay in its 16 registers
#else
constexpr i64 LANES = 4;
constexpr int ROWS = 4;
#endif
constexpr int OUTPUTS = 4;

typedef float Vector __attribute__((vector_size(4 * LANES)));

inline Vector load(const float* from) {
  Vector numbers;
  std::memcpy(&numbers, from, sizeof numbers);
  return numbers;
}

// The sums of ROWS_ rows of x and OUTPUTS_ rows of a weight. Those of a row do not depend on how
// many rows go together.
template <int ROWS_, int OUTPUTS_>
inline void dot(const float* x, const float* weight, i64 depth, float* y, i64 ldy) {
  Vector sum[ROWS_][OUTPUTS_] = {};
  i64 whole = 0;
  for (; whole + LANES <= depth; whole += LANES) {
    Vector columns[OUTPUTS_];
#pragma GCC unroll 8
    for (int m = 0; m < OUTPUTS_; ++m) columns[m] = load(weight + m * depth + whole);
#pragma GCC unroll 8
    for (int n = 0; n < ROWS_; ++n) {
      const Vector row = load(x + n * depth + whole);
#pragma GCC unroll 8
      for (int m = 0; m < OUTPUTS_; ++m) sum[n][m] += row * columns[m];
    }
  }
  for (int n = 0; n < ROWS_; ++n)
    for (int m = 0; m < OUTPUTS_; ++m) {
      float total = 0;
      for (i64 lane = 0; lane < LANES; ++lane) total += sum[n][m][lane];
      for (i64 k = whole; k < depth; ++k) total += x[n * depth + k] * weight[m * depth + k];
      y[n * ldy + m] = total;
    }
}

template <int OUTPUTS_>
void all_rows(i64 count, const float* x, const float* weight, i64 depth, float* y, i64 ldy) {
  i64 n = 0;
  for (; n + ROWS <= count; n += ROWS)
    dot<ROWS, OUTPUTS_>(x + n * depth, weight, depth, y + n * ldy, ldy);
  for (; n < count; ++n) dot<1, OUTPUTS_>(x + n * depth, weight, depth, y + n * ldy, ldy);
}

// `count` numbers of a weight in fp32: where they lie, or widened into `room`.
const float* widened(const float* weight, i64, std::vector<float>&) { return weight; }

const float* widened(const bf16* weight, i64 count, std::vector<float>& room) {
  if (static_cast<i64>(room.size()) < count) room.resize(count);
  float* numbers = room.data();
#pragma omp simd
  for (i64 i = 0; i < count; ++i)
    numbers[i] = std::bit_cast<float>(static_cast<uint32_t>(weight[i]) << 16);
  return numbers;
}

// y (N, M), rows `ldy` apart, = x (N, K) weight^T (M, K)
template <class T>
void product(i64 count, i64 outputs, i64 depth, const float* x, const T* weight, float* y, i64 ldy) {
#pragma omp parallel
  {
    static thread_local std::vector<float> room;
#pragma omp for schedule(static)
    for (i64 m = 0; m < outputs; m += OUTPUTS) {
      const i64 here = outputs - m < OUTPUTS ? outputs - m : OUTPUTS;
      const float* rows = widened(weight + m * depth, here * depth, room);
      if (here == OUTPUTS) {
        all_rows<OUTPUTS>(count, x, rows, depth, y + m, ldy);
        continue;
      }
      for (i64 i = 0; i < here; ++i) all_rows<1>(count, x, rows + i * depth, depth, y + m + i, ldy);
    }
  }
}

}  // namespace

extern "C" {

void tinkersmith_few_rows_float32(i64 count, i64 outputs, i64 depth, const float* x,
                                  const float* weight, float* y, i64 ldy) {
  product(count, outputs, depth, x, weight, y, ldy);
}

void tinkersmith_few_rows_bfloat16(i64 count, i64 outputs, i64 depth, const float* x,
                                   const bf16* weight, float* y, i64 ldy) {
  product(count, outputs, depth, x, weight, y, ldy);
}
}
