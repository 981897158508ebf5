/* What lies between the matrix products of gated attention pooling: embed's ReLU, gates, scores, the running softmax,
 * and their gradients. One call handles a chunk of instances whose products are in the caches.
 *
 * Matrices are float32 or bfloat16; rows of `gates` hold `hidden` values, then as many gates. Rows that are read whole
 * vectors at a time may be read beyond their end, so the caller leaves SLACK elements behind matrices; parameters and
 * sums come padded: `hidden` to a multiple of SLACK in score weights and biases, `width` in pooled sums. */
#include "floats.h"
#include "parallel.h"
#include <math.h>

#define SLACK 64
#define ROWS 64 /* instances of one task */
#define MOST_HIDDEN 4096
#define MOST_HEADS 64
#define LOG2_E 1.44269504f
#define INLINE static inline __attribute__((always_inline))

INLINE vf only(long n, vf value) { return n >= LANES ? value : pick(first((int)n), value, splat(0.0f)); }

/* tanh(value) and sigmoid(gate) with one division; each within 4e-7, NaN stays NaN */
INLINE void squash(vf *value, vf *gate) {
    vm numbers = both(le(*value, *value), le(*gate, *gate));
    vf a = ex2(clamp(*value * (2 * LOG2_E), -40.0f, 40.0f)), b = ex2(clamp(*gate * -LOG2_E, -80.0f, 80.0f)) + 1.0f;
    vf share = 1.0f / ((a + 1.0f) * b), nan = *value + *gate;
    *value = pick(numbers, (a - 1.0f) * b * share, nan);
    *gate = pick(numbers, (a + 1.0f) * share, nan);
}

struct task {
    void *gates, *embedded, *gradient;
    const float *gate_bias, *score_weight, *score_bias, *grad_scores, *grad_shift;
    const int64_t *offsets;
    float *scores, *shares, *most, *mass, *pooled, *partial, *sums;
    long begin, rows, bags, hidden, width, heads, padded_hidden, padded_width;
    int type, rectified;
};

/* the bag of a row: the last that begins at or before it, so never an empty one */
static long bag_of(const struct task *task, long row) {
    long low = 0, high = task->bags - 1;
    while (low < high) {
        long middle = (low + high + 1) / 2;
        if (task->offsets[middle] <= row) low = middle;
        else high = middle - 1;
    }
    return low;
}

/* Rows *from..*to of the chunk are one bag; returns it and moves on from *to, or -1 behind the last row. */
static long next_piece(const struct task *task, long *from, long *to, long end) {
    if (*to >= end) return -1;
    *from = *to;
    long bag = bag_of(task, task->begin + *from);
    *to = task->offsets[bag + 1] - task->begin;
    if (*to > end) *to = end;
    return bag;
}

static long rows_of(const struct task *task, long i) { return (i + 1) * ROWS < task->rows ? (i + 1) * ROWS : task->rows; }

INLINE void rectify_rows(const struct task *task, long i, int type) {
    for (long row = i * ROWS; row < rows_of(task, i); row++)
        for (long j = 0; j < task->width; j += LANES) {
            vf value = load_typed(task->embedded, row * task->width + j, type) + load(task->gate_bias + j);
            value = pick(lt(value, splat(0.0f)), splat(0.0f), value); /* keeps NaN */
            store_some(task->embedded, row * task->width + j, value, type, task->width - j);
        }
}

static void rectify_task(void *context, long i) {
    const struct task *task = context;
    if (task->type == FLOAT32) rectify_rows(task, i, FLOAT32);
    else rectify_rows(task, i, BFLOAT16);
}

/* embedded (rows, width) becomes max(0, embedded + bias) in place */
EXPORT void NAME(attention_rectify)(void *embedded, const float *bias, long rows, long width, int type, int threads) {
    struct task task = {.embedded = embedded, .gate_bias = bias, .rows = rows, .width = width, .type = type};
    dhlab_parallel((rows + ROWS - 1) / ROWS, threads, rectify_task, &task);
}

INLINE void score_rows(const struct task *task, long i, int type) {
    float gated[MOST_HIDDEN];
    long hidden = task->hidden;
    for (long row = i * ROWS; row < rows_of(task, i); row++) {
        for (long j = 0; j < hidden; j += LANES) {
            vf value = load_typed(task->gates, row * 2 * hidden + j, type) + load(task->gate_bias + j);
            vf gate = load_typed(task->gates, (row * 2 + 1) * hidden + j, type) + load(task->gate_bias + task->padded_hidden + j);
            squash(&value, &gate);
            store(gated + j, only(hidden - j, value * gate));
        }
        for (long head = 0; head < task->heads; head++) {
            vf total = splat(0.0f);
            for (long j = 0; j < hidden; j += LANES)
                total += load(gated + j) * load(task->score_weight + head * task->padded_hidden + j);
            task->scores[row * task->heads + head] = sum(total) + task->score_bias[head];
        }
    }
}

static void score_task(void *context, long i) {
    const struct task *task = context;
    if (task->type == FLOAT32) score_rows(task, i, FLOAT32);
    else score_rows(task, i, BFLOAT16);
}

/* The running softmax of one bag and head takes in rows from..to: what was summed before shrinks as the largest grows. */
static void take_in(const struct task *task, long bag, long head, long from, long to) {
    long heads = task->heads, at = bag * heads + head;
    float most = task->most[at], mass = 0;
    for (long row = from; row < to; row++) {
        float score = task->scores[row * heads + head];
        most = score > most ? score : most;
    }
    for (long row = from; row < to; row++) {
        float share = expf(task->scores[row * heads + head] - most);
        task->shares[row * heads + head] = share;
        mass += share;
    }
    float kept = task->mass[at] == 0 ? 0 : expf(task->most[at] - most), *pooled = task->pooled + at * task->padded_width;
    for (long j = 0; j < task->padded_width; j += LANES) store(pooled + j, load(pooled + j) * kept);
    task->mass[at] = task->mass[at] * kept + mass;
    task->most[at] = most;
}

/* SLACK columns of the weighted sums */
INLINE void pool_columns(const struct task *task, long i, int type) {
    enum { VECTORS = SLACK / LANES };
    long from = 0, to = 0, column = i * SLACK;
    for (long bag; (bag = next_piece(task, &from, &to, task->rows)) >= 0;)
        for (long head = 0; head < task->heads; head++) {
            float *pooled = task->pooled + (bag * task->heads + head) * task->padded_width + column;
            vf total[VECTORS];
            for (int k = 0; k < VECTORS; k++) total[k] = load(pooled + k * LANES);
            for (long row = from; row < to; row++) {
                vf share = splat(task->shares[row * task->heads + head]);
                for (int k = 0; k < VECTORS; k++)
                    total[k] += share * load_typed(task->embedded, row * task->width + column + k * LANES, type);
            }
            for (int k = 0; k < VECTORS; k++) store(pooled + k * LANES, total[k]);
        }
}

static void pool_task(void *context, long i) {
    const struct task *task = context;
    if (task->type == FLOAT32) pool_columns(task, i, FLOAT32);
    else pool_columns(task, i, BFLOAT16);
}

/* gates (rows, 2 hidden), embedded (rows, width) of the instances begin.. ; scores, shares (rows, heads) are written;
 * most, mass (bags, heads) and pooled (bags, heads, padded width) are the running softmax of every bag. */
EXPORT void NAME(attention_pool)(void *gates, void *embedded, const float *gate_bias, const float *score_weight,
                                 const float *score_bias, const int64_t *offsets, float *scores, float *shares,
                                 float *most, float *mass, float *pooled, long begin, long rows, long bags, long hidden,
                                 long width, long heads, int type, int threads) {
    struct task task = {.gates = gates, .embedded = embedded, .gate_bias = gate_bias, .score_weight = score_weight,
                        .score_bias = score_bias, .offsets = offsets, .scores = scores, .shares = shares, .most = most,
                        .mass = mass, .pooled = pooled, .begin = begin, .rows = rows, .bags = bags, .hidden = hidden,
                        .width = width, .heads = heads, .padded_hidden = (hidden + SLACK - 1) / SLACK * SLACK,
                        .padded_width = (width + SLACK - 1) / SLACK * SLACK, .type = type};
    dhlab_parallel((rows + ROWS - 1) / ROWS, threads, score_task, &task);
    long from = 0, to = 0;
    for (long bag; (bag = next_piece(&task, &from, &to, rows)) >= 0;)
        for (long head = 0; head < heads; head++) take_in(&task, bag, head, from, to);
    dhlab_parallel(task.padded_width / SLACK, threads, pool_task, &task);
}

INLINE void differentiate_rows(const struct task *task, long i, int type) {
    long hidden = task->hidden, padded = task->padded_hidden, heads = task->heads, from = 0, to = i * ROWS;
    float towards[MOST_HEADS], *partial = task->partial + i * (heads + 2) * padded;
    memset(partial, 0, (size_t)((heads + 2) * padded) * sizeof *partial);
    for (long bag; (bag = next_piece(task, &from, &to, rows_of(task, i))) >= 0;)
        for (long row = from; row < to; row++) {
            for (long head = 0; head < heads; head++) {
                const float *pull = task->pooled + (bag * heads + head) * task->padded_width;
                vf total = splat(0.0f);
                for (long j = 0; j < task->width; j += LANES)
                    total += only(task->width - j, load_typed(task->embedded, row * task->width + j, type)) * load(pull + j);
                float share = expf(task->scores[row * heads + head] - task->most[bag * heads + head]);
                task->shares[row * heads + head] = share;
                towards[head] = share * (sum(total) + task->grad_shift[bag * heads + head]) +
                                task->grad_scores[row * heads + head];
            }
            for (long j = 0; j < hidden; j += LANES) {
                long at = row * 2 * hidden + j;
                vf value = load_typed(task->gates, at, type) + load(task->gate_bias + j);
                vf gate = load_typed(task->gates, at + hidden, type) + load(task->gate_bias + padded + j);
                squash(&value, &gate);
                vf pull = splat(0.0f);
                for (long head = 0; head < heads; head++) {
                    float *sums = partial + head * padded + j;
                    pull += towards[head] * load(task->score_weight + head * padded + j);
                    store(sums, load(sums) + towards[head] * (value * gate));
                }
                pull *= gate;
                vf for_value = pull * (1.0f - value * value), for_gate = pull * value * (1.0f - gate);
                float *sums = partial + heads * padded + j;
                store(sums, load(sums) + for_value);
                store(sums + padded, load(sums + padded) + for_gate);
                store_some(task->gates, at, for_value, type, hidden - j);
                store_some(task->gates, at + hidden, for_gate, type, hidden - j);
            }
        }
}

static void differentiate_task(void *context, long i) {
    const struct task *task = context;
    if (task->type == FLOAT32) differentiate_rows(task, i, FLOAT32);
    else differentiate_rows(task, i, BFLOAT16);
}

/* gates become their gradients in place. log_sums, grad_shift (bags, heads): log of the softmax's sum, and what every
 * score of the bag moves besides its own instance; grad_pooled (bags, heads, padded width); shares (rows, heads) are
 * written; partial is memory for (tasks, heads + 2, padded hidden), and its sum over tasks is added to sums. */
EXPORT void NAME(attention_differentiate)(void *gates, void *embedded, const float *gate_bias,
                                          const float *score_weight, const int64_t *offsets, float *scores,
                                          const float *grad_scores, float *log_sums, const float *grad_shift,
                                          float *grad_pooled, float *shares, float *partial, float *sums, long begin,
                                          long rows, long bags, long hidden, long width, long heads, int type,
                                          int threads) {
    struct task task = {.gates = gates, .embedded = embedded, .gate_bias = gate_bias, .score_weight = score_weight,
                        .offsets = offsets, .scores = scores, .grad_scores = grad_scores, .most = log_sums,
                        .grad_shift = grad_shift, .pooled = grad_pooled, .shares = shares, .partial = partial,
                        .begin = begin, .rows = rows, .bags = bags, .hidden = hidden, .width = width, .heads = heads,
                        .padded_hidden = (hidden + SLACK - 1) / SLACK * SLACK,
                        .padded_width = (width + SLACK - 1) / SLACK * SLACK, .type = type};
    long tasks = (rows + ROWS - 1) / ROWS, size = (heads + 2) * task.padded_hidden;
    dhlab_parallel(tasks, threads, differentiate_task, &task);
    for (long i = 0; i < tasks; i++)
        for (long j = 0; j < size; j += LANES) store(sums + j, load(sums + j) + load(partial + i * size + j));
}

INLINE void spread_columns(const struct task *task, long i, int type) {
    enum { VECTORS = SLACK / LANES };
    long from = 0, to = 0, heads = task->heads, width = task->width;
    vf sums[VECTORS] = {{0}};
    for (long bag; (bag = next_piece(task, &from, &to, task->rows)) >= 0;)
        for (long row = from; row < to; row++)
            for (int k = 0; k < VECTORS; k++) {
                long column = i * SLACK + k * LANES, at = row * width + column;
                if (column >= width) break;
                vf pull = load_typed(task->gradient, at, type);
                for (long head = 0; head < heads; head++)
                    pull += task->shares[row * heads + head] *
                            load(task->pooled + (bag * heads + head) * task->padded_width + column);
                if (task->rectified) pull = pick(lt(splat(0.0f), load_typed(task->embedded, at, type)), pull, splat(0.0f));
                sums[k] += pull;
                store_some(task->gradient, at, pull, type, width - column);
            }
    for (int k = 0; k < VECTORS; k++) {
        float *total = task->sums + i * SLACK + k * LANES;
        store(total, load(total) + sums[k]);
    }
}

static void spread_task(void *context, long i) {
    const struct task *task = context;
    if (task->type == FLOAT32) spread_columns(task, i, FLOAT32);
    else spread_columns(task, i, BFLOAT16);
}

/* gradient (rows, width), what reaches embedded through the gates, takes in what reaches it as a summand of its bag and
 * passes the ReLU where there is one; its column sums are added to sums (padded width). */
EXPORT void NAME(attention_spread)(void *gradient, void *embedded, float *shares, float *grad_pooled,
                                   const int64_t *offsets, float *sums, long begin, long rows, long bags, long width,
                                   long heads, int rectified, int type, int threads) {
    struct task task = {.gradient = gradient, .embedded = embedded, .shares = shares, .pooled = grad_pooled,
                        .offsets = offsets, .sums = sums, .begin = begin, .rows = rows, .bags = bags, .width = width,
                        .heads = heads, .padded_width = (width + SLACK - 1) / SLACK * SLACK, .rectified = rectified,
                        .type = type};
    dhlab_parallel(task.padded_width / SLACK, threads, spread_task, &task);
}
