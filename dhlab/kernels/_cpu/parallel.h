#ifndef DHLAB_PARALLEL_H
#define DHLAB_PARALLEL_H

/* Calls body(context, i) once for each i of 0..count-1 on up to `threads` threads; results must not depend on which. */
void dhlab_parallel(long count, int threads, void (*body)(void *context, long i), void *context);

/* For many short steps in a row: `lead` runs once, and whatever it shares is done by up to `threads` threads, itself among
 * them, that stay awake until it returns. Without a team the caller does it alone. */
struct dhlab_team;
void dhlab_lead(int threads, void (*lead)(void *context, struct dhlab_team *team), void *context);
void dhlab_share(struct dhlab_team *team, long count, void (*body)(void *context, long i), void *context);

#endif
