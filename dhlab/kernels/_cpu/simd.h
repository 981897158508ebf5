/* Vectors of LANES floats in GCC's and Clang's own notation; each instruction set compiles the same sources.
 *
 * avx512 (Ice Lake, Zen 4 and newer): 16 lanes; avx2 (Haswell, Zen and newer): 8; base (any x86-64, ARM's NEON): 4.
 * Operators (+ - * / & | >>) work on vf, vi and vu as they are; a mask of type vm comes from lt, le and the like. */
#ifndef DHLAB_SIMD_H
#define DHLAB_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(DHLAB_AVX512)
#define LANES 16
#elif defined(DHLAB_AVX2)
#define LANES 8
#else
#define LANES 4
#endif

#define JOIN_(name, set) name##_##set
#define JOIN(name, set) JOIN_(name, set)
/* NAME(normalize) becomes normalize_avx512 and so on; Python takes the best that the processor has. */
#define NAME(name) JOIN(name, DHLAB_SET)
#define EXPORT __attribute__((visibility("default")))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint8_t vb __attribute__((vector_size(LANES)));
typedef float vf_loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t vi_loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vf splat(float value) { return value - (vf){0}; }
static inline vi splat_int(int32_t value) { return value - (vi){0}; }
static inline vf load(const float *from) { return *(const vf_loose *)from; }
static inline void store(float *to, vf value) { *(vf_loose *)to = value; }
static inline vi load_int(const int32_t *from) { return *(const vi_loose *)from; }
static inline void store_int(int32_t *to, vi value) { *(vi_loose *)to = value; }
static inline vf to_float(vi value) { return __builtin_convertvector(value, vf); }
static inline vi to_int(vf value) { return __builtin_convertvector(value, vi); } /* towards zero */
static inline vi bits(vf value) { return (vi)value; }
static inline vf floats(vi value) { return (vf)value; }

static inline vi steps(void) { /* 0, 1, 2, ... */
    vi value;
    for (int lane = 0; lane < LANES; lane++) value[lane] = lane;
    return value;
}

/* The next four need aligned memory where they bypass the caches; ask is_aligned first. */
static inline int is_aligned(const void *where) { return ((uintptr_t)where & (4 * LANES - 1)) == 0; }
static inline void stream(float *to, vf value) {
#if defined(DHLAB_AVX512)
    _mm512_stream_ps(to, (__m512)value);
#elif defined(DHLAB_AVX2)
    _mm256_stream_ps(to, (__m256)value);
#elif defined(__x86_64__)
    _mm_stream_ps(to, (__m128)value);
#else
    store(to, value);
#endif
}
static inline void finish_streams(void) {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

#if defined(DHLAB_AVX512)
typedef __mmask16 vm;
static inline vm lt(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
static inline vm le(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
static inline vm eq_int(vi a, vi b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
static inline vm lt_int(vi a, vi b) { return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b); }
static inline vm both(vm a, vm b) { return a & b; }
static inline vm either(vm a, vm b) { return a | b; }
static inline vm unless(vm a, vm b) { return a & (vm)~b; } /* a and not b */
static inline int count(vm mask) { return __builtin_popcount(mask); }
static inline uint32_t lanes_of(vm mask) { return mask; } /* one bit per lane */
static inline vm first(int n) { return (vm)(n >= LANES ? 0xffff : (1u << n) - 1); }
static inline vf pick(vm mask, vf yes, vf no) { return (vf)_mm512_mask_blend_ps(mask, (__m512)no, (__m512)yes); }
static inline vi pick_int(vm mask, vi yes, vi no) {
    return (vi)_mm512_mask_blend_epi32(mask, (__m512i)no, (__m512i)yes);
}
/* where one is NaN, max and min give the second */
static inline vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vf min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
static inline vi max_int(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
static inline vi min_int(vi a, vi b) { return (vi)_mm512_min_epi32((__m512i)a, (__m512i)b); }
static inline vf floor_of(vf a) {
    return (vf)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
static inline vf round_of(vf a) { /* to even, as torch.round */
    return (vf)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf root(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
static inline float sum(vf a) { return _mm512_reduce_add_ps((__m512)a); }
static inline float largest(vf a) { return _mm512_reduce_max_ps((__m512)a); }
/* 32-bit words at base + offset bytes */
static inline vi gather(const void *base, vi offset) { return (vi)_mm512_i32gather_epi32((__m512i)offset, base, 1); }
static inline int compress(float *to, vm mask, vf value) { /* returns how many were written; may touch LANES */
    /* to a register first: compressing into memory is microcode on Zen */
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, (__m512)value));
    return __builtin_popcount(mask);
}
#else
typedef vi vm;
static inline vm lt(vf a, vf b) { return a < b; }
static inline vm le(vf a, vf b) { return a <= b; }
static inline vm eq_int(vi a, vi b) { return a == b; }
static inline vm lt_int(vi a, vi b) { return a < b; }
static inline vm both(vm a, vm b) { return a & b; }
static inline vm either(vm a, vm b) { return a | b; }
static inline vm unless(vm a, vm b) { return a & ~b; }
static inline vm first(int n) { return steps() < n; }
#if defined(DHLAB_AVX2)
static inline uint32_t lanes_of(vm mask) { return (uint32_t)_mm256_movemask_ps((__m256)mask); }
static inline vf pick(vm mask, vf yes, vf no) {
    return (vf)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)mask);
}
static inline vf max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vf min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
static inline vi max_int(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
static inline vi min_int(vi a, vi b) { return (vi)_mm256_min_epi32((__m256i)a, (__m256i)b); }
static inline vf floor_of(vf a) { return (vf)_mm256_floor_ps((__m256)a); }
static inline vf round_of(vf a) {
    return (vf)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf root(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
static inline vi gather(const void *base, vi offset) {
    return (vi)_mm256_i32gather_epi32((const int *)base, (__m256i)offset, 1);
}
#else
static inline vf pick(vm mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
#if defined(__x86_64__)
static inline uint32_t lanes_of(vm mask) { return (uint32_t)_mm_movemask_ps((__m128)mask); }
static inline vf max(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
static inline vf min(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
static inline vf root(vf a) { return (vf)_mm_sqrt_ps((__m128)a); }
#else
static inline uint32_t lanes_of(vm mask) {
    uint32_t found = 0;
    for (int lane = 0; lane < LANES; lane++) found |= (uint32_t)(mask[lane] & 1) << lane;
    return found;
}
static inline vf max(vf a, vf b) { return pick(a > b, a, b); }
static inline vf min(vf a, vf b) { return pick(a < b, a, b); }
#if defined(__aarch64__)
static inline vf root(vf a) { return (vf)vsqrtq_f32((float32x4_t)a); }
#else
static inline vf root(vf a) {
    for (int lane = 0; lane < LANES; lane++) a[lane] = __builtin_sqrtf(a[lane]);
    return a;
}
#endif
#endif
static inline vi max_int(vi a, vi b) { vi more = a > b; return (more & a) | (~more & b); }
static inline vi min_int(vi a, vi b) { vi less = a < b; return (less & a) | (~less & b); }
#if defined(__aarch64__)
static inline vf floor_of(vf a) { return (vf)vrndmq_f32((float32x4_t)a); }
static inline vf round_of(vf a) { return (vf)vrndnq_f32((float32x4_t)a); }
#else
static inline vf floor_of(vf a) { /* |a| < 2^31 */
    vf whole = to_float(to_int(a));
    return whole - (vf)((whole > a) & (vi)splat(1.0f));
}
static inline vf round_of(vf a) { /* |a| < 2^22; adding 1.5 * 2^23 leaves the nearest even whole number */
    volatile vf shifted = a + 12582912.0f;
    return shifted - 12582912.0f;
}
#endif
static inline vi gather(const void *base, vi offset) {
    vi value;
    for (int lane = 0; lane < LANES; lane++) {
        int32_t word;
        memcpy(&word, (const char *)base + offset[lane], 4);
        value[lane] = word;
    }
    return value;
}
#endif
static inline int count(vm mask) { return __builtin_popcount(lanes_of(mask)); }
static inline vi pick_int(vm mask, vi yes, vi no) { return (vi)pick(mask, (vf)yes, (vf)no); }
static inline float sum(vf a) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += a[lane];
    return total;
}
static inline float largest(vf a) {
    float most = a[0];
    for (int lane = 1; lane < LANES; lane++) most = a[lane] > most ? a[lane] : most;
    return most;
}
static inline int compress(float *to, vm mask, vf value) {
    uint32_t left = lanes_of(mask);
    int written = 0;
    for (; left; left &= left - 1) to[written++] = value[__builtin_ctz(left)];
    return written;
}
#endif

#define ALL_LANES ((1u << LANES) - 1) /* lanes_of a mask that is true everywhere */
static inline vm mask_of(uint32_t lanes) { /* from one bit per lane */
#if defined(DHLAB_AVX512)
    return (vm)lanes;
#else
    vi bit = splat_int(1) << steps();
    return eq_int(splat_int((int)lanes) & bit, bit);
#endif
}

/* a product that keeps its own rounding, not fused with a sum that follows */
static inline vf rounded(vf product) {
#if defined(__x86_64__)
    __asm__("" : "+v"(product));
#elif defined(__aarch64__)
    __asm__("" : "+w"(product));
#endif
    return product;
}

static inline vf clamp(vf value, float low, float high) { return min(max(value, splat(low)), splat(high)); }
static inline int any(vm mask) { return lanes_of(mask) != 0; }

/* log2 of a positive normal number. Error below 5e-7 of the result, also near 1, and exactly 0 at 1. */
static inline vf lg2(vf x) {
    vi raw = bits(x) - 0x3f3504f3; /* x = 2^e (1 + t) with 1 + t from sqrt(1/2) to sqrt(2) */
    vf t = floats((raw & 0x7fffff) + 0x3f3504f3) - 1.0f, p = splat(-0.14581190291606233f);
    p = p * t + 0.23404246280384755f;
    p = p * t - 0.2488768348473318f;
    p = p * t + 0.2870986868145724f;
    p = p * t - 0.3602396409757569f;
    p = p * t + 0.4809232427445945f;
    p = p * t - 0.7213527880476582f;
    p = p * t + 1.4426949619849967f;
    return p * t + to_float(raw >> 23);
}

/* 2^x, at least 2^-126; x below 128. Error below 3e-7 of the result, and exactly 1 at 0. */
static inline vf ex2(vf x) {
    x = max(splat(-126.0f), x); /* in this order NaN stays NaN */
    vf whole = round_of(x), t = x - whole, p = splat(0.001326662383776019f);
    p = p * t + 0.009671539176490909f;
    p = p * t + 0.05550728486397846f;
    p = p * t + 0.24022241538578623f;
    p = p * t + 0.6931469799885039f;
    p = p * t + 1.0f;
#if defined(DHLAB_AVX512)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    return floats(bits(p) + (to_int(whole) << 23));
#endif
}

/* LANES RGB pixels of one byte a channel, next to one another, to three vectors of 0..255 and back; reads and writes
 * 3 * LANES bytes. */
static inline void load_rgb(const uint8_t *from, vf *r, vf *g, vf *b) {
#if defined(DHLAB_AVX512)
    static const uint8_t order[64] __attribute__((aligned(64))) = {
        0, 3, 6, 9,  12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 37,
        40, 43, 46, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35, 38, 41, 44, 47};
    __m512i pixels = _mm512_maskz_loadu_epi8(0xffffffffffff, from);
    pixels = _mm512_permutexvar_epi8(_mm512_load_si512(order), pixels);
    *r = (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_castsi512_si128(pixels)));
    *g = (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(pixels, 1)));
    *b = (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(pixels, 2)));
#elif defined(DHLAB_AVX2)
    const __m128i order[3] = {_mm_setr_epi8(0, 3, 6, 9, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1),
                             _mm_setr_epi8(1, 4, 7, 10, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1),
                             _mm_setr_epi8(2, 5, 8, 11, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)};
    /* pixels 0..3 lie in bytes 0..11, pixels 4..7 in bytes 12..23: the second load begins at 8 */
    __m128i low = _mm_loadu_si128((const __m128i *)from), high = _mm_loadu_si128((const __m128i *)(from + 8));
    high = _mm_srli_si128(high, 4);
    vf *into[3] = {r, g, b};
    for (int channel = 0; channel < 3; channel++) {
        __m128i four = _mm_shuffle_epi8(low, order[channel]), more = _mm_shuffle_epi8(high, order[channel]);
        *into[channel] = (vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpacklo_epi32(four, more)));
    }
#elif defined(__aarch64__)
    uint8_t twelve[24] = {0};
    memcpy(twelve, from, 3 * LANES);
    uint8x8x3_t planes = vld3_u8(twelve);
    vf *into[3] = {r, g, b};
    for (int channel = 0; channel < 3; channel++)
        *into[channel] = (vf)vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(planes.val[channel]))));
#else
    vf planes[3] = {{0}};
    for (int i = 0; i < 3 * LANES; i++) planes[i % 3][i / 3] = from[i];
    *r = planes[0], *g = planes[1], *b = planes[2];
#endif
}

/* whole numbers 0..255 only */
static inline void store_rgb(uint8_t *to, vi r, vi g, vi b) {
#if defined(DHLAB_AVX512)
    static const uint8_t order[64] __attribute__((aligned(64))) = {
        0, 16, 32, 1,  17, 33, 2,  18, 34, 3,  19, 35, 4,  20, 36, 5,  21, 37, 6,  22, 38, 7,  23, 39,
        8, 24, 40, 9, 25, 41, 10, 26, 42, 11, 27, 43, 12, 28, 44, 13, 29, 45, 14, 30, 46, 15, 31, 47};
    __m512i pixels = _mm512_castsi128_si512(_mm512_cvtepi32_epi8((__m512i)r));
    pixels = _mm512_inserti32x4(pixels, _mm512_cvtepi32_epi8((__m512i)g), 1);
    pixels = _mm512_inserti32x4(pixels, _mm512_cvtepi32_epi8((__m512i)b), 2);
    _mm512_mask_storeu_epi8(to, 0xffffffffffff, _mm512_permutexvar_epi8(_mm512_load_si512(order), pixels));
#else
    for (int lane = 0; lane < LANES; lane++) {
        to[3 * lane] = (uint8_t)r[lane];
        to[3 * lane + 1] = (uint8_t)g[lane];
        to[3 * lane + 2] = (uint8_t)b[lane];
    }
#endif
}

/* LANES bytes to floats and back (whole numbers 0..255 only) */
static inline vf load_bytes(const uint8_t *from) {
#if defined(DHLAB_AVX512)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from)));
#elif defined(DHLAB_AVX2)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#else
    vf value;
    for (int lane = 0; lane < LANES; lane++) value[lane] = from[lane];
    return value;
#endif
}
static inline vi load_bytes_int(const uint8_t *from) {
#if defined(DHLAB_AVX512)
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
#elif defined(DHLAB_AVX2)
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
#else
    vi value;
    for (int lane = 0; lane < LANES; lane++) value[lane] = from[lane];
    return value;
#endif
}
static inline void store_bytes(uint8_t *to, vi value) {
#if defined(DHLAB_AVX512)
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)value));
#else
    for (int lane = 0; lane < LANES; lane++) to[lane] = (uint8_t)value[lane];
#endif
}

/* half precision, rounded to even; in bfloat16 only NaN as arithmetic makes it, 0x7fc00000, is sure to stay NaN */
static inline void store_bf16(uint16_t *to, vf value) {
    vu raw = (vu)value;
    raw = (raw + 0x7fff + ((raw >> 16) & 1)) >> 16;
#if defined(DHLAB_AVX512)
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16((__m512i)raw));
#else
    for (int lane = 0; lane < LANES; lane++) to[lane] = (uint16_t)raw[lane];
#endif
}
static inline vf load_bf16(const uint16_t *from) {
#if defined(DHLAB_AVX512)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
#elif defined(DHLAB_AVX2)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16);
#else
    vi raw;
    for (int lane = 0; lane < LANES; lane++) raw[lane] = (int32_t)((uint32_t)from[lane] << 16);
    return floats(raw);
#endif
}
static inline void store_fp16(uint16_t *to, vf value) {
#if defined(DHLAB_AVX512)
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(DHLAB_AVX2)
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int lane = 0; lane < LANES; lane++) {
        _Float16 half = (_Float16)value[lane];
        memcpy(to + lane, &half, 2);
    }
#endif
}
static inline vf load_fp16(const uint16_t *from) {
#if defined(DHLAB_AVX512)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(DHLAB_AVX2)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else
    vf value;
    for (int lane = 0; lane < LANES; lane++) {
        _Float16 half;
        memcpy(&half, from + lane, 2);
        value[lane] = (float)half;
    }
    return value;
#endif
}

#endif
