// The element-wise work of a layer in fp32 and bf16, each function in one pass over memory. The
// formulas are those of kernels/elementwise.py. These are plain loops, which the compiler turns
// into the vectors that the processor has.
//
// Axes: N rows, H hidden size, F width of the MLP, G key/value heads, J queries per key, D head
// size, W tokens of a block of the vocabulary.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "exponential.h"
#include "interface.h"

namespace {

// Numbers that one thread writes sooner than several do: beside another program on the same cores,
// each parallel region waits for a thread that does not run.
constexpr i64 ALONE = 1 << 15;

inline float number(float x) { return x; }

inline float number(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void put(float& to, float x) { to = x; }

inline void put(bf16& to, float x) {  // rounds to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to = static_cast<bf16>(x != x ? 0x7fc0 : rounded);
}

// exp(x) = 2^(whole + rest), see exponential.h. The function of this name in vectors.h has the same
// digits.
inline float exponential(float x) {
  const float power = std::clamp(x * LOG2_E, -126.0f, 127.0f);
  const float whole = __builtin_rintf(power), rest = power - whole;
  constexpr float factors[] = EXP2_REST;
  float sum = EXP2_FIRST;
  sum = sum * rest + factors[0];
  sum = sum * rest + factors[1];
  sum = sum * rest + factors[2];
  sum = sum * rest + factors[3];
  sum = sum * rest + factors[4];
  const int32_t bits = (static_cast<int32_t>(whole) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return sum * scale;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

template <class T>
float inverse_rms(const T* x, i64 count, float eps) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (i64 i = 0; i < count; ++i) sum += number(x[i]) * number(x[i]);
  return 1.0f / std::sqrt(sum / count + eps);
}

template <class T>
void rms_norm(i64 rows, i64 width, const T* x, const T* weight, float eps, T* output) {
#pragma omp parallel for schedule(static) if (rows * width > ALONE)
  for (i64 row = 0; row < rows; ++row) {
    const T* from = x + row * width;
    T* to = output + row * width;
    const float inverse = inverse_rms(from, width, eps);
#pragma omp simd
    for (i64 i = 0; i < width; ++i) put(to[i], number(from[i]) * inverse * number(weight[i]));
  }
}

// total += the gradient of x; normed = the output of rms_norm.
template <class T>
void rms_norm_backward(i64 rows, i64 width, const T* grad, const T* x, const T* weight, float eps,
                       T* total, T* normed) {
#pragma omp parallel for schedule(static)
  for (i64 row = 0; row < rows; ++row) {
    const T *given = grad + row * width, *from = x + row * width;
    T *to = total + row * width, *again = normed + row * width;
    const float inverse = inverse_rms(from, width, eps);
    float along = 0;
#pragma omp simd reduction(+ : along)
    for (i64 i = 0; i < width; ++i)
      along += number(given[i]) * number(weight[i]) * number(from[i]) * inverse;
    along /= width;
#pragma omp simd
    for (i64 i = 0; i < width; ++i) {
      const float scaled = number(from[i]) * inverse;
      put(again[i], scaled * number(weight[i]));
      const float slope = (number(given[i]) * number(weight[i]) - scaled * along) * inverse;
      put(to[i], number(to[i]) + slope);
    }
  }
}

template <class T>
void swiglu(i64 rows, i64 width, const T* gate_up, T* output) {
#pragma omp parallel for schedule(static) if (rows * width > ALONE)
  for (i64 row = 0; row < rows; ++row) {
    const T *gate = gate_up + 2 * row * width, *up = gate + width;
    T* to = output + row * width;
#pragma omp simd
    for (i64 i = 0; i < width; ++i)
      put(to[i], number(gate[i]) * sigmoid(number(gate[i])) * number(up[i]));
  }
}

template <class T>
void swiglu_backward(i64 rows, i64 width, const T* grad, const T* gate_up, T* activated,
                     T* output) {
#pragma omp parallel for schedule(static)
  for (i64 row = 0; row < rows; ++row) {
    const T *gate = gate_up + 2 * row * width, *up = gate + width, *given = grad + row * width;
    T *again = activated + row * width, *of_gate = output + 2 * row * width,
      *of_up = of_gate + width;
#pragma omp simd
    for (i64 i = 0; i < width; ++i) {
      const float x = number(gate[i]), sigma = sigmoid(x), silu = x * sigma;
      put(again[i], silu * number(up[i]));
      put(of_gate[i], number(given[i]) * number(up[i]) * (sigma + silu - silu * sigma));
      put(of_up[i], number(given[i]) * silu);
    }
  }
}

// Heads of a layer. Outputs are rows of tensors of (G, group_rows, ...).
struct Heads {
  i64 kv_heads, per_key, size, group_rows;  // G, J, D
};

// One head normed, rotated (Su et al. 2021) and scaled.
template <class T>
void rotate_head(const T* x, i64 head_size, const T* norm, float eps, const float* cosine,
                 const float* sine, float scale, T* output) {
  const i64 half = head_size / 2;
  const float factor = norm == nullptr ? scale : scale * inverse_rms(x, head_size, eps);
#pragma omp simd
  for (i64 i = 0; i < half; ++i) {
    float left = number(x[i]) * factor, right = number(x[half + i]) * factor;
    if (norm != nullptr) left *= number(norm[i]), right *= number(norm[half + i]);
    put(output[i], left * cosine[i] - right * sine[i]);
    put(output[half + i], right * cosine[i] + left * sine[i]);
  }
}

// qkv (N, (G J + 2 G) D) -> query (G, N, J, D), key and value (G, N, D)
template <class T>
void split_heads(i64 rows, Heads h, const T* qkv, const T* query_norm, const T* key_norm, float eps,
                 const float* cosine, const float* sine, i64 ld_rotary, float scale, T* query,
                 T* key, T* value) {
  const i64 heads = h.kv_heads * (h.per_key + 2);
#pragma omp parallel for schedule(static) if (rows * heads * h.size > ALONE)
  for (i64 row = 0; row < rows; ++row) {
    const T* from = qkv + row * heads * h.size;
    const float *cos = cosine + row * ld_rotary, *sin = sine + row * ld_rotary;
    for (i64 group = 0; group < h.kv_heads; ++group) {
      const i64 place = group * h.group_rows + row;
      for (i64 i = 0; i < h.per_key; ++i)
        rotate_head(from + (group * h.per_key + i) * h.size, h.size, query_norm, eps, cos, sin,
                    scale, query + (place * h.per_key + i) * h.size);
      const T* of_key = from + (h.kv_heads * h.per_key + group) * h.size;
      rotate_head(of_key, h.size, key_norm, eps, cos, sin, 1.0f, key + place * h.size);
      std::copy_n(of_key + h.kv_heads * h.size, h.size, value + place * h.size);
    }
  }
}

// output = the gradient of rotate_head's x, from `grad`, that of its output.
template <class T, class G>
void rotate_head_backward(const T* x, const G* grad, i64 head_size, const T* norm, float eps,
                          const float* cosine, const float* sine, float scale, float* rotated,
                          T* output) {
  const i64 half = head_size / 2;
#pragma omp simd
  for (i64 i = 0; i < half; ++i) {
    const float left = number(grad[i]) * scale, right = number(grad[half + i]) * scale;
    rotated[i] = left * cosine[i] + right * sine[i];
    rotated[half + i] = right * cosine[i] - left * sine[i];
  }
  if (norm == nullptr) {
#pragma omp simd
    for (i64 i = 0; i < head_size; ++i) put(output[i], rotated[i]);
    return;
  }
  const float inverse = inverse_rms(x, head_size, eps);
  float along = 0;
#pragma omp simd reduction(+ : along)
  for (i64 i = 0; i < head_size; ++i)
    along += rotated[i] * number(norm[i]) * number(x[i]) * inverse;
  along /= head_size;
#pragma omp simd
  for (i64 i = 0; i < head_size; ++i) {
    const float normed = number(x[i]) * inverse;
    put(output[i], (rotated[i] * number(norm[i]) - normed * along) * inverse);
  }
}

template <class T>
void split_heads_backward(i64 rows, Heads h, const T* qkv, const T* query_norm, const T* key_norm,
                          float eps, const float* cosine, const float* sine, i64 ld_rotary,
                          float scale, const T* query, const float* key, const float* value,
                          T* output) {
  const i64 heads = h.kv_heads * (h.per_key + 2);
#pragma omp parallel
  {
    std::vector<float> rotated(h.size);
#pragma omp for schedule(static)
    for (i64 row = 0; row < rows; ++row) {
      const i64 start = row * heads * h.size;
      const float *cos = cosine + row * ld_rotary, *sin = sine + row * ld_rotary;
      for (i64 group = 0; group < h.kv_heads; ++group) {
        const i64 place = group * h.group_rows + row;
        for (i64 i = 0; i < h.per_key; ++i) {
          const i64 at = start + (group * h.per_key + i) * h.size;
          rotate_head_backward(qkv + at, query + (place * h.per_key + i) * h.size, h.size,
                               query_norm, eps, cos, sin, scale, rotated.data(), output + at);
        }
        const i64 at = start + (h.kv_heads * h.per_key + group) * h.size;
        rotate_head_backward(qkv + at, key + place * h.size, h.size, key_norm, eps, cos, sin, 1.0f,
                             rotated.data(), output + at);
        T* to = output + at + h.kv_heads * h.size;
#pragma omp simd
        for (i64 i = 0; i < h.size; ++i) put(to[i], value[place * h.size + i]);
      }
    }
  }
}

// powers (N, W) = exp(logits - shift), sums (N) = their sums; `powers` may be null.
template <class T>
void exponentials(i64 rows, i64 width, const T* logits, i64 ld_logits, const float* shift,
                  float* sums, T* powers, i64 ld_powers) {
#pragma omp parallel for schedule(static) if (rows * width > ALONE)
  for (i64 row = 0; row < rows; ++row) {
    const T* from = logits + row * ld_logits;
    const float above = shift[row];
    float sum = 0;
    if (powers == nullptr) {
#pragma omp simd reduction(+ : sum)
      for (i64 i = 0; i < width; ++i) sum += exponential(number(from[i]) - above);
    } else {
      T* to = powers + row * ld_powers;
#pragma omp simd reduction(+ : sum)
      for (i64 i = 0; i < width; ++i) {
        const float value = exponential(number(from[i]) - above);
        put(to[i], value);
        sum += value;
      }
    }
    sums[row] = sum;
  }
}

}  // namespace

#define FOR_TYPE(T, NAME)                                                                        \
  void tinkersmith_rms_norm_##NAME(i64 rows, i64 width, const T* x, const T* weight, float eps,  \
                                   T* output) {                                                  \
    rms_norm(rows, width, x, weight, eps, output);                                               \
  }                                                                                              \
  void tinkersmith_rms_norm_backward_##NAME(i64 rows, i64 width, const T* grad, const T* x,      \
                                            const T* weight, float eps, T* total, T* normed) {   \
    rms_norm_backward(rows, width, grad, x, weight, eps, total, normed);                         \
  }                                                                                              \
  void tinkersmith_swiglu_##NAME(i64 rows, i64 width, const T* gate_up, T* output) {             \
    swiglu(rows, width, gate_up, output);                                                        \
  }                                                                                              \
  void tinkersmith_swiglu_backward_##NAME(i64 rows, i64 width, const T* grad, const T* gate_up,  \
                                          T* activated, T* output) {                             \
    swiglu_backward(rows, width, grad, gate_up, activated, output);                              \
  }                                                                                              \
  void tinkersmith_split_heads_##NAME(                                                           \
      i64 rows, i64 kv_heads, i64 queries_per_key, i64 head_size, i64 group_rows, const T* qkv,  \
      const T* query_norm, const T* key_norm, float eps, const float* cosine, const float* sine, \
      i64 ld_rotary, float scale, T* query, T* key, T* value) {                                  \
    split_heads(rows, {kv_heads, queries_per_key, head_size, group_rows}, qkv, query_norm,       \
                key_norm, eps, cosine, sine, ld_rotary, scale, query, key, value);               \
  }                                                                                              \
  void tinkersmith_split_heads_backward_##NAME(                                                  \
      i64 rows, i64 kv_heads, i64 queries_per_key, i64 head_size, i64 group_rows, const T* qkv,  \
      const T* query_norm, const T* key_norm, float eps, const float* cosine, const float* sine, \
      i64 ld_rotary, float scale, const T* query, const float* key, const float* value,          \
      T* output) {                                                                               \
    split_heads_backward(rows, {kv_heads, queries_per_key, head_size, group_rows}, qkv,          \
                         query_norm, key_norm, eps, cosine, sine, ld_rotary, scale, query, key,  \
                         value, output);                                                         \
  }                                                                                              \
  void tinkersmith_exponentials_##NAME(i64 rows, i64 width, const T* logits, i64 ld_logits,      \
                                       const float* shift, float* sums, T* powers,               \
                                       i64 ld_powers) {                                          \
    exponentials(rows, width, logits, ld_logits, shift, sums, powers, ld_powers);                \
  }

extern "C" {
// torch has faster products where the processor multiplies whole tiles (AMX).
int tinkersmith_has_products() {
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
  return 1;
#else
  return 0;
#endif
}

FOR_TYPE(float, float32)
FOR_TYPE(bf16, bfloat16)
}
