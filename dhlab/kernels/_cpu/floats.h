/* Vectors of floats to and from memory of a type that is known at run time; floats.py has the same numbers. */
#ifndef DHLAB_FLOATS_H
#define DHLAB_FLOATS_H

#include "simd.h"

enum { FLOAT32, BFLOAT16, FLOAT16 };

static inline long size_of(int type) { return type == FLOAT32 ? 4 : 2; }

/* `at` counts elements */
static inline __attribute__((always_inline)) vf load_typed(const void *from, long at, int type) {
    if (type == FLOAT32) return load((const float *)from + at);
    return type == BFLOAT16 ? load_bf16((const uint16_t *)from + at) : load_fp16((const uint16_t *)from + at);
}

static inline __attribute__((always_inline)) void store_typed(void *to, long at, vf value, int type) {
    if (type == FLOAT32) store((float *)to + at, value);
    else if (type == BFLOAT16) store_bf16((uint16_t *)to + at, value);
    else store_fp16((uint16_t *)to + at, value);
}

/* the first n lanes, or all of them; nothing beyond is touched */
static inline __attribute__((always_inline)) void store_some(void *to, long at, vf value, int type, long n) {
    if (n >= LANES) {
        store_typed(to, at, value, type);
        return;
    }
    char whole[4 * LANES];
    store_typed(whole, 0, value, type);
    memcpy((char *)to + at * size_of(type), whole, (size_t)(n * size_of(type)));
}
#endif
