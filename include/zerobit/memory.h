/*
 * Host allocation. Every allocation of the library comes through here (but cJSON's, which uses the process's
 * cJSON hooks), so that a test can let the n-th one fail, count what a step allocates, and see that nothing is left. Tensors of a rank are not
 * allocated here directly but through its device (device.h), which also keeps the rank's ledger.
 */
#ifndef ZEROBIT_MEMORY_H
#define ZEROBIT_MEMORY_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/export.h>

#ifdef __cplusplus
extern "C" {
#endif

/** 64-byte aligned, zeroed; a size of 0 gives a valid pointer. NULL when out of memory (zb_fail has been called). */
ZB_API void *zb_alloc(size_t bytes);
/** As zb_alloc(count * size), NULL on overflow of the product as well. */
ZB_API void *zb_alloc_array(size_t count, size_t size);
/** As realloc: keeps the first min(old, new) bytes; new bytes are zero. On failure the old block stays valid. */
ZB_API void *zb_realloc(void *pointer, size_t bytes);
/** Copy of a string, NULL when out of memory. */
ZB_API char *zb_strdup(const char *text);
/** NULL is fine. */
ZB_API void zb_free(void *pointer);

typedef struct zb_alloc_stats {
    uint64_t calls;      /* allocations asked for since the process began, failed ones included */
    uint64_t live;       /* blocks not freed yet                                                */
    uint64_t live_bytes; /* their bytes                                                         */
} zb_alloc_stats;

ZB_API zb_alloc_stats zb_alloc_get_stats(void);

/** For tests: let the n-th allocation from now (0: the next) fail, once. A negative n takes it back. */
ZB_API void zb_alloc_fail_at(int64_t n);
/** True when the failure asked for by zb_alloc_fail_at has happened. */
ZB_API int zb_alloc_fault_fired(void);

#ifdef __cplusplus
}
#endif
#endif
