/* Light to light through optical density, see kernels/density.py: the stage that augmentation and stain kernels share. */
#ifndef DHLAB_DENSITY_H
#define DHLAB_DENSITY_H

#include "simd.h"

#define STAIN_FLOATS 45 /* of one sample, as StainMap.pack lays them out */
enum { UNMIX = 0, MIX = 12, FLOOR = 24, BEFORE = 27, AFTER = 36 };

static inline void multiply(const float *matrix, vf v[3]) {
    vf r = v[0], g = v[1], b = v[2];
    for (int k = 0; k < 3; k++) v[k] = matrix[3 * k] * r + (matrix[3 * k + 1] * g + matrix[3 * k + 2] * b);
}

static inline void multiply_add(const float *matrix, vf v[3]) { /* (3, 4) */
    vf r = v[0], g = v[1], b = v[2];
    for (int k = 0; k < 3; k++)
        v[k] = matrix[4 * k] * r + (matrix[4 * k + 1] * g + (matrix[4 * k + 2] * b + matrix[4 * k + 3]));
}

static inline void through_density(const float *stain, int around, float offset, float least, vf v[3]) {
    if (around) multiply(stain + BEFORE, v);
    for (int k = 0; k < 3; k++) v[k] = lg2(max(v[k] + offset, splat(least)));
    multiply_add(stain + UNMIX, v);
    for (int k = 0; k < 3; k++) v[k] = max(v[k], splat(stain[FLOOR + k]));
    multiply_add(stain + MIX, v);
    for (int k = 0; k < 3; k++) v[k] = ex2(min(v[k], splat(127.0f)));
    if (around) multiply(stain + AFTER, v);
}
#endif
