/* What the system should know about memory before it is written. */
#if defined(__linux__)
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

/* Asks for huge pages under `bytes` bytes: a fault for each 2 MiB instead of each 4 KiB when they are first written. It is
 * advice, so that a refusal changes nothing, and neither does it where the memory has its pages already. */
__attribute__((visibility("default"))) void dhlab_prepare(void *memory, long bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)memory / page * page;
    madvise((void *)begin, (uintptr_t)memory + (uintptr_t)bytes - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}
