/* Philox4x32-10 and what noise makes of it, see kernels/philox.py. */
#ifndef DHLAB_PHILOX_H
#define DHLAB_PHILOX_H

#include "simd.h"

enum { GAUSSIAN = 1, LAPLACE, POISSON, SALT, PEPPER, DROPOUT };
#define ROUNDS 10
#define FIRST_FACTOR 0xD2511F53u
#define SECOND_FACTOR 0xCD9E8D57u
#define WEYL_LOW 0x9E3779B9u
#define WEYL_HIGH 0xBB67AE85u

/* the upper 32 bits of a product */
static inline vu multiply_high(vu a, uint32_t by) {
#if defined(DHLAB_AVX512)
    __m512i factor = _mm512_set1_epi32((int)by), even = _mm512_mul_epu32((__m512i)a, factor);
    __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), factor);
    return (vu)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
#elif defined(DHLAB_AVX2)
    __m256i factor = _mm256_set1_epi32((int)by), even = _mm256_mul_epu32((__m256i)a, factor);
    __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), factor);
    return (vu)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
#else
    vu high;
    for (int lane = 0; lane < LANES; lane++) high[lane] = (uint32_t)((uint64_t)a[lane] * by >> 32);
    return high;
#endif
}

/* four words for each counter (column, row, stream, 0) */
static inline void philox(vu column, vu row, uint32_t stream, int64_t key, vu words[4]) {
    vu a = column, b = row, c = (vu)splat_int((int32_t)stream), d = (vu)splat_int(0);
    uint32_t low = (uint32_t)key, high = (uint32_t)((uint64_t)key >> 32);
    for (int i = 0; i < ROUNDS; i++, low += WEYL_LOW, high += WEYL_HIGH) {
        vu first = multiply_high(a, FIRST_FACTOR), second = multiply_high(c, SECOND_FACTOR);
        vu left = a * FIRST_FACTOR, right = c * SECOND_FACTOR;
        a = second ^ b ^ low, b = right, c = first ^ d ^ high, d = left;
    }
    words[0] = a, words[1] = b, words[2] = c, words[3] = d;
}

static inline vf uniform(vu word) { return (to_float((vi)(word >> 9)) + 0.5f) * 0x1p-23f; }

/* Inverse of the normal distribution: M. Giles, "Approximating the erfinv function", GPU Computing Gems, 2012; error below
 * 3e-6. */
static inline vf gaussian_of(vf u) {
    static const float inner[] = {2.81022636e-08f, 3.43273939e-07f, -3.5233877e-06f, -4.39150654e-06f, 0.00021858087f,
                                  -0.00125372503f, -0.00417768164f, 0.246640727f, 1.50140941f};
    static const float outer[] = {-0.000200214257f, 0.000100950558f, 0.00134934322f, -0.00367342844f, 0.00573950773f,
                                  -0.0076224613f, 0.00943887047f, 1.00167406f, 2.83297682f};
    vf w = lg2(u * (1.0f - u) * 4.0f) * -0.693147180559945f;
    vm far = le(splat(5.0f), w);
    vf t = pick(far, root(max(w, splat(0))) - 3.0f, w - 2.5f), p = pick(far, splat(outer[0]), splat(inner[0]));
    for (int k = 1; k < 9; k++) p = p * t + pick(far, splat(outer[k]), splat(inner[k]));
    return p * (u * 2.0f - 1.0f) * 1.4142135623730951f;
}

static inline vf laplace_of(vf u) { /* of standard deviation 1 */
    vf size = (lg2(min(u, 1.0f - u)) + 1.0f) * -0.4901290717342736f; /* ln 2 / sqrt 2 */
    return pick(lt(u, splat(0.5f)), -size, size);
}

#endif
