/* When parameters are gathered and released; see gather_plan.h. */
#include "engine/gather_plan.h"

#include <string.h>
#include <zerobit/memory.h>

/* PLAIN: the order is known from the model. DeepSpeed instead records it in its first pass; in the first
 * complete one after that it decides what to release where, and remembers the decision. */
typedef enum pass_mode { PLAIN, RECORDING, DECIDING, DECIDED } pass_mode;

/* What tells one pass from another. */
typedef struct pass_key {
    pass_mode mode;
    int decided_by; /* DECIDED: the pass that did; else ZB_NO_PASS */
} pass_key;

typedef enum param_state { IN_PARTS, IN_FLIGHT, WHOLE } param_state;

typedef struct int_list {
    int *values;
    int count, capacity;
} int_list;

typedef struct planner {
    const zb_gather_trace *trace;
    const zb_layout *layout;
    const zb_gather_knobs *knobs;
    int64_t micro_batches;
    int may_skip;
    int param_count;
    zb_gather_plan *plan;
    int pass_capacity, action_capacity, call_capacity;
    int_list params, landings;
    pass_key *keys; /* [pass_capacity] */

    unsigned char *is_persistent; /* [param_count], like those below */
    int *entry_event;             /* [entry_count] where each entry enters */

    /* Decisions of DECIDING passes, one span per event as in plan->actions. */
    zb_span *decisions;
    int_list decided;

    /* Of the pass that is being planned. */
    pass_key key;
    param_state *state;
    int *call_of;              /* of a parameter in flight */
    int *needed_by;            /* units that have entered and not left */
    int *fetched_for;          /* the last entry that it was fetched for, -1: none yet */
    unsigned char *is_open;    /* [unit_count] bit 0: in forward, bit 1: in backward */
    int *opened, opened_count; /* units in backward, in the order of entering */
    int64_t live_numel;        /* fetched less released in this pass */
    int entry;                 /* units entered so far */
    int queue_head;            /* of plan->needed: what is not yet fetched for */
    int *scratch;              /* [param_count] */
    unsigned char *flag;       /* [param_count] zero between uses */
} planner;

/* --- growing arrays --- */

static zb_status reserve(void **array, int *capacity, int wanted, size_t size)
{
    if (wanted <= *capacity) return ZB_OK;
    int grown = *capacity * 2 > wanted ? *capacity * 2 : wanted + 8;
    void *larger = zb_realloc(*array, (size_t)grown * size);
    if (larger == NULL) return ZB_NO_MEMORY;
    *array = larger;
    *capacity = grown;
    return ZB_OK;
}

static zb_status append(int_list *list, int value)
{
    void *values = list->values;
    ZB_TRY(reserve(&values, &list->capacity, list->count + 1, sizeof *list->values));
    list->values = values;
    list->values[list->count++] = value;
    return ZB_OK;
}

/* --- facts about the trace --- */

static int enters(const zb_gather_event *event)
{
    return event->hook == ZB_HOOK_ENTER_FORWARD || event->hook == ZB_HOOK_ENTER_BACKWARD;
}

static int is_backward(const zb_gather_event *event)
{
    return event->hook == ZB_HOOK_ENTER_BACKWARD || event->hook == ZB_HOOK_LEAVE_BACKWARD;
}

int zb_gather_plan_turn(const zb_gather_trace *trace)
{
    int event = 0;
    while (event < trace->event_count && !is_backward(&trace->events[event])) event++;
    return event;
}

static zb_status list_entries(planner *b)
{
    zb_gather_plan *plan = b->plan;
    for (int e = 0; e < b->trace->event_count; e++) {
        if (!enters(&b->trace->events[e])) continue;
        plan->entry_count++;
        plan->needed_count += zb_gather_event_list(b->trace, &b->trace->events[e])->count;
    }
    b->entry_event = zb_alloc_array((size_t)plan->entry_count, sizeof *b->entry_event);
    plan->entered = zb_alloc_array((size_t)plan->entry_count, sizeof *plan->entered);
    plan->needed = zb_alloc_array((size_t)plan->needed_count, sizeof *plan->needed);
    plan->needed_at = zb_alloc_array((size_t)plan->needed_count, sizeof *plan->needed_at);
    if (b->entry_event == NULL || plan->entered == NULL || plan->needed == NULL || plan->needed_at == NULL)
        return ZB_NO_MEMORY;

    int entry = 0, needed = 0;
    for (int e = 0; e < b->trace->event_count; e++) {
        const zb_gather_event *event = &b->trace->events[e];
        if (!enters(event)) continue;
        const zb_gather_list *list = zb_gather_event_list(b->trace, event);
        b->entry_event[entry] = e;
        plan->entered[entry] = event->unit;
        for (int i = 0; i < list->count; i++, needed++) {
            plan->needed[needed] = list->params[i];
            plan->needed_at[needed] = entry;
        }
        entry++;
    }
    return ZB_OK;
}

static const zb_gather_list *entry_list(const planner *b, int entry)
{
    return zb_gather_event_list(b->trace, &b->trace->events[b->entry_event[entry]]);
}

static size_t numel_of(const planner *b, int param)
{
    return b->layout->model->params[param].numel;
}

static void choose_persistent(planner *b)
{
    uint64_t total = 0;
    for (int p = 0; p < b->param_count; p++) {
        uint64_t numel = numel_of(b, p);
        if (numel == 0 || numel > b->knobs->param_persistence_numel ||
            total + numel > b->knobs->model_persistence_numel)
            continue;
        b->is_persistent[p] = 1;
        total += numel;
    }
}

/* --- all_gathers --- */

static zb_status add_call(planner *b, const int *params, int count)
{
    zb_gather_plan *plan = b->plan;
    void *calls = plan->calls;
    ZB_TRY(reserve(&calls, &b->call_capacity, plan->call_count + 1, sizeof *plan->calls));
    plan->calls = calls;
    zb_gather_call call = { .params = { .first = b->params.count, .count = count } };
    for (int i = 0; i < count; i++) {
        ZB_TRY(append(&b->params, params[i]));
        call.part_numel += b->layout->part_numel[params[i]];
    }
    plan->calls[plan->call_count++] = call;
    return ZB_OK;
}

static void sort(int *values, int count)
{
    for (int i = 1; i < count; i++)
        for (int j = i; j > 0 && values[j - 1] > values[j]; j--) {
            int value = values[j];
            values[j] = values[j - 1];
            values[j - 1] = value;
        }
}

/* Gather what is in b->scratch: together, or one by one. */
static zb_status start_calls(planner *b, int count, zb_span *calls)
{
    calls->first = b->plan->call_count;
    sort(b->scratch, count);
    const int at_once = b->knobs->sequential ? 1 : count;
    for (int i = 0; i < count; i += at_once) {
        for (int j = i; j < i + at_once; j++) {
            const int param = b->scratch[j];
            b->state[param] = IN_FLIGHT;
            b->call_of[param] = b->plan->call_count;
            b->live_numel += (int64_t)numel_of(b, param);
        }
        ZB_TRY(add_call(b, b->scratch + i, at_once));
    }
    calls->count = b->plan->call_count - calls->first;
    return ZB_OK;
}

static zb_status fetch(planner *b, const zb_gather_list *list, zb_span *calls)
{
    int count = 0;
    for (int i = 0; i < list->count; i++)
        if (b->state[list->params[i]] == IN_PARTS) b->scratch[count++] = list->params[i];
    return start_calls(b, count, calls);
}

/* A call that is waited for brings all of its parameters. */
static zb_status land(planner *b, const zb_gather_list *list, zb_span *landings)
{
    landings->first = b->landings.count;
    for (int i = 0; i < list->count; i++) {
        if (b->state[list->params[i]] != IN_FLIGHT) continue;
        const int call = b->call_of[list->params[i]];
        const zb_span params = b->plan->calls[call].params;
        for (int j = 0; j < params.count; j++) b->state[b->params.values[params.first + j]] = WHOLE;
        ZB_TRY(append(&b->landings, call));
    }
    landings->count = b->landings.count - landings->first;
    return ZB_OK;
}

/* --- gathering ahead --- */

/* What this entry needs is fetched now, and leaves the queue unless an earlier prefetch has taken it out. */
static void dequeue_entry(planner *b, const zb_gather_list *list)
{
    for (int i = 0; i < list->count; i++) {
        if (b->fetched_for[list->params[i]] >= b->entry) continue;
        ZB_ASSERT(b->queue_head < b->plan->needed_count && b->plan->needed_at[b->queue_head] == b->entry);
        b->fetched_for[b->plan->needed[b->queue_head++]] = b->entry;
    }
}

/* Only what is in parts counts against the budget, and the last one may exceed it. */
static zb_status prefetch(planner *b, zb_span *calls)
{
    const int64_t room = (int64_t)b->knobs->max_live_numel - b->live_numel;
    if (room <= 0) return ZB_OK;
    const uint64_t budget = (uint64_t)room < b->knobs->prefetch_numel ? (uint64_t)room
                                                                      : b->knobs->prefetch_numel;
    uint64_t numel = 0;
    int count = 0;
    for (; b->queue_head < b->plan->needed_count && numel < budget; b->queue_head++) {
        const int param = (int)b->plan->needed[b->queue_head];
        const int entry = (int)b->plan->needed_at[b->queue_head];
        if (entry > b->fetched_for[param]) b->fetched_for[param] = entry;
        if (b->state[param] != IN_PARTS) continue;
        b->state[param] = IN_FLIGHT; /* so that it is not taken twice */
        b->scratch[count++] = param;
        numel += numel_of(b, param);
    }
    return start_calls(b, count, calls);
}

/* --- releasing --- */

/* Not those that stay for good, not those that were taken as fetched for a later entry, and not those that
 * are needed again soon. */
static zb_status decide_release(planner *b, const zb_gather_list *list, zb_span *decision)
{
    int left = 0;
    for (int i = 0; i < list->count; i++) {
        const int param = list->params[i];
        b->flag[param] = !b->is_persistent[param] && b->fetched_for[param] <= b->entry;
        left += b->flag[param];
    }
    uint64_t distance = 0;
    for (int entry = b->entry; left > 0 && entry < b->plan->entry_count; entry++) {
        const zb_gather_list *later = entry_list(b, entry);
        if (distance >= b->knobs->max_reuse_numel) break;
        for (int i = 0; i < later->count; i++) {
            left -= b->flag[later->params[i]];
            b->flag[later->params[i]] = 0;
            distance += numel_of(b, later->params[i]);
        }
    }
    decision->first = b->decided.count;
    for (int i = 0; i < list->count; i++) {
        if (b->flag[list->params[i]]) ZB_TRY(append(&b->decided, list->params[i]));
        b->flag[list->params[i]] = 0;
    }
    decision->count = b->decided.count - decision->first;
    return ZB_OK;
}

static zb_status release(planner *b, int param)
{
    if (b->state[param] != WHOLE || b->needed_by[param] > 0) return ZB_OK;
    b->state[param] = IN_PARTS;
    b->live_numel -= (int64_t)numel_of(b, param);
    return append(&b->params, param);
}

static void open_unit(planner *b, const zb_gather_event *event, const zb_gather_list *list)
{
    const unsigned char bit = (unsigned char)(1 << is_backward(event));
    if (b->is_open[event->unit] & bit) return;
    b->is_open[event->unit] |= bit;
    for (int i = 0; i < list->count; i++) b->needed_by[list->params[i]]++;
    if (is_backward(event)) b->opened[b->opened_count++] = event->unit;
}

static void close_unit(planner *b, int unit, int backward, const zb_gather_list *list)
{
    const unsigned char bit = (unsigned char)(1 << backward);
    if (!(b->is_open[unit] & bit)) return;
    b->is_open[unit] &= (unsigned char)~bit;
    for (int i = 0; i < list->count; i++) b->needed_by[list->params[i]]--;
}

static zb_status leave(planner *b, int index, const zb_gather_event *event, zb_gather_actions *actions)
{
    const zb_gather_list *list = zb_gather_event_list(b->trace, event);
    zb_span *decision = &b->decisions[index];
    close_unit(b, event->unit, is_backward(event), list);
    actions->release.first = b->params.count;
    if (b->key.mode == RECORDING) {
        for (int i = 0; i < list->count; i++) ZB_TRY(release(b, list->params[i]));
    } else {
        if (b->key.mode == DECIDED) {
            const int first = b->plan->passes[b->key.decided_by].first_actions;
            *decision = b->decisions[first + (int)(event - b->trace->events)];
        } else {
            ZB_TRY(decide_release(b, list, decision));
        }
        for (int i = 0; i < decision->count; i++) ZB_TRY(release(b, b->decided.values[decision->first + i]));
    }
    actions->release.count = b->params.count - actions->release.first;
    return ZB_OK;
}

/* The end of backward: units that never leave it give up what does not stay. */
static zb_status leave_the_rest(planner *b, zb_gather_actions *actions)
{
    actions->release.first = b->params.count;
    while (b->opened_count > 0) {
        const int unit = b->opened[--b->opened_count];
        const zb_gather_list *list = &b->trace->units[unit].backward;
        if (!(b->is_open[unit] & 2)) continue;
        close_unit(b, unit, 1, list);
        for (int i = 0; i < list->count; i++)
            if (!b->is_persistent[list->params[i]]) ZB_TRY(release(b, list->params[i]));
    }
    actions->release.count = b->params.count - actions->release.first;
    return ZB_OK;
}

/* --- a pass --- */

static zb_status enter(planner *b, const zb_gather_event *event, zb_gather_actions *actions)
{
    const zb_gather_list *list = zb_gather_event_list(b->trace, event);
    open_unit(b, event, list);
    ZB_TRY(fetch(b, list, &actions->fetch));
    ZB_TRY(land(b, list, &actions->land));
    if (b->key.mode != RECORDING) {
        dequeue_entry(b, list);
        ZB_TRY(prefetch(b, &actions->prefetch));
    }
    b->entry++;
    return ZB_OK;
}

static void begin_pass(planner *b, const zb_gather_pass *pass)
{
    b->live_numel = 0;
    b->entry = b->queue_head = b->opened_count = 0;
    memset(b->is_open, 0, (size_t)b->trace->unit_count);
    for (int p = 0; p < b->param_count; p++) {
        b->state[p] = IN_PARTS;
        b->needed_by[p] = 0;
        b->fetched_for[p] = -1;
    }
    for (int i = 0; i < pass->start.count; i++) b->state[b->params.values[pass->start.first + i]] = WHOLE;
}

/* The parameters whose flag is set; clears the flags. */
static zb_status append_flagged(planner *b, zb_span *span)
{
    span->first = b->params.count;
    for (int p = 0; p < b->param_count; p++) {
        if (b->flag[p]) ZB_TRY(append(&b->params, p));
        b->flag[p] = 0;
    }
    span->count = b->params.count - span->first;
    return ZB_OK;
}

static zb_status plan_pass(planner *b, int index)
{
    zb_gather_plan *plan = b->plan;
    const int events = b->trace->event_count, first = plan->passes[index].first_actions;
    b->key = b->keys[index];
    begin_pass(b, &plan->passes[index]);
    plan->passes[index].calls.first = plan->call_count;
    for (int e = 0; e < events; e++) {
        const zb_gather_event *event = &b->trace->events[e];
        if (enters(event))
            ZB_TRY(enter(b, event, &plan->actions[first + e]));
        else
            ZB_TRY(leave(b, first + e, event, &plan->actions[first + e]));
    }
    ZB_TRY(leave_the_rest(b, &plan->actions[first + events]));
    plan->passes[index].calls.count = plan->call_count - plan->passes[index].calls.first;
    for (int p = 0; p < b->param_count; p++) {
        ZB_ASSERT(b->state[p] != IN_FLIGHT); /* nothing is gathered ahead but what the pass needs */
        b->flag[p] = b->state[p] == WHOLE;
    }
    return append_flagged(b, &plan->passes[index].end);
}

/* --- which passes there are --- */

static int starts_with_flagged(const planner *b, const zb_gather_pass *pass)
{
    int flagged = 0;
    for (int p = 0; p < b->param_count; p++) flagged += b->flag[p];
    if (flagged != pass->start.count) return 0;
    for (int i = 0; i < pass->start.count; i++)
        if (!b->flag[b->params.values[pass->start.first + i]]) return 0;
    return 1;
}

/* The pass of this key that starts with the flagged parameters whole; planned when it is new. Clears the
 * flags. */
static zb_status find_pass(planner *b, pass_key key, int *index)
{
    zb_gather_plan *plan = b->plan;
    for (int i = 0; i < plan->pass_count; i++)
        if (b->keys[i].mode == key.mode && b->keys[i].decided_by == key.decided_by &&
            starts_with_flagged(b, &plan->passes[i])) {
            memset(b->flag, 0, (size_t)b->param_count);
            *index = i;
            return ZB_OK;
        }
    const int events = b->trace->event_count + 1, actions = events * (plan->pass_count + 1);
    int capacity = b->pass_capacity;
    void *passes = plan->passes, *keys = b->keys, *all_actions = plan->actions, *decisions = b->decisions;
    ZB_TRY(reserve(&passes, &capacity, plan->pass_count + 1, sizeof *plan->passes));
    plan->passes = passes;
    ZB_TRY(reserve(&keys, &b->pass_capacity, plan->pass_count + 1, sizeof *b->keys));
    b->keys = keys;
    capacity = b->action_capacity;
    ZB_TRY(reserve(&all_actions, &capacity, actions, sizeof *plan->actions));
    plan->actions = all_actions;
    ZB_TRY(reserve(&decisions, &b->action_capacity, actions, sizeof *b->decisions));
    b->decisions = decisions;

    *index = plan->pass_count++;
    b->keys[*index] = key;
    plan->passes[*index] = (zb_gather_pass){
        .check = key.mode == RECORDING  ? ZB_CHECK_EMPTY
                 : key.mode == DECIDING ? ZB_CHECK_TRACE
                                        : ZB_CHECK_NOTHING,
        .first_actions = actions - events,
        .next = { ZB_NO_PASS, ZB_NO_PASS, ZB_NO_PASS },
    };
    ZB_TRY(append_flagged(b, &plan->passes[*index].start));
    return plan_pass(b, *index);
}

static pass_key key_after(const planner *b, int index)
{
    const pass_key key = b->keys[index];
    if (key.mode == RECORDING) return (pass_key){ DECIDING, ZB_NO_PASS };
    if (key.mode == DECIDING) return (pass_key){ DECIDED, index };
    return key;
}

static zb_status find_next(planner *b, int index, zb_gather_after after)
{
    const zb_span end = b->plan->passes[index].end;
    int next;
    for (int i = 0; after == ZB_AFTER_MICRO_BATCH && i < end.count; i++)
        b->flag[b->params.values[end.first + i]] = 1;
    if (after == ZB_AFTER_APPLIED) memcpy(b->flag, b->is_persistent, (size_t)b->param_count);
    ZB_TRY(find_pass(b, key_after(b, index), &next));
    b->plan->passes[index].next[after] = next;
    return ZB_OK;
}

/* The passes of one step from the given one on, and what may follow the last. */
static zb_status plan_step(planner *b, int index)
{
    for (int64_t micro = 1; micro < b->micro_batches; micro++) {
        ZB_TRY(find_next(b, index, ZB_AFTER_MICRO_BATCH));
        const int next = b->plan->passes[index].next[ZB_AFTER_MICRO_BATCH];
        if (next == index) break; /* and so are all that follow */
        index = next;
    }
    ZB_TRY(find_next(b, index, ZB_AFTER_APPLIED));
    return b->may_skip ? find_next(b, index, ZB_AFTER_SKIPPED) : ZB_OK;
}

static zb_status plan_passes(planner *b)
{
    zb_gather_plan *plan = b->plan;
    int first;
    ZB_TRY(find_pass(b, (pass_key){ b->knobs->record_first ? RECORDING : PLAIN, ZB_NO_PASS }, &first));
    ZB_TRY(plan_step(b, first));
    /* A step begins with the first pass, or with one that follows a step; there are few of those. */
    for (int i = 0; i < plan->pass_count; i++)
        for (int after = ZB_AFTER_APPLIED; after < ZB_AFTER_COUNT; after++)
            if (plan->passes[i].next[after] != ZB_NO_PASS) ZB_TRY(plan_step(b, plan->passes[i].next[after]));
    return ZB_OK;
}

static zb_status plan_publish(planner *b)
{
    b->plan->publish.first = b->plan->call_count;
    for (int p = 0; p < b->param_count; p++)
        if (b->is_persistent[p]) ZB_TRY(add_call(b, &p, 1));
    b->plan->publish.count = b->plan->call_count - b->plan->publish.first;
    return ZB_OK;
}

/* --- all of it --- */

static zb_status planner_create(planner *b)
{
    const size_t params = (size_t)b->param_count, units = (size_t)b->trace->unit_count;
    b->is_persistent = zb_alloc(params);
    b->flag = zb_alloc(params);
    b->state = zb_alloc_array(params, sizeof *b->state);
    b->call_of = zb_alloc_array(params, sizeof *b->call_of);
    b->needed_by = zb_alloc_array(params, sizeof *b->needed_by);
    b->fetched_for = zb_alloc_array(params, sizeof *b->fetched_for);
    b->scratch = zb_alloc_array(params, sizeof *b->scratch);
    b->is_open = zb_alloc(units);
    b->opened = zb_alloc_array((size_t)b->trace->event_count, sizeof *b->opened);
    if (b->is_persistent == NULL || b->flag == NULL || b->state == NULL || b->call_of == NULL ||
        b->needed_by == NULL || b->fetched_for == NULL || b->scratch == NULL || b->is_open == NULL ||
        b->opened == NULL)
        return ZB_NO_MEMORY;
    choose_persistent(b);
    return list_entries(b);
}

static void planner_destroy(planner *b)
{
    zb_free(b->keys);
    zb_free(b->is_persistent);
    zb_free(b->entry_event);
    zb_free(b->decisions);
    zb_free(b->decided.values);
    zb_free(b->state);
    zb_free(b->call_of);
    zb_free(b->needed_by);
    zb_free(b->fetched_for);
    zb_free(b->is_open);
    zb_free(b->opened);
    zb_free(b->scratch);
    zb_free(b->flag);
}

zb_status zb_gather_plan_create(const zb_gather_trace *trace, const zb_layout *layout,
                                const zb_gather_knobs *knobs, int64_t micro_batches, int may_skip,
                                zb_gather_plan *plan)
{
    ZB_ASSERT(layout->stage == 3);
    *plan = (zb_gather_plan){ .trace = trace,
                              .world_size = layout->world_size,
                              .is_local = knobs->silent_alone && layout->world_size == 1 };
    planner b = { .trace = trace,
                  .layout = layout,
                  .knobs = knobs,
                  .micro_batches = micro_batches,
                  .may_skip = may_skip,
                  .param_count = layout->model->param_count,
                  .plan = plan };
    zb_status status = planner_create(&b);
    if (status == ZB_OK) status = plan_passes(&b);
    if (status == ZB_OK) status = plan_publish(&b);
    plan->params = b.params.values;
    plan->landings = b.landings.values;
    planner_destroy(&b);
    if (status == ZB_OK) status = zb_gather_plan_place(plan, layout);
    if (status != ZB_OK) zb_gather_plan_destroy(plan);
    return status;
}

void zb_gather_plan_destroy(zb_gather_plan *plan)
{
    zb_free(plan->passes);
    zb_free(plan->actions);
    zb_free(plan->calls);
    zb_free(plan->landings);
    zb_free(plan->params);
    zb_free(plan->place);
    zb_free(plan->entered);
    zb_free(plan->needed);
    zb_free(plan->needed_at);
    memset(plan, 0, sizeof *plan);
}

const zb_gather_actions *zb_gather_plan_at(const zb_gather_plan *plan, int pass, int event)
{
    return &plan->actions[plan->passes[pass].first_actions + event];
}
