/*
 * Which order of addition the reduced gradients of a trace show: what ranks sent is put into the collectives
 * of the route, the gradients that came of it are put beside it, and orders.h says how the one became the
 * other.
 */
#include <zerobit/trace.h>

#include "verify/difference.h"
#include "verify/quantity.h"
#include "verify/trace_reader.h"
#include "verify/trace_route.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

/* --- one trace, at one step --- */

typedef struct side {
    const char *path;
    zb_trace_reader *reader;
    const zb_trace_info *info;
    const zb_record_list *step; /* the records of the step under way; empty at the end */
} side;

static zb_status open_side(const char *path, side *s)
{
    s->path = path;
    ZB_TRY(zb_trace_reader_open(path, &s->reader));
    s->info = zb_trace_reader_info(s->reader);
    return ZB_OK;
}

static int64_t step_of(const side *s)
{
    return s->step->count > 0 ? s->step->records->step : INT64_MAX;
}

/* On to the given step, or to the first after it. */
static zb_status go_to(side *s, int64_t step)
{
    do ZB_TRY(zb_trace_reader_next_step(s->reader, &s->step));
    while (step_of(s) < step);
    return ZB_OK;
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

static const zb_observation *find_contribution(const side *s)
{
    const zb_observation like = {
        .quantity = ZB_Q_CONTRIBUTION, .step = step_of(s), .micro = -1, .rank = -1, .param = -1
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

static zb_status create_buffers(const zb_trace_info *info, size_t index, buffers *made)
{
    const zb_route_collective *collective = &info->route.collectives[index];
    const size_t numel = zb_trace_call_numel(&collective->call);
    const int every_micro = info->plan.reduce_when == ZB_REDUCE_EVERY_MICRO_BATCH;
    if (every_micro && info->plan.accumulation_steps > 4096)
        return zb_fail(ZB_UNSUPPORTED, "%" PRId64 " micro-batches in a step, want at most 4096 to explain it",
                       info->plan.accumulation_steps);
    *made = (buffers){ .collective = collective,
                       .index = index,
                       .numel = numel,
                       .rounds = every_micro ? (int)info->plan.accumulation_steps : 1,
                       .world_size = info->world_size };
    const size_t unit_count = (size_t)made->rounds * (size_t)info->world_size;
    const zb_dtype a = collective->call.dtype,
                   b = info->plan.grad_dtype; /* of contributions, of the result */
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
static zb_status fill_piece(const side *s, const buffers *b, const zb_route_piece *piece, zb_observation like,
                            zb_dtype dtype, unsigned char *to)
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
                           s->path, zb_quantity_name(like.quantity), s->info->params[like.param].name,
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
        return zb_fail(ZB_INVALID_ARGUMENT, "%s: step %" PRId64 " does not show %s %s[%zu]", s->path,
                       like.step, zb_quantity_name(like.quantity), s->info->params[like.param].name, element);
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "%s: step %" PRId64 ", micro-batch %" PRId64 ", rank %d does not show %s %s[%zu]", s->path,
                   like.step, like.micro, like.rank, zb_quantity_name(like.quantity),
                   s->info->params[like.param].name, element);
}

static zb_status fill_result(const side *s, const buffers *b, zb_dtype dtype, unsigned char *to)
{
    memset(to, 0, b->numel * zb_dtype_bytes(dtype)); /* padding comes to nothing */
    for (size_t p = 0; p < b->collective->piece_count; p++) {
        const zb_route_piece *piece = &b->collective->pieces[p];
        const zb_observation like = { .quantity = ZB_Q_GRAD,
                                      .step = step_of(s),
                                      .micro = -1,
                                      .rank = ZB_EVERY_RANK,
                                      .param = piece->param };
        ZB_TRY(fill_piece(s, b, piece, like, dtype, to));
    }
    return ZB_OK;
}

static zb_status fill_inputs(const side *s, const buffers *b, int64_t first_micro)
{
    for (int round = 0; round < b->rounds; round++)
        for (int rank = 0; rank < b->world_size; rank++)
            for (size_t p = 0; p < b->collective->piece_count; p++) {
                const zb_route_piece *piece = &b->collective->pieces[p];
                const zb_observation like = { .quantity = ZB_Q_CONTRIBUTION,
                                              .step = step_of(s),
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
static void put_place(const zb_trace_info *info, const buffers *b, size_t element, char *text, size_t bytes)
{
    for (size_t p = 0; p < b->collective->piece_count; p++) {
        const zb_route_piece *piece = &b->collective->pieces[p];
        if (element >= piece->at && element < piece->at + piece->numel)
            snprintf(text, bytes, "%s[%zu]", info->params[piece->param].name,
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

static zb_status explain_filled(const side *from, const zb_orders *expected, const buffers *b,
                                zb_trace_collective *told)
{
    static const zb_order_source rank = { 0 };
    const zb_trace_plan *plan = &from->info->plan;
    const zb_reduction_call *call = &b->collective->call;
    const zb_order_source *source = zb_orders_source(expected, call->kind);
    const zb_finish finish = { .after = plan->averaging.after, .dtype = plan->grad_dtype };
    const zb_explain_options options = { .call = call,
                                         .expected = source != NULL ? source : &rank,
                                         .inputs = b->inputs,
                                         .result = b->result,
                                         .rounds = b->rounds,
                                         .finish = &finish };
    told->step = step_of(from);
    told->index = b->index;
    told->kind = call->kind;
    told->numel = b->numel;
    ZB_TRY(zb_reduction_explain_finished(&options, &told->explanation));
    if (told->explanation.verdict == ZB_VERDICT_VALUE)
        put_place(from->info, b, told->explanation.element, told->place, sizeof told->place);
    put_text(b, told);
    return ZB_OK;
}

/* `from` shows contributions and the route, `of` the gradients. *told is zero. */
static zb_status explain_collective(const side *from, const side *of, const zb_orders *expected, size_t index,
                                    zb_trace_collective *told)
{
    buffers b;
    const zb_observation *contribution = find_contribution(from);
    ZB_TRY(create_buffers(from->info, index, &b));
    zb_status status = fill_inputs(from, &b, contribution->micro);
    if (status == ZB_OK) status = fill_result(of, &b, from->info->plan.grad_dtype, b.result);
    if (status == ZB_OK) status = explain_filled(from, expected, &b, told);
    destroy_buffers(&b);
    return status;
}

static zb_status check_can_explain(const side *from)
{
    if (!from->info->has_route)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s: holds no route of its gradients, so no order can be told",
                       from->path);
    if (from->info->plan.averaging.absent)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "%s: its plan sends no gradients, so that there is no sum to explain", from->path);
    if (find_contribution(from) == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "%s: step %" PRId64 " holds no contributions, so no order can be told", from->path,
                       step_of(from));
    return ZB_OK;
}

static zb_status check_worlds(const side *a, const side *b)
{
    ZB_TRY(zb_trace_check_models(a->path, a->info, b->path, b->info));
    if (a->info->world_size == b->info->world_size) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "%s is of a world of %d, %s of %d: sums of other ranks cannot be explained", a->path,
                   a->info->world_size, b->path, b->info->world_size);
}

/* --- every collective of a step --- */

/* Sets *differ_p when a gradient of the step is not the same in both. */
static zb_status compare_gradients(const side *a, const side *b, int *differ_p)
{
    *differ_p = 0;
    for (size_t i = 0; i < a->info->route.count && !*differ_p; i++) {
        buffers room, other;
        const zb_dtype dtype = a->info->plan.grad_dtype;
        ZB_TRY(create_buffers(a->info, i, &room));
        zb_status status = create_buffers(a->info, i, &other);
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

/* On to the step that is asked for, or to the first whose gradients differ. */
static zb_status find_step(side *a, side *b, int64_t step, int *found_p)
{
    *found_p = 0;
    ZB_TRY(go_to(a, step >= 0 ? step : 0));
    ZB_TRY(go_to(b, step >= 0 ? step : 0));
    while (step_of(a) != INT64_MAX || step_of(b) != INT64_MAX) {
        if (step_of(a) != step_of(b) || (step >= 0 && step_of(a) != step)) break;
        ZB_TRY(check_can_explain(a));
        *found_p = step >= 0;
        if (step < 0) ZB_TRY(compare_gradients(a, b, found_p));
        if (*found_p) return ZB_OK;
        ZB_TRY(go_to(a, 0));
        ZB_TRY(go_to(b, 0));
    }
    if (step < 0 && step_of(a) == step_of(b)) return ZB_OK; /* both have ended */
    const int a_lacks = step >= 0 ? step_of(a) != step : step_of(a) > step_of(b);
    if (step < 0) step = a_lacks ? step_of(b) : step_of(a);
    return zb_fail(ZB_INVALID_ARGUMENT, "%s: holds no step %" PRId64, a_lacks ? a->path : b->path, step);
}

static zb_status explain_step(const side *a, const side *b, zb_trace_explanation *out)
{
    zb_orders expected;
    ZB_TRY(zb_orders_parse(a->info->orders, &expected));
    out->step = step_of(a);
    out->collectives = zb_alloc_array(a->info->route.count, sizeof *out->collectives);
    zb_status status = out->collectives != NULL ? ZB_OK : ZB_NO_MEMORY;
    while (status == ZB_OK && out->count < a->info->route.count) {
        status = explain_collective(a, b, &expected, out->count, &out->collectives[out->count]);
        if (status == ZB_OK) out->count++;
    }
    zb_orders_destroy(&expected);
    return status;
}

static zb_status explain_traces(side *a, side *b, int64_t step, zb_trace_explanation *out)
{
    int found;
    ZB_TRY(check_worlds(a, b));
    if (!a->info->has_route) return check_can_explain(a);
    ZB_TRY(find_step(a, b, step, &found));
    return found ? explain_step(a, b, out) : ZB_OK;
}

zb_status zb_trace_explain(const char *contributions_path, const char *gradients_path, int64_t step,
                           zb_trace_explanation *explanation_p)
{
    side a = { 0 }, b = { 0 };
    zb_trace_explanation made = { .step = -1 };
    zb_status status = open_side(contributions_path, &a);
    if (status == ZB_OK) status = open_side(gradients_path, &b);
    if (status == ZB_OK) status = explain_traces(&a, &b, step, &made);
    zb_trace_reader_destroy(a.reader);
    zb_trace_reader_destroy(b.reader);
    if (status == ZB_OK)
        *explanation_p = made;
    else
        zb_trace_explanation_destroy(&made);
    return status;
}

void zb_trace_explanation_destroy(zb_trace_explanation *explanation)
{
    zb_free(explanation->collectives);
    *explanation = (zb_trace_explanation){ .step = -1 };
}

/* --- the collective of a difference --- */

/* The first collective that the element is in; the route's count when it is in none. */
static size_t collective_of(const zb_trace_info *info, const zb_difference *difference)
{
    for (size_t i = 0; i < info->route.count; i++)
        for (size_t p = 0; p < info->route.collectives[i].piece_count; p++) {
            const zb_route_piece *piece = &info->route.collectives[i].pieces[p];
            if (strcmp(info->params[piece->param].name, difference->tensor) == 0 &&
                difference->element >= piece->first && difference->element < piece->first + piece->numel)
                return i;
        }
    return info->route.count;
}

static int holds(const side *s, const zb_difference *difference)
{
    return s->info->has_route && !s->info->plan.averaging.absent && find_contribution(s) != NULL &&
           collective_of(s->info, difference) < s->info->route.count;
}

/* The gradients of `of`, explained by what `from` holds, behind what is in the text. */
static zb_status add_explanation(const side *from, const side *of, const zb_orders *expected,
                                 const zb_difference *difference, char *text, size_t bytes,
                                 int *as_expected_p)
{
    zb_trace_collective *told = zb_alloc(sizeof *told);
    if (told == NULL) return ZB_NO_MEMORY;
    const size_t used = strlen(text);
    zb_status status = explain_collective(from, of, expected, collective_of(from->info, difference), told);
    *as_expected_p = told->explanation.as_expected;
    if (status == ZB_OK)
        snprintf(text + used, bytes - used, "%s%s: %s", used > 0 ? "\n" : "", of->path, told->text);
    zb_free(told);
    return status;
}

static zb_status explain_difference(side *a, side *b, const zb_difference *difference, char *text,
                                    size_t bytes)
{
    int as_expected;
    zb_orders expected;
    if (a->info->world_size != b->info->world_size) return ZB_OK;
    ZB_TRY(go_to(a, difference->step));
    ZB_TRY(go_to(b, difference->step));
    const int a_holds = holds(a, difference), b_holds = holds(b, difference);
    if (!a_holds && !b_holds) return ZB_OK;
    ZB_TRY(zb_orders_parse(a->info->orders, &expected));
    zb_status status = add_explanation(b_holds ? b : a, b, &expected, difference, text, bytes, &as_expected);
    /* Then it is the other one that is not as it should be. */
    if (status == ZB_OK && as_expected)
        status = add_explanation(a_holds ? a : b, a, &expected, difference, text, bytes, &as_expected);
    zb_orders_destroy(&expected);
    return status;
}

zb_status zb_trace_explain_difference(const char *path_a, const char *path_b, const zb_difference *difference,
                                      char *text, size_t text_bytes)
{
    side a = { 0 }, b = { 0 };
    ZB_ASSERT(text_bytes > 0);
    text[0] = '\0';
    if (!difference->found || difference->quantity != ZB_Q_GRAD || difference->missing != ZB_MISSING_NONE)
        return ZB_OK;
    zb_status status = open_side(path_a, &a);
    if (status == ZB_OK) status = open_side(path_b, &b);
    if (status == ZB_OK) status = explain_difference(&a, &b, difference, text, text_bytes);
    zb_trace_reader_destroy(a.reader);
    zb_trace_reader_destroy(b.reader);
    return status;
}
