// What several adapters add to rows of one projection, in fp32, for few rows of each. The compiler
// replaces vectors that the processor lacks by those that it has.
//
// Axes: N rows, I input size of the projection, R rank of an adapter.
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "interface.h"

namespace {

#if defined(__AVX512F__)
constexpr i64 LANES = 16;
constexpr int ROWS = 4;
#elif defined(__AVX__)
constexpr i64 LANES = 8;
constexpr int ROWS = 2;  // so that all sums stay in its 16 registers
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

// y (COUNT, OUTPUTS) = x (COUNT, I) times the rows of `weight`, each (I): the first `outputs` of
// them. Where there are fewer rows than OUTPUTS, the last one is repeated. With a smaller template
// for them the compiler would join other products and sums into one instruction, and round
// differently when other numbers of rows go together.
template <int COUNT>
inline void dot(const float* x, const float* const (&weight)[OUTPUTS], i64 outputs, i64 inputs,
                float* y, i64 ld_y) {
  Vector sum[COUNT][OUTPUTS] = {};
  i64 whole = 0;
  for (; whole + LANES <= inputs; whole += LANES) {
    Vector columns[OUTPUTS];
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; ++o) columns[o] = load(weight[o] + whole);
#pragma GCC unroll 8
    for (int n = 0; n < COUNT; ++n) {
      const Vector row = load(x + n * inputs + whole);
#pragma GCC unroll 8
      for (int o = 0; o < OUTPUTS; ++o) sum[n][o] += row * columns[o];
    }
  }
  for (int n = 0; n < COUNT; ++n)
    for (int o = 0; o < outputs; ++o) {
      float total = 0;
      for (i64 lane = 0; lane < LANES; ++lane) total += sum[n][o][lane];
      for (i64 i = whole; i < inputs; ++i) total += x[n * inputs + i] * weight[o][i];
      y[n * ld_y + o] = total;
    }
}

constexpr i64 ALONE = 1 << 16;      // multiplications that one thread does
constexpr i64 COLUMNS = 4 * LANES;  // of a tile of `add_columns`

// y (COUNT, width) += low (COUNT, R) b (R, width), of at most COLUMNS columns.
template <int COUNT>
inline void add_columns(i64 rank, const float* low, i64 ld_low, const float* b, i64 ld_b, i64 width,
                        float* y, i64 ld_y) {
  if (width == COLUMNS) {
    Vector sum[COUNT][4] = {};
    for (i64 r = 0; r < rank; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const Vector numbers = load(b + r * ld_b + j * LANES);
#pragma GCC unroll 2
        for (int n = 0; n < COUNT; ++n) sum[n][j] += low[n * ld_low + r] * numbers;
      }
    for (int n = 0; n < COUNT; ++n)
      for (int j = 0; j < 4; ++j) {
        float* to = y + n * ld_y + j * LANES;
        const Vector numbers = load(to) + sum[n][j];
        std::memcpy(to, &numbers, sizeof numbers);
      }
    return;
  }
  for (int n = 0; n < COUNT; ++n)
    for (i64 i = 0; i < width; ++i) {
      float total = 0;
      for (i64 r = 0; r < rank; ++r) total += low[n * ld_low + r] * b[r * ld_b + i];
      y[n * ld_y + i] += total;
    }
}

i64 tiles(i64 count, i64 size) { return (count + size - 1) / size; }

}  // namespace

extern "C" {

void tinkersmith_add_row_updates(i64 groups, const RowUpdate* updates, i64 inputs, const float* x,
                                 float* low, i64 ld_low, float* y, i64 ld_y) {
  // Tasks of both halves, one group after the other: (group, first row of a or first column).
  std::vector<std::array<i64, 2>> inward;
  std::vector<std::array<i64, 3>> outward;
  i64 work = 0;
  for (i64 g = 0; g < groups; ++g) {
    const RowUpdate& group = updates[g];
    for (i64 first = 0; first < group.layers * group.rank; first += OUTPUTS)
      inward.push_back({g, first});
    for (i64 layer = 0; layer < group.layers; ++layer) {
      for (i64 tile = 0; tile < tiles(group.outputs[layer], COLUMNS); ++tile)
        outward.push_back({g, layer, tile * COLUMNS});
      work += group.rows * group.rank * (inputs + group.outputs[layer]);
    }
  }
  // Little work is done sooner by one thread than shared.
#pragma omp parallel if (work > ALONE)
  {
#pragma omp for schedule(static)
    for (size_t task = 0; task < inward.size(); ++task) {
      const RowUpdate& group = updates[inward[task][0]];
      const i64 first = inward[task][1], ranks = group.layers * group.rank;
      const i64 here = std::min<i64>(OUTPUTS, ranks - first);
      const float* a_rows[OUTPUTS];
      for (i64 o = 0; o < OUTPUTS; ++o)
        a_rows[o] = group.a + (first + std::min(o, here - 1)) * inputs;
      for (i64 n = group.first; n < group.first + group.rows; ++n)
        dot<1>(x + n * inputs, a_rows, here, inputs, low + n * ld_low + first, ld_low);
    }
#pragma omp for schedule(static)
    for (size_t task = 0; task < outward.size(); ++task) {
      const RowUpdate& group = updates[outward[task][0]];
      const i64 layer = outward[task][1], column = outward[task][2];
      const i64 outputs = group.outputs[layer], width = std::min(COLUMNS, outputs - column);
      const float* b = group.b[layer] + column;
      const float* from = low + layer * group.rank;
      float* to = y + group.columns[layer] + column;
      i64 n = group.first, end = group.first + group.rows;
      for (; n + 2 <= end; n += 2)
        add_columns<2>(group.rank, from + n * ld_low, ld_low, b, outputs, width, to + n * ld_y,
                       ld_y);
      if (n < end)
        add_columns<1>(group.rank, from + n * ld_low, ld_low, b, outputs, width, to + n * ld_y,
                       ld_y);
    }
  }
}
}
