// One step of decoding: small batches. The rows of x are packed into panels, so that weights are
// read as they lie in memory. The KV cache consists of the panels that products read.
//
// Axes: N rows of x, I and O input and output size of a linear layer, R rank of an adapter, C
// layers joined in one projection that the adapter trains, B sequences that decode together, H
// hidden size, V vocabulary, G key/value heads, J queries per key, D head size, S positions in the
// KV cache.
#ifdef __AVX512BF16__
#include <array>
#include <vector>

#include "vectors.h"

namespace tinkersmith {
namespace {

constexpr i64 TILE = PANEL;     // outputs of a tile: as many as there are rows in a panel
constexpr i64 PREFETCHED = 64;  // numbers of a row of weights that are prefetched at once
constexpr int SUMS = 24;        // vectors of sums that stay in registers
constexpr int FEWER = 4;        // rows of weights at a time, at the end of a tile

// Rows of x in panels of PANEL rows that are summed over I.
struct PackedRows {
  i64 count, panels;
  const bf16* numbers;
  i64 depth;  // I

  const bf16* panel(i64 index) const { return numbers + index * PANEL * depth; }
};

PackedRows packed(const bf16* x, i64 ld_x, i64 count, i64 depth, Scratch<bf16>& scratch) {
  const i64 panels = (count + PANEL - 1) / PANEL;
  bf16* to = scratch.reserve(panels * PANEL * depth);
  for (i64 panel = 0; panel < panels; ++panel)
    pack_rows(x + panel * PANEL * ld_x, ld_x, std::min(PANEL, count - panel * PANEL), depth,
              to + panel * PANEL * depth);
  return {count, panels, to, depth};
}

// Prefetches numbers into a core's own cache. A step reads weights from memory, in runs that are
// too short for the processor to prefetch them itself.
inline void prefetch(const bf16* from, i64 count) {
#pragma GCC unroll 2
  for (i64 i = 0; i < count; i += 2 * LANES) _mm_prefetch(from + i, _MM_HINT_T1);
}

// sums (columns, PANEL rows) = the outputs from n on of one panel of rows, LAST * LANES of which
// are used.
template <int LAST>
void fill_tile(const PackedRows& x, const PackedRows& low, i64 panel, i64 n, i64 columns,
               const bf16* weight, const bf16* b, const bf16* bias, float* sums) {
  auto tile = [&]<int COUNT>(i64 column) {
    __m512 sum[COUNT][VECTORS];
    clear(sum);
    const bf16* rows = weight + (n + column) * x.depth;
    for (i64 k = 0; k < x.depth; k += PREFETCHED) {
      if (panel == 0)
#pragma GCC unroll 24
        for (int i = COUNT; i < 2 * COUNT; ++i) prefetch(rows + i * x.depth + k, PREFETCHED);
      dot<0, LAST>(sum, rows + k, x.depth, x.panel(panel) + k * PANEL,
                   std::min(PREFETCHED, x.depth - k));
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
  for (; column + FEWER <= columns; column += FEWER) tile.template operator()<FEWER>(column);
  for (; column < columns; ++column) tile.template operator()<1>(column);
}

void fill(const PackedRows& x, const PackedRows& low, i64 panel, i64 n, i64 columns,
          const bf16* weight, const bf16* b, const bf16* bias, float* sums) {
  const i64 rows = x.count - panel * PANEL;
  const auto part = rows > 3 * LANES   ? fill_tile<4>
                    : rows > 2 * LANES ? fill_tile<3>
                    : rows > LANES     ? fill_tile<2>
                                       : fill_tile<1>;
  part(x, low, panel, n, columns, weight, b, bias, sums);
}

// Rows that one adapter is added to, within one vector of a panel.
struct Segment {
  const Bfloat16RowUpdate* update;
  i64 panel, vector;
  __mmask16 own;
};

constexpr int TOGETHER = 8;  // rows of an adapter's matrices at a time; even

// What adapters add to rows of one projection. x A^T is rounded to bf16, and packed as x is: the
// numbers of rows with different adapters stand side by side.
class Updates {
 public:
  Updates(const Linear& linear, const PackedRows& x, Scratch<bf16>& scratch) : x_(x) {
    for (i64 group = 0; group < linear.groups; ++group) {
      const Bfloat16RowUpdate& update = linear.updates[group];
      depth_ = std::max(depth_, update.rank);
      const i64 end = update.first + update.rows;
      for (i64 row = update.first; row < end; row = (row / LANES + 1) * LANES) {
        const i64 start = row / LANES * LANES;
        const i64 own = first_lanes(end - start) & ~first_lanes(row - start);
        segments_.push_back({&update, row / PANEL, row % PANEL / LANES,
                             static_cast<__mmask16>(own)});
        for (i64 first = 0; first < update.layers * update.rank; first += TOGETHER)
          tasks_.push_back({static_cast<i64>(segments_.size()) - 1, first});
      }
    }
    low_ = scratch.reserve(JOINED_LAYERS * x.panels * PANEL * depth_);
  }

  // Computes x A^T. All threads call it, and can read all of it afterwards.
  void fill_low() {
    if (tasks_.empty()) return;
#pragma omp for schedule(static)
    for (size_t task = 0; task < tasks_.size(); ++task) {
      const Segment& segment = segments_[tasks_[task][0]];
      const i64 first = tasks_[task][1];
      const i64 left = segment.update->layers * segment.update->rank - first;
      if (left >= TOGETHER)
        fill_ranks<TOGETHER>(segment, first);
      else
        for (i64 i = 0; i < left; i += 2) fill_ranks<2>(segment, first + i);
    }
  }

  // sums (columns, PANEL rows) += (x A^T) B^T, for the outputs from n on of the joined layer that
  // begins at output `start`.
  void add(i64 panel, i64 start, i64 n, i64 columns, float* sums) const {
    for (const Segment& segment : segments_) {
      const Bfloat16RowUpdate& update = *segment.update;
      if (segment.panel != panel) continue;
      i64 layer = 0;
      while (layer < update.layers && update.columns[layer] != start) ++layer;
      if (layer == update.layers) continue;  // it is not trained
      const bf16* low = low_of(segment, layer);
      const bf16* b = update.b[layer] + n * update.rank;
      float* to = sums + segment.vector * LANES;
      i64 i = 0;
      for (; i + TOGETHER <= columns; i += TOGETHER)
        add_outputs<TOGETHER>(segment, low, b + i * update.rank, to + i * PANEL);
      for (; i < columns; ++i) add_outputs<1>(segment, low, b + i * update.rank, to + i * PANEL);
    }
  }

 private:
  // x A^T of a segment's rows and a trained layer: (depth / 2, PANEL, 2), of which LANES rows.
  bf16* low_of(const Segment& segment, i64 layer) const {
    return low_ + ((layer * x_.panels + segment.panel) * depth_ * PANEL) +
           2 * segment.vector * LANES;
  }

  // COUNT rows of A, from `first` on.
  template <int COUNT>
  void fill_ranks(const Segment& segment, i64 first) {
    const Bfloat16RowUpdate& update = *segment.update;
    __m512 sum[COUNT][VECTORS];
    clear(sum);
    dot<0, 1>(sum, update.a + first * x_.depth, x_.depth,
              x_.panel(segment.panel) + 2 * segment.vector * LANES, x_.depth);
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; i += 2) {
      const i64 layer = (first + i) / update.rank, rank = (first + i) % update.rank;
      const __m512i even = _mm512_cvtepu16_epi32(to_bf16(sum[i][0])),
                    odd = _mm512_cvtepu16_epi32(to_bf16(sum[i + 1][0]));
      _mm512_mask_storeu_epi32(low_of(segment, layer) + rank * PANEL, segment.own,
                               _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
  }

  template <int COUNT>
  static void add_outputs(const Segment& segment, const bf16* low, const bf16* b, float* sums) {
    const i64 rank = segment.update->rank;
    __m512 sum[COUNT];
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i) sum[i] = _mm512_load_ps(sums + i * PANEL);
    for (i64 k = 0; k < rank; k += 2) {
      const __m512bh rows = (__m512bh)_mm512_loadu_si512(low + k * PANEL);
#pragma GCC unroll 8
      for (int i = 0; i < COUNT; ++i) {
        int pair;
        std::memcpy(&pair, b + i * rank + k, sizeof pair);
        // What other rows have there is not theirs, and may be no number.
        const __m512bh output = (__m512bh)_mm512_set1_epi32(pair);
        sum[i] = _mm512_mask_dpbf16_ps(sum[i], segment.own, output, rows);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i) _mm512_store_ps(sums + i * PANEL, sum[i]);
  }

  const PackedRows& x_;
  i64 depth_ = 0;  // the largest rank
  bf16* low_;      // (JOINED_LAYERS, panels, depth / 2, PANEL, 2)
  std::vector<Segment> segments_;
  std::vector<std::array<i64, 2>> tasks_;  // of fill_low: a segment, and the first row of A
};

// Like `fill`, of one panel of the rows that adapters are added to. `start` is the first output of
// the joined layer.
void fill_with_updates(const Linear& linear, const PackedRows& x, const Updates& updates, i64 panel,
                       i64 start, i64 n, i64 columns, float* sums) {
  fill(x, {x.count, 0, nullptr, 0}, panel, start + n, columns, linear.weight, nullptr, nullptr,
       sums);
  updates.add(panel, start, n, columns, sums);
  if (linear.bias == nullptr) return;
  for (i64 i = 0; i < columns; ++i) {
    const __m512 bias = _mm512_set1_ps(to_float(linear.bias[start + n + i]));
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) {
      float* to = sums + i * PANEL + j * LANES;
      _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), bias));
    }
  }
}

// sums (columns, PANEL rows), transposed into rows of y; residual may be null, its rows are as far
// apart as those of y.
void write_rows(const float* sums, i64 rows, i64 columns, const bf16* residual, bf16* y, i64 ld_y) {
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
        const i64 at = (r + i) * ld_y + n;
        if (residual != nullptr) row = _mm512_add_ps(row, load(residual + at, columns - n));
        store(y + at, row, columns - n);
      }
    }
}

// Writes a key to panels of PANEL positions, (S / PANEL, D / 2, PANEL, 2).
inline void put_key(bf16* keys, i64 size, i64 position, const bf16* key) {
  bf16* to = keys + position / PANEL * PANEL * size + position % PANEL * 2;
  for (i64 d = 0; d < size; d += 2) std::memcpy(to + d * PANEL, key + d, 2 * sizeof(bf16));
}

// Writes a value to panels of PANEL numbers of D, (D / PANEL, S / 2, PANEL, 2).
inline void put_value(bf16* values, i64 capacity, i64 size, i64 position, const bf16* value) {
  bf16* to = values + position / 2 * 2 * PANEL + position % 2;
  for (i64 d = 0; d < size; ++d) to[d / PANEL * PANEL * capacity + d % PANEL * 2] = value[d];
}

// The most likely tokens of a block of the vocabulary, and the sum of its exponentials, tile by
// tile, for PANEL rows.
struct RunningSums {
  __m512 highest[VECTORS], sums[VECTORS];
  __m512i most_likely[VECTORS];

  RunningSums() {
    for (int j = 0; j < VECTORS; ++j) {
      highest[j] = _mm512_set1_ps(-INFINITY);
      sums[j] = _mm512_setzero_ps();
      most_likely[j] = _mm512_setzero_si512();
    }
  }

  // `first` is the token of the tile's first column; `vectors` * LANES rows are used.
  void add(const float* tile, i64 first, i64 columns, i64 vectors) {
    for (int j = 0; j < vectors; ++j) {
      __m512 top = highest[j];
      __m512i token = most_likely[j];
      for (i64 n = 0; n < columns; ++n) {
        const __m512 logit = _mm512_load_ps(tile + n * PANEL + j * LANES);
        const __mmask16 higher = _mm512_cmp_ps_mask(logit, top, _CMP_GT_OQ);
        token = _mm512_mask_set1_epi32(token, higher, static_cast<int>(first + n));
        top = _mm512_max_ps(top, logit);
      }
      // Before the first tile the sum is 0, and its factor must not be exp(-inf + inf).
      __m512 sum = _mm512_mul_ps(sums[j], shrink(highest[j], top));
      for (i64 n = 0; n < columns; ++n)
        sum = _mm512_add_ps(
            sum, exponential(_mm512_sub_ps(_mm512_load_ps(tile + n * PANEL + j * LANES), top)));
      highest[j] = top;
      most_likely[j] = token;
      sums[j] = sum;
    }
  }

  static __m512 shrink(__m512 before, __m512 now) {
    const __mmask16 begun = _mm512_cmp_ps_mask(before, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ);
    return _mm512_maskz_mov_ps(begun, exponential(_mm512_sub_ps(before, now)));
  }
};

i64 width(const Linear& linear) {
  i64 sum = 0;
  for (const i64 outputs : linear.outputs) sum += outputs;
  return sum;
}

// One new token of each sequence: key and value (G, B, D) are put into its cache behind `lengths`
// positions, and output (B, G J D) attends to them all. query is (G, B, J, D), scaled.
void attend_cache(i64 kv_heads, i64 queries_per_key, i64 head_size, i64 sequences,
                  const i64* lengths, const i64* capacities, bf16* const* cached_keys,
                  bf16* const* cached_values, const bf16* query, const bf16* key, const bf16* value,
                  bf16* output) {
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (i64 sequence = 0; sequence < sequences; ++sequence)
    for (i64 kv_head = 0; kv_head < kv_heads; ++kv_head) {
      static thread_local Scratch<float> scores;
      static thread_local Scratch<bf16> probabilities;
      const i64 capacity = capacities[sequence], seen = lengths[sequence] + 1,
                from = kv_head * sequences + sequence;
      const i64 width = round_up(seen, PANEL);
      bf16* head_keys = cached_keys[sequence] + kv_head * capacity * head_size;
      bf16* head_values = cached_values[sequence] + kv_head * capacity * round_up(head_size, PANEL);
      put_key(head_keys, head_size, seen - 1, key + from * head_size);
      put_value(head_values, capacity, head_size, seen - 1, value + from * head_size);
      float* numbers = scores.reserve(queries_per_key * width);
      bf16* powers = probabilities.reserve(queries_per_key * width);
      const bf16* queries = query + from * queries_per_key * head_size;
      for (i64 k = 0; k < seen; k += PANEL)
        by_tiles(0, queries_per_key, [&]<int COUNT>(i64 i) {
          __m512 sum[COUNT][VECTORS];
          clear(sum);
          dot(sum, queries + i * head_size, head_size, head_keys + k * head_size, head_size);
#pragma GCC unroll 8
          for (int a = 0; a < COUNT; ++a)
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j)
              _mm512_storeu_ps(numbers + (i + a) * width + k + j * LANES, sum[a][j]);
        });
      for (i64 i = 0; i < queries_per_key; ++i) {
        const float sum =
            soft_max(numbers + i * width, seen, round_up(seen, 2), powers + i * width).second;
        numbers[i * width] = 1 / sum;
      }
      bf16* to = output + (sequence * kv_heads + kv_head) * queries_per_key * head_size;
      for (i64 d = 0; d < head_size; d += PANEL)
        by_tiles(0, queries_per_key, [&]<int COUNT>(i64 i) {
          __m512 sum[COUNT][VECTORS];
          clear(sum);
          dot(sum, powers + i * width, width, head_values + d * capacity, round_up(seen, 2));
#pragma GCC unroll 8
          for (int a = 0; a < COUNT; ++a) {
            const __m512 factor = _mm512_set1_ps(numbers[(i + a) * width]);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j)
              store(to + (i + a) * head_size + d + j * LANES, _mm512_mul_ps(sum[a][j], factor),
                    head_size - d - j * LANES);
          }
        });
    }
}

}  // namespace
}  // namespace tinkersmith

using namespace tinkersmith;

extern "C" {

void tinkersmith_small_batch_linear(i64 rows, i64 outputs, i64 inputs, const bf16* x, i64 ld_x,
                                    const bf16* weight, const bf16* low, i64 ld_low, i64 rank,
                                    const bf16* b, const bf16* bias, const bf16* residual, bf16* y,
                                    i64 ld_y) {
  static thread_local Scratch<bf16> packed_x, packed_low;
  const PackedRows main = packed(x, ld_x, rows, inputs, packed_x);
  const PackedRows more = low == nullptr ? PackedRows{rows, 0, nullptr, 0}
                                         : packed(low, ld_low, rows, rank, packed_low);
#pragma omp parallel for schedule(dynamic, 1)
  for (i64 n = 0; n < outputs; n += TILE) {
    alignas(64) float sums[TILE * PANEL];
    const i64 width = std::min(TILE, outputs - n);
    for (i64 panel = 0; panel < main.panels; ++panel) {
      fill(main, more, panel, n, width, weight, b, bias, sums);
      const i64 first = panel * PANEL, at = first * ld_y + n;
      write_rows(sums, std::min(PANEL, rows - first), width,
                 residual == nullptr ? nullptr : residual + at, y + at, ld_y);
    }
  }
}

void tinkersmith_small_batch_projection(i64 rows, const Linear* linear, const bf16* x,
                                        const bf16* residual, bf16* y) {
  static thread_local Scratch<bf16> packed_x, packed_low;
  const PackedRows main = packed(x, linear->inputs, rows, linear->inputs, packed_x);
  Updates updates(*linear, main, packed_low);
  std::vector<std::array<i64, 3>> tiles;  // the joined layer's first output, then in it: first, end
  i64 ld_y = 0;
  for (const i64 outputs : linear->outputs) {
    for (i64 n = 0; n < outputs; n += TILE) tiles.push_back({ld_y, n, std::min(n + TILE, outputs)});
    ld_y += outputs;
  }
#pragma omp parallel
  {
    updates.fill_low();
#pragma omp for schedule(dynamic, 1)
    for (size_t index = 0; index < tiles.size(); ++index) {
      alignas(64) float sums[TILE * PANEL];
      const auto [start, n, end] = tiles[index];
      for (i64 panel = 0; panel < main.panels; ++panel) {
        fill_with_updates(*linear, main, updates, panel, start, n, end - n, sums);
        const i64 first = panel * PANEL, at = first * ld_y + start + n;
        write_rows(sums, std::min(PANEL, rows - first), end - n,
                   residual == nullptr ? nullptr : residual + at, y + at, ld_y);
      }
    }
  }
}

void tinkersmith_logits(i64 count, const Linear* output_layer, const bf16* hidden, bf16* logits,
                        float* highest, int* most_likely, float* sums) {
  static thread_local Scratch<bf16> rows, low_rows;
  const Linear& linear = *output_layer;
  const i64 vocabulary = linear.outputs[0];
  const PackedRows main = packed(hidden, linear.inputs, count, linear.inputs, rows);
  Updates updates(linear, main, low_rows);
  const i64 blocks = (vocabulary + VOCABULARY_BLOCK - 1) / VOCABULARY_BLOCK;
#pragma omp parallel
  updates.fill_low();
#pragma omp parallel for schedule(dynamic, 1)
  for (i64 block = 0; block < blocks; ++block) {
    alignas(64) float tile[TILE * PANEL];
    const i64 end = std::min(vocabulary, (block + 1) * VOCABULARY_BLOCK);
    for (i64 panel = 0; panel < main.panels; ++panel) {
      const i64 first = panel * PANEL, here = std::min(PANEL, count - first);
      RunningSums running;
      for (i64 n = block * VOCABULARY_BLOCK; n < end; n += TILE) {
        const i64 width = std::min(TILE, end - n);
        fill_with_updates(linear, main, updates, panel, 0, n, width, tile);
        if (logits != nullptr)
          write_rows(tile, here, width, nullptr, logits + first * vocabulary + n, vocabulary);
        running.add(tile, n, width, (here + LANES - 1) / LANES);
      }
      alignas(64) float numbers[2][PANEL];
      alignas(64) int tokens[PANEL];
      for (int j = 0; j < VECTORS; ++j) {
        _mm512_store_ps(numbers[0] + j * LANES, running.highest[j]);
        _mm512_store_ps(numbers[1] + j * LANES, running.sums[j]);
        _mm512_store_si512(tokens + j * LANES, running.most_likely[j]);
      }
      for (i64 i = 0; i < here; ++i) {
        highest[(first + i) * blocks + block] = numbers[0][i];
        sums[(first + i) * blocks + block] = numbers[1][i];
        most_likely[(first + i) * blocks + block] = tokens[i];
      }
    }
  }
}

void tinkersmith_fill_cache(i64 kv_heads, i64 head_size, i64 capacity, i64 start, i64 count,
                            const bf16* key, const bf16* value, i64 ld_heads, bf16* cached_keys,
                            bf16* cached_values) {
#pragma omp parallel for schedule(static)
  for (i64 kv_head = 0; kv_head < kv_heads; ++kv_head)
    for (i64 t = 0; t < count; ++t) {
      const bf16 *k = key + kv_head * ld_heads + t * head_size,
                 *v = value + kv_head * ld_heads + t * head_size;
      put_key(cached_keys + kv_head * capacity * head_size, head_size, start + t, k);
      put_value(cached_values + kv_head * capacity * round_up(head_size, PANEL), capacity,
                head_size, start + t, v);
    }
}

void tinkersmith_decode(i64 sequences, i64 hidden_size, i64 kv_heads, i64 queries_per_key,
                        i64 head_size, i64 layer_count, const Layer* layers, float eps,
                        float scale, const float* cosine, const float* sine, i64 ld_rotary,
                        const i64* lengths, const i64* capacities, bf16* const* cached_keys,
                        const i64* key_steps, bf16* const* cached_values, const i64* value_steps,
                        bf16* x) {
  static thread_local Scratch<bf16> scratch;
  const i64 heads = kv_heads * queries_per_key * head_size, kv_width = kv_heads * head_size;
  const i64 inner = width(layers->gate_up);
  bf16* buffer = scratch.reserve(
      sequences * (2 * hidden_size + 3 * heads + 4 * kv_width + inner * 3 / 2));
  auto take = [&](i64 width) { return std::exchange(buffer, buffer + sequences * width); };
  bf16 *normed = take(hidden_size), *middle = take(hidden_size), *qkv = take(heads + 2 * kv_width);
  bf16 *query = take(heads), *key = take(kv_width), *value = take(kv_width),
       *attended = take(heads);
  bf16 *gate_up = take(inner), *activated = take(inner / 2);
  std::vector<bf16*> key_caches(cached_keys, cached_keys + sequences),
      value_caches(cached_values, cached_values + sequences);

  auto project = [&](const Linear& linear, const bf16* input, const bf16* residual, bf16* output) {
    tinkersmith_small_batch_projection(sequences, &linear, input, residual, output);
  };
  for (i64 index = 0; index < layer_count; ++index) {
    const Layer& layer = layers[index];
    tinkersmith_rms_norm_bfloat16(sequences, hidden_size, x, layer.attention_norm, eps, normed);
    project(layer.qkv, normed, nullptr, qkv);
    tinkersmith_split_heads_bfloat16(sequences, kv_heads, queries_per_key, head_size, sequences,
                                     qkv, layer.query_norm, layer.key_norm, eps, cosine, sine,
                                     ld_rotary, scale, query, key, value);
    attend_cache(kv_heads, queries_per_key, head_size, sequences, lengths, capacities,
                 key_caches.data(), value_caches.data(), query, key, value, attended);
    project(layer.output, attended, x, middle);
    tinkersmith_rms_norm_bfloat16(sequences, hidden_size, middle, layer.mlp_norm, eps, normed);
    project(layer.gate_up, normed, nullptr, gate_up);
    tinkersmith_swiglu_bfloat16(sequences, inner / 2, gate_up, activated);
    project(layer.down, activated, middle, x);
    for (i64 sequence = 0; sequence < sequences; ++sequence) {
      key_caches[sequence] += key_steps[sequence];
      value_caches[sequence] += value_steps[sequence];
    }
  }
}
}

#endif  // __AVX512BF16__
