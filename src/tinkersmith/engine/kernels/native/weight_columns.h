// Products of so few rows that a panel would leave most numbers of its vectors unused: vectors run
// over outputs here, and weights are transposed in registers. Each output is summed as in panels.h,
// to the same digits. The time is that of reading the weights.
//
// Axes: I and O input and output size of a linear layer.
#pragma once

#include <utility>

#include "panels.h"

namespace tinkersmith_panels {

constexpr i64 AHEAD = 256;        // bytes of a row of weights, prefetched before they are read
constexpr int QUADS = LANES / 4;  // of a vector: parts of 4 numbers

// The most rows for which this is faster than panels, which also cast weights in bf16.
template <class Number>
constexpr i64 FEW = sizeof(Number) == 4 ? std::min<i64>(4, LANES / 2) : std::min<i64>(8, LANES);

// Numbers of two vectors, from the place that From gives for each; those of b come after those of a.
template <class From>
inline Vector chosen(Vector a, Vector b, From) {
  return [&]<int... LANE>(std::integer_sequence<int, LANE...>) {
    constexpr Integers places = {From{}(LANE)...};
    return __builtin_shuffle(a, b, places);
  }(std::make_integer_sequence<int, LANES>{});
}

// Four numbers of each quad of a (0 to 3) and b (4 to 7).
template <int FIRST, int SECOND, int THIRD, int FOURTH>
inline Vector in_quads(Vector a, Vector b) {
  return chosen(a, b, [](int lane) {
    const int places[] = {FIRST, SECOND, THIRD, FOURTH}, place = places[lane % 4];
    return lane / 4 * 4 + place % 4 + place / 4 * static_cast<int>(LANES);
  });
}

// Every second quad of a, then of b.
template <int FIRST>
inline Vector alternate_quads(Vector a, Vector b) {
  return chosen(a, b, [](int lane) { return (lane / 4 * 2 + FIRST) * 4 + lane % 4; });
}

// Rows -> columns, LANES of each.
inline void transpose(Vector (&numbers)[LANES]) {
  // Vector j gets quad 0 of the rows j, j + 4, j + 8 ..., vector 4 + j gets quad 1, and so on.
  if constexpr (QUADS == 2) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vector a = numbers[j], b = numbers[4 + j];
      numbers[j] = alternate_quads<0>(a, b), numbers[4 + j] = alternate_quads<1>(a, b);
    }
  }
  if constexpr (QUADS == 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vector a = numbers[j], b = numbers[4 + j], c = numbers[8 + j], d = numbers[12 + j];
      const Vector even = alternate_quads<0>(a, b), more_even = alternate_quads<0>(c, d);
      const Vector odd = alternate_quads<1>(a, b), more_odd = alternate_quads<1>(c, d);
      numbers[j] = alternate_quads<0>(even, more_even);
      numbers[4 + j] = alternate_quads<0>(odd, more_odd);
      numbers[8 + j] = alternate_quads<1>(even, more_even);
      numbers[12 + j] = alternate_quads<1>(odd, more_odd);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < LANES; i += 4) {
    const Vector a = numbers[i], b = numbers[i + 1], c = numbers[i + 2], d = numbers[i + 3];
    const Vector low = in_quads<0, 4, 1, 5>(a, b), more_low = in_quads<0, 4, 1, 5>(c, d);
    const Vector high = in_quads<2, 6, 3, 7>(a, b), more_high = in_quads<2, 6, 3, 7>(c, d);
    numbers[i] = in_quads<0, 1, 4, 5>(low, more_low);
    numbers[i + 1] = in_quads<2, 3, 6, 7>(low, more_low);
    numbers[i + 2] = in_quads<0, 1, 4, 5>(high, more_high);
    numbers[i + 3] = in_quads<2, 3, 6, 7>(high, more_high);
  }
}

inline float to_float(float number) { return number; }
inline float to_float(bf16 number) {
  return std::bit_cast<float>(static_cast<uint32_t>(number) << 16);
}

// Calls each(column, LANES weights) for the columns that lie in 32 bits of each row, in order.
template <class Number, class Each>
inline void columns_in(Vector bits, const Each& each) {
  if constexpr (sizeof(Number) == 4) {
    each(0, bits);
  } else {  // the first of two numbers is in the lower half
    const Integers both = std::bit_cast<Integers>(bits);
    each(0, std::bit_cast<Vector>(both << 16));
    each(1, std::bit_cast<Vector>(both & static_cast<int>(0xffff0000)));
  }
}

// sums (GROUPS of LANES outputs, COUNT rows) = weights of each group (LANES, I) times the first rows
// of a panel (I, ROWS). Weights that are `behind` numbers further are read next.
template <int GROUPS, int COUNT, class Number>
inline void column_products(const Number* const (&weights)[GROUPS], i64 inputs, i64 behind,
                            const float* panel, Vector (&sums)[GROUPS][COUNT]) {
  constexpr i64 WIDTH = 4 * LANES / sizeof(Number), LOOK = AHEAD / sizeof(Number);
  constexpr i64 PARTS = 16 / LANES;  // of the 64 bytes that are prefetched at once
  auto add = [&](int group, i64 k, Vector column) {
#pragma GCC unroll 8
    for (int row = 0; row < COUNT; ++row)
      sums[group][row] = add_product(sums[group][row], column, all(panel[k * ROWS + row]));
  };
  i64 k = 0;
  for (i64 part = 0; k + WIDTH <= inputs; k += WIDTH, part = (part + 1) % PARTS) {
    const i64 ahead = k + LOOK < inputs ? k + LOOK : k + LOOK - inputs + behind;
#pragma GCC unroll 4
    for (int group = 0; group < GROUPS; ++group) {
      const Number* next = weights[group] + ahead + part * (LANES / PARTS) * inputs;
#pragma GCC unroll 16
      for (i64 lane = 0; lane < LANES / PARTS; ++lane)
        __builtin_prefetch(next + lane * inputs, 0, 2);
      // Whole vectors of each row: rows are often so far apart that few of their cache lines find
      // places, and each is read once.
      Vector numbers[LANES];
#pragma GCC unroll 16
      for (i64 lane = 0; lane < LANES; ++lane)
        std::memcpy(&numbers[lane], weights[group] + lane * inputs + k, sizeof numbers[lane]);
      transpose(numbers);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i)
        columns_in<Number>(numbers[i], [&](int column, Vector one) {
          add(group, k + i * (WIDTH / LANES) + column, one);
        });
    }
  }
  for (; k < inputs; ++k)
    for (int group = 0; group < GROUPS; ++group) {
      Vector column;
      for (i64 lane = 0; lane < LANES; ++lane)
        column[lane] = to_float(weights[group][lane * inputs + k]);
      add(group, k, column);
    }
}

// Like outputs_of in panels.h, for COUNT rows at most and LANES outputs at least.
template <int COUNT, class Number, class Finish>
inline void column_outputs(const Number* weights, i64 first, i64 end, i64 inputs,
                           const float* panel, const Finish& finish) {
  // Each sum waits for the one before: with more groups there are others meanwhile.
  constexpr int TOGETHER = COUNT > 2 ? 1 : 16 / LANES;
  const i64 groups = (end - first + LANES - 1) / LANES;
  auto run = [&]<int GROUPS>(i64 group) {
    i64 outputs[GROUPS];
    const Number* from[GROUPS];
    for (int i = 0; i < GROUPS; ++i) {
      // The last ones begin early enough: their sums come twice, and are the same.
      outputs[i] = std::min(first + (group + i) * LANES, end - LANES);
      from[i] = weights + (outputs[i] - first) * inputs;
    }
    Vector found[GROUPS][COUNT] = {};
    column_products<GROUPS, COUNT>(from, inputs, GROUPS * LANES * inputs, panel, found);
    for (int i = 0; i < GROUPS; ++i) {
      Vector sums[LANES][1];
      for (i64 lane = 0; lane < LANES; ++lane) {
        Vector sum = {};
        for (int row = 0; row < COUNT; ++row) sum[row] = found[i][row][lane];
        sums[lane][0] = sum;
      }
      finish(outputs[i], sums);
    }
  };
  i64 group = 0;
  for (; group + TOGETHER <= groups; group += TOGETHER) run.template operator()<TOGETHER>(group);
  for (; group < groups; ++group) run.template operator()<1>(group);
}

template <class Number, class Finish>
inline void column_outputs(i64 rows, const Number* weights, i64 first, i64 end, i64 inputs,
                           const float* panel, const Finish& finish) {
  if (rows == 1) return column_outputs<1>(weights, first, end, inputs, panel, finish);
  if (rows == 2) return column_outputs<2>(weights, first, end, inputs, panel, finish);
  if constexpr (FEW<Number> > 4)
    if (rows > 4) return column_outputs<8>(weights, first, end, inputs, panel, finish);
  if constexpr (FEW<Number> > 2) column_outputs<4>(weights, first, end, inputs, panel, finish);
}

// The weights of outputs `first` to `end`. Those in bf16 are cast when a panel needs them in fp32.
class TileWeights {
 public:
  TileWeights(const Weights& weights, i64 first, i64 end, Buffer& cast)
      : weights_(weights), first_(first), end_(end), cast_(cast) {}

  // Calls `finish` with (output, sums) of a panel (I, ROWS) of `rows` rows.
  template <class Finish>
  void outputs(i64 rows, const float* panel, const Finish& finish) {
    const i64 inputs = weights_.inputs, count = end_ - first_;
    auto columns = [&]<class Number>(const Number* weights) {
      if (weights == nullptr || rows > FEW<Number> || count < LANES) return false;
      column_outputs(rows, weights + first_ * inputs, first_, end_, inputs, panel, finish);
      return true;
    };
    if (columns(weights_.exact) || columns(weights_.narrow)) return;
    if (numbers_ == nullptr) numbers_ = weights_.rows(first_, count, cast_);
    outputs_of(rows, numbers_, first_, end_, inputs, panel, finish);
  }

 private:
  const Weights& weights_;
  const i64 first_, end_;
  Buffer& cast_;
  const float* numbers_ = nullptr;
};

}  // namespace tinkersmith_panels
