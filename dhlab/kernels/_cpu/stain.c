/* Stains of an image, and an image with the stains of another: see kernels/stain.py.
 *
 * Nothing of the size of an image is ever stored: each pass reads the bytes again. A percentile is found without sorting: a
 * sample brackets it, one pass counts what lies below the bracket and keeps the few inside, one selection ends it; a bracket
 * that misses is moved and the pass repeated, so the result is exact and does not depend on threads. */
#include "density.h"
#include "parallel.h"
#include "simd.h"
#include <math.h>
#include <stdatomic.h>

#define BLOCK 1024  /* pixels met at once */
#define CHUNK 16384 /* pixels of one task */
#define MOMENTS 10  /* count, three sums, six sums of products */
#define FIT 9       /* floats of one fit: two stains, their largest amounts (or mean and spread), 1 if it was fitted */
#define LEAST_PIXELS 16
#define LEAST_SINE 0.01   /* stains closer to each other cannot be told apart */
#define LEAST_AMOUNT 0.01 /* below, in natural density, there is nothing to scale */
#define LEAST_SPREAD 1e-3
#define MOST_SWEEPS 30
enum { MACENKO, REINHARD, VAHADANE };
enum { COUNT, R, G, B, RR, RG, RB, GG, GB, BB };

static const double LN2 = 0.693147180559945309, LG10 = 0.301029995663981195; /* of 2 */
/* Reinhard et al. 2001: light to cone responses, and their logarithms to l, alpha, beta */
static const double CONES[9] = {0.3811, 0.5783, 0.0402, 0.1967, 0.7244, 0.0782, 0.0241, 0.1288, 0.8444};
static const double OPPONENT[9] = {0.57735026918962576,  0.57735026918962576,  0.57735026918962576,
                                   0.40824829046386302,  0.40824829046386302,  -0.81649658092772603,
                                   0.70710678118654752,  -0.70710678118654752, 0};
#define LEAST_LIGHT 0.00048828125f /* an eighth of a grey level */

struct image { /* strides in bytes */
    uint8_t *bytes;
    long height, width, sample, row, pixel, channel;
};

#define LAYOUT 6

static void read_layout(struct image *image, const void *bytes, const long layout[LAYOUT]) {
    *image = (struct image){.bytes = (uint8_t *)bytes, .height = layout[0], .width = layout[1], .sample = layout[2],
                            .row = layout[3], .pixel = layout[4], .channel = layout[5]};
}

struct block {
    const uint8_t *r, *g, *b;
    long n;
    int interleaved;
};

struct copy { /* of a block whose bytes do not lie as vectors want them */
    uint8_t r[BLOCK + LANES], g[BLOCK + LANES], b[BLOCK + LANES];
};

static uint8_t *locate(const struct image *image, long at) {
    long pixels = image->height * image->width, within = at % pixels;
    return image->bytes + at / pixels * image->sample + within / image->width * image->row +
           within % image->width * image->pixel;
}

/* how many pixels from `at` on lie in one row, and fit one block: whole vectors, or less than one */
static long run_length(const struct image *image, long at, long end) {
    long left = image->width - at % image->width, n = end - at < left ? end - at : left;
    if (n > BLOCK) n = BLOCK;
    return n >= LANES ? n - n % LANES : n;
}

static void take(const struct image *image, long at, long end, struct copy *copy, struct block *block) {
    const uint8_t *from = locate(image, at);
    long n = block->n = run_length(image, at, end), channel = image->channel, pixel = image->pixel;
    block->interleaved = pixel == 3 && channel == 1 && n >= LANES;
    if (block->interleaved || (pixel == 1 && n >= LANES)) {
        block->r = from, block->g = from + channel, block->b = from + 2 * channel;
        return;
    }
    for (long i = 0; i < n; i++) {
        copy->r[i] = from[i * pixel];
        copy->g[i] = from[i * pixel + channel];
        copy->b[i] = from[i * pixel + 2 * channel];
    }
    for (long i = n; i % LANES; i++) copy->r[i] = copy->g[i] = copy->b[i] = 255;
    block->r = copy->r, block->g = copy->g, block->b = copy->b;
}

static inline void levels(const struct block *block, long i, vf v[3]) {
    if (block->interleaved) load_rgb(block->r + 3 * i, &v[0], &v[1], &v[2]);
    else v[0] = load_bytes(block->r + i), v[1] = load_bytes(block->g + i), v[2] = load_bytes(block->b + i);
}

/* Densities are met as codes: -log2((level + 1) / 256) in steps of 2^-20, 0 to 2^23, whole numbers where a table gives
 * them. Two registers hold 128 bytes of a table, so with permutations of bytes it is far cheaper than a logarithm. */
#define CODE 0x1p-20f

struct codes {
#if defined(DHLAB_AVX512)
    __m512i bytes[3][4];
#else
    int unused;
#endif
};

static void fill_codes(struct codes *codes) {
#if defined(DHLAB_AVX512)
    uint8_t bytes[3][256];
    for (int level = 0; level < 256; level++) {
        long code = lrint((8 - log2(level + 1.0)) * 0x1p20);
        for (int k = 0; k < 3; k++) bytes[k][level] = (uint8_t)(code >> 8 * k);
    }
    memcpy(codes->bytes, bytes, sizeof(bytes));
#else
    codes->unused = 0;
#endif
}

static inline void load_codes(const struct codes *codes, const struct block *block, long i, vf v[3]) {
#if defined(DHLAB_AVX512)
    /* to four pixels' reds, greens and blues in each quarter, so that unpacking bytes to words leaves a channel each */
    static const uint8_t mixed[64] __attribute__((aligned(64))) = {
        0, 3,  6,  9,  1,  4,  7,  10, 2,  5,  8,  11, 0, 0, 0, 0, 12, 15, 18, 21, 13, 16, 19, 22, 14, 17, 20, 23, 0, 0, 0, 0,
        24, 27, 30, 33, 25, 28, 31, 34, 26, 29, 32, 35, 0, 0, 0, 0, 36, 39, 42, 45, 37, 40, 43, 46, 38, 41, 44, 47, 0, 0, 0, 0};
    static const uint8_t apart[64] __attribute__((aligned(64))) = {
        0, 1, 2,  3,  16, 17, 18, 19, 32, 33, 34, 35, 0, 0, 0, 0, 4,  5,  6,  7,  20, 21, 22, 23, 36, 37, 38, 39, 0, 0, 0, 0,
        8, 9, 10, 11, 24, 25, 26, 27, 40, 41, 42, 43, 0, 0, 0, 0, 12, 13, 14, 15, 28, 29, 30, 31, 44, 45, 46, 47, 0, 0, 0, 0};
    __m512i pixels, part[3], zero = _mm512_setzero_si512();
    if (block->interleaved) {
        pixels = _mm512_permutexvar_epi8(_mm512_load_si512(mixed), _mm512_maskz_loadu_epi8(0xffffffffffff, block->r + 3 * i));
    } else {
        pixels = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(block->r + i)));
        pixels = _mm512_inserti32x4(pixels, _mm_loadu_si128((const __m128i *)(block->g + i)), 1);
        pixels = _mm512_inserti32x4(pixels, _mm_loadu_si128((const __m128i *)(block->b + i)), 2);
        pixels = _mm512_permutexvar_epi8(_mm512_load_si512(apart), pixels);
    }
    __mmask64 upper = _mm512_movepi8_mask(pixels);
    for (int k = 0; k < 3; k++) {
        __m512i low = _mm512_permutex2var_epi8(codes->bytes[k][0], pixels, codes->bytes[k][1]);
        __m512i high = _mm512_permutex2var_epi8(codes->bytes[k][2], pixels, codes->bytes[k][3]);
        part[k] = _mm512_mask_blend_epi8(upper, low, high);
    }
    __m512i first = _mm512_unpacklo_epi8(part[0], part[1]), second = _mm512_unpacklo_epi8(part[2], zero);
    v[0] = (vf)_mm512_cvtepi32_ps(_mm512_unpacklo_epi16(first, second));
    v[1] = (vf)_mm512_cvtepi32_ps(_mm512_unpackhi_epi16(first, second));
    first = _mm512_unpackhi_epi8(part[0], part[1]), second = _mm512_unpackhi_epi8(part[2], zero);
    v[2] = (vf)_mm512_cvtepi32_ps(_mm512_unpacklo_epi16(first, second));
#else
    (void)codes;
    levels(block, i, v);
    for (int k = 0; k < 3; k++) v[k] = 0x1p23f - 0x1p20f * lg2(v[k] + 1.0f);
#endif
}

struct search { /* for the value of one rank among keys */
    float low, high;   /* keys that are kept */
    float least, most; /* where the value is known to lie */
    long rank, capacity, sampled, most_sampled;
    atomic_long below, inside;
    float *found, *sample, value;
};

struct fit {
    struct image image;
    long begin, pixels, chunks; /* of this group, in pixels of the whole batch */
    int method;
    struct dhlab_team *team;
    struct codes codes;
    float unstained;         /* code of the level without stain */
    float limit, least_code; /* tissue is at most this level in each channel, and at least this code */
    double alpha, sparsity;
    float axes[6], weights[6], stains[6]; /* what the passes project on */
    double *partial;         /* (chunks, 3 * MOMENTS) */
    struct search search[2];
    float code[256];         /* of a level */
    int keys;
};

static long end_of(const struct fit *fit, long chunk) {
    long end = (chunk + 1) * CHUNK;
    return fit->begin + (end < fit->pixels ? end : fit->pixels);
}

static inline vm is_tissue(const struct fit *fit, const vf v[3]) {
    return le(splat(fit->least_code), min(min(v[0], v[1]), v[2]));
}

static inline void add_moments(vf sums[MOMENTS], vm mask, const vf v[3]) {
    vf none = splat(0), r = pick(mask, v[0], none), g = pick(mask, v[1], none), b = pick(mask, v[2], none);
    sums[COUNT] += pick(mask, splat(1), none);
    sums[R] += r, sums[G] += g, sums[B] += b;
    sums[RR] += r * r, sums[RG] += r * g, sums[RB] += r * b;
    sums[GG] += g * g, sums[GB] += g * b, sums[BB] += b * b;
}

static void flush_moments(vf sums[MOMENTS], double total[MOMENTS]) {
    for (int k = 0; k < MOMENTS; k++) total[k] += sum(sums[k]), sums[k] = splat(0);
}

/* Moments of densities less 1, which keeps their squares small (or of the logarithms of cone responses) over tissue. */
static inline void sum_moments(struct fit *fit, long chunk, const int colours) {
    double *total = fit->partial + chunk * 3 * MOMENTS;
    struct copy copy;
    struct block block;
    vf sums[MOMENTS] = {{0}};
    float cones[9], shift = fit->unstained * CODE + 1;
    struct codes codes = fit->codes;
    for (int k = 0; k < 9; k++) cones[k] = (float)(CONES[k] / 255);
    for (int k = 0; k < MOMENTS; k++) total[k] = 0;
    for (long at = fit->begin + chunk * CHUNK, end = end_of(fit, chunk); at < end; at += block.n) {
        take(&fit->image, at, end, &copy, &block);
        for (long i = 0; i < block.n; i += LANES) {
            vf v[3];
            vm mask;
            if (colours) {
                levels(&block, i, v);
                mask = le(max(max(v[0], v[1]), v[2]), splat(fit->limit));
                multiply(cones, v);
                for (int k = 0; k < 3; k++) v[k] = lg2(max(v[k], splat(LEAST_LIGHT)));
            } else {
                load_codes(&codes, &block, i, v);
                mask = is_tissue(fit, v);
                for (int k = 0; k < 3; k++) v[k] = v[k] * CODE - shift;
            }
            if (block.n - i < LANES) mask = both(mask, first((int)(block.n - i)));
            add_moments(sums, mask, v);
        }
        flush_moments(sums, total);
    }
}

static void sum_densities(void *fit, long chunk) { sum_moments(fit, chunk, 0); }
static void sum_cones(void *fit, long chunk) { sum_moments(fit, chunk, 1); }

/* Moments of natural densities over tissue, apart for pixels with both stains, only the first and only the second. */
static void sum_regimes(void *context, long chunk) {
    struct fit *fit = context;
    double *total = fit->partial + chunk * 3 * MOMENTS;
    struct copy copy;
    struct block block;
    vf sums[MOMENTS] = {{0}};
    const float *w = fit->stains;
    float sparsity = (float)fit->sparsity, cosine = w[0] * w[3] + w[1] * w[4] + w[2] * w[5];
    float *r = (float[BLOCK]){0}, *g = (float[BLOCK]){0}, *b = (float[BLOCK]){0}, *regime = (float[BLOCK]){0};
    for (int k = 0; k < 3 * MOMENTS; k++) total[k] = 0;
    for (long at = fit->begin + chunk * CHUNK, end = end_of(fit, chunk); at < end; at += block.n) {
        take(&fit->image, at, end, &copy, &block);
        for (long i = 0; i < block.n; i += LANES) {
            vf v[3];
            load_codes(&fit->codes, &block, i, v);
            vm mask = is_tissue(fit, v);
            if (block.n - i < LANES) mask = both(mask, first((int)(block.n - i)));
            for (int k = 0; k < 3; k++) v[k] = (v[k] - fit->unstained) * (float)(LN2 * CODE);
            vf one = w[0] * v[0] + (w[1] * v[1] + w[2] * v[2]) - sparsity;
            vf two = w[3] * v[0] + (w[4] * v[1] + w[5] * v[2]) - sparsity, none = splat(0);
            vm lacks_first = lt(one, cosine * two), lacks_second = lt(two, cosine * one);
            vf which = splat(0);
            which = pick(lacks_second, pick(lt(none, one), splat(1), splat(3)), which);
            which = pick(lacks_first, pick(lt(none, two), splat(2), splat(3)), which);
            store(r + i, v[0]), store(g + i, v[1]), store(b + i, v[2]);
            store(regime + i, pick(mask, which, splat(3)));
        }
        for (int k = 0; k < 3; k++) {
            for (long i = 0; i < block.n; i += LANES) {
                vf v[3] = {load(r + i), load(g + i), load(b + i)}, which = load(regime + i);
                add_moments(sums, both(le(which, splat((float)k)), le(splat((float)k), which)), v);
            }
            flush_moments(sums, total + k * MOMENTS);
        }
    }
}

static void gather_moments(struct fit *fit, void (*sum)(void *, long), int regimes, double total[]) {
    dhlab_share(fit->team, fit->chunks, sum, fit);
    for (int k = 0; k < regimes * MOMENTS; k++) total[k] = 0;
    for (long chunk = 0; chunk < fit->chunks; chunk++)
        for (int k = 0; k < regimes * MOMENTS; k++) total[k] += fit->partial[chunk * 3 * MOMENTS + k];
}

static void covariance(const double m[MOMENTS], double c[3][3]) {
    double n = m[COUNT];
    static const int PRODUCT[3][3] = {{RR, RG, RB}, {RG, GG, GB}, {RB, GB, BB}};
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) c[i][j] = (m[PRODUCT[i][j]] - m[R + i] * m[R + j] / n) / n;
}

/* Jacobi's rotations: columns of v become eigenvectors, the diagonal of a their values */
static void diagonalize(double a[3][3], double v[3][3]) {
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) v[i][j] = i == j;
    for (int sweep = 0; sweep < 12; sweep++)
        for (int p = 0; p < 2; p++)
            for (int q = p + 1; q < 3; q++) {
                if (fabs(a[p][q]) < 1e-300) continue;
                double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
                double t = (theta >= 0 ? 1 : -1) / (fabs(theta) + sqrt(theta * theta + 1));
                double c = 1 / sqrt(t * t + 1), s = t * c;
                for (int k = 0; k < 3; k++) {
                    double x = a[k][p], y = a[k][q];
                    a[k][p] = c * x - s * y, a[k][q] = s * x + c * y;
                }
                for (int k = 0; k < 3; k++) {
                    double x = a[p][k], y = a[q][k];
                    a[p][k] = c * x - s * y, a[q][k] = s * x + c * y;
                }
                for (int k = 0; k < 3; k++) {
                    double x = v[k][p], y = v[k][q];
                    v[k][p] = c * x - s * y, v[k][q] = s * x + c * y;
                }
            }
}

/* What grows with an angle: -x / y where no y is negative, else -2 to 2 as atan2(y, x) goes from -pi to pi. */
enum { SLOPES, ANGLES, AMOUNTS };

static inline vf angle_key(vf x, vf y, const int keys) {
    if (keys == SLOPES) return x / y;
    vf part = x / max(max(x, -x) + max(y, -y), splat(1e-30f));
    return pick(lt(y, splat(0)), part - 1.0f, 1.0f - part);
}

/* What codes are multiplied with, and what is added, for two keys in log2 density. */
static void project_codes(const struct fit *fit, int keys, float a[8]) {
    const float *from = keys == AMOUNTS ? fit->weights : fit->axes;
    for (int j = 0; j < 2; j++) {
        float sign = keys == SLOPES && j == 0 ? -1 : 1, total = 0;
        for (int k = 0; k < 3; k++) total += a[4 * j + k] = sign * CODE * from[3 * j + k];
        a[4 * j + 3] = -fit->unstained * total;
    }
}

/* Counts keys below the brackets and keeps those inside. */
static inline void search_chunk(struct fit *fit, long chunk, const int keys) {
    struct copy copy;
    struct block block;
    float kept[2][BLOCK + LANES];
    struct codes codes = fit->codes;
    float a[8];
    vf low[2], high[2];
    project_codes(fit, keys, a);
    vi below[2] = {{0}};
    for (int j = 0; j < 2; j++) low[j] = splat(fit->search[j].low), high[j] = splat(fit->search[j].high);
    for (long at = fit->begin + chunk * CHUNK, end = end_of(fit, chunk); at < end; at += block.n) {
        long n[2] = {0};
        take(&fit->image, at, end, &copy, &block);
        for (long i = 0; i < block.n; i += LANES) {
            vf v[3], key[2];
            load_codes(&codes, &block, i, v);
            vm counts = first((int)(block.n - i < LANES ? block.n - i : LANES));
            if (keys != AMOUNTS) counts = both(counts, is_tissue(fit, v));
            for (int j = 0; j < 2; j++)
                key[j] = a[4 * j] * v[0] + (a[4 * j + 1] * v[1] + (a[4 * j + 2] * v[2] + a[4 * j + 3]));
            if (keys != AMOUNTS) key[0] = key[1] = angle_key(key[0], key[1], keys);
            for (int j = 0; j < 2; j++) {
                vm less = both(lt(key[j], low[j]), counts);
                below[j] += pick_int(less, splat_int(1), splat_int(0));
                n[j] += compress(kept[j] + n[j], unless(both(le(key[j], high[j]), counts), less), key[j]);
            }
        }
        for (int j = 0; j < 2; j++) {
            struct search *search = fit->search + j;
            if (!n[j]) continue;
            long begin = atomic_fetch_add_explicit(&search->inside, n[j], memory_order_relaxed);
            long room = search->capacity - begin;
            if (room > 0) memcpy(search->found + begin, kept[j], sizeof(float) * (size_t)(n[j] < room ? n[j] : room));
        }
    }
    for (int j = 0; j < 2; j++) {
        long less = 0;
        for (int lane = 0; lane < LANES; lane++) less += below[j][lane];
        atomic_fetch_add_explicit(&fit->search[j].below, less, memory_order_relaxed);
    }
}

static void search_slopes(void *fit, long chunk) { search_chunk(fit, chunk, SLOPES); }
static void search_angles(void *fit, long chunk) { search_chunk(fit, chunk, ANGLES); }
static void search_amounts(void *fit, long chunk) { search_chunk(fit, chunk, AMOUNTS); }

/* The value of rank k, from 0, among a; a is used up, and LANES more may be read. */
static float select_rank(float *a, long n, long k) {
    for (;;) {
        float one = a[0], two = a[n / 2], three = a[n - 1];
        float pivot = fmaxf(fminf(one, two), fminf(fmaxf(one, two), three));
        long less = 0, equal = 0;
        for (long i = 0; i < n; i += LANES) {
            vm there = first((int)(n - i < LANES ? n - i : LANES));
            vf value = load(a + i);
            less += count(both(there, lt(value, splat(pivot))));
            equal += count(both(there, both(le(value, splat(pivot)), le(splat(pivot), value))));
        }
        if (k >= less && k < less + equal) return pivot;
        int lower = k < less;
        long kept = 0;
        for (long i = 0; i < n; i += LANES) {
            vm there = first((int)(n - i < LANES ? n - i : LANES));
            vf value = load(a + i);
            kept += compress(a + kept, both(there, lower ? lt(value, splat(pivot)) : lt(splat(pivot), value)), value);
        }
        n = kept, k -= lower ? 0 : less + equal;
    }
}

/* Brackets the value of a rank, `share` of all, by values three standard deviations away in a sample of n. */
static void bracket(struct search *search, long n, double share) {
    double at = share * (double)n, wide = 3 * sqrt(at * (1 - share) + 1);
    long low = (long)(at - wide), high = (long)(at + wide) + 1;
    search->low = search->least, search->high = search->most;
    if (at >= wide && n) {
        memcpy(search->found, search->sample, sizeof(float) * (size_t)n);
        search->low = fmaxf(search->least, select_rank(search->found, n, low));
    }
    if (high < n) {
        memcpy(search->found, search->sample, sizeof(float) * (size_t)n);
        search->high = fminf(search->most, select_rank(search->found, n, high));
    }
}

static void open_search(struct search *search, long rank, long of) {
    search->rank = rank;
    search->least = -INFINITY, search->most = INFINITY;
    bracket(search, search->sampled, of > 1 ? (double)rank / (double)(of - 1) : 0);
}

/* Ends a search, or moves its bracket; returns whether it has ended. */
static int close_search(struct search *search) {
    long inside = search->inside, rank = search->rank - search->below;
    if (rank >= 0 && rank < inside) {
        search->least = search->low, search->most = search->high;
        if (search->low == search->high || inside <= search->capacity) {
            search->value = search->low == search->high ? search->low : select_rank(search->found, inside, rank);
            search->low = search->high = search->value;
            return 1;
        }
        memcpy(search->sample, search->found, sizeof(float) * (size_t)search->most_sampled);
        bracket(search, search->most_sampled, (double)rank / (double)inside);
        return 0;
    }
    if (rank < 0) search->most = nextafterf(search->low, -INFINITY);
    else search->least = nextafterf(search->high, INFINITY);
    search->low = search->least, search->high = search->most;
    return 0;
}

struct opening {
    struct fit *fit;
    long rank[2], of;
};

static void open_one(void *context, long j) {
    struct opening *opening = context;
    open_search(&opening->fit->search[j], opening->rank[j], opening->of);
}

static void close_one(void *context, long j) {
    struct fit *fit = context;
    fit->search[j].sampled = close_search(&fit->search[j]);
}

/* A sample of keys, of about one pixel in 256, in both searches. */
static void sample_keys(struct fit *fit, long most) {
    long step = (fit->pixels / most) | 1, n = 0, channel = fit->image.channel;
    int tissue = fit->keys != AMOUNTS;
    float a[8];
    project_codes(fit, fit->keys, a);
    for (long at = step / 2; at < fit->pixels && n < most; at += step) {
        const uint8_t *pixel = locate(&fit->image, fit->begin + at);
        float r = fit->code[pixel[0]], g = fit->code[pixel[channel]], b = fit->code[pixel[2 * channel]], key[2];
        if (tissue && (r < fit->least_code || g < fit->least_code || b < fit->least_code)) continue;
        for (int j = 0; j < 2; j++) key[j] = a[4 * j] * r + a[4 * j + 1] * g + a[4 * j + 2] * b + a[4 * j + 3];
        if (tissue) key[0] = key[1] = angle_key(splat(key[0]), splat(key[1]), fit->keys)[0];
        fit->search[0].sample[n] = key[0], fit->search[1].sample[n++] = key[1];
    }
    fit->search[0].sampled = fit->search[1].sampled = n;
}

static void find_ranks(struct fit *fit, long sample, const long rank[2], long of) {
    static void (*const SEARCH[])(void *, long) = {search_slopes, search_angles, search_amounts};
    struct opening opening = {.fit = fit, .rank = {rank[0], rank[1]}, .of = of};
    sample_keys(fit, sample);
    dhlab_share(fit->team, 2, open_one, &opening);
    do {
        for (int j = 0; j < 2; j++) fit->search[j].below = fit->search[j].inside = 0;
        dhlab_share(fit->team, fit->chunks, SEARCH[fit->keys], fit);
        dhlab_share(fit->team, 2, close_one, fit);
    } while (!fit->search[0].sampled || !fit->search[1].sampled);
}

/* Two stains (3 floats each, of unit length) to weights that turn densities into their amounts; the sine between them. */
static double pseudo_inverse(const double h[3], const double e[3], double weights[6]) {
    double hh = 0, he = 0, ee = 0;
    for (int k = 0; k < 3; k++) hh += h[k] * h[k], he += h[k] * e[k], ee += e[k] * e[k];
    double determinant = hh * ee - he * he;
    for (int k = 0; k < 3; k++) {
        weights[k] = (ee * h[k] - he * e[k]) / determinant;
        weights[3 + k] = (hh * e[k] - he * h[k]) / determinant;
    }
    return determinant > 0 ? sqrt(determinant / (hh * ee)) : 0;
}

static int fit_directions(struct fit *fit, long sample, double stains[2][3]) {
    double m[MOMENTS], c[3][3], v[3][3], direction[2][3], towards = 0;
    gather_moments(fit, sum_densities, 1, m);
    if (m[COUNT] < LEAST_PIXELS) return 0;
    covariance(m, c);
    diagonalize(c, v);
    int order[3] = {0, 1, 2};
    for (int i = 0; i < 2; i++)
        for (int j = i + 1; j < 3; j++)
            if (c[order[j]][order[j]] < c[order[i]][order[i]]) {
                int other = order[i];
                order[i] = order[j], order[j] = other;
            }
    for (int k = 0; k < 3; k++) towards += v[k][order[2]] * (m[R + k] / m[COUNT] + 1);
    for (int k = 0; k < 3; k++) {
        fit->axes[k] = (float)v[k][order[1]];
        fit->axes[3 + k] = (float)(towards < 0 ? -v[k][order[2]] : v[k][order[2]]);
    }
    long n = (long)m[COUNT];
    long rank[2] = {lrint(0.01 * fit->alpha * (double)(n - 1)), lrint(0.01 * (100 - fit->alpha) * (double)(n - 1))};
    fit->keys = fminf(fminf(fit->axes[3], fit->axes[4]), fit->axes[5]) > 0 && fit->least_code > fit->unstained ? SLOPES
                                                                                                             : ANGLES;
    find_ranks(fit, sample, rank, n);
    for (int j = 0; j < 2; j++) {
        double key = fit->search[j].value, x = key < 0 ? 1 + key : 1 - key, y = (1 - fabs(x)) * (key < 0 ? -1 : 1);
        if (fit->keys == SLOPES) x = -key, y = 1;
        double length = sqrt(x * x + y * y);
        for (int k = 0; k < 3; k++) direction[j][k] = (x * fit->axes[k] + y * fit->axes[3 + k]) / length;
    }
    int first = direction[0][0] > direction[1][0] ? 0 : 1;
    memcpy(stains[0], direction[first], sizeof(stains[0]));
    memcpy(stains[1], direction[1 - first], sizeof(stains[1]));
    return 1;
}

/* amounts = matrix · (1, density): least squares with sparsity where both stains are there, else one stain alone */
static void update_dictionary(double w[2][3], const double regimes[3 * MOMENTS], double sparsity) {
    static const int AT[4][4] = {{COUNT, R, G, B}, {R, RR, RG, RB}, {G, RG, GG, GB}, {B, RB, GB, BB}};
    double cosine = 0, products[2][2] = {{0}}, cross[2][3] = {{0}};
    for (int k = 0; k < 3; k++) cosine += w[0][k] * w[1][k];
    double scale = 1 / fmax(1 - cosine * cosine, 1e-12);
    for (int regime = 0; regime < 3; regime++) {
        double amounts[2][4] = {{0}}, moments[2][4] = {{0}};
        for (int j = 0; j < 2; j++)
            for (int k = 0; k < 4; k++) {
                double own = k ? w[j][k - 1] : -sparsity, other = k ? w[1 - j][k - 1] : -sparsity;
                if (regime == 0) amounts[j][k] = scale * (own - cosine * other);
                else if (regime == 1 + j) amounts[j][k] = own;
            }
        for (int j = 0; j < 2; j++)
            for (int k = 0; k < 4; k++)
                for (int l = 0; l < 4; l++) moments[j][k] += amounts[j][l] * regimes[regime * MOMENTS + AT[l][k]];
        for (int j = 0; j < 2; j++) {
            for (int k = 0; k < 3; k++) cross[j][k] += moments[j][k + 1];
            for (int i = 0; i < 2; i++)
                for (int k = 0; k < 4; k++) products[i][j] += amounts[i][k] * moments[j][k];
        }
    }
    for (int j = 0; j < 2; j++) {
        double length = 0, updated[3];
        for (int k = 0; k < 3; k++) {
            updated[k] = fmax((cross[j][k] - products[0][1] * w[1 - j][k]) / fmax(products[j][j], 1e-30), 0);
            length += updated[k] * updated[k];
        }
        if (length < 1e-20) continue;
        for (int k = 0; k < 3; k++) w[j][k] = updated[k] / sqrt(length);
    }
}

/* Each pass finds which pixels hold which stains; the dictionary then moves, at first a little, with that held. */
static int fit_dictionary(struct fit *fit, const float *start, double stains[2][3]) {
    double w[2][3], regimes[3 * MOMENTS];
    for (int k = 0; k < 6; k++) w[k / 3][k % 3] = start[k];
    for (int sweep = 0; sweep < MOST_SWEEPS; sweep++) {
        double moved = 0, before[2][3];
        for (int k = 0; k < 6; k++) fit->stains[k] = (float)w[k / 3][k % 3];
        gather_moments(fit, sum_regimes, 3, regimes);
        if (regimes[COUNT] + regimes[MOMENTS + COUNT] + regimes[2 * MOMENTS + COUNT] < LEAST_PIXELS) return 0;
        memcpy(before, w, sizeof(w));
        for (int step = 0, steps = sweep < 4 ? 1 << sweep : 16; step < steps; step++)
            update_dictionary(w, regimes, fit->sparsity);
        for (int k = 0; k < 6; k++) moved = fmax(moved, fabs(w[k / 3][k % 3] - before[k / 3][k % 3]));
        if (moved < 1e-5) break;
    }
    int first = w[0][0] > w[1][0] ? 0 : 1;
    memcpy(stains[0], w[first], sizeof(stains[0]));
    memcpy(stains[1], w[1 - first], sizeof(stains[1]));
    return 1;
}

static void fit_stains(struct fit *fit, long sample, const float *fallback, float *result) {
    double stains[2][3], weights[6];
    memcpy(result, fallback, sizeof(float) * (FIT - 1));
    result[FIT - 1] = 0;
    if (!(fit->method == MACENKO ? fit_directions(fit, sample, stains) : fit_dictionary(fit, fallback, stains))) return;
    if (!(pseudo_inverse(stains[0], stains[1], weights) > LEAST_SINE)) return;
    for (int k = 0; k < 6; k++) fit->weights[k] = (float)weights[k];
    long rank = lrint(0.01 * 99 * (double)(fit->pixels - 1)), ranks[2] = {rank, rank};
    fit->keys = AMOUNTS;
    find_ranks(fit, sample, ranks, fit->pixels);
    double most[2] = {fit->search[0].value * LN2, fit->search[1].value * LN2};
    if (!(most[0] > LEAST_AMOUNT && most[1] > LEAST_AMOUNT)) return;
    for (int k = 0; k < 6; k++) result[k] = (float)stains[k / 3][k % 3];
    result[6] = (float)most[0], result[7] = (float)most[1], result[8] = 1;
}

static void fit_colours(struct fit *fit, float *result) {
    double m[MOMENTS], c[3][3], mean[3], spread[3];
    int enough = 1;
    gather_moments(fit, sum_cones, 1, m);
    memset(result, 0, sizeof(float) * FIT);
    for (int k = 0; k < 3; k++) result[3 + k] = 1;
    if (m[COUNT] < LEAST_PIXELS) return;
    covariance(m, c);
    for (int k = 0; k < 3; k++) {
        double variance = 0;
        mean[k] = 0;
        for (int i = 0; i < 3; i++) {
            mean[k] += OPPONENT[3 * k + i] * m[R + i] / m[COUNT];
            for (int j = 0; j < 3; j++) variance += OPPONENT[3 * k + i] * c[i][j] * OPPONENT[3 * k + j];
        }
        spread[k] = sqrt(fmax(variance, 0)) * LG10;
        enough = enough && spread[k] > LEAST_SPREAD;
    }
    if (!enough) return;
    for (int k = 0; k < 3; k++) result[k] = (float)(mean[k] * LG10), result[3 + k] = (float)spread[k];
    result[8] = 1;
}

/* How a fitted image becomes one of the reference's colours, as StainMap.pack lays it out. */
static void make_map(const float *source, const float *reference, int method, double white, double reference_white,
                     float map[STAIN_FLOATS]) {
    memset(map, 0, sizeof(float) * STAIN_FLOATS);
    for (int k = 0; k < 3; k++) map[FLOOR + k] = method == VAHADANE ? 0 : -INFINITY;
    for (int k = 0; k < 3; k++) map[BEFORE + 4 * k] = map[AFTER + 4 * k] = 1;
    if (method == REINHARD) {
        double determinant = 0;
        for (int i = 0; i < 3; i++) {
            int a = (i + 1) % 3, b = (i + 2) % 3;
            determinant += CONES[i] * (CONES[3 + a] * CONES[6 + b] - CONES[3 + b] * CONES[6 + a]);
        }
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 3; j++) {
                int a = (j + 1) % 3, b = (j + 2) % 3, c = (i + 1) % 3, d = (i + 2) % 3;
                double minor = CONES[3 * a + c] * CONES[3 * b + d] - CONES[3 * a + d] * CONES[3 * b + c];
                map[BEFORE + 3 * i + j] = (float)CONES[3 * i + j];
                map[AFTER + 3 * i + j] = (float)(minor / determinant);
                map[UNMIX + 4 * i + j] = (float)(OPPONENT[3 * i + j] * LG10);
                double ratio = (double)reference[3 + j] / source[3 + j]; /* the opponent matrix is orthogonal */
                map[MIX + 4 * i + j] = (float)(OPPONENT[3 * j + i] * ratio / LG10);
                map[MIX + 4 * i + 3] += (float)(OPPONENT[3 * j + i] * (reference[j] - ratio * source[j]) / LG10);
            }
        return;
    }
    double stains[2][3], weights[6];
    for (int k = 0; k < 6; k++) stains[k / 3][k % 3] = source[k];
    pseudo_inverse(stains[0], stains[1], weights);
    for (int k = 0; k < 2; k++)
        for (int c = 0; c < 3; c++) {
            map[UNMIX + 4 * k + c] = (float)(-LN2 * weights[3 * k + c]);
            map[UNMIX + 4 * k + 3] += (float)(log(white / 255) * weights[3 * k + c]);
            map[MIX + 4 * c + k] = (float)(-reference[3 * k + c] * (double)reference[6 + k] / source[6 + k] / LN2);
        }
    for (int c = 0; c < 3; c++) map[MIX + 4 * c + 3] = (float)log2(reference_white / 255);
}

struct change { /* of one sample */
    struct image from, to;
    const float *map;
    struct codes codes;
    float folded[12], offset, least, shift;
    long begin, pixels;
    int around, folds, keeps;
};

/* Without floors the two matrices are one, here from codes to log2 of grey levels; that is where fits of this file lead. */
static void fold(struct change *change) {
    const float *unmix = change->map + UNMIX, *mix = change->map + MIX, *lowest = change->map + FLOOR;
    change->folds = !change->around && change->offset == 1.0f / 255 && change->shift == 0;
    for (int k = 0; k < 3; k++) change->folds = change->folds && lowest[k] == -INFINITY;
    if (!change->folds) return;
    fill_codes(&change->codes);
    for (int c = 0; c < 3; c++) {
        double row[4] = {0, 0, 0, mix[4 * c + 3] + log2(255)};
        for (int k = 0; k < 4; k++)
            for (int j = 0; j < 3; j++) row[k] += (double)mix[4 * c + j] * unmix[4 * j + k];
        for (int k = 0; k < 3; k++) {
            row[3] += row[k] * log2(256.0 / 255);
            change->folded[4 * c + k] = (float)(-CODE * row[k]);
        }
        change->folded[4 * c + 3] = (float)row[3];
    }
}

/* `out` is where the block's first pixel goes; its pixels lie in one row of either image */
static inline void put(const struct image *to, uint8_t *out, long i, long n, const vi v[3]) {
    out += i * to->pixel;
    if (n >= LANES && to->pixel == 3 && to->channel == 1) {
        store_rgb(out, v[0], v[1], v[2]);
    } else if (n >= LANES && to->pixel == 1) {
        for (int k = 0; k < 3; k++) store_bytes(out + k * to->channel, v[k]);
    } else {
        for (long j = 0; j < n && j < LANES; j++)
            for (int k = 0; k < 3; k++) out[j * to->pixel + k * to->channel] = (uint8_t)v[k][j];
    }
}

static void change_block(const struct change *change, long at, const struct block *block) {
    uint8_t *out = locate(&change->to, at);
    for (long i = 0; i < block->n; i += LANES) {
        vf v[3];
        vi whole[3];
        levels(block, i, v);
        for (int k = 0; k < 3; k++) v[k] *= 1.0f / 255;
        through_density(change->map, change->around, change->offset, change->least, v);
        for (int k = 0; k < 3; k++) whole[k] = to_int(clamp(v[k] * 255.0f + change->shift, 0, 255));
        put(&change->to, out, i, block->n - i, whole);
    }
}

static void change_folded(const struct change *change, long at, const struct block *block) {
    const struct image to = change->to;
    const struct block from = *block;
    const struct codes codes = change->codes;
    uint8_t *out = locate(&to, at);
    float m[12];
    memcpy(m, change->folded, sizeof(m));
    for (long i = 0; i < from.n; i += LANES) {
        vf v[3];
        vi whole[3];
        load_codes(&codes, &from, i, v);
        multiply_add(m, v);
        for (int k = 0; k < 3; k++) whole[k] = to_int(ex2(min(v[k], splat(7.99999f)))); /* below 256 */
        put(&to, out, i, from.n - i, whole);
    }
}

static void change_chunk(void *context, long chunk) {
    const struct change *change = context;
    struct copy copy;
    struct block block;
    long end = (chunk + 1) * CHUNK < change->pixels ? (chunk + 1) * CHUNK : change->pixels;
    for (long at = change->begin + chunk * CHUNK; at < change->begin + end; at += block.n) {
        take(&change->from, at, change->begin + end, &copy, &block);
        if (change->keeps) {
            uint8_t *out = locate(&change->to, at);
            for (long i = 0; i < block.n; i += LANES) {
                vf v[3];
                levels(&block, i, v);
                put(&change->to, out, i, block.n - i, (vi[3]){to_int(v[0]), to_int(v[1]), to_int(v[2])});
            }
        } else if (change->folds) {
            change_folded(change, at, &block);
        } else {
            change_block(change, at, &block);
        }
    }
}

static void apply(struct change *change, long sample, struct dhlab_team *team) {
    change->pixels = change->from.height * change->from.width;
    change->begin = sample * change->pixels;
    fold(change);
    dhlab_share(team, (change->pixels + CHUNK - 1) / CHUNK, change_chunk, change);
}

struct batch {
    struct image image, from, to; /* for the fit, and for the change, whose two images share rows */
    long groups, group; /* samples of a group */
    int method, normalizes;
    double white, beta, alpha, sparsity, reference_white;
    const float *reference, *fallback;
    float *fits, *work;
    long work_floats, sample, capacity;
    atomic_long next;
};

static void fit_group(struct batch *batch, long i, float *work, struct dhlab_team *team) {
    struct fit fit = {.image = batch->image, .method = batch->method, .team = team, .alpha = batch->alpha,
                      .sparsity = batch->sparsity, .unstained = (float)((8 - log2(batch->white)) / CODE),
                      .limit = (float)floor(batch->white * exp(-batch->beta) - 1)};
    float *result = batch->fits + i * FIT;
    fit.pixels = batch->group * fit.image.height * fit.image.width;
    fit.begin = i * fit.pixels;
    fit.chunks = (fit.pixels + CHUNK - 1) / CHUNK;
    fit.partial = (double *)work;
    work += 2 * 3 * MOMENTS * fit.chunks;
    for (int j = 0; j < 2; j++) {
        fit.search[j].capacity = batch->capacity;
        fit.search[j].most_sampled = batch->sample;
        fit.search[j].found = work, work += batch->capacity + LANES;
        fit.search[j].sample = work, work += batch->sample;
    }
    fill_codes(&fit.codes);
    for (int level = 0; level < 256; level += LANES) {
        uint8_t ramp[LANES];
        vf v[3];
        for (int lane = 0; lane < LANES; lane++) ramp[lane] = (uint8_t)(level + lane);
        load_codes(&fit.codes, &(struct block){.r = ramp, .g = ramp, .b = ramp, .n = LANES}, 0, v);
        store(fit.code + level, v[0]);
    }
    fit.least_code = fit.limit >= 255 ? -INFINITY : fit.limit < 0 ? INFINITY : fit.code[(int)fit.limit];
    if (batch->method == REINHARD) fit_colours(&fit, result);
    else fit_stains(&fit, batch->sample, batch->fallback, result);
    if (!batch->normalizes) return;
    float map[STAIN_FLOATS];
    int around = batch->method == REINHARD;
    struct change change = {.from = batch->from, .to = batch->to, .map = map, .around = around,
                            .offset = around ? 0 : 1.0f / 255, .least = around ? LEAST_LIGHT : 1e-6f,
                            .shift = around ? 0.5f : 0, .keeps = result[FIT - 1] == 0};
    make_map(result, batch->reference + i * FIT, batch->method, batch->white, batch->reference_white, map);
    for (long j = 0; j < batch->group; j++) apply(&change, i * batch->group + j, team);
}

static void fit_groups(void *context, long worker) {
    struct batch *batch = context;
    for (long i; (i = atomic_fetch_add_explicit(&batch->next, 1, memory_order_relaxed)) < batch->groups;)
        fit_group(batch, i, batch->work + worker * batch->work_floats, 0);
}

static void lead_groups(void *context, struct dhlab_team *team) {
    struct batch *batch = context;
    for (long i = 0; i < batch->groups; i++) fit_group(batch, i, batch->work, team);
}

/* Floats of work that one worker needs for a group of so many pixels. */
static long work_floats(long pixels, long sample, long capacity) {
    return 2 * 3 * MOMENTS * ((pixels + CHUNK - 1) / CHUNK) + 2 * (sample + capacity + LANES);
}

/* A layout is height, width and strides of sample, row, pixel and channel; `layouts` holds that of the fit, and with `to`
 * those of the change, from and to. With `to`, images take the colours of the reference's fit; without, fits are written. `work` holds `workers` pieces of work_floats; workers share groups, and
 * `inner` threads share the pixels of a group. */
EXPORT void NAME(fit_stain)(const uint8_t *from, uint8_t *to, const long *layouts, long groups, long group, int method,
                            const double *parameters, const float *reference, const float *fallback, float *fits,
                            float *work, long sample, long capacity, int workers, int inner) {
    struct batch batch = {.groups = groups, .group = group, .method = method, .normalizes = to != 0,
                          .white = parameters[0], .beta = parameters[1], .alpha = parameters[2],
                          .sparsity = parameters[3], .reference_white = parameters[4], .reference = reference, .fallback = fallback, .fits = fits,
                          .work = work, .sample = sample, .capacity = capacity};
    read_layout(&batch.image, from, layouts);
    if (to) read_layout(&batch.from, from, layouts + LAYOUT), read_layout(&batch.to, to, layouts + 2 * LAYOUT);
    batch.work_floats = work_floats(group * batch.image.height * batch.image.width, sample, capacity);
    if (inner > 1) dhlab_lead(inner, lead_groups, &batch);
    else dhlab_parallel(workers, workers, fit_groups, &batch);
}

struct changes {
    struct change change;
    long samples;
    const float *maps;
    const uint8_t *fitted;
};

static void apply_one(struct changes *changes, long i, struct dhlab_team *team) {
    struct change change = changes->change;
    change.map = changes->maps + i * STAIN_FLOATS;
    change.keeps = !changes->fitted[i];
    apply(&change, i, team);
}

static void apply_alone(void *changes, long i) { apply_one(changes, i, 0); }

static void lead_changes(void *context, struct dhlab_team *team) {
    struct changes *changes = context;
    for (long i = 0; i < changes->samples; i++) apply_one(changes, i, team);
}

/* Bytes through a StainMap of each sample; those that were not fitted are copied. */
EXPORT void NAME(map_stain)(const uint8_t *from, uint8_t *to, const long *layouts, long samples, const float *maps,
                            const uint8_t *fitted, int around, float offset, float least, float shift, int workers,
                            int inner) {
    struct changes changes = {.samples = samples, .maps = maps, .fitted = fitted,
                              .change = {.around = around, .offset = offset, .least = least, .shift = shift}};
    read_layout(&changes.change.from, from, layouts);
    read_layout(&changes.change.to, to, layouts + LAYOUT);
    if (inner > 1) dhlab_lead(inner, lead_changes, &changes);
    else dhlab_parallel(samples, workers, apply_alone, &changes);
}

struct conversion {
    struct image from; /* strides in bytes */
    float *to;
    const float *matrices; /* (samples, 15): affine (3, 4), floors */
    long pixels, chunks, to_sample, to_channel;
    int is_float, inputs, outputs, separates;
    float offset, least;
};

/* Floats of one block; apart from vectors of a dense channel they are copied. */
static void take_floats(const struct conversion *task, long at, long end, float (*copy)[BLOCK + LANES], const float *rows[3],
                        long *n) {
    const char *from = (const char *)locate(&task->from, at);
    *n = run_length(&task->from, at, end);
    for (int k = 0; k < 3; k++) {
        const char *channel = from + (k < task->inputs ? k : 0) * task->from.channel;
        rows[k] = (const float *)channel;
        if (task->from.pixel == sizeof(float) && *n >= LANES) continue;
        for (long i = 0; i < *n; i++) memcpy(copy[k] + i, channel + i * task->from.pixel, sizeof(float));
        for (long i = *n; i % LANES; i++) copy[k][i] = 0;
        rows[k] = copy[k];
    }
}

static void convert_chunk(void *context, long i) {
    const struct conversion *task = context;
    long sample = i / task->chunks, begin = i % task->chunks * CHUNK, n;
    long end = begin + CHUNK < task->pixels ? begin + CHUNK : task->pixels;
    const float *matrix = task->matrices + 15 * sample, *rows[3];
    float *to = task->to + sample * task->to_sample, floats[3][BLOCK + LANES];
    struct copy copy;
    struct block block;
    for (long at = begin; at < end; at += n) {
        long from = sample * task->pixels + at;
        if (task->is_float) take_floats(task, from, from + end - at, floats, rows, &n);
        else take(&task->from, from, from + end - at, &copy, &block), n = block.n;
        for (long j = 0; j < n; j += LANES) {
            vf v[3];
            if (task->is_float) {
                for (int k = 0; k < 3; k++) v[k] = load(rows[k] + j);
            } else {
                levels(&block, j, v);
                for (int k = 0; k < 3; k++) v[k] *= 1.0f / 255;
            }
            if (task->separates) {
                for (int k = 0; k < 3; k++) v[k] = lg2(max(v[k] + task->offset, splat(task->least)));
                multiply_add(matrix, v);
                for (int k = 0; k < 3; k++) v[k] = max(v[k], splat(matrix[12 + k]));
            } else {
                multiply_add(matrix, v); /* a third amount that is not there counts nothing */
                for (int k = 0; k < 3; k++) v[k] = clamp(ex2(min(v[k], splat(127.0f))) - task->offset, 0, 1);
            }
            for (int k = 0; k < task->outputs; k++) {
                float *out = to + k * task->to_channel + at + j;
                if (n - j >= LANES) store(out, v[k]);
                else memcpy(out, &v[k], sizeof(float) * (size_t)(n - j));
            }
        }
    }
}

/* from: bytes, or floats, of (samples, inputs, height, width); to: floats, each channel dense, strides in floats. */
EXPORT void NAME(convert_stain)(const void *from, const long *layout, int is_float, int inputs, float *to, long to_sample,
                                long to_channel, int outputs, long samples, const float *matrices, int separates,
                                float offset, float least, int threads) {
    struct conversion task = {.to = to, .matrices = matrices, .to_sample = to_sample, .to_channel = to_channel,
                              .is_float = is_float, .inputs = inputs, .outputs = outputs, .separates = separates,
                              .offset = offset, .least = least};
    read_layout(&task.from, from, layout);
    task.pixels = task.from.height * task.from.width;
    task.chunks = (task.pixels + CHUNK - 1) / CHUNK;
    dhlab_parallel(samples * task.chunks, threads, convert_chunk, &task);
}
