/*
 * Ranks of the NCCL communicator as threads of a test, on the stand-ins of CUDA and NCCL: each has a device
 * of its own and meets the others by real connections.
 */
#ifndef ZB_TESTS_NCCL_THREADS_H
#define ZB_TESTS_NCCL_THREADS_H

#include <zerobit/nccl.h>

enum { THREADS_MAX = 8 };

typedef struct thread_world {
    int size;
    uint64_t seed;          /* of both stand-ins */
    const char *order;      /* in which the stand-in of NCCL adds; NULL: its own choice */
    double timeout_seconds; /* 0: 30 */
    size_t scratch_bytes;
    const zb_orders *native;
    int unchecked;
    int on_device; /* the communicator that `main` gets takes the host's buffers and stages them itself, by a
                      stream */
} thread_world;

typedef zb_status thread_main(void *user, zb_comm *comm);

/* How each rank has ended, with its zb_error_message(). */
typedef struct thread_ends {
    zb_error ranks[THREADS_MAX];
    zb_status session; /* of the stand-ins: races, mistakes, leaks */
    char session_message[ZB_ERROR_MESSAGE_BYTES];
} thread_ends;

/* Both sessions, and in them `main` on every rank. `before`, or NULL, is called when the sessions are open.
 */
void run_threads(const thread_world *world, thread_main *main, void *user, void (*before)(void *user),
                 thread_ends *ends);
/* The first rank that has failed, or else the session; ZB_OK, or zb_fail with all of it. */
zb_status first_failure(const thread_world *world, const thread_ends *ends);

#endif
