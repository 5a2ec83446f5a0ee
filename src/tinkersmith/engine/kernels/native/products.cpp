// The matrix products of a layer, each with what is done to its numbers on the way to memory.
//
// Axes: M rows (tokens), K what is summed over, N columns, R rank of an adapter.
#ifdef __AVX512BF16__
#include "vectors.h"

namespace tinkersmith {
namespace {

// How work is cut for the threads: by panels of columns, and where these are few, by rows, too.
struct Grid {
  i64 panels, blocks, rows;  // `rows` of a block

  Grid(i64 panels, i64 count) : panels(panels) {
    const i64 wanted = 4 * omp_get_max_threads();
    const i64 most = std::max<i64>(1, count / (16 * ROWS));
    blocks = std::clamp<i64>((wanted + panels - 1) / panels, 1, most);
    rows = round_up((count + blocks - 1) / blocks, ROWS);
  }
};

// Calls work(panel, first row, last row) for all of a grid, on all threads.
template <class Work>
void spread(const Grid& grid, i64 count, Work work) {
#pragma omp parallel for schedule(dynamic, 1)
  for (i64 task = 0; task < grid.panels * grid.blocks; ++task) {
    const i64 first = task % grid.blocks * grid.rows;
    if (first < count) work(task / grid.blocks, first, std::min(first + grid.rows, count));
  }
}

bf16* panel_room(i64 depth) {
  static thread_local Scratch<bf16> scratch;
  return scratch.room(round_up(std::min(depth, DEPTH), 2) * PANEL);
}

bf16* second_panel_room(i64 depth) {
  static thread_local Scratch<bf16> scratch;
  return scratch.room(round_up(std::max<i64>(depth, 2), 2) * PANEL);
}

// The sums of x (rows first to last, K) and a panel: pack(start, depth) makes a part of it where
// panel_room is, add(row, sums) adds what else there is, finish(row, sums of one row) takes them, and
// fetch(row) calls into the caches what finish will touch: its lines are pages apart.
// Only LAST * 16 columns are wanted.
template <int LAST, class Pack, class Add, class Fetch, class Finish>
void multiply_part(i64 first, i64 last, const bf16* x, i64 ldx, i64 depth, Pack pack, Add add,
                   Fetch fetch, Finish finish) {
  static thread_local Scratch<float> scratch;
  float* partial = depth > DEPTH ? scratch.room((last - first) * PANEL) : nullptr;
  const bf16* panel = panel_room(depth);
  for (i64 start = 0; start < depth; start += DEPTH) {
    const i64 part = std::min(DEPTH, depth - start);
    const bool begins = start == 0, ends = start + part == depth;
    pack(start, part);
    auto rows = [&]<int COUNT>(i64 row) {
      __m512 sum[COUNT][VECTORS];
#pragma GCC unroll 8
      for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j)
          sum[i][j] = begins ? _mm512_setzero_ps()
                             : _mm512_loadu_ps(partial + (row + i - first) * PANEL + j * LANES);
      if (ends)
        for (int i = 0; i < COUNT; ++i) fetch(row + i);
      dot<0, LAST>(sum, x + row * ldx + start, ldx, panel, part);
      if (ends) add(row, sum);
#pragma GCC unroll 8
      for (int i = 0; i < COUNT; ++i) {
        if (ends) {
          finish(row + i, sum[i]);
          continue;
        }
#pragma GCC unroll 8
        for (int j = 0; j < LAST; ++j)
          _mm512_storeu_ps(partial + (row + i - first) * PANEL + j * LANES, sum[i][j]);
      }
    };
    by_tiles(first, last, rows);
  }
}

template <class Pack, class Add, class Fetch, class Finish>
void multiply(i64 first, i64 last, i64 width, const bf16* x, i64 ldx, i64 depth, Pack pack, Add add,
              Fetch fetch, Finish finish) {
  const auto part = width > PANEL / 2 ? multiply_part<VECTORS, Pack, Add, Fetch, Finish>
                                      : multiply_part<VECTORS / 2, Pack, Add, Fetch, Finish>;
  part(first, last, x, ldx, depth, pack, add, fetch, finish);
}

// The two cache lines of a panel's columns in one row.
inline void fetch_panel(const bf16* at) {
  __builtin_prefetch(at);
  __builtin_prefetch(at + PANEL / 2);
}

// finish(first column of 16, how many there are, their sums) for a row of a panel.
template <class Each>
__attribute__((always_inline)) inline void columns(i64 width, const __m512 (&sum)[VECTORS],
                                                   Each each) {
#pragma GCC unroll 8
  for (int j = 0; j < VECTORS; ++j)
    if (j * LANES < width) each(j * LANES, width - j * LANES, sum[j]);
}

inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1);
  return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// x (M, K) weight (K, N) + low (M, R) a (R, N), the sums of each row of a panel given to
// finish(row, first column, width, sums). `low` may be null.
template <class Fetch, class Finish>
void input_product(i64 count, i64 columns, i64 depth, const bf16* x, i64 ldx, const bf16* weight,
                   const bf16* low, i64 rank, const bf16* a, Fetch fetch, Finish finish) {
  const Grid grid((columns + PANEL - 1) / PANEL, count);
  spread(grid, count, [&](i64 panel, i64 first, i64 last) {
    const i64 n = panel * PANEL, width = std::min(PANEL, columns - n);
    bf16* main = panel_room(depth);
    bf16* more = second_panel_room(rank);
    if (low != nullptr) pack_columns(a + n, columns, width, rank, more);
    multiply(
        first, last, width, x, ldx, depth,
        [&](i64 start, i64 part) {
          pack_columns(weight + start * columns + n, columns, width, part, main);
        },
        [&](i64 row, auto& sum) {
          if (low != nullptr) dot(sum, low + row * rank, rank, more, rank);
        },
        [&](i64 row) { fetch(row, n); },
        [&](i64 row, const __m512(&sum)[VECTORS]) { finish(row, n, width, sum); });
  });
}

// M rows of R numbers, as R rows of M: (M, R) -> (R, `ld`), zeros beyond M.
void transpose_rows(const bf16* matrix, i64 ld_matrix, i64 count, i64 rank, bf16* output, i64 ld) {
#pragma omp parallel for schedule(static)
  for (i64 m = 0; m < ld; m += 2 * LANES)
    for (i64 r = 0; r < rank; r += LANES) {
      const __mmask16 mask = first_lanes(rank - r);
      auto half = [&](i64 row) {
        return _mm512_cvtepu16_epi32(row < count
                                         ? _mm256_maskz_loadu_epi16(mask, matrix + row * ld_matrix + r)
                                         : _mm256_setzero_si256());
      };
      __m512i pairs[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        pairs[i] = _mm512_or_si512(half(m + 2 * i), _mm512_slli_epi32(half(m + 2 * i + 1), 16));
      transpose(pairs);
      for (i64 i = 0; i < std::min<i64>(LANES, rank - r); ++i)
        _mm512_storeu_si512(output + (r + i) * ld + m, pairs[i]);
    }
}

}  // namespace
}  // namespace tinkersmith

using namespace tinkersmith;

extern "C" {

// y (M, N) = x (M, K) weight^T (N, K) + low (M, R) b^T (N, R) + bias (N) + residual (M, N).
// low, bias and residual (its rows as far apart as those of y) may be null; K and R are even.
void tinkersmith_linear(i64 count, i64 columns_, i64 depth, const bf16* x, i64 ldx,
                        const bf16* weight, const bf16* low, i64 ld_low, i64 rank, const bf16* b,
                        const bf16* bias, const bf16* residual, bf16* y, i64 ldy) {
  const Grid grid((columns_ + PANEL - 1) / PANEL, count);
  spread(grid, count, [&](i64 panel, i64 first, i64 last) {
    const i64 n = panel * PANEL, width = std::min(PANEL, columns_ - n);
    bf16* main = panel_room(depth);
    bf16* more = second_panel_room(rank);
    if (low != nullptr) pack_rows(b + n * rank, rank, width, rank, more);
    multiply(
        first, last, width, x, ldx, depth,
        [&](i64 start, i64 part) {
          pack_rows(weight + n * depth + start, depth, width, part, main);
        },
        [&](i64 row, auto& sum) {
          if (low != nullptr) dot(sum, low + row * ld_low, ld_low, more, rank);
        },
        [&](i64 row) {
          if (residual != nullptr) fetch_panel(residual + row * ldy + n);
          fetch_panel(y + row * ldy + n);
        },
        [&](i64 row, const __m512(&sum)[VECTORS]) {
          columns(width, sum, [&](i64 j, i64 left, __m512 value) {
            if (bias != nullptr) value = _mm512_add_ps(value, load(bias + n + j, left));
            if (residual != nullptr)
              value = _mm512_add_ps(value, load(residual + row * ldy + n + j, left));
            store(y + row * ldy + n + j, value, left);
          });
        });
  });
}

// gate_up (M, 2 F) = x (M, K) weight^T (2 F, K) + bias (2 F), and each half the product of its own
// part of low (M, ld) and its own b (F, R); activated (M, F) = silu(gate) up, of the rounded halves.
// gate_b, up_b and bias may be null; the gate's part of low comes first.
void tinkersmith_swiglu_linear(i64 count, i64 width, i64 depth, const bf16* x, const bf16* weight,
                               const bf16* low, i64 ld_low, i64 rank, const bf16* gate_b,
                               const bf16* up_b, const bf16* bias, bf16* gate_up,
                               bf16* activated) {
  constexpr i64 HALF = PANEL / 2;
  constexpr int MIDDLE = VECTORS / 2;
  const bf16* up_low = low + (gate_b == nullptr ? 0 : rank);
  const Grid grid((width + HALF - 1) / HALF, count);
  spread(grid, count, [&](i64 panel, i64 first, i64 last) {
    const i64 n = panel * HALF, here = std::min(HALF, width - n);
    bf16* main = panel_room(depth);  // the gate's columns, then those of up
    bf16* more = second_panel_room(rank);
    if (gate_b != nullptr) pack_rows(gate_b + n * rank, rank, here, rank, more, HALF);
    if (up_b != nullptr) pack_rows(up_b + n * rank, rank, here, rank, more + 2 * HALF, HALF);
    multiply(
        first, last, PANEL, x, depth, depth,
        [&](i64 start, i64 part) {
          const bf16* gate = weight + n * depth + start;
          pack_rows(gate, depth, here, part, main, HALF);
          pack_rows(gate + width * depth, depth, here, part, main + 2 * HALF, HALF);
        },
        [&](i64 row, auto& sum) {
          if (gate_b != nullptr) dot<0, MIDDLE>(sum, low + row * ld_low, ld_low, more, rank);
          if (up_b != nullptr)
            dot<MIDDLE, VECTORS>(sum, up_low + row * ld_low, ld_low, more, rank);
        },
        [&](i64 row) {
          for (const bf16* line : {gate_up + row * 2 * width, gate_up + (row * 2 + 1) * width,
                                   activated + row * width})
            __builtin_prefetch(line + n, 1);
        },
        [&](i64 row, const __m512(&sum)[VECTORS]) {
#pragma GCC unroll 8
          for (int j = 0; j < MIDDLE; ++j) {
            const i64 at = n + j * LANES, left = here - j * LANES;
            if (left <= 0) break;
            __m512 gate = sum[j], up = sum[j + MIDDLE];
            if (bias != nullptr) {
              gate = _mm512_add_ps(gate, load(bias + at, left));
              up = _mm512_add_ps(up, load(bias + width + at, left));
            }
            const __m256i rounded_gate = narrow(gate), rounded_up = narrow(up);
            bf16* to = gate_up + row * 2 * width + at;
            store(to, gate, left);
            store(to + width, up, left);
            gate = widen(rounded_gate);
            const __m512 silu = _mm512_mul_ps(gate, sigmoid(gate));
            store(activated + row * width + at, _mm512_mul_ps(silu, widen(rounded_up)), left);
          }
        });
  });
}

// dx (M, N) = dy (M, K) weight (K, N) + d_low (M, R) a (R, N); d_low may be null. K and R are even.
void tinkersmith_input_gradient(i64 count, i64 columns_, i64 depth, const bf16* dy, i64 ld_dy,
                                const bf16* weight, const bf16* d_low, i64 rank, const bf16* a,
                                bf16* dx, i64 ld_dx) {
  input_product(count, columns_, depth, dy, ld_dy, weight, d_low, rank, a,
                [&](i64 row, i64 n) { fetch_panel(dx + row * ld_dx + n); },
                [&](i64 row, i64 n, i64 width, const __m512(&sum)[VECTORS]) {
                  columns(width, sum, [&](i64 j, i64 left, __m512 value) {
                    store(dx + row * ld_dx + n + j, value, left);
                  });
                });
}

// The same for the layer behind silu(gate) up: activated (M, F) is computed again, and
// d_gate_up (M, 2 F) is the gradient of gate_up.
void tinkersmith_swiglu_input_gradient(i64 count, i64 width_, i64 depth, const bf16* dy,
                                       const bf16* weight, const bf16* d_low, i64 rank,
                                       const bf16* a, const bf16* gate_up, bf16* activated,
                                       bf16* d_gate_up) {
  input_product(count, width_, depth, dy, depth, weight, d_low, rank, a,
                [&](i64 row, i64 n) {
                  for (const i64 at : {row * 2 * width_ + n, (row * 2 + 1) * width_ + n}) {
                    fetch_panel(gate_up + at);
                    fetch_panel(d_gate_up + at);
                  }
                  fetch_panel(activated + row * width_ + n);
                },
                [&](i64 row, i64 n, i64 width, const __m512(&sum)[VECTORS]) {
                  const bf16* from = gate_up + row * 2 * width_ + n;
                  bf16* to = d_gate_up + row * 2 * width_ + n;
                  columns(width, sum, [&](i64 j, i64 left, __m512 grad) {
                    const __m512 gate = load(from + j, left), up = load(from + width_ + j, left);
                    const __m512 share = sigmoid(gate), silu = _mm512_mul_ps(gate, share);
                    // silu' = share (1 + gate (1 - share)) = share + silu - silu share
                    const __m512 slope =
                        _mm512_add_ps(share, _mm512_fnmadd_ps(silu, share, silu));
                    store(activated + row * width_ + n + j, _mm512_mul_ps(silu, up), left);
                    store(to + j, _mm512_mul_ps(_mm512_mul_ps(grad, up), slope), left);
                    store(to + width_ + j, _mm512_mul_ps(grad, silu), left);
                  });
                });
}

// gradient (R, N) in fp32 += scale * low^T (R, M) x (M, N); or, `transposed`, its transpose (N, R).
// Of more columns than ldx, a multiple of 64 then, groups of as many follow each other: (N / ldx, M,
// ldx).
void tinkersmith_weight_gradient(i64 count, i64 columns_, i64 rank, const bf16* low, i64 ld_low,
                                 const bf16* x, i64 ldx, float scale, float* gradient,
                                 i64 transposed) {
  static thread_local Scratch<bf16> scratch;
  const i64 ld = round_up(count, 2 * LANES);
  bf16* rows = scratch.room(rank * ld);
  transpose_rows(low, ld_low, count, rank, rows, ld);
  const Grid grid((columns_ + PANEL - 1) / PANEL, rank);
  const __m512 factor = _mm512_set1_ps(scale);
  spread(grid, rank, [&](i64 panel, i64 first, i64 last) {
    const i64 n = panel * PANEL, width = std::min(PANEL, columns_ - n);
    bf16* main = panel_room(count);
    multiply(
        first, last, width, rows, ld, round_up(count, 2),
        [&](i64 start, i64 part) {
          const bf16* from = x + n / ldx * ldx * count + n % ldx + start * ldx;
          pack_columns(from, ldx, width, std::min(part, count - start), main);
        },
        [](i64, auto&) {}, [](i64) {},
        [&](i64 row, const __m512(&sum)[VECTORS]) {
          columns(width, sum, [&](i64 j, i64 left, __m512 value) {
            value = _mm512_mul_ps(value, factor);
            if (transposed) {
              alignas(64) float numbers[LANES];
              _mm512_store_ps(numbers, value);
              for (i64 i = 0; i < std::min(LANES, left); ++i)
                gradient[(n + j + i) * rank + row] += numbers[i];
              return;
            }
            float* to = gradient + row * columns_ + n + j;
            const __mmask16 mask = first_lanes(left);
            const __m512 before = _mm512_maskz_loadu_ps(mask, to);
            _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(before, value));
          });
        });
  });
}
}

#endif  // __AVX512BF16__
