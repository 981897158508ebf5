/* Fork and join, with threads that live for one call: nothing to lose when a process forks, no second pool beside torch's. */
#include "parallel.h"
#include <pthread.h>
#include <stdatomic.h>

#define MOST_THREADS 256

struct job {
    long count;
    atomic_long next;
    void (*body)(void *, long);
    void *context;
};

static void *work(void *argument) {
    struct job *job = argument;
    for (long i; (i = atomic_fetch_add_explicit(&job->next, 1, memory_order_relaxed)) < job->count;)
        job->body(job->context, i);
    return 0;
}

void dhlab_parallel(long count, int threads, void (*body)(void *context, long i), void *context) {
    struct job job = {.count = count, .body = body, .context = context};
    pthread_t helpers[MOST_THREADS];
    int started = 0, wanted = threads < MOST_THREADS ? threads : MOST_THREADS;
    if (wanted > count) wanted = (int)count;
    while (started < wanted - 1 && !pthread_create(&helpers[started], 0, work, &job)) started++;
    work(&job);
    for (int i = 0; i < started; i++) pthread_join(helpers[i], 0);
}

/* What the library was built from, see binder/build_kernels.py. */
__attribute__((visibility("default"))) const char *dhlab_digest(void) { return DHLAB_DIGEST; }

/* 2: avx512, 1: avx2, 0: base */
__attribute__((visibility("default"))) int dhlab_instruction_set(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vbmi2"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return 1;
#endif
    return 0;
}
