#ifndef DHLAB_PARALLEL_H
#define DHLAB_PARALLEL_H

/* Calls body(context, i) once for each i of 0..count-1 on up to `threads` threads; results must not depend on which. */
void dhlab_parallel(long count, int threads, void (*body)(void *context, long i), void *context);

#endif
