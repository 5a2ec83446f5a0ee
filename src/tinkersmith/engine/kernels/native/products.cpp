// The matrix products of a layer in bf16. Whatever else is done to the sums is done before they are
// rounded and written.
//
// Axes: N rows (tokens), I and O input and output size of a linear layer, R rank of the adapter, C
// layers joined in one projection that the adapter trains, F width of the MLP, K what a product is
// summed over.
#ifdef __AVX512BF16__
#include "vectors.h"

namespace tinkersmith {
namespace {

// How work is divided among the threads: by panels of columns, and by rows, too, if these are few.
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

bf16* panel_buffer(i64 depth) {
  static thread_local Scratch<bf16> scratch;
  return scratch.reserve(round_up(std::min(depth, DEPTH), 2) * PANEL);
}

bf16* second_panel_buffer(i64 depth) {
  static thread_local Scratch<bf16> scratch;
  return scratch.reserve(round_up(std::max<i64>(depth, 2), 2) * PANEL);
}

// The product of x (rows first to last, K) and a panel. pack(start, depth) fills panel_buffer with
// a part of the panel; add(row, sums) adds more to the sums of some rows; finish(row, sums) writes
// those of one row. prefetch(row) loads into the cache what finish touches: its cache lines are
// pages apart. Only LAST * LANES columns are used.
template <int LAST, class Pack, class Add, class Prefetch, class Finish>
void multiply_part(i64 first, i64 last, const bf16* x, i64 ld_x, i64 depth, Pack pack, Add add,
                   Prefetch prefetch, Finish finish) {
  static thread_local Scratch<float> scratch;
  float* partial = depth > DEPTH ? scratch.reserve((last - first) * PANEL) : nullptr;
  const bf16* panel = panel_buffer(depth);
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
        for (int i = 0; i < COUNT; ++i) prefetch(row + i);
      dot<0, LAST>(sum, x + row * ld_x + start, ld_x, panel, part);
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

template <class Pack, class Add, class Prefetch, class Finish>
void multiply(i64 first, i64 last, i64 width, const bf16* x, i64 ld_x, i64 depth, Pack pack,
              Add add, Prefetch prefetch, Finish finish) {
  const auto part = width > PANEL / 2 ? multiply_part<VECTORS, Pack, Add, Prefetch, Finish>
                                      : multiply_part<VECTORS / 2, Pack, Add, Prefetch, Finish>;
  part(first, last, x, ld_x, depth, pack, add, prefetch, finish);
}

// The two cache lines of a panel's columns in one row.
inline void prefetch_panel(const bf16* at) {
  __builtin_prefetch(at);
  __builtin_prefetch(at + PANEL / 2);
}

// Calls each(first column, columns left, sums) for every vector of a panel's row.
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

// x (N, K) weight (K, I) + low (N, R) a (R, I). The sums of each row of a panel are passed to
// finish(row, first column, width, sums). `low` may be null.
template <class Prefetch, class Finish>
void input_product(i64 count, i64 columns, i64 depth, const bf16* x, i64 ld_x, const bf16* weight,
                   const bf16* low, i64 rank, const bf16* a, Prefetch prefetch, Finish finish) {
  const Grid grid((columns + PANEL - 1) / PANEL, count);
  spread(grid, count, [&](i64 panel, i64 first, i64 last) {
    const i64 n = panel * PANEL, width = std::min(PANEL, columns - n);
    bf16* main = panel_buffer(depth);
    bf16* more = second_panel_buffer(rank);
    if (low != nullptr) pack_columns(a + n, columns, width, rank, more);
    multiply(
        first, last, width, x, ld_x, depth,
        [&](i64 start, i64 part) {
          pack_columns(weight + start * columns + n, columns, width, part, main);
        },
        [&](i64 row, auto& sum) {
          if (low != nullptr) dot(sum, low + row * rank, rank, more, rank);
        },
        [&](i64 row) { prefetch(row, n); },
        [&](i64 row, const __m512(&sum)[VECTORS]) { finish(row, n, width, sum); });
  });
}

// output (R, ld) = the transpose of matrix (N, R), with zeros beyond N.
void transpose_rows(const bf16* matrix, i64 ld_matrix, i64 count, i64 rank, bf16* output, i64 ld) {
#pragma omp parallel for schedule(static)
  for (i64 m = 0; m < ld; m += 2 * LANES)
    for (i64 r = 0; r < rank; r += LANES) {
      const __mmask16 mask = first_lanes(rank - r);
      auto half = [&](i64 row) {
        return _mm512_cvtepu16_epi32(
            row < count ? _mm256_maskz_loadu_epi16(mask, matrix + row * ld_matrix + r)
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

void tinkersmith_linear(i64 count, i64 outputs, i64 depth, const bf16* x, i64 ld_x,
                        const bf16* weight, const bf16* low, i64 ld_low, i64 rank, const bf16* b,
                        const bf16* bias, const bf16* residual, bf16* y, i64 ld_y) {
  const Grid grid((outputs + PANEL - 1) / PANEL, count);
  spread(grid, count, [&](i64 panel, i64 first, i64 last) {
    const i64 n = panel * PANEL, width = std::min(PANEL, outputs - n);
    bf16* main = panel_buffer(depth);
    bf16* more = second_panel_buffer(rank);
    if (low != nullptr) pack_rows(b + n * rank, rank, width, rank, more);
    multiply(
        first, last, width, x, ld_x, depth,
        [&](i64 start, i64 part) {
          pack_rows(weight + n * depth + start, depth, width, part, main);
        },
        [&](i64 row, auto& sum) {
          if (low != nullptr) dot(sum, low + row * ld_low, ld_low, more, rank);
        },
        [&](i64 row) {
          if (residual != nullptr) prefetch_panel(residual + row * ld_y + n);
          prefetch_panel(y + row * ld_y + n);
        },
        [&](i64 row, const __m512(&sum)[VECTORS]) {
          columns(width, sum, [&](i64 j, i64 left, __m512 value) {
            if (bias != nullptr) value = _mm512_add_ps(value, load(bias + n + j, left));
            if (residual != nullptr)
              value = _mm512_add_ps(value, load(residual + row * ld_y + n + j, left));
            store(y + row * ld_y + n + j, value, left);
          });
        });
  });
}

void tinkersmith_swiglu_linear(i64 count, i64 width, i64 depth, const bf16* x, const bf16* weight,
                               const bf16* low, i64 ld_low, i64 rank, const bf16* gate_b,
                               const bf16* up_b, const bf16* bias, bf16* gate_up, bf16* activated) {
  constexpr i64 HALF = PANEL / 2;
  constexpr int MIDDLE = VECTORS / 2;
  const bf16* up_low = low + (gate_b == nullptr ? 0 : rank);
  const Grid grid((width + HALF - 1) / HALF, count);
  spread(grid, count, [&](i64 panel, i64 first, i64 last) {
    const i64 n = panel * HALF, here = std::min(HALF, width - n);
    bf16* main = panel_buffer(depth);  // the gate's columns, then those of up
    bf16* more = second_panel_buffer(rank);
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
          if (up_b != nullptr) dot<MIDDLE, VECTORS>(sum, up_low + row * ld_low, ld_low, more, rank);
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
            const __m256i rounded_gate = to_bf16(gate), rounded_up = to_bf16(up);
            bf16* to = gate_up + row * 2 * width + at;
            store(to, gate, left);
            store(to + width, up, left);
            gate = to_fp32(rounded_gate);
            const __m512 silu = _mm512_mul_ps(gate, sigmoid(gate));
            store(activated + row * width + at, _mm512_mul_ps(silu, to_fp32(rounded_up)), left);
          }
        });
  });
}

void tinkersmith_input_gradient(i64 count, i64 inputs, i64 depth, const bf16* grad, i64 ld_grad,
                                const bf16* weight, const bf16* grad_low, i64 rank, const bf16* a,
                                bf16* grad_x, i64 ld_grad_x) {
  input_product(
      count, inputs, depth, grad, ld_grad, weight, grad_low, rank, a,
      [&](i64 row, i64 n) { prefetch_panel(grad_x + row * ld_grad_x + n); },
      [&](i64 row, i64 n, i64 width, const __m512(&sum)[VECTORS]) {
        columns(width, sum, [&](i64 j, i64 left, __m512 value) {
          store(grad_x + row * ld_grad_x + n + j, value, left);
        });
      });
}

void tinkersmith_swiglu_input_gradient(i64 count, i64 mlp_width, i64 depth, const bf16* grad,
                                       const bf16* weight, const bf16* grad_low, i64 rank,
                                       const bf16* a, const bf16* gate_up, bf16* activated,
                                       bf16* grad_gate_up) {
  input_product(
      count, mlp_width, depth, grad, depth, weight, grad_low, rank, a,
      [&](i64 row, i64 n) {
        for (const i64 at : {row * 2 * mlp_width + n, (row * 2 + 1) * mlp_width + n}) {
          prefetch_panel(gate_up + at);
          prefetch_panel(grad_gate_up + at);
        }
        prefetch_panel(activated + row * mlp_width + n);
      },
      [&](i64 row, i64 n, i64 width, const __m512(&sum)[VECTORS]) {
        const bf16* from = gate_up + row * 2 * mlp_width + n;
        bf16* to = grad_gate_up + row * 2 * mlp_width + n;
        columns(width, sum, [&](i64 j, i64 left, __m512 grad_sum) {
          const __m512 gate = load(from + j, left), up = load(from + mlp_width + j, left);
          const __m512 sigma = sigmoid(gate), silu = _mm512_mul_ps(gate, sigma);
          // silu' = sigma (1 + gate (1 - sigma)) = sigma + silu - silu sigma
          const __m512 slope = _mm512_add_ps(sigma, _mm512_fnmadd_ps(silu, sigma, silu));
          store(activated + row * mlp_width + n + j, _mm512_mul_ps(silu, up), left);
          store(to + j, _mm512_mul_ps(_mm512_mul_ps(grad_sum, up), slope), left);
          store(to + mlp_width + j, _mm512_mul_ps(grad_sum, silu), left);
        });
      });
}

void tinkersmith_weight_gradient(i64 count, i64 inputs, i64 rank, const bf16* low, i64 ld_low,
                                 const bf16* x, i64 ld_x, float scale, float* gradient,
                                 i64 transposed) {
  static thread_local Scratch<bf16> scratch;
  const i64 ld = round_up(count, 2 * LANES);
  bf16* rows = scratch.reserve(rank * ld);
  transpose_rows(low, ld_low, count, rank, rows, ld);
  const Grid grid((inputs + PANEL - 1) / PANEL, rank);
  const __m512 factor = _mm512_set1_ps(scale);
  spread(grid, rank, [&](i64 panel, i64 first, i64 last) {
    const i64 n = panel * PANEL, width = std::min(PANEL, inputs - n);
    bf16* main = panel_buffer(count);
    multiply(
        first, last, width, rows, ld, round_up(count, 2),
        [&](i64 start, i64 part) {
          const bf16* from = x + n / ld_x * ld_x * count + n % ld_x + start * ld_x;
          pack_columns(from, ld_x, width, std::min(part, count - start), main);
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
            float* to = gradient + row * inputs + n + j;
            const __mmask16 mask = first_lanes(left);
            const __m512 before = _mm512_maskz_loadu_ps(mask, to);
            _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(before, value));
          });
        });
  });
}
}

#endif  // __AVX512BF16__
