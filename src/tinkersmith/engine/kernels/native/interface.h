// What Python and C++ share: every function of the library, and the constants and structures that
// both sides must agree on. The compiler checks the definitions in the .cpp files against these
// declarations, and interface.py reads this file to call the functions. interface.py understands
// only the kinds of lines that are here now, and refuses all others.
//
// Tensors are row-major and contiguous unless a parameter `ld...` gives the distance from one row
// to the next, in numbers. A pointer called nullable may be null.
//
// Axes: N rows (tokens), I and O input and output size of a linear layer, R rank of the adapter,
// C layers joined in one projection that the adapter trains, F width of the MLP, T packed tokens,
// B sequences that decode together, S positions in the KV cache, G key/value heads, J queries per
// key, D head size, H hidden size, V vocabulary, W tokens of a block of the vocabulary, Y such
// blocks.
#pragma once

#include <cstdint>

using bf16 = uint16_t;  // the upper half of a float's bits
using i64 = int64_t;

constexpr i64 PANEL = 64;               // columns, tokens or positions that products take at a time
constexpr i64 VOCABULARY_BLOCK = 1024;  // tokens: token sampling finds its block first
constexpr i64 JOINED_LAYERS = 3;        // the most layers of a model in one projection
constexpr i64 FLOAT_PANEL = 16;         // rows, or positions, that decoding in fp32 takes at a time

// Neighbouring rows of one adapter, and what it adds to a projection of them, in bf16. R is even.
struct Bfloat16RowUpdate {
  i64 first;                      // row
  i64 rows;                       // N
  const bf16* a;                  // (C R, I)
  i64 layers;                     // C
  i64 rank;                       // R
  const bf16* b[JOINED_LAYERS];   // (O of the layer, R) of each trained layer
  i64 columns[JOINED_LAYERS];     // of the output, before those of each trained layer
  i64 outputs[JOINED_LAYERS];     // O of each trained layer
};

// A projection of a layer, and what adapters add to it. What is absent is null, or 0.
struct Linear {
  const bf16* weight;                // (O, I), O = the sum of `outputs`
  const bf16* bias;                  // (O)
  i64 outputs[JOINED_LAYERS];        // of each joined layer
  i64 inputs;                        // I
  i64 groups;                        // of rows, in their order
  const Bfloat16RowUpdate* updates;  // of each group
};

struct Layer {
  const bf16* attention_norm;  // (H)
  const bf16* query_norm;      // (D)
  const bf16* key_norm;        // (D)
  const bf16* mlp_norm;        // (H)
  Linear qkv;
  Linear output;
  Linear gate_up;
  Linear down;
};

// Like Bfloat16RowUpdate, in fp32, but for b.
struct RowUpdate {
  i64 first;                        // row
  i64 rows;                         // N
  const float* a;                   // (C R, I)
  i64 layers;                       // C
  i64 rank;                         // R
  const float* b[JOINED_LAYERS];    // (R, O of the layer) of each trained layer
  i64 columns[JOINED_LAYERS];       // of the output, before those of each trained layer
  i64 outputs[JOINED_LAYERS];       // O of each trained layer
};

// Like Linear, in fp32; the weight may be in bf16, and is cast where it is used.
struct Float32Linear {
  const float* weight;          // (O, I), or null
  const bf16* narrow_weight;    // (O, I), where `weight` is null
  const float* bias;
  i64 outputs[JOINED_LAYERS];
  i64 inputs;
  i64 groups;                   // of rows, in their order
  const RowUpdate* updates;     // of each group
};

struct Float32Layer {
  const float* attention_norm;
  const float* query_norm;
  const float* key_norm;
  const float* mlp_norm;
  Float32Linear qkv;
  Float32Linear output;
  Float32Linear gate_up;
  Float32Linear down;
};

extern "C" {

// ---- on every processor

// Whether this library has products in bf16 that are faster than torch's.
int tinkersmith_has_products();

// output (N, H) = x / sqrt(mean(x^2) + eps) * weight, of x (N, H) and weight (H).
void tinkersmith_rms_norm_float32(i64 rows, i64 width, const float* x, const float* weight,
                                  float eps, float* output);
void tinkersmith_rms_norm_bfloat16(i64 rows, i64 width, const bf16* x, const bf16* weight,
                                   float eps, bf16* output);

// total (N, H) += the gradient of x, from `grad` (N, H), that of the normed rows; normed (N, H) =
// the output of rms_norm.
void tinkersmith_rms_norm_backward_float32(i64 rows, i64 width, const float* grad, const float* x,
                                           const float* weight, float eps, float* total,
                                           float* normed);
void tinkersmith_rms_norm_backward_bfloat16(i64 rows, i64 width, const bf16* grad, const bf16* x,
                                            const bf16* weight, float eps, bf16* total,
                                            bf16* normed);

// output (N, F) = silu(gate) * up, of gate_up (N, 2 F); `width` is F.
void tinkersmith_swiglu_float32(i64 rows, i64 width, const float* gate_up, float* output);
void tinkersmith_swiglu_bfloat16(i64 rows, i64 width, const bf16* gate_up, bf16* output);

// output (N, 2 F) = the gradient of gate_up, from `grad` (N, F); activated (N, F) = the output of
// swiglu.
void tinkersmith_swiglu_backward_float32(i64 rows, i64 width, const float* grad,
                                         const float* gate_up, float* activated, float* output);
void tinkersmith_swiglu_backward_bfloat16(i64 rows, i64 width, const bf16* grad,
                                          const bf16* gate_up, bf16* activated, bf16* output);

// qkv (N, (G J + 2 G) D) -> query (G, N, J, D), key and value (G, N, D): normed by query_norm and
// key_norm (D), rotated by cosine and sine (N, D/2), queries times `scale`. The outputs may be rows
// of larger tensors: `group_rows` is the N of those. The norms are nullable.
void tinkersmith_split_heads_float32(i64 rows, i64 kv_heads, i64 queries_per_key, i64 head_size,
                                     i64 group_rows, const float* qkv, const float* query_norm,
                                     const float* key_norm, float eps, const float* cosine,
                                     const float* sine, i64 ld_rotary, float scale, float* query,
                                     float* key, float* value);
void tinkersmith_split_heads_bfloat16(i64 rows, i64 kv_heads, i64 queries_per_key, i64 head_size,
                                      i64 group_rows, const bf16* qkv, const bf16* query_norm,
                                      const bf16* key_norm, float eps, const float* cosine,
                                      const float* sine, i64 ld_rotary, float scale, bf16* query,
                                      bf16* key, bf16* value);

// output (N, (G J + 2 G) D) = the gradient of qkv, from those of query, key and value.
void tinkersmith_split_heads_backward_float32(i64 rows, i64 kv_heads, i64 queries_per_key,
                                              i64 head_size, i64 group_rows, const float* qkv,
                                              const float* query_norm, const float* key_norm,
                                              float eps, const float* cosine, const float* sine,
                                              i64 ld_rotary, float scale, const float* query,
                                              const float* key, const float* value, float* output);
void tinkersmith_split_heads_backward_bfloat16(i64 rows, i64 kv_heads, i64 queries_per_key,
                                               i64 head_size, i64 group_rows, const bf16* qkv,
                                               const bf16* query_norm, const bf16* key_norm,
                                               float eps, const float* cosine, const float* sine,
                                               i64 ld_rotary, float scale, const bf16* query,
                                               const float* key, const float* value, bf16* output);

// powers (N, W) = exp(logits - shift), of logits (N, W) and shift (N); sums (N) = their sums.
// `powers` is nullable.
void tinkersmith_exponentials_float32(i64 rows, i64 width, const float* logits, i64 ld_logits,
                                      const float* shift, float* sums, float* powers,
                                      i64 ld_powers);
void tinkersmith_exponentials_bfloat16(i64 rows, i64 width, const bf16* logits, i64 ld_logits,
                                       const float* shift, float* sums, bf16* powers,
                                       i64 ld_powers);

// y (N, O) = x (N, I) weight^T (O, I), in fp32, for few rows. A row's digits do not depend on how
// many rows there are.
void tinkersmith_small_batch_product_float32(i64 rows, i64 outputs, i64 inputs, const float* x,
                                             const float* weight, float* y, i64 ld_y);
void tinkersmith_small_batch_product_bfloat16(i64 rows, i64 outputs, i64 inputs, const float* x,
                                              const bf16* weight, float* y, i64 ld_y);

// y (N, O) += x (N, I) a^T b of each group of rows, in fp32, for few rows of each: their low (N,
// ld_low) = x a^T, and the columns of each trained layer get the product of their own part of it. A
// row's digits do not depend on other rows.
void tinkersmith_add_row_updates(i64 groups, const RowUpdate* updates, i64 inputs, const float* x,
                                 float* low, i64 ld_low, float* y, i64 ld_y);

// Of logits (B, V) and each block of VOCABULARY_BLOCK tokens: the highest (B, Y), its token (B, Y),
// the first of equals, and the sum of exp(logit - highest) (B, Y).
void tinkersmith_look_through_logits_float32(i64 rows, i64 vocabulary, const float* logits,
                                             float* highest, int* most_likely, float* sums);

// Like tinkersmith_fill_cache, in fp32. Keys are (G, S / FLOAT_PANEL, D, FLOAT_PANEL): panels of
// positions. Values are (G, S, D), D rounded up to a multiple of FLOAT_PANEL. S is `capacity`, a
// multiple of FLOAT_PANEL.
void tinkersmith_fill_cache_float32(i64 kv_heads, i64 head_size, i64 capacity, i64 start, i64 count,
                                    const float* key, const float* value, i64 ld_heads,
                                    float* cached_keys, float* cached_values);

// Like tinkersmith_decode, in fp32. A row's digits do not depend on how many rows or threads there
// are.
void tinkersmith_decode_float32(i64 sequences, i64 hidden_size, i64 kv_heads, i64 queries_per_key,
                                i64 head_size, i64 layer_count, const Float32Layer* layers,
                                float eps, float scale, const float* cosine,
                                const float* sine, i64 ld_rotary, const i64* lengths,
                                const i64* capacities, float* const* cached_keys,
                                const i64* key_steps, float* const* cached_values,
                                const i64* value_steps, float* x);

// Like tinkersmith_decode_float32, for prompts: tokens of one sequence are neighbouring rows with
// the same cache, in their order. If `cache_only` is not 0, only keys and values are computed, and x
// stays as it is.
void tinkersmith_read_float32(i64 tokens, i64 hidden_size, i64 kv_heads, i64 queries_per_key,
                              i64 head_size, i64 layer_count, const Float32Layer* layers,
                              float eps, float scale, const float* cosine, const float* sine,
                              i64 ld_rotary, const i64* lengths, const i64* capacities,
                              float* const* cached_keys, const i64* key_steps,
                              float* const* cached_values, const i64* value_steps,
                              i64 cache_only, float* x);

// ---- in bf16, on processors with instructions for its products. These multiply pairs of numbers:
// V and all sizes that are summed over (I, O, R, D) are even.
#ifdef __AVX512BF16__

// y (N, O) = x (N, I) weight^T (O, I) + low (N, R) b^T (O, R) + bias (O) + residual (N, O). low,
// bias and residual are nullable; the rows of residual are ld_y apart, too.
void tinkersmith_linear(i64 rows, i64 outputs, i64 inputs, const bf16* x, i64 ld_x,
                        const bf16* weight, const bf16* low, i64 ld_low, i64 rank, const bf16* b,
                        const bf16* bias, const bf16* residual, bf16* y, i64 ld_y);

// Like tinkersmith_linear, and faster for up to some hundred rows.
void tinkersmith_small_batch_linear(i64 rows, i64 outputs, i64 inputs, const bf16* x, i64 ld_x,
                                    const bf16* weight, const bf16* low, i64 ld_low, i64 rank,
                                    const bf16* b, const bf16* bias, const bf16* residual, bf16* y,
                                    i64 ld_y);

// y (N, O) = x (N, I) weight^T + what adapters add to their rows + bias + residual (N, O), for few
// rows. residual is nullable. A row's digits do not depend on other rows.
void tinkersmith_small_batch_projection(i64 rows, const Linear* linear, const bf16* x,
                                        const bf16* residual, bf16* y);

// gate_up (N, 2 F) = x (N, I) weight^T (2 F, I) + bias (2 F), and to each half is added the product
// of its own columns of low (N, ld_low) and its own b (F, R), if it has one: the gate's columns
// come first. activated (N, F) = silu(gate) * up, of the halves as rounded. The b's and bias are
// nullable.
void tinkersmith_swiglu_linear(i64 rows, i64 width, i64 inputs, const bf16* x, const bf16* weight,
                               const bf16* low, i64 ld_low, i64 rank, const bf16* gate_b,
                               const bf16* up_b, const bf16* bias, bf16* gate_up, bf16* activated);

// grad_x (N, I) = grad (N, O) weight (O, I) + grad_low (N, C R) a (C R, I). grad_low is nullable.
void tinkersmith_input_gradient(i64 rows, i64 inputs, i64 outputs, const bf16* grad, i64 ld_grad,
                                const bf16* weight, const bf16* grad_low, i64 ranks, const bf16* a,
                                bf16* grad_x, i64 ld_grad_x);

// Like tinkersmith_input_gradient, for a layer whose input is silu(gate) * up: computes this input
// again, activated (N, F), and grad_gate_up (N, 2 F), the gradient of gate_up (N, 2 F).
void tinkersmith_swiglu_input_gradient(i64 rows, i64 width, i64 outputs, const bf16* grad,
                                       const bf16* weight, const bf16* grad_low, i64 ranks,
                                       const bf16* a, const bf16* gate_up, bf16* activated,
                                       bf16* grad_gate_up);

// gradient (R, I) in fp32 += scale * low^T (R, N) x (N, I); if `transposed`, gradient is (I, R).
// Where x has more than ld_x columns (a multiple of PANEL then), it is (I / ld_x, N, ld_x).
void tinkersmith_weight_gradient(i64 rows, i64 inputs, i64 rank, const bf16* low, i64 ld_low,
                                 const bf16* x, i64 ld_x, float scale, float* gradient,
                                 i64 transposed);

// Causal attention within documents: document i has tokens starts[i] to starts[i + 1].
// output (T, G J D), and each row's normaliser (G, T J), the logarithm of its sum of exponentials,
// of query (G, T J, D), scaled, and key and value (G, T, D).
void tinkersmith_attend(i64 kv_heads, i64 queries_per_key, i64 head_size, i64 documents,
                        const i64* starts, const bf16* query, const bf16* key, const bf16* value,
                        bf16* output, float* normaliser);

// The gradients of query (G, T J, D), and in fp32 of key and value (G, T, D), from `grad`
// (T, G J D), that of output.
void tinkersmith_attend_backward(i64 kv_heads, i64 queries_per_key, i64 head_size, i64 documents,
                                 const i64* starts, const bf16* query, const bf16* key,
                                 const bf16* value, const bf16* output, const float* normaliser,
                                 const bf16* grad, bf16* grad_query, float* grad_key,
                                 float* grad_value);

// With logits (N, V) = hidden (N, H) weight^T (V, H) + low (N, R) b^T (V, R) + bias (V), and
// e = exp(logits - shift (N)): sums (N) of e; grad (N, H' + R') in fp32 = e weight, then e b, where
// H' and R' are H and R rounded up to a multiple of PANEL; powers (V / block, N, block) = e.
// `block`, in tokens, is a multiple of PANEL. low, bias, grad and powers are nullable.
void tinkersmith_head(i64 rows, i64 vocabulary, i64 hidden_size, const bf16* hidden,
                      const bf16* weight, const bf16* low, i64 rank, const bf16* b,
                      const bf16* bias, const float* shift, i64 block, float* sums, float* grad,
                      bf16* powers);

// logits (B, V) = hidden (B, H) times the output layer, like tinkersmith_small_batch_projection. Of
// each block of VOCABULARY_BLOCK tokens, from the logits in fp32 before they are rounded: the
// highest (B, Y), its token (B, Y), the first of equals, and the sum of exp(logit - highest)
// (B, Y). logits is nullable.
void tinkersmith_logits(i64 rows, const Linear* output_layer, const bf16* hidden, bf16* logits,
                        float* highest, int* most_likely, float* sums);

// The KV cache of one sequence and layer. Keys are (G, S / PANEL, D / 2, PANEL, 2): panels of PANEL
// positions. Values are (G, D / PANEL, S / 2, PANEL, 2): panels of PANEL numbers of D, rounded up
// to a multiple of it. S is `capacity`, a multiple of PANEL. Writes key and value (G, T, D), whose
// heads are `ld_heads` numbers apart, to positions `start` on.
void tinkersmith_fill_cache(i64 kv_heads, i64 head_size, i64 capacity, i64 start, i64 count,
                            const bf16* key, const bf16* value, i64 ld_heads, bf16* cached_keys,
                            bf16* cached_values);

// All layers for one new token of each sequence: x (B, H) becomes the output of the last layer. A
// sequence's cache of the first layer begins at cached_keys[i] and cached_values[i], that of the
// next layer key_steps[i] and value_steps[i] numbers behind. cosine and sine are (B, D/2).
void tinkersmith_decode(i64 sequences, i64 hidden_size, i64 kv_heads, i64 queries_per_key,
                        i64 head_size, i64 layer_count, const Layer* layers, float eps,
                        float scale, const float* cosine, const float* sine, i64 ld_rotary,
                        const i64* lengths, const i64* capacities, bf16* const* cached_keys,
                        const i64* key_steps, bf16* const* cached_values, const i64* value_steps,
                        bf16* x);

#endif  // __AVX512BF16__
}
