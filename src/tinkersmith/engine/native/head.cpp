// The output layer and its soft-max in one pass over the vocabulary: a block of logits lives only
// until its exponentials are summed, and multiplied with the same weights for the gradient.
//
// Axes: N rows, H hidden size, V vocabulary, R rank of an adapter.
#ifdef __AVX512BF16__
#include "vectors.h"

namespace tinkersmith {
namespace {

constexpr i64 BLOCK_BYTES = 1 << 20;  // of the weights that are used at a time

// The panels of a block of the vocabulary.
struct Block {
  bf16 *across, *low, *along;  // over H, over R, and over the block's tokens
};

}  // namespace
}  // namespace tinkersmith

using namespace tinkersmith;

extern "C" {

// With logits (N, V) = hidden (N, H) weight^T (V, H) + low (N, R) b^T (V, R) + bias (V), and
// e = exp(logits - shift): sums (N) of e; grad (N, H) in fp32 = e weight; kept (N, V) = e.
// low, bias, grad and kept may be null. H, V and R are even.
void tinkersmith_head(i64 count, i64 vocabulary, i64 depth, const bf16* hidden, const bf16* weight,
                      const bf16* low, i64 rank, const bf16* b, const bf16* bias,
                      const float* shift, float* sums, float* grad, bf16* kept) {
  static thread_local Scratch<bf16> panels;
  static thread_local Scratch<float> partial;
  const i64 most = BLOCK_BYTES / static_cast<i64>(sizeof(bf16)) / depth / PANEL * PANEL;
  const i64 block = std::clamp(most, PANEL, 16 * PANEL);  // tokens
  const i64 wide = round_up(depth, PANEL);
  bf16* room = panels.room(block * (depth + wide + rank));
  const Block packed{room, room + block * depth, room + block * (depth + rank)};
  float* sixteenths = partial.room(count * LANES);  // of each row's sum
  std::memset(sixteenths, 0, count * LANES * sizeof(float));
  if (grad != nullptr) std::memset(grad, 0, count * depth * sizeof(float));
  // As many blocks of rows as make equal work for all threads.
  const i64 threads = omp_get_max_threads();
  const i64 parts = round_up((count + 16 * ROWS - 1) / (16 * ROWS), threads);
  const i64 rows = round_up((count + parts - 1) / parts, ROWS);
#pragma omp parallel
  {
    static thread_local Scratch<bf16> own;
    for (i64 start = 0; start < vocabulary; start += block) {
      const i64 here = std::min(block, vocabulary - start);
      const i64 across = (here + PANEL - 1) / PANEL, along = grad == nullptr ? 0 : wide / PANEL;
#pragma omp for schedule(static)
      for (i64 panel = 0; panel < across + along; ++panel) {
        if (panel >= across) {
          const i64 h = (panel - across) * PANEL;
          pack_columns(weight + start * depth + h, depth, std::min(PANEL, depth - h), here,
                       packed.along + h * block);
          continue;
        }
        const i64 v = panel * PANEL, width = std::min(PANEL, here - v);
        pack_rows(weight + (start + v) * depth, depth, width, depth, packed.across + v * depth);
        if (low != nullptr)
          pack_rows(b + (start + v) * rank, rank, width, rank, packed.low + v * rank);
      }
#pragma omp for schedule(static)
      for (i64 first = 0; first < count; first += rows) {
        const i64 last = std::min(first + rows, count);
        const i64 ld = kept == nullptr ? block : vocabulary;
        bf16* powers = kept == nullptr ? own.room(rows * block) : kept + first * ld + start;
        for (i64 v = 0; v < here; v += PANEL) {
          auto exponentials = [&]<int COUNT>(i64 row) {
            __m512 sum[COUNT][VECTORS];
            clear(sum);
            dot(sum, hidden + row * depth, depth, packed.across + v * depth, depth);
            if (low != nullptr) dot(sum, low + row * rank, rank, packed.low + v * rank, rank);
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
                if (grad != nullptr || kept != nullptr)
                  store(powers + (row + i - first) * ld + at, power, left);
              }
              _mm512_storeu_ps(to, total);
            }
          };
          by_tiles(first, last, exponentials);
        }
        for (i64 h = 0; h < along * PANEL; h += PANEL)
          by_tiles(first, last, [&]<int COUNT>(i64 row) {
            __m512 sum[COUNT][VECTORS];
#pragma GCC unroll 8
            for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
              for (int j = 0; j < VECTORS; ++j) {
                const __mmask16 mask = first_lanes(depth - h - j * LANES);
                sum[i][j] = _mm512_maskz_loadu_ps(mask, grad + (row + i) * depth + h + j * LANES);
              }
            dot(sum, powers + (row - first) * ld, ld, packed.along + h * block, here);
#pragma GCC unroll 8
            for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
              for (int j = 0; j < VECTORS; ++j) {
                const __mmask16 mask = first_lanes(depth - h - j * LANES);
                _mm512_mask_storeu_ps(grad + (row + i) * depth + h + j * LANES, mask, sum[i][j]);
              }
          });
      }
    }
#pragma omp for schedule(static)
    for (i64 row = 0; row < count; ++row)
      sums[row] = _mm512_reduce_add_ps(_mm512_loadu_ps(sixteenths + row * LANES));
  }
}
}

#endif  // __AVX512BF16__
