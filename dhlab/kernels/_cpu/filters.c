/* Gaussian derivatives of planes and what learning reads from them: columns, then rows, then eigenvalues, row by row.
 *
 * A task is a tile of one plane. Its last source rows and its last rows of gradient products stay in two rings, so the
 * image is read once and only features are written. What a row holds does not depend on how tiles and bands are cut. */
#include "floats.h"
#include "parallel.h"
#include <stdatomic.h>

#define MOST_RADIUS 1024
#define TILE 1024     /* columns: the rings of a standard deviation of 8 pixels fit a second-level cache of 1 MiB */
#define LEAST_BAND 64 /* rows: fewer, and most of the work is getting started */
enum { GAUSSIAN, GRADIENT, LAPLACIAN, STRUCTURE, HESSIAN, FEATURES };

struct sizes { /* as Python packs them; strides count elements */
    long samples, planes, height, width;
    long sample, plane, row, column;
    long to_sample, to_plane, to_feature, to_row, to_column;
    long place[FEATURES]; /* which feature of a scale comes first of its kind; -1: not wanted */
    long scales, per_scale, is_float, type, threads;
};

struct reach { /* of the weights of a scale, one way: of the derivatives, and of what smooths the structure tensor */
    long radius, outer;
};

struct bank {
    struct sizes s;
    const void *images;
    const struct reach *reaches;
    const float *inner, *outer; /* of all scales: (radius + 1, 3), value and both derivatives; (outer + 1) */
    char *out;
    float *scratch;
    long scratch_size, tile, tiles, band, bands;
    int seconds, structure; /* whether second derivatives are wanted, and the structure tensor */
    atomic_long next;
};

struct work { /* a scale of a task; rows begin `pad` columns to the left of the tile */
    const struct bank *bank;
    const char *image;
    char *out;
    const float *inner, *outer;
    long radius, reach, x0, x1, y0, y1, pad, width;
    float *source, *derived[3], *products[3], *smoothed[3];
};

static inline long least(long a, long b) { return a < b ? a : b; }
static inline long most(long a, long b) { return a > b ? a : b; }
static inline long whole(long n) { return (n + LANES - 1) / LANES * LANES; }
static inline long ring(long radius, long height) { return least(2 * radius + 1, height); }

/* n values of one feature at columns x and following of an output row */
static inline void emit(const struct work *work, char *to, long feature, long x, long n, vf value) {
    const struct sizes *s = &work->bank->s;
    int type = (int)s->type, size = (int)size_of(type);
    to += size * (feature * s->to_feature + x * s->to_column);
    if (s->to_column == 1 && n == LANES) {
        store_typed(to, 0, value, type);
        return;
    }
    char lanes[4 * LANES];
    store_typed(lanes, 0, value, type);
    for (long i = 0; i < n; i++) {
        char *pixel = to + size * i * s->to_column;
        if (size == 4) memcpy(pixel, lanes + 4 * i, 4);
        else memcpy(pixel, lanes + 2 * i, 2);
    }
}

/* one row of the image as floats, columns `from` to `to` */
static void load_row(const struct work *work, long y, long from, long to, float *row) {
    const struct sizes *s = &work->bank->s;
    long at = y * s->row + from * s->column, n = to - from, i = 0;
    row += from - work->x0 + work->pad;
    if (s->is_float) {
        const float *values = (const float *)work->image + at;
        for (; i < n; i++) row[i] = values[i * s->column];
    } else {
        const uint8_t *values = (const uint8_t *)work->image + at;
        if (s->column == 1)
            for (; i + LANES <= n; i += LANES) store(row + i, load_bytes(values + i));
        for (; i < n; i++) row[i] = values[i * s->column];
    }
}

/* what lies beyond the image is what lies on its border */
static void extend(const struct work *work, float *row, long from, long to) {
    long shift = work->pad - work->x0, width = work->bank->s.width;
    for (long x = from; x < 0; x++) row[x + shift] = row[shift];
    for (long x = width; x < to; x++) row[x + shift] = row[width - 1 + shift];
}

/* value, first and, if wanted, second derivative along the columns */
static inline __attribute__((always_inline)) void along_columns(float *const *rows, const float *weights, long radius,
                                                                 long begin, long end, float *const *to, int second) {
    for (long x = begin; x < end; x += 2 * LANES) {
        vf value[2], slope[2], bend[2];
        for (int u = 0; u < 2; u++) {
            vf here = load(rows[radius] + x + u * LANES);
            value[u] = here * weights[0];
            slope[u] = splat(0);
            bend[u] = here * weights[2];
        }
        for (long k = 1; k <= radius; k++) {
            const float *before = rows[radius - k] + x, *after = rows[radius + k] + x, *w = weights + 3 * k;
            for (int u = 0; u < 2; u++) {
                vf a = load(after + u * LANES), b = load(before + u * LANES), both = a + b;
                value[u] += both * w[0];
                slope[u] += (a - b) * w[1];
                if (second) bend[u] += both * w[2];
            }
        }
        for (int u = 0; u < 2; u++) {
            store(to[0] + x + u * LANES, value[u]);
            store(to[1] + x + u * LANES, slope[u]);
            if (second) store(to[2] + x + u * LANES, bend[u]);
        }
    }
}

struct taps { /* all derivatives up to the second order */
    vf g, x, y, xx, xy, yy;
};

static inline __attribute__((always_inline)) void along_row(float *const *rows, const float *weights, long radius,
                                                             long at, struct taps *to, int second) {
    for (int u = 0; u < 2; u++) {
        vf g = load(rows[0] + at + u * LANES), y = load(rows[1] + at + u * LANES);
        to[u] = (struct taps){g * weights[0], splat(0), y * weights[0], g * weights[2], splat(0), splat(0)};
        if (second) to[u].yy = load(rows[2] + at + u * LANES) * weights[0];
    }
    for (long k = 1; k <= radius; k++) {
        const float *w = weights + 3 * k;
        for (int u = 0; u < 2; u++) {
            long here = at + u * LANES;
            vf a = load(rows[0] + here + k), b = load(rows[0] + here - k), both = a + b;
            to[u].g += both * w[0];
            to[u].x += (a - b) * w[1];
            if (second) to[u].xx += both * w[2];
            a = load(rows[1] + here + k), b = load(rows[1] + here - k);
            to[u].y += (a + b) * w[0];
            if (second) to[u].xy += (a - b) * w[1];
            if (second) to[u].yy += (load(rows[2] + here + k) + load(rows[2] + here - k)) * w[0];
        }
    }
}

/* of the symmetric matrix (xx, xy; xy, yy) */
static inline void eigenvalues(vf xx, vf xy, vf yy, vf *larger, vf *smaller) {
    vf middle = (xx + yy) * 0.5f, half = (xx - yy) * 0.5f, spread = root(half * half + xy * xy);
    *larger = middle + spread;
    *smaller = middle - spread;
}

static inline __attribute__((always_inline)) void features(const struct work *work, char *to, long y,
                                                            float *const *products, long begin, long end, int second) {
    const struct bank *bank = work->bank;
    const long *place = bank->s.place, shift = work->pad - work->x0;
    int inside = y >= work->y0 && y < work->y1;
    for (long x = begin; x < end; x += 2 * LANES) {
        struct taps found[2];
        along_row(work->derived, work->inner, work->radius, x + shift, found, second);
        for (int u = 0; u < 2; u++) {
            struct taps d = found[u];
            long at = x + u * LANES;
            if (products) {
                store(products[0] + at + shift, d.x * d.x);
                store(products[1] + at + shift, d.x * d.y);
                store(products[2] + at + shift, d.y * d.y);
            }
            long n = least(work->x1 - at, LANES);
            if (!inside || at < work->x0 || n <= 0) continue;
            if (place[GAUSSIAN] >= 0) emit(work, to, place[GAUSSIAN], at, n, d.g);
            if (place[GRADIENT] >= 0) emit(work, to, place[GRADIENT], at, n, root(d.x * d.x + d.y * d.y));
            if (!second) continue;
            if (place[LAPLACIAN] >= 0) emit(work, to, place[LAPLACIAN], at, n, d.xx + d.yy);
            if (place[HESSIAN] >= 0) {
                vf larger, smaller;
                eigenvalues(d.xx, d.xy, d.yy, &larger, &smaller);
                emit(work, to, place[HESSIAN], at, n, larger);
                emit(work, to, place[HESSIAN] + 1, at, n, smaller);
            }
        }
    }
}

/* the products of gradients around row y, smoothed, and their eigenvalues */
static void structure(const struct work *work, char *to, long y) {
    const struct bank *bank = work->bank;
    long reach = work->reach, height = bank->s.height, size = ring(reach, height), shift = work->pad - work->x0;
    long from = most(0, work->x0 - reach), until = least(bank->s.width, work->x1 + reach);
    long place = bank->s.place[STRUCTURE];
    for (int i = 0; i < 3; i++) {
        const float *rows[2 * MOST_RADIUS + 1];
        for (long k = -reach; k <= reach; k++)
            rows[reach + k] = work->products[i] + most(0, least(height - 1, y + k)) % size * work->width + shift;
        for (long x = work->x0 - whole(work->x0 - from); x < until; x += 2 * LANES) {
            vf total[2];
            for (int u = 0; u < 2; u++) total[u] = load(rows[reach] + x + u * LANES) * work->outer[0];
            for (long k = 1; k <= reach; k++)
                for (int u = 0; u < 2; u++)
                    total[u] += (load(rows[reach + k] + x + u * LANES) + load(rows[reach - k] + x + u * LANES)) *
                                work->outer[k];
            for (int u = 0; u < 2; u++) store(work->smoothed[i] + x + shift + u * LANES, total[u]);
        }
        extend(work, work->smoothed[i], work->x0 - reach, work->x1 + reach);
    }
    for (long x = work->x0; x < work->x1; x += LANES) {
        vf total[3], larger, smaller;
        for (int i = 0; i < 3; i++) total[i] = load(work->smoothed[i] + x + shift) * work->outer[0];
        for (long k = 1; k <= reach; k++)
            for (int i = 0; i < 3; i++) {
                const float *here = work->smoothed[i] + x + shift;
                total[i] += (load(here + k) + load(here - k)) * work->outer[k];
            }
        eigenvalues(total[0], total[1], total[2], &larger, &smaller);
        long n = least(work->x1 - x, LANES);
        emit(work, to, place, x, n, larger);
        emit(work, to, place + 1, x, n, max(smaller, splat(0))); /* below 0 only by rounding */
    }
}

static void run(const struct work *work) {
    const struct bank *bank = work->bank;
    const struct sizes *s = &bank->s;
    long radius = work->radius, reach = bank->structure ? work->reach : 0, shift = work->pad - work->x0;
    long size = ring(radius, s->height), kept = ring(reach, s->height), bytes = size_of((int)s->type);
    long from = most(0, work->x0 - reach), until = least(s->width, work->x1 + reach);
    long first = most(0, work->y0 - reach), last = least(s->height, work->y1 + reach), done = work->y0;
    long loaded = most(0, first - radius);
    for (long y = first; y < last; y++) {
        float *rows[2 * MOST_RADIUS + 1];
        long left = most(0, from - radius), right = least(s->width, until + radius);
        for (; loaded <= least(s->height - 1, y + radius); loaded++)
            load_row(work, loaded, left, right, work->source + loaded % size * work->width);
        for (long k = -radius; k <= radius; k++)
            rows[radius + k] = work->source + most(0, least(s->height - 1, y + k)) % size * work->width + shift;
        int second = bank->seconds && y >= work->y0 && y < work->y1;
        float *to[3], *products[3];
        for (int i = 0; i < 3; i++) {
            to[i] = work->derived[i] + shift;
            products[i] = work->products[i] + y % kept * work->width;
        }
        long begin = work->x0 - whole(work->x0 - left);
        if (second) along_columns(rows, work->inner, radius, begin, right, to, 1);
        else along_columns(rows, work->inner, radius, begin, right, to, 0);
        for (int i = 0; i < 2 + second; i++) extend(work, work->derived[i], from - radius, until + radius);
        begin = work->x0 - whole(work->x0 - from);
        char *row = work->out + bytes * y * s->to_row;
        if (second) features(work, row, y, bank->structure ? products : 0, begin, until, 1);
        else features(work, row, y, bank->structure ? products : 0, begin, until, 0);
        for (; bank->structure && done < work->y1 && least(s->height - 1, done + reach) <= y; done++)
            structure(work, work->out + bytes * done * s->to_row, done);
    }
}

/* how the scratch of a worker is laid out for a scale; returns its length */
static long lay_out(struct work *work, const struct reach *reach, float *scratch) {
    const struct bank *bank = work->bank;
    long height = bank->s.height, inner = ring(reach->radius, height), outer = ring(reach->outer, height);
    work->radius = reach->radius, work->reach = reach->outer;
    work->pad = whole(work->radius) + whole(work->reach);
    work->width = bank->tile + 2 * work->pad + 2 * LANES;
    work->source = scratch;
    for (int i = 0; i < 3; i++) {
        work->derived[i] = scratch + work->width * (inner + i);
        work->smoothed[i] = scratch + work->width * (inner + 3 + i);
        work->products[i] = scratch + work->width * (inner + 6 + i * outer);
    }
    return work->width * (inner + 6 + 3 * outer);
}

static void worker(void *context, long index) {
    struct bank *bank = context;
    const struct sizes *s = &bank->s;
    long per_plane = bank->tiles * bank->bands, tasks = s->samples * s->planes * per_plane;
    long size = size_of((int)s->type);
    float *scratch = bank->scratch + index * bank->scratch_size;
    memset(scratch, 0, (size_t)bank->scratch_size * sizeof(float)); /* lanes beyond a row are computed, and unused */
    struct work work = {.bank = bank};
    for (long task; (task = atomic_fetch_add(&bank->next, 1)) < tasks;) {
        long sample = task / per_plane / s->planes, plane = task / per_plane % s->planes;
        work.x0 = task % bank->tiles * bank->tile;
        work.y0 = task / bank->tiles % bank->bands * bank->band;
        work.x1 = least(s->width, work.x0 + bank->tile);
        work.y1 = least(s->height, work.y0 + bank->band);
        work.image = (const char *)bank->images + (sample * s->sample + plane * s->plane) * (s->is_float ? 4 : 1);
        work.out = bank->out + (sample * s->to_sample + plane * s->to_plane) * size;
        work.inner = bank->inner, work.outer = bank->outer;
        for (long i = 0; i < s->scales; i++) {
            lay_out(&work, &bank->reaches[i], scratch);
            run(&work);
            work.inner += 3 * (work.radius + 1), work.outer += work.reach + 1;
            work.out += s->per_scale * s->to_feature * size;
        }
    }
}

static void cut(struct bank *bank) {
    const struct sizes *s = &bank->s;
    bank->tiles = (s->width + TILE - 1) / TILE;
    bank->tile = whole((s->width + bank->tiles - 1) / bank->tiles);
    bank->tiles = (s->width + bank->tile - 1) / bank->tile;
    long tasks = s->samples * s->planes * bank->tiles, most_bands = most(1, s->height / LEAST_BAND);
    /* features next to one another share cache lines, which should not have left before the last scale comes */
    bank->bands = s->to_column > 1 ? most_bands : s->threads > 1 ? (4 * s->threads + tasks - 1) / tasks : 1;
    bank->bands = least(bank->bands, most_bands);
    bank->band = (s->height + bank->bands - 1) / bank->bands;
    bank->bands = (s->height + bank->band - 1) / bank->band;
    struct work work = {.bank = bank};
    for (long i = 0; i < s->scales; i++)
        bank->scratch_size = most(bank->scratch_size, lay_out(&work, &bank->reaches[i], 0));
}

/* How many floats `filter_bank` needs per thread. */
EXPORT long NAME(filter_bank_scratch)(const struct sizes *sizes, const struct reach *reaches) {
    struct bank bank = {.s = *sizes, .reaches = reaches};
    cut(&bank);
    return bank.scratch_size;
}

/* images: bytes or floats, any strides; scratch: threads times what filter_bank_scratch says. */
EXPORT void NAME(filter_bank)(const void *images, const float *inner, const float *outer, void *out, float *scratch,
                              const struct sizes *sizes, const struct reach *reaches) {
    struct bank bank = {.s = *sizes, .images = images, .reaches = reaches, .inner = inner, .outer = outer, .out = out,
                        .scratch = scratch};
    cut(&bank);
    bank.seconds = sizes->place[LAPLACIAN] >= 0 || sizes->place[HESSIAN] >= 0;
    bank.structure = sizes->place[STRUCTURE] >= 0;
    dhlab_parallel(sizes->threads, (int)sizes->threads, worker, &bank);
}
