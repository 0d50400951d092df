/* Size-class pool: blocks are never split nor merged, and freed only with the pool. */
#include "sim/pool.h"

#include <stdint.h>
#include <zerobit/memory.h>
#include <zerobit/status.h>

struct sim_pool_block {
    sim_pool_block *next_all, *next_free;
    size_t class;
    char padding[40];
};
_Static_assert(sizeof(sim_pool_block) == 64, "what follows the header must stay 64-byte aligned");

/* Class 4 e + q holds (4 + q) * 2^(e + 4) bytes: 64, 80, 96, 112, 128, 160, ... */
static size_t class_bytes(size_t class)
{
    return (4 + class % 4) << (class / 4 + 4);
}

static size_t class_of(size_t bytes)
{
    if (bytes <= 64) return 0;
    size_t octave = 63 - (size_t)__builtin_clzll((uint64_t)bytes - 1); /* 2^octave < bytes <= 2^(octave+1) */
    size_t quarter = (size_t)1 << (octave - 2);
    return 4 * (octave - 6) + (bytes - 1 - ((size_t)1 << octave)) / quarter + 1;
}

void *sim_pool_take(sim_pool *pool, size_t bytes)
{
    size_t class = class_of(bytes);
    if (class >= SIM_POOL_CLASSES) {
        zb_fail(ZB_NO_MEMORY, "out of memory: %zu bytes wanted", bytes);
        return NULL;
    }
    sim_pool_block *block = pool->free[class];
    if (block != NULL) {
        pool->free[class] = block->next_free;
        return block + 1;
    }
    block = zb_alloc(sizeof *block + class_bytes(class));
    if (block == NULL) return NULL;
    block->class = class;
    block->next_all = pool->all;
    pool->all = block;
    return block + 1;
}

void sim_pool_give(sim_pool *pool, void *memory)
{
    if (memory == NULL) return;
    sim_pool_block *block = (sim_pool_block *)memory - 1;
    block->next_free = pool->free[block->class];
    pool->free[block->class] = block;
}

void sim_pool_destroy(sim_pool *pool)
{
    while (pool->all != NULL) {
        sim_pool_block *block = pool->all;
        pool->all = block->next_all;
        zb_free(block);
    }
}
