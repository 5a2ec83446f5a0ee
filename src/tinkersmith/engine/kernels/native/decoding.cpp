// One step of decoding: a few rows at a time. Rows stand across, so that weights are read as they
// lie in memory; keys and values of the past are kept as the panels that they are multiplied as.
//
// Axes: B rows (sequences), K what is summed over, N columns, V vocabulary, G key/value heads,
// R queries that share a key, D head size, S positions of the past.
#ifdef __AVX512BF16__
#include <vector>

#include "vectors.h"

namespace tinkersmith {
namespace {

constexpr i64 COLUMNS = 64;   // of a tile: as many as there are rows in a panel
constexpr i64 BLOCK = 1024;   // of the vocabulary: drawing.py wants their sums
constexpr i64 AHEAD = 64;     // numbers of a row of weights that are called into the caches at once
constexpr int SUMS = 24;      // vectors of sums that stay in registers
constexpr int FEW = 4;        // rows of weights at a time, at the end of a tile

// Rows of x as panels of 64, over K.
struct Across {
  i64 count, panels;
  const bf16* numbers;
  i64 depth;

  const bf16* panel(i64 index) const { return numbers + index * PANEL * depth; }
};

Across across(const bf16* x, i64 ldx, i64 count, i64 depth, Scratch<bf16>& scratch) {
  const i64 panels = (count + PANEL - 1) / PANEL;
  bf16* to = scratch.room(panels * PANEL * depth);
  for (i64 panel = 0; panel < panels; ++panel)
    pack_rows(x + panel * PANEL * ldx, ldx, std::min(PANEL, count - panel * PANEL), depth,
              to + panel * PANEL * depth);
  return {count, panels, to, depth};
}

// Calls numbers into a core's own cache: what a step reads comes from memory, in runs that end too
// soon for a processor to guess what follows.
inline void fetch(const bf16* from, i64 count) {
#pragma GCC unroll 2
  for (i64 i = 0; i < count; i += 2 * LANES) _mm_prefetch(from + i, _MM_HINT_T1);
}

// sums (columns, 64 rows) of one panel of rows and some columns from n on; LAST * 16 rows count.
template <int LAST>
void fill_tile(const Across& x, const Across& low, i64 panel, i64 n, i64 columns,
               const bf16* weight, const bf16* b, const bf16* bias, float* sums) {
  auto tile = [&]<int COUNT>(i64 column) {
    __m512 sum[COUNT][VECTORS];
    clear(sum);
    const bf16* rows = weight + (n + column) * x.depth;
    for (i64 k = 0; k < x.depth; k += AHEAD) {
      if (panel == 0)
#pragma GCC unroll 24
        for (int i = COUNT; i < 2 * COUNT; ++i) fetch(rows + i * x.depth + k, AHEAD);
      dot<0, LAST>(sum, rows + k, x.depth, x.panel(panel) + k * PANEL,
                   std::min(AHEAD, x.depth - k));
    }
    if (low.depth)
      dot<0, LAST>(sum, b + (n + column) * low.depth, low.depth, low.panel(panel), low.depth);
#pragma GCC unroll 24
    for (int i = 0; i < COUNT; ++i) {
      const __m512 more = _mm512_set1_ps(bias == nullptr ? 0.0f : to_float(bias[n + column + i]));
#pragma GCC unroll 8
      for (int j = 0; j < LAST; ++j)
        _mm512_store_ps(sums + (column + i) * PANEL + j * LANES, _mm512_add_ps(sum[i][j], more));
    }
  };
  constexpr int MANY = SUMS / LAST;
  i64 column = 0;
  for (; column + MANY <= columns; column += MANY) tile.template operator()<MANY>(column);
  for (; column + FEW <= columns; column += FEW) tile.template operator()<FEW>(column);
  for (; column < columns; ++column) tile.template operator()<1>(column);
}

void fill(const Across& x, const Across& low, i64 panel, i64 n, i64 columns, const bf16* weight,
          const bf16* b, const bf16* bias, float* sums) {
  const i64 rows = x.count - panel * PANEL;
  const auto part = rows > 3 * LANES   ? fill_tile<4>
                    : rows > 2 * LANES ? fill_tile<3>
                    : rows > LANES     ? fill_tile<2>
                                       : fill_tile<1>;
  part(x, low, panel, n, columns, weight, b, bias, sums);
}

// sums (columns, 64 rows) as rows of y; residual may be null, its rows are as far apart as y's.
void write_rows(const float* sums, i64 rows, i64 columns, const bf16* residual, bf16* y, i64 ldy) {
  for (i64 r = 0; r < rows; r += LANES)
    for (i64 n = 0; n < columns; n += LANES) {
      __m512i part[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        part[i] = n + i < columns ? _mm512_load_si512(sums + (n + i) * PANEL + r)
                                  : _mm512_setzero_si512();
      transpose(part);
      for (i64 i = 0; i < std::min(LANES, rows - r); ++i) {
        __m512 row = _mm512_castsi512_ps(part[i]);
        const i64 at = (r + i) * ldy + n;
        if (residual != nullptr) row = _mm512_add_ps(row, load(residual + at, columns - n));
        store(y + at, row, columns - n);
      }
    }
}

// A key into panels of 64 positions over D, (S / 64, D / 2, 64, 2).
inline void put_key(bf16* keys, i64 size, i64 position, const bf16* key) {
  bf16* to = keys + position / PANEL * PANEL * size + position % PANEL * 2;
  for (i64 d = 0; d < size; d += 2) std::memcpy(to + d * PANEL, key + d, 2 * sizeof(bf16));
}

// A value into panels of 64 numbers over the positions, (D / 64, S / 2, 64, 2).
inline void put_value(bf16* values, i64 capacity, i64 size, i64 position, const bf16* value) {
  bf16* to = values + position / 2 * 2 * PANEL + position % 2;
  for (i64 d = 0; d < size; ++d)
    to[d / PANEL * PANEL * capacity + d % PANEL * 2] = value[d];
}

// The likeliest tokens of a block of the vocabulary, and its exponentials added up tile by tile, for 64
// rows.
struct RunningSums {
  __m512 highest[VECTORS], sums[VECTORS];
  __m512i likeliest[VECTORS];

  RunningSums() {
    for (int j = 0; j < VECTORS; ++j) {
      highest[j] = _mm512_set1_ps(-INFINITY);
      sums[j] = _mm512_setzero_ps();
      likeliest[j] = _mm512_setzero_si512();
    }
  }

  // `first` is the token of the tile's first column; `vectors` * 16 rows count.
  void add(const float* tile, i64 first, i64 columns, i64 vectors) {
    for (int j = 0; j < vectors; ++j) {
      __m512 top = highest[j];
      __m512i token = likeliest[j];
      for (i64 n = 0; n < columns; ++n) {
        const __m512 logit = _mm512_load_ps(tile + n * PANEL + j * LANES);
        const __mmask16 higher = _mm512_cmp_ps_mask(logit, top, _CMP_GT_OQ);
        token = _mm512_mask_set1_epi32(token, higher, static_cast<int>(first + n));
        top = _mm512_max_ps(top, logit);
      }
      // Before the first tile there is nothing that could shrink: exp(-inf) times 0.
      __m512 sum = _mm512_mul_ps(sums[j], shrink(highest[j], top));
      for (i64 n = 0; n < columns; ++n)
        sum = _mm512_add_ps(sum, exponential(_mm512_sub_ps(
                                     _mm512_load_ps(tile + n * PANEL + j * LANES), top)));
      highest[j] = top;
      likeliest[j] = token;
      sums[j] = sum;
    }
  }

  static __m512 shrink(__m512 before, __m512 now) {
    const __mmask16 begun = _mm512_cmp_ps_mask(before, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ);
    return _mm512_maskz_mov_ps(begun, exponential(_mm512_sub_ps(before, now)));
  }
};

// A projection of a layer and what an adapter adds to it; what is absent is null.
struct Linear {
  const bf16 *weight, *bias;  // (columns in all, depth), (columns in all)
  const bf16* a;              // (n R, depth), of its n trained parts
  const bf16* b[3];           // (columns, R) of each part
  i64 columns[3];             // of each part: 0 where there is none
  i64 depth, low;             // low: n R

  i64 width() const { return columns[0] + columns[1] + columns[2]; }
};

struct Layer {
  const bf16 *attention_norm, *query_norm, *key_norm, *mlp_norm;
  Linear qkv, output, gate_up, down;
};

}  // namespace
}  // namespace tinkersmith

using namespace tinkersmith;

extern "C" {

// In elementwise.cpp.
void tinkersmith_rms_norm_bfloat16(i64, i64, const bf16*, const bf16*, float, bf16*);
void tinkersmith_swiglu_bfloat16(i64, i64, const bf16*, bf16*);
void tinkersmith_split_heads_bfloat16(i64, i64, i64, i64, i64, const bf16*, const bf16*,
                                      const bf16*, float, const float*, const float*, i64, float,
                                      bf16*, bf16*, bf16*);

// As tinkersmith_linear, for up to some hundred rows.
void tinkersmith_linear_few(i64 count, i64 columns, i64 depth, const bf16* x, i64 ldx,
                            const bf16* weight, const bf16* low, i64 ld_low, i64 rank,
                            const bf16* b, const bf16* bias, const bf16* residual, bf16* y,
                            i64 ldy) {
  static thread_local Scratch<bf16> rows, low_rows;
  const Across main = across(x, ldx, count, depth, rows);
  const Across more = low == nullptr ? Across{count, 0, nullptr, 0}
                                     : across(low, ld_low, count, rank, low_rows);
#pragma omp parallel for schedule(dynamic, 1)
  for (i64 n = 0; n < columns; n += COLUMNS) {
    alignas(64) float sums[COLUMNS * PANEL];
    const i64 width = std::min(COLUMNS, columns - n);
    for (i64 panel = 0; panel < main.panels; ++panel) {
      fill(main, more, panel, n, width, weight, b, bias, sums);
      const i64 first = panel * PANEL, at = first * ldy + n;
      write_rows(sums, std::min(PANEL, count - first), width,
                 residual == nullptr ? nullptr : residual + at, y + at, ldy);
    }
  }
}

// logits (B, V) of hidden (B, K), and of each block of 1,024 tokens the highest (B, blocks), its
// token (B, blocks) and the sum of exp(logit - highest) (B, blocks), in fp32 from the logits before
// they are rounded. logits may be null.
void tinkersmith_logits(i64 count, i64 vocabulary, i64 depth, const bf16* hidden,
                        const bf16* weight, const bf16* low, i64 rank, const bf16* b,
                        const bf16* bias, bf16* logits, float* highest, int* likeliest,
                        float* sums) {
  static thread_local Scratch<bf16> rows, low_rows;
  const Across main = across(hidden, depth, count, depth, rows);
  const Across more = low == nullptr ? Across{count, 0, nullptr, 0}
                                     : across(low, rank, count, rank, low_rows);
  const i64 blocks = (vocabulary + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(dynamic, 1)
  for (i64 block = 0; block < blocks; ++block) {
    alignas(64) float tile[COLUMNS * PANEL];
    const i64 end = std::min(vocabulary, (block + 1) * BLOCK);
    for (i64 panel = 0; panel < main.panels; ++panel) {
      const i64 first = panel * PANEL, here = std::min(PANEL, count - first);
      RunningSums running;
      for (i64 n = block * BLOCK; n < end; n += COLUMNS) {
        const i64 width = std::min(COLUMNS, end - n);
        fill(main, more, panel, n, width, weight, b, bias, tile);
        if (logits != nullptr)
          write_rows(tile, here, width, nullptr, logits + first * vocabulary + n, vocabulary);
        running.add(tile, n, width, (here + LANES - 1) / LANES);
      }
      alignas(64) float numbers[2][PANEL];
      alignas(64) int tokens[PANEL];
      for (int j = 0; j < VECTORS; ++j) {
        _mm512_store_ps(numbers[0] + j * LANES, running.highest[j]);
        _mm512_store_ps(numbers[1] + j * LANES, running.sums[j]);
        _mm512_store_si512(tokens + j * LANES, running.likeliest[j]);
      }
      for (i64 i = 0; i < here; ++i) {
        highest[(first + i) * blocks + block] = numbers[0][i];
        sums[(first + i) * blocks + block] = numbers[1][i];
        likeliest[(first + i) * blocks + block] = tokens[i];
      }
    }
  }
}

// Positions `start` on of one row's keys and values (G, S, D), from key and value (G, T, D), the
// groups of which are `ld` apart. `capacity` is a multiple of 64; so is D made for the values.
void tinkersmith_remember(i64 groups, i64 size, i64 capacity, i64 start, i64 count,
                          const bf16* key, const bf16* value, i64 ld, bf16* keys, bf16* values) {
#pragma omp parallel for schedule(static)
  for (i64 group = 0; group < groups; ++group)
    for (i64 t = 0; t < count; ++t) {
      const bf16 *k = key + group * ld + t * size, *v = value + group * ld + t * size;
      put_key(keys + group * capacity * size, size, start + t, k);
      put_value(values + group * capacity * round_up(size, PANEL), capacity, size, start + t, v);
    }
}

// One new token in each row: its key and value (G, B, D) are put behind the row's lengths[row]
// positions, and output (B, G R D) attends to them all. query is (G, B, R, D), scaled.
void tinkersmith_attend_past(i64 groups, i64 share, i64 size, i64 count, const i64* lengths,
                             const i64* capacities, bf16* const* keys, bf16* const* values,
                             const bf16* query, const bf16* key, const bf16* value, bf16* output) {
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (i64 row = 0; row < count; ++row)
    for (i64 group = 0; group < groups; ++group) {
      static thread_local Scratch<float> scores;
      static thread_local Scratch<bf16> probabilities;
      const i64 capacity = capacities[row], seen = lengths[row] + 1, from = group * count + row;
      const i64 width = round_up(seen, PANEL);
      bf16* own_keys = keys[row] + group * capacity * size;
      bf16* own_values = values[row] + group * capacity * round_up(size, PANEL);
      put_key(own_keys, size, seen - 1, key + from * size);
      put_value(own_values, capacity, size, seen - 1, value + from * size);
      float* numbers = scores.room(share * width);
      bf16* powers = probabilities.room(share * width);
      const bf16* queries = query + from * share * size;
      for (i64 k = 0; k < seen; k += PANEL)
        by_tiles(0, share, [&]<int COUNT>(i64 i) {
          __m512 sum[COUNT][VECTORS];
          clear(sum);
          dot(sum, queries + i * size, size, own_keys + k * size, size);
#pragma GCC unroll 8
          for (int a = 0; a < COUNT; ++a)
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j)
              _mm512_storeu_ps(numbers + (i + a) * width + k + j * LANES, sum[a][j]);
        });
      for (i64 i = 0; i < share; ++i) {
        const float sum =
            soft_max(numbers + i * width, seen, round_up(seen, 2), powers + i * width).second;
        numbers[i * width] = 1 / sum;
      }
      bf16* to = output + (row * groups + group) * share * size;
      for (i64 d = 0; d < size; d += PANEL)
        by_tiles(0, share, [&]<int COUNT>(i64 i) {
          __m512 sum[COUNT][VECTORS];
          clear(sum);
          dot(sum, powers + i * width, width, own_values + d * capacity, round_up(seen, 2));
#pragma GCC unroll 8
          for (int a = 0; a < COUNT; ++a) {
            const __m512 factor = _mm512_set1_ps(numbers[(i + a) * width]);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j)
              store(to + (i + a) * size + d + j * LANES, _mm512_mul_ps(sum[a][j], factor),
                    size - d - j * LANES);
          }
        });
    }
}

// All layers for one new token in each row: x (B, H) becomes what the last one gives. Keys and values
// of row i's first layer begin at keys[i] and values[i], those of the next key_steps[i] and
// value_steps[i] numbers on. cosine and sine are (B, ld).
void tinkersmith_decode(i64 count, i64 hidden, i64 groups, i64 share, i64 size, i64 layers,
                        const void* of_layers, i64 rank, float eps, float scale,
                        const float* cosine, const float* sine, i64 ld, const i64* lengths,
                        const i64* capacities, bf16* const* keys, const i64* key_steps,
                        bf16* const* values, const i64* value_steps, bf16* x) {
  static thread_local Scratch<bf16> scratch;
  const Layer* all = static_cast<const Layer*>(of_layers);
  const i64 heads = groups * share * size, past = groups * size;
  const i64 inner = all->gate_up.width(), low_width = 3 * rank;
  bf16* room = scratch.room(count * (2 * hidden + 3 * heads + 4 * past + inner * 3 / 2 + low_width));
  auto take = [&](i64 width) { return std::exchange(room, room + count * width); };
  bf16 *normed = take(hidden), *middle = take(hidden), *qkv = take(heads + 2 * past);
  bf16 *query = take(heads), *key = take(past), *value = take(past), *attended = take(heads);
  bf16 *gate_up = take(inner), *activated = take(inner / 2), *low = take(low_width);
  std::vector<bf16*> own_keys(keys, keys + count), own_values(values, values + count);

  auto project = [&](const Linear& one, const bf16* input, const bf16* residual, bf16* output) {
    if (one.a != nullptr)
      tinkersmith_linear_few(count, one.low, one.depth, input, one.depth, one.a, nullptr, 0, 0,
                             nullptr, nullptr, nullptr, low, one.low);
    i64 start = 0, trained = 0;
    for (int i = 0; i < 3 && one.columns[i]; ++i) {
      // Without an adapter all parts are one.
      const i64 columns = one.a == nullptr ? one.width() : one.columns[i];
      const bool adds = one.b[i] != nullptr;
      tinkersmith_linear_few(count, columns, one.depth, input, one.depth,
                             one.weight + start * one.depth, adds ? low + trained : nullptr,
                             one.low, adds ? rank : 0, one.b[i],
                             one.bias == nullptr ? nullptr : one.bias + start,
                             residual == nullptr ? nullptr : residual + start, output + start,
                             one.width());
      if (one.a == nullptr) break;
      start += columns;
      trained += adds ? rank : 0;
    }
  };
  for (i64 index = 0; index < layers; ++index) {
    const Layer& layer = all[index];
    tinkersmith_rms_norm_bfloat16(count, hidden, x, layer.attention_norm, eps, normed);
    project(layer.qkv, normed, nullptr, qkv);
    tinkersmith_split_heads_bfloat16(count, groups, share, size, count, qkv, layer.query_norm,
                                     layer.key_norm, eps, cosine, sine, ld, scale, query, key,
                                     value);
    tinkersmith_attend_past(groups, share, size, count, lengths, capacities, own_keys.data(),
                            own_values.data(), query, key, value, attended);
    project(layer.output, attended, x, middle);
    tinkersmith_rms_norm_bfloat16(count, hidden, middle, layer.mlp_norm, eps, normed);
    project(layer.gate_up, normed, nullptr, gate_up);
    tinkersmith_swiglu_bfloat16(count, inner / 2, gate_up, activated);
    project(layer.down, activated, middle, x);
    for (i64 row = 0; row < count; ++row) {
      own_keys[row] += key_steps[row];
      own_values[row] += value_steps[row];
    }
  }
}
}

#endif  // __AVX512BF16__
