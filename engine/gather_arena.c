/*
 * Where gathered parameters lie: a place in one arena for each parameter and for each buffer of a coalesced
 * all_gather; see gather_plan.h. The passes are gone through once to see what is in use together; then one
 * after the other is placed as low as those already placed allow, in the better of two orders.
 */
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

#include "engine/gather_plan.h"

typedef struct thing {
    size_t numel, place;
    int index;
} thing;

typedef struct arena {
    zb_gather_plan *plan;
    const zb_layout *layout;
    int param_count;
    int *buffer_of; /* [call_count] thing, for a coalesced call */
    thing *things;  /* parameters, then buffers, then what is gathered for inspection */
    int thing_count, inspected;
    unsigned char *conflicts; /* [thing_count] rows of bits */
    size_t row_bytes;
    int *live, live_count;   /* things in use */
    unsigned char *is_whole; /* [param_count] in use, and no longer under way */
    size_t live_numel;
} arena;

static int is_live(const arena *a, int index)
{
    for (int i = 0; i < a->live_count; i++)
        if (a->live[i] == index) return 1;
    return 0;
}

static void note_conflict(arena *a, int x, int y)
{
    a->conflicts[(size_t)x * a->row_bytes + (size_t)y / 8] |= (unsigned char)(1 << y % 8);
    a->conflicts[(size_t)y * a->row_bytes + (size_t)x / 8] |= (unsigned char)(1 << x % 8);
}

static int conflict(const arena *a, int x, int y)
{
    return a->conflicts[(size_t)x * a->row_bytes + (size_t)y / 8] >> y % 8 & 1;
}

static void use(arena *a, int index)
{
    ZB_ASSERT(!is_live(a, index));
    for (int i = 0; i < a->live_count; i++) note_conflict(a, index, a->live[i]);
    a->live[a->live_count++] = index;
    a->live_numel += a->things[index].numel;
    if (a->live_numel > a->plan->peak_numel) a->plan->peak_numel = a->live_numel;
}

static void drop(arena *a, int index)
{
    int i = 0;
    while (a->live[i] != index) i++;
    a->live[i] = a->live[--a->live_count];
    a->live_numel -= a->things[index].numel;
}

static void use_params(arena *a, zb_span params)
{
    for (int i = 0; i < params.count; i++) use(a, a->plan->params[params.first + i]);
}

static void set_whole(arena *a, zb_span params, unsigned char whole)
{
    for (int i = 0; i < params.count; i++) a->is_whole[a->plan->params[params.first + i]] = whole;
}

static void start(arena *a, zb_span calls)
{
    for (int c = calls.first; c < calls.first + calls.count; c++) {
        const zb_gather_call *call = &a->plan->calls[c];
        if (zb_gather_call_is_coalesced(a->plan, call))
            use(a, a->buffer_of[c]);
        else
            use_params(a, call->params);
    }
}

static void land(arena *a, zb_span landings)
{
    for (int i = 0; i < landings.count; i++) {
        const int c = a->plan->landings[landings.first + i];
        set_whole(a, a->plan->calls[c].params, 1);
        if (!zb_gather_call_is_coalesced(a->plan, &a->plan->calls[c])) continue;
        use_params(a, a->plan->calls[c].params);
        drop(a, a->buffer_of[c]);
    }
}

/* A moment at which someone may look at the weights: whatever is not whole may be gathered beside all that is
 * in use. */
static void rest(arena *a)
{
    thing *inspected = &a->things[a->inspected];
    size_t largest = 0;
    for (int p = 0; p < a->param_count; p++)
        if (a->things[p].numel > largest && !a->is_whole[p]) largest = a->things[p].numel;
    if (largest == 0) return;
    if (largest > inspected->numel) inspected->numel = largest;
    for (int i = 0; i < a->live_count; i++) note_conflict(a, a->inspected, a->live[i]);
    if (a->live_numel + largest > a->plan->peak_numel) a->plan->peak_numel = a->live_numel + largest;
}

static void go_through(arena *a, int pass)
{
    const zb_gather_plan *plan = a->plan;
    const int turn = zb_gather_plan_turn(plan->trace);
    a->live_count = 0;
    a->live_numel = 0;
    memset(a->is_whole, 0, (size_t)a->param_count);
    use_params(a, plan->passes[pass].start);
    set_whole(a, plan->passes[pass].start, 1);
    rest(a);
    for (int e = 0; e <= plan->trace->event_count; e++) {
        const zb_gather_actions *actions = zb_gather_plan_at(plan, pass, e);
        if (e == turn) rest(a);
        start(a, actions->fetch);
        land(a, actions->land);
        start(a, actions->prefetch);
        for (int i = 0; i < actions->release.count; i++) drop(a, plan->params[actions->release.first + i]);
        set_whole(a, actions->release, 0);
    }
    rest(a);
}

/* --- placing --- */

static int by_size(const void *left, const void *right)
{
    const thing *x = *(thing *const *)left, *y = *(thing *const *)right;
    if (x->numel != y->numel) return x->numel > y->numel ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static int by_place(const void *left, const void *right)
{
    const thing *x = *(thing *const *)left, *y = *(thing *const *)right;
    return x->place < y->place ? -1 : x->place > y->place;
}

/* At the lowest place that is free of all that is in use at the same time; returns where it ends. */
static size_t place(const arena *a, thing *new_thing, thing **placed, int placed_count, thing **in_the_way)
{
    int count = 0;
    for (int i = 0; i < placed_count; i++)
        if (placed[i]->numel > 0 && conflict(a, new_thing->index, placed[i]->index))
            in_the_way[count++] = placed[i];
    qsort(in_the_way, (size_t)count, sizeof *in_the_way, by_place);
    size_t at = 0;
    for (int i = 0; i < count && at + new_thing->numel > in_the_way[i]->place; i++) {
        size_t end = in_the_way[i]->place + in_the_way[i]->numel;
        if (end > at) at = end;
    }
    new_thing->place = at;
    return at + new_thing->numel;
}

/* The largest first; or parameters in their order, which is often that of use, and then the buffers. */
static size_t place_in_order(arena *a, thing **order, int params_first)
{
    const int params = params_first ? a->param_count : 0;
    size_t numel = 0;
    for (int i = 0; i < a->thing_count; i++) order[i] = &a->things[i];
    qsort(order + params, (size_t)(a->thing_count - params), sizeof *order, by_size);
    for (int i = 0; i < a->thing_count; i++) {
        const size_t end = place(a, order[i], order, i, order + a->thing_count);
        if (end > numel) numel = end;
    }
    return numel;
}

static zb_status place_all(arena *a)
{
    thing **order = zb_alloc_array(2 * (size_t)a->thing_count, sizeof *order);
    if (order == NULL) return ZB_NO_MEMORY;
    const size_t params_first = place_in_order(a, order, 1);
    a->plan->arena_numel = place_in_order(a, order, 0);
    if (params_first < a->plan->arena_numel) a->plan->arena_numel = place_in_order(a, order, 1);
    zb_free(order);
    return ZB_OK;
}

static void note_places(const arena *a)
{
    zb_gather_plan *plan = a->plan;
    for (int p = 0; p < a->param_count; p++) plan->place[p] = a->things[p].place;
    plan->inspect_place = a->things[a->inspected].place;
    for (int c = 0; c < plan->call_count; c++) {
        zb_gather_call *call = &plan->calls[c];
        call->buffer = zb_gather_call_is_coalesced(plan, call)
                           ? a->things[a->buffer_of[c]].place
                           : plan->place[plan->params[call->params.first]];
    }
}

/* --- all of it --- */

static zb_status list_things(arena *a)
{
    const zb_gather_plan *plan = a->plan;
    const size_t world = (size_t)plan->world_size;
    a->things = zb_alloc_array((size_t)(a->param_count + plan->call_count) + 1, sizeof *a->things);
    a->buffer_of = zb_alloc_array((size_t)plan->call_count, sizeof *a->buffer_of);
    if (a->things == NULL || a->buffer_of == NULL) return ZB_NO_MEMORY;
    for (int p = 0; p < a->param_count; p++) a->things[p].numel = a->layout->part_numel[p] * world;
    a->thing_count = a->param_count;
    for (int c = 0; c < plan->call_count; c++) {
        if (!zb_gather_call_is_coalesced(plan, &plan->calls[c])) continue;
        a->buffer_of[c] = a->thing_count;
        a->things[a->thing_count++].numel = plan->calls[c].part_numel * world;
    }
    a->inspected = a->thing_count++;
    for (int i = 0; i < a->thing_count; i++) a->things[i].index = i;

    a->row_bytes = ((size_t)a->thing_count + 7) / 8;
    a->conflicts = zb_alloc_array((size_t)a->thing_count, a->row_bytes);
    a->live = zb_alloc_array((size_t)a->thing_count, sizeof *a->live);
    a->is_whole = zb_alloc((size_t)a->param_count);
    return a->conflicts == NULL || a->live == NULL || a->is_whole == NULL ? ZB_NO_MEMORY : ZB_OK;
}

zb_status zb_gather_plan_place(zb_gather_plan *plan, const zb_layout *layout)
{
    arena a = { .plan = plan, .layout = layout, .param_count = layout->model->param_count };
    plan->place = zb_alloc_array((size_t)a.param_count, sizeof *plan->place);
    zb_status status = plan->place != NULL ? list_things(&a) : ZB_NO_MEMORY;
    if (status == ZB_OK) {
        for (int pass = 0; pass < plan->pass_count; pass++) go_through(&a, pass);
        status = place_all(&a);
    }
    if (status == ZB_OK) note_places(&a);
    zb_free(a.things);
    zb_free(a.buffer_of);
    zb_free(a.conflicts);
    zb_free(a.live);
    zb_free(a.is_whole);
    return status;
}
