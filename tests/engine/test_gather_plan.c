/* When parameters are gathered and released: schedules of real runs, and what must hold for any trace. */
#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>

#include "core/json.h"
#include "engine/gather_plan.h"
#include "tests/engine/models.h"

#define RUNS ZB_SOURCE_DIR "/fixtures/deepspeed-runs/runs.json"

enum { UNITS_MAX = 8, EVENTS_MAX = 64, TEXT_MAX = 4096 };

/* --- traces by hand: "- 01 23" are a root without parameters and two units of two each; "F0" and "f0" are
 * unit 0 entering and leaving its forward, "B0" and "b0" its backward --- */

typedef struct hand {
    zb_gather_trace trace;
    zb_gather_unit units[UNITS_MAX];
    zb_gather_event events[EVENTS_MAX];
    int params[UNITS_MAX * SIZES_MAX];
} hand;

static void hand_trace(hand *h, const char *units, const char *events)
{
    *h = (hand){ 0 };
    int *next = h->params;
    for (const char *at = units; *at != '\0';) {
        zb_gather_list list = { .params = next };
        for (; isxdigit((unsigned char)*at); at++) {
            *next++ = isdigit((unsigned char)*at) ? *at - '0' : *at - 'a' + 10;
            list.count++;
        }
        h->units[h->trace.unit_count++] = (zb_gather_unit){ list, list };
        while (*at == '-' || *at == ' ') at++;
    }
    for (const char *at = events; *at != '\0'; at++) {
        static const char hooks[] = "FfBb";
        if (*at == ' ') continue;
        h->events[h->trace.event_count++] = (zb_gather_event){
            .hook = (zb_hook)(strchr(hooks, at[0]) - hooks), .unit = at[1] - '0'
        };
        at++;
    }
    h->trace.units = h->units;
    h->trace.events = h->events;
}

static zb_gather_plan plan_of(const zb_gather_trace *trace, const sizes *s, int world,
                              const zb_gather_knobs *knobs, int micro_batches, int may_skip)
{
    zb_layout layout;
    zb_gather_plan plan;
    zb_model *model = sizes_model(s);
    assert_int_equal(
        zb_layout_create(&(zb_layout_options){ .model = model, .stage = 3, .world_size = world }, &layout),
        ZB_OK);
    assert_int_equal(zb_gather_plan_create(trace, &layout, knobs, micro_batches, may_skip, &plan), ZB_OK);
    zb_layout_destroy(&layout);
    zb_model_destroy(model);
    return plan;
}

/* --- schedules as text: each all_gather with what it brings, F where a unit with parameters has run forward,
 * | between forward and backward --- */

static void write_calls(char *text, const zb_gather_plan *plan, zb_span calls)
{
    for (int c = calls.first; c < calls.first + calls.count; c++)
        sprintf(text + strlen(text), "AG%zu ", plan->calls[c].part_numel * (size_t)plan->world_size);
}

static void write_pass(char *text, const zb_gather_plan *plan, int pass)
{
    const zb_gather_trace *trace = plan->trace;
    for (int e = 0; e < trace->event_count; e++) {
        const zb_gather_actions *actions = zb_gather_plan_at(plan, pass, e);
        if (e == zb_gather_plan_turn(trace)) strcat(text, "| ");
        write_calls(text, plan, actions->fetch);
        write_calls(text, plan, actions->prefetch);
        if (trace->events[e].hook == ZB_HOOK_LEAVE_FORWARD &&
            zb_gather_event_list(trace, &trace->events[e])->count > 0)
            strcat(text, "F ");
    }
}

enum { ANY = 1000000000, AHEAD = 50000000 };

#define THREE_UNITS   "- 01 23 45"
#define THREE_FORWARD "F0 F1 f1 F2 f2 F3 f3 f0 "
/* Each is what DeepSpeed does; the input needs no gradient, so that neither root nor first module leaves. */
#define THREE_BACKWARD "B0 B3 b3 B2 b2 B1"

static const struct schedule_case {
    const char *name, *units, *events;
    zb_gather_knobs knobs;
    const char *first, *later; /* schedule of the first step and of those behind an applied one */
} schedules[] = {
    { "everything stays from forward to backward",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 0, ANY, ANY, 0, ANY, 0, 1, 0 },
      "AG20 F AG28 F AG14 F | AG14 AG28 AG20 ",
      "AG20 F AG28 F AG14 F | " },
    { "nothing is kept",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 0, ANY, 0, 0, ANY, 0, 1, 0 },
      "AG20 F AG28 F AG14 F | AG14 AG28 AG20 ",
      "AG20 F AG28 F AG14 F | AG14 AG28 AG20 " },
    { "the root gathers all ahead",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { AHEAD, ANY, ANY, 0, ANY, 0, 1, 0 },
      "AG20 F AG28 F AG14 F | AG14 AG28 AG20 ",
      "AG62 F F F | " },
    { "ahead by 20: a module in two calls",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 20, ANY, ANY, 0, ANY, 0, 1, 0 },
      "AG20 F AG28 F AG14 F | AG14 AG28 AG20 ",
      "AG20 AG24 F AG4 AG14 F F | " },
    { "ahead while less than 30 are live: one too many",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { AHEAD, 30, ANY, 0, ANY, 0, 1, 0 },
      "AG20 F AG28 F AG14 F | AG14 AG28 AG20 ",
      "AG44 F AG4 F AG14 F | " },
    { "biases persist",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 0, ANY, ANY, 4, ANY, 0, 1, 0 },
      "AG20 F AG28 F AG14 F | AG14 AG28 AG20 then AG4 AG4 AG4 ",
      "AG16 F AG24 F AG10 F | then AG4 AG4 AG4 " },
    /* From here on by hand, from the rules. */
    { "the order known from the start: no pass to learn it",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 20, ANY, ANY, 4, ANY, 0, 0, 0 },
      "AG20 AG24 F AG4 AG14 F F | then AG4 AG4 AG4 ",
      "AG40 AG10 F F F | then AG4 AG4 AG4 " },
    { "only as many persist as the model may keep",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 0, ANY, ANY, 10, 9, 0, 0, 0 },
      "AG20 F AG28 F AG14 F | then AG4 AG4 ",
      "AG16 F AG24 F AG14 F | then AG4 AG4 " },
    { "one that is too large for the rest does not end the list",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 0, ANY, ANY, 16, 19, 0, 0, 0 },
      "AG20 F AG28 F AG14 F | then AG16 AG4 ",
      "AG4 F AG28 F AG10 F | then AG16 AG4 " },
    { "one by one",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 1, ANY, ANY, 0, ANY, 1, 1, 0 },
      "AG16 AG4 F AG24 AG4 F AG10 AG4 F | AG10 AG4 AG24 AG4 AG16 AG4 ",
      "AG16 AG4 AG24 F AG4 AG10 F AG4 F | " },
    /* From l1 to its backward lie l2 forward, the root and l2 backward again: 13 + 13 elements. */
    { "kept within 27 elements, where 26 lie between",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 0, ANY, 27, 0, ANY, 0, 0, 0 },
      "AG20 F AG28 F AG14 F | AG20 ",
      "AG20 F AG28 F AG14 F | AG20 " },
    { "not kept within 26",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 0, ANY, 26, 0, ANY, 0, 0, 0 },
      "AG20 F AG28 F AG14 F | AG28 AG20 ",
      "AG20 F AG28 F AG14 F | AG28 AG20 " },
    /* The last module comes again at once; the root's empty entry lies between. */
    { "kept within one element",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 0, ANY, 1, 0, ANY, 0, 0, 0 },
      "AG20 F AG28 F AG14 F | AG28 AG20 ",
      "AG20 F AG28 F AG14 F | AG28 AG20 " },
    { "a root with parameters of its own, needed until all others are done",
      "4 01 23",
      "F0 F1 f1 F2 f2 f0 B0 B2 b2 B1 b1 b0",
      { 0, ANY, 0, 0, ANY, 0, 0, 0 },
      "AG10 AG20 F AG28 F F | AG10 AG28 AG20 ",
      "AG10 AG20 F AG28 F F | AG10 AG28 AG20 " },
    { "two units share a parameter",
      "- 01 02",
      "F0 F1 f1 F2 f2 f0 B0 B2 b2 B1 b1",
      { 0, ANY, 0, 0, ANY, 0, 0, 0 },
      "AG20 F AG40 F | AG40 AG20 ",
      "AG20 F AG40 F | AG40 AG20 " },
    { "two units share a parameter, kept from one to the next",
      "- 01 02",
      "F0 F1 f1 F2 f2 f0 B0 B2 b2 B1 b1",
      { 0, ANY, 1, 0, ANY, 0, 0, 0 },
      "AG20 F AG24 F | AG4 ",
      "AG20 F AG24 F | AG4 " },
    /* Taken as gathered for backward by the prefetch of forward, so that it is not released. */
    { "what was gathered ahead is kept although nothing else is",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { AHEAD, ANY, 0, 0, ANY, 0, 0, 0 },
      "AG62 F F F | ",
      "AG62 F F F | " },
    /* For the very next entry it does not count: the distance alone decides. */
    { "but not from the entry before",
      "012345",
      "F0 f0 B0",
      { AHEAD, ANY, 0, 0, ANY, 0, 1, 0 },
      "AG62 F | AG62 ",
      "AG62 F | AG62 " },
    { "what is released makes room to gather ahead",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { AHEAD, 30, 0, 0, ANY, 0, 1, 0 },
      "AG20 F AG28 F AG14 F | AG14 AG28 AG20 ",
      "AG44 F AG4 AG10 F AG4 AG24 F | AG4 AG16 AG4 " },
};

static const sizes six = { 6, { 16, 4, 24, 4, 10, 3 }, 0 };

static void write_step(char *text, const zb_gather_plan *plan, int pass)
{
    write_pass(text, plan, pass);
    if (plan->publish.count == 0) return;
    strcat(text, "then ");
    write_calls(text, plan, plan->publish);
}

static void check_schedule(void **state)
{
    const struct schedule_case *c = *state;
    hand h;
    char text[TEXT_MAX] = "";
    hand_trace(&h, c->units, c->events);
    zb_gather_plan plan = plan_of(&h.trace, &six, 2, &c->knobs, 1, 0);
    write_step(text, &plan, 0);
    assert_string_equal(text, c->first);
    int second = plan.passes[0].next[ZB_AFTER_APPLIED], third = plan.passes[second].next[ZB_AFTER_APPLIED];
    for (int pass = second; pass != -1; pass = pass == second && third != second ? third : -1) {
        text[0] = '\0';
        write_step(text, &plan, pass);
        assert_string_equal(text, c->later);
    }
    zb_gather_plan_destroy(&plan);
}

/* --- real runs: one module that owns all parameters --- */

static void write_check(char *text, const zb_gather_plan *plan, zb_gather_check check)
{
    if (check == ZB_CHECK_EMPTY) strcat(text, "B1 B0 ");
    if (check == ZB_CHECK_TRACE)
        sprintf(text + strlen(text), "B1 B%d B1 B%d B1 B%d ", plan->entry_count, plan->needed_count,
                plan->needed_count);
}

static zb_gather_knobs deepspeed_knobs(const cJSON *config)
{
    zb_gather_knobs knobs = { 50000000, 1000000000, 1000000000, 100000, INT64_MAX, 0, 1, 1 };
    const cJSON *zero = cJSON_GetObjectItem(config, "zero_optimization");
    const cJSON *persistence = cJSON_GetObjectItem(zero, "stage3_param_persistence_threshold");
    if (persistence != NULL) knobs.param_persistence_numel = (uint64_t)persistence->valuedouble;
    return knobs;
}

/* Gathers and broadcasts of a recorded step; "; " where anything else was done in between. */
static void write_recorded(char *text, const cJSON *comm)
{
    int other = 0;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, comm)
    {
        const char *name = cJSON_GetArrayItem(entry, 0)->valuestring;
        const int numel = cJSON_GetArrayItem(entry, 2)->valueint;
        const int gathers = strcmp(name, "all_gather_into_tensor") == 0;
        if (!gathers && strcmp(name, "broadcast") != 0) {
            if (!other) strcat(text, "; ");
            other = 1;
            continue;
        }
        other = 0;
        sprintf(text + strlen(text), "%s%d ", gathers ? "AG" : "B", numel);
    }
}

static void check_recorded_run(const cJSON *run)
{
    const cJSON *config = cJSON_GetObjectItem(run, "config"), *item;
    const cJSON *steps = cJSON_GetObjectItem(cJSON_GetArrayItem(cJSON_GetObjectItem(run, "ranks"), 0),
                                             "steps");
    const int world = cJSON_GetObjectItem(run, "world")->valueint;
    const int micro_batches = cJSON_GetObjectItem(config, "gradient_accumulation_steps")->valueint;
    const zb_gather_knobs knobs = deepspeed_knobs(config);
    sizes s = { 0 };
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(run, "sizes")) s.numel[s.count++] = (size_t)item->valueint;
    hand h;
    char all[SIZES_MAX + 1] = "0123456789abcdef";
    all[s.count] = '\0';
    hand_trace(&h, all, "F0 f0 B0");
    zb_gather_plan plan = plan_of(&h.trace, &s, world, &knobs, micro_batches, 1);

    int pass = 0, skipped_before = 0;
    for (int step = 1; step < cJSON_GetArraySize(steps); step++) {
        const cJSON *entry = cJSON_GetArrayItem(steps, step);
        char want[TEXT_MAX] = "", got[TEXT_MAX] = "";
        const int skipped = cJSON_GetObjectItem(entry, "skipped")->valueint;
        for (int micro = 0; micro < micro_batches; micro++) {
            char schedule[TEXT_MAX] = "";
            if (micro > 0) pass = plan.passes[pass].next[ZB_AFTER_MICRO_BATCH];
            write_check(got, &plan, plan.passes[pass].check);
            write_pass(schedule, &plan, pass);
            for (char *word = strtok(schedule, " "); word != NULL; word = strtok(NULL, " "))
                if (word[0] == 'A') strcat(strcat(got, word), " ");
            if (got[0] == '\0' || got[strlen(got) - 2] != ';') strcat(got, "; ");
        }
        if (skipped == skipped_before) write_calls(got, &plan, plan.publish);
        pass = plan.passes[pass].next[skipped == skipped_before ? ZB_AFTER_APPLIED : ZB_AFTER_SKIPPED];
        skipped_before = skipped;
        write_recorded(want, cJSON_GetObjectItem(entry, "comm"));
        if (strcmp(got, want) != 0)
            fail_msg("%s, step %d:\n  got  %s\n  want %s", cJSON_GetObjectItem(run, "name")->valuestring,
                     step - 1, got, want);
    }
    zb_gather_plan_destroy(&plan);
}

static void recorded_runs(void **state)
{
    (void)state;
    zb_json *json;
    int checked = 0;
    assert_int_equal(zb_json_load(RUNS, &json), ZB_OK);
    const cJSON *run;
    cJSON_ArrayForEach(run, zb_json_root(json).value)
    {
        const cJSON *zero = cJSON_GetObjectItem(cJSON_GetObjectItem(run, "config"), "zero_optimization");
        if (zero == NULL || cJSON_GetObjectItem(zero, "stage")->valueint != 3) continue;
        check_recorded_run(run);
        checked++;
    }
    assert_int_equal(checked, 6);
    zb_json_destroy(json);
}

/* --- what a pass starts with depends on the one before --- */

static void passes_follow_one_another(void **state)
{
    (void)state;
    hand h;
    hand_trace(&h, "012345", "F0 f0 B0");
    const zb_gather_knobs knobs = { 0, ANY, ANY, 4, ANY, 0, 1, 0 };
    zb_gather_plan plan = plan_of(&h.trace, &six, 2, &knobs, 2, 1);
    const zb_gather_pass *first = &plan.passes[0];
    assert_int_equal(first->check, ZB_CHECK_EMPTY);
    assert_int_equal(first->start.count, 0);
    assert_int_equal(first->end.count, 3); /* never left backward, and persistent */
    assert_int_equal(first->next[ZB_AFTER_APPLIED], ZB_NO_PASS);

    const zb_gather_pass *second = &plan.passes[first->next[ZB_AFTER_MICRO_BATCH]];
    assert_int_equal(second->check, ZB_CHECK_TRACE);
    assert_int_equal(second->start.count, 3);
    assert_int_equal(second->next[ZB_AFTER_MICRO_BATCH], ZB_NO_PASS);
    const zb_gather_pass *applied = &plan.passes[second->next[ZB_AFTER_APPLIED]];
    const zb_gather_pass *skipped = &plan.passes[second->next[ZB_AFTER_SKIPPED]];
    assert_int_equal(applied->check, ZB_CHECK_NOTHING);
    assert_int_equal(applied->start.count, 3);
    assert_int_equal(skipped->start.count, 0);
    assert_int_equal(applied->calls.count, 1);
    assert_int_equal(skipped->calls.count, 1);
    assert_int_equal(plan.calls[applied->calls.first].params.count, 3);
    assert_int_equal(plan.calls[skipped->calls.first].params.count, 6);
    zb_gather_plan_destroy(&plan);
}

static void a_step_that_cannot_be_skipped_has_no_pass_for_it(void **state)
{
    (void)state;
    hand h;
    hand_trace(&h, "012345", "F0 f0 B0 b0");
    const zb_gather_knobs knobs = { 0, ANY, ANY, 4, ANY, 0, 0, 0 };
    zb_gather_plan plan = plan_of(&h.trace, &six, 2, &knobs, 1, 0);
    for (int pass = 0; pass < plan.pass_count; pass++)
        assert_int_equal(plan.passes[pass].next[ZB_AFTER_SKIPPED], ZB_NO_PASS);
    assert_int_equal(plan.pass_count, 2);
    zb_gather_plan_destroy(&plan);
}

/* --- the arena --- */

static const struct arena_case {
    const char *name, *units, *events;
    zb_gather_knobs knobs;
    size_t numel; /* world 2 */
} arenas[] = {
    /* l1: 28 in the buffer, and 28 in their places. */
    { "nothing is kept: twice the largest module",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 0, ANY, 0, 0, ANY, 0, 0, 0 },
      56 },
    { "one by one: the largest module",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 0, ANY, 0, 0, ANY, 1, 0, 0 },
      28 },
    { "all stay: 62, and the largest buffer while not all are there yet",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { 0, ANY, ANY, 0, ANY, 0, 0, 0 },
      76 },
    { "all at once: twice all",
      THREE_UNITS,
      THREE_FORWARD THREE_BACKWARD,
      { AHEAD, ANY, ANY, 0, ANY, 0, 0, 0 },
      124 },
    { "a world of one that sends nothing needs no buffers",
      "012345",
      "F0 f0 B0",
      { AHEAD, ANY, ANY, 0, ANY, 0, 1, 1 },
      61 },
};

static void check_arena(void **state)
{
    const struct arena_case *c = *state;
    hand h;
    hand_trace(&h, c->units, c->events);
    zb_gather_plan plan = plan_of(&h.trace, &six, c->knobs.record_first ? 1 : 2, &c->knobs, 1, 0);
    assert_int_equal(plan.arena_numel, c->numel);
    assert_int_equal(plan.peak_numel, c->numel);
    zb_gather_plan_destroy(&plan);
}

/* --- any trace, any knobs --- */

/* Elements that a call or a parameter occupies, as owners of the arena. */
typedef struct occupant {
    size_t place, numel;
} occupant;

enum { OCCUPANTS_MAX = 256 };

typedef struct walk {
    const zb_gather_plan *plan;
    const sizes *sizes;
    const zb_gather_knobs *knobs;
    int whole[SIZES_MAX]; /* 0: in parts, 1: under way, 2: whole */
    int by[SIZES_MAX];    /* call */
    int held[SIZES_MAX];  /* units that are between entering and leaving */
    occupant occupied[OCCUPANTS_MAX];
    int occupied_count;
    int64_t live;
} walk;

static size_t padded(const walk *w, int param)
{
    size_t world = (size_t)w->plan->world_size;
    return (w->sizes->numel[param] + world - 1) / world * world;
}

static void occupy(walk *w, size_t place, size_t numel)
{
    assert_true(place + numel <= w->plan->arena_numel);
    for (int i = 0; i < w->occupied_count; i++) {
        const occupant *o = &w->occupied[i];
        if (place < o->place + o->numel && o->place < place + numel) fail_msg("two in one place");
    }
    assert_true(w->occupied_count < OCCUPANTS_MAX);
    if (numel > 0) w->occupied[w->occupied_count++] = (occupant){ place, numel };
}

static void vacate(walk *w, size_t place, size_t numel)
{
    for (int i = 0; i < w->occupied_count; i++)
        if (w->occupied[i].place == place && w->occupied[i].numel == numel) {
            w->occupied[i] = w->occupied[--w->occupied_count];
            return;
        }
    if (numel > 0) fail_msg("released from a place where it is not");
}

static void look(walk *w)
{
    size_t largest = 0;
    for (int p = 0; p < w->sizes->count; p++)
        if (w->whole[p] != 2 && padded(w, p) > largest) largest = padded(w, p);
    occupy(w, w->plan->inspect_place, largest);
    vacate(w, w->plan->inspect_place, largest);
}

static void walk_calls(walk *w, zb_span calls)
{
    for (int c = calls.first; c < calls.first + calls.count; c++) {
        const zb_gather_call *call = &w->plan->calls[c];
        size_t parts = 0;
        assert_true(call->params.count > 0);
        assert_true(call->params.count == 1 || !w->knobs->sequential);
        for (int i = 0; i < call->params.count; i++) {
            const int p = w->plan->params[call->params.first + i];
            assert_int_equal(w->whole[p], 0); /* never twice */
            assert_true(i == 0 || w->plan->params[call->params.first + i - 1] < p);
            w->whole[p] = 1;
            w->by[p] = c;
            w->live += (int64_t)w->sizes->numel[p];
            parts += padded(w, p) / (size_t)w->plan->world_size;
        }
        assert_int_equal(call->part_numel, parts);
        if (zb_gather_call_is_coalesced(w->plan, call))
            occupy(w, call->buffer, parts * (size_t)w->plan->world_size);
        else
            for (int i = 0; i < call->params.count; i++) {
                const int p = w->plan->params[call->params.first + i];
                occupy(w, w->plan->place[p], padded(w, p));
            }
    }
}

static void walk_landings(walk *w, zb_span landings)
{
    for (int l = landings.first; l < landings.first + landings.count; l++) {
        const int c = w->plan->landings[l];
        const zb_gather_call *call = &w->plan->calls[c];
        for (int i = 0; i < call->params.count; i++) {
            const int p = w->plan->params[call->params.first + i];
            assert_int_equal(w->whole[p], 1);
            assert_int_equal(w->by[p], c);
            w->whole[p] = 2;
            if (zb_gather_call_is_coalesced(w->plan, call)) occupy(w, w->plan->place[p], padded(w, p));
        }
        if (zb_gather_call_is_coalesced(w->plan, call))
            vacate(w, call->buffer, call->part_numel * (size_t)w->plan->world_size);
    }
}

static void walk_releases(walk *w, zb_span releases)
{
    for (int i = releases.first; i < releases.first + releases.count; i++) {
        const int p = w->plan->params[i];
        assert_int_equal(w->whole[p], 2);
        assert_int_equal(w->held[p], 0);
        w->whole[p] = 0;
        w->live -= (int64_t)w->sizes->numel[p];
        vacate(w, w->plan->place[p], padded(w, p));
    }
}

static void assert_whole(const walk *w, zb_span span)
{
    int whole = 0;
    for (int p = 0; p < w->sizes->count; p++) {
        assert_int_not_equal(w->whole[p], 1);
        whole += w->whole[p] == 2;
    }
    assert_int_equal(whole, span.count);
    for (int i = 0; i < span.count; i++) assert_int_equal(w->whole[w->plan->params[span.first + i]], 2);
}

static void walk_prefetch(walk *w, zb_span calls)
{
    const int64_t room = (int64_t)w->knobs->max_live_numel - w->live;
    const int64_t before = w->live;
    size_t largest = 0;
    for (int c = calls.first; c < calls.first + calls.count; c++)
        for (int i = 0; i < w->plan->calls[c].params.count; i++) {
            size_t numel = w->sizes->numel[w->plan->params[w->plan->calls[c].params.first + i]];
            if (numel > largest) largest = numel;
        }
    walk_calls(w, calls);
    if (calls.count == 0) return;
    assert_true(room > 0);
    /* Less than the budget before the last one. */
    assert_true(w->live - before < room + (int64_t)largest);
    assert_true((uint64_t)(w->live - before) < w->knobs->prefetch_numel + largest);
}

static void walk_event(walk *w, int pass, int index)
{
    const zb_gather_event *event = &w->plan->trace->events[index];
    const zb_gather_actions *actions = zb_gather_plan_at(w->plan, pass, index);
    const zb_gather_list *list = zb_gather_event_list(w->plan->trace, event);
    walk_calls(w, actions->fetch);
    walk_landings(w, actions->land);
    for (int i = 0; i < list->count; i++) assert_int_equal(w->whole[list->params[i]], 2);
    walk_prefetch(w, actions->prefetch);
    for (int i = 0; i < list->count; i++)
        w->held[list->params[i]] += event->hook == ZB_HOOK_ENTER_FORWARD ||
                                            event->hook == ZB_HOOK_ENTER_BACKWARD
                                        ? 1
                                        : -1;
    walk_releases(w, actions->release);
}

static void walk_pass(walk *w, int pass)
{
    const zb_gather_plan *plan = w->plan;
    const int turn = zb_gather_plan_turn(plan->trace);
    assert_whole(w, plan->passes[pass].start);
    w->live = 0;
    look(w);
    for (int e = 0; e < plan->trace->event_count; e++) {
        if (e == turn) look(w);
        walk_event(w, pass, e);
    }
    memset(w->held, 0, sizeof w->held);
    walk_releases(w, zb_gather_plan_at(plan, pass, plan->trace->event_count)->release);
    assert_whole(w, plan->passes[pass].end);
    look(w);
    for (int i = 0; !w->knobs->record_first && i < plan->passes[pass].end.count; i++)
        assert_true(w->sizes->numel[plan->params[plan->passes[pass].end.first + i]] <=
                    w->knobs->param_persistence_numel);
}

static void walk_step_end(walk *w, int pass, int skipped)
{
    const zb_span end = w->plan->passes[pass].end;
    for (int i = 0; i < end.count; i++) {
        const int p = w->plan->params[end.first + i];
        w->whole[p] = 0;
        vacate(w, w->plan->place[p], padded(w, p));
    }
    if (skipped) return;
    walk_calls(w, w->plan->publish);
    for (int p = 0; p < w->sizes->count; p++)
        if (w->whole[p] == 1) w->whole[p] = 2;
}

static void random_units(uint64_t *random, hand *h, int param_count)
{
    char units[UNITS_MAX * (SIZES_MAX + 1)] = "", events[EVENTS_MAX * 3] = "", word[32];
    const int count = 1 + (int)random_below(random, UNITS_MAX - 1);
    const int as_deepspeed = (int)random_below(random, 2);
    for (int u = 0; u < count; u++) {
        int used = 0;
        if (u > 0) strcat(units, " ");
        for (int p = 0; p < param_count; p++)
            if (random_below(random, 4) == 0) used += sprintf(units + strlen(units), "%x", p);
        if (used == 0) strcat(units, "-");
    }
    strcat(events, "F0");
    for (int u = 1; u < count; u++) {
        sprintf(word, "F%df%d", u, u);
        strcat(events, word);
    }
    strcat(events, "f0B0");
    for (int u = count - 1; u > 0; u--) {
        sprintf(word, as_deepspeed && random_below(random, 3) == 0 ? "B%d" : "B%db%d", u, u);
        strcat(events, word);
    }
    if (!as_deepspeed) strcat(events, "b0");
    hand_trace(h, units, events);
}

static uint64_t random_limit(uint64_t *random)
{
    return random_below(random, 4) == 0 ? ANY : random_below(random, 60);
}

static void any_trace_any_knobs(void **state)
{
    (void)state;
    size_t arenas_numel = 0, peaks_numel = 0;
    for (uint64_t seed = 1; seed <= 3000; seed++) {
        uint64_t random = seed;
        sizes s = { .count = 1 + (int)random_below(&random, SIZES_MAX) };
        for (int p = 0; p < s.count; p++) s.numel[p] = 1 + random_below(&random, 20);
        hand h;
        random_units(&random, &h, s.count);
        const zb_gather_knobs knobs = { .prefetch_numel = random_limit(&random),
                                        .max_live_numel = random_limit(&random),
                                        .max_reuse_numel = random_limit(&random),
                                        .param_persistence_numel = random_limit(&random),
                                        .model_persistence_numel = random_limit(&random),
                                        .sequential = random_below(&random, 4) == 0,
                                        .record_first = h.events[h.trace.event_count - 1].unit != 0,
                                        .silent_alone = random_below(&random, 2) == 0 };
        const int micro_batches = 1 + (int)random_below(&random, 3);
        zb_gather_plan plan = plan_of(&h.trace, &s, 1 + (int)random_below(&random, 4), &knobs, micro_batches,
                                      1);
        walk w = { .plan = &plan, .sizes = &s, .knobs = &knobs };
        int pass = 0;
        for (int step = 0; step < 5; step++) {
            for (int micro = 0; micro < micro_batches; micro++) {
                if (micro > 0) pass = plan.passes[pass].next[ZB_AFTER_MICRO_BATCH];
                walk_pass(&w, pass);
            }
            const int skipped = random_below(&random, 3) == 0;
            walk_step_end(&w, pass, skipped);
            pass = plan.passes[pass].next[skipped ? ZB_AFTER_SKIPPED : ZB_AFTER_APPLIED];
        }
        assert_true(plan.arena_numel >= plan.peak_numel);
        arenas_numel += plan.arena_numel;
        peaks_numel += plan.peak_numel;
        zb_gather_plan_destroy(&plan);
    }
    print_message("arenas are %.3f of what is in use at most\n", (double)arenas_numel / (double)peaks_numel);
    assert_true((double)arenas_numel < 1.05 * (double)peaks_numel);
}

static void out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    hand h;
    zb_layout layout;
    hand_trace(&h, THREE_UNITS, THREE_FORWARD THREE_BACKWARD);
    zb_model *model = sizes_model(&six);
    assert_int_equal(
        zb_layout_create(&(zb_layout_options){ .model = model, .stage = 3, .world_size = 2 }, &layout),
        ZB_OK);
    const zb_gather_knobs knobs = { 20, 30, 26, 4, ANY, 0, 1, 0 };
    const uint64_t live = zb_alloc_get_stats().live;
    int fired = 1;
    for (int n = 0; fired; n++) {
        zb_gather_plan plan;
        zb_alloc_fail_at(n);
        zb_status status = zb_gather_plan_create(&h.trace, &layout, &knobs, 3, 1, &plan);
        fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        zb_gather_plan_destroy(&plan);
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
    zb_layout_destroy(&layout);
    zb_model_destroy(model);
}

int main(void)
{
    struct CMUnitTest tests[COUNT(schedules) + COUNT(arenas) + 5] = {
        cmocka_unit_test(recorded_runs),
        cmocka_unit_test(passes_follow_one_another),
        cmocka_unit_test(a_step_that_cannot_be_skipped_has_no_pass_for_it),
        cmocka_unit_test(any_trace_any_knobs),
        cmocka_unit_test(out_of_memory_leaves_nothing),
    };
    size_t n = 5;
    for (size_t i = 0; i < COUNT(schedules); i++)
        tests[n++] = (struct CMUnitTest){ schedules[i].name, check_schedule, NULL, NULL,
                                          (void *)&schedules[i] };
    for (size_t i = 0; i < COUNT(arenas); i++)
        tests[n++] = (struct CMUnitTest){ arenas[i].name, check_arena, NULL, NULL, (void *)&arenas[i] };
    return cmocka_run_group_tests_name("gather_plan", tests, NULL, NULL);
}
