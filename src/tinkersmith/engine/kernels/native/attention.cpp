// Causal attention within documents that stand end to end, forward and backward. Probabilities are
// never kept: the backward pass computes them again from each row's normaliser.
//
// Axes: T tokens, G key/value heads, R queries that share a key, D head size. A "row" is one query:
// the R rows of a token stand together. Queries are scaled already.
#ifdef __AVX512BF16__
#include <tuple>
#include <vector>

#include "vectors.h"

namespace tinkersmith {
namespace {

constexpr i64 BLOCK = 2 * ROWS;  // rows whose scores are held at a time
constexpr i64 TILE = PANEL;      // keys, and rows, of a tile of the backward pass

struct Shape {
  i64 groups, share, size, tokens;

  i64 rows() const { return tokens * share; }
  i64 width() const { return groups * share * size; }
  // Where the numbers of a row stand in a matrix of (T, G R D).
  i64 in_token(i64 group, i64 row) const {
    return row / share * width() + (group * share + row % share) * size;
  }
};

// Keys and values of one group and document as panels: keys by blocks of 64, values by 64 numbers.
struct Packed {
  std::vector<i64> key_starts, value_starts;  // of each document, in numbers, within a group
  i64 keys = 0, values = 0;                   // numbers of a group

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
  i64 group, document, first, last;  // rows, or keys
  i64 cost;
};

void longest_first(std::vector<Task>& tasks) {
  std::sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) {
    return std::tie(b.cost, a.document, a.group, a.first) <
           std::tie(a.cost, b.document, b.group, b.first);
  });
}

// ---- backward

// Everything of a document's rows from `first` on, as the tiles of one group want it.
struct Queries {
  i64 count, blocks;          // rows, and tiles of them
  bf16 *across, *grad_across;  // (blocks, D, 64 rows) as panels over D
  bf16 *along, *grad_along;    // (blocks, 64 rows, D) as panels over rows
  float *normaliser, *delta;   // of each row

  i64 panel(i64 size) const { return TILE * round_up(size, PANEL); }
};

Queries pack_queries(const Shape& shape, i64 group, i64 start, i64 first, i64 end, const bf16* query,
                     const bf16* output, const bf16* grad, const float* normaliser) {
  static thread_local Scratch<bf16> scratch, gradients;
  static thread_local Scratch<float> numbers;
  const i64 size = shape.size, count = end - first;
  Queries q{count, (count + TILE - 1) / TILE, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  const i64 across = q.blocks * TILE * round_up(size, 2), along = q.blocks * q.panel(size);
  q.across = scratch.room(2 * (across + along));
  q.grad_across = q.across + across;
  q.along = q.grad_across + across;
  q.grad_along = q.along + along;
  q.normaliser = numbers.room(2 * q.blocks * TILE);
  q.delta = q.normaliser + q.blocks * TILE;
  bf16* rows = gradients.room(TILE * size);
  const bf16* own = query + (group * shape.rows() + start * shape.share + first) * size;
  for (i64 block = 0; block < q.blocks; ++block) {
    const i64 here = std::min(TILE, count - block * TILE);
    for (i64 i = 0; i < TILE; ++i) {
      const i64 row = block * TILE + i;
      q.normaliser[row] = 1e30f;  // of a row that is none: its probabilities are 0
      q.delta[row] = 0;
      if (i >= here) continue;
      q.normaliser[row] = normaliser[group * shape.rows() + start * shape.share + first + row];
      const i64 at = start * shape.width() + shape.in_token(group, first + row);
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

// A tile's probabilities and score gradients, transposed: keys stand as rows.
struct Tile {
  alignas(64) bf16 probabilities[TILE * TILE];  // (keys, rows)
  alignas(64) bf16 grads[TILE * TILE];          // (keys, rows)
  alignas(64) bf16 paired[TILE * TILE];         // the same as a panel: its pairs are of keys
};

// `keys` of a document from `first_key` on against 64 rows from `first_row` on.
void fill_tile(const Shape& shape, i64 keys, i64 first_key, i64 first_row, const bf16* key,
               const bf16* value, const Queries& q, i64 block, Tile& tile) {
  const i64 size = shape.size;
  const bf16* across = q.across + block * TILE * round_up(size, 2);
  const bf16* grad_across = q.grad_across + block * TILE * round_up(size, 2);
  const float *normaliser = q.normaliser + block * TILE, *delta = q.delta + block * TILE;
  const bool masked = first_row / shape.share < first_key + keys - 1;
  __m512i tokens[VECTORS];
  for (int j = 0; j < VECTORS; ++j) {
    alignas(64) int numbers[LANES];
    for (i64 i = 0; i < LANES; ++i)
      numbers[i] = static_cast<int>((first_row + j * LANES + i) / shape.share);
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
          probability =
              _mm512_maskz_mov_ps(_mm512_cmpge_epi32_mask(tokens[j], mine), probability);
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

// Rows of `count` keys, (count, D), as (D, 64): the numbers of a pair of keys stand together.
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

// Gradients of the keys and values from task.first to task.last, written, and what these keys add
// to those of the queries, (blocks, D, 64 rows), added to `grad_query`.
void backward_of_keys(const Shape& shape, const Task& task, i64 start, const Queries& q,
                      const bf16* key, const bf16* value, float* grad_query, float* grad_key,
                      float* grad_value) {
  static thread_local Scratch<float> sums;
  static thread_local Scratch<bf16> turned_scratch;
  static thread_local Tile tile;
  const i64 size = shape.size, wide = round_up(size, PANEL);
  float* of_key = sums.room(2 * TILE * wide);
  float* of_value = of_key + TILE * wide;
  bf16* turned = turned_scratch.room(round_up(size, LANES) * TILE);
  const i64 offset = (task.group * shape.tokens + start) * size;
  const i64 first_row = task.first * shape.share;  // of `q`
  for (i64 first = task.first; first < task.last; first += TILE) {
    const i64 count = std::min(TILE, task.last - first);
    const bf16 *keys = key + offset + first * size, *values = value + offset + first * size;
    std::memset(of_key, 0, 2 * TILE * wide * sizeof(float));
    transpose_keys(keys, count, size, turned);
    for (i64 block = (first * shape.share - first_row) / TILE; block < q.blocks; ++block) {
      const i64 row = first_row + block * TILE;
      const i64 seen = std::min(count, (row + TILE - 1) / shape.share + 1 - first);
      fill_tile(shape, seen, first, row, keys, values, q, block, tile);
      for (i64 d = 0; d < size; d += PANEL) {
        const i64 panel = block * q.panel(size) + d * TILE;
        add_product(seen, tile.probabilities, TILE, q.grad_along + panel, TILE, of_value + d, wide);
        add_product(seen, tile.grads, TILE, q.along + panel, TILE, of_key + d, wide);
      }
      add_product(size, turned, TILE, tile.paired, round_up(seen, 2),
                  grad_query + block * size * TILE, TILE);
    }
    for (i64 i = 0; i < count; ++i) {
      const i64 to = offset + (first + i) * size;
      std::memcpy(grad_key + to, of_key + i * wide, size * sizeof(float));
      std::memcpy(grad_value + to, of_value + i * wide, size * sizeof(float));
    }
  }
}

// (D, 64 rows) in fp32 -> `count` rows of D numbers.
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

// output (T, G R D), and the logarithm of each row's sum of exponentials, normaliser (G, T R) in
// fp32, of query (G, T R, D), key and value (G, T, D); document i has tokens starts[i] to
// starts[i + 1].
void tinkersmith_attend(i64 groups, i64 share, i64 size, i64 documents, const i64* starts,
                        const bf16* query, const bf16* key, const bf16* value, bf16* output,
                        float* normaliser) {
  static thread_local Scratch<bf16> packed_keys, packed_values;
  const Shape shape{groups, share, size, starts[documents]};
  const Packed packed(documents, starts, size);
  bf16* keys = packed_keys.room(groups * packed.keys);
  bf16* values = packed_values.room(groups * packed.values);
  std::vector<Task> tasks;
  for (i64 document = 0; document < documents; ++document)
    for (i64 group = 0; group < groups; ++group) {
      const i64 rows = (starts[document + 1] - starts[document]) * share;
      for (i64 first = 0; first < rows; first += 8 * BLOCK)
        tasks.push_back({group, document, first, std::min(first + 8 * BLOCK, rows), first});
    }
  longest_first(tasks);
#pragma omp parallel
  {
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (i64 group = 0; group < groups; ++group)
      for (i64 document = 0; document < documents; ++document) {
        const i64 count = starts[document + 1] - starts[document];
        const i64 from = (group * shape.tokens + starts[document]) * size;
        bf16* to = keys + group * packed.keys + packed.key_starts[document];
        for (i64 k = 0; k < count; k += PANEL)
          pack_rows(key + from + k * size, size, std::min(PANEL, count - k), size, to + k * size);
        to = values + group * packed.values + packed.value_starts[document];
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
      const bf16* own_keys = keys + task.group * packed.keys + packed.key_starts[task.document];
      const bf16* own_values =
          values + task.group * packed.values + packed.value_starts[task.document];
      const i64 base = task.group * shape.rows() + start * share;  // of the document's rows
      for (i64 first = task.first; first < task.last; first += BLOCK) {
        const i64 last = std::min(first + BLOCK, task.last);
        const i64 seen = (last - 1) / share + 1, width = round_up(seen, PANEL);
        float* scores = score_scratch.room(BLOCK * width);
        bf16* probabilities = probability_scratch.room(BLOCK * width);
        for (i64 k = 0; k < seen; k += PANEL) {
          auto rows = [&]<int COUNT>(i64 row) {
            __m512 sum[COUNT][VECTORS];
            clear(sum);
            const bf16* from = query + (base + row) * size;
            if (seen - k > PANEL / 2)
              dot(sum, from, size, own_keys + k * size, size);
            else
              dot<0, VECTORS / 2>(sum, from, size, own_keys + k * size, size);
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
              soft_max(scores + at, row / share + 1, round_up(seen, 2), probabilities + at);
          inverse[row - first] = 1 / sum;
          normaliser[base + row] = shift + std::log(sum);
        }
        for (i64 d = 0; d < size; d += PANEL)
          by_tiles(first, last, [&]<int COUNT>(i64 row) {
            __m512 sum[COUNT][VECTORS];
            clear(sum);
            dot(sum, probabilities + (row - first) * width, width,
                own_values + round_up(count, 2) * d, round_up(seen, 2));
#pragma GCC unroll 8
            for (int i = 0; i < COUNT; ++i) {
              bf16* to = output + start * shape.width() + shape.in_token(task.group, row + i) + d;
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

// The gradients of query (G, T R, D), and in fp32 of key and value (G, T, D), from that of output.
void tinkersmith_attend_backward(i64 groups, i64 share, i64 size, i64 documents, const i64* starts,
                                 const bf16* query, const bf16* key, const bf16* value,
                                 const bf16* output, const float* normaliser, const bf16* grad,
                                 bf16* grad_query, float* grad_key, float* grad_value) {
  static thread_local Scratch<float> shared;
  const Shape shape{groups, share, size, starts[documents]};
  // One task for a group and document; where these are too few for the threads, documents are cut.
  const i64 wanted = 2 * omp_get_max_threads(), cuts = (wanted + groups - 1) / groups;
  std::vector<Task> tasks;
  std::vector<float*> partial;  // what a task that is one of several adds to the queries' gradients
  i64 needed = 0;
  for (i64 document = 0; document < documents; ++document) {
    const i64 count = starts[document + 1] - starts[document];
    const bool cut = groups * documents < wanted && count > 8 * TILE;
    const i64 keys = cut ? round_up((count + cuts - 1) / cuts, TILE) : count;
    for (i64 group = 0; group < groups; ++group)
      for (i64 first = 0; first < count; first += keys) {
        const i64 last = std::min(first + keys, count);
        const i64 cost = (last - first) * (2 * count - first - last);
        tasks.push_back({group, document, first, last, cost});
        if (keys < count) needed += round_up((count - first) * share, TILE) * size;
      }
  }
  longest_first(tasks);
  float* room = needed ? shared.room(needed) : nullptr;
  for (const Task& task : tasks) {
    const i64 count = starts[task.document + 1] - starts[task.document];
    const bool whole = task.first == 0 && task.last == count;
    partial.push_back(whole ? nullptr : room);
    if (!whole) room += round_up((count - task.first) * share, TILE) * size;
  }
  auto finish = [&](const Task& task, i64 block, const float* numbers) {
    const i64 start = starts[task.document], row = task.first * share + block * TILE;
    const i64 rows = (starts[task.document + 1] - start) * share;
    write_rows(numbers, size, std::min(TILE, rows - row),
               grad_query + (task.group * shape.rows() + start * share + row) * size);
  };
#pragma omp parallel
  {
    static thread_local Scratch<float> own;
#pragma omp for schedule(dynamic, 1)
    for (size_t index = 0; index < tasks.size(); ++index) {
      const Task& task = tasks[index];
      const i64 start = starts[task.document], end = (starts[task.document + 1] - start) * share;
      const Queries q = pack_queries(shape, task.group, start, task.first * share, end, query,
                                     output, grad, normaliser);
      float* numbers = partial[index];
      if (numbers == nullptr) numbers = own.room(q.blocks * TILE * size);
      std::memset(numbers, 0, q.blocks * TILE * size * sizeof(float));
      backward_of_keys(shape, task, start, q, key, value, numbers, grad_key, grad_value);
      if (partial[index] == nullptr)
        for (i64 block = 0; block < q.blocks; ++block)
          finish(task, block, numbers + block * TILE * size);
    }
    // The first task of a document that was cut covers all of its rows: the others add to it.
#pragma omp for schedule(dynamic, 1)
    for (size_t index = 0; index < tasks.size(); ++index) {
      const Task& task = tasks[index];
      if (partial[index] == nullptr || task.first > 0) continue;
      const i64 rows = (starts[task.document + 1] - starts[task.document]) * share;
      for (size_t other = 0; other < tasks.size(); ++other) {
        const Task& more = tasks[other];
        if (more.group != task.group || more.document != task.document || more.first == 0) continue;
        const i64 from = more.first * share * size;  // a whole number of tiles
        const i64 count = round_up(rows - more.first * share, TILE) * size;
        for (i64 i = 0; i < count; ++i) partial[index][from + i] += partial[other][i];
      }
      for (i64 block = 0; block * TILE < rows; ++block)
        finish(task, block, partial[index] + block * TILE * size);
    }
  }
}
}

#endif  // __AVX512BF16__
