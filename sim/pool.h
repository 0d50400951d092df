/*
 * Memory for the copies that a rank's asynchronous operations hold. What is given back is kept for the next
 * request of its size class; a rank's requests are its program's, so that a repeated pattern allocates
 * nothing.
 */
#ifndef ZB_SIM_POOL_H
#define ZB_SIM_POOL_H

#include <stddef.h>

enum { SIM_POOL_CLASSES = 4 * 42 }; /* four to an octave, from 64 bytes to 2^48 */

typedef struct sim_pool_block sim_pool_block;
typedef struct sim_pool {
    sim_pool_block *all;
    sim_pool_block *free[SIM_POOL_CLASSES];
} sim_pool;

/** At least `bytes` bytes, 64-byte aligned, contents undefined. NULL when out of memory (reported). */
void *sim_pool_take(sim_pool *pool, size_t bytes);
/** NULL is fine. */
void sim_pool_give(sim_pool *pool, void *memory);
/** Frees everything, also what was not given back. */
void sim_pool_destroy(sim_pool *pool);

#endif
