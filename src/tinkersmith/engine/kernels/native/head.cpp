// The output layer and its soft-max in one pass over the vocabulary: a block of logits lives only
// until its exponentials are summed, and multiplied with the same weights for the gradient.
//
// Axes: N rows, H hidden size, V vocabulary, R rank of an adapter.
#ifdef __AVX512BF16__
#include "vectors.h"

namespace tinkersmith {
namespace {

constexpr i64 MOST_ROWS = 16 * ROWS;  // of a task: their numbers stay in a core's own cache

// The panels of a block of the vocabulary: over H, over R, and over the block's tokens.
struct Panels {
  bf16 *across, *low, *along;
};

}  // namespace
}  // namespace tinkersmith

using namespace tinkersmith;

extern "C" {

// With logits (N, V) = hidden (N, H) weight^T (V, H) + low (N, R) b^T (V, R) + bias (V), and
// e = exp(logits - shift): sums (N) of e; grad (N, H' + R') in fp32 = e weight, then e b, where H'
// and R' are multiples of 64, R' is 0 without `low`; kept (V / block, N, block) = e.
// low, bias, grad and kept may be null. H, V and R are even, `block` is a multiple of 64.
void tinkersmith_head(i64 count, i64 vocabulary, i64 depth, const bf16* hidden, const bf16* weight,
                      const bf16* low, i64 rank, const bf16* b, const bf16* bias,
                      const float* shift, i64 block, float* sums, float* grad, bf16* kept) {
  static thread_local Scratch<bf16> scratch;
  static thread_local Scratch<float> partial;
  const i64 wide = round_up(depth, PANEL), width = wide + round_up(rank, PANEL);
  bf16* room = scratch.room(block * (depth + rank + width));
  const Panels panels{room, room + block * depth, room + block * (depth + rank)};
  float* sixteenths = partial.room(count * LANES);  // of each row's sum
  std::memset(sixteenths, 0, count * LANES * sizeof(float));
  if (grad != nullptr) std::memset(grad, 0, count * width * sizeof(float));
  // As many tasks as make equal work for all threads.
  const i64 threads = omp_get_max_threads();
  const i64 tasks = round_up((count + MOST_ROWS - 1) / MOST_ROWS, threads);
  const i64 rows = round_up((count + tasks - 1) / tasks, ROWS);
#pragma omp parallel
  {
    static thread_local Scratch<bf16> own;
    for (i64 start = 0; start < vocabulary; start += block) {
      const i64 here = std::min(block, vocabulary - start);
      const i64 across = (here + PANEL - 1) / PANEL, along = grad == nullptr ? 0 : width / PANEL;
#pragma omp for schedule(static)
      for (i64 panel = 0; panel < across + along; ++panel) {
        if (panel < across) {
          const i64 v = panel * PANEL, tokens = std::min(PANEL, here - v);
          pack_rows(weight + (start + v) * depth, depth, tokens, depth, panels.across + v * depth);
          if (low != nullptr)
            pack_rows(b + (start + v) * rank, rank, tokens, rank, panels.low + v * rank);
          continue;
        }
        const i64 n = (panel - across) * PANEL;
        bf16* to = panels.along + n * block;
        if (n < wide)
          pack_columns(weight + start * depth + n, depth, std::min(PANEL, depth - n), here, to);
        else
          pack_columns(b + start * rank + n - wide, rank, std::min(PANEL, rank - n + wide), here,
                       to);
      }
#pragma omp for schedule(static)
      for (i64 first = 0; first < count; first += rows) {
        const i64 last = std::min(first + rows, count);
        bf16* powers =
            kept == nullptr ? own.room(rows * block) : kept + (start * count + first * block);
        for (i64 v = 0; v < here; v += PANEL)
          by_tiles(first, last, [&]<int COUNT>(i64 row) {
            __m512 sum[COUNT][VECTORS];
            clear(sum);
            dot(sum, hidden + row * depth, depth, panels.across + v * depth, depth);
            if (low != nullptr) dot(sum, low + row * rank, rank, panels.low + v * rank, rank);
#pragma GCC unroll 8
            for (int i = 0; i < COUNT; ++i) {
              float* to = sixteenths + (row + i) * LANES;
              __m512 total = _mm512_loadu_ps(to);
              const __m512 above = _mm512_set1_ps(shift[row + i]);
#pragma GCC unroll 8
              for (int j = 0; j < VECTORS; ++j) {
                const i64 at = v + j * LANES, left = here - at;
                if (left <= 0) break;
                __m512 logit = sum[i][j];
                if (bias != nullptr) logit = _mm512_add_ps(logit, load(bias + start + at, left));
                const __m512 power = _mm512_maskz_mov_ps(
                    first_lanes(left), exponential(_mm512_sub_ps(logit, above)));
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
    for (i64 row = 0; row < count; ++row)
      sums[row] = _mm512_reduce_add_ps(_mm512_loadu_ps(sixteenths + row * LANES));
  }
}
}

#endif  // __AVX512BF16__
