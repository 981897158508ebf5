/* Area, sums of coordinates, box and sums of intensities of every object of a label map, in one pass. */
#include "simd.h"

enum { NOTHING, BYTES, FLOATS };

static double sum_run(const void *image, int type, long at, long step, long n) {
    if (type == BYTES) {
        int64_t total = 0;
        for (long i = 0; i < n; i++) total += ((const uint8_t *)image)[at + i * step];
        return (double)total;
    }
    double total = 0;
    for (long i = 0; i < n; i++) total += ((const float *)image)[at + i * step];
    return total;
}

/* labels (rows, columns); image with steps between rows, columns and channels, in elements. Row l - 1 of the results is
 * of label l: area, sums (row, column), box (first row, first column, last row, last column), intensity (channels). */
EXPORT void NAME(objects_measure)(const int32_t *labels, const void *image, int64_t *area, int64_t *sums, int64_t *box,
                                  double *intensity, long rows, long columns, long channels, long row_step,
                                  long column_step, long channel_step, int type) {
    for (long row = 0; row < rows; row++) {
        const int32_t *line = labels + row * columns;
        for (long x = 0; x < columns;) {
            if (x + LANES <= columns && count(eq_int(load_int(line + x), (vi){0})) == LANES) {
                x += LANES;
                continue;
            }
            long first = x, object = line[x] - 1L;
            while (++x < columns && line[x] == line[first]) {}
            if (object < 0) continue;
            long n = x - first;
            int64_t *edges = box + 4 * object;
            edges[0] = area[object] && edges[0] < row ? edges[0] : row;
            edges[1] = area[object] && edges[1] < first ? edges[1] : first;
            edges[2] = row;
            edges[3] = area[object] && edges[3] > x - 1 ? edges[3] : x - 1;
            area[object] += n;
            sums[2 * object] += n * row;
            sums[2 * object + 1] += n * (first + x - 1) / 2;
            if (type == NOTHING) continue;
            for (long channel = 0; channel < channels; channel++)
                intensity[object * channels + channel] +=
                    sum_run(image, type, row * row_step + first * column_step + channel * channel_step, column_step, n);
        }
    }
}
