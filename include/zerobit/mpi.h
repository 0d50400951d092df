/*
 * Ranks as processes under mpirun: a communicator over MPI. Data moves by MPI's messages, and every reduction plays its record
 * (<zerobit/orders.h>) on them; or, where it is asked for, Open MPI itself adds. A library of its own, zerobit_mpi, so that the
 * others do not need MPI. docs/mpi.md says how to run it and what its errors look like.
 *
 *     int main(void)
 *     {
 *         zb_comm *world;
 *         zb_status status = zb_comm_mpi_create(NULL, &world);
 *         if (status == ZB_OK) status = my_rank_main(world);
 *         if (status != ZB_OK) fprintf(stderr, "%s\n", zb_error_message());
 *         return zb_mpi_end(status == ZB_OK ? 0 : 1);
 *     }
 *
 * A process has one such world, and one thread at a time may use it. A failure of one rank reaches all: whatever this back end
 * returns other than ZB_OK is told to every other rank once, which gets ZB_REMOTE, "rank R failed: MESSAGE", from the collective
 * it is in or comes to. Then only zb_mpi_end is left. (A bad argument that zb_comm_start refuses before any back end sees it,
 * like a failure outside of collectives, reaches the others with zb_mpi_fail or zb_mpi_end.)
 *
 * Collectives of this back end fail with
 *   ZB_MISMATCH  ranks called different collectives, or the same with other arguments: on every rank of the group, with the same
 *                message, which names the field, both values and both calls;
 *   ZB_DEADLOCK  nothing has moved for timeout_seconds: which ranks have not come, and where they are as far as they answer;
 *   ZB_REMOTE    another rank has failed.
 *
 * A blocking send waits until the other side has come. While one operation is waited for, all that this process has in flight go
 * on. A pattern of calls that repeats allocates nothing from its second round on, as far as zerobit is asked; MPI has memory of
 * its own. A reduction in flight holds 4 MiB, or 16 KiB for each rank of its group if that is more (rounded up to a power of two), whatever its size;
 * the process keeps that memory for the next one.
 */
#ifndef ZEROBIT_MPI_H
#define ZEROBIT_MPI_H

#include <zerobit/comm.h>
#include <zerobit/orders.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct zb_mpi_options {
    /*
     * Sums, averages and pre-multiplied sums whose order is that of their kind in here are left to Open MPI, which is made to use
     * the algorithm of that name; see zb_mpi_native. Copied. NULL: none.
     */
    const zb_orders *native;
    double timeout_seconds;   /* of one wait in which nothing moves; 0: 300 */
    size_t message_bytes_max; /* larger messages are cut; at least 64, at most INT_MAX; 0: 1 GiB. For tests */
    int unchecked;            /* leave out the comparison of calls before each collective; ranks whose calls differ are then not told */
} zb_mpi_options;

/**
 * The communicator of all ranks that mpirun has started; initialises MPI where nobody has. Collective, with equal options on all
 * ranks (NULL: all of them zero). It belongs to the process until zb_mpi_end, and zb_comm_destroy leaves it alone.
 *
 * ZB_INVALID_ARGUMENT for an option; ZB_UNSUPPORTED, where `native` is wanted: not Open MPI 4.1, or it was initialised without
 * coll_tuned_use_dynamic_rules, or does not add as it was told; ZB_MISMATCH: ranks have different options (timeouts may differ);
 * ZB_REMOTE: another rank has failed in here.
 */
ZB_API zb_status zb_comm_mpi_create(const zb_mpi_options *options, zb_comm **comm_p);

/**
 * Which algorithms Open MPI is set to use, by mpirun --mca or the environment: the orders by kind of collective, `mpi-default`
 * where it chooses by size. Initialises MPI where nobody has; may come before zb_comm_mpi_create, whose `native` it is made for.
 * ZB_UNSUPPORTED names what has no order: the number of an algorithm, a file of rules, another library than Open MPI 4.1. The
 * caller owns *orders_p (zb_orders_destroy).
 */
ZB_API zb_status zb_mpi_read_native(zb_orders *orders_p);

/**
 * Whether Open MPI itself would add this collective of `comm`: sum, avg or premul_sum, its order equal to the native one of its
 * kind, an algorithm that Open MPI has for this kind, another type than uint8 (which it adds with saturation), and more than one
 * rank. Such a collective runs to its end in zb_comm_start, also with a zb_work: Open MPI's non-blocking ones add in other
 * orders. ZB_UNSUPPORTED there for more than INT_MAX elements. A premul_sum holds memory for one contribution, a reduce_scatter
 * in place for its result.
 */
ZB_API int zb_mpi_native(const zb_comm *comm, const zb_collective *collective);

/** Tell all other ranks that this one has failed, once; for failures that no collective has returned. */
ZB_API void zb_mpi_fail(zb_status status, const char *message);

/**
 * The end of every rank's main, instead of MPI_Finalize. With 0 on all ranks: waits for all of them, frees the world, finalizes
 * MPI if zerobit has initialised it, and returns 0. Otherwise, or when any rank has failed: tells the others, gives them two
 * seconds to print what they have to say and to come here too, and ends the job (MPI_Abort) with the code of the rank that has
 * failed, the lowest if there are several; a rank that came with 0 prints the failure to stderr and counts as 1. Returns a code
 * other than 0 only where there is no world (zb_comm_mpi_create has failed): then `exit_code`.
 */
ZB_API int zb_mpi_end(int exit_code);

/**
 * What this rank is doing: "waits in all_reduce #3 of world (stage 1: reduce gradients) at engine/stage1.c:49", "came last to
 * ..."; NULL before its first collective and after its end. For a handler of SIGTERM, which mpirun sends when a rank has been
 * killed: may be called there, and the text, which is static, stays until the next call.
 */
ZB_API const char *zb_mpi_place(void);

#ifdef __cplusplus
}
#endif
#endif
