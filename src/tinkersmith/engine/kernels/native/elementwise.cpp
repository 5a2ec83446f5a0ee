// The element-wise work of a layer, in fp32 and bf16: what elementwise.py does, in one pass each.
// Plain loops, which the compiler turns into whatever vectors the machine has.
//
// Axes: N rows, H hidden size, F width of the MLP, Q query heads, G key/value heads, R = Q / G,
// D head size.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using bf16 = uint16_t;
using i64 = int64_t;

inline float number(float x) { return x; }

inline float number(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void put(float& to, float x) { to = x; }

inline void put(bf16& to, float x) {  // to the nearest, of two as near the even one
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to = static_cast<bf16>(x != x ? 0x7fc0 : rounded);
}

// exp(x) = 2^(whole + rest), with the best polynomial of its degree: a relative error of 2e-7. The
// one of vectors.h gives the same digits: decoding takes this one where training takes that one, and
// their log-probabilities in bf16 would drift apart.
inline float exponential(float x) {
  const float power = std::clamp(x * 1.44269504f, -126.0f, 127.0f);
  const float whole = __builtin_rintf(power), rest = power - whole;
  float sum = 0.00132647272f;
  sum = sum * rest + 0.00967151281f;
  sum = sum * rest + 0.0555073374f;
  sum = sum * rest + 0.240222421f;
  sum = sum * rest + 0.693146978f;
  sum = sum * rest + 1.0f;
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
#pragma omp parallel for schedule(static)
  for (i64 row = 0; row < rows; ++row) {
    const T* from = x + row * width;
    T* to = output + row * width;
    const float inverse = inverse_rms(from, width, eps);
#pragma omp simd
    for (i64 i = 0; i < width; ++i) put(to[i], number(from[i]) * inverse * number(weight[i]));
  }
}

// total += the gradient of x; normed is given what rms_norm gave.
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
#pragma omp parallel for schedule(static)
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
    T *again = activated + row * width, *of_gate = output + 2 * row * width, *of_up = of_gate + width;
#pragma omp simd
    for (i64 i = 0; i < width; ++i) {
      const float x = number(gate[i]), share = sigmoid(x), silu = x * share;
      put(again[i], silu * number(up[i]));
      put(of_gate[i], number(given[i]) * number(up[i]) * (share + silu - silu * share));
      put(of_up[i], number(given[i]) * silu);
    }
  }
}

// Heads of a model: their counts, and where those of a group stand.
struct Heads {
  i64 groups, share, size, group_rows;  // (G, group_rows, ...) is where a group's rows begin
};

// One head normed, turned (Su et al. 2021) and scaled.
template <class T>
void turn_head(const T* x, i64 size, const T* norm, float eps, const float* cosine,
               const float* sine, float scale, T* output) {
  const i64 half = size / 2;
  const float factor = norm == nullptr ? scale : scale * inverse_rms(x, size, eps);
#pragma omp simd
  for (i64 i = 0; i < half; ++i) {
    float left = number(x[i]) * factor, right = number(x[half + i]) * factor;
    if (norm != nullptr) left *= number(norm[i]), right *= number(norm[half + i]);
    put(output[i], left * cosine[i] - right * sine[i]);
    put(output[half + i], right * cosine[i] + left * sine[i]);
  }
}

// qkv (N, (Q + 2 G) D) -> query (G, N, R, D), key and value (G, N, D)
template <class T>
void split_heads(i64 rows, Heads h, const T* qkv, const T* query_norm, const T* key_norm, float eps,
                 const float* cosine, const float* sine, i64 ld_turn, float scale, T* query, T* key,
                 T* value) {
  const i64 heads = h.groups * (h.share + 2);
#pragma omp parallel for schedule(static)
  for (i64 row = 0; row < rows; ++row) {
    const T* from = qkv + row * heads * h.size;
    const float *cos = cosine + row * ld_turn, *sin = sine + row * ld_turn;
    for (i64 group = 0; group < h.groups; ++group) {
      const i64 place = group * h.group_rows + row;
      for (i64 i = 0; i < h.share; ++i)
        turn_head(from + (group * h.share + i) * h.size, h.size, query_norm, eps, cos, sin, scale,
                  query + (place * h.share + i) * h.size);
      const T* of_key = from + (h.groups * h.share + group) * h.size;
      turn_head(of_key, h.size, key_norm, eps, cos, sin, 1.0f, key + place * h.size);
      std::copy_n(of_key + h.groups * h.size, h.size, value + place * h.size);
    }
  }
}

// The gradient of a head's input from that of what turn_head gave.
template <class T, class G>
void turn_head_backward(const T* x, const G* grad, i64 size, const T* norm, float eps,
                        const float* cosine, const float* sine, float scale, float* room,
                        T* output) {
  const i64 half = size / 2;
#pragma omp simd
  for (i64 i = 0; i < half; ++i) {
    const float left = number(grad[i]) * scale, right = number(grad[half + i]) * scale;
    room[i] = left * cosine[i] + right * sine[i];
    room[half + i] = right * cosine[i] - left * sine[i];
  }
  if (norm == nullptr) {
#pragma omp simd
    for (i64 i = 0; i < size; ++i) put(output[i], room[i]);
    return;
  }
  const float inverse = inverse_rms(x, size, eps);
  float along = 0;
#pragma omp simd reduction(+ : along)
  for (i64 i = 0; i < size; ++i) along += room[i] * number(norm[i]) * number(x[i]) * inverse;
  along /= size;
#pragma omp simd
  for (i64 i = 0; i < size; ++i) {
    const float normed = number(x[i]) * inverse;
    put(output[i], (room[i] * number(norm[i]) - normed * along) * inverse);
  }
}

template <class T>
void split_heads_backward(i64 rows, Heads h, const T* qkv, const T* query_norm, const T* key_norm,
                          float eps, const float* cosine, const float* sine, i64 ld_turn,
                          float scale, const T* query, const float* key, const float* value,
                          T* output) {
  const i64 heads = h.groups * (h.share + 2);
#pragma omp parallel
  {
    std::vector<float> room(h.size);
#pragma omp for schedule(static)
    for (i64 row = 0; row < rows; ++row) {
      const i64 start = row * heads * h.size;
      const float *cos = cosine + row * ld_turn, *sin = sine + row * ld_turn;
      for (i64 group = 0; group < h.groups; ++group) {
        const i64 place = group * h.group_rows + row;
        for (i64 i = 0; i < h.share; ++i) {
          const i64 at = start + (group * h.share + i) * h.size;
          turn_head_backward(qkv + at, query + (place * h.share + i) * h.size, h.size, query_norm,
                             eps, cos, sin, scale, room.data(), output + at);
        }
        const i64 at = start + (h.groups * h.share + group) * h.size;
        turn_head_backward(qkv + at, key + place * h.size, h.size, key_norm, eps, cos, sin, 1.0f,
                           room.data(), output + at);
        T* to = output + at + h.groups * h.size;
#pragma omp simd
        for (i64 i = 0; i < h.size; ++i) put(to[i], value[place * h.size + i]);
      }
    }
  }
}

// exp(logits - shift) (N, W), and its sums (N); `kept` may be null.
template <class T>
void exponentials(i64 rows, i64 width, const T* logits, i64 ld, const float* shift, float* sums,
                  T* kept, i64 ld_kept) {
#pragma omp parallel for schedule(static)
  for (i64 row = 0; row < rows; ++row) {
    const T* from = logits + row * ld;
    const float above = shift[row];
    float sum = 0;
    if (kept == nullptr) {
#pragma omp simd reduction(+ : sum)
      for (i64 i = 0; i < width; ++i) sum += exponential(number(from[i]) - above);
    } else {
      T* to = kept + row * ld_kept;
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

#define FOR_TYPE(T, NAME)                                                                         \
  void tinkersmith_rms_norm_##NAME(i64 rows, i64 width, const T* x, const T* weight, float eps,    \
                                   T* output) {                                                   \
    rms_norm(rows, width, x, weight, eps, output);                                                \
  }                                                                                               \
  void tinkersmith_rms_norm_backward_##NAME(i64 rows, i64 width, const T* grad, const T* x,        \
                                            const T* weight, float eps, T* total, T* normed) {    \
    rms_norm_backward(rows, width, grad, x, weight, eps, total, normed);                          \
  }                                                                                               \
  void tinkersmith_swiglu_##NAME(i64 rows, i64 width, const T* gate_up, T* output) {              \
    swiglu(rows, width, gate_up, output);                                                         \
  }                                                                                               \
  void tinkersmith_swiglu_backward_##NAME(i64 rows, i64 width, const T* grad, const T* gate_up,    \
                                          T* activated, T* output) {                              \
    swiglu_backward(rows, width, grad, gate_up, activated, output);                               \
  }                                                                                               \
  void tinkersmith_split_heads_##NAME(i64 rows, i64 groups, i64 share, i64 size, i64 group_rows,   \
                                      const T* qkv, const T* query_norm, const T* key_norm,       \
                                      float eps, const float* cosine, const float* sine,          \
                                      i64 ld_turn, float scale, T* query, T* key, T* value) {     \
    split_heads(rows, {groups, share, size, group_rows}, qkv, query_norm, key_norm, eps, cosine,   \
                sine, ld_turn, scale, query, key, value);                                         \
  }                                                                                               \
  void tinkersmith_split_heads_backward_##NAME(                                                   \
      i64 rows, i64 groups, i64 share, i64 size, i64 group_rows, const T* qkv,                    \
      const T* query_norm, const T* key_norm, float eps, const float* cosine, const float* sine,  \
      i64 ld_turn, float scale, const T* query, const float* key, const float* value, T* output) { \
    split_heads_backward(rows, {groups, share, size, group_rows}, qkv, query_norm, key_norm, eps,  \
                         cosine, sine, ld_turn, scale, query, key, value, output);                \
  }                                                                                               \
  void tinkersmith_exponentials_##NAME(i64 rows, i64 width, const T* logits, i64 ld,              \
                                       const float* shift, float* sums, T* kept, i64 ld_kept) {   \
    exponentials(rows, width, logits, ld, shift, sums, kept, ld_kept);                            \
  }

extern "C" {
// Whether this library has products of bf16 that are worth it: torch has faster ones where the
// processor multiplies whole tiles (AMX).
int tinkersmith_products() {
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
  return 1;
#else
  return 0;
#endif
}

FOR_TYPE(float, float32)
FOR_TYPE(bf16, bfloat16)
}
