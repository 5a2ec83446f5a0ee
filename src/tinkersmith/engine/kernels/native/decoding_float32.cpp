// One step of decoding in fp32, on every processor: all layers in one parallel region. Rows are in
// panels (see panels.h). Threads share the rows, each going through all layers with its own ones
// and waiting for nobody, where there are enough rows or the weights stay in the caches. Else they
// share the outputs of each product, and wait for each other five times a layer. Rows are sequences
// that decode together, or the tokens of prompts.
//
// Axes: N rows of x, I and O input and output size of a linear layer, R rank of an adapter, C
// layers joined in one projection that the adapter trains, B sequences that decode together, H
// hidden size, F width of the MLP, G key/value heads, J queries per key, Q = G J query heads, D head
// size, S positions in the KV cache.
#include <omp.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "weight_columns.h"

using namespace tinkersmith_panels;

namespace {

constexpr i64 CACHED = 16 << 20;   // bytes of weights that stay in a processor's caches
constexpr i64 OWN_ROWS = 2 * FLOAT_PANEL;  // rows for which a thread reads larger weights alone
constexpr i64 READERS = 4;         // at most so many threads do
constexpr int SPINS = 1 << 12;     // looks at whether the others are there before a thread sleeps
constexpr i64 BLOCK_ROWS = 256;    // rows of prompts that go through the layers together
constexpr i64 POSITIONS = FLOAT_PANEL;  // of a panel of keys
constexpr int KEY_VECTORS = POSITIONS / LANES;

// Threads that do one step together, phase by phase. In each they take tiles until none is left.
class Team {
 public:
  explicit Team(i64 size) : size_(size) {}

  i64 take() { return next_.fetch_add(1, std::memory_order_relaxed); }

  // The end of a phase: all that was written in it can be read.
  void wait() {
    const int phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      if (size_ > 1) phase_.notify_all();
      return;
    }
    for (int i = 0; i < SPINS; ++i) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    phase_.wait(phase, std::memory_order_acquire);
  }

 private:
  const i64 size_;
  std::atomic<i64> next_{0}, arrived_{0};
  std::atomic<int> phase_{0};
};

struct Model {
  i64 hidden, kv_heads, per_key, head_size, layer_count;
  const Float32Layer* layers;
  float eps, scale;
  const float *cosine, *sine;  // (B, D/2)
  i64 ld_rotary;

  i64 heads() const { return kv_heads * per_key; }
  i64 qkv() const { return (heads() + 2 * kv_heads) * head_size; }
  i64 inner() const { return layers->gate_up.outputs[0]; }
};

struct Caches {
  const i64 *lengths, *capacities;
  float* const* keys;
  const i64* key_steps;
  float* const* values;
  const i64* value_steps;

  // Whether a row is the token after the one of the row before.
  bool continues(i64 row) const { return row > 0 && keys[row] == keys[row - 1]; }
};

// Panels of rows that go through the layers together, and what a team shares of them.
struct Block {
  i64 first, rows, panels;
  bool linked = false;  // whether a panel continues the sequence of the one before
  float* x = nullptr;  // this and all others: (panels, features, ROWS)
  float* middle = nullptr;
  float* qkv = nullptr;
  float* attended = nullptr;
  float* activated = nullptr;
  float* rotary = nullptr;  // cosines, then sines, D/2 each

  i64 rows_of(i64 panel) const { return std::min(ROWS, rows - panel * ROWS); }
  i64 vectors_of(i64 panel) const { return (rows_of(panel) + LANES - 1) / LANES; }
};

// Rows of a panel that one adapter is added to, and x A^T of the vectors that they are in.
struct Segment {
  const RowUpdate* update;
  i64 panel, first, end;  // lanes of the panel
  i64 place;              // of x A^T (C R, ROWS) in the numbers of all segments

  i64 first_vector() const { return first / LANES; }
  i64 end_vector() const { return (end + LANES - 1) / LANES; }
};

// What each thread has of its own.
struct Scratch {
  Buffer normed, low, cast, heads, scores, queries;
  std::vector<Segment> segments;
};

float* panel_of(float* numbers, i64 features, i64 panel) {
  return numbers + panel * features * ROWS;
}

// output = x / sqrt(mean(x^2) + eps) * weight for panels of `width` features.
void norm(const Block& block, float* x, i64 width, const float* weight, float eps, float* output) {
  for (i64 panel = 0; panel < block.panels; ++panel) {
    const float* from = panel_of(x, width, panel);
    float* to = panel_of(output, width, panel);
    for (i64 j = 0; j < block.vectors_of(panel); ++j) {
      Vector sums[4] = {};
      i64 i = 0;
      for (; i + 4 <= width; i += 4)
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) {
          const Vector number = load(from + (i + part) * ROWS + j * LANES);
          sums[part] = add_product(sums[part], number, number);
        }
      for (; i < width; ++i) {
        const Vector number = load(from + i * ROWS + j * LANES);
        sums[0] = add_product(sums[0], number, number);
      }
      const Vector mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(width);
      Vector inverse;
      for (int lane = 0; lane < LANES; ++lane) inverse[lane] = 1.0f / std::sqrt(mean[lane] + eps);
      for (i = 0; i < width; ++i)
        store(to + i * ROWS + j * LANES,
              load(from + i * ROWS + j * LANES) * inverse * all(weight[i]));
    }
  }
}

// One head (D, ROWS) normed, rotated (Su et al. 2021) and scaled, in the vectors that are used;
// cosine and sine are (D/2, ROWS).
void rotate(const float* x, i64 vectors, i64 size, const float* norm, float eps,
            const float* cosine, const float* sine, float scale, float* output) {
  const i64 half = size / 2;
  for (i64 j = 0; j < vectors; ++j) {
    Vector factor = all(scale);
    if (norm != nullptr) {
      Vector sum = {};
      for (i64 i = 0; i < size; ++i) {
        const Vector number = load(x + i * ROWS + j * LANES);
        sum = add_product(sum, number, number);
      }
      const Vector mean = sum / static_cast<float>(size);
      for (int lane = 0; lane < LANES; ++lane) factor[lane] = scale / std::sqrt(mean[lane] + eps);
    }
    for (i64 i = 0; i < half; ++i) {
      const i64 at = i * ROWS + j * LANES, behind = (half + i) * ROWS + j * LANES;
      Vector left = load(x + at) * factor, right = load(x + behind) * factor;
      if (norm != nullptr) left *= all(norm[i]), right *= all(norm[half + i]);
      const Vector cos = load(cosine + at), sin = load(sine + at);
      store(output + at, left * cos - right * sin);
      store(output + behind, right * cos + left * sin);
    }
  }
}

// Writes a key (D) to panels of positions, (S / POSITIONS, D, POSITIONS).
inline void put_key(float* keys, i64 size, i64 position, const float* key, i64 step) {
  float* to = keys + position / POSITIONS * POSITIONS * size + position % POSITIONS;
  for (i64 d = 0; d < size; ++d) to[d * POSITIONS] = key[d * step];
}

// Writes a value (D) to rows of D, rounded up to a multiple of POSITIONS: (S, D').
inline void put_value(float* values, i64 size, i64 position, const float* value, i64 step) {
  float* to = values + position * round_up(size, POSITIONS);
  for (i64 d = 0; d < size; ++d) to[d] = value[d * step];
}

// scores (COUNT, S) = queries (COUNT, D) times cached keys.
template <int COUNT>
void score(const float* queries, i64 size, const float* keys, i64 seen, float* scores, i64 width) {
  for (i64 position = 0; position < seen; position += POSITIONS) {
    Vector sums[COUNT][KEY_VECTORS] = {};
    const float* panel = keys + position * size;
    for (i64 d = 0; d < size; ++d)
#pragma GCC unroll 4
      for (int j = 0; j < KEY_VECTORS; ++j) {
        const Vector key = load(panel + d * POSITIONS + j * LANES);
#pragma GCC unroll 4
        for (int i = 0; i < COUNT; ++i)
          sums[i][j] = add_product(sums[i][j], all(queries[i * size + d]), key);
      }
    for (int i = 0; i < COUNT; ++i)
      for (int j = 0; j < KEY_VECTORS; ++j)
        store(scores + i * width + position + j * LANES, sums[i][j]);
  }
}

// Scores become exp(score - largest), and 0 from `seen` on; returns 1 / their sum.
float soft_max(float* scores, i64 seen, i64 width) {
  for (i64 s = seen; s < width; ++s) scores[s] = -INFINITY;
  Vector largest = load(scores);
  for (i64 s = LANES; s < width; s += LANES) {
    const Vector more = load(scores + s);
    largest = more > largest ? more : largest;
  }
  float top = largest[0];
  for (int lane = 1; lane < LANES; ++lane) top = std::max(top, largest[lane]);
  for (i64 s = 0; s < width; s += LANES)
    store(scores + s, exponential(load(scores + s) - all(top)));
  for (i64 s = seen; s < width; ++s) scores[s] = 0;
  Vector sums = {};
  for (i64 s = 0; s < width; s += LANES) sums += load(scores + s);
  float sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum += sums[lane];
  return 1.0f / sum;
}

// output (COUNT queries, D, ROWS) of one row = powers (COUNT, S) times values (S, D'), times 1 / sum.
template <int COUNT>
void weigh(const float* powers, i64 width, const float* factors, const float* values, i64 seen,
           i64 size, float* output) {
  const i64 padded = round_up(size, POSITIONS);
  for (i64 d = 0; d < padded; d += POSITIONS) {
    Vector sums[COUNT][KEY_VECTORS] = {};
    for (i64 s = 0; s < seen; ++s)
#pragma GCC unroll 4
      for (int j = 0; j < KEY_VECTORS; ++j) {
        const Vector value = load(values + s * padded + d + j * LANES);
#pragma GCC unroll 4
        for (int i = 0; i < COUNT; ++i)
          sums[i][j] = add_product(sums[i][j], all(powers[i * width + s]), value);
      }
    for (int i = 0; i < COUNT; ++i)
      for (i64 k = 0; k < std::min(POSITIONS, size - d); ++k)
        output[(i * size + d + k) * ROWS] = sums[i][k / LANES][k % LANES] * factors[i];
  }
}

// One new token of each row of a panel in one key/value head: its key and value are put into the
// row's cache, and its queries attend to all of it.
void attend(const Model& model, const Float32Layer& layer, i64 index, const Caches& caches,
            const Block& block, i64 panel, i64 kv_head, Scratch& scratch) {
  const i64 size = model.head_size, per_key = model.per_key, rows = block.rows_of(panel);
  const i64 vectors = block.vectors_of(panel);
  const float* qkv = panel_of(block.qkv, model.qkv(), panel);
  const float *cosine = panel_of(block.rotary, size, panel), *sine = cosine + size / 2 * ROWS;
  float* heads = scratch.heads.reserve((per_key + 1) * size * ROWS);
  for (i64 i = 0; i < per_key; ++i)
    rotate(qkv + (kv_head * per_key + i) * size * ROWS, vectors, size, layer.query_norm, model.eps,
           cosine, sine, model.scale, heads + i * size * ROWS);
  const float* keys = qkv + (model.heads() + kv_head) * size * ROWS;
  rotate(keys, vectors, size, layer.key_norm, model.eps, cosine, sine, 1.0f,
         heads + per_key * size * ROWS);
  float* queries = scratch.queries.reserve(per_key * size + per_key);
  float* factors = queries + per_key * size;
  for (i64 row = 0; row < rows; ++row) {
    const i64 sequence = block.first + panel * ROWS + row, capacity = caches.capacities[sequence],
              seen = caches.lengths[sequence] + 1, width = round_up(seen, POSITIONS);
    float* key_cache = caches.keys[sequence] + index * caches.key_steps[sequence] +
                       kv_head * capacity * size;
    float* value_cache = caches.values[sequence] + index * caches.value_steps[sequence] +
                         kv_head * capacity * round_up(size, POSITIONS);
    put_key(key_cache, size, seen - 1, heads + per_key * size * ROWS + row, ROWS);
    put_value(value_cache, size, seen - 1, keys + model.kv_heads * size * ROWS + row, ROWS);
    for (i64 i = 0; i < per_key * size; ++i) queries[i] = heads[i * ROWS + row];
    float* scores = scratch.scores.reserve(per_key * width);
    float* output = panel_of(block.attended, model.heads() * size, panel) +
                    kv_head * per_key * size * ROWS + row;
    auto some = [&]<int COUNT>(i64 i) {
      score<COUNT>(queries + i * size, size, key_cache, seen, scores + i * width, width);
      for (i64 one = i; one < i + COUNT; ++one)
        factors[one] = soft_max(scores + one * width, seen, width);
      weigh<COUNT>(scores + i * width, width, factors + i, value_cache, seen, size,
                   output + i * size * ROWS);
    };
    i64 i = 0;
    for (; i + 4 <= per_key; i += 4) some.template operator()<4>(i);
    for (; i + 2 <= per_key; i += 2) some.template operator()<2>(i);
    for (; i < per_key; ++i) some.template operator()<1>(i);
  }
}

// The weights from output `start` on.
Weights weights_of(const Float32Linear& linear, i64 start) {
  const i64 before = start * linear.inputs;
  return {linear.weight == nullptr ? nullptr : linear.weight + before,
          linear.narrow_weight == nullptr ? nullptr : linear.narrow_weight + before, linear.inputs};
}

// x A^T for all rows of a block that have an adapter. Every thread computes it for itself: it is
// small, and nobody waits for it.
void fill_low(const Float32Linear& linear, const Block& block, float* x, Scratch& scratch) {
  scratch.segments.clear();
  i64 place = 0;
  for (i64 group = 0; group < linear.groups; ++group) {
    const RowUpdate& update = linear.updates[group];
    const i64 from = std::max(update.first - block.first, i64{0}),
              to = std::min(update.first + update.rows - block.first, block.rows);
    for (i64 row = from; row < to; row = (row / ROWS + 1) * ROWS) {
      const i64 panel = row / ROWS, first = row % ROWS, end = std::min(ROWS, to - panel * ROWS);
      scratch.segments.push_back({&update, panel, first, end, place});
      place += update.layers * update.rank * ROWS;
    }
  }
  float* low = scratch.low.reserve(place);
  for (const Segment& segment : scratch.segments) {
    const i64 skipped = segment.first_vector() * LANES;
    float* to = low + segment.place + skipped;
    const Weights weights{segment.update->a, nullptr, linear.inputs};
    TileWeights whole(weights, 0, segment.update->layers * segment.update->rank, scratch.cast);
    whole.outputs(segment.end - skipped, panel_of(x, linear.inputs, segment.panel) + skipped,
                  [&]<int COUNT, int USED>(i64 o, Vector(&sums)[COUNT][USED]) {
                    for (int i = 0; i < COUNT; ++i)
                      for (int j = 0; j < USED; ++j)
                        store(to + (o + i) * ROWS + j * LANES, sums[i][j]);
                  });
  }
}

// The lanes of a vector from `first` to `end` are all ones, the others 0.
inline Integers lanes(i64 first, i64 end) {
  Integers numbers;
  for (int i = 0; i < LANES; ++i) numbers[i] = first <= i && i < end ? -1 : 0;
  return numbers;
}

// sums (COUNT outputs, USED vectors) += low B^T of a segment, for the outputs from `output` on of
// the joined layer that begins at column `start`.
template <int COUNT, int USED>
inline void add_segment(const Segment& segment, const float* low, i64 start, i64 output,
                        Vector (&sums)[COUNT][USED]) {
  const RowUpdate& update = *segment.update;
  i64 layer = 0;
  while (layer < update.layers && update.columns[layer] != start) ++layer;
  if (layer == update.layers) return;  // it is not trained
  const float *b = update.b[layer] + output,
              *from = low + segment.place + layer * update.rank * ROWS;
  const i64 ld_b = update.outputs[layer];
  for (i64 j = segment.first_vector(); j < std::min<i64>(USED, segment.end_vector()); ++j) {
    Vector more[COUNT] = {};
    for (i64 r = 0; r < update.rank; ++r) {
      const Vector numbers = load(from + r * ROWS + j * LANES);
#pragma GCC unroll 24
      for (int i = 0; i < COUNT; ++i)
        more[i] = add_product(more[i], all(b[r * ld_b + i]), numbers);
    }
    // What other rows have there is not theirs, and may be no number.
    const Integers own = lanes(segment.first - j * LANES, segment.end - j * LANES);
#pragma GCC unroll 24
    for (int i = 0; i < COUNT; ++i) sums[i][j] = own ? sums[i][j] + more[i] : sums[i][j];
  }
}

// One of the joined layers of a projection.
struct Joined {
  i64 start, outputs;  // its first output, and how many
};

int joined_of(const Float32Linear& linear, Joined (&joined)[JOINED_LAYERS]) {
  int count = 0;
  i64 start = 0;
  for (; count < JOINED_LAYERS && linear.outputs[count]; ++count) {
    joined[count] = {start, linear.outputs[count]};
    start += linear.outputs[count];
  }
  return count;
}

// Outputs `first` to `end` of one joined layer, of every panel, to `output` of `width` features,
// from feature `place` on; plus bias and residual, where there are any.
void write_outputs(const Float32Linear& linear, const Joined& layer, i64 first, i64 end,
                   const Block& block, float* x, float* residual, float* output, i64 width,
                   i64 place, Scratch& scratch) {
  const Weights weights = weights_of(linear, layer.start);
  TileWeights tile(weights, first, end, scratch.cast);
  const float* bias = linear.bias == nullptr ? nullptr : linear.bias + layer.start;
  for (i64 panel = 0; panel < block.panels; ++panel) {
    float* to = panel_of(output, width, panel) + (place - first) * ROWS;
    const float* more =
        residual == nullptr ? nullptr : panel_of(residual, width, panel) + (place - first) * ROWS;
    tile.outputs(block.rows_of(panel), panel_of(x, linear.inputs, panel),
                 [&]<int COUNT, int USED>(i64 o, Vector(&sums)[COUNT][USED]) {
                   for (const Segment& segment : scratch.segments)
                     if (segment.panel == panel)
                       add_segment(segment, scratch.low.numbers(), layer.start, o, sums);
                   for (int i = 0; i < COUNT; ++i)
                     for (int j = 0; j < USED; ++j) {
                       const i64 at = (o + i) * ROWS + j * LANES;
                       Vector sum = sums[i][j];
                       if (bias != nullptr) sum += all(bias[o + i]);
                       if (more != nullptr) sum += load(more + at);
                       store(to + at, sum);
                     }
                 });
  }
}

// output (O, ROWS) = x W^T + what adapters add + bias + residual, tile by tile.
void project(const Float32Linear& linear, const Block& block, float* x, float* residual,
             float* output, Team& team, Scratch& scratch) {
  Joined joined[JOINED_LAYERS];
  const int count = joined_of(linear, joined);
  const i64 width = joined[count - 1].start + joined[count - 1].outputs;
  fill_low(linear, block, x, scratch);
  i64 before = 0, tile = team.take();
  for (int i = 0; i < count; ++i) {
    const Joined& layer = joined[i];
    const i64 tiles = tile_count(layer.outputs);
    for (; tile < before + tiles; tile = team.take()) {
      const i64 first = tile_start(layer.outputs, tile - before),
                end = tile_start(layer.outputs, tile - before + 1);
      write_outputs(linear, layer, first, end, block, x, residual, output, width,
                    layer.start + first, scratch);
    }
    before += tiles;
  }
}

// activated (F, ROWS) = silu(gate) * up
void project_swiglu(const Float32Linear& linear, const Block& block, float* x, Team& team,
                    Scratch& scratch) {
  Joined joined[JOINED_LAYERS];
  joined_of(linear, joined);
  fill_low(linear, block, x, scratch);
  const i64 width = joined[0].outputs, tiles = tile_count(width);
  float* both = scratch.heads.reserve(block.panels * 2 * TILE * ROWS);
  for (i64 tile; (tile = team.take()) < tiles;) {
    const i64 first = tile_start(width, tile), end = tile_start(width, tile + 1);
    for (int i = 0; i < 2; ++i)
      write_outputs(linear, joined[i], first, end, block, x, nullptr, both, 2 * TILE, i * TILE,
                    scratch);
    for (i64 panel = 0; panel < block.panels; ++panel) {
      const float* gates = panel_of(both, 2 * TILE, panel);
      float* to = panel_of(block.activated, width, panel) + first * ROWS;
      for (i64 i = 0; i < end - first; ++i)
        for (i64 j = 0; j < block.vectors_of(panel); ++j) {
          const i64 at = i * ROWS + j * LANES;
          const Vector gate = load(gates + at), up = load(gates + TILE * ROWS + at);
          store(to + at, gate / (exponential(-gate) + 1.0f) * up);
        }
    }
  }
}

// A block of rows through all layers, by the threads of a team. If `cache_only`, nothing but keys
// and values is computed of the last layer.
void run_layers(const Model& model, const Caches& caches, const Block& block, bool cache_only,
                Team& team) {
  static thread_local Scratch scratch;
  // A token attends to those before it, which put their keys first: panels in their order then.
  const i64 parts = block.linked ? 1 : block.panels, size = block.panels / parts;
  for (i64 index = 0; index < model.layer_count; ++index) {
    const Float32Layer& layer = model.layers[index];
    float* normed = scratch.normed.reserve(block.panels * model.hidden * ROWS);
    norm(block, block.x, model.hidden, layer.attention_norm, model.eps, normed);
    project(layer.qkv, block, normed, nullptr, block.qkv, team, scratch);
    team.wait();
    for (i64 task; (task = team.take()) < parts * model.kv_heads;) {
      const i64 panel = task / model.kv_heads * size;
      for (i64 i = panel; i < panel + size; ++i)
        attend(model, layer, index, caches, block, i, task % model.kv_heads, scratch);
    }
    team.wait();
    if (cache_only && index == model.layer_count - 1) return;
    project(layer.output, block, block.attended, block.x, block.middle, team, scratch);
    team.wait();
    norm(block, block.middle, model.hidden, layer.mlp_norm, model.eps, normed);
    project_swiglu(layer.gate_up, block, normed, team, scratch);
    team.wait();
    project(layer.down, block, block.activated, block.middle, block.x, team, scratch);
    team.wait();
  }
}

// Whether each thread takes rows of its own, and no part of a product of all.
bool shares_rows(const Model& model, i64 rows, i64 threads) {
  i64 bytes = 0;
  for (i64 i = 0; i < model.layer_count; ++i)
    for (const Float32Linear* linear : {&model.layers[i].qkv, &model.layers[i].output,
                                        &model.layers[i].gate_up, &model.layers[i].down})
      for (const i64 outputs : linear->outputs)
        bytes += outputs * linear->inputs * (linear->weight == nullptr ? 2 : 4);
  if (bytes <= CACHED) return true;
  return threads <= READERS && rows >= threads * OWN_ROWS;
}

// Rows through all layers: x becomes their output, unless `cache_only`.
void compute(const Model& model, const Caches& caches, i64 rows, bool cache_only, float* x) {
  static thread_local Buffer memory;
  const i64 hidden_size = model.hidden, attended = model.heads() * model.head_size;
  const i64 features =
      2 * hidden_size + model.qkv() + attended + model.inner() + model.head_size;  // of a row
  const i64 threads = omp_get_max_threads(),
            wanted = std::min(threads, (rows + ROWS - 1) / ROWS);
  // The first row of each thread, and the end. A sequence is not divided.
  std::vector<i64> bounds{0};
  bool own_rows = shares_rows(model, rows, threads);
  if (own_rows)
    for (i64 i = 1; i < wanted; ++i) {
      i64 row = round_up(rows * i / wanted, LANES);
      while (row < rows && caches.continues(row)) ++row;
      if (row > bounds.back() && row < rows) bounds.push_back(row);
    }
  bounds.push_back(rows);
  const i64 parts = bounds.size() - 1;
  own_rows = own_rows && parts == wanted;
  const i64 numbers = round_up(std::min(rows, BLOCK_ROWS), ROWS) * features;  // of a block
  float* shared = memory.reserve(own_rows ? parts * numbers : numbers);
  auto block_of = [&](i64 first, i64 end, float* at) {
    Block block{first, end - first, (end - first + ROWS - 1) / ROWS};
    auto next = [&](i64 width) {
      float* here = at;
      at += block.panels * width * ROWS;
      return here;
    };
    block.x = next(hidden_size), block.middle = next(hidden_size), block.qkv = next(model.qkv());
    block.attended = next(attended), block.activated = next(model.inner());
    block.rotary = next(model.head_size);
    for (i64 panel = 0; panel < block.panels; ++panel) {
      const i64 row = first + panel * ROWS, here = block.rows_of(panel);
      block.linked |= panel > 0 && caches.continues(row);
      to_panel(x + row * hidden_size, hidden_size, here, hidden_size,
               panel_of(block.x, hidden_size, panel));
      const i64 half = model.head_size / 2;
      float* tables = panel_of(block.rotary, model.head_size, panel);
      to_panel(model.cosine + row * model.ld_rotary, model.ld_rotary, here, half, tables);
      to_panel(model.sine + row * model.ld_rotary, model.ld_rotary, here, half,
               tables + half * ROWS);
    }
    return block;
  };
  auto finish = [&](const Block& block) {
    if (cache_only) return;
    for (i64 panel = 0; panel < block.panels; ++panel)
      from_panel(panel_of(block.x, hidden_size, panel), block.rows_of(panel), hidden_size,
                 x + (block.first + panel * ROWS) * hidden_size, hidden_size);
  };
  if (own_rows) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast<int>(parts))
    for (i64 i = 0; i < parts; ++i)
      for (i64 row = bounds[i]; row < bounds[i + 1]; row += BLOCK_ROWS) {
        const i64 end = std::min(row + BLOCK_ROWS, bounds[i + 1]);
        const Block block = block_of(row, end, shared + i * numbers);
        Team alone(1);
        run_layers(model, caches, block, cache_only, alone);
        finish(block);
      }
    return;
  }
  std::unique_ptr<Team> team;
  Block block;
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
#pragma omp single
    team = std::make_unique<Team>(omp_get_num_threads());
    for (i64 row = 0; row < rows; row += BLOCK_ROWS) {
#pragma omp single
      block = block_of(row, std::min(row + BLOCK_ROWS, rows), shared);
      run_layers(model, caches, block, cache_only, *team);
#pragma omp single
      finish(block);
    }
  }
}

}  // namespace

extern "C" {

void tinkersmith_fill_cache_float32(i64 kv_heads, i64 head_size, i64 capacity, i64 start, i64 count,
                                    const float* key, const float* value, i64 ld_heads,
                                    float* cached_keys, float* cached_values) {
  for (i64 kv_head = 0; kv_head < kv_heads; ++kv_head)
    for (i64 t = 0; t < count; ++t) {
      const i64 from = kv_head * ld_heads + t * head_size;
      put_key(cached_keys + kv_head * capacity * head_size, head_size, start + t, key + from, 1);
      put_value(cached_values + kv_head * capacity * round_up(head_size, POSITIONS), head_size,
                start + t, value + from, 1);
    }
}

void tinkersmith_decode_float32(i64 sequences, i64 hidden_size, i64 kv_heads, i64 queries_per_key,
                                i64 head_size, i64 layer_count, const Float32Layer* layers,
                                float eps, float scale, const float* cosine,
                                const float* sine, i64 ld_rotary, const i64* lengths,
                                const i64* capacities, float* const* cached_keys,
                                const i64* key_steps, float* const* cached_values,
                                const i64* value_steps, float* x) {
  const Model model{hidden_size, kv_heads, queries_per_key, head_size, layer_count, layers,
                    eps,         scale,    cosine,          sine,      ld_rotary};
  const Caches caches{lengths, capacities, cached_keys, key_steps, cached_values, value_steps};
  compute(model, caches, sequences, false, x);
}

void tinkersmith_read_float32(i64 tokens, i64 hidden_size, i64 kv_heads, i64 queries_per_key,
                              i64 head_size, i64 layer_count, const Float32Layer* layers,
                              float eps, float scale, const float* cosine, const float* sine,
                              i64 ld_rotary, const i64* lengths, const i64* capacities,
                              float* const* cached_keys, const i64* key_steps,
                              float* const* cached_values, const i64* value_steps,
                              i64 cache_only, float* x) {
  const Model model{hidden_size, kv_heads, queries_per_key, head_size, layer_count, layers,
                    eps,         scale,    cosine,          sine,      ld_rotary};
  const Caches caches{lengths, capacities, cached_keys, key_steps, cached_values, value_steps};
  compute(model, caches, tokens, cache_only != 0, x);
}
}
