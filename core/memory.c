/* Host allocation with a counter and a switch that lets the n-th call fail. */
#include <zerobit/memory.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/status.h>

/* Sits in front of every block; 64 bytes, so that the block keeps its alignment. */
typedef struct block_header {
    size_t bytes;
    void *base; /* what calloc returned */
    char padding[48];
} block_header;
enum { ALIGNMENT = 64 };
_Static_assert(sizeof(block_header) == ALIGNMENT, "a block must stay aligned");

static atomic_uint_least64_t call_count, live_count, live_byte_count;
static atomic_int_least64_t fail_countdown = -1;
static atomic_int fault_fired;

static int must_fail(void)
{
    atomic_fetch_add_explicit(&call_count, 1, memory_order_relaxed);
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) < 0) return 0;
    if (atomic_fetch_sub_explicit(&fail_countdown, 1, memory_order_relaxed) != 0) return 0;
    atomic_store(&fault_fired, 1);
    return 1;
}

static void *out_of_memory(size_t bytes)
{
    errno = ENOMEM; /* as malloc does, for callers that stand in for it */
    zb_fail(ZB_NO_MEMORY, "out of memory: %zu bytes wanted", bytes);
    return NULL;
}

void *zb_alloc(size_t bytes)
{
    if (must_fail() || bytes > SIZE_MAX - 2 * sizeof(block_header)) return out_of_memory(bytes);
    /* calloc, since it need not touch pages that come fresh from the system: a thousand simulated ranks begin
     * with a gigabyte of zeros. The header goes to the first aligned place. */
    char *base = calloc(1, bytes + 2 * sizeof(block_header));
    if (base == NULL) return out_of_memory(bytes);
    block_header *header = (block_header *)(base + (ALIGNMENT - (uintptr_t)base % ALIGNMENT) % ALIGNMENT);
    header->base = base;
    header->bytes = bytes;
    atomic_fetch_add_explicit(&live_count, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&live_byte_count, bytes, memory_order_relaxed);
    return header + 1;
}

void *zb_alloc_array(size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        zb_fail(ZB_NO_MEMORY, "out of memory: %zu elements of %zu bytes wanted", count, size);
        return NULL;
    }
    return zb_alloc(bytes);
}

void *zb_realloc(void *pointer, size_t bytes)
{
    void *fresh = zb_alloc(bytes);
    if (fresh == NULL || pointer == NULL) return fresh;
    size_t old = ((block_header *)pointer - 1)->bytes;
    memcpy(fresh, pointer, old < bytes ? old : bytes);
    zb_free(pointer);
    return fresh;
}

char *zb_strdup(const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = zb_alloc(bytes);
    if (copy != NULL) memcpy(copy, text, bytes);
    return copy;
}

void zb_free(void *pointer)
{
    if (pointer == NULL) return;
    block_header *header = (block_header *)pointer - 1;
    atomic_fetch_sub_explicit(&live_count, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&live_byte_count, header->bytes, memory_order_relaxed);
    free(header->base);
}

zb_alloc_stats zb_alloc_get_stats(void)
{
    return (zb_alloc_stats){ .calls = atomic_load(&call_count),
                             .live = atomic_load(&live_count),
                             .live_bytes = atomic_load(&live_byte_count) };
}

void zb_alloc_fail_at(int64_t n)
{
    atomic_store(&fault_fired, 0);
    atomic_store(&fail_countdown, n < 0 ? -1 : n);
}

int zb_alloc_fault_fired(void)
{
    return atomic_load(&fault_fired);
}
