// Causal attention within documents that are packed end to end, forward and backward. Probabilities
// are not saved: the backward pass computes them again from each row's normaliser.
//
// Axes: T packed tokens, G key/value heads, J queries per key, D head size. A row is one query: the
// J rows of a token stand together. Queries are scaled already.
#ifdef __AVX512BF16__
#include <tuple>
#include <vector>

#include "vectors.h"

namespace tinkersmith {
namespace {

constexpr i64 BLOCK = 2 * ROWS;  // rows whose scores are in memory at a time
constexpr i64 TILE = PANEL;      // keys, and rows, of a tile of the backward pass

struct Shape {
  i64 kv_heads, per_key, size, tokens;

  i64 rows() const { return tokens * per_key; }
  i64 width() const { return kv_heads * per_key * size; }
  // The place of a row in a matrix of (T, G J D).
  i64 in_token(i64 kv_head, i64 row) const {
    return row / per_key * width() + (kv_head * per_key + row % per_key) * size;
  }
};

// The places of documents in one head's panels: PANEL keys, or PANEL numbers of all values.
struct Packed {
  std::vector<i64> key_starts, value_starts;  // of each document, in numbers, within a head
  i64 keys = 0, values = 0;                   // numbers of a head

  Packed(i64 documents, const i64* starts, i64 size) {
    for (i64 i = 0; i < documents; ++i) {
      const i64 count = starts[i + 1] - starts[i];
      key_starts.push_back(keys);
      value_starts.push_back(values);
      keys += round_up(count, PANEL) * size;
      values += round_up(count, 2) * round_up(size, PANEL);
    }
  }
};

struct Task {
  i64 kv_head, document, first, last;  // rows, or keys
  i64 cost;
};

void longest_first(std::vector<Task>& tasks) {
  std::sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) {
    return std::tie(b.cost, a.document, a.kv_head, a.first) <
           std::tie(a.cost, b.document, b.kv_head, b.first);
  });
}

// ---- backward

// A document's rows from `first` on, as the tiles of one head read them.
struct Queries {
  i64 count, blocks;           // rows, and tiles of them
  bf16 *across, *grad_across;  // (blocks, D, 64 rows) as panels over D
  bf16 *along, *grad_along;    // (blocks, 64 rows, D) as panels over rows
  float *normaliser, *delta;   // of each row

  i64 panel(i64 size) const { return TILE * round_up(size, PANEL); }
};

Queries pack_queries(const Shape& shape, i64 kv_head, i64 start, i64 first, i64 end,
                     const bf16* query, const bf16* output, const bf16* grad,
                     const float* normaliser) {
  static thread_local Scratch<bf16> scratch, gradients;
  static thread_local Scratch<float> numbers;
  const i64 size = shape.size, count = end - first;
  Queries q{count, (count + TILE - 1) / TILE, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  const i64 across = q.blocks * TILE * round_up(size, 2), along = q.blocks * q.panel(size);
  q.across = scratch.reserve(2 * (across + along));
  q.grad_across = q.across + across;
  q.along = q.grad_across + across;
  q.grad_along = q.along + along;
  q.normaliser = numbers.reserve(2 * q.blocks * TILE);
  q.delta = q.normaliser + q.blocks * TILE;
  bf16* rows = gradients.reserve(TILE * size);
  const bf16* own = query + (kv_head * shape.rows() + start * shape.per_key + first) * size;
  for (i64 block = 0; block < q.blocks; ++block) {
    const i64 here = std::min(TILE, count - block * TILE);
    for (i64 i = 0; i < TILE; ++i) {
      const i64 row = block * TILE + i;
      q.normaliser[row] = 1e30f;  // for missing rows: their probabilities are 0
      q.delta[row] = 0;
      if (i >= here) continue;
      q.normaliser[row] = normaliser[kv_head * shape.rows() + start * shape.per_key + first + row];
      const i64 at = start * shape.width() + shape.in_token(kv_head, first + row);
      __m512 sum = _mm512_setzero_ps();
      for (i64 d = 0; d < size; d += LANES) {
        const __m512 value = load(grad + at + d, size - d);
        sum = _mm512_fmadd_ps(value, load(output + at + d, size - d), sum);
        store(rows + i * size + d, value, size - d);
      }
      q.delta[row] = _mm512_reduce_add_ps(sum);
    }
    const bf16* mine = own + block * TILE * size;
    pack_rows(mine, size, here, size, q.across + block * TILE * round_up(size, 2));
    pack_rows(rows, size, here, size, q.grad_across + block * TILE * round_up(size, 2));
    for (i64 d = 0; d < size; d += PANEL) {
      const i64 to = block * q.panel(size) + d * TILE, width = std::min(PANEL, size - d);
      pack_columns(mine + d, size, width, here, q.along + to);
      pack_columns(rows + d, size, width, here, q.grad_along + to);
      std::memset(q.along + to + round_up(here, 2) * PANEL, 0,
                  (TILE - round_up(here, 2)) * PANEL * sizeof(bf16));
      std::memset(q.grad_along + to + round_up(here, 2) * PANEL, 0,
                  (TILE - round_up(here, 2)) * PANEL * sizeof(bf16));
    }
  }
  return q;
}

// A tile's probabilities and the gradients of its scores, transposed: each key is a row.
struct Tile {
  alignas(64) bf16 probabilities[TILE * TILE];  // (keys, rows)
  alignas(64) bf16 grads[TILE * TILE];          // (keys, rows)
  alignas(64) bf16 paired[TILE * TILE];         // `grads` as a panel: its pairs are keys
};

// tile = `keys` keys of a document from `first_key` on, and TILE rows from `first_row` on.
void fill_tile(const Shape& shape, i64 keys, i64 first_key, i64 first_row, const bf16* key,
               const bf16* value, const Queries& q, i64 block, Tile& tile) {
  const i64 size = shape.size;
  const bf16* across = q.across + block * TILE * round_up(size, 2);
  const bf16* grad_across = q.grad_across + block * TILE * round_up(size, 2);
  const float *normaliser = q.normaliser + block * TILE, *delta = q.delta + block * TILE;
  const bool masked = first_row / shape.per_key < first_key + keys - 1;
  __m512i tokens[VECTORS];
  for (int j = 0; j < VECTORS; ++j) {
    alignas(64) int numbers[LANES];
    for (i64 i = 0; i < LANES; ++i)
      numbers[i] = static_cast<int>((first_row + j * LANES + i) / shape.per_key);
    tokens[j] = _mm512_load_si512(numbers);
  }
  by_tiles(0, keys, [&]<int COUNT>(i64 row) {
    alignas(64) float exact[COUNT][PANEL];
    __m512 sum[COUNT][VECTORS];
    clear(sum);
    dot(sum, key + row * size, size, across, size);
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j) {
        const __m512 gap = _mm512_sub_ps(sum[i][j], _mm512_loadu_ps(normaliser + j * LANES));
        __m512 probability = exponential(gap);
        if (masked) {
          const __m512i mine = _mm512_set1_epi32(static_cast<int>(first_key + row + i));
          probability = _mm512_maskz_mov_ps(_mm512_cmpge_epi32_mask(tokens[j], mine), probability);
        }
        _mm512_store_ps(exact[i] + j * LANES, probability);
        store(tile.probabilities + (row + i) * TILE + j * LANES, probability);
      }
    clear(sum);
    dot(sum, value + row * size, size, grad_across, size);
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j) {
        const __m512 gap = _mm512_sub_ps(sum[i][j], _mm512_loadu_ps(delta + j * LANES));
        store(tile.grads + (row + i) * TILE + j * LANES,
              _mm512_mul_ps(gap, _mm512_load_ps(exact[i] + j * LANES)));
      }
  });
  pack_columns(tile.grads, TILE, TILE, keys, tile.paired);
}

// output (D, TILE) = `count` keys (count, D), transposed; missing keys are 0.
void transpose_keys(const bf16* key, i64 count, i64 size, bf16* output) {
  for (i64 k = 0; k < TILE; k += 2 * LANES)
    for (i64 d = 0; d < size; d += LANES) {
      const __mmask16 mask = first_lanes(size - d);
      auto half = [&](i64 row) {
        return _mm512_cvtepu16_epi32(row < count
                                         ? _mm256_maskz_loadu_epi16(mask, key + row * size + d)
                                         : _mm256_setzero_si256());
      };
      __m512i pairs[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        pairs[i] = _mm512_or_si512(half(k + 2 * i), _mm512_slli_epi32(half(k + 2 * i + 1), 16));
      transpose(pairs);
      for (i64 i = 0; i < std::min<i64>(LANES, size - d); ++i)
        _mm512_storeu_si512(output + (d + i) * TILE + k, pairs[i]);
    }
}

// Writes the gradients of the keys and values from task.first to task.last, and adds the part of
// these keys to those of the queries, grad_query (blocks, D, TILE rows).
void backward_of_keys(const Shape& shape, const Task& task, i64 start, const Queries& q,
                      const bf16* key, const bf16* value, float* grad_query, float* grad_key,
                      float* grad_value) {
  static thread_local Scratch<float> sums;
  static thread_local Scratch<bf16> transposed_scratch;
  static thread_local Tile tile;
  const i64 size = shape.size, wide = round_up(size, PANEL);
  float* of_key = sums.reserve(2 * TILE * wide);
  float* of_value = of_key + TILE * wide;
  bf16* transposed = transposed_scratch.reserve(round_up(size, LANES) * TILE);
  const i64 offset = (task.kv_head * shape.tokens + start) * size;
  const i64 first_row = task.first * shape.per_key;  // of `q`
  for (i64 first = task.first; first < task.last; first += TILE) {
    const i64 count = std::min(TILE, task.last - first);
    const bf16 *keys = key + offset + first * size, *values = value + offset + first * size;
    std::memset(of_key, 0, 2 * TILE * wide * sizeof(float));
    transpose_keys(keys, count, size, transposed);
    for (i64 block = (first * shape.per_key - first_row) / TILE; block < q.blocks; ++block) {
      const i64 row = first_row + block * TILE;
      const i64 seen = std::min(count, (row + TILE - 1) / shape.per_key + 1 - first);
      fill_tile(shape, seen, first, row, keys, values, q, block, tile);
      for (i64 d = 0; d < size; d += PANEL) {
        const i64 panel = block * q.panel(size) + d * TILE;
        add_product(seen, tile.probabilities, TILE, q.grad_along + panel, TILE, of_value + d, wide);
        add_product(seen, tile.grads, TILE, q.along + panel, TILE, of_key + d, wide);
      }
      add_product(size, transposed, TILE, tile.paired, round_up(seen, 2),
                  grad_query + block * size * TILE, TILE);
    }
    for (i64 i = 0; i < count; ++i) {
      const i64 to = offset + (first + i) * size;
      std::memcpy(grad_key + to, of_key + i * wide, size * sizeof(float));
      std::memcpy(grad_value + to, of_value + i * wide, size * sizeof(float));
    }
  }
}

// numbers (D, TILE rows) in fp32 -> output (count, D).
void write_rows(const float* numbers, i64 size, i64 count, bf16* output) {
  for (i64 r = 0; r < count; r += LANES)
    for (i64 d = 0; d < size; d += LANES) {
      __m512i part[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        part[i] = d + i < size ? _mm512_loadu_si512(numbers + (d + i) * TILE + r)
                               : _mm512_setzero_si512();
      transpose(part);
      for (i64 i = 0; i < std::min<i64>(LANES, count - r); ++i)
        store(output + (r + i) * size + d, _mm512_castsi512_ps(part[i]), size - d);
    }
}

}  // namespace
}  // namespace tinkersmith

using namespace tinkersmith;

extern "C" {

void tinkersmith_attend(i64 kv_heads, i64 per_key, i64 size, i64 documents,
                        const i64* starts, const bf16* query, const bf16* key, const bf16* value,
                        bf16* output, float* normaliser) {
  static thread_local Scratch<bf16> packed_keys, packed_values;
  const Shape shape{kv_heads, per_key, size, starts[documents]};
  const Packed packed(documents, starts, size);
  bf16* keys = packed_keys.reserve(kv_heads * packed.keys);
  bf16* values = packed_values.reserve(kv_heads * packed.values);
  std::vector<Task> tasks;
  for (i64 document = 0; document < documents; ++document)
    for (i64 kv_head = 0; kv_head < kv_heads; ++kv_head) {
      const i64 rows = (starts[document + 1] - starts[document]) * per_key;
      for (i64 first = 0; first < rows; first += 8 * BLOCK)
        tasks.push_back({kv_head, document, first, std::min(first + 8 * BLOCK, rows), first});
    }
  longest_first(tasks);
#pragma omp parallel
  {
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (i64 kv_head = 0; kv_head < kv_heads; ++kv_head)
      for (i64 document = 0; document < documents; ++document) {
        const i64 count = starts[document + 1] - starts[document];
        const i64 from = (kv_head * shape.tokens + starts[document]) * size;
        bf16* to = keys + kv_head * packed.keys + packed.key_starts[document];
        for (i64 k = 0; k < count; k += PANEL)
          pack_rows(key + from + k * size, size, std::min(PANEL, count - k), size, to + k * size);
        to = values + kv_head * packed.values + packed.value_starts[document];
        for (i64 d = 0; d < size; d += PANEL)
          pack_columns(value + from + d, size, std::min(PANEL, size - d), count,
                       to + round_up(count, 2) * d);
      }
    static thread_local Scratch<float> score_scratch;
    static thread_local Scratch<bf16> probability_scratch;
#pragma omp for schedule(dynamic, 1)
    for (size_t index = 0; index < tasks.size(); ++index) {
      const Task& task = tasks[index];
      const i64 start = starts[task.document], count = starts[task.document + 1] - start;
      const bf16* packed_head_keys =
          keys + task.kv_head * packed.keys + packed.key_starts[task.document];
      const bf16* packed_head_values =
          values + task.kv_head * packed.values + packed.value_starts[task.document];
      const i64 base = task.kv_head * shape.rows() + start * per_key;  // of the document's rows
      for (i64 first = task.first; first < task.last; first += BLOCK) {
        const i64 last = std::min(first + BLOCK, task.last);
        const i64 seen = (last - 1) / per_key + 1, width = round_up(seen, PANEL);
        float* scores = score_scratch.reserve(BLOCK * width);
        bf16* probabilities = probability_scratch.reserve(BLOCK * width);
        for (i64 k = 0; k < seen; k += PANEL) {
          auto rows = [&]<int COUNT>(i64 row) {
            __m512 sum[COUNT][VECTORS];
            clear(sum);
            const bf16* from = query + (base + row) * size;
            if (seen - k > PANEL / 2)
              dot(sum, from, size, packed_head_keys + k * size, size);
            else
              dot<0, VECTORS / 2>(sum, from, size, packed_head_keys + k * size, size);
#pragma GCC unroll 8
            for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
              for (int j = 0; j < VECTORS; ++j)
                _mm512_storeu_ps(scores + (row + i - first) * width + k + j * LANES, sum[i][j]);
          };
          by_tiles(first, last, rows);
        }
        float inverse[BLOCK];
        for (i64 row = first; row < last; ++row) {
          const i64 at = (row - first) * width;
          const auto [shift, sum] =
              soft_max(scores + at, row / per_key + 1, round_up(seen, 2), probabilities + at);
          inverse[row - first] = 1 / sum;
          normaliser[base + row] = shift + std::log(sum);
        }
        for (i64 d = 0; d < size; d += PANEL)
          by_tiles(first, last, [&]<int COUNT>(i64 row) {
            __m512 sum[COUNT][VECTORS];
            clear(sum);
            dot(sum, probabilities + (row - first) * width, width,
                packed_head_values + round_up(count, 2) * d, round_up(seen, 2));
#pragma GCC unroll 8
            for (int i = 0; i < COUNT; ++i) {
              bf16* to = output + start * shape.width() + shape.in_token(task.kv_head, row + i) + d;
              const __m512 factor = _mm512_set1_ps(inverse[row + i - first]);
#pragma GCC unroll 8
              for (int j = 0; j < VECTORS; ++j)
                store(to + j * LANES, _mm512_mul_ps(sum[i][j], factor), size - d - j * LANES);
            }
          });
      }
    }
  }
}

void tinkersmith_attend_backward(i64 kv_heads, i64 per_key, i64 size, i64 documents,
                                 const i64* starts, const bf16* query, const bf16* key,
                                 const bf16* value, const bf16* output, const float* normaliser,
                                 const bf16* grad, bf16* grad_query, float* grad_key,
                                 float* grad_value) {
  static thread_local Scratch<float> shared;
  const Shape shape{kv_heads, per_key, size, starts[documents]};
  // One task for each head and document. If that gives the threads too few, documents are cut.
  const i64 wanted = 2 * omp_get_max_threads(), cuts = (wanted + kv_heads - 1) / kv_heads;
  std::vector<Task> tasks;
  std::vector<float*> partial;  // the queries' gradients from a task that has part of a document
  i64 needed = 0;
  for (i64 document = 0; document < documents; ++document) {
    const i64 count = starts[document + 1] - starts[document];
    const bool cut = kv_heads * documents < wanted && count > 8 * TILE;
    const i64 keys = cut ? round_up((count + cuts - 1) / cuts, TILE) : count;
    for (i64 kv_head = 0; kv_head < kv_heads; ++kv_head)
      for (i64 first = 0; first < count; first += keys) {
        const i64 last = std::min(first + keys, count);
        const i64 cost = (last - first) * (2 * count - first - last);
        tasks.push_back({kv_head, document, first, last, cost});
        if (keys < count) needed += round_up((count - first) * per_key, TILE) * size;
      }
  }
  longest_first(tasks);
  float* buffer = needed ? shared.reserve(needed) : nullptr;
  for (const Task& task : tasks) {
    const i64 count = starts[task.document + 1] - starts[task.document];
    const bool whole = task.first == 0 && task.last == count;
    partial.push_back(whole ? nullptr : buffer);
    if (!whole) buffer += round_up((count - task.first) * per_key, TILE) * size;
  }
  auto finish = [&](const Task& task, i64 block, const float* numbers) {
    const i64 start = starts[task.document], row = task.first * per_key + block * TILE;
    const i64 rows = (starts[task.document + 1] - start) * per_key;
    write_rows(numbers, size, std::min(TILE, rows - row),
               grad_query + (task.kv_head * shape.rows() + start * per_key + row) * size);
  };
#pragma omp parallel
  {
    static thread_local Scratch<float> own;
#pragma omp for schedule(dynamic, 1)
    for (size_t index = 0; index < tasks.size(); ++index) {
      const Task& task = tasks[index];
      const i64 start = starts[task.document], end = (starts[task.document + 1] - start) * per_key;
      const Queries q = pack_queries(shape, task.kv_head, start, task.first * per_key, end, query,
                                     output, grad, normaliser);
      float* numbers = partial[index];
      if (numbers == nullptr) numbers = own.reserve(q.blocks * TILE * size);
      std::memset(numbers, 0, q.blocks * TILE * size * sizeof(float));
      backward_of_keys(shape, task, start, q, key, value, numbers, grad_key, grad_value);
      if (partial[index] == nullptr)
        for (i64 block = 0; block < q.blocks; ++block)
          finish(task, block, numbers + block * TILE * size);
    }
    // The first task of a cut document covers all of its rows: the others are added to it.
#pragma omp for schedule(dynamic, 1)
    for (size_t index = 0; index < tasks.size(); ++index) {
      const Task& task = tasks[index];
      if (partial[index] == nullptr || task.first > 0) continue;
      const i64 rows = (starts[task.document + 1] - starts[task.document]) * per_key;
      for (size_t other = 0; other < tasks.size(); ++other) {
        const Task& more = tasks[other];
        if (more.kv_head != task.kv_head || more.document != task.document || more.first == 0)
          continue;
        const i64 from = more.first * per_key * size;  // a whole number of tiles
        const i64 count = round_up(rows - more.first * per_key, TILE) * size;
        for (i64 i = 0; i < count; ++i) partial[index][from + i] += partial[other][i];
      }
      for (i64 block = 0; block * TILE < rows; ++block)
        finish(task, block, partial[index] + block * TILE * size);
    }
  }
}
}

#endif  // __AVX512BF16__
