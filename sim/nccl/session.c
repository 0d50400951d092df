/* The session: its beginning and end, mistakes, faults, and what NCCL would report. */
#include "sim/nccl/state.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

si_nccl_session si_nccl;

/* --- mistakes and drawing --- */

ncclResult_t si_nccl_mistake(ncclComm_t comm, ncclResult_t result, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (si_nccl.mistakes++ == 0) snprintf(si_nccl.first_mistake, sizeof si_nccl.first_mistake, "%s", text);
    if (comm != NULL) snprintf(comm->text, sizeof comm->text, "%s", text);
    return result;
}

uint64_t si_nccl_draw(uint64_t below)
{
    si_nccl.random = si_nccl.random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (si_nccl.random >> 33) % below;
}

ncclResult_t si_nccl_enter(void)
{
    if (!si_nccl.open) return ncclSystemError;
    if (si_nccl.fail_countdown >= 0 && si_nccl.fail_countdown-- == 0) {
        si_nccl.fired = 1;
        return si_nccl.fail_result;
    }
    return ncclSuccess;
}

/* --- the report --- */

static FILE *open_report(void)
{
    const char *path = getenv("NCCL_DEBUG_FILE");
    return path != NULL ? fopen(path, "a") : NULL;
}

void si_nccl_report_world(const world *w)
{
    const zb_order_source *source = &si_nccl.source;
    FILE *file = open_report();
    if (file == NULL) return;
    if (ftell(file) == 0)
        fprintf(file, "NCCL version %d.%d.%d+cuda13.0\n", NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH);
    for (int k = 0; k < source->channels; k++) {
        fprintf(file, "host:1:2 [0] NCCL INFO Channel %02d/%02d :", k, source->channels);
        for (int i = 0; i < w->size; i++) {
            const int ringed = source->ring_count > 0 && source->world_size == w->size;
            fprintf(file, " %d", ringed ? (int)source->rings[k % source->ring_count * w->size + i] : i);
        }
        fprintf(file, "\n");
    }
    fclose(file);
}

void si_nccl_report_call(const call *c)
{
    static const char *const functions[] = { "AllReduce", "ReduceScatter", "AllGather", "Broadcast" };
    static const char *const protocols[] = {
        [ZB_NCCL_SIMPLE] = "SIMPLE", [ZB_NCCL_LL] = "LL", [ZB_NCCL_LL128] = "LL128"
    };
    if (c->kind >= SEND || c->comm->rank != 0) return;
    FILE *file = open_report();
    if (file == NULL) return;
    fprintf(file, "host:1:2 [0] NCCL INFO %s: %zu Bytes -> Algo RING proto %s channel{Lo..Hi}={0..%d}\n",
            functions[c->kind], c->count * si_nccl_type_bytes(c->type), protocols[si_nccl.source.protocol],
            si_nccl.source.channels - 1);
    fclose(file);
}

/* --- the session --- */

zb_status zb_nccl_standin_begin(const zb_nccl_standin_options *options)
{
    static const char standard[] = "nccl-ring version=2.28 protocol=simple channels=2";
    zb_order_source source;
    if (si_nccl.open) return zb_fail(ZB_INVALID_ARGUMENT, "a session of the NCCL stand-in is open already");
    ZB_TRY(zb_order_source_parse(options->order != NULL ? options->order : standard, &source));
    if (source.algorithm != ZB_ALGORITHM_NCCL_RING) {
        zb_order_source_destroy(&source);
        return zb_fail(ZB_INVALID_ARGUMENT, "order \"%s\", want an nccl-ring", options->order);
    }
    si_nccl = (si_nccl_session){
        .open = 1, .random = options->seed, .source = source, .fail_countdown = -1, .async_countdown = -1
    };
    return ZB_OK;
}

static void free_world(world *w)
{
    for (meeting *m = w->meetings, *next; m != NULL; m = next) {
        next = m->next;
        zb_free(m);
    }
    for (division *d = w->divisions, *next; d != NULL; d = next) {
        next = d->next;
        zb_free(d);
    }
    for (message *m = w->messages, *next; m != NULL; m = next) {
        next = m->next;
        zb_free(m);
    }
    zb_free(w);
}

zb_status zb_nccl_standin_end(void)
{
    zb_standin_lock();
    for (ncclComm_t comm = si_nccl.comms, next; comm != NULL; comm = next) {
        next = comm->next;
        if (comm->state != COMM_DESTROYED && comm->state != COMM_ABORTED)
            si_nccl_mistake(NULL, ncclInvalidUsage, "rank %d of %d has not given its communicator back",
                            comm->rank, comm->world->size);
        zb_free(comm);
    }
    for (world *w = si_nccl.worlds, *next; w != NULL; w = next) {
        next = w->next;
        free_world(w);
    }
    zb_order_source_destroy(&si_nccl.source);
    si_nccl.open = 0;
    zb_standin_unlock();
    if (si_nccl.mistakes == 0) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "%s (and %d more)", si_nccl.first_mistake, si_nccl.mistakes - 1);
}

void zb_nccl_standin_fail_call(int64_t n, ncclResult_t result)
{
    zb_standin_lock();
    si_nccl.fail_countdown = n;
    si_nccl.fail_result = result;
    si_nccl.fired = 0;
    zb_standin_unlock();
}

void zb_nccl_standin_fail_async(int64_t n, ncclResult_t result)
{
    zb_standin_lock();
    si_nccl.async_countdown = n;
    si_nccl.async_result = result;
    si_nccl.fired = 0;
    zb_standin_unlock();
}

int zb_nccl_standin_fault_fired(void)
{
    zb_standin_lock();
    const int fired = si_nccl.fired;
    zb_standin_unlock();
    return fired;
}

uint64_t zb_nccl_standin_reductions(void)
{
    zb_standin_lock();
    const uint64_t count = si_nccl.reductions;
    zb_standin_unlock();
    return count;
}
