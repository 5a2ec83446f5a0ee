// The instructions for products in bf16, made of others of AVX-512, so that the C++ functions in
// bf16 can be tested on processors without them. Included before every source.
#pragma once

#include <immintrin.h>

#if !defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__) && \
    defined(__AVX512VL__) && defined(__AVX512DQ__)
#define __AVX512BF16__ 1

// sum + the products of both halves of each pair, rounded after each, as the instruction does; it
// also takes denormal numbers as 0.
inline __m512 emulated_dpbf16(__m512 sum, __m512bh a, __m512bh b) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i x = (__m512i)a, y = (__m512i)b;
  auto number = [](__m512i bits) { return _mm512_castsi512_ps(bits); };
  sum = _mm512_fmadd_ps(number(_mm512_and_si512(x, upper)), number(_mm512_and_si512(y, upper)),
                        sum);
  return _mm512_fmadd_ps(number(_mm512_slli_epi32(x, 16)), number(_mm512_slli_epi32(y, 16)), sum);
}

// To the nearest number in bf16, and of two to the even one; what is no number stays none.
inline __m256bh emulated_cvtneps(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __mmask16 none = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_or_epi32(_mm512_add_epi32(bits, half), none, bits,
                                               _mm512_set1_epi32(0x400000));
  return (__m256bh)_mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

#define _mm512_dpbf16_ps emulated_dpbf16
#define _mm512_mask_dpbf16_ps(sum, lanes, a, b) \
  _mm512_mask_mov_ps(sum, lanes, emulated_dpbf16(sum, a, b))
#define _mm512_cvtneps_pbh emulated_cvtneps
#endif
