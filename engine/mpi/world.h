/*
 * What the files of this folder share: the process's world, its groups (communicators), and the operations in
 * flight.
 *
 * An operation is a small state machine, and whoever waits for one moves all of them on:
 *
 *   SIGNING ------> COLLECTING -> DELIVERING -> COLLECTING (next round) ... -> DONE
 *      |    \-----> AGREED        the caller goes on by itself: a native reduction, a split
 *      \----------> COMPARING     the calls differ: each rank gets all of them, and fails
 *
 * Every state posts messages and ends when all of them are through. A state's messages have tags of their
 * own, made of the operation's number, so that operations overtake each other freely.
 */
#ifndef ZB_ENGINE_MPI_WORLD_H
#define ZB_ENGINE_MPI_WORLD_H

#include <mpi.h>
#include <stdint.h>
#include <zerobit/mpi.h>

#include "engine/call_record.h"
#include "orders/cache.h"

typedef struct mpi_world mpi_world;
typedef struct mpi_group mpi_group;
typedef struct mpi_op mpi_op;

/* A call in words that are equal where the calls are. */
enum { SIGNATURE_WORDS = 6 };
typedef struct signature {
    uint64_t words[SIGNATURE_WORDS];
    uint64_t inverted[SIGNATURE_WORDS]; /* the largest of these is the smallest of those */
} signature;

typedef enum op_state { OP_SIGNING, OP_COMPARING, OP_AGREED, OP_COLLECTING, OP_DELIVERING, OP_DONE } op_state;

struct mpi_op {
    mpi_op *next, *previous; /* in flight; or the next free one */
    mpi_group *group;
    zb_collective call;
    uint64_t id;       /* of the zb_work */
    uint64_t sequence; /* in the group; of a message: between the two ranks, in this direction */
    op_state state;
    int agrees_only; /* ends in AGREED */
    const zb_reduction *reduction;

    signature mine, largest;
    zb_call_record records[2]; /* of a message: its sender's and its receiver's */
    char *calls;               /* COMPARING: every rank's record and counts */

    /* Rank r looks after elements [firsts[r], firsts[r + 1]), in rounds of at most slot_numel. */
    size_t *firsts; /* [world_size + 1] */
    size_t slot_numel, round, rounds;
    unsigned char *scratch; /* [world_size][slot_numel], of a reduction */
    const void **inputs;    /* [world_size] */

    int request_count;
    MPI_Request *requests; /* [2 world_size] */
    int *indices;
    MPI_Status *statuses;
};

struct mpi_group {
    zb_comm base;
    mpi_world *world;
    mpi_group *next;
    char name[128];
    uint64_t id;       /* the same on all its ranks, and no other group's */
    uint64_t sequence; /* of the next collective */
    int tag_count;     /* of each kind of tag */
    MPI_Comm messages;
    MPI_Comm native[ZB_COLLECTIVE_COUNT]; /* MPI_COMM_NULL: nothing native */
    int *world_ranks;
    uint64_t *sent, *received; /* messages to and from each rank */
    mpi_op *free_ops;
    zb_reduction_cache reductions;
};

/* --- process.c: the world --- */

/** zb_fail with MPI's words where `code` is not MPI_SUCCESS. */
zb_status zb_mpi_check(int code, const char *call);
#define MPI_TRY(call) ZB_TRY(zb_mpi_check((call), #call))

/* --- group.c: groups, and memory of operations --- */

/** Memory of a group of up to `ranks_max`; zb_mpi_group_open makes it one. */
zb_status zb_mpi_group_create(mpi_world *world, int ranks_max, mpi_group **group_p);
/** `messages` becomes the group's. Collective: the native communicators are made here. */
zb_status zb_mpi_group_open(mpi_group *group, MPI_Comm messages, const char *name, uint64_t id);
void zb_mpi_group_destroy(mpi_group *group);
/** A blank operation; it goes back with zb_mpi_op_give. */
zb_status zb_mpi_op_take(mpi_group *group, const zb_collective *call, mpi_op **op_p);
void zb_mpi_op_give(mpi_op *op);
/** Scratch memory, 64-byte aligned, kept for the next one of this size when it comes back. */
zb_status zb_mpi_scratch_take(mpi_world *world, size_t bytes, unsigned char **scratch_p);
void zb_mpi_scratch_give(mpi_world *world, unsigned char *scratch);
void zb_mpi_scratch_destroy(mpi_world *world);

/* --- comm_mpi.c: the communicator's table --- */

extern const zb_comm_ops zb_mpi_comm_ops;

/* --- signature.c: are these calls the same? --- */

/** The other rank of a message, in the world; -1 where all of the group take part. */
int zb_mpi_peer(const mpi_op *op);
/** Equal where the orders are. */
uint64_t zb_mpi_hash_orders(const zb_orders *orders);
/** Posts what SIGNING waits for. */
zb_status zb_mpi_sign(mpi_op *op);
/** SIGNING is through: *same_p, or ZB_MISMATCH for a message. */
zb_status zb_mpi_signed(mpi_op *op, int *same_p);
/** Posts what COMPARING waits for. */
zb_status zb_mpi_compare(mpi_op *op);
/** COMPARING is through: ZB_MISMATCH, and the report. */
zb_status zb_mpi_compared(mpi_op *op);

/* --- exchange.c: data --- */

/** Shares, rounds, scratch memory and the reduction of an operation that has been taken. */
zb_status zb_mpi_plan(mpi_op *op);
/** Posts what is wanted in COLLECTING, DELIVERING; may be nothing. */
zb_status zb_mpi_collect(mpi_op *op);
zb_status zb_mpi_deliver(mpi_op *op);

/* A message of one kind and number never meets one of another. */
typedef enum tag_kind { TAG_COLLECT, TAG_DELIVER, TAG_CALL, TAG_MESSAGE, TAG_REPLY, TAG_KINDS } tag_kind;
zb_status zb_mpi_post_send(mpi_op *op, tag_kind kind, const void *data, size_t bytes, int to,
                           int synchronous);
zb_status zb_mpi_post_receive(mpi_op *op, tag_kind kind, void *data, size_t bytes, int from);

/* --- progress.c: operations in flight, waiting --- */

/** In flight from here on. */
void zb_mpi_launch(mpi_world *world, mpi_op *op);
/** Once round all operations in flight. */
zb_status zb_mpi_progress(mpi_world *world, int *moved_p);
/** Until `op` is in `state`. */
zb_status zb_mpi_wait_until(mpi_op *op, op_state state);
/** The operation in flight that `work` means; NULL when there is none. */
mpi_op *zb_mpi_find(const mpi_group *group, const zb_work *work);
/** Not in flight any more; its memory goes back. */
void zb_mpi_retire(mpi_op *op);
/** After a failure: no message arrives in memory that its owner may free. */
void zb_mpi_cancel_all(mpi_world *world);
/** The next step of a loop in which nothing has moved `idle` times: spins, yields, then sleeps up to 50 us.
 */
void zb_mpi_back_off(unsigned idle);
double zb_mpi_now(void);

/* --- notices.c: failures reach everybody --- */

zb_status zb_mpi_listen(mpi_world *world);
void zb_mpi_stop_listening(mpi_world *world);
/** This rank has failed: keeps it, tells all others. `group` and `peer` share a mismatch, see notice. */
void zb_mpi_tell(mpi_world *world, const mpi_group *group, int peer, zb_status status, const char *message);
void zb_mpi_say_ended(mpi_world *world, int exit_code);
/** Looks for notices. ZB_REMOTE, or whatever else is left to be returned, once any rank has failed. */
zb_status zb_mpi_look(mpi_world *world);
/** Passes `status` on; a failure of this rank is told to the others first. */
zb_status zb_mpi_settle(mpi_world *world, const mpi_group *group, int peer, zb_status status);
/** Nothing has moved in `op` for too long: asks its ranks where they are. ZB_DEADLOCK, or what happened. */
zb_status zb_mpi_stalled(mpi_op *op);

/* --- place.c: where this rank is, in words --- */

void zb_mpi_place_enter(const mpi_op *op);
void zb_mpi_place_leave(void);
void zb_mpi_place_clear(void);
/** "all_reduce #3 of world (what) at file:line". */
void zb_mpi_describe(const mpi_op *op, char *text, size_t text_bytes);

/* --- native.c: Open MPI's own reductions --- */

/** Refuses what this MPI library cannot be made to do. */
zb_status zb_mpi_native_check(const zb_orders *native);
/** The group's communicators on which Open MPI adds as it is told. Collective. */
zb_status zb_mpi_native_open(mpi_group *group);
zb_status zb_mpi_native_read(zb_orders *orders_p);
/** More elements than Open MPI counts. */
zb_status zb_mpi_native_refuse(const mpi_group *group, const zb_collective *call);
/** Memory for an operation that has been planned. */
zb_status zb_mpi_native_prepare(mpi_op *op);
/** The whole of an operation that all ranks have come to. Blocks. */
zb_status zb_mpi_native_run(mpi_op *op);

/* --- probe.c: does Open MPI do it? --- */

/** ZB_UNSUPPORTED where a native reduction of the group's is not what its record says. Collective. */
zb_status zb_mpi_probe(zb_comm *comm);

/* --- the world itself --- */

enum { NOTICE_TEXT_BYTES = 1920, SCRATCH_CLASSES = 64 };

typedef enum notice_kind { NOTICE_FAILED, NOTICE_ENDED, NOTICE_QUESTION, NOTICE_ANSWER } notice_kind;
typedef struct notice {
    int32_t kind, rank;
    int32_t status, exit_code; /* FAILED; ENDED */
    int32_t peer;              /* FAILED: the one rank that shares a mismatch; -1: all of the group */
    int32_t question;
    uint64_t group;   /* of a mismatch, a question */
    uint64_t started; /* ANSWER: how many collectives of the group this rank has come to */
    char text[NOTICE_TEXT_BYTES];
} notice;

/* A notice on its way. */
typedef struct outgoing {
    struct outgoing *next;
    notice notice;
    int count;
    MPI_Request requests[];
} outgoing;

/* What ranks have answered. */
typedef struct answers {
    int32_t question;
    int count;
    struct answer {
        int came; /* 0: no answer yet */
        uint64_t started;
        char text[256];
    } of[]; /* [world_size] */
} answers;

typedef struct mpi_failure {
    int set, rank;
    zb_status status; /* what this rank returns */
    char message[ZB_ERROR_MESSAGE_BYTES];
} mpi_failure;

struct mpi_world {
    int rank, size;
    int initialised_here; /* MPI: then it is finalized here, too */
    double timeout_seconds;
    size_t message_bytes_max;
    int unchecked;
    zb_orders native;

    MPI_Op half_sums[2]; /* bf16, fp16; MPI_OP_NULL: not made yet */

    mpi_group *world, *groups;
    mpi_op *first, *last; /* in flight, oldest first */
    uint64_t work_count;
    struct scratch_block *free_scratch[SCRATCH_CLASSES];

    MPI_Comm notices;
    MPI_Request listening;
    notice heard;
    outgoing *failed, *ended; /* made in advance: there may be no memory when they are needed */
    outgoing *under_way;
    answers *answers; /* while somebody asks */
    int32_t question_count;
    mpi_failure failure;
    int ender;                     /* the lowest rank that has failed; -1: none */
    int ended_count, *ended_codes; /* [size]; -1: not yet */
};

#endif
