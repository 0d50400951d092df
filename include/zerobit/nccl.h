/*
 * Ranks on NCCL: a communicator whose ranks are processes, each with a CUDA device (<zerobit/cuda.h>). A library of its own,
 * zerobit_nccl, so that the others need no NCCL. docs/nccl.md says how to start it and what its errors look like.
 *
 *     zb_nccl_environment here;
 *     zb_device *device;
 *     zb_comm *world;
 *     ZB_TRY(zb_nccl_environment_read(&here));
 *     ZB_TRY(zb_device_cuda_create(here.local_rank, &device));
 *     ZB_TRY(zb_comm_nccl_create(&(zb_nccl_options){ .device = device, .environment = &here }, &world));
 *
 * NCCL moves the data. Reductions are added by zerobit's own kernels, in the order that the call names, from contributions that NCCL
 * has only moved; or, where it is asked for, NCCL itself adds.
 *
 * All work of a communicator is queued on a stream of its own: it begins when the call's stream gets to the call, and zb_comm_wait
 * lets another stream, or the host, wait for it; streams may be those of any handle of the same GPU. Buffers are memory of the communicator's device where the call has a stream, and the
 * host's where it has none; these are staged through device memory of their own size. Messages (send, recv) go by way of the hosts:
 * NCCL would let them wait for collectives that were started before, and two ranks that send to each other wait forever.
 *
 * The ranks keep a connection (TCP) between any two of them. Before anything is queued, every collective meets on it: the host waits
 * in zb_comm_start until all ranks of the communicator have come, and compares their calls. Ranks that have several communicators in
 * common must start collectives on them in the same order, as NCCL wants it.
 *
 * Collectives of this back end fail with
 *   ZB_MISMATCH  ranks called different collectives, or the same with other arguments: on every rank of the communicator, with the
 *                same message, which names the field, both values and both calls;
 *   ZB_DEADLOCK  a wait has lasted timeout_seconds: the collective, which ranks have not come, and where they were last;
 *   ZB_REMOTE    another rank has failed ("rank R failed: MESSAGE"), has ended, or is gone;
 *   ZB_INTERNAL  an error of NCCL's or CUDA's, with the call and NCCL's own words.
 * Whatever a rank returns other than ZB_OK is told to all others, which abort what NCCL has queued (ncclCommAbort). The failure is the
 * end of the world: every later call returns it again, and only zb_comm_destroy is left. A watching thread does the same while no call
 * of this library is under way, so that a stream never waits for a rank that is gone: what it finds is returned by the next call.
 *
 * One thread at a time may use a world's communicators.
 */
#ifndef ZEROBIT_NCCL_H
#define ZEROBIT_NCCL_H

#include <stddef.h>
#include <zerobit/comm.h>
#include <zerobit/device.h>
#include <zerobit/orders.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Who this process is, and where its ranks meet. */
typedef struct zb_nccl_environment {
    int rank, world_size;
    int local_rank;    /* among the ranks of this machine */
    char address[256]; /* where rank 0 listens: a host name or a number */
    int port;
    char job[128];     /* the same text on all ranks of a job, and another one in every other job; "" where the launcher gives none */
} zb_nccl_environment;

/**
 * Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun sets them, or Open MPI's OMPI_COMM_WORLD_RANK, _SIZE and
 * _LOCAL_RANK with MASTER_ADDR (127.0.0.1 where all ranks are on this machine) and MASTER_PORT (29500). `job` is TORCHELASTIC_RUN_ID or
 * PMIX_NAMESPACE. ZB_INVALID_ARGUMENT names the variable, its value and what is expected.
 */
ZB_API zb_status zb_nccl_environment_read(zb_nccl_environment *environment_p);

typedef struct zb_nccl_options {
    zb_device *device;                      /* a CUDA device; borrowed, and outlives the world */
    const zb_nccl_environment *environment; /* copied */
    /*
     * Sums, averages and pre-multiplied sums whose order is that of their kind in here are left to NCCL; see zb_nccl_native. Copied.
     * NULL: none. NCCL is told by NCCL_ALGO and NCCL_PROTO, which it reads once in the life of a process; its channels, rings and
     * buffers are its own choice, and have to be those of the record: zb_nccl_learn.
     */
    const zb_orders *native;
    double timeout_seconds; /* of one wait, the start included; 0: 300 */
    size_t scratch_bytes;   /* device memory that a reduction may hold, in rounds of that; at least 256 per rank; 0: 32 MiB */
    int unchecked;          /* collectives neither meet nor are compared, and start without waiting; barriers and splits do meet */
    int shared_gpu;         /* several ranks on one GPU, which NCCL refuses otherwise: each says that it is a machine of its own
                               (NCCL_HOSTID), and data goes by sockets. For tests */
} zb_nccl_options;

/**
 * The communicator of all ranks. Collective, with equal options on all of them but for device, rank and timeout. To be destroyed by
 * zb_comm_destroy, which waits for the other ranks to do so, too, for timeout_seconds at most, unless something has failed. Communicators
 * made of it by zb_comm_split may outlive it.
 *
 * ZB_INVALID_ARGUMENT for an option; ZB_IO: the rendezvous has failed, with address, port and reason, among them a port in use, another
 * job's rank, something else than zerobit, ranks that have not come; ZB_MISMATCH: ranks have different options, or another number of
 * ranks; ZB_UNSUPPORTED: an NCCL before 2.18, or a native order that it cannot be told; ZB_REMOTE; ZB_INTERNAL.
 */
ZB_API zb_status zb_comm_nccl_create(const zb_nccl_options *options, zb_comm **comm_p);

/**
 * Whether NCCL itself would add this collective of `comm`: all_reduce or reduce_scatter, sum, avg or premul_sum, its order equal to the
 * native one of its kind, and more than one rank.
 */
ZB_API int zb_nccl_native(const zb_comm *comm, const zb_collective *collective);

/**
 * NCCL reports what it chooses to the file `path`, from its first call in this process on: sets NCCL_DEBUG, NCCL_DEBUG_SUBSYS and
 * NCCL_DEBUG_FILE. To be called before any world is made, on every rank with a path of its own. ZB_INVALID_ARGUMENT where one has been
 * made.
 */
ZB_API zb_status zb_nccl_report_to(const char *path);

/**
 * In which order NCCL itself adds an all_reduce or reduce_scatter of this size and type: runs one over zeros and reads NCCL's report of
 * it on rank 0 of the communicator (zb_nccl_report_to comes before). Collective; all ranks get the same. ZB_UNSUPPORTED, with the reason,
 * where it cannot be told or predicted: no report, a tree (of which only all ranks' reports would tell), NVLS, PAT and the like. The
 * caller owns *source_p (zb_order_source_destroy).
 */
ZB_API zb_status zb_nccl_learn(zb_comm *comm, zb_collective_kind kind, zb_dtype dtype, size_t numel, zb_order_source *source_p);

#ifdef __cplusplus
}
#endif
#endif
