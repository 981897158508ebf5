/* Augmentation in one pass, see kernels/augment.py for what each stage means. A row is taken in segments that stay in
 * the first cache; each stage is a loop over a segment, so that its constants stay in registers. */
#include "density.h"
#include "floats.h"
#include "parallel.h"
#include "philox.h"
#include "sampling.h"
#include <math.h>
#include <stdlib.h>

#define BAND 8192 /* pixels of one task, about */
enum { UINT8 = FLOAT16 + 1 };
enum { TABLE = 1, STAIN = 2, COLOUR = 4, GAMMA = 8, GAUSSIAN_NOISE = 16, LAPLACE_NOISE = 32, POISSON_NOISE = 64,
       SALT_PIXELS = 128, PEPPER_PIXELS = 256, DROPOUT_CELLS = 512, CUTOUTS = 1024, BLUR = 2048, SHARPEN = 4096 };
#define IN_PLACE (DROPOUT_CELLS | CUTOUTS | GAUSSIAN_NOISE | LAPLACE_NOISE | POISSON_NOISE | SALT_PIXELS | PEPPER_PIXELS)
#define POISSON_COUNTS 128
#define MOST_REACH 24

struct result {
    char *to;
    long sample; /* elements from one sample to the next */
    long plane, pixel; /* elements from one channel, and one pixel, to the next */
    int type;
    float scale[3], shift[3];
};

struct task {
    struct view source;
    struct map map;
    long stride; /* bytes from one sample of the source to the next */
    const uint8_t *first_source;
    const float *block, *table, *poisson, *field;
    const int64_t *keys;
    const int32_t *cutouts;
    long height, width, boxes, bands, rows, one; /* one: the sample that runs alone, or -1 for all */
    int stages, interpolation, supersample, noise_per_channel, dropout_per_channel, around;
    float offset, least;
    struct result result;
};

typedef float segment[3][SEGMENT + LANES] __attribute__((aligned(64)));

/* ---- to light ---- */

static void look_up(const float *table, segment v, long n) {
    for (int c = 0; c < 3; c++)
        for (long i = 0; i < n; i += LANES) {
            vi level = to_int(round_of(load(v[c] + i) * 255.0f));
            store(v[c] + i, floats(gather(table + 256 * c, level * 4)) * (1.0f / 255));
        }
}

/* Through optical density as in density.h; short loops, see sampling.h. */
static void stain(const struct task *task, const float *stain, segment v, long n) {
    vf offset = splat(task->offset), least = splat(task->least);
    for (long i = 0; i < n && task->around; i += LANES) {
        vf light[3] = {load(v[0] + i), load(v[1] + i), load(v[2] + i)};
        multiply(stain + BEFORE, light);
        for (int c = 0; c < 3; c++) store(v[c] + i, light[c]);
    }
    for (long i = 0; i < n && task->offset != 0; i += LANES)
        for (int c = 0; c < 3; c++) store(v[c] + i, load(v[c] + i) + offset);
    for (long i = 0; i < n; i += LANES)
        for (int c = 0; c < 3; c++) store(v[c] + i, lg2(max(load(v[c] + i), least)));
    for (long i = 0; i < n; i += LANES) {
        vf amount[3] = {load(v[0] + i), load(v[1] + i), load(v[2] + i)};
        multiply_add(stain + UNMIX, amount);
        for (int c = 0; c < 3; c++) amount[c] = max(amount[c], splat(stain[FLOOR + c]));
        multiply_add(stain + MIX, amount);
        for (int c = 0; c < 3; c++) store(v[c] + i, amount[c]);
    }
    vf most = splat(task->around ? 127 : 0); /* 2^0 = 1 is the most light */
    for (long i = 0; i < n; i += LANES)
        for (int c = 0; c < 3; c++) store(v[c] + i, ex2(min(load(v[c] + i), most)));
    for (long i = 0; i < n && task->around; i += LANES) {
        vf light[3] = {load(v[0] + i), load(v[1] + i), load(v[2] + i)};
        multiply(stain + AFTER, light);
        for (int c = 0; c < 3; c++) store(v[c] + i, clamp(light[c], 0, 1));
    }
}

static void colour(const float *matrix, segment v, long n) {
    for (long i = 0; i < n; i += LANES) {
        vf light[3] = {load(v[0] + i), load(v[1] + i), load(v[2] + i)};
        multiply_add(matrix, light);
        for (int c = 0; c < 3; c++) store(v[c] + i, clamp(light[c], 0, 1));
    }
}

static void raise(float gamma, segment v, long n) {
    for (int c = 0; c < 3; c++)
        for (long i = 0; i < n; i += LANES) {
            vf light = load(v[c] + i), dark = splat(1e-37f);
            store(v[c] + i, pick(lt(dark, light), ex2(lg2(max(light, dark)) * gamma), splat(0)));
        }
}

/* ---- noise ---- */

static inline vf poisson_of(const float *table, vu word) {
    vf u = uniform(word);
    vi found = splat_int(0);
    for (int step = POISSON_COUNTS / 2; step; step /= 2) {
        vf chance = floats(gather(table, (found + (step - 1)) * 4));
        found = pick_int(le(chance, u), found + step, found);
    }
    vf count = to_float(found) * (1.0f / 255);
    return pick(eq_int((vi)word & 1, splat_int(0)), count, -count);
}

/* adds what one kind of noise is worth to `sums`, of which the first serves all channels unless per_channel */
static void add_noise(const struct task *task, long sample, int stream, float strength, long y, long x, long n,
                      segment sums) {
    int channels = task->noise_per_channel ? 3 : 1;
    const float *table = task->poisson + sample * POISSON_COUNTS;
    for (long i = 0; i < n; i += LANES) {
        vu words[4];
        philox((vu)(steps() + (int)(x + i)), (vu)splat_int((int)y), (uint32_t)stream, task->keys[sample], words);
        for (int c = 0; c < channels; c++) {
            vf part = stream == GAUSSIAN  ? gaussian_of(uniform(words[c])) * strength
                      : stream == LAPLACE ? laplace_of(uniform(words[c])) * strength
                                          : poisson_of(table, words[c]);
            store(sums[c] + i, load(sums[c] + i) + part);
        }
    }
}

static void noise(const struct task *task, long sample, const float *block, long y, long x, long n, segment v) {
    static const int streams[3] = {GAUSSIAN, LAPLACE, POISSON};
    segment sums = {{0}};
    int found = 0;
    for (int kind = 0; kind < 3; kind++) {
        float strength = block[GAUSSIAN_AT + kind];
        if (!(task->stages & (GAUSSIAN_NOISE << kind)) || strength == 0) continue;
        add_noise(task, sample, streams[kind], strength, y, x, n, sums);
        found = 1;
    }
    if (!found) return;
    for (int c = 0; c < 3; c++)
        for (long i = 0; i < n; i += LANES)
            store(v[c] + i, clamp(load(v[c] + i) + load(sums[task->noise_per_channel ? c : 0] + i), 0, 1));
}

static void strew(const struct task *task, long sample, int stream, float chance, long y, long x, long n, segment v) {
    if (chance <= 0) return;
    for (long i = 0; i < n; i += LANES) {
        vu words[4];
        philox((vu)(steps() + (int)(x + i)), (vu)splat_int((int)y), (uint32_t)stream, task->keys[sample], words);
        for (int c = 0; c < 3; c++) {
            vm hit = lt(uniform(words[task->noise_per_channel ? c : 0]), splat(chance));
            store(v[c] + i, pick(hit, splat(stream == SALT), load(v[c] + i)));
        }
    }
}

/* ---- covering ---- */

static void drop(const struct task *task, long sample, const float *block, long y, long x, long n, segment v) {
    const float *dropout = block + DROPOUT_AT, *fill = block + FILL_AT;
    if (dropout[0] <= 0) return;
    float down = 1.0f / (dropout[1] < 1 ? 1 : dropout[1]), right = 1.0f / (dropout[2] < 1 ? 1 : dropout[2]);
    vi row = to_int((splat((float)y) + 0.5f) * down);
    for (long i = 0; i < n; i += LANES) {
        vu words[4];
        vi column = to_int((to_float(steps() + (int)(x + i)) + 0.5f) * right);
        philox((vu)column, (vu)row, DROPOUT, task->keys[sample], words);
        for (int c = 0; c < 3; c++) {
            vm hit = lt(uniform(words[task->dropout_per_channel ? c : 0]), splat(dropout[0]));
            store(v[c] + i, pick(hit, splat(fill[c] * (1.0f / 255)), load(v[c] + i)));
        }
    }
}

static void cut_out(const struct task *task, long sample, const float *fill, long y, long x, long n, segment v) {
    for (long box = 0; box < task->boxes; box++) {
        const int32_t *edges = task->cutouts + (sample * task->boxes + box) * 4;
        long begin = edges[1] - x, end = edges[3] - x;
        if (y < edges[0] || y >= edges[2]) continue;
        if (begin < 0) begin = 0;
        if (end > n) end = n;
        for (int c = 0; c < 3; c++)
            for (long i = begin; i < end; i++) v[c][i] = fill[c] * (1.0f / 255);
    }
}

/* ---- out of light ---- */

static inline vf whole_level(vf light) { return clamp(round_of(light * 255.0f), 0, 255); }

static inline __attribute__((always_inline)) void put_plane(const struct result *result, int type, char *to,
                                                            const float *from, int c, long n) {
    vf scale = splat(result->scale[c]), shift = splat(result->shift[c]);
    long i = 0;
    int past_caches = type == FLOAT32 && is_aligned(to);
    for (; i + LANES <= n; i += LANES) {
        vf value = load(from + i);
        if (type == UINT8) store_bytes((uint8_t *)to + i, to_int(whole_level(value)));
        else if (past_caches) stream((float *)to + i, value * scale + shift);
        else store_typed(to, i, value * scale + shift, type);
    }
    if (i == n) return;
    vf value = load(from + i);
    if (type == UINT8) {
        uint8_t last[LANES];
        store_bytes(last, to_int(whole_level(value)));
        memcpy(to + i, last, (size_t)(n - i));
    } else {
        store_some(to, i, value * scale + shift, type, n - i);
    }
}

static inline __attribute__((always_inline)) void put_pixels(const struct result *result, int type, char *to,
                                                             segment v, long n) {
    long size = type == UINT8 ? 1 : size_of(type);
    for (long i = 0; i < n; i += LANES) {
        char three[3][4 * LANES], pixels[12 * LANES];
        if (type == UINT8) {
            vi level[3];
            for (int c = 0; c < 3; c++) level[c] = to_int(whole_level(load(v[c] + i)));
            if (n - i >= LANES) store_rgb((uint8_t *)to + 3 * i, level[0], level[1], level[2]);
            else store_rgb((uint8_t *)pixels, level[0], level[1], level[2]);
        } else {
            for (int c = 0; c < 3; c++) {
                vf value = load(v[c] + i) * result->scale[c] + result->shift[c];
                store_typed(three[c], 0, value, type);
            }
            char *into = n - i >= LANES ? to + 3 * i * size : pixels;
            for (long lane = 0; lane < LANES; lane++)
                for (int c = 0; c < 3; c++) memcpy(into + (3 * lane + c) * size, three[c] + lane * size, (size_t)size);
        }
        if (n - i < LANES) memcpy(to + 3 * i * size, pixels, (size_t)(3 * (n - i) * size));
    }
}

static void put(const struct result *result, long sample, long pixel, segment v, long n) {
    long size = result->type == UINT8 ? 1 : size_of(result->type);
    char *to = result->to + (sample * result->sample + pixel * result->pixel) * size;
    if (result->pixel == 3) {
        if (result->type == FLOAT32) put_pixels(result, FLOAT32, to, v, n);
        else if (result->type == BFLOAT16) put_pixels(result, BFLOAT16, to, v, n);
        else if (result->type == FLOAT16) put_pixels(result, FLOAT16, to, v, n);
        else put_pixels(result, UINT8, to, v, n);
        return;
    }
    for (int c = 0; c < 3; c++, to += result->plane * size) {
        if (result->type == FLOAT32) put_plane(result, FLOAT32, to, v[c], c, n);
        else if (result->type == BFLOAT16) put_plane(result, BFLOAT16, to, v[c], c, n);
        else if (result->type == FLOAT16) put_plane(result, FLOAT16, to, v[c], c, n);
        else put_plane(result, UINT8, to, v[c], c, n);
    }
}

/* ---- the pass ---- */

/* A segment of a map by whole pixels without a quarter turn is one of the source, perhaps the other way round. Returns
 * whether it was, and lay inside. */
static int copy_whole(const struct view *source, const float *matrix, long y, long x, long n, segment v) {
    int mirrored = matrix[4] < 0;
    long row = (long)(matrix[0] * (float)y + matrix[2]), left = (long)matrix[5] + (mirrored ? 1 - x - n : x);
    if (matrix[0] == 0 || row < 0 || row >= source->height || left < 0 || left + n > source->width) return 0;
    if (!mirrored) {
        copy_light(source, row, left, n, v);
        return 1;
    }
    segment other;
    copy_light(source, row, left, n, other);
    for (int c = 0; c < 3; c++) {
        for (long i = 0; i < n; i++) v[c][i] = other[c][n - 1 - i];
        for (long i = n; i < n + LANES; i++) v[c][i] = 0;
    }
    return 1;
}

static void change(const struct task *task, long sample, const float *block, long y, long x, long n, segment v) {
    if (task->stages & TABLE) look_up(task->table + sample * 768, v, n);
    if (task->stages & STAIN) stain(task, block + STAIN_AT, v, n);
    if (task->stages & COLOUR) colour(block + COLOUR_AT, v, n);
    if (task->stages & GAMMA && block[GAMMA_AT] != 1) raise(block[GAMMA_AT], v, n);
    if (task->stages & (GAUSSIAN_NOISE | LAPLACE_NOISE | POISSON_NOISE)) noise(task, sample, block, y, x, n, v);
    if (task->stages & SALT_PIXELS) strew(task, sample, SALT, block[SALT_AT], y, x, n, v);
    if (task->stages & PEPPER_PIXELS) strew(task, sample, PEPPER, block[PEPPER_AT], y, x, n, v);
    if (task->stages & DROPOUT_CELLS) drop(task, sample, block, y, x, n, v);
    if (task->stages & CUTOUTS) cut_out(task, sample, block + FILL_AT, y, x, n, v);
}

static int has_blur(const struct task *task, const float *block) {
    return (task->stages & BLUR && block[BLUR_AT] > 0) || (task->stages & SHARPEN && block[SHARPEN_AT] > 0);
}

static void augment_band(void *context, long i) {
    const struct task *task = context;
    long sample = task->one >= 0 ? task->one : i / task->bands, first = i % task->bands * task->rows;
    const float *block = task->block + sample * BLOCK_FLOATS;
    if (task->one < 0 && has_blur(task, block)) return;
    struct view source = task->source;
    source.base = task->first_source + sample * task->stride;
    struct map map = task->map;
    map.matrix = block;
    map.field = task->field ? task->field + sample * 2 * map.nodes_down * map.nodes_right : 0;
    int whole = task->supersample == 1 && is_whole(&map), identity = whole && is_identity(&map, &source);
    long into = task->one >= 0 ? 0 : sample, last = first + task->rows, width = task->width;
    segment v;
    if (last > task->height) last = task->height;
    long begin = first * width, end = last * width; /* as one long row, where that makes no difference */
    if (!identity || !is_dense(&source) || task->stages & IN_PLACE) end = begin;
    for (long n; begin < end; begin += n) {
        n = end - begin < SEGMENT ? end - begin : SEGMENT;
        copy_light(&source, 0, begin, n, v);
        change(task, sample, block, 0, 0, n, v);
        put(&task->result, into, begin, v, n);
    }
    if (end == last * width) return finish_streams();
    for (long y = first; y < last; y++)
        for (long x = 0, n; x < width; x += n) {
            n = width - x < SEGMENT ? width - x : SEGMENT;
            if (!whole || !copy_whole(&source, block, y, x, n, v))
                sample_light(&source, &map, block + FILL_AT, whole ? NEAREST : task->interpolation, task->supersample,
                              y, x, n, v);
            change(task, sample, block, y, x, n, v);
            put(&task->result, into, y * width + x, v, n);
        }
    finish_streams();
}

/* ---- blur ---- */

struct blur {
    const struct task *task;
    const float *light; /* (3, height, width) of one sample */
    float weights[MOST_REACH + 1], share;
    int reach;
    struct result result;
};

/* one row of light, blurred down the columns and then along the row */
static void blur_row(const struct blur *blur, const float *plane, long y, float *padded, float *row) {
    long height = blur->task->height, width = blur->task->width, reach = blur->reach;
    float *middle = padded + MOST_REACH;
    for (long x = 0; x < width; x += LANES) {
        vf total = load(plane + y * width + x) * blur->weights[0];
        for (long k = 1; k <= reach; k++) {
            const float *above = plane + fold_one(y - k, height) * width, *below = plane + fold_one(y + k, height) * width;
            total += (load(above + x) + load(below + x)) * blur->weights[k];
        }
        store(middle + x, total);
    }
    for (long k = 1; k <= reach; k++) {
        padded[MOST_REACH - k] = middle[fold_one(-k, width)];
        row[k - 1] = middle[fold_one(width - 1 + k, width)];
    }
    memcpy(middle + width, row, (size_t)reach * sizeof(float));
    for (long x = 0; x < width; x += LANES) {
        vf total = load(middle + x) * blur->weights[0];
        for (long k = 1; k <= reach; k++) total += (load(middle + x - k) + load(middle + x + k)) * blur->weights[k];
        store(row + x, total);
    }
}

static void blur_band(void *context, long i) {
    const struct blur *blur = context;
    const struct task *task = blur->task;
    long width = task->width, first = i * task->rows, last = first + task->rows, room = width + 2 * MOST_REACH + 2 * LANES;
    float *rows = malloc(sizeof(float) * (size_t)room * 4);
    if (last > task->height) last = task->height;
    for (long y = first; y < last; y++) {
        for (int c = 0; c < 3; c++) {
            const float *plane = blur->light + c * task->height * width;
            float *row = rows + (c + 1) * room;
            blur_row(blur, plane, y, rows, row);
            if (blur->share <= 0) continue;
            for (long x = 0; x < width; x += LANES) {
                vf light = load(plane + y * width + x);
                store(row + x, clamp(light + blur->share * (light - load(row + x)), 0, 1));
            }
        }
        for (long x = 0, n; x < width; x += n) {
            segment v;
            n = width - x < SEGMENT ? width - x : SEGMENT;
            for (int c = 0; c < 3; c++) memcpy(v[c], rows + (c + 1) * room + x, (size_t)n * sizeof(float));
            put(&blur->result, task->one, y * width + x, v, n);
        }
    }
    free(rows);
    finish_streams();
}

static void blur_sample(struct task *task, long sample, float *light, int threads) {
    const float *block = task->block + sample * BLOCK_FLOATS;
    struct blur blur = {.task = task, .light = light, .result = task->result};
    float sigma = task->stages & BLUR ? block[BLUR_AT] : 0, total = 1;
    blur.share = task->stages & SHARPEN ? block[SHARPEN_AT] : 0;
    if (sigma <= 0) sigma = 1;
    blur.reach = (int)ceilf(3 * sigma);
    blur.weights[0] = 1;
    for (int k = 1; k <= blur.reach; k++) {
        blur.weights[k] = expf(-0.5f * (float)(k * k) / (sigma * sigma));
        total += 2 * blur.weights[k];
    }
    for (int k = 0; k <= blur.reach; k++) blur.weights[k] /= total;
    struct result plain = {.to = (char *)light, .plane = task->height * task->width, .pixel = 1, .type = FLOAT32,
                           .scale = {1, 1, 1}};
    task->one = sample;
    task->result = plain;
    dhlab_parallel(task->bands, threads, augment_band, task);
    dhlab_parallel(task->bands, threads, blur_band, &blur);
    task->result = blur.result;
    task->one = -1;
}

/* source: bytes of (samples, 3, height, width) with strides in bytes; block, keys, field, table, cutouts and poisson as a
 * plan holds them; ending: three factors and three offsets; light: memory for one sample of float32, where there is blur.
 * sizes: samples, source height and width, strides of sample, channel, row and column, result height and width, nodes of
 * the field down and right, boxes of a sample. */
EXPORT void NAME(augment)(const uint8_t *source, void *to, const float *block, const int64_t *keys, const float *field,
                          const float *table, const int32_t *cutouts, const float *poisson, const float *ending,
                          float *light, const int64_t *sizes, int stages, int interpolation, int border,
                          int supersample, int noise_per_channel, int dropout_per_channel, int around, float offset,
                          float least, int type, int planar, int threads) {
    long height = sizes[7], width = sizes[8], pixels = height * width;
    struct task task = {
        .source = view_of(sizes[1], sizes[2], sizes[4], sizes[5], sizes[6], border),
        .map = {.nodes_down = sizes[9], .nodes_right = sizes[10], .height = height, .width = width},
        .stride = sizes[3], .first_source = source, .block = block, .table = table, .poisson = poisson, .field = field,
        .keys = keys, .cutouts = cutouts, .height = height, .width = width, .boxes = sizes[11], .one = -1,
        .stages = stages, .interpolation = interpolation, .supersample = supersample,
        .noise_per_channel = noise_per_channel, .dropout_per_channel = dropout_per_channel, .around = around,
        .offset = offset, .least = least,
        .result = {.to = to, .sample = 3 * pixels, .plane = planar ? pixels : 1, .pixel = planar ? 1 : 3, .type = type}};
    memcpy(task.result.scale, ending, 3 * sizeof(float));
    memcpy(task.result.shift, ending + 3, 3 * sizeof(float));
    task.rows = BAND / width > 1 ? BAND / width : 1;
    task.bands = (height + task.rows - 1) / task.rows;
    dhlab_parallel(sizes[0] * task.bands, threads, augment_band, &task);
    for (long sample = 0; sample < sizes[0]; sample++)
        if (has_blur(&task, block + sample * BLOCK_FLOATS)) blur_sample(&task, sample, light, threads);
}
