/* Masks moved by the map of a plan: the nearest element of the source, copied. */
#include "parallel.h"
#include "sampling.h"
#include "simd.h"

#define BAND 16384

struct task {
    const char *from;
    char *to;
    const float *block, *field;
    const int64_t *strides; /* in bytes: sample, plane, row, column */
    struct map map;
    struct view view; /* size and border alone count */
    long planes, rows, bands, size;
    int64_t fill;
};

static inline __attribute__((always_inline)) void copy(char *to, const char *from, long column, const int32_t *offsets,
                                                       const int32_t *rows, long row, long n, const char *fill,
                                                       size_t size) {
    for (long i = 0; i < n; i++, to += size)
        memcpy(to, offsets[i] < 0 ? fill : from + rows[i] * row + offsets[i] * column, size);
}

static void move_segment(const struct task *task, const char *from, char *to, const float *down, const float *right,
                         long n) {
    int32_t rows[SEGMENT + LANES], columns[SEGMENT + LANES];
    const struct view *view = &task->view;
    const char *fill = (const char *)&task->fill;
    long row = task->strides[2], column = task->strides[3];
    for (long i = 0; i < n; i += LANES) {
        vi y = to_int(floor_of(load(down + i) + 0.5f)), x = to_int(floor_of(load(right + i) + 0.5f));
        vm inside = is_inside(y, x, view);
        if (lanes_of(inside) != ALL_LANES) {
            y = fold(y, (int)view->height, view->border), x = fold(x, (int)view->width, view->border);
            if (view->border == CONSTANT) x = pick_int(inside, x, splat_int(-1));
        }
        store_int(rows + i, y);
        store_int(columns + i, x);
    }
    if (task->size == 1) copy(to, from, column, columns, rows, row, n, fill, 1);
    else if (task->size == 2) copy(to, from, column, columns, rows, row, n, fill, 2);
    else if (task->size == 4) copy(to, from, column, columns, rows, row, n, fill, 4);
    else copy(to, from, column, columns, rows, row, n, fill, 8);
}

static void body(void *context, long i) {
    const struct task *task = context;
    struct map map = task->map;
    long plane = i / task->bands, sample = plane / task->planes, first = i % task->bands * task->rows;
    long last = first + task->rows < map.height ? first + task->rows : map.height;
    const char *from = task->from + sample * task->strides[0] + plane % task->planes * task->strides[1];
    float down[SEGMENT + LANES], right[SEGMENT + LANES];
    map.matrix = task->block + sample * BLOCK_FLOATS;
    map.field = task->field ? task->field + sample * 2 * map.nodes_down * map.nodes_right : 0;
    int identity = is_identity(&map, &task->view) && task->strides[3] == task->size;
    for (long y = first; y < last; y++) {
        char *to = task->to + (plane * map.height + y) * map.width * task->size;
        if (identity) {
            memcpy(to, from + y * task->strides[2], (size_t)(map.width * task->size));
            continue;
        }
        for (long x = 0, n; x < map.width; x += n) {
            n = map.width - x < SEGMENT ? map.width - x : SEGMENT;
            find_positions(&map, y, x, n, 0, 0, down, right);
            move_segment(task, from, to + x * task->size, down, right, n);
        }
    }
}

/* from: (samples, planes, height, width) of elements of 1, 2, 4 or 8 bytes; to: dense, fill: one such element.
 * sizes: samples, planes, height, width, strides in bytes of the four, result height and width, nodes of the field. */
EXPORT void NAME(augment_masks)(const char *from, char *to, const float *block, const float *field, const int64_t *sizes,
                                const void *fill, long size, int border, int threads) {
    struct task task = {
        .from = from, .to = to, .block = block, .field = field, .strides = sizes + 4, .planes = sizes[1], .size = size,
        .map = {.height = sizes[8], .width = sizes[9], .nodes_down = sizes[10], .nodes_right = sizes[11]},
        .view = {.height = sizes[2], .width = sizes[3], .border = border}};
    memcpy(&task.fill, fill, (size_t)size);
    task.rows = BAND / task.map.width > 1 ? BAND / task.map.width : 1;
    task.bands = (task.map.height + task.rows - 1) / task.rows;
    dhlab_parallel(sizes[0] * sizes[1] * task.bands, threads, body, &task);
}
