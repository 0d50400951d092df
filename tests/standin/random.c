/*
 * Random programs with exactly the events that they need. None is reported, and each computes what its
 * operations give in the order of their calls. With one event left out it is reported, for that event was
 * needed.
 */
#include <stdio.h>

#include "tests/standin/support.h"

enum { SEEDS = 1000, OPS = 48, STREAMS = 4, NUMEL = 64, ARRAYS = 3, EDGES_MAX = OPS * OPS };

static uint64_t state;

static unsigned below(unsigned bound)
{
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (unsigned)((state * UINT64_C(2685821657736338717)) >> 33) % bound;
}

/* --- a program --- */

typedef struct span {
    int array;
    size_t first, numel;
} span;

typedef enum action { FILL, COPY, ADD, SYNCHRONIZE, ACTIONS } action;

typedef struct operation {
    action action;
    int stream;
    span to, from; /* FILL: only to. ADD reads `to` as well */
} operation;

typedef struct program {
    operation ops[OPS];
    int edge_count;
    struct edge {
        int from, to;
    } edges[EDGES_MAX];
} program;

static span random_span(void)
{
    const size_t numel = 1 + below(NUMEL / 2);
    return (
        span){ .array = (int)below(ARRAYS), .first = below((unsigned)(NUMEL - numel + 1)), .numel = numel };
}

static operation random_operation(void)
{
    operation op = { .action = below(16) == 0 ? SYNCHRONIZE : (action)below(SYNCHRONIZE),
                     .stream = (int)below(STREAMS) };
    op.to = random_span();
    op.from = (span){ .array = (op.to.array + 1) % ARRAYS, .numel = op.to.numel };
    op.from.first = below((unsigned)(NUMEL - op.to.numel + 1));
    return op;
}

static int overlap(span s, span t)
{
    return s.array == t.array && s.first < t.first + t.numel && t.first < s.first + s.numel;
}

static int reads(const operation *op, span s)
{
    return op->action != FILL && (overlap(op->from, s) || (op->action == ADD && overlap(op->to, s)));
}

static int conflict(const operation *p, const operation *q)
{
    if (p->action == SYNCHRONIZE || q->action == SYNCHRONIZE) return 0;
    return overlap(p->to, q->to) || reads(p, q->to) || reads(q, p->to);
}

/* before[i][j]: j is known to come before i, by streams, by the host's waits and by the edges so far. */
typedef struct order {
    char before[OPS][OPS], host[OPS];
    int last[STREAMS]; /* operation on each stream; -1: none */
} order;

static void join(char *to, const char *from)
{
    for (int i = 0; i < OPS; i++) to[i] |= from[i];
}

/* The latest conflict first: an edge from it may order earlier ones as well, but no later edge orders it. */
static void add_operation(program *p, order *o, int i)
{
    const operation *op = &p->ops[i];
    const int previous = o->last[op->stream];
    if (op->action == SYNCHRONIZE) {
        if (previous >= 0) join(o->host, o->before[previous]), o->host[previous] = 1;
        return;
    }
    join(o->before[i], o->host);
    if (previous >= 0) join(o->before[i], o->before[previous]), o->before[i][previous] = 1;
    for (int j = i - 1; j >= 0; j--) {
        if (o->before[i][j] || !conflict(op, &p->ops[j])) continue;
        p->edges[p->edge_count++] = (struct edge){ .from = j, .to = i };
        join(o->before[i], o->before[j]), o->before[i][j] = 1;
    }
    o->last[op->stream] = i;
}

static void draw_program(program *p, uint64_t seed)
{
    static order o;
    memset(&o, 0, sizeof o);
    memset(o.last, -1, sizeof o.last);
    state = (seed + 1) * UINT64_C(0x9E3779B97F4A7C15);
    p->edge_count = 0;
    for (int i = 0; i < OPS; i++) {
        p->ops[i] = random_operation();
        add_operation(p, &o, i);
    }
}

/* --- running it --- */

static float *arrays[ARRAYS];
static cudaStream_t streams[STREAMS];

static void issue(const operation *op, int i)
{
    float *to = arrays[op->to.array] + op->to.first, *from = arrays[op->from.array] + op->from.first;
    const size_t bytes = op->to.numel * sizeof *to;
    cudaStream_t stream = streams[op->stream];
    if (op->action == FILL)
        OK(cudaMemsetAsync(to, i, bytes, stream));
    else if (op->action == COPY)
        OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
    else if (op->action == ADD)
        launch_add(stream, to, from, op->to.numel);
    else
        OK(cudaStreamSynchronize(stream));
}

static void issue_all(const program *p, int left_out)
{
    cudaEvent_t events[EDGES_MAX];
    for (int i = 0; i < OPS; i++) {
        for (int n = 0; n < p->edge_count; n++)
            if (p->edges[n].to == i && n != left_out)
                OK(cudaStreamWaitEvent(streams[p->ops[i].stream], events[n], 0));
        issue(&p->ops[i], i);
        for (int n = 0; n < p->edge_count; n++)
            if (p->edges[n].from == i) {
                events[n] = new_event();
                OK(cudaEventRecord(events[n], streams[p->ops[i].stream]));
            }
    }
    for (int n = 0; n < p->edge_count; n++) OK(cudaEventDestroy(events[n]));
}

/* The same on the host, one operation after the other. */
static void expect(const program *p, float wanted[ARRAYS][NUMEL])
{
    for (int i = 0; i < OPS; i++) {
        const operation *op = &p->ops[i];
        float *to = wanted[op->to.array] + op->to.first;
        const float *from = wanted[op->from.array] + op->from.first;
        if (op->action == FILL)
            memset(to, i, op->to.numel * sizeof *to);
        else if (op->action == COPY)
            memcpy(to, from, op->to.numel * sizeof *to);
        for (size_t j = 0; op->action == ADD && j < op->to.numel; j++) to[j] += from[j];
    }
}

/* NaN equals NaN */
static void compare(uint64_t seed, float wanted[ARRAYS][NUMEL], float found[ARRAYS][NUMEL])
{
    for (int i = 0; i < ARRAYS; i++)
        for (int j = 0; j < NUMEL; j++) {
            const float w = wanted[i][j], g = found[i][j];
            if (memcmp(&w, &g, sizeof w) != 0 && (w == w || g == g))
                fail_msg("seed %d: array %d, element %d is %a, want %a", (int)seed, i, j, (double)g,
                         (double)w);
        }
}

/* left_out: an edge; -1: none */
static void run(const program *p, uint64_t seed, int left_out)
{
    float wanted[ARRAYS][NUMEL], found[ARRAYS][NUMEL];
    memset(wanted, 0xff, sizeof wanted);
    expect(p, wanted);
    begin(seed);
    for (int i = 0; i < ARRAYS; i++) arrays[i] = new_memory(sizeof wanted[i]);
    for (int i = 0; i < STREAMS; i++) streams[i] = new_stream();
    issue_all(p, left_out);
    OK(cudaDeviceSynchronize());
    for (int i = 0; i < ARRAYS; i++)
        OK(cudaMemcpyAsync(found[i], arrays[i], sizeof found[i], cudaMemcpyDeviceToHost, streams[0]));
    OK(cudaStreamSynchronize(streams[0]));
    for (int i = 0; i < ARRAYS; i++) OK(cudaFree(arrays[i]));
    for (int i = 0; i < STREAMS; i++) OK(cudaStreamDestroy(streams[i]));
    if (left_out >= 0) {
        end_with(ZB_RACE, "nothing orders them");
    } else {
        end_clean();
        compare(seed, wanted, found);
    }
}

static void needed_events_are_enough(void **unused)
{
    static program p;
    (void)unused;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        draw_program(&p, seed);
        run(&p, seed, -1);
    }
}

static void every_needed_event_is_missed(void **unused)
{
    static program p;
    int tried = 0;
    (void)unused;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        draw_program(&p, seed);
        if (p.edge_count == 0) continue;
        run(&p, seed, (int)below((unsigned)p.edge_count));
        tried++;
    }
    assert_true(tried > SEEDS / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(needed_events_are_enough),
        cmocka_unit_test(every_needed_event_is_missed),
    };
    return cmocka_run_group_tests_name("random", tests, NULL, NULL);
}
