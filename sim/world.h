/*
 * What the files of sim/ share: a world, its workers and ranks, groups of ranks, and operations under way.
 *
 * One lock guards all of it. Data is moved outside the lock: by a rank in its own buffers, or, while an
 * operation is executed, by whichever ranks have come to finish it.
 *
 * An operation (sim_op) goes through
 *   - open: some ranks have not come yet. The last rank's arrival makes it
 *   - complete: its chunks are there to be executed. The last chunk (at once, without chunks) makes it
 *   - done: every rank delivers to itself. The last rank that leaves frees it.
 *
 * A world that breaks lets go of the ranks in open operations. Complete ones always finish, since ranks read
 * and write each other's buffers there.
 */
#ifndef ZB_SIM_WORLD_H
#define ZB_SIM_WORLD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <zerobit/comm.h>
#include <zerobit/sim.h>

#include "orders/cache.h"
#include "orders/signature.h"
#include "sim/fiber.h"
#include "sim/pool.h"

enum { SIM_BLOCK_BYTES = 16384 }; /* of a result: computed and handed out while it is in the cache */

typedef struct sim_rank sim_rank;
typedef struct sim_worker sim_worker;
typedef struct sim_group sim_group;
typedef struct sim_member sim_member;
typedef struct sim_op sim_op;
typedef struct sim_part sim_part;

/* --- an operation under way --- */

/* One rank's part in an operation. */
struct sim_part {
    sim_op *op;
    sim_member *member; /* NULL: has not come */
    zb_collective call;
    int arrived; /* its contribution is ready */
    int async;
    int waiting;   /* its rank is suspended in this operation */
    uint64_t id;   /* of the zb_work, never used twice */
    void *staging; /* async: copy of the contribution, where the operation's result does not hold one */
    sim_part *previous, *next; /* async: the rank's parts in flight */
};

struct sim_op {
    sim_group *group;
    int pair;     /* send and recv: part 0 sends, part 1 receives */
    int src, dst; /* pair: members of the group */
    uint64_t sequence;
    int part_count, arrived, left;
    int first; /* the part whose signature the others must match */
    int complete, done;
    const zb_reduction *reduction; /* how it is added; NULL: in rank order. Belongs to the group's cache */
    size_t numel;                  /* to reduce, over all ranks' results */
    size_t chunk_numel, chunk_count, chunks_taken, chunks_done;
    zb_status status; /* of the execution */
    void *result; /* contributions side by side, or the result for asynchronous parts; NULL if not needed */
    sim_op *next; /* free list, or pairs that wait for their other half */
    sim_op *next_all;
    sim_part parts[]; /* [part_count] */
};

/*
 * Operations of one group and the buffers for their results, kept for reuse. There are as many buffers as
 * operations, all of one size, so that neither the ranks' speed nor the order of sizes decides who allocates.
 */
typedef struct sim_op_pool {
    int part_count;
    size_t op_count, result_count, result_bytes;
    sim_op *all, *free;
    struct sim_result *free_results;
} sim_op_pool;

/* --- groups --- */

struct sim_member {
    zb_comm base; /* comes first */
    sim_group *group;
    sim_rank *rank;
    uint64_t sequence;    /* of its next collective */
    size_t in_flight;     /* asynchronous collectives */
    size_t pairs_pending; /* sends and receives started, not finished */
    size_t pairs_peak;
    sim_op *pairs, *pairs_tail; /* to this member, with one half missing, oldest first */
};

struct sim_group {
    zb_sim *sim;
    sim_group *previous, *next;
    char name[64];
    int size, member_count_left;
    sim_op_pool collectives, pairs;
    zb_reduction_cache reductions;
    sim_op **open; /* ring: open collectives, [open_first & (capacity - 1)] is the oldest */
    size_t open_capacity, open_count;
    uint64_t open_first;
    sim_member members[]; /* [size] */
};

/* --- ranks and workers --- */

typedef enum sim_state { SIM_FINISHED, SIM_RUNNABLE, SIM_RUNNING, SIM_WAITING } sim_state;

/* The operation that a rank came to last, for reports. */
typedef struct sim_place {
    const sim_group *group; /* NULL: none, or its communicator is gone */
    int kind, peer;
    uint64_t sequence;
    const char *what, *file;
    int line;
} sim_place;

struct sim_rank {
    zb_sim *sim;
    sim_worker *worker;
    int index;
    sim_state state;
    sim_fiber fiber;
    zb_error error;
    sim_pool staging;
    sim_part *in_flight;
    sim_part *waits_in;
    sim_place place;
    uint64_t work_count;
    int cycle_color, cycle_part; /* scratch of the search for a wait-for cycle */
    sim_rank *cycle_parent;
};

struct sim_worker {
    zb_sim *sim;
    sim_rank **queue; /* runnable ranks */
    size_t queued;
    uint64_t random;
    int idle;         /* looks out for work, or sleeps */
    atomic_int poked; /* since it began to look out: what it reads without the lock */
    int vain;         /* how often in a row it has looked out for nothing */
    unsigned slept;   /* times that it has not looked out */
    pthread_cond_t wake;
    sim_fiber fiber;
    pthread_t thread;
    const void **inputs; /* [world size] scratch of an execution */
    void *block;         /* [SIM_BLOCK_BYTES] */
};

struct zb_sim {
    pthread_mutex_t lock;
    pthread_cond_t run_changed; /* a run starts, a worker is through with it, the world ends */
    int world_size, worker_count, thread_count;
    int looks_out; /* every worker has a processor of its own: it need not sleep at once */
    sim_worker *workers;
    sim_rank *ranks;
    sim_group *groups;
    sim_group *world;

    zb_rank_main *main;
    void *user;
    uint64_t run_count;
    int quit, running;
    int workers_busy;       /* threads that have not left the present run */
    int active, unfinished; /* ranks: runnable or running; not finished */

    int broken;
    int broken_by; /* rank, or -1: all of those that wait */
    zb_error failure;

    int64_t fault_countdown;
    zb_status fault_status;
    int fault_fired;
};

/* --- scheduler.c --- */

zb_status sim_workers_create(zb_sim *sim, uint64_t seed, size_t stack_bytes);
void sim_workers_destroy(zb_sim *sim);
/** Runs sim->main on every rank. The lock is not held. */
void sim_workers_run(zb_sim *sim);
/** The rank that runs on this thread, NULL outside of one. */
sim_rank *sim_current_rank(void);

/* With the lock held; the first two let go of it while the rank is suspended. */
void sim_suspend(sim_rank *rank, sim_part *part);
void sim_let_others_run(sim_rank *rank);
void sim_wake(sim_rank *rank);
/** The first failure counts. `rank` NULL: every rank that waits has failed. */
void sim_break(zb_sim *sim, const sim_rank *rank, zb_status status, const char *message);
/** For a rank that comes to a broken world. */
zb_status sim_fail_broken(const zb_sim *sim);

/* --- group.c, with the lock held --- */

zb_status sim_group_create(zb_sim *sim, int size, const char *name, sim_group **group_p);
void sim_group_set_member(sim_group *group, int index, sim_rank *rank);
void sim_group_destroy(sim_group *group);
/** Finds or opens the operation that this call belongs to and takes this rank's part in it. ZB_MISMATCH,
 * ZB_NO_MEMORY. */
zb_status sim_group_join(sim_member *member, const zb_collective *call, int async, sim_part **part_p);
/** The operation is complete: the next one of its group is the oldest. */
void sim_group_close(sim_op *op);
/** This rank is through with the operation. */
void sim_group_leave(sim_part *part);
/** Groups by color; executes a split. */
zb_status sim_group_split(sim_op *op);

/* --- signature.c: what a call says, without the data --- */

size_t sim_send_bytes(const zb_collective *call, int size, int index);
size_t sim_recv_bytes(const zb_collective *call, int size, int index);
size_t sim_reduced_numel(const zb_collective *call, int size);
size_t sim_result_bytes(const zb_collective *call, int size, int index, int async);

/* --- execute.c: arithmetic and data movement, without the lock --- */

int sim_part_index(const sim_part *part);
/** Where the result holds this part's contribution; NULL when it does not. */
void *sim_contribution(const sim_part *part);
/** Sets the chunks of a complete operation, and how it is added; the lock is held. Fails where its order is
 * not offered. */
zb_status sim_plan(sim_op *op);
zb_status sim_execute_chunk(sim_op *op, size_t chunk, sim_worker *worker);
/** Whether sim_deliver has anything to do, or to check. */
int sim_delivers(const sim_part *part);
/** Copies to this part's receive buffer what the execution has not put there. */
void sim_deliver(sim_part *part);

/* --- collective.c --- */

extern const zb_comm_ops sim_comm_ops;

/* --- report.c, with the lock held --- */

sim_rank *sim_part_rank(const sim_op *op, int index); /* whether it has come or not */
void sim_describe_part(const sim_part *part, char *text, size_t text_bytes);
void sim_describe_place(const sim_place *place, char *text, size_t text_bytes);
void sim_report_mismatch(const sim_part *first, const sim_part *second, const char *difference, char *text,
                         size_t text_bytes);
void sim_report_deadlock(zb_sim *sim, char *text, size_t text_bytes);

#endif
