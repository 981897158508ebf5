/* Segmentation losses: the sums that Dice, Tversky, cross-entropy and focal terms need in one pass over the logits, the
 * loss and its slopes from the sums, and the gradient in a second pass. */
#include "floats.h"
#include "parallel.h"
#include <math.h>

#define CHUNK 8192 /* pixels of one task: sums are single precision within, double across */
#define BLOCK 256  /* pixels whose logits are converted at a time where they are not float32 in planes */
#define MOST_CLASSES 64
#define ALWAYS static inline __attribute__((always_inline))
#define LOG2E 1.44269504f
#define LN2 0.69314718f
#define LEAST 6e-8f /* of 1 - p, half a unit in the last place of 1 */
enum { UINT8, INT16, INT32, INT64 };
enum { GENERAL, PLAIN, FOCAL }; /* neither weights nor smoothing in the last two, a gamma of 0 and of 2 */

static const int TARGET_SIZES[] = {1, 2, 4, 8};

struct task {
    const char *logits, *targets;
    char *gradient;
    const float *weights; /* (classes) */
    double *sums;         /* (samples, chunks, 3 * classes + 3) */
    const float *slopes;  /* (samples, 2 * classes + 1) */
    long chunks, classes, pixels, ignored;
    int type, target_type, interleaved, multilabel, ignores, kind, streams;
    float smoothing, gamma, total; /* of the weights */
};

/* a run of pixels of one sample */
struct block {
    const float *logits; /* class c at c * stride, whole vectors */
    float *gradient;     /* alike */
    long stride, left;   /* pixels that count; the last vector may hold more */
    const char *targets;
    long target_stride, target_step; /* elements from class to class and from pixel to pixel */
    int streams;
};

/* Adds `value` to `sum` where the mask is set. */
ALWAYS vf add_where(vm mask, vf sum, vf value) {
#if defined(DHLAB_AVX512)
    return (vf)_mm512_mask_add_ps((__m512)sum, mask, (__m512)sum, (__m512)value);
#else
    return sum + (vf)((vi)value & mask);
#endif
}

#define NONE 255 /* the code of a pixel that does not count */
#define ENCODED 128 /* targets whose strays one byte can count */
#define BYTES (4 * LANES) /* in a vector; CHUNK is a multiple of them */
#define COUNTED 255 /* what a byte can count to */
#define HELD 8 /* sums of chances, each at most MOST_CLASSES, whose product is far from overflowing */

/* Targets to codes of one byte: a class, or NONE; returns how many are neither a class nor ignored. */
#define ENCODE(name, type, unsigned_type)                                                                       \
    static long name(const void *from, long step, long n, long classes, int ignores, long ignored, uint8_t *codes) { \
        const type *targets = from, none = (type)ignored;                                                       \
        unsigned_type most = (unsigned_type)(classes - 1);                                                      \
        long strays = 0;                                                                                        \
        ignores = ignores && none == ignored;                                                                   \
        for (long at = 0; at < n; at += ENCODED) {                                                              \
            long end = n - at < ENCODED ? n : at + ENCODED;                                                     \
            unsigned_type some = 0; /* as narrow as the targets, so that vectors stay full */                   \
            if (step == 1 && !ignores) {                                                                        \
                for (long i = at; i < end; i++) {                                                               \
                    unsigned_type target = (unsigned_type)targets[i];                                           \
                    codes[i] = target <= most ? (uint8_t)target : NONE;                                         \
                    some += target > most;                                                                      \
                }                                                                                               \
            } else {                                                                                            \
                for (long i = at; i < end; i++) {                                                               \
                    type target = targets[i * step];                                                            \
                    int skipped = ignores & (target == none), known = (unsigned_type)target <= most;            \
                    codes[i] = known & !skipped ? (uint8_t)target : NONE;                                       \
                    some += !known & !skipped;                                                                  \
                }                                                                                               \
            }                                                                                                   \
            strays += (long)some;                                                                               \
        }                                                                                                       \
        for (long i = n; i % BYTES; i++) codes[i] = NONE;                                                       \
        return strays;                                                                                          \
    }
ENCODE(encode_uint8, uint8_t, uint8_t)
ENCODE(encode_int16, int16_t, uint16_t)
ENCODE(encode_int32, int32_t, uint32_t)
ENCODE(encode_int64, int64_t, uint64_t)

static long encode(const struct task *task, const struct block *block, long row, long classes, uint8_t *codes) {
    static long (*const functions[])(const void *, long, long, long, int, long, uint8_t *) = {
        encode_uint8, encode_int16, encode_int32, encode_int64};
    const char *from = block->targets + row * block->target_stride * TARGET_SIZES[task->target_type];
    return functions[task->target_type](from, block->target_step, block->left, classes, task->ignores, task->ignored, codes);
}

typedef uint8_t bytes __attribute__((vector_size(BYTES)));

/* Returns how many of n codes, NONE up to the next whole vector, are c. */
static __attribute__((noinline)) long count_codes(const uint8_t *codes, long n, long c) {
    long found = 0;
    for (long at = 0; at < n; at += COUNTED * BYTES) {
        bytes some = {0};
        for (long i = at; i < n && i < at + COUNTED * BYTES; i += BYTES) {
            bytes here;
            memcpy(&here, codes + i, sizeof here);
            some -= (bytes)(here == (uint8_t)c);
        }
        for (int lane = 0; lane < BYTES; lane++) found += some[lane];
    }
    return found;
}

/* c + a * b where the mask is set, else c */
ALWAYS vf add_product_where(vm mask, vf c, vf a, vf b) {
#if defined(DHLAB_AVX512)
    return (vf)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)c, mask);
#else
    return c + (vf)((vi)(a * b) & mask);
#endif
}

/* ex2 without its lower bound: the same polynomial, and one instruction of AVX-512 for the exponent. */
ALWAYS vf power(vf x) {
#if defined(DHLAB_AVX512)
    vf whole = round_of(x), t = x - whole, p = splat(0.001326662383776019f);
    p = p * t + 0.009671539176490909f;
    p = p * t + 0.05550728486397846f;
    p = p * t + 0.24022241538578623f;
    p = p * t + 0.6931469799885039f;
    p = p * t + 1.0f;
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    return ex2(x);
#endif
}

/* 1 / x of a number that is neither tiny nor huge, to 2 units in the last place */
ALWAYS vf reciprocal(vf x) {
#if defined(DHLAB_AVX512)
    vf guess = (vf)_mm512_rcp14_ps((__m512)x);
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

ALWAYS vf exponential(vf x) { return power(x * LOG2E); }
ALWAYS vf logarithm_of(vf x) { return lg2(x) * LN2; }
ALWAYS vf where(vm mask, vf value) { return pick(mask, value, splat(0)); }

/* Leaves exp(logit - largest) in `chance` and returns what turns them into chances; the largest in *most, their sum in
 * *sum. */
ALWAYS vf softmax(const float *logits, long stride, long classes, vf *chance, vf *most, vf *sum) {
    vf m = load(logits), s = splat(0);
#pragma GCC unroll 8
    for (long c = 1; c < classes; c++) m = max(m, load(logits + c * stride));
    vf shift = m * -LOG2E;
#pragma GCC unroll 8
    for (long c = 0; c < classes; c++) {
        chance[c] = power(load(logits + c * stride) * LOG2E + shift);
        s += chance[c];
    }
    *most = m;
    *sum = s;
    return reciprocal(s);
}

/* sums: of target * chance, chance, target per class, then of the entropy and of the pixels that count */
ALWAYS void add_softmax(const struct task *task, const struct block *block, vf *sums, long *strays, const long classes,
                        const int kind) {
    uint8_t codes[CHUNK];
    *strays += encode(task, block, 0, classes, codes);
    vf overlap[MOST_CLASSES], chances[MOST_CLASSES], chance[MOST_CLASSES], entropy = sums[3 * classes], held = splat(1);
#pragma GCC unroll 8
    for (long c = 0; c < classes; c++) {
        overlap[c] = sums[c], chances[c] = sums[classes + c];
        sums[2 * classes + c][0] += (float)count_codes(codes, block->left, c);
    }
    for (long i = 0; i < block->left; i += LANES) {
        vf most, sum, own = splat(0), right = splat(0), weight = splat(1), spread = splat(0);
        vi target = load_bytes_int(codes + i);
        vm counts = lt_int(target, splat_int(NONE));
        vf share = where(counts, softmax(block->logits + i, block->stride, classes, chance, &most, &sum));
#pragma GCC unroll 8
        for (long c = 0; c < classes; c++) {
            vm is = eq_int(target, splat_int((int)c));
            chances[c] += chance[c] * share;
            overlap[c] = add_product_where(is, overlap[c], chance[c], share);
            vf logit = load(block->logits + c * block->stride + i);
            own = pick(is, logit, own);
            if (kind == FOCAL) right = pick(is, chance[c], right);
            if (kind == GENERAL) {
                weight = pick(is, splat(task->weights[c]), weight);
                spread += task->weights[c] * logit;
            }
        }
        if (kind == PLAIN) { /* one logarithm of a product instead of many */
            entropy += where(counts, most - own);
            held *= pick(counts, max(splat(1), sum), splat(1)); /* a sum of at least exp(0), but for rounding */
            if (i / LANES % HELD == HELD - 1) entropy += logarithm_of(held), held = splat(1);
            continue;
        }
        vf normaliser = most + logarithm_of(sum), loss = normaliser - own;
        if (kind == FOCAL) {
            vf missed = max(1.0f - right * share, splat(LEAST));
            loss *= missed * missed;
        } else if (kind == GENERAL) {
            if (task->gamma > 0) {
                vf missed = max(1.0f - exponential(-loss), splat(LEAST));
                loss *= ex2(task->gamma * lg2(missed));
            }
            loss *= weight * (1 - task->smoothing);
            loss += task->smoothing / (float)classes * (task->total * normaliser - spread);
        }
        entropy += where(counts, loss);
    }
#pragma GCC unroll 8
    for (long c = 0; c < classes; c++) sums[c] = overlap[c], sums[classes + c] = chances[c];
    sums[3 * classes] = entropy + logarithm_of(held);
}

/* The number of each lane's class; NONE may give any. */
ALWAYS vf look_up(const float *numbers, long classes, vi target) {
#if defined(DHLAB_AVX512)
    if (classes <= LANES)
        return (vf)_mm512_permutexvar_ps((__m512i)target, _mm512_maskz_loadu_ps(first((int)classes), numbers));
#endif
    vf found = splat(0);
#pragma GCC unroll 8
    for (long c = 0; c < classes; c++) found = pick(eq_int(target, splat_int((int)c)), splat(numbers[c]), found);
    return found;
}

ALWAYS void differ_softmax(const struct task *task, const struct block *block, const float *slopes, const long classes,
                           const int kind, const int streams) {
    uint8_t codes[CHUNK];
    encode(task, block, 0, classes, codes);
    vf chance[MOST_CLASSES];
    const float *of_overlap = slopes, *of_chances = slopes + classes;
    for (long i = 0; i < block->left; i += LANES) {
        vf most, sum, own = splat(0), inner = splat(0), even = splat(0);
        vi target = load_bytes_int(codes + i);
        vm counts = lt_int(target, splat_int(NONE));
        vf share = where(counts, softmax(block->logits + i, block->stride, classes, chance, &most, &sum));
#pragma GCC unroll 8
        for (long c = 0; c < classes; c++) {
            own = pick(eq_int(target, splat_int((int)c)), chance[c], own);
            inner += chance[c] * of_chances[c];
        }
        vf gain = where(counts, own * look_up(of_overlap, classes, target)), right = own * share;
        vf towards = where(counts, splat(slopes[2 * classes])), total = towards;
        if (kind != PLAIN) {
            vf weight = kind == FOCAL ? splat(1) : look_up(task->weights, classes, target);
            if (kind == FOCAL || task->gamma > 0) {
                vf missed = max(1.0f - right, splat(LEAST));
                vf lower = kind == FOCAL ? missed : ex2((task->gamma - 1) * lg2(missed)); /* one power below the focus */
                float gamma = kind == FOCAL ? 2 : task->gamma;
                weight *= lower * (missed - gamma * right * logarithm_of(max(right, splat(1e-37f))));
            }
            even = kind == FOCAL ? even : towards * (task->smoothing / (float)classes);
            towards *= kind == FOCAL ? weight : weight * (1 - task->smoothing);
            total = kind == FOCAL ? towards : towards + even * task->total;
        }
        total = (total - (inner + gain) * share) * share;
        vf extra = gain * share - towards;
#pragma GCC unroll 8
        for (long c = 0; c < classes; c++) {
            vf value = chance[c] * (total + share * of_chances[c]);
            value = add_where(eq_int(target, splat_int((int)c)), value, extra);
            if (kind == GENERAL) value -= even * task->weights[c];
            if (streams) stream(block->gradient + c * block->stride + i, value);
            else store(block->gradient + c * block->stride + i, value);
        }
    }
}

/* What a logit x of several labels comes to: exp(-|x|), chance of 1, log(1 + exp(-|x|)). */
ALWAYS void sigmoid(vf x, vf *e, vf *share, vf *rest) {
    *e = exponential(-max(x, -x));
    *share = 1.0f / (1.0f + *e);
    *rest = logarithm_of(1.0f + *e);
}

ALWAYS void add_sigmoid(const struct task *task, const struct block *block, vf *sums, long *strays, long classes) {
    uint8_t codes[CHUNK];
    vf entropy = sums[3 * classes], counted = sums[3 * classes + 1];
    for (long c = 0; c < classes; c++) {
        *strays += encode(task, block, c, 2, codes);
        vf overlap = sums[c], chances = sums[classes + c], sizes = sums[2 * classes + c], weight = splat(task->weights[c]);
        for (long i = 0; i < block->left; i += LANES) {
            vf x = load(block->logits + c * block->stride + i), e, share, rest;
            vi target = load_bytes_int(codes + i);
            vm counts = lt_int(target, splat_int(NONE)), is = eq_int(target, splat_int(1)), positive = lt(splat(0), x);
            sigmoid(x, &e, &share, &rest);
            vf p = pick(positive, share, e * share), above = max(x, splat(0)) + rest, below = above - x, loss;
            if (task->gamma > 0) { /* 1 - p of the truth is exp of minus the other side's loss */
                vf right = pick(is, below, above), wrong = pick(is, above, below);
                loss = pick(is, weight, splat(1)) * right * exponential(-task->gamma * wrong);
            } else {
                vf truth = pick(is, splat(1 - task->smoothing / 2), splat(task->smoothing / 2));
                loss = truth * weight * below + (1.0f - truth) * above;
            }
            chances = add_where(counts, chances, p);
            overlap = add_where(is, overlap, p);
            sizes = add_where(is, sizes, splat(1));
            counted = add_where(counts, counted, splat(1));
            entropy = add_where(counts, entropy, loss);
        }
        sums[c] = overlap, sums[classes + c] = chances, sums[2 * classes + c] = sizes;
    }
    sums[3 * classes] = entropy, sums[3 * classes + 1] = counted;
}

ALWAYS void differ_sigmoid(const struct task *task, const struct block *block, const float *slopes, long classes) {
    uint8_t codes[CHUNK];
    float of_entropy = slopes[2 * classes];
    for (long c = 0; c < classes; c++) {
        encode(task, block, c, 2, codes);
        vf weight = splat(task->weights[c]), of_overlap = splat(slopes[c]), of_chances = splat(slopes[classes + c]);
        for (long i = 0; i < block->left; i += LANES) {
            vf x = load(block->logits + c * block->stride + i), e, share, rest, by_entropy;
            vi target = load_bytes_int(codes + i);
            vm counts = lt_int(target, splat_int(NONE)), is = eq_int(target, splat_int(1)), positive = lt(splat(0), x);
            sigmoid(x, &e, &share, &rest);
            vf p = pick(positive, share, e * share), q = pick(positive, e * share, share); /* q is 1 - p */
            if (task->gamma > 0) {
                vf above = max(x, splat(0)) + rest, below = above - x;
                vf loss = pick(is, below, above), power = exponential(-task->gamma * pick(is, above, below));
                vf right = pick(is, p, q), wrong = pick(is, q, p);
                by_entropy = pick(is, -weight, splat(1)) * power * (task->gamma * right * loss + wrong);
            } else {
                vf truth = pick(is, splat(1 - task->smoothing / 2), splat(task->smoothing / 2));
                by_entropy = (1.0f - truth) * p - truth * weight * q;
            }
            vf value = p * q * add_where(is, of_chances, of_overlap) + of_entropy * by_entropy;
            store(block->gradient + c * block->stride + i, where(counts, value));
        }
    }
}

#define SEPARATE static __attribute__((noinline))

/* One function per kind and number of classes that is common, so that the chances stay in registers. */
#define VARIANT(kind, classes)                                                                                    \
    SEPARATE void add_##kind##_##classes(const struct task *task, const struct block *block, vf *sums, long *strays) { \
        add_softmax(task, block, sums, strays, classes, kind);                                                    \
    }                                                                                                             \
    SEPARATE void differ_##kind##_##classes(const struct task *task, const struct block *block, const float *slopes) { \
        if (block->streams) differ_softmax(task, block, slopes, classes, kind, 1);                                \
        else differ_softmax(task, block, slopes, classes, kind, 0);                                               \
    }
#define VARIANTS(kind) VARIANT(kind, 2) VARIANT(kind, 3) VARIANT(kind, 4) VARIANT(kind, 5) VARIANT(kind, 6)
VARIANTS(GENERAL) VARIANTS(PLAIN) VARIANTS(FOCAL)

static void (*const add_variants[3][5])(const struct task *, const struct block *, vf *, long *) = {
    {add_GENERAL_2, add_GENERAL_3, add_GENERAL_4, add_GENERAL_5, add_GENERAL_6},
    {add_PLAIN_2, add_PLAIN_3, add_PLAIN_4, add_PLAIN_5, add_PLAIN_6},
    {add_FOCAL_2, add_FOCAL_3, add_FOCAL_4, add_FOCAL_5, add_FOCAL_6},
};
static void (*const differ_variants[3][5])(const struct task *, const struct block *, const float *) = {
    {differ_GENERAL_2, differ_GENERAL_3, differ_GENERAL_4, differ_GENERAL_5, differ_GENERAL_6},
    {differ_PLAIN_2, differ_PLAIN_3, differ_PLAIN_4, differ_PLAIN_5, differ_PLAIN_6},
    {differ_FOCAL_2, differ_FOCAL_3, differ_FOCAL_4, differ_FOCAL_5, differ_FOCAL_6},
};

SEPARATE void add_block(const struct task *task, const struct block *block, vf *sums, long *strays) {
    long classes = task->classes;
    if (task->multilabel) add_sigmoid(task, block, sums, strays, classes);
    else if (classes >= 2 && classes <= 6) add_variants[task->kind][classes - 2](task, block, sums, strays);
    else if (task->kind == PLAIN) add_softmax(task, block, sums, strays, classes, PLAIN);
    else add_softmax(task, block, sums, strays, classes, GENERAL);
}

SEPARATE void differ_block(const struct task *task, const struct block *block, const float *slopes) {
    long classes = task->classes;
    if (task->multilabel) differ_sigmoid(task, block, slopes, classes);
    else if (classes >= 2 && classes <= 6) differ_variants[task->kind][classes - 2](task, block, slopes);
    else if (task->kind == PLAIN) differ_softmax(task, block, slopes, classes, PLAIN, 0);
    else differ_softmax(task, block, slopes, classes, GENERAL, 0);
}

static void load_run(float *to, const char *from, long n, int type) {
    long size = size_of(type);
    for (long i = 0; i < n; i += LANES) {
        char some[4 * LANES] = {0};
        const char *source = from + i * size;
        if (n - i < LANES) source = memcpy(some, source, (size_t)((n - i) * size));
        store(to + i, load_typed(source, 0, type));
    }
}

static void store_run(char *to, const float *from, long n, int type) {
    for (long i = 0; i < n; i += LANES) store_some(to, i, load(from + i), type, n - i);
}

/* between (pixels, classes) in memory and BLOCK pixels of each class at hand */
static void load_block(const struct task *task, long sample, long begin, long n, float *rows) {
    long classes = task->classes, size = size_of((int)task->type);
    float mixed[(MOST_CLASSES + 1) * BLOCK];
    if (task->interleaved) {
        load_run(mixed, task->logits + (sample * task->pixels + begin) * classes * size, n * classes, task->type);
        for (long i = 0; i < n; i++)
            for (long c = 0; c < classes; c++) rows[c * BLOCK + i] = mixed[i * classes + c];
    } else {
        for (long c = 0; c < classes; c++)
            load_run(rows + c * BLOCK, task->logits + ((sample * classes + c) * task->pixels + begin) * size, n, task->type);
    }
    for (long c = 0; c < classes; c++)
        for (long i = n; i % LANES; i++) rows[c * BLOCK + i] = 0;
}

static void store_block(const struct task *task, long sample, long begin, long n, const float *rows) {
    long classes = task->classes, size = size_of((int)task->type);
    float mixed[MOST_CLASSES * BLOCK];
    if (task->interleaved) {
        for (long i = 0; i < n; i++)
            for (long c = 0; c < classes; c++) mixed[i * classes + c] = rows[c * BLOCK + i];
        for (long i = n * classes; i % LANES; i++) mixed[i] = 0;
        store_run(task->gradient + (sample * task->pixels + begin) * classes * size, mixed, n * classes, task->type);
    } else {
        for (long c = 0; c < classes; c++)
            store_run(task->gradient + ((sample * classes + c) * task->pixels + begin) * size, rows + c * BLOCK, n, task->type);
    }
}

/* Goes over the pixels of one task: as they lie where they are float32 in planes, else through a buffer. */
ALWAYS void go(const struct task *task, long index, int differ) {
    long sample = index / task->chunks, begin = index % task->chunks * CHUNK, classes = task->classes, strays = 0;
    long n = task->pixels - begin < CHUNK ? task->pixels - begin : CHUNK, per_sample = task->multilabel ? classes : 1;
    long direct = task->type == FLOAT32 && !task->interleaved ? n / LANES * LANES : 0;
    int mixed = task->multilabel && task->interleaved;
    struct block block = {.target_stride = mixed ? 1 : task->pixels, .target_step = mixed ? classes : 1};
    const float *slopes = differ ? task->slopes + sample * (2 * classes + 1) : 0;
    vf sums[3 * MOST_CLASSES + 2];
    float rows[MOST_CLASSES * BLOCK];
    if (!differ)
        for (long i = 0; i < 3 * classes + 2; i++) sums[i] = splat(0);
    for (long at = 0, step; at < n; at += step) {
        int as_it_lies = at < direct;
        long place = sample * classes * task->pixels + begin + at;
        step = as_it_lies ? direct : n - at < BLOCK ? n - at : BLOCK;
        block.targets = task->targets + (sample * per_sample * task->pixels + (begin + at) * block.target_step) *
                                            TARGET_SIZES[task->target_type];
        block.left = step;
        block.stride = as_it_lies ? task->pixels : BLOCK;
        block.logits = as_it_lies ? (const float *)task->logits + place : rows;
        block.gradient = as_it_lies ? (float *)task->gradient + place : rows;
        block.streams = as_it_lies && task->streams;
        if (!as_it_lies) load_block(task, sample, begin + at, step, rows);
        if (differ) differ_block(task, &block, slopes);
        else add_block(task, &block, sums, &strays);
        if (differ && !as_it_lies) store_block(task, sample, begin + at, step, rows);
    }
    if (differ) {
        finish_streams();
        return;
    }
    double *to = task->sums + index * (3 * classes + 3);
    for (long i = 0; i < 3 * classes + 2; i++) {
        to[i] = 0;
        for (int lane = 0; lane < LANES; lane++) to[i] += sums[i][lane];
    }
    to[3 * classes + 2] = (double)strays;
}

static void add_chunk(void *context, long i) { go(context, i, 0); }
static void differ_chunk(void *context, long i) { go(context, i, 1); }

static struct task describe(const void *logits, const void *targets, const float *weights, const long *sizes,
                            const float *numbers) {
    struct task task = {.logits = logits, .targets = targets, .weights = weights, .chunks = (sizes[2] + CHUNK - 1) / CHUNK,
                        .classes = sizes[1], .pixels = sizes[2], .type = (int)sizes[3], .interleaved = (int)sizes[4],
                        .target_type = (int)sizes[5], .multilabel = (int)sizes[6], .ignores = (int)sizes[7],
                        .ignored = sizes[8], .smoothing = numbers[0], .gamma = numbers[1]};
    int unweighted = task.smoothing == 0;
    for (long c = 0; c < task.classes; c++) {
        task.total += weights[c];
        unweighted &= weights[c] == 1;
    }
    task.kind = !unweighted ? GENERAL : task.gamma == 0 ? PLAIN : task.gamma == 2 ? FOCAL : GENERAL;
    return task;
}

/* logits: (samples, classes, pixels) or, interleaved, (samples, pixels, classes); targets: (samples, pixels), of several
 * labels as the logits; sums: (samples, chunks, 3 * classes + 3). sizes: samples, classes, pixels, type, interleaved, type
 * of the targets, multilabel, ignores, ignored; numbers: label smoothing, gamma. */
EXPORT void NAME(add_loss)(const void *logits, const void *targets, const float *weights, double *sums, const long *sizes,
                           const float *numbers, int threads) {
    struct task task = describe(logits, targets, weights, sizes, numbers);
    task.sums = sums;
    dhlab_parallel(sizes[0] * task.chunks, threads, add_chunk, &task);
}

EXPORT void NAME(differ_loss)(const void *logits, const void *targets, const float *weights, const float *slopes,
                              void *gradient, const long *sizes, const float *numbers, int streams, int threads) {
    struct task task = describe(logits, targets, weights, sizes, numbers);
    task.slopes = slopes;
    task.gradient = gradient;
    task.streams = streams && is_aligned(gradient) && task.pixels % LANES == 0;
    dhlab_parallel(sizes[0] * task.chunks, threads, differ_chunk, &task);
}

enum { ALPHA, BETA, EXPONENT, ABOVE, BELOW, OVERLAP, ENTROPY }; /* the terms of finish_loss */

/* From sums to the loss and its slopes by the sums, in double precision: (samples, 2 * classes + 1), by target * chance and
 * by chance of each class and by the entropy. Returns how many targets are no class. */
EXPORT double NAME(finish_loss)(const double *partial, const float *weights, const float *sample_weights,
                                const float *class_factors, double *sums, float *slopes, float *loss, const double *terms,
                                long samples, long chunks, long classes, int multilabel, int per_sample, int present_only,
                                int first) {
    long width = 3 * classes + 3, groups = per_sample ? samples : 1;
    double strays = 0, entropy = 0, counted = 0, missed = 0, members = 0;
    double *own = sums, *joint = sums + samples * width; /* (samples, width), (width) */
    memset(sums, 0, (size_t)((samples + 1) * width) * sizeof *sums);
    for (long b = 0; b < samples; b++, own += width) {
        double weight = sample_weights ? sample_weights[b] : 1, weighed = 0;
        for (long i = 0; i < chunks * width; i++) own[i % width] += partial[b * chunks * width + i];
        for (long i = 0; i < width; i++) joint[i] += weight * own[i];
        for (long c = 0; c < classes; c++) weighed += weights[c] * own[2 * classes + c];
        counted += weight * (multilabel ? own[3 * classes + 1] : weighed);
        entropy += weight * own[3 * classes];
        strays += own[width - 1];
    }
    for (int write = 0; write < 2; write++) /* the members are counted before their slopes can be written */
        for (long g = 0; g < groups; g++) {
            const double *group = per_sample ? sums + g * width : joint;
            double share = per_sample && sample_weights ? sample_weights[g] : 1;
            for (long c = first; c < classes; c++) {
                double both = group[c], chance = group[classes + c], size = group[2 * classes + c];
                if (present_only && !(size > 0)) continue;
                if (!write) {
                    members += share;
                    continue;
                }
                double mixed = 1 - terms[ALPHA] - terms[BETA], above = both + terms[ABOVE];
                double below = mixed * both + terms[ALPHA] * chance + terms[BETA] * size + terms[BELOW];
                below = below < 1e-12 ? 1e-12 : below;
                double miss = 1 - above / below, slope = -1;
                if (terms[EXPONENT] != 1) {
                    int perfect = miss < 1e-7;
                    miss = perfect ? 1e-7 : miss;
                    slope = perfect ? 0 : -terms[EXPONENT] * pow(miss, terms[EXPONENT] - 1);
                    miss = pow(miss, terms[EXPONENT]);
                }
                double factor = terms[OVERLAP] * share / (members < 1e-12 ? 1e-12 : members) * (class_factors ? class_factors[c] : 1);
                missed += factor * miss;
                for (long b = per_sample ? g : 0; b < (per_sample ? g + 1 : samples); b++) {
                    double scale = factor * slope * (!per_sample && sample_weights ? sample_weights[b] : 1);
                    float *to = slopes + b * (2 * classes + 1);
                    to[c] = (float)(scale * (1 / below - above * mixed / (below * below)));
                    to[classes + c] = (float)(scale * -above * terms[ALPHA] / (below * below));
                }
            }
        }
    counted = counted < 1e-12 ? 1e-12 : counted;
    for (long b = 0; b < samples; b++)
        slopes[b * (2 * classes + 1) + 2 * classes] =
            (float)(terms[ENTROPY] / counted * (sample_weights ? sample_weights[b] : 1));
    *loss = (float)(missed + terms[ENTROPY] * entropy / counted);
    return strays;
}
