/* What the files of this folder share. All of it is under the lock of the CUDA stand-in. */
#ifndef ZB_SIM_NCCL_STATE_H
#define ZB_SIM_NCCL_STATE_H

#include <zerobit/orders.h>

#include "sim/cuda/standin.h"
#include "sim/nccl/standin.h"

enum { RANKS_MAX = 64, SCALES_MAX = 64, GROUP_MAX = 4 * RANKS_MAX, POLLS_MAX = 3 };

typedef struct world world;
typedef struct launch launch;

typedef enum comm_state { COMM_MAKING, COMM_READY, COMM_FINALIZED, COMM_DESTROYED, COMM_ABORTED } comm_state;

struct ncclComm {
    struct ncclComm *next;
    world *world;
    int rank, device, blocking;
    comm_state state;
    int polls; /* so often it still answers ncclInProgress */
    ncclResult_t failed;
    char text[256];
    uint64_t issued, finished; /* launches; they run in this order */
    uint64_t collectives;      /* issued */
    int splits;
    int scale_count;
    double scales[SCALES_MAX];
    ncclDataType_t scale_types[SCALES_MAX];
};

/* The ranks that have one unique id, or one split and color, in common. */
struct world {
    world *next;
    ncclUniqueId id;
    int size, came;
    ncclComm_t members[RANKS_MAX];
    struct meeting *meetings;
    struct division *divisions;
    struct message *messages; /* a half that waits for the other one, oldest first */
};

typedef enum call_kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, SEND, RECEIVE } call_kind;

typedef struct call {
    call_kind kind;
    const void *send;
    void *recv;
    size_t count;
    ncclDataType_t type;
    int op_is_scale; /* then `scale` */
    ncclRedOp_t op;
    double scale;
    int peer; /* or root */
    ncclComm_t comm;
    cudaStream_t stream;
    int posted, done;
    uint64_t number; /* of a collective in its communicator */
} call;

/* What one rank queues at once: a collective, or the messages of a group. */
struct launch {
    ncclComm_t comm;
    uint64_t issue;
    int call_count, failing, counted;
    call calls[];
};

/* One collective: all ranks' calls of that number. */
typedef struct meeting {
    struct meeting *next;
    uint64_t number;
    int came, failed;
    call *calls[RANKS_MAX];
} meeting;

typedef struct message {
    struct message *next;
    int from, to;
    call *half;
} message;

typedef struct division {
    struct division *next;
    int number, came;
    int colors[RANKS_MAX], keys[RANKS_MAX], blocking[RANKS_MAX];
    ncclComm_t *parts[RANKS_MAX];
} division;

typedef struct si_nccl_session {
    int open;
    uint64_t random;
    zb_order_source source;
    world *worlds;
    ncclComm_t comms;
    uint64_t ids, reductions;
    int mistakes;
    char first_mistake[512];
    int64_t fail_countdown, async_countdown;
    ncclResult_t fail_result, async_result;
    int fired;
} si_nccl_session;
extern si_nccl_session si_nccl;

/* --- session.c --- */

/** Every call begins here: it may be the one that fails. */
ncclResult_t si_nccl_enter(void);
/** Keeps the first one for the session's end, and its words for ncclGetLastError; returns `result`. */
ncclResult_t si_nccl_mistake(ncclComm_t comm, ncclResult_t result, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
uint64_t si_nccl_draw(uint64_t below);
/** What NCCL would write about a communicator that has been made, and a collective that is issued. */
void si_nccl_report_world(const world *w);
void si_nccl_report_call(const call *c);

/* --- comm.c --- */

/** Whether it is there, and through with the call before. */
ncclResult_t si_nccl_check_comm(ncclComm_t comm, const char *name);
/** What a call answers that has done its part. */
ncclResult_t si_nccl_answer(ncclComm_t comm);

/* --- run.c --- */

extern const char *const si_nccl_names[];
size_t si_nccl_type_bytes(ncclDataType_t type);
int si_nccl_is_floating(ncclDataType_t type);
/** ZB_DTYPE_COUNT: the stand-in does not add that type. */
zb_dtype si_nccl_dtype(ncclDataType_t type);
/** The communicator is aborted: what waits for other ranks does so no more, since its memory goes. */
void si_nccl_forget(ncclComm_t comm);
/** One launch: a collective, or the messages of a group. */
ncclResult_t si_nccl_queue(const call *calls, int count);

/* --- issue.c --- */

/** Whether this thread is between ncclGroupStart and ncclGroupEnd. */
int si_nccl_in_group(void);

#endif
