// Small-batch products in fp32 with a weight in fp32 or bf16, on every processor, as decoding has
// them: their time depends on how often the weight is read.
//
// Axes: N rows, I and O input and output size of a linear layer.
#include <omp.h>

#include <algorithm>

#include "weight_columns.h"

using namespace tinkersmith_panels;

namespace {

constexpr i64 ALONE = 1 << 20;  // multiplications that one thread does sooner than several
constexpr i64 TILES = 8;        // of few rows, a thread takes at most: it prefetches their weights

void product(i64 rows, i64 outputs, Weights weights, const float* x, float* y, i64 ld_y) {
  static thread_local Buffer packed;
  const i64 inputs = weights.inputs, panels = (rows + ROWS - 1) / ROWS;
  float* panel_rows = packed.reserve(panels * inputs * ROWS);
  for (i64 panel = 0; panel < panels; ++panel)
    to_panel(x + panel * ROWS * inputs, inputs, std::min(ROWS, rows - panel * ROWS), inputs,
             panel_rows + panel * inputs * ROWS);
  const i64 tiles = tile_count(outputs);
  const i64 shared = tiles / (4 * omp_get_max_threads());
  const i64 taken = rows > FEW<bf16> ? 1 : std::clamp<i64>(shared, 1, TILES);
#pragma omp parallel for schedule(dynamic, taken) if (rows * outputs * inputs > ALONE)
  for (i64 tile = 0; tile < tiles; ++tile) {
    static thread_local Buffer cast;
    const i64 first = tile_start(outputs, tile), end = tile_start(outputs, tile + 1);
    TileWeights tile_weights(weights, first, end, cast);
    alignas(64) float sums[TILE * ROWS];
    for (i64 panel = 0; panel < panels; ++panel) {
      const i64 here = std::min(ROWS, rows - panel * ROWS);
      tile_weights.outputs(here, panel_rows + panel * inputs * ROWS,
                           [&]<int COUNT, int USED>(i64 o, Vector(&sum)[COUNT][USED]) {
                             for (int i = 0; i < COUNT; ++i)
                               for (int j = 0; j < USED; ++j)
                                 store(sums + (o - first + i) * ROWS + j * LANES, sum[i][j]);
                           });
      from_panel(sums, here, end - first, y + panel * ROWS * ld_y + first, ld_y);
    }
  }
}

}  // namespace

extern "C" {

void tinkersmith_small_batch_product_float32(i64 rows, i64 outputs, i64 inputs, const float* x,
                                             const float* weight, float* y, i64 ld_y) {
  product(rows, outputs, {weight, nullptr, inputs}, x, y, ld_y);
}

void tinkersmith_small_batch_product_bfloat16(i64 rows, i64 outputs, i64 inputs, const float* x,
                                              const bf16* weight, float* y, i64 ld_y) {
  product(rows, outputs, {nullptr, weight, inputs}, x, y, ld_y);
}
}
