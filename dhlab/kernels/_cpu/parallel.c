/* Fork and join, with threads that live for one call: nothing to lose when a process forks, no second pool beside torch's. */
#include "parallel.h"
#include <pthread.h>
#include <sched.h>
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

struct dhlab_team {
    struct job job;
    atomic_int open, inside, ended;
};

static void rest(int *turns) { /* a little, then let others run */
    if (++*turns % 256 == 0) sched_yield();
#if defined(__x86_64__)
    else __builtin_ia32_pause();
#endif
}

/* A helper enters before it looks whether the job is open, and the lead closes a job before it looks who is inside, so
 * nobody works on a job that has gone. */
static void *help(void *argument) {
    struct dhlab_team *team = argument;
    for (int turns = 0; !atomic_load(&team->ended); rest(&turns)) {
        if (!atomic_load(&team->open)) continue;
        atomic_fetch_add(&team->inside, 1);
        if (atomic_load(&team->open)) work(&team->job);
        atomic_fetch_sub(&team->inside, 1);
    }
    return 0;
}

void dhlab_lead(int threads, void (*lead)(void *context, struct dhlab_team *team), void *context) {
    struct dhlab_team team = {.open = 0};
    pthread_t helpers[MOST_THREADS];
    int started = 0, wanted = threads < MOST_THREADS ? threads : MOST_THREADS;
    while (started < wanted - 1 && !pthread_create(&helpers[started], 0, help, &team)) started++;
    lead(context, started ? &team : 0);
    atomic_store(&team.ended, 1);
    for (int i = 0; i < started; i++) pthread_join(helpers[i], 0);
}

void dhlab_share(struct dhlab_team *team, long count, void (*body)(void *context, long i), void *context) {
    if (!team) {
        for (long i = 0; i < count; i++) body(context, i);
        return;
    }
    team->job.count = count, team->job.body = body, team->job.context = context;
    atomic_store(&team->job.next, 0);
    atomic_store(&team->open, 1);
    work(&team->job);
    atomic_store(&team->open, 0);
    for (int turns = 0; atomic_load(&team->inside); rest(&turns)) {}
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
