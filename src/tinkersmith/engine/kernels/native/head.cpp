// The output layer and its soft-max in one pass over the vocabulary. A block of logits exists only
// until its exponentials are summed and, for the gradient, multiplied by the same weights.
//
// Axes: N rows, H hidden size, V vocabulary, R rank of the adapter.
#ifdef __AVX512BF16__
#include "vectors.h"

namespace tinkersmith {
namespace {

constexpr i64 MOST_ROWS = 16 * ROWS;  // of a task: a core's own cache holds their exponentials

// The panels of a block of the vocabulary, summed over H, over R, and over the block's tokens.
struct Panels {
  bf16 *across, *low, *along;
};

}  // namespace
}  // namespace tinkersmith

using namespace tinkersmith;

extern "C" {

void tinkersmith_head(i64 rows, i64 vocabulary, i64 hidden_size, const bf16* hidden,
                      const bf16* weight, const bf16* low, i64 rank, const bf16* b,
                      const bf16* bias, const float* shift, i64 block, float* sums, float* grad,
                      bf16* all_powers) {
  static thread_local Scratch<bf16> scratch;
  static thread_local Scratch<float> partial;
  const i64 padded_hidden = round_up(hidden_size, PANEL),
            width = padded_hidden + round_up(rank, PANEL);
  bf16* buffer = scratch.reserve(block * (hidden_size + rank + width));
  const Panels panels{buffer, buffer + block * hidden_size, buffer + block * (hidden_size + rank)};
  float* lane_sums = partial.reserve(rows * LANES);  // (N, LANES): the parts of each row's sum
  std::memset(lane_sums, 0, rows * LANES * sizeof(float));
  if (grad != nullptr) std::memset(grad, 0, rows * width * sizeof(float));
  // A multiple of the threads, so that all have the same work.
  const i64 threads = omp_get_max_threads();
  const i64 tasks = round_up((rows + MOST_ROWS - 1) / MOST_ROWS, threads);
  const i64 task_rows = round_up((rows + tasks - 1) / tasks, ROWS);
#pragma omp parallel
  {
    static thread_local Scratch<bf16> power_scratch;
    for (i64 start = 0; start < vocabulary; start += block) {
      const i64 here = std::min(block, vocabulary - start);
      const i64 across = (here + PANEL - 1) / PANEL, along = grad == nullptr ? 0 : width / PANEL;
#pragma omp for schedule(static)
      for (i64 panel = 0; panel < across + along; ++panel) {
        if (panel < across) {
          const i64 v = panel * PANEL, tokens = std::min(PANEL, here - v);
          pack_rows(weight + (start + v) * hidden_size, hidden_size, tokens, hidden_size,
                    panels.across + v * hidden_size);
          if (low != nullptr)
            pack_rows(b + (start + v) * rank, rank, tokens, rank, panels.low + v * rank);
          continue;
        }
        const i64 n = (panel - across) * PANEL;
        bf16* to = panels.along + n * block;
        if (n < padded_hidden)
          pack_columns(weight + start * hidden_size + n, hidden_size,
                       std::min(PANEL, hidden_size - n), here, to);
        else
          pack_columns(b + start * rank + n - padded_hidden, rank,
                       std::min(PANEL, rank - n + padded_hidden), here, to);
      }
#pragma omp for schedule(static)
      for (i64 first = 0; first < rows; first += task_rows) {
        const i64 last = std::min(first + task_rows, rows);
        bf16* powers = all_powers == nullptr ? power_scratch.reserve(task_rows * block)
                                             : all_powers + (start * rows + first * block);
        for (i64 v = 0; v < here; v += PANEL)
          by_tiles(first, last, [&]<int COUNT>(i64 row) {
            __m512 sum[COUNT][VECTORS];
            clear(sum);
            dot(sum, hidden + row * hidden_size, hidden_size, panels.across + v * hidden_size,
                hidden_size);
            if (low != nullptr) dot(sum, low + row * rank, rank, panels.low + v * rank, rank);
#pragma GCC unroll 8
            for (int i = 0; i < COUNT; ++i) {
              float* to = lane_sums + (row + i) * LANES;
              __m512 total = _mm512_loadu_ps(to);
              const __m512 above = _mm512_set1_ps(shift[row + i]);
#pragma GCC unroll 8
              for (int j = 0; j < VECTORS; ++j) {
                const i64 at = v + j * LANES, left = here - at;
                if (left <= 0) break;
                __m512 logit = sum[i][j];
                if (bias != nullptr) logit = _mm512_add_ps(logit, load(bias + start + at, left));
                const __m512 power = _mm512_maskz_mov_ps(first_lanes(left),
                                                         exponential(_mm512_sub_ps(logit, above)));
                total = _mm512_add_ps(total, power);
                if (grad != nullptr) store(powers + (row + i - first) * block + at, power, left);
              }
              _mm512_storeu_ps(to, total);
            }
          });
        for (i64 n = 0; n < along * PANEL; n += PANEL)
          add_product(last - first, powers, block, panels.along + n * block, here,
                      grad + first * width + n, width);
      }
    }
#pragma omp for schedule(static)
    for (i64 row = 0; row < rows; ++row)
      sums[row] = _mm512_reduce_add_ps(_mm512_loadu_ps(lane_sums + row * LANES));
  }
}
}

#endif  // __AVX512BF16__
