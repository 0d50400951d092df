/* Operations in flight: each wait moves all of them on, since another rank may wait for another one first. */
#include "engine/mpi/world.h"

#include <sched.h>
#include <time.h>
#include <zerobit/memory.h>

double zb_mpi_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The other side may want this very core. */
void zb_mpi_back_off(unsigned idle)
{
    enum { SPINS = 100, YIELDS = 2000, NAP_NS_MAX = 50000 };
    if (idle < SPINS) return;
    if (idle < YIELDS) {
        sched_yield();
        return;
    }
    const unsigned shift = (idle - YIELDS) / 64;
    const long nap = shift < 6 ? 1000L << shift : NAP_NS_MAX;
    nanosleep(&(struct timespec){ .tv_nsec = nap < NAP_NS_MAX ? nap : NAP_NS_MAX }, NULL);
}

/* --- the list --- */

void zb_mpi_launch(mpi_world *world, mpi_op *op)
{
    op->id = ++world->work_count;
    op->previous = world->last;
    op->next = NULL;
    if (world->last != NULL)
        world->last->next = op;
    else
        world->first = op;
    world->last = op;
}

mpi_op *zb_mpi_find(const mpi_group *group, const zb_work *work)
{
    for (mpi_op *op = group->world->first; op != NULL; op = op->next)
        if (op == work->handle && op->id == work->id && op->group == group) return op;
    return NULL;
}

void zb_mpi_retire(mpi_op *op)
{
    mpi_world *world = op->group->world;
    if (op->previous != NULL)
        op->previous->next = op->next;
    else
        world->first = op->next;
    if (op->next != NULL)
        op->next->previous = op->previous;
    else
        world->last = op->previous;
    zb_mpi_op_give(op);
}

/* --- moving on --- */

static zb_status after_signing(mpi_op *op)
{
    int same;
    ZB_TRY(zb_mpi_signed(op, &same));
    if (!same) return zb_mpi_compare(op);
    if (op->agrees_only) {
        op->state = OP_AGREED;
        return ZB_OK;
    }
    if (op->rounds > 0) return zb_mpi_collect(op);
    op->state = OP_DONE;
    return ZB_OK;
}

static zb_status after_delivering(mpi_op *op)
{
    if (++op->round < op->rounds) return zb_mpi_collect(op);
    op->state = OP_DONE;
    return ZB_OK;
}

static zb_status next_state(mpi_op *op)
{
    switch (op->state) {
    case OP_SIGNING:
        return after_signing(op);
    case OP_COMPARING:
        return zb_mpi_compared(op);
    case OP_COLLECTING:
        return zb_mpi_deliver(op);
    case OP_DELIVERING:
        return after_delivering(op);
    case OP_AGREED:
    case OP_DONE:
        break;
    }
    return ZB_OK;
}

/* Which message it was, MPI says in its own way or not at all: name the call. */
static zb_status name_error(const mpi_op *op, int code, int completed)
{
    char call[512];
    zb_mpi_describe(op, call, sizeof call);
    for (int i = 0; code == MPI_ERR_IN_STATUS && i < completed; i++)
        if (op->statuses[i].MPI_ERROR != MPI_SUCCESS && op->statuses[i].MPI_ERROR != MPI_ERR_PENDING)
            code = op->statuses[i].MPI_ERROR;
    zb_mpi_check(code, "MPI_Testsome");
    return zb_fail_context("%s", call);
}

static zb_status move_on(mpi_op *op, int *moved_p)
{
    while (op->state != OP_DONE && op->state != OP_AGREED) {
        int completed = MPI_UNDEFINED;
        if (op->request_count > 0) {
            const int code = MPI_Testsome(op->request_count, op->requests, &completed, op->indices,
                                          op->statuses);
            if (code != MPI_SUCCESS) return name_error(op, code, completed);
        }
        if (completed == 0) return ZB_OK;
        *moved_p = 1;
        if (completed != MPI_UNDEFINED) continue;
        op->request_count = 0;
        ZB_TRY(next_state(op));
    }
    return ZB_OK;
}

zb_status zb_mpi_progress(mpi_world *world, int *moved_p)
{
    for (mpi_op *op = world->first; op != NULL; op = op->next) {
        const zb_status status = move_on(op, moved_p);
        if (status != ZB_OK) return zb_mpi_settle(world, op->group, zb_mpi_peer(op), status);
    }
    return ZB_OK;
}

zb_status zb_mpi_wait_until(mpi_op *op, op_state state)
{
    mpi_world *world = op->group->world;
    double since = zb_mpi_now();
    for (unsigned idle = 0; op->state != state; idle++) {
        int moved = 0;
        ZB_TRY(zb_mpi_progress(world, &moved));
        if (op->state == state) return ZB_OK;
        ZB_TRY(zb_mpi_look(world));
        if (moved) {
            idle = 0;
            since = zb_mpi_now();
        } else if (idle % 64 == 63 && zb_mpi_now() - since > world->timeout_seconds) {
            return zb_mpi_settle(world, op->group, -1, zb_mpi_stalled(op));
        }
        zb_mpi_back_off(idle);
    }
    return ZB_OK;
}

/* --- after a failure --- */

static int all_through(const mpi_op *op)
{
    for (int i = 0; i < op->request_count; i++)
        if (op->requests[i] != MPI_REQUEST_NULL) return 0;
    return 1;
}

static int test_all(mpi_world *world)
{
    int through = 1;
    for (mpi_op *op = world->first; op != NULL; op = op->next) {
        int completed;
        if (op->state == OP_SIGNING || all_through(op)) continue;
        MPI_Testsome(op->request_count, op->requests, &completed, op->indices, op->statuses);
        through = through && all_through(op);
    }
    return through;
}

/*
 * Receives that no message has come for are taken back; those that have begun are given a moment to end, and
 * so are sends. Signatures lie in memory of the operation, which stays.
 */
void zb_mpi_cancel_all(mpi_world *world)
{
    enum { DRAIN_MS = 200 };
    for (mpi_op *op = world->first; op != NULL; op = op->next)
        for (int i = 0; op->state != OP_SIGNING && i < op->request_count; i++)
            if (op->requests[i] != MPI_REQUEST_NULL) MPI_Cancel(&op->requests[i]);
    const double deadline = zb_mpi_now() + 1e-3 * DRAIN_MS;
    for (unsigned idle = 0; !test_all(world) && zb_mpi_now() < deadline; idle++) zb_mpi_back_off(idle);
}
