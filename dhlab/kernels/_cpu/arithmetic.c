/* The approximations of simd.h as functions, so that tests can hold them against float64. */
#include "simd.h"

#define EACH(name, function)                                                     \
    EXPORT void NAME(name)(const float *from, float *to, long n) {               \
        for (long i = 0; i + LANES <= n; i += LANES) store(to + i, function(load(from + i))); \
    }

EACH(logarithm, lg2)
EACH(power, ex2)
