/* Where an output pixel lies in the source, and what is there: see kernels/augment.py, whose positions these are, bit for
 * bit. */
#ifndef DHLAB_SAMPLING_H
#define DHLAB_SAMPLING_H

#include "plan.h"
#include "simd.h"
#include <math.h>
#include <stdlib.h>

#define SEGMENT 256 /* pixels of a row that are worked on together, a multiple of LANES */
#define FARTHEST 4194304.0f
enum { NEAREST, BILINEAR, BICUBIC };
enum { CONSTANT, REPLICATE, REFLECT, REFLECT101, WRAP };

struct view { /* a picture of three channels of bytes */
    const uint8_t *base;
    long height, width, channel, row, column; /* strides in bytes */
    int border, packed; /* packed: a pixel's bytes lie next to one another, and offsets to them fit 32 bits */
    int extent;         /* bytes of a packed picture from its first to its last */
};

struct map {
    const float *matrix, *field;
    long nodes_down, nodes_right, height, width; /* height and width of the result */
};

static inline struct view view_of(long height, long width, long channel, long row, long column, int border) {
    long extent = (height - 1) * row + (width - 1) * column + 3;
    int packed = channel == 1 && column == 3 && extent < INT32_MAX - 64;
    return (struct view){.height = height, .width = width, .channel = channel, .row = row, .column = column,
                         .border = border, .packed = packed, .extent = packed ? (int)extent : 0};
}

static inline int is_dense(const struct view *view) {
    return view->row == view->width * view->column && (view->channel == 1 ? view->column == 3 : view->column == 1);
}

static inline int is_whole(const struct map *map) {
    const float *m = map->matrix;
    int upright = fabsf(m[0]) == 1 && m[1] == 0 && m[3] == 0 && fabsf(m[4]) == 1;
    int turned = m[0] == 0 && fabsf(m[1]) == 1 && fabsf(m[3]) == 1 && m[4] == 0;
    return !map->field && (upright || turned) && m[2] == floorf(m[2]) && m[5] == floorf(m[5]) && m[6] == 0 &&
           m[7] == 0 && m[8] == 1;
}

static inline int is_identity(const struct map *map, const struct view *view) {
    const float *m = map->matrix;
    return is_whole(map) && m[0] == 1 && m[4] == 1 && m[2] == 0 && m[5] == 0 && view->height == map->height &&
           view->width == map->width;
}

/* ---- positions ---- */

static inline vf field_step(long nodes, long n) { return splat((float)((double)(nodes - 1) / (double)(n > 1 ? n - 1 : 1))); }

struct between { vi near; vf share; }; /* the node before, and how far behind it */

static inline struct between between_nodes(vf place, vf step, long nodes) {
    vf at = clamp(place * step, 0, (float)(nodes - 1)), low = min(floor_of(at), splat((float)(nodes - 2)));
    return (struct between){to_int(low), at - low};
}

static inline vf mix_nodes(vf a, vf b, vf share) { return a + rounded((b - a) * share); }

/* n positions of row y from column x on, each output pixel moved by (dy, dx) */
static inline void find_positions(const struct map *map, long y, long x, long n, float dy, float dx, float *down,
                           float *right) {
    const float *m = map->matrix;
    vf row = splat((float)y) + dy, begin[3];
    struct between rows = {{0}, {0}};
    vf step = splat(0);
    int projective = m[6] != 0 || m[7] != 0 || m[8] != 1;
    for (int k = 0; k < 3; k++) begin[k] = rounded(row * m[3 * k]) + m[3 * k + 2];
    if (map->field) {
        rows = between_nodes(row, field_step(map->nodes_down, map->height), map->nodes_down);
        step = field_step(map->nodes_right, map->width);
    }
    for (long i = 0; i < n; i += LANES) {
        vf column = to_float(steps() + (int)(x + i)) + dx, position[3];
        for (int k = 0; k < 3; k++) position[k] = rounded(column * m[3 * k + 1]) + begin[k];
        if (projective) {
            position[0] = position[0] / position[2];
            position[1] = position[1] / position[2];
        }
        if (map->field) {
            struct between columns = between_nodes(column, step, map->nodes_right);
            vi upper = (rows.near * (int)map->nodes_right + columns.near) * 4, lower = upper + 4 * (int)map->nodes_right;
            for (int k = 0; k < 2; k++) {
                const float *nodes = map->field + k * map->nodes_down * map->nodes_right;
                vf above = mix_nodes(floats(gather(nodes, upper)), floats(gather(nodes, upper + 4)), columns.share);
                vf below = mix_nodes(floats(gather(nodes, lower)), floats(gather(nodes, lower + 4)), columns.share);
                position[k] += mix_nodes(above, below, rows.share);
            }
        }
        store(down + i, min(max(position[0], splat(-FARTHEST)), splat(FARTHEST)));
        store(right + i, min(max(position[1], splat(-FARTHEST)), splat(FARTHEST)));
    }
}

/* ---- borders ---- */

static inline vi modulo(vi index, int period) {
    vi rest = index - to_int(floor_of(to_float(index) * (1.0f / (float)period))) * period;
    rest = pick_int(lt_int(rest, splat_int(0)), rest + period, rest);
    return pick_int(lt_int(rest, splat_int(period)), rest, rest - period);
}

/* indices of any size to 0..length-1 */
static inline vi fold(vi index, int length, int border) {
    if (border == WRAP) return modulo(index, length);
    if (border == REFLECT) {
        index = modulo(index, 2 * length);
        return min_int(index, 2 * length - 1 - index);
    }
    if (border == REFLECT101 && length > 1) {
        index = modulo(index, 2 * length - 2);
        return min_int(index, 2 * length - 2 - index);
    }
    return max_int(min_int(index, splat_int(length - 1)), splat_int(0));
}

static inline vm is_inside(vi row, vi column, const struct view *view) {
    vi none = splat_int(-1);
    return both(both(lt_int(none, row), lt_int(row, splat_int((int)view->height))),
                both(lt_int(none, column), lt_int(column, splat_int((int)view->width))));
}

/* ---- pixels ---- */

/* The steps below are loops of their own over a segment: a processor runs many short chains beside one another, but only
 * few long ones. */
struct places {
    int32_t row[SEGMENT + LANES], column[SEGMENT + LANES]; /* of the pixel above and to the left, any size */
    int32_t offset[SEGMENT + LANES];                       /* of that pixel in a packed picture, or 0 */
    float down[SEGMENT + LANES], right[SEGMENT + LANES];   /* how far behind it */
    uint32_t inside[SEGMENT / LANES + 1], rim[SEGMENT / LANES + 1]; /* lanes, where a vector is INSIDE or MIXED */
    uint8_t kind[SEGMENT / LANES + 1];                     /* of each vector */
};
/* Inside: in a packed picture, with eight bytes to read at every pixel. Mixed: some lanes are, and beyond the border all is
 * of one colour, which a lane on the rim has a share of. Beyond: anything else. */
enum { INSIDE, MIXED, BEYOND, OUTSIDE };

/* red, green and blue of pixels inside in the lower bytes of words */
static inline void fetch(const struct view *view, vi row, vi column, int32_t *words) {
    int32_t rows[LANES], columns[LANES];
    if (view->packed && view->extent >= 4) {
        vi offset = row * (int)view->row + column * 3, begin = min_int(offset, splat_int(view->extent - 4));
        store_int(rows, begin); /* four bytes that end with the last pixel where that is asked for */
        store_int(columns, (offset - begin) * 8);
        for (int lane = 0; lane < LANES; lane++) {
            uint32_t word;
            memcpy(&word, view->base + rows[lane], sizeof word);
            words[lane] = (int32_t)(word >> columns[lane]);
        }
        return;
    }
    store_int(rows, row);
    store_int(columns, column);
    for (int lane = 0; lane < LANES; lane++) {
        const uint8_t *pixel = view->base + rows[lane] * view->row + columns[lane] * view->column;
        words[lane] = pixel[0] | pixel[view->channel] << 8 | pixel[2 * view->channel] << 16;
    }
}

static inline vf channel_of(vi word, int c) { return to_float((vi)((vu)word >> (8 * c)) & 255); }

/* grey levels at any row and column, and at the next of both */
static inline void fetch_beyond(const struct view *view, vi row, vi column, int n, const float *fill, vf v[4][3]) {
    int32_t words[4][LANES], height = (int)view->height, width = (int)view->width;
    for (int k = 0; k < n; k++)
        fetch(view, fold(row + k / 2, height, view->border), fold(column + k % 2, width, view->border), words[k]);
    for (int k = 0; k < n; k++) {
        vm inside = view->border == CONSTANT ? is_inside(row + k / 2, column + k % 2, view) : first(LANES);
        for (int c = 0; c < 3; c++) v[k][c] = pick(inside, channel_of(load_int(words[k]), c), splat(fill[c]));
    }
}

static inline vf mix(vf a, vf b, vf share) { return a + (b - a) * share; }

/* Positions to rows, columns and shares; `before` and `after`: how many pixels around that one are looked at. */
static inline void find_places(const struct view *view, struct places *at, long n, int before, int after, float half) {
    vi least = splat_int(before - 1), below = splat_int((int)view->height - after);
    vi beside = splat_int((int)view->width - after), none = splat_int(-1 - after);
    vi height = splat_int((int)view->height + before), width = splat_int((int)view->width + before);
    long farthest = view->extent - 7 - after * view->row - (after > 1 ? 3 : 0); /* see copy_pairs */
    vi end = splat_int(view->packed && farthest > 0 ? (int)farthest : 0);
    for (long i = 0, vector = 0; i < n; i += LANES, vector++) {
        vf down = load(at->down + i) + half, right = load(at->right + i) + half;
        vf low = floor_of(down), left = floor_of(right);
        vi row = to_int(low), column = to_int(left), offset = row * (int)view->row + column * 3;
        vm inside = both(both(lt_int(least, row), lt_int(row, below)), both(lt_int(least, column), lt_int(column, beside)));
        inside = both(inside, lt_int(offset, end));
        store_int(at->row + i, row);
        store_int(at->column + i, column);
        store_int(at->offset + i, pick_int(inside, offset, splat_int(0)));
        store(at->down + i, down - low);
        store(at->right + i, right - left);
        at->kind[vector] = INSIDE;
        at->inside[vector] = lanes_of(inside);
        at->rim[vector] = 0;
        if (at->inside[vector] == ALL_LANES) continue;
        vm touches = both(both(lt_int(none, row), lt_int(row, height)), both(lt_int(none, column), lt_int(column, width)));
        at->rim[vector] = lanes_of(touches) & ~at->inside[vector];
        at->kind[vector] = view->border != CONSTANT ? BEYOND : !any(touches) ? OUTSIDE : any(inside) ? MIXED : BEYOND;
    }
}

/* The level of one channel in one lane on the rim; levels beyond the border are those of `fill`. */
static inline float level_on_rim(const struct view *view, const struct places *at, long i, int c, float fill) {
    float level[2];
    for (int j = 0; j < 2; j++) {
        float pair[2];
        for (int k = 0; k < 2; k++) {
            long row = at->row[i] + j, column = at->column[i] + k;
            int inside = row >= 0 && row < view->height && column >= 0 && column < view->width;
            pair[k] = inside ? view->base[row * view->row + column * view->column + c * view->channel] : fill;
        }
        level[j] = pair[0] + (pair[1] - pair[0]) * at->right[i];
    }
    return level[0] + (level[1] - level[0]) * at->down[i];
}

static void sample_nearest(const struct view *view, const float *fill, struct places *at, long n,
                           float v[3][SEGMENT + LANES]) {
    find_places(view, at, n, 0, 0, 0.5f);
    for (long i = 0; i < n; i += LANES) {
        vf level[4][3] = {{splat(fill[0]), splat(fill[1]), splat(fill[2])}};
        if (at->kind[i / LANES] == INSIDE) {
            vi word = gather(view->base, load_int(at->offset + i));
            for (int c = 0; c < 3; c++) level[0][c] = channel_of(word, c);
        } else if (at->kind[i / LANES] != OUTSIDE) {
            fetch_beyond(view, load_int(at->row + i), load_int(at->column + i), 1, fill, level);
        }
        for (int c = 0; c < 3; c++) store(v[c] + i, level[0][c]);
    }
}

/* Eight bytes by way of a general register: compilers collect such loads in vectors, which takes three times as long. */
static inline void copy_eight(uint64_t *to, const uint8_t *from) {
    uint64_t word;
    memcpy(&word, from, sizeof word);
#if defined(__GNUC__)
    __asm__("" : "+r"(word));
#endif
    *to = word;
}

/* Eight bytes hold two neighbours of three channels next to one another: one load instead of six. The second of each lies
 * `step` bytes behind the first. */
static inline void copy_pairs(const uint8_t *base, const int32_t *offsets, long step, uint64_t *first, uint64_t *second) {
    const uint8_t *behind = base + step;
    for (int lane = 0; lane < LANES; lane++) {
        long offset = offsets[lane];
        copy_eight(first + lane, base + offset);
        copy_eight(second + lane, behind + offset);
    }
}

/* bytes r, g, b, R and G, B of LANES pairs */
static inline void split_pairs(const uint64_t *pairs, vi *first_four, vi *last_two) {
#if defined(DHLAB_AVX512)
    __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512i a = _mm512_loadu_si512(pairs), b = _mm512_loadu_si512(pairs + 8);
    *first_four = (vi)_mm512_permutex2var_epi32(a, even, b);
    *last_two = (vi)_mm512_permutex2var_epi32(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
#elif defined(DHLAB_AVX2)
    __m256 a = _mm256_loadu_ps((const float *)pairs), b = _mm256_loadu_ps((const float *)(pairs + 4));
    __m256i even = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), odd = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
    *first_four = (vi)_mm256_permute4x64_epi64(even, 0xd8);
    *last_two = (vi)_mm256_permute4x64_epi64(odd, 0xd8);
#else
    for (int lane = 0; lane < LANES; lane++) {
        (*first_four)[lane] = (int32_t)(uint32_t)pairs[lane];
        (*last_two)[lane] = (int32_t)(uint32_t)(pairs[lane] >> 32);
    }
#endif
}

static inline void mix_pairs(const uint64_t *pairs, vf share, vf level[3]) {
    vi four, two;
    split_pairs(pairs, &four, &two);
    level[0] = mix(channel_of(four, 0), channel_of(four, 3), share);
    level[1] = mix(channel_of(four, 1), channel_of(two, 0), share);
    level[2] = mix(channel_of(four, 2), channel_of(two, 1), share);
}

static void sample_bilinear(const struct view *view, const float *fill, struct places *at, long n,
                            float v[3][SEGMENT + LANES]) {
    uint64_t above[SEGMENT + LANES], below[SEGMENT + LANES];
    find_places(view, at, n, 0, 1, 0);
    for (long i = 0; i < n; i += LANES) {
        if (at->kind[i / LANES] > MIXED) continue;
        copy_pairs(view->base, at->offset + i, view->row, above + i, below + i);
    }
    for (long i = 0; i < n; i += LANES) {
        vf down = load(at->down + i), right = load(at->right + i), top[3], bottom[3], level[4][3];
        if (at->kind[i / LANES] <= MIXED) {
            uint32_t rim = at->rim[i / LANES];
            vm inside = mask_of(at->inside[i / LANES]);
            mix_pairs(above + i, right, top);
            mix_pairs(below + i, right, bottom);
            for (int c = 0; c < 3; c++) store(v[c] + i, pick(inside, mix(top[c], bottom[c], down), splat(fill[c])));
            for (; rim; rim &= rim - 1) {
                long lane = i + __builtin_ctz(rim);
                for (int c = 0; c < 3; c++) v[c][lane] = level_on_rim(view, at, lane, c, fill[c]);
            }
        } else if (at->kind[i / LANES] == BEYOND) {
            fetch_beyond(view, load_int(at->row + i), load_int(at->column + i), 4, fill, level);
            for (int c = 0; c < 3; c++)
                store(v[c] + i, mix(mix(level[0][c], level[1][c], right), mix(level[2][c], level[3][c], right), down));
        } else {
            for (int c = 0; c < 3; c++) store(v[c] + i, splat(fill[c]));
        }
    }
}

static inline void cubic_weights(vf share, vf weights[4]) {
    for (int k = 0; k < 4; k++) {
        vf t = share - (float)(k - 1);
        t = max(t, -t);
        weights[k] = k == 1 || k == 2 ? (1.25f * t - 2.25f) * t * t + 1.0f : ((-0.75f * t + 3.75f) * t - 6.0f) * t + 3.0f;
    }
}

static inline void weigh_pairs(const uint64_t *pairs, vf first, vf second, vf total[3]) {
    vi four, two;
    split_pairs(pairs, &four, &two);
    total[0] += channel_of(four, 0) * first + channel_of(four, 3) * second;
    total[1] += channel_of(four, 1) * first + channel_of(two, 0) * second;
    total[2] += channel_of(four, 2) * first + channel_of(two, 1) * second;
}

static void sample_bicubic(const struct view *view, const float *fill, struct places *at, long n,
                           float v[3][SEGMENT + LANES]) {
    uint64_t left[SEGMENT + LANES], right[SEGMENT + LANES];
    find_places(view, at, n, 1, 2, 0);
    for (int j = 0; j < 4; j++) {
        for (long i = 0; i < n; i += LANES) {
            if (at->kind[i / LANES] != INSIDE) continue;
            copy_pairs(view->base + (j - 1) * view->row - 3, at->offset + i, 6, left + i, right + i);
        }
        for (long i = 0; i < n; i += LANES) {
            vf down[4], along[4], level[4][3], total[3] = {{0}, {0}, {0}};
            cubic_weights(load(at->down + i), down);
            cubic_weights(load(at->right + i), along);
            if (at->kind[i / LANES] == INSIDE) {
                weigh_pairs(left + i, along[0], along[1], total);
                weigh_pairs(right + i, along[2], along[3], total);
            } else {
                for (int k = 0; k < 4; k += 2) {
                    vi row = load_int(at->row + i) + (j - 1), column = load_int(at->column + i) + (k - 1);
                    fetch_beyond(view, row, column, 2, fill, level);
                    for (int c = 0; c < 3; c++) total[c] += level[0][c] * along[k] + level[1][c] * along[k + 1];
                }
            }
            for (int c = 0; c < 3; c++)
                store(v[c] + i, total[c] * down[j] + (j ? load(v[c] + i) : splat(0)));
        }
    }
}

/* ---- segments of light ---- */

/* n pixels from column x of row y of the source; y may be 0 and x run on through the rows of a dense one */
static inline void copy_light(const struct view *view, long y, long x, long n, float v[3][SEGMENT + LANES]) {
    const uint8_t *from = view->base + y * view->row + x * view->column;
    int rgb = view->channel == 1 && view->column == 3, planar = view->column == 1;
    for (long i = 0; i < n; i += LANES) {
        vf light[3];
        if (rgb && n - i >= LANES) load_rgb(from + 3 * i, &light[0], &light[1], &light[2]);
        else if (planar && n - i >= LANES)
            for (int c = 0; c < 3; c++) light[c] = load_bytes(from + c * view->channel + i);
        else
            for (int lane = 0; lane < LANES; lane++)
                for (int c = 0; c < 3; c++)
                    light[c][lane] = i + lane < n ? from[(i + lane) * view->column + c * view->channel] : 0;
        for (int c = 0; c < 3; c++) store(v[c] + i, light[c] * (1.0f / 255));
    }
}

/* n pixels of the result from column x of row y */
static inline void sample_light(const struct view *view, const struct map *map, const float *fill, int interpolation,
                                int supersample, long y, long x, long n, float v[3][SEGMENT + LANES]) {
    float level[3][SEGMENT + LANES], share = 1 / (255.0f * (float)(supersample * supersample));
    struct places at;
    for (int k = 0; k < supersample * supersample; k++) {
        float dy = (float)(2 * (k / supersample) + 1 - supersample) / (float)(2 * supersample);
        float dx = (float)(2 * (k % supersample) + 1 - supersample) / (float)(2 * supersample);
        find_positions(map, y, x, n, dy, dx, at.down, at.right);
        if (interpolation == NEAREST) sample_nearest(view, fill, &at, n, level);
        else if (interpolation == BILINEAR) sample_bilinear(view, fill, &at, n, level);
        else sample_bicubic(view, fill, &at, n, level);
        for (int c = 0; c < 3; c++)
            for (long i = 0; i < n; i += LANES)
                store(v[c] + i, load(level[c] + i) * share + (k ? load(v[c] + i) : splat(0)));
    }
    for (int c = 0; c < 3 && interpolation == BICUBIC; c++)
        for (long i = 0; i < n; i += LANES) store(v[c] + i, clamp(load(v[c] + i), 0, 1));
}

/* an index to 0..length-1, reflected without repeating the edge */
static inline long fold_one(long index, long length) {
    if (length == 1) return 0;
    index %= 2 * length - 2;
    if (index < 0) index += 2 * length - 2;
    return index < length ? index : 2 * length - 2 - index;
}

#endif
