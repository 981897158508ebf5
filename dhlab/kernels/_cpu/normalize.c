/* stored * scale + shift per channel, from bytes to floats, in one pass. */
#include "floats.h"
#include "parallel.h"

#define CHUNK 8192 /* pixels of one task, a multiple of LANES */
#define MOST_CHANNELS 64

struct task {
    const uint8_t *from;
    char *to;
    const float *scale, *shift; /* (channels * LANES), as the vectors meet them */
    long chunks, channels, pixels;
    int type, interleaved, moves;
};

/* n bytes that keep their order; the first belongs to `channel` */
static void keep(const struct task *task, long at, long n, long channel) {
    long k = task->interleaved ? 0 : channel * LANES, period = task->interleaved ? task->channels * LANES : 0;
    const uint8_t *from = task->from + at;
    for (long i = 0; i < n; i += LANES) {
        vf scale = load(task->scale + k), shift = load(task->shift + k);
        if (n - i >= LANES) {
            store_typed(task->to, at + i, load_bytes(from + i) * scale + shift, task->type);
        } else {
            uint8_t last[LANES] = {0};
            memcpy(last, from + i, (size_t)(n - i));
            store_some(task->to, at + i, load_bytes(last) * scale + shift, task->type, n - i);
        }
        if (period && (k += LANES) == period) k = 0;
    }
}

/* three channels from next to one another to one after the other */
static void split(const struct task *task, long sample, long begin, long n) {
    const uint8_t *from = task->from + (sample * task->pixels + begin) * 3;
    for (long i = 0; i < n; i += LANES) {
        uint8_t last[3 * LANES] = {0};
        long left = n - i < LANES ? n - i : LANES;
        if (left < LANES) memcpy(last, from + 3 * i, (size_t)(3 * left));
        vf v[3];
        load_rgb(left < LANES ? last : from + 3 * i, &v[0], &v[1], &v[2]);
        for (int c = 0; c < 3; c++) {
            vf value = v[c] * load(task->scale + c * LANES) + load(task->shift + c * LANES);
            long at = (sample * 3 + c) * task->pixels + begin + i;
            store_some(task->to, at, value, task->type, left);
        }
    }
}

static void body(void *context, long i) {
    const struct task *task = context;
    long group = i / task->chunks, begin = i % task->chunks * CHUNK;
    long n = task->pixels - begin < CHUNK ? task->pixels - begin : CHUNK, width = task->interleaved ? task->channels : 1;
    if (task->moves) split(task, group, begin, n);
    else keep(task, (group * task->pixels + begin) * width, n * width, group % task->channels);
}

/* from: (samples, pixels, channels) if interleaved, else (samples, channels, pixels); to: alike, by planar. Channels move
 * apart only where there are three, and never move together. */
EXPORT void NAME(normalize)(const uint8_t *from, void *to, const float *scale, const float *shift, long samples,
                            long channels, long pixels, int interleaved, int planar, int type, int threads) {
    int moves = interleaved && planar;
    float repeated[2 * MOST_CHANNELS * LANES];
    for (long i = 0; i < channels * LANES; i++) {
        long channel = interleaved && !moves ? i % channels : i / LANES;
        repeated[i] = scale[channel];
        repeated[channels * LANES + i] = shift[channel];
    }
    struct task task = {.from = from, .to = to, .scale = repeated, .shift = repeated + channels * LANES,
                        .chunks = (pixels + CHUNK - 1) / CHUNK, .channels = channels, .pixels = pixels, .type = type,
                        .interleaved = interleaved, .moves = moves};
    dhlab_parallel((interleaved ? samples : samples * channels) * task.chunks, threads, body, &task);
}
