/* Overlapping windows to one picture: each row gathers the windows that cover it, in their order, and is written once. */
#include "floats.h"
#include "parallel.h"

#define MOST_CHANNELS 64
#define MOST_COLUMNS 256 /* of a cell */
enum { SCORES, QUANTISED, CLASSES, MASK };
enum { NONE, SOFTMAX, SIGMOID };
#define LOG2E 1.4426950408889634f

typedef float line[MOST_COLUMNS + LANES]; /* a row of a cell, and what the last vector touches beyond */

struct task {
    const char *scores;
    const int64_t *offsets, *rows, *columns, *starts, *members;
    const float *weights;
    char *out;
    /* in the order of the array that Python passes */
    long channels, window_rows, window_columns, out_rows, out_columns, cell_rows, cell_columns;
    long score_channel, score_row, score_column, out_channel, out_row, type, result, activation, threads;
    float threshold;
};

static inline void add_vector(float *sums, vf weight, vf score) { store(sums, load(sums) + weight * score); }

static inline void add(float *sums, const float *weights, const char *from, long n, int type) {
    long i = 0;
    for (; i + LANES <= n; i += LANES) add_vector(sums + i, load(weights + i), load_typed(from, i, type));
    if (i == n) return;
    float last_weights[LANES] = {0}, last[LANES] = {0};
    size_t size = (size_t)size_of(type);
    memcpy(last_weights, weights + i, (size_t)(n - i) * 4);
    memcpy(last, from + (size_t)i * size, (size_t)(n - i) * size);
    add_vector(sums + i, load(last_weights), load_typed(last, 0, type));
}

static void add_typed(float *sums, const float *weights, const char *from, long n, int type) {
    if (type == FLOAT32) add(sums, weights, from, n, FLOAT32);
    else if (type == BFLOAT16) add(sums, weights, from, n, BFLOAT16);
    else add(sums, weights, from, n, FLOAT16);
}

/* n scores of one channel, `step` elements apart, as floats next to one another */
static void unpack(float *to, const char *from, long step, long n, int type) {
    if (type == FLOAT32) {
        for (long i = 0; i < n; i++) to[i] = ((const float *)from)[i * step];
        return;
    }
    uint16_t halves[MOST_COLUMNS + LANES];
    for (long i = 0; i < n; i++) halves[i] = ((const uint16_t *)from)[i * step];
    memset(halves + n, 0, LANES * 2);
    for (long i = 0; i < n; i += LANES) store(to + i, load_typed(halves, i, type));
}

static void activate(line *scores, long channels, long n, int activation) {
    for (long i = 0; i < n; i += LANES) {
        vf most = load(scores[0] + i), total = splat(0);
        for (long c = 1; c < channels; c++) most = max(most, load(scores[c] + i));
        for (long c = 0; c < channels; c++) {
            vf score = load(scores[c] + i);
            if (activation == SIGMOID) {
                store(scores[c] + i, 1.0f / (1.0f + ex2(min(score * -LOG2E, splat(126.0f)))));
            } else {
                vf share = ex2((score - most) * LOG2E);
                total += share;
                store(scores[c] + i, share);
            }
        }
        if (activation == SIGMOID) continue;
        vf inverse = 1.0f / total;
        for (long c = 0; c < channels; c++) store(scores[c] + i, load(scores[c] + i) * inverse);
    }
}

static void add_window(const struct task *task, line *sums, const float *weights, const char *from, long begin, long n) {
    long channels = task->channels, size = size_of((int)task->type);
    if (task->activation == NONE && task->score_column == 1) {
        for (long c = 0; c < channels; c++)
            add_typed(sums[c] + begin, weights, from + c * task->score_channel * size, n, (int)task->type);
    } else {
        line scores[MOST_CHANNELS];
        for (long c = 0; c < channels; c++) {
            memset(scores[c] + n, 0, sizeof(float) * LANES);
            unpack(scores[c], from + c * task->score_channel * size, task->score_column, n, (int)task->type);
        }
        if (task->activation != NONE) activate(scores, channels, n, (int)task->activation);
        for (long c = 0; c < channels; c++) add(sums[c] + begin, weights, (const char *)scores[c], n, FLOAT32);
    }
    if (task->result == CLASSES) return; /* the largest sum is the largest mean */
    float *total = sums[channels] + begin;
    long i = 0;
    for (; i + LANES <= n; i += LANES) store(total + i, load(total + i) + load(weights + i));
    for (; i < n; i++) total[i] += weights[i];
}

static void put_bytes(uint8_t *to, vi value, long n) {
    if (n >= LANES) {
        store_bytes(to, value);
        return;
    }
    uint8_t last[LANES];
    store_bytes(last, value);
    memcpy(to, last, (size_t)n);
}

static void put_classes(const struct task *task, line *sums, char *to, long n) {
    for (long i = 0; i < n; i += LANES) {
        vf best = load(sums[0] + i);
        vi found = {0};
        for (long c = 1; c < task->channels; c++) {
            vf value = load(sums[c] + i);
            vm more = lt(best, value);
            best = pick(more, value, best);
            found = pick_int(more, splat_int((int32_t)c), found);
        }
        put_bytes((uint8_t *)to + i, found, n - i);
    }
}

static void put(const struct task *task, line *sums, char *to, long n) {
    long size = task->result == SCORES ? 4 : 1;
    for (long i = 0; i < n; i += LANES) {
        vf total = load(sums[task->channels] + i);
        vm covered = lt(splat(0), total);
        vf inverse = pick(covered, 1.0f / total, splat(0));
        for (long c = 0; c < task->channels; c++) {
            char *place = to + (c * task->out_channel + i) * size;
            vf value = load(sums[c] + i) * inverse;
            if (task->result == QUANTISED) {
                put_bytes((uint8_t *)place, to_int(round_of(clamp(value * 255.0f, 0, 255))), n - i);
            } else if (task->result == MASK) {
                vm yes = both(covered, le(splat(task->threshold), value));
                put_bytes((uint8_t *)place, pick_int(yes, splat_int(1), splat_int(0)), n - i);
            } else if (n - i < LANES) {
                memcpy(place, &value, (size_t)(n - i) * 4);
            } else if (is_aligned(place)) {
                stream((float *)place, value);
            } else {
                store((float *)place, value);
            }
        }
    }
}

static void body(void *context, long cell) {
    const struct task *task = context;
    long across = (task->out_columns + task->cell_columns - 1) / task->cell_columns;
    long top = cell / across * task->cell_rows, left = cell % across * task->cell_columns;
    long bottom = top + task->cell_rows < task->out_rows ? top + task->cell_rows : task->out_rows;
    long right = left + task->cell_columns < task->out_columns ? left + task->cell_columns : task->out_columns;
    long size = size_of((int)task->type), out_size = task->result == SCORES ? 4 : 1;
    /* Members come by their first row, and all are equally high: those that cover a row follow one another. */
    long first = task->starts[cell], end = first;
    line sums[MOST_CHANNELS + 1];
    for (long row = top; row < bottom; row++) {
        while (end < task->starts[cell + 1] && task->rows[task->members[end]] <= row) end++;
        while (first < end && task->rows[task->members[first]] + task->window_rows <= row) first++;
        memset(sums, 0, sizeof(line) * (size_t)(task->channels + 1));
        for (long k = first; k < end; k++) {
            long window = task->members[k], column = task->columns[window], y = row - task->rows[window];
            long begin = column > left ? column : left;
            long stop = column + task->window_columns < right ? column + task->window_columns : right;
            const char *from = task->scores + (task->offsets[window] + y * task->score_row +
                                               (begin - column) * task->score_column) * size;
            add_window(task, sums, task->weights + y * task->window_columns + begin - column, from, begin - left,
                       stop - begin);
        }
        char *to = task->out + (row * task->out_row + left) * out_size;
        if (task->result == CLASSES) put_classes(task, sums, to, right - left);
        else put(task, sums, to, right - left);
    }
    if (task->result == SCORES) finish_streams();
}

/* offsets, rows, columns: per window, of its first score and of its corner in `out`; starts, members: windows of a cell */
EXPORT void NAME(blend)(const void *scores, const int64_t *offsets, const int64_t *rows, const int64_t *columns,
                        const int64_t *starts, const int64_t *members, const float *weights, void *out,
                        const long *sizes, float threshold) {
    struct task task = {.scores = scores, .offsets = offsets, .rows = rows, .columns = columns, .starts = starts,
                        .members = members, .weights = weights, .out = out, .threshold = threshold};
    memcpy(&task.channels, sizes, 16 * sizeof(long));
    long across = (task.out_columns + task.cell_columns - 1) / task.cell_columns;
    long down = (task.out_rows + task.cell_rows - 1) / task.cell_rows;
    dhlab_parallel(across * down, (int)task.threads, body, &task);
}
