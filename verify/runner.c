/* One engine under test; see runner.h. */
#include "verify/runner.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <zerobit/memory.h>

#include "verify/explain_case.h"

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int zb_runner_is_running(const zb_runner *r)
{
    return r->result->status == ZB_OK && !r->result->ended;
}

/* --- what a rank does --- */

static zb_status start_rank(void *user, zb_comm *comm, const zb_observer *observer)
{
    zb_runner *r = user;
    const zb_verify_options *options = r->options;
    zb_seat *seat = &r->seats[comm->rank];
    ZB_TRY(zb_seat_create(options->devices, comm, options->comm == NULL, seat));
    zb_engine_options engine_options = { .config = options->config,
                                         .model = options->model,
                                         .weights = options->weights,
                                         .dataset = options->dataset,
                                         .device = seat->device,
                                         .comm = seat->comm,
                                         .stage = r->result->stage,
                                         .dtype = (int)r->result->dtype,
                                         .sampler_seed = options->sampler_seed };
    ZB_TRY(zb_initialize(&engine_options, &r->engines[comm->rank]));
    return zb_engine_observe(r->engines[comm->rank], observer);
}

static zb_status step_rank(void *user, zb_comm *comm, const zb_observer *observer)
{
    zb_runner *r = user;
    if (r->options->contributions) zb_engine_observe_contributions(r->engines[comm->rank], observer);
    ZB_TRY(zb_engine_train_step(r->engines[comm->rank], observer));
    return zb_engine_observe(r->engines[comm->rank], observer);
}

static zb_status end_rank(void *user, zb_comm *comm, const zb_observer *observer)
{
    zb_runner *r = user;
    if (r->options->contributions) zb_engine_observe_contributions(r->engines[comm->rank], observer);
    const zb_status status = zb_engine_train_step(r->engines[comm->rank], observer);
    r->has_ended[comm->rank] = status == ZB_LOSS_SCALE;
    return status == ZB_LOSS_SCALE ? ZB_OK : status;
}

/* --- verdicts --- */

void zb_case_fail(zb_verify_case *result, zb_status status)
{
    result->status = status;
    memcpy(result->message, zb_error_message(), sizeof result->message);
    result->message[sizeof result->message - 1] = '\0';
}

static void judge(zb_verify_case *result, zb_status status, const zb_difference *difference)
{
    /* A difference found before a rank failed is the cause to name: it is the earlier event. */
    const int is_value = difference->found && difference->missing == ZB_MISSING_NONE;
    if (status != ZB_OK && !is_value) {
        zb_case_fail(result, status);
    } else if (difference->found) {
        result->status = ZB_DIFFERENT;
        result->difference = *difference;
        memcpy(result->message, difference->text, sizeof difference->text);
    }
}

/* --- a gradient that differs, explained --- */

/* The gradients of all ranks, which come from several threads. */
typedef struct gathering {
    pthread_mutex_t lock;
    zb_record_list gradients;
} gathering;

static zb_status gather_gradient(void *user, const zb_observation *o)
{
    gathering *g = user;
    void *values;
    if (o->quantity != ZB_Q_GRAD) return ZB_OK;
    pthread_mutex_lock(&g->lock);
    const zb_status status = zb_record_list_append(&g->gradients, o, &values);
    if (status == ZB_OK) memcpy(values, o->data, o->numel * zb_dtype_bytes(o->dtype));
    pthread_mutex_unlock(&g->lock);
    return status;
}

static zb_status observe_rank(void *user, zb_comm *comm, const zb_observer *observer)
{
    const zb_runner *r = user;
    return zb_engine_observe(r->engines[comm->rank], observer);
}

/* Why no explanation was possible is told in its place: the difference stands in any case. */
static zb_status explain(zb_runner *r)
{
    gathering g = { .lock = PTHREAD_MUTEX_INITIALIZER };
    const zb_observer observer = { gather_gradient, &g };
    const zb_status ran = zb_world_run(r->world, observe_rank, r, &observer);
    zb_status status = ran;
    if (ran == ZB_OK && zb_world_judges(r->world))
        status = zb_case_explain(r->options, r->group_of, &g.gradients, r->result);
    if (status != ZB_OK)
        snprintf(r->result->explanation, sizeof r->result->explanation, "not explained: %s",
                 zb_error_message());
    zb_record_list_destroy(&g.gradients);
    pthread_mutex_destroy(&g.lock);
    return ran;
}

/* All processes go on alike: with what the one that judges has found. */
static zb_status share_verdict(zb_runner *r, int *explains_p)
{
    int64_t words[] = { (int64_t)r->result->status, r->result->ended, *explains_p };
    ZB_TRY(zb_world_agree(r->world, words, 3));
    r->result->status = (zb_status)words[0];
    r->result->ended = (int)words[1];
    *explains_p = (int)words[2];
    return ZB_OK;
}

/* A failure on a simulated world is the case's own; a spread one is lost for all. */
static zb_status conclude(zb_runner *r, zb_status status, double begin)
{
    if (r->compare != NULL) r->result->values_compared = zb_compare_value_count(r->compare);
    r->result->seconds += seconds_now() - begin;
    if (status == ZB_OK) {
        int explains = zb_case_is_explainable(r->result);
        ZB_TRY(share_verdict(r, &explains));
        const zb_status explained = explains ? explain(r) : ZB_OK;
        return r->options->comm != NULL ? explained : ZB_OK;
    }
    if (r->options->comm == NULL) return ZB_OK;
    if (r->result->status == ZB_OK) zb_case_fail(r->result, status);
    return status;
}

static zb_observer observer_of(const zb_runner *r)
{
    return r->compare != NULL ? zb_compare_observer(r->compare) : (zb_observer){ 0 };
}

static zb_status advance(zb_runner *r, zb_world_main *main, const zb_traffic *traffic)
{
    const double begin = seconds_now();
    const zb_observer observer = observer_of(r);
    zb_difference difference = { 0 };
    if (r->compare != NULL) zb_compare_begin(r->compare, traffic);
    const zb_status status = zb_world_run(r->world, main, r, &observer);
    if (r->compare != NULL) zb_compare_finish(r->compare, &difference);
    judge(r->result, status, &difference);
    return conclude(r, status, begin);
}

/* --- steps --- */

zb_status zb_runner_start(zb_runner *r)
{
    return advance(r, start_rank, NULL);
}

zb_status zb_runner_step(zb_runner *r, int skipped)
{
    zb_traffic traffic[ZB_COLLECTIVE_COUNT];
    ZB_TRY(zb_traffic_formula(r->options->config, r->options->model, &r->result->plan, r->result->stage,
                              &r->past, skipped, traffic));
    ZB_TRY(advance(r, step_rank, traffic));
    if (r->past.steps++ == 0) r->past.first_skipped = skipped;
    r->past.previous_skipped = skipped;
    if (zb_runner_is_running(r)) r->result->steps_done++;
    return ZB_OK;
}

/* How many ranks have ended training; in a spread world each process knows of its own alone. */
static zb_status count_ended(zb_runner *r, int *ended_p)
{
    int64_t ended = 0;
    for (int rank = 0; rank < r->result->world_size; rank++) ended += r->has_ended[rank];
    if (r->options->comm != NULL)
        ZB_TRY(zb_collective_run(r->options->comm, NULL, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = &ended,
                                 .recv = &ended, .numel = 1, .dtype = ZB_INT64, .op = ZB_SUM,
                                 .what = "ranks that have ended training"));
    *ended_p = (int)ended;
    return ZB_OK;
}

/* After the same samples and losses every rank must end training too. */
zb_status zb_runner_end(zb_runner *r, const char *reason)
{
    const double begin = seconds_now();
    zb_verify_case *result = r->result;
    const zb_observer observer = observer_of(r);
    zb_difference difference = { 0 };
    int ended = 0;
    if (r->compare != NULL) zb_compare_begin(r->compare, NULL);
    zb_status status = zb_world_run(r->world, end_rank, r, &observer);
    if (r->compare != NULL) zb_compare_break_off(r->compare, &difference);
    judge(result, status, &difference);
    if (status == ZB_OK) status = count_ended(r, &ended);
    result->ended = result->status == ZB_OK && ended == result->world_size;
    if (result->ended)
        snprintf(result->message, sizeof result->message, "training ends in step %" PRId64 ": %s",
                 result->steps_done, reason);
    else if (result->status == ZB_OK)
        zb_case_fail(result,
                     zb_fail(ZB_DIFFERENT,
                             "step %" PRId64 ": %d of %d ranks end training, where the oracle does: %s",
                             result->steps_done, ended, result->world_size, reason));
    return conclude(r, status, begin);
}

/* --- create, destroy --- */

/* What each rank owns of the trainable elements, from the public partition: not from what an engine shows. */
static zb_status note_owners(zb_runner *r)
{
    const zb_verify_case *result = r->result;
    r->owned_numel = zb_alloc_array((size_t)result->world_size, sizeof *r->owned_numel);
    if (r->owned_numel == NULL) return ZB_NO_MEMORY;
    for (int rank = 0; rank < result->world_size; rank++) {
        zb_partition partition;
        ZB_TRY(zb_partition_create(&(zb_partition_options){ .model = r->options->model,
                                                            .stage = result->stage,
                                                            .world_size = result->world_size,
                                                            .rank = rank,
                                                            .group_of = r->group_of,
                                                            .round_robin = result->plan.round_robin },
                                   &partition));
        r->owned_numel[rank] = partition.rank_numel - partition.padding;
        zb_partition_destroy(&partition);
    }
    return ZB_OK;
}

static zb_status create_compare(zb_runner *r, const zb_reference *reference)
{
    const zb_verify_case *result = r->result;
    zb_compare_options options = { .reference = reference,
                                   .whole_param_on_every_rank = result->stage < 3,
                                   .owned_numel = r->owned_numel };
    ZB_TRY(zb_memory_formula(r->options->config, r->options->model, &result->plan, result->stage,
                             options.bytes_held));
    return zb_compare_create(&options, &r->compare);
}

static zb_status create_world(zb_runner *r)
{
    const zb_verify_options *options = r->options;
    if (options->comm != NULL) return zb_world_spread(options->comm, &r->world);
    const zb_sim_options sim_options = { .world_size = r->result->world_size,
                                         .workers = options->workers,
                                         .seed = options->sim_seed };
    return zb_world_simulate(&sim_options, &r->world);
}

zb_status zb_runner_create(zb_runner *r, const zb_reference *reference)
{
    const size_t world_size = (size_t)r->result->world_size;
    r->seats = zb_alloc_array(world_size, sizeof *r->seats);
    if (r->seats == NULL) return ZB_NO_MEMORY;
    r->engines = zb_alloc_array(world_size, sizeof *r->engines);
    if (r->engines == NULL) return ZB_NO_MEMORY;
    r->has_ended = zb_alloc_array(world_size, sizeof *r->has_ended);
    if (r->has_ended == NULL) return ZB_NO_MEMORY;
    ZB_TRY(note_owners(r));
    if (reference != NULL) ZB_TRY(create_compare(r, reference));
    return create_world(r);
}

void zb_runner_destroy(zb_runner *r)
{
    const int count = r->seats != NULL ? r->result->world_size : 0;
    zb_seats_settle(r->seats, count);
    for (int i = 0; i < count; i++) {
        if (r->engines != NULL) zb_engine_destroy(r->engines[i]);
        zb_seat_destroy(&r->seats[i]);
    }
    zb_world_destroy(r->world);
    zb_compare_destroy(r->compare);
    zb_free(r->engines);
    zb_free(r->seats);
    zb_free(r->owned_numel);
    zb_free(r->has_ended);
}
