/* Random words by counter for parameters that Python draws, see kernels/philox.py. */
#include "philox.h"

/* counter and words: four rows of n integers below 2^32; key: n */
EXPORT void NAME(philox_words)(const int64_t *counter, const int64_t *key, int64_t *words, long n) {
    for (long i = 0; i < n; i++) {
        uint32_t a = (uint32_t)counter[i], b = (uint32_t)counter[n + i], c = (uint32_t)counter[2 * n + i];
        uint32_t d = (uint32_t)counter[3 * n + i], low = (uint32_t)key[i], high = (uint32_t)((uint64_t)key[i] >> 32);
        for (int turn = 0; turn < ROUNDS; turn++, low += WEYL_LOW, high += WEYL_HIGH) {
            uint64_t first = (uint64_t)a * FIRST_FACTOR, second = (uint64_t)c * SECOND_FACTOR;
            a = (uint32_t)(second >> 32) ^ b ^ low, b = (uint32_t)second;
            c = (uint32_t)(first >> 32) ^ d ^ high, d = (uint32_t)first;
        }
        words[i] = a, words[n + i] = b, words[2 * n + i] = c, words[3 * n + i] = d;
    }
}
