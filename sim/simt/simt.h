/*
 * A GPU's way of running a kernel, on the CPU: blocks one after the other, the threads of a block as fibers
 * that take turns. For tests of CUDA code on machines without a GPU; cuda_language.h gives it the words of
 * CUDA C++.
 *
 * The order of blocks and threads comes from a seed, so that a missing barrier shows. Shared memory starts as
 * 0xFF in every block and is guarded behind its end. Asynchronous copies arrive when they are waited for, not
 * before. Divergence at a barrier, a misaligned vector, a copy that nobody waited for, and sizes that no GPU
 * takes are errors that name the kernel and the place.
 *
 * One launch runs at a time in a process; others wait. Pointers to "device memory" are the host's.
 */
#ifndef ZB_SIM_SIMT_SIMT_H
#define ZB_SIM_SIMT_SIMT_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sim_simt_dim {
    unsigned x, y, z;
} sim_simt_dim;

typedef struct sim_simt_launch {
    const char *kernel, *file; /* for messages */
    int line;
    sim_simt_dim grid, block;
    size_t shared_bytes;           /* dynamic shared memory */
    void (*body)(void *arguments); /* the kernel, called once for each thread */
    void *arguments;
} sim_simt_launch;

/** Runs all threads to their end. ZB_INVALID_ARGUMENT: sizes that no GPU takes; ZB_INTERNAL: the kernel did
 * something wrong. */
zb_status sim_simt_run(const sim_simt_launch *launch);
/** Of the orders in which the launches from now on run their blocks and threads. */
void sim_simt_set_seed(uint64_t seed);

/* --- for code inside a kernel --- */

typedef struct sim_simt_thread sim_simt_thread;
/* What the running thread may ask for at any time: CUDA's built-in variables. */
typedef struct sim_simt_place {
    sim_simt_dim thread, block, block_dim, grid_dim;
} sim_simt_place;
extern const sim_simt_place *sim_simt_here;

/** Ends the launch with ZB_INTERNAL and this reason, after the kernel's name and the thread. Does not return.
 */
ZB_NORETURN void sim_simt_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/** __syncthreads: all threads of the block, at the same place in the source. */
void sim_simt_barrier(const char *file, int line);

/* What the lanes of `mask` do together, at the same place in the source. */
typedef enum sim_simt_exchange {
    SIM_SIMT_SYNC,   /* nothing but wait; 0 */
    SIM_SIMT_VALUE,  /* the value of lane `from`; all ones where that lane takes no part */
    SIM_SIMT_BALLOT, /* a bit for each lane whose value is not 0 */
} sim_simt_exchange;
uint64_t sim_simt_warp(sim_simt_exchange exchange, unsigned mask, uint64_t value, unsigned from,
                       const char *file, int line);

/** A variable in shared memory: the same address for all threads of a block. `tag` is the address of
 * something of its own. */
void *sim_simt_shared(const void *tag, size_t bytes);
/** The dynamic shared memory of the launch, 128-byte aligned. */
void *sim_simt_dynamic_shared(void);

/** Copies `bytes`, then writes zeros up to `room`, when a wait says so. */
void sim_simt_copy_async(void *to, const void *from, size_t bytes, size_t room);
void sim_simt_copy_commit(void);
/** All committed copies but for those of the last `groups` groups have arrived. */
void sim_simt_copy_wait(unsigned groups);

#ifdef __cplusplus
}
#endif
#endif
