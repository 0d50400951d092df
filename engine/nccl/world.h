/*
 * What the files of this folder share: the world of this process, its groups (communicators), and what is
 * under way.
 *
 * A collective meets its ranks on the control connections, then its work is queued on the group's stream, all
 * in zb_comm_start: from there on only the event behind that work is waited for. A message lives on the
 * control connections alone, and whoever waits for anything moves all messages on.
 *
 * One lock guards all of it. The thread that calls has it for the length of a call; the watching thread only
 * takes it when nobody has it.
 */
#ifndef ZB_ENGINE_NCCL_WORLD_H
#define ZB_ENGINE_NCCL_WORLD_H

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <pthread.h>
#include <stdint.h>
#include <zerobit/nccl.h>

#include "engine/call_record.h"
#include "engine/nccl/control.h"
#include "orders/cache.h"
#include "orders/signature.h"

typedef struct nccl_world nccl_world;
typedef struct nccl_group nccl_group;
typedef struct nccl_op nccl_op;

/* One of this rank's calls, from its start until it has been waited for. */
struct nccl_op {
    nccl_op *next, *previous; /* in flight; or the next free one */
    nccl_group *group;
    zb_collective call;
    uint64_t id, sequence;
    zb_call_record record;
    unsigned char *came; /* [world_size], of a collective that meets */
    /* A message: */
    int begun, peer_came, complete; /* begun: its bytes are on the host */
    size_t bytes, moved_bytes;
    unsigned char *host; /* where its bytes are: the caller's buffer, or `held` */
    unsigned char *held;
    /* A collective: */
    int queued;        /* its work is on the stream, and `done` behind it */
    cudaEvent_t ready; /* the call's stream has come so far */
    cudaEvent_t done;
    void *staging; /* device memory for the host's buffers: send, then recv; kept with the operation */
    size_t staging_bytes, staged_recv; /* staged_recv: where recv begins */
};

struct nccl_group {
    zb_comm base;
    nccl_world *world;
    nccl_group *next;
    char name[128];
    uint64_t id, sequence; /* sequence: of the next collective */
    int *world_ranks;
    uint64_t *sent, *received; /* messages to and from each rank */
    ncclComm_t comm;           /* NULL: aborted, or not made yet */
    zb_stream *stream;
    void *scratch; /* of reductions: they follow each other on the stream */
    const void **inputs;
    size_t *firsts; /* [world_size + 1] */
    zb_reduction_cache reductions;
    nccl_op *free_ops;
    int learning;                               /* NCCL adds, whatever the order */
    long learn_begin, report_begin, report_end; /* what NCCL has reported of this communicator's beginning */
    /* The watching thread's: */
    cudaEvent_t watched;
    int watching;
    uint64_t queued_count, watched_count;
    double watched_since;
};

typedef struct nccl_failure {
    int set;
    zb_status status;
    char message[ZB_ERROR_MESSAGE_BYTES];
} nccl_failure;

struct nccl_world {
    zb_nccl_environment here;
    int rank, size;
    zb_device *device;
    int ordinal;
    double timeout_seconds;
    int unchecked;
    size_t scratch_bytes;
    zb_orders native;

    pthread_mutex_t lock;
    pthread_cond_t leave; /* the watching thread is to end */
    pthread_t watcher;
    int watched, leaving;

    nccl_control *control; /* NULL: a world of one */
    nccl_failure failure;
    nccl_group *groups;
    nccl_op *first, *last; /* in flight, oldest first */
    uint64_t work_count;
    zb_stream *copies;          /* of host buffers: nothing on it ever waits for another rank */
    zb_call_record *last_calls; /* [size], the latest collective that each rank has come to */
    int *has_called;
};

/* --- world.c: the world's beginning and end, and the watching thread --- */

zb_status zb_nccl_check_cuda(cudaError_t code, const char *call);
#define CUDA_TRY(call) ZB_TRY(zb_nccl_check_cuda((call), #call))
void zb_nccl_release(nccl_world *world);
void zb_nccl_lock(nccl_world *world);
void zb_nccl_unlock(nccl_world *world);
/** Device memory that is in no ledger: that is the engine's. */
zb_status zb_nccl_device_alloc(nccl_world *world, size_t bytes, void **pointer_p);

/* --- failure.c: failures reach everybody; waiting --- */

/** Passes `status` on; a failure of this rank is told to the others first. A mismatch of `op` (or NULL) is
 * also theirs. */
zb_status zb_nccl_settle(nccl_world *world, const nccl_op *op, zb_status status);
void zb_nccl_tell(nccl_world *world, const nccl_op *op, zb_status status, const char *message);
/** Moves frames and messages. ZB_REMOTE, or whatever else is left to be returned, once any rank has failed.
 */
zb_status zb_nccl_look(nccl_world *world, int wait_ms);
/** An error that NCCL has found on its own, in a thread of its own. */
zb_status zb_nccl_check_async(const nccl_group *group);
/** ZB_REMOTE when that rank can do nothing any more: it has ended. */
zb_status zb_nccl_need(const nccl_op *op, int rank);

/* A loop that waits: for other ranks, for NCCL or for the GPU. */
typedef struct nccl_wait {
    const nccl_op *op; /* what for; NULL: `text` */
    const char *text;
    const nccl_group *group;
    int for_frames;
    double since;
    unsigned idle;
} nccl_wait;
nccl_wait zb_nccl_begin_wait(const nccl_group *group, const nccl_op *op, const char *text);
/** Once round: looks, and backs off. ZB_DEADLOCK after timeout_seconds. */
zb_status zb_nccl_pause(nccl_wait *wait);

/* --- group.c: groups, their operations, and NCCL's communicators --- */

zb_status zb_nccl_check(const nccl_group *group, ncclResult_t code, const char *call);
#define NCCL_TRY(group, call) ZB_TRY(zb_nccl_check((group), (call), #call))
/** A group of this world without a communicator of NCCL's. */
zb_status zb_nccl_group_create(nccl_world *world, int rank, int size, const char *name, uint64_t id,
                               nccl_group **group_p);
/** Frees all; aborts a communicator that is still there. */
void zb_nccl_group_destroy(nccl_group *group);
/** Until all work of the group is through, and NCCL has given back what is its. */
zb_status zb_nccl_group_finish(nccl_group *group);
zb_status zb_nccl_op_take(nccl_group *group, const zb_collective *call, nccl_op **op_p);
void zb_nccl_op_give(nccl_op *op);
void zb_nccl_launch(nccl_op *op);
void zb_nccl_retire(nccl_op *op);
/** The operation in flight that `work` means; NULL when there is none. */
nccl_op *zb_nccl_find(const nccl_group *group, const zb_work *work);
zb_status zb_nccl_await_event(nccl_op *op, cudaEvent_t event, const char *what);

/* --- meet.c: calls meet and are compared; messages --- */

void zb_nccl_describe(const nccl_op *op, char *text, size_t text_bytes);
/**
 * Until all ranks of the group have come to the collective; their calls fit together then. `calls`: every
 * rank's record, [world_size], or NULL.
 */
zb_status zb_nccl_meet_all(nccl_op *op, zb_call_record *calls);
zb_status zb_nccl_begin_message(nccl_op *op);
/** Moves every message in flight on as far as it goes. */
zb_status zb_nccl_move_messages(nccl_world *world, int *moved_p);
zb_status zb_nccl_finish_message(nccl_op *op);

/* --- exchange.c: the work of a collective, queued --- */

zb_status zb_nccl_queue(nccl_op *op, const void *send, void *recv);
/** What a rank sends and receives, in bytes. */
void zb_nccl_extent(const nccl_op *op, size_t *send_bytes, size_t *recv_bytes);

/* --- native.c: NCCL's own reductions, and its report --- */

/** Tells NCCL, by its variables, what `native` wants; ZB_UNSUPPORTED where that cannot be. */
zb_status zb_nccl_native_set(const zb_orders *native);
zb_status zb_nccl_native_queue(nccl_op *op, const void *send, void *recv);
/** Equal where the orders are. ZB_NO_MEMORY. */
zb_status zb_nccl_hash_orders(const zb_orders *orders, uint64_t *hash_p);
/** How far NCCL has reported; 0 without a report. */
long zb_nccl_report_end(void);
/** From here on it is too late to ask for a report. */
void zb_nccl_report_begun(void);

extern const zb_comm_ops zb_nccl_comm_ops;

#endif
