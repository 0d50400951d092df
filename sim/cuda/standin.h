/*
 * A stand-in for the CUDA run-time, for tests on a machine without a GPU. The CUDA host code of engine/ links
 * with it unmodified.
 *
 * Streams are queues. Nothing runs until a host synchronises or queries, or until the stand-in feels like it;
 * what runs then, among all that streams and events allow, is drawn from a seed: streams lag to the last
 * legal moment, or run ahead. Kernels run as their twins on the CPU. Device memory cannot be touched by a
 * host: an access stops the program and names the allocation. Memory that is fresh or free is full of 0xFF.
 *
 * Every operation's accesses are held against all others by vector clocks: two of them that overlap, one of
 * them a write, and that no stream, event or synchronisation orders, are a race, whether or not it showed in
 * this run. A host is a simulated rank, or a thread outside of one. Ranks and threads outside are taken to be
 * ordered with one another (whoever starts ranks waits for them); ranks among themselves are not, nor are
 * threads that both were there already.
 *
 * One session at a time: zb_standin_begin, calls from any number of threads, zb_standin_end. Outside of a
 * session every CUDA call fails with cudaErrorInitializationError.
 */
#ifndef ZB_SIM_CUDA_STANDIN_H
#define ZB_SIM_CUDA_STANDIN_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>
#include <zerobit/status.h>

/* In which order operations run that may run in several. DRAWN: the seed decides which of the others it is.
 */
typedef enum zb_standin_schedule {
    ZB_STANDIN_DRAWN,
    ZB_STANDIN_UNIFORM,  /* any that may                                                           */
    ZB_STANDIN_PRIORITY, /* the stream first that ranks highest; ranks are redrawn now and then     */
    ZB_STANDIN_LAZY,     /* only what a host waits for, as late as can be                          */
    ZB_STANDIN_SCHEDULE_COUNT
} zb_standin_schedule;

typedef struct zb_standin_options {
    uint64_t seed;
    zb_standin_schedule schedule;
    int device_count;    /* 0: a machine without a GPU                                        */
    size_t memory_bytes; /* of each device; 0: 1 GiB                                          */
    int stall_ms;        /* without any progress for so long a wait is a deadlock; 0: 20 s    */
    /* A stream's name in reports; NULL, or where it returns NULL: "stream 2 of rank 1", in the order of
     * creation. */
    const char *(*stream_name)(void *user, cudaStream_t stream);
    void *user;
} zb_standin_options;

/** ZB_INVALID_ARGUMENT when a session is open; ZB_NO_MEMORY. */
zb_status zb_standin_begin(const zb_standin_options *options);
/**
 * Runs what is still queued, looks for what was not given back, and closes the session. The first that was
 * found decides: ZB_RACE; ZB_INVALID_ARGUMENT: misuse (a pointer of the wrong kind, a range beyond its
 * allocation, memory or a handle that is gone); ZB_DEADLOCK; ZB_INTERNAL: a leak. The message counts the
 * others.
 */
zb_status zb_standin_end(void);

typedef struct zb_standin_counters {
    uint64_t calls;            /* of CUDA, launches included   */
    uint64_t operations;       /* that have run                */
    uint64_t accesses_checked; /* ranges held against others   */
    uint64_t races, misuses;
    uint64_t yields; /* hosts that found nothing to run  */
    size_t device_bytes, device_bytes_peak, pinned_bytes;
    int streams, events, allocations; /* that exist */
} zb_standin_counters;
zb_standin_counters zb_standin_count(void);
/** Races and misuses as they were found, from 0; NULL beyond the last one kept (there are at most 64). Lives
 * until the next begin. */
const char *zb_standin_finding(int index);

/* --- faults --- */

/**
 * The n-th call from now on (0: the next) of `call` (NULL: of any) fails with `error`. Calls are named as
 * CUDA does; a kernel is "zb_cuda_launch". A call that gives something back does so and then fails; any other
 * does nothing. Queries of errors do not count. Negative n: off.
 */
void zb_standin_fail_call(const char *call, int64_t n, cudaError_t error);
/** The n-th operation that runs from now on does nothing, and every later call on its device fails with
 * `error`: as a kernel does. */
void zb_standin_fail_operation(int64_t n, cudaError_t error);
/** Whether either has happened. */
int zb_standin_fault_fired(void);

/* --- hosts --- */

/** What a waiting host calls to let others run, in place of the default: zb_sim_yield's way in a rank,
 * sched_yield outside. */
void zb_standin_set_yield(void (*yield)(void));
/** The calling host has synchronised with all others by means of its own, such as pthread_join. */
void zb_standin_join_hosts(void);

/* --- for what runs on streams beside CUDA: a stand-in of NCCL --- */

typedef struct zb_standin_access {
    const char *name; /* of the argument */
    const void *pointer;
    size_t bytes;
    int reads, writes;
} zb_standin_access;

typedef enum zb_standin_progress {
    ZB_STANDIN_DONE,
    ZB_STANDIN_NOT_YET,
    ZB_STANDIN_FAILED
} zb_standin_progress;

typedef struct zb_standin_operation {
    const char *name; /* for reports; copied, like the accesses */
    const zb_standin_access *accesses;
    int access_count;
    /*
     * Called when everything before it on the stream has run, as often as it takes. The session's lock is
     * held: it may call zb_standin_memory and its own code, but nothing that waits. FAILED: as if a kernel
     * had failed.
     */
    zb_standin_progress (*try_run)(void *user);
    void (*release)(void *user); /* once, when it is over or dropped; may be NULL */
    void *user;
} zb_standin_operation;

/**
 * cudaErrorInvalidValue, and a misuse is recorded, for a pointer that is not to device memory or a range that
 * is not inside of one allocation; `release` is not called then. The stream must belong to the current
 * device.
 */
cudaError_t zb_standin_enqueue(cudaStream_t stream, const zb_standin_operation *operation);
/** Where operations find the bytes of a pointer to device memory; NULL for any other. */
void *zb_standin_memory(const void *pointer);
/** Waits until `ready` says so, called with the lock held; runs operations and yields meanwhile.
 * cudaErrorTimeout in a deadlock. */
cudaError_t zb_standin_wait(int (*ready)(void *user), void *user, const char *what);
/** The session's lock, for code that shares state with try_run. Recursive. */
void zb_standin_lock(void);
void zb_standin_unlock(void);

#endif
