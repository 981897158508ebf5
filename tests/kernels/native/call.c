/* Calls one function of a library for a program that cannot load it, being of another processor:
 * call LIBRARY FUNCTION < request > answer, as test_neon.py packs them. ARM's 64-bit ABI only: whole numbers and real
 * ones have registers of their own, so their order does not matter, and further numbers take eight bytes each. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define MOST 24
#define KINDS                                                                                                          \
    (double, double, double, double, double, double, double, double, long, long, long, long, long, long, long, long,   \
     long, long, long, long, long, long, long, long, long, long, long, long, long, long, long, long)
typedef long whole_function KINDS;
typedef double real_function KINDS;

static void take(void *to, size_t n) {
    if (fread(to, 1, n, stdin) != n) exit(3);
}
static long number(void) {
    long value;
    take(&value, sizeof value);
    return value;
}

int main(int count, char **names) {
    void *library = count == 3 ? dlopen(names[1], RTLD_NOW) : 0, *function = library ? dlsym(library, names[2]) : 0;
    if (!function) return fprintf(stderr, "%s\n", dlerror()), 2;
    long buffers = number(), size[MOST];
    char *memory[MOST];
    for (long i = 0; i < buffers; i++) {
        size[i] = number();
        memory[i] = aligned_alloc(64, ((size_t)size[i] + 127) / 64 * 64);
        take(memory[i], (size_t)size[i]);
    }
    long result_is_real = number(), wholes = number(), w[MOST] = {0};
    for (long i = 0; i < wholes; i++) { /* a buffer or -1, and where in it or the number itself */
        long buffer = number(), value = number();
        w[i] = buffer < 0 ? value : (long)(memory[buffer] + value);
    }
    double r[8];
    take(r, sizeof r);
    union {
        long whole;
        double real;
    } result;
#define ARGUMENTS                                                                                                      \
    (r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9],       \
     w[10], w[11], w[12], w[13], w[14], w[15], w[16], w[17], w[18], w[19], w[20], w[21], w[22], w[23])
    if (result_is_real) result.real = ((real_function *)function) ARGUMENTS;
    else result.whole = ((whole_function *)function) ARGUMENTS;
    fwrite(&result, sizeof result, 1, stdout);
    for (long i = 0; i < buffers; i++) fwrite(memory[i], 1, (size_t)size[i], stdout);
    return 0;
}
