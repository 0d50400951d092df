/*
 * Communicators: how ranks talk. engine/ defines the table, back ends (self, sim, mpi, nccl) fill it, behind
 * one front door that checks arguments and counts traffic.
 *
 * Every collective must be called by all ranks of the communicator, in the same order, with the same
 * signature (kind, dtype, counts, op, root, order).
 *
 * Reductions add in the order that the caller names, whichever back end they run on: `rank` (ascending ranks, 16-bit types and
 * fp32 in an fp32 accumulator, rounded once), or that of a library (<zerobit/orders.h>).
 */
#ifndef ZEROBIT_COMM_H
#define ZEROBIT_COMM_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/collective.h>
#include <zerobit/device.h>
#include <zerobit/kernels.h>
#include <zerobit/reduction.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * numel in each kind (W = world size):          send           recv            may be in place
 *   all_reduce        numel = elements          numel          numel           recv == send
 *   reduce_scatter    numel = per rank          W * numel      numel           recv == send + rank * numel
 *   reduce_scatter_v  counts[W]                 sum(counts)    counts[rank]    recv == send + sum(counts[0..rank-1])
 *   all_gather        numel = per rank          numel          W * numel       send == recv + rank * numel
 *   all_to_all        numel = per pair          W * numel      W * numel       no
 *   broadcast         numel                     -              numel           recv is the buffer; root's is read
 *   reduce            numel                     numel          numel at root   recv == send
 *   send, recv        numel                     send: numel    recv: numel     `root` is the peer
 *   barrier           0                         -              -
 */
typedef struct zb_collective {
    zb_collective_kind kind;
    const void *send;
    void *recv;
    size_t numel;
    const size_t *counts; /* reduce_scatter_v: [W], must stay valid until the work is waited for */
    zb_dtype dtype;
    zb_redop op;
    double factor; /* PREMUL_SUM */
    const zb_order_source *order; /* of sum, avg and premul_sum; NULL: rank order. Must stay valid until the work is waited for */
    int root;
    zb_stream *stream; /* the buffers are ready when this stream gets here; NULL for host memory */
    const char *what;  /* for reports: "stage 2: reduce bucket"; static string */
    const char *file;  /* call site, filled in by the macros below */
    int line;
} zb_collective;

/** A started collective. A plain value; zero is "nothing to wait for". */
typedef struct zb_work { uint64_t id; void *handle; } zb_work;

typedef struct zb_comm zb_comm;
typedef struct zb_comm_ops {
    const char *name; /* "self", "sim", "mpi", "nccl" */
    int takes_device_memory; /* buffers of a call with a stream may be where the host cannot reach them */
    /* Start; when work is NULL also finish. Arguments have been checked. A zero work needs no waiting, on no stream. */
    zb_status (*start)(zb_comm *comm, const zb_collective *collective, zb_work *work);
    /* Finish: from this point of `stream` on, or with NULL on return, recv holds the result and send may be written. */
    zb_status (*wait)(zb_comm *comm, zb_work *work, zb_stream *stream);
    /* Ranks with equal color form a new communicator, ordered by (key, rank); color < 0: none (*out = NULL). Collective. */
    zb_status (*split)(zb_comm *comm, int color, int key, zb_comm **out);
    /* Optional: tell the other ranks. */
    void (*fail)(zb_comm *comm, zb_status status, const char *message);
    void (*destroy)(zb_comm *comm);
} zb_comm_ops;

typedef struct zb_traffic { uint64_t calls, bytes; } zb_traffic;

/**
 * Told of every collective that a rank starts on a communicator, in the order of its calls: after its arguments have been
 * checked, before anything moves. A failure keeps the collective from being started and is passed on.
 */
typedef struct zb_comm_observer {
    zb_status (*starting)(void *user, const zb_comm *comm, const zb_collective *collective);
    void *user;
} zb_comm_observer;

/* Back ends put this first. */
struct zb_comm {
    const zb_comm_ops *ops;
    int rank, world_size;
    /*
     * What this rank has put in, by kind: calls, and payload bytes = the larger of its send and recv buffers
     * (all_reduce n, reduce_scatter W n, all_gather W n, ...). On a ring a rank sends (W-1)/W of it, all_reduce twice that.
     */
    zb_traffic traffic[ZB_COLLECTIVE_COUNT];
    const zb_comm_observer *observer; /* borrowed; NULL: nobody. May be set between two calls */
};

/**
 * Start a collective. work NULL: finished on return, or with a stream from this point of it on. Otherwise the buffers belong to the operation
 * until zb_comm_wait. ZB_INVALID_ARGUMENT for a bad argument; ZB_UNSUPPORTED for device memory where the back end only
 * moves the host's; ZB_MISMATCH, ZB_DEADLOCK, ZB_REMOTE, ZB_RACE from back ends.
 */
ZB_API zb_status zb_comm_start(zb_comm *comm, const zb_collective *collective, zb_work *work);
/**
 * Finish: what is launched on `stream` from here on, or with NULL the host, finds the result in recv and may write to send. The
 * stream need not be the collective's. Fine to call on a zero zb_work. Resets *work to zero.
 */
ZB_API zb_status zb_comm_wait(zb_comm *comm, zb_work *work, zb_stream *stream);
ZB_API zb_status zb_comm_split(zb_comm *comm, int color, int key, zb_comm **out);
/**
 * This rank cannot go on, for a reason that is not the communicator's: every other rank gets ZB_REMOTE, with the message, from the
 * collective that it is in or comes to.
 */
ZB_API void zb_comm_fail(zb_comm *comm, zb_status status, const char *message);
/** Goes before the devices on whose streams it has worked. */
ZB_API void zb_comm_destroy(zb_comm *comm);

/** World of one. */
ZB_API zb_status zb_comm_self_create(zb_comm **comm_p);

/*
 * For back ends that work in stream order: what they have started, each with an event that tells when. Events are kept for the next
 * one, so that a pattern of calls that repeats makes none from its second round on. Zero is none.
 */
typedef struct zb_stream_works {
    struct zb_stream_work *in_flight, *free;
    uint64_t count;
} zb_stream_works;
/** All that `stream` has been given is this work. */
ZB_API zb_status zb_stream_works_record(zb_stream_works *works, zb_stream *stream, zb_work *work);
/** As zb_comm_ops.wait. ZB_INVALID_ARGUMENT where the work is not in flight here; `name` is the back end's. */
ZB_API zb_status zb_stream_works_wait(zb_stream_works *works, const char *name, const zb_work *work, zb_stream *stream);
ZB_API void zb_stream_works_destroy(zb_stream_works *works);

/* zb_collective_run(comm, work, .kind = ..., ...): fills in the call site. */
#define zb_collective_run(comm, work, ...)                                                                 \
    zb_comm_start((comm), &(zb_collective){ __VA_ARGS__, .file = __FILE__, .line = __LINE__ }, (work))

#ifdef __cplusplus
}
#endif
#endif
