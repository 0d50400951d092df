/* How what ranks sent became a reduced gradient, collective by collective; see explain_run.h. */
#include "verify/explain_run.h"

#include "verify/difference.h"
#include "verify/quantity.h"
#include "verify/trace_route.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

/* --- records --- */

int64_t zb_explained_step(const zb_explained_run *run)
{
    return run->step->count > 0 ? run->step->records->step : INT64_MAX;
}

/* The first record that is not before the one that is looked for. */
static const zb_observation *find(const zb_record_list *list, const zb_observation *like)
{
    size_t low = 0, high = list->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (zb_observation_order(&list->records[middle], like) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return list->records + low;
}

const zb_observation *zb_explained_contribution(const zb_explained_run *s)
{
    const zb_observation like = {
        .quantity = ZB_Q_CONTRIBUTION, .step = zb_explained_step(s), .micro = -1, .rank = -1, .param = -1
    };
    const zb_observation *found = find(s->step, &like);
    return found < s->step->records + s->step->count && found->quantity == ZB_Q_CONTRIBUTION ? found : NULL;
}

/* --- a collective's buffers --- */

typedef struct buffers {
    const zb_route_collective *collective;
    size_t index, numel; /* which of the route; elements of a contribution */
    int rounds, world_size;
    const void **inputs;   /* [rounds * world_size], into `values` */
    unsigned char *values; /* of all of them, and then the result */
    unsigned char *result;
    unsigned char *is_shown; /* [numel] */
} buffers;

static void destroy_buffers(buffers *b)
{
    zb_free((void *)b->inputs);
    zb_free(b->values);
    zb_free(b->is_shown);
}

static zb_status create_buffers(const zb_explained_run *run, size_t index, buffers *made)
{
    const zb_route_collective *collective = &run->route->collectives[index];
    const size_t numel = zb_trace_call_numel(&collective->call);
    const int every_micro = run->plan->reduce_when == ZB_REDUCE_EVERY_MICRO_BATCH;
    if (every_micro && run->plan->accumulation_steps > 4096)
        return zb_fail(ZB_UNSUPPORTED, "%" PRId64 " micro-batches in a step, want at most 4096 to explain it",
                       run->plan->accumulation_steps);
    *made = (buffers){ .collective = collective,
                       .index = index,
                       .numel = numel,
                       .rounds = every_micro ? (int)run->plan->accumulation_steps : 1,
                       .world_size = run->world_size };
    const size_t unit_count = (size_t)made->rounds * (size_t)run->world_size;
    const zb_dtype a = collective->call.dtype,
                   b = run->plan->grad_dtype; /* of contributions, of the result */
    const size_t element_bytes = zb_dtype_bytes(a) > zb_dtype_bytes(b) ? zb_dtype_bytes(a)
                                                                       : zb_dtype_bytes(b);
    const size_t bytes = numel * element_bytes;
    made->inputs = zb_alloc_array(unit_count, sizeof *made->inputs);
    if (made->inputs != NULL) made->values = zb_alloc_array(unit_count + 1, bytes > 0 ? bytes : 1);
    if (made->values != NULL) made->is_shown = zb_alloc(numel > 0 ? numel : 1);
    if (made->is_shown == NULL) {
        destroy_buffers(made);
        return ZB_NO_MEMORY;
    }
    for (size_t u = 0; u < unit_count; u++) made->inputs[u] = made->values + u * bytes;
    made->result = made->values + unit_count * bytes;
    return ZB_OK;
}

/* What the step shows of a piece, into `to`, a buffer of the collective. */
static zb_status fill_piece(const zb_explained_run *s, const buffers *b, const zb_route_piece *piece,
                            zb_observation like, zb_dtype dtype, unsigned char *to)
{
    const size_t bytes = zb_dtype_bytes(dtype), end = piece->first + piece->numel;
    const zb_observation *record = find(s->step, &like), *last = s->step->records + s->step->count;
    const int any_rank = like.rank == ZB_EVERY_RANK;
    memset(b->is_shown + piece->at, 0, piece->numel);
    for (; record < last && record->quantity == like.quantity && record->micro == like.micro &&
           record->param == like.param && (any_rank || record->rank == like.rank);
         record++) {
        if (record->dtype != dtype)
            return zb_fail(ZB_INVALID_ARGUMENT, "%s: shows %s of %s in %s, want %s as the plan has it",
                           s->name, zb_quantity_name(like.quantity), s->params[like.param].name,
                           zb_dtype_name(record->dtype), zb_dtype_name(dtype));
        size_t from = record->first > piece->first ? record->first : piece->first;
        const size_t stop = record->first + record->numel < end ? record->first + record->numel : end;
        for (; from < stop; from++) {
            const size_t at = piece->at + (from - piece->first);
            if (b->is_shown[at]) continue; /* of another rank: a copy */
            memcpy(to + at * bytes, (const char *)record->data + (from - record->first) * bytes, bytes);
            b->is_shown[at] = 1;
        }
    }
    const unsigned char *gap = memchr(b->is_shown + piece->at, 0, piece->numel);
    if (gap == NULL) return ZB_OK;
    const size_t element = piece->first + (size_t)(gap - (b->is_shown + piece->at));
    if (any_rank)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s: step %" PRId64 " does not show %s %s[%zu]", s->name,
                       like.step, zb_quantity_name(like.quantity), s->params[like.param].name, element);
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "%s: step %" PRId64 ", micro-batch %" PRId64 ", rank %d does not show %s %s[%zu]", s->name,
                   like.step, like.micro, like.rank, zb_quantity_name(like.quantity),
                   s->params[like.param].name, element);
}

static zb_status fill_result(const zb_explained_run *s, const buffers *b, zb_dtype dtype, unsigned char *to)
{
    memset(to, 0, b->numel * zb_dtype_bytes(dtype)); /* padding comes to nothing */
    for (size_t p = 0; p < b->collective->piece_count; p++) {
        const zb_route_piece *piece = &b->collective->pieces[p];
        const zb_observation like = { .quantity = ZB_Q_GRAD,
                                      .step = zb_explained_step(s),
                                      .micro = -1,
                                      .rank = ZB_EVERY_RANK,
                                      .param = piece->param };
        ZB_TRY(fill_piece(s, b, piece, like, dtype, to));
    }
    return ZB_OK;
}

static zb_status fill_inputs(const zb_explained_run *s, const buffers *b, int64_t first_micro)
{
    for (int round = 0; round < b->rounds; round++)
        for (int rank = 0; rank < b->world_size; rank++)
            for (size_t p = 0; p < b->collective->piece_count; p++) {
                const zb_route_piece *piece = &b->collective->pieces[p];
                const zb_observation like = { .quantity = ZB_Q_CONTRIBUTION,
                                              .step = zb_explained_step(s),
                                              .micro = first_micro + round,
                                              .rank = rank,
                                              .param = piece->param };
                unsigned char *to = (unsigned char *)b->inputs[round * b->world_size + rank];
                ZB_TRY(fill_piece(s, b, piece, like, b->collective->call.dtype, to));
            }
    return ZB_OK;
}

/* --- one collective --- */

/* Where in a tensor an element of the collective is. */
static void put_place(const zb_explained_run *run, const buffers *b, size_t element, char *text, size_t bytes)
{
    for (size_t p = 0; p < b->collective->piece_count; p++) {
        const zb_route_piece *piece = &b->collective->pieces[p];
        if (element >= piece->at && element < piece->at + piece->numel)
            snprintf(text, bytes, "%s[%zu]", run->params[piece->param].name,
                     piece->first + (element - piece->at));
    }
}

static void put_text(const buffers *b, zb_trace_collective *told)
{
    const int is_value = told->explanation.verdict == ZB_VERDICT_VALUE;
    snprintf(told->text, sizeof told->text, "step %" PRId64 ", collective %zu (%s, %zu elements): %s%s%s",
             told->step, told->index, zb_collective_name(b->collective->call.kind), b->numel,
             is_value && told->place[0] != '\0' ? told->place : "",
             is_value && told->place[0] != '\0' ? ": " : "", told->explanation.text);
}

static zb_status explain_filled(const zb_explained_run *from, const zb_orders *expected, const buffers *b,
                                zb_trace_collective *told)
{
    static const zb_order_source rank = { 0 };
    const zb_trace_plan *plan = from->plan;
    const zb_reduction_call *call = &b->collective->call;
    const zb_order_source *source = zb_orders_source(expected, call->kind);
    const zb_finish finish = { .after = plan->averaging.after, .dtype = plan->grad_dtype };
    const zb_explain_options options = { .call = call,
                                         .expected = source != NULL ? source : &rank,
                                         .inputs = b->inputs,
                                         .result = b->result,
                                         .rounds = b->rounds,
                                         .finish = &finish };
    told->step = zb_explained_step(from);
    told->index = b->index;
    told->kind = call->kind;
    told->numel = b->numel;
    ZB_TRY(zb_reduction_explain_finished(&options, &told->explanation));
    if (told->explanation.verdict == ZB_VERDICT_VALUE)
        put_place(from, b, told->explanation.element, told->place, sizeof told->place);
    put_text(b, told);
    return ZB_OK;
}

/* `from` shows contributions and the route, `of` the gradients. *told is zero. */
zb_status zb_explain_collective(const zb_explained_run *from, const zb_explained_run *of,
                                const zb_orders *expected, size_t index, zb_trace_collective *told)
{
    buffers b;
    const zb_observation *contribution = zb_explained_contribution(from);
    ZB_TRY(create_buffers(from, index, &b));
    zb_status status = fill_inputs(from, &b, contribution->micro);
    if (status == ZB_OK) status = fill_result(of, &b, from->plan->grad_dtype, b.result);
    if (status == ZB_OK) status = explain_filled(from, expected, &b, told);
    destroy_buffers(&b);
    return status;
}

/* Sets *differ_p when a gradient of the step is not the same in both. */
zb_status zb_explained_gradients_differ(const zb_explained_run *a, const zb_explained_run *b, int *differ_p)
{
    *differ_p = 0;
    for (size_t i = 0; i < a->route->count && !*differ_p; i++) {
        buffers room, other;
        const zb_dtype dtype = a->plan->grad_dtype;
        ZB_TRY(create_buffers(a, i, &room));
        zb_status status = create_buffers(a, i, &other);
        if (status == ZB_OK) {
            status = fill_result(a, &room, dtype, room.result);
            if (status == ZB_OK) status = fill_result(b, &other, dtype, other.result);
            if (status == ZB_OK)
                *differ_p = zb_equal_prefix(dtype, room.result, other.result, room.numel) < room.numel;
            destroy_buffers(&other);
        }
        destroy_buffers(&room);
        ZB_TRY(status);
    }
    return ZB_OK;
}

/* The first collective that the element is in; the route's count when it is in none. */
size_t zb_explained_collective_of(const zb_explained_run *run, const zb_difference *difference)
{
    for (size_t i = 0; i < run->route->count; i++)
        for (size_t p = 0; p < run->route->collectives[i].piece_count; p++) {
            const zb_route_piece *piece = &run->route->collectives[i].pieces[p];
            if (strcmp(run->params[piece->param].name, difference->tensor) == 0 &&
                difference->element >= piece->first && difference->element < piece->first + piece->numel)
                return i;
        }
    return run->route->count;
}
