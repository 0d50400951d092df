/*
 * Failures reach everybody: small messages between any two ranks, on a communicator of their own, which every
 * loop that waits looks for. The first failure that a rank has or hears of is the one it reports from then
 * on.
 *
 *   FAILED     from the rank that failed to all others, once
 *   ENDED      from every rank to all others, when it has nothing more to say
 *   QUESTION   from a rank in which nothing moves: where are you?
 *   ANSWER     to it, from whoever waits, too, or has ended
 */
#include "engine/mpi/world.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

#include "orders/signature.h"

enum { NOTICE_TAG = 1 };

/* --- sending --- */

static zb_status send_to(mpi_world *world, outgoing *out, int rank)
{
    const size_t bytes = offsetof(notice, text) + strlen(out->notice.text) + 1;
    MPI_TRY(MPI_Isend(&out->notice, (int)bytes, MPI_BYTE, rank, NOTICE_TAG, world->notices,
                      &out->requests[out->count]));
    out->count++;
    return ZB_OK;
}

/* A rank that cannot be told any more has died; mpirun ends the job then. */
static void send_to_all(mpi_world *world, outgoing *out)
{
    for (int r = 0; r < world->size; r++)
        if (r != world->rank && send_to(world, out, r) != ZB_OK) return;
}

/* To one rank, with memory of its own until it is through. */
static zb_status send_single(mpi_world *world, const notice *what, int rank)
{
    outgoing *out = zb_alloc(sizeof *out + sizeof(MPI_Request));
    if (out == NULL) return ZB_NO_MEMORY;
    out->notice = *what;
    out->next = world->under_way;
    world->under_way = out;
    return send_to(world, out, rank);
}

static void free_sent(mpi_world *world)
{
    outgoing **link = &world->under_way;
    while (*link != NULL) {
        outgoing *out = *link;
        int through = 1;
        if (out->count > 0) MPI_Testall(out->count, out->requests, &through, MPI_STATUSES_IGNORE);
        if (through) {
            *link = out->next;
            zb_free(out);
        } else {
            link = &out->next;
        }
    }
}

static notice blank(const mpi_world *world, notice_kind kind)
{
    return (notice){ .kind = (int)kind, .rank = world->rank, .peer = -1 };
}

/* --- the failure --- */

/* Of the ranks that have failed by themselves the lowest ends the job: all come to know who that is. */
static void note_failed_rank(mpi_world *world, int rank)
{
    if (world->ender < 0 || rank < world->ender) world->ender = rank;
}

static void keep_failure(mpi_world *world, int rank, zb_status status, const char *message)
{
    world->failure.set = 1;
    world->failure.rank = rank;
    world->failure.status = status;
    snprintf(world->failure.message, sizeof world->failure.message, "%s", message);
}

static zb_status fail_again(const mpi_world *world)
{
    return zb_fail(world->failure.status, "%s", world->failure.message);
}

void zb_mpi_tell(mpi_world *world, const mpi_group *group, int peer, zb_status status, const char *message)
{
    notice *n = &world->failed->notice;
    keep_failure(world, world->rank, status, message);
    note_failed_rank(world, world->rank);
    *n = blank(world, NOTICE_FAILED);
    n->status = (int)status;
    n->group = group != NULL ? group->id : 0;
    n->peer = peer;
    snprintf(n->text, sizeof n->text, "%s", message);
    send_to_all(world, world->failed);
    zb_mpi_cancel_all(world);
}

zb_status zb_mpi_settle(mpi_world *world, const mpi_group *group, int peer, zb_status status)
{
    if (status == ZB_OK || world->failure.set) return status;
    char message[ZB_ERROR_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", zb_error_message());
    zb_mpi_tell(world, group, peer, status, message);
    return fail_again(world); /* whatever else has been said meanwhile */
}

void zb_mpi_say_ended(mpi_world *world, int exit_code)
{
    world->ended->notice = blank(world, NOTICE_ENDED);
    world->ended->notice.exit_code = exit_code;
    world->ended_codes[world->rank] = exit_code;
    world->ended_count++;
    send_to_all(world, world->ended);
}

/* --- hearing --- */

static const mpi_group *find_group(const mpi_world *world, uint64_t id)
{
    const mpi_group *group = world->groups;
    while (group != NULL && group->id != id) group = group->next;
    return group;
}

/* A mismatch belongs to all ranks that called: they would have come to the same report. */
static int shares_mismatch(const mpi_world *world, const notice *n)
{
    if (n->status != ZB_MISMATCH || find_group(world, n->group) == NULL) return 0;
    return n->peer < 0 || n->peer == world->rank;
}

static void hear_failed(mpi_world *world, const notice *n)
{
    note_failed_rank(world, n->rank);
    if (world->failure.set) return;
    char message[ZB_ERROR_MESSAGE_BYTES];
    if (shares_mismatch(world, n)) {
        keep_failure(world, n->rank, ZB_MISMATCH, n->text);
    } else {
        snprintf(message, sizeof message, "rank %d failed: %s", n->rank, n->text);
        keep_failure(world, n->rank, ZB_REMOTE, message);
    }
    zb_mpi_cancel_all(world);
}

static void hear_ended(mpi_world *world, const notice *n)
{
    if (world->ended_codes[n->rank] < 0) world->ended_count++;
    world->ended_codes[n->rank] = n->exit_code;
}

static zb_status hear_question(mpi_world *world, const notice *n)
{
    notice answer = blank(world, NOTICE_ANSWER);
    const mpi_group *group = find_group(world, n->group);
    const char *place = zb_mpi_place();
    answer.question = n->question;
    answer.started = group != NULL ? group->sequence : 0;
    snprintf(answer.text, sizeof answer.text, "%s", place != NULL ? place : "has ended");
    return send_single(world, &answer, n->rank);
}

static void hear_answer(mpi_world *world, const notice *n)
{
    answers *a = world->answers;
    if (a == NULL || n->question != a->question || a->of[n->rank].came) return;
    a->count++;
    a->of[n->rank].came = 1;
    a->of[n->rank].started = n->started;
    snprintf(a->of[n->rank].text, sizeof a->of[n->rank].text, "%s", n->text);
}

static zb_status hear(mpi_world *world, const notice *n)
{
    switch ((notice_kind)n->kind) {
    case NOTICE_FAILED:
        hear_failed(world, n);
        break;
    case NOTICE_ENDED:
        hear_ended(world, n);
        break;
    case NOTICE_QUESTION:
        return hear_question(world, n);
    case NOTICE_ANSWER:
        hear_answer(world, n);
        break;
    }
    return ZB_OK;
}

zb_status zb_mpi_listen(mpi_world *world)
{
    MPI_TRY(MPI_Irecv(&world->heard, sizeof world->heard, MPI_BYTE, MPI_ANY_SOURCE, NOTICE_TAG,
                      world->notices, &world->listening));
    return ZB_OK;
}

static zb_status hear_all(mpi_world *world)
{
    for (;;) {
        int came = 0;
        MPI_TRY(MPI_Test(&world->listening, &came, MPI_STATUS_IGNORE));
        if (!came) return ZB_OK;
        const notice heard = world->heard;
        /* First, or a failure of hearing would leave nothing to listen with. */
        const zb_status listening = zb_mpi_listen(world);
        ZB_TRY(hear(world, &heard));
        ZB_TRY(listening);
    }
}

zb_status zb_mpi_look(mpi_world *world)
{
    const zb_status status = hear_all(world);
    if (world->under_way != NULL) free_sent(world);
    if (world->failure.set) return fail_again(world);
    return zb_mpi_settle(world, NULL, -1, status);
}

void zb_mpi_stop_listening(mpi_world *world)
{
    if (world->listening != MPI_REQUEST_NULL) {
        MPI_Cancel(&world->listening);
        MPI_Wait(&world->listening, MPI_STATUS_IGNORE);
    }
    while (world->under_way != NULL) free_sent(world);
    if (world->notices != MPI_COMM_NULL) MPI_Comm_free(&world->notices);
}

/* --- nothing moves --- */

typedef struct report {
    char text[ZB_ERROR_MESSAGE_BYTES];
    size_t used;
} report;

__attribute__((format(printf, 2, 3))) static void append(report *r, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int wanted = vsnprintf(r->text + r->used, sizeof r->text - r->used, format, args);
    va_end(args);
    const size_t left = sizeof r->text - 1 - r->used;
    if (wanted > 0) r->used += (size_t)wanted < left ? (size_t)wanted : left;
}

static const struct answer *answer_of(const mpi_op *op, int rank)
{
    return &op->group->world->answers->of[op->group->world_ranks[rank]];
}

static int concerns(const mpi_op *op, int rank)
{
    return rank != op->group->base.rank && (!zb_call_is_pair((int)op->call.kind) || rank == op->call.root);
}

static int has_come(const mpi_op *op, int rank)
{
    if (zb_call_is_pair((int)op->call.kind)) return op->state != OP_SIGNING;
    const struct answer *a = answer_of(op, rank);
    return rank == op->group->base.rank || (a->came && a->started > op->sequence);
}

static int same_answer(const mpi_op *op, int a, int b)
{
    return strcmp(answer_of(op, a)->text, answer_of(op, b)->text) == 0;
}

typedef int rank_test(const mpi_op *op, int rank, int other);

static int is_missing(const mpi_op *op, int rank, int other)
{
    (void)other;
    return !has_come(op, rank);
}

/* "rank 3" or "ranks 0,2,3": those that the operation concerns, and that the test holds for. */
static void append_ranks(report *r, const char *lead, const mpi_op *op, rank_test *test, int other)
{
    int count = 0, written = 0;
    for (int rank = 0; rank < op->group->base.world_size; rank++)
        count += concerns(op, rank) && test(op, rank, other);
    if (count > 0) append(r, "%s%s ", lead, count == 1 ? "rank" : "ranks");
    for (int rank = 0; rank < op->group->base.world_size; rank++)
        if (concerns(op, rank) && test(op, rank, other))
            append(r, "%s%d", written++ > 0 ? "," : "", op->group->world_ranks[rank]);
}

static int is_first_with_answer(const mpi_op *op, int rank)
{
    for (int before = 0; before < rank; before++)
        if (concerns(op, before) && same_answer(op, before, rank)) return 0;
    return 1;
}

/* Ranks of the same answer together. */
static void append_places(report *r, const mpi_op *op)
{
    for (int rank = 0; rank < op->group->base.world_size; rank++) {
        if (!concerns(op, rank) || !is_first_with_answer(op, rank)) continue;
        append_ranks(r, "\n  ", op, same_answer, rank);
        append(r, ": %s",
               answer_of(op, rank)->came ? answer_of(op, rank)->text
                                         : "does not answer: is in no collective, or hangs");
    }
}

static zb_status ask(mpi_op *op)
{
    enum { PATIENCE_SECONDS = 1 };
    mpi_world *world = op->group->world;
    notice question = blank(world, NOTICE_QUESTION);
    question.group = op->group->id;
    question.question = world->answers->question;
    int asked = 0;
    for (int r = 0; r < op->group->base.world_size; r++) {
        if (!concerns(op, r)) continue;
        ZB_TRY(send_single(world, &question, op->group->world_ranks[r]));
        asked++;
    }
    const double deadline = zb_mpi_now() + PATIENCE_SECONDS;
    for (unsigned idle = 0; world->answers->count < asked && zb_mpi_now() < deadline; idle++) {
        ZB_TRY(zb_mpi_look(world));
        zb_mpi_back_off(idle);
    }
    return ZB_OK;
}

static zb_status report_stall(const mpi_op *op)
{
    report r = { .used = 0 };
    char call[512];
    zb_mpi_describe(op, call, sizeof call);
    append(&r, "nothing has moved for %g s in %s", op->group->world->timeout_seconds, call);
    append_ranks(&r, ": not there: ", op, is_missing, 0);
    append_places(&r, op);
    return zb_fail(ZB_DEADLOCK, "%s", r.text);
}

zb_status zb_mpi_stalled(mpi_op *op)
{
    mpi_world *world = op->group->world;
    world->answers = zb_alloc(sizeof *world->answers + (size_t)world->size * sizeof world->answers->of[0]);
    if (world->answers == NULL) return ZB_NO_MEMORY;
    world->answers->question = ++world->question_count;
    zb_status status = ask(op);
    if (status == ZB_OK) status = report_stall(op);
    zb_free(world->answers);
    world->answers = NULL;
    return status;
}
