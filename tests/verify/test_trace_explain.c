/* Contributions and routes in traces: kept, compared where both show them, and explained. */
#include "tests/orders/support.h"
#include "tests/folder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/trace.h>

#include "kernels/half.h"
#include "verify/trace_reader.h"
#include "tests/cjson_memory.h"

enum { WEIGHT, BIAS, FROZEN, PARAM_COUNT, WORLD = 3, MICRO_MAX = 2, WEIGHT_NUMEL = 700, BIAS_NUMEL = 300 };

static zb_model *model(void)
{
    static zb_param params[PARAM_COUNT] = {
        { .name = "fc.weight", .shape = { 2, { 7, 100 } }, .numel = WEIGHT_NUMEL, .requires_grad = 1 },
        { .name = "fc.bias", .shape = { 1, { BIAS_NUMEL } }, .numel = BIAS_NUMEL, .requires_grad = 1 },
        { .name = "frozen", .shape = { 1, { 4 } }, .numel = 4 },
    };
    static zb_model made = {
        .name = "small", .params = params, .param_count = PARAM_COUNT, .param_numel = 1004
    };
    return &made;
}

/* Two collectives; between the pieces of the second one ten elements of padding. */
static zb_route *route(void)
{
    static const size_t counts[WORLD] = { 300, 200, 100 };
    static zb_route_piece first[] = { { WEIGHT, 0, 600, 0 } },
                          second[] = { { WEIGHT, 600, 100, 0 }, { BIAS, 0, 300, 110 } };
    static zb_route_collective collectives[] = {
        { .call = { .kind = ZB_COLLECTIVE_REDUCE_SCATTER_V,
                    .world_size = WORLD,
                    .counts = counts,
                    .dtype = ZB_BF16,
                    .op = ZB_SUM },
          .pieces = first,
          .piece_count = 1 },
        { .call = { .kind = ZB_COLLECTIVE_ALL_REDUCE,
                    .world_size = WORLD,
                    .numel = 410,
                    .dtype = ZB_BF16,
                    .op = ZB_SUM },
          .pieces = second,
          .piece_count = 2 },
    };
    static zb_route made = { .world_size = WORLD, .collectives = collectives, .count = 2 };
    return &made;
}

/* --- a run: what its ranks send, and what it makes of that --- */

typedef struct run {
    const char *orders;   /* that the trace names */
    const char *added[2]; /* how each collective is added */
    int skip_contributions, skip_route;
    zb_reduce_when when;
    zb_dtype comm; /* of the contributions shown; the sums are always of bf16 */
    int64_t steps;
    int64_t wrong_step; /* at which `added` holds; before: `orders` does. -1: never */
    size_t spoiled;     /* element of the weight that is off by a bit at wrong_step; SIZE_MAX: none */
} run;

#define RUN                                                                                                  \
    {                                                                                                        \
        "rank", { "rank", "rank" }, 0, 0, ZB_REDUCE_EVERY_MICRO_BATCH, ZB_BF16, 2, -1, SIZE_MAX              \
    }

static int64_t micro_count(const run *t)
{
    return t->when == ZB_REDUCE_EVERY_MICRO_BATCH ? MICRO_MAX : 1;
}

/* The same for every run: of step, micro-batch, rank, parameter, element. */
static uint16_t contribution(int64_t step, int64_t micro, int rank, int param, size_t i)
{
    rng r = { (uint64_t)(((step * 8 + micro) * 8 + rank) * 8 + param) * 1000003 + i };
    rng_next(&r);
    return zb_bf16_from_float(rng_float(&r, FILL_UNIFORM));
}

static float divided(uint16_t sum)
{
    return zb_float_from_bf16(zb_bf16_from_float(zb_float_from_bf16(sum) / 3));
}

/* The reduced gradients of a step: sums of bf16, divided by 3, added up in fp32. */
static void make_gradients(const run *t, int64_t step, float *const gradients[PARAM_COUNT])
{
    static uint16_t values[WORLD][600], sums[600];
    const void *inputs[WORLD] = { values[0], values[1], values[2] };
    zb_orders named;
    assert_ok(zb_orders_parse(t->orders, &named));
    for (size_t c = 0; c < 2; c++) {
        const zb_route_collective *collective = &route()->collectives[c];
        const zb_order_source *source = zb_orders_source(&named, collective->call.kind);
        zb_reduction reduction;
        if (step == t->wrong_step)
            reduction = derived(t->added[c], &collective->call);
        else
            assert_ok(zb_reduction_derive(source != NULL ? source : &(zb_order_source){ 0 },
                                          &collective->call, &reduction));
        for (int64_t micro = 0; micro < micro_count(t); micro++) {
            memset(values, 0, sizeof values);
            for (int rank = 0; rank < WORLD; rank++)
                for (size_t p = 0; p < collective->piece_count; p++) {
                    const zb_route_piece *piece = &collective->pieces[p];
                    for (size_t i = 0; i < piece->numel; i++)
                        values[rank][piece->at + i] = contribution(step, micro, rank, piece->param,
                                                                   piece->first + i);
                }
            zb_ref_reduction_run(&reduction, inputs, 0, reduction.numel, sums);
            for (size_t p = 0; p < collective->piece_count; p++) {
                const zb_route_piece *piece = &collective->pieces[p];
                for (size_t i = 0; i < piece->numel; i++) {
                    float *g = &gradients[piece->param][piece->first + i];
                    *g = micro == 0 ? divided(sums[piece->at + i]) : *g + divided(sums[piece->at + i]);
                }
            }
        }
        zb_reduction_destroy(&reduction);
    }
    zb_orders_destroy(&named);
}

static zb_status show(zb_trace_writer *writer, zb_observation o, const void *data)
{
    o.data = data;
    return zb_trace_write(writer, &o);
}

static zb_status show_contributions(const run *t, zb_trace_writer *writer, int64_t step)
{
    for (int64_t micro = 0; micro < micro_count(t); micro++)
        for (int rank = 0; rank < WORLD; rank++)
            for (int param = WEIGHT; param <= BIAS; param++) {
                uint16_t narrow[WEIGHT_NUMEL];
                float wide[WEIGHT_NUMEL];
                const size_t numel = model()->params[param].numel;
                for (size_t i = 0; i < numel; i++) {
                    narrow[i] = contribution(step, micro, rank, param, i);
                    wide[i] = zb_float_from_bf16(narrow[i]);
                }
                const int64_t last = t->when == ZB_REDUCE_EVERY_MICRO_BATCH ? micro : MICRO_MAX - 1;
                ZB_TRY(show(writer,
                            (zb_observation){ .quantity = ZB_Q_CONTRIBUTION,
                                              .step = step,
                                              .micro = last,
                                              .rank = rank,
                                              .param = param,
                                              .dtype = t->comm,
                                              .numel = numel },
                            t->comm == ZB_BF16 ? (const void *)narrow : wide));
            }
    return ZB_OK;
}

/* Rank 0 shows the whole bias, and each rank a third of the weight. */
static zb_status show_gradients(zb_trace_writer *writer, int64_t step, float *const gradients[PARAM_COUNT])
{
    zb_observation o = {
        .quantity = ZB_Q_GRAD, .step = step, .micro = -1, .param = BIAS, .dtype = ZB_FP32, .numel = 300
    };
    ZB_TRY(show(writer, o, gradients[BIAS]));
    o.param = WEIGHT;
    for (o.rank = 0; o.rank < WORLD; o.rank++) {
        o.first = (size_t)o.rank * 250;
        o.numel = o.rank < 2 ? 250 : 200;
        ZB_TRY(show(writer, o, gradients[WEIGHT] + o.first));
    }
    return ZB_OK;
}

static zb_status write_run(const char *name, const run *t)
{
    float weight[WEIGHT_NUMEL], bias[BIAS_NUMEL], *const gradients[] = { weight, bias, NULL };
    zb_orders orders;
    zb_trace_writer *writer;
    ZB_TRY(zb_orders_parse(t->orders, &orders));
    const zb_trace_header header = {
        .model = model(),
        .plan = { .world_size = WORLD,
                  .accumulation_steps = MICRO_MAX,
                  .comm_dtype = ZB_BF16,
                  .averaging.after = { ZB_FACTOR_DIVIDE, 3 },
                  .reduce_when = t->when,
                  .orders = &orders,
                  .group_count = 1 },
        .comm = "sim",
        .device = "cpu",
        .order = t->orders,
        .steps = t->steps,
        .route = t->skip_route ? NULL : route(),
    };
    zb_status status = zb_trace_writer_create(in_folder(name), &header, &writer);
    zb_orders_destroy(&orders);
    if (status != ZB_OK) return status;
    for (int64_t step = 0; step < t->steps && status == ZB_OK; step++) {
        make_gradients(t, step, gradients);
        if (step == t->wrong_step && t->spoiled != SIZE_MAX)
            ((uint32_t *)(void *)weight)[t->spoiled] ^= 1u << 23;
        if (!t->skip_contributions) status = show_contributions(t, writer, step);
        if (status == ZB_OK) status = show_gradients(writer, step, gradients);
    }
    if (status == ZB_OK) status = zb_trace_writer_finish(writer);
    zb_trace_writer_destroy(writer);
    return status;
}

static zb_trace_explanation explained(int64_t step)
{
    zb_trace_explanation told;
    if (zb_trace_explain(in_folder("a"), in_folder("b"), step, &told) != ZB_OK)
        fail_msg("%s", zb_error_message());
    return told;
}

static void assert_says(const char *text, const char *words)
{
    if (strstr(text, words) == NULL) fail_msg("\"%s\" does not say \"%s\"", text, words);
}

/* --- the header --- */

static void the_route_reads_back(void **state)
{
    (void)state;
    const run t = RUN;
    assert_ok(write_run("a", &t));
    zb_trace_reader *reader;
    assert_ok(zb_trace_reader_open(in_folder("a"), &reader));
    const zb_trace_info *info = zb_trace_reader_info(reader);
    assert_true(info->has_route);
    assert_string_equal(info->orders, "rank");
    assert_int_equal(info->plan.accumulation_steps, MICRO_MAX);
    assert_int_equal(info->plan.comm_dtype, ZB_BF16);
    assert_int_equal(info->plan.reduce_when, ZB_REDUCE_EVERY_MICRO_BATCH);
    assert_int_equal(info->plan.averaging.after.kind, ZB_FACTOR_DIVIDE);
    assert_true(info->plan.averaging.after.by == 3);
    assert_int_equal(info->route.count, 2);
    for (size_t c = 0; c < 2; c++) {
        const zb_route_collective *read = &info->route.collectives[c], *written = &route()->collectives[c];
        assert_int_equal(read->call.kind, written->call.kind);
        assert_int_equal(read->call.world_size, WORLD);
        assert_int_equal(read->call.numel, written->call.numel);
        assert_int_equal(read->call.dtype, ZB_BF16);
        assert_int_equal(read->piece_count, written->piece_count);
        assert_memory_equal(read->pieces, written->pieces, read->piece_count * sizeof *read->pieces);
        if (c == 0) assert_memory_equal(read->call.counts, written->call.counts, WORLD * sizeof(size_t));
    }
    zb_trace_reader_destroy(reader);
}

/* A route that lies outside its parameters or its collective is refused. */
static void bad_routes_are_refused(void **state)
{
    (void)state;
    static zb_route_piece pieces[2];
    static const struct {
        zb_reduction_call call;
        zb_route_piece pieces[2];
    } cases[] = {
        { { .kind = ZB_COLLECTIVE_ALL_REDUCE, .numel = 10 }, { { PARAM_COUNT, 0, 1, 0 } } },
        { { .kind = ZB_COLLECTIVE_ALL_REDUCE, .numel = 10 }, { { FROZEN, 3, 2, 0 } } },
        { { .kind = ZB_COLLECTIVE_ALL_REDUCE, .numel = 10 }, { { BIAS, 0, 11, 0 } } },
        { { .kind = ZB_COLLECTIVE_ALL_REDUCE, .numel = 10 }, { { BIAS, 0, 5, 6 } } },
        { { .kind = ZB_COLLECTIVE_ALL_REDUCE, .numel = 10 }, { { BIAS, 0, 5, 0 }, { BIAS, 5, 2, 4 } } },
        { { .kind = ZB_COLLECTIVE_ALL_GATHER, .numel = 10 }, { { BIAS, 0, 1, 0 } } },
        { { .kind = ZB_COLLECTIVE_ALL_REDUCE, .numel = 10, .op = ZB_MAX }, { { BIAS, 0, 1, 0 } } },
        { { .kind = ZB_COLLECTIVE_REDUCE, .numel = 10, .root = WORLD }, { { BIAS, 0, 1, 0 } } },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        zb_route_collective collective = { .call = cases[i].call, .pieces = pieces };
        collective.call.world_size = WORLD;
        memcpy(pieces, cases[i].pieces, sizeof pieces);
        while (collective.piece_count < 2 && pieces[collective.piece_count].numel > 0)
            collective.piece_count++;
        const zb_route bad = { .world_size = WORLD, .collectives = &collective, .count = 1 };
        const zb_trace_header header = { .model = model(),
                                         .plan = { .world_size = WORLD, .accumulation_steps = 1 },
                                         .comm = "sim",
                                         .device = "cpu",
                                         .order = "rank",
                                         .route = &bad };
        zb_trace_writer *writer;
        assert_ok(zb_trace_writer_create(in_folder("a"), &header, &writer));
        assert_ok(zb_trace_writer_finish(writer));
        zb_trace_writer_destroy(writer);
        zb_trace_reader *reader;
        if (zb_trace_reader_open(in_folder("a"), &reader) != ZB_CORRUPT) fail_msg("case %zu is read", i);
        assert_says(zb_error_message(), "the header's \"route\" is not as it should be");
    }
}

static void other_versions_are_refused(void **state)
{
    (void)state;
    const run t = RUN;
    size_t bytes;
    assert_ok(write_run("a", &t));
    unsigned char *data = read_whole(in_folder("a"), &bytes);
    data[8] = 1;
    write_whole(in_folder("a"), data, bytes);
    free(data);
    zb_trace_reader *reader;
    assert_int_equal(zb_trace_reader_open(in_folder("a"), &reader), ZB_CORRUPT);
    assert_says(zb_error_message(), "version 1 where 2 is known, of another zerobit, at byte 8");
}

/* --- comparing --- */

static zb_difference diff(void)
{
    zb_difference difference;
    if (zb_trace_diff(in_folder("a"), in_folder("b"), &difference) != ZB_OK)
        fail_msg("%s", zb_error_message());
    return difference;
}

static void contributions_are_compared_where_both_show_them(void **state)
{
    (void)state;
    run t = RUN;
    assert_ok(write_run("a", &t));
    t.skip_contributions = 1;
    assert_ok(write_run("b", &t));
    assert_false(diff().found);
    /* Ranks that send otherwise, or in another type, have nothing in common there. */
    t = (run)RUN;
    t.comm = ZB_FP32;
    assert_ok(write_run("b", &t));
    zb_difference difference;
    assert_int_equal(zb_trace_diff(in_folder("a"), in_folder("b"), &difference), ZB_INVALID_ARGUMENT);
    assert_says(zb_error_message(), "shows contribution as ");
    /* One bit of one contribution, before any gradient. */
    t = (run)RUN;
    assert_ok(write_run("b", &t));
    zb_trace_writer *writer;
    const zb_trace_header header = { .model = model(),
                                     .plan = { .world_size = WORLD,
                                               .accumulation_steps = MICRO_MAX,
                                               .comm_dtype = ZB_BF16,
                                               .reduce_when = ZB_REDUCE_EVERY_MICRO_BATCH },
                                     .comm = "sim",
                                     .device = "cpu",
                                     .order = "rank" };
    for (int file = 0; file < 2; file++) {
        uint16_t values[BIAS_NUMEL] = { 0 };
        assert_ok(zb_trace_writer_create(in_folder(file == 0 ? "a" : "b"), &header, &writer));
        values[77] = (uint16_t)file;
        for (int rank = 0; rank < 2; rank++)
            assert_ok(show(writer,
                           (zb_observation){ .quantity = ZB_Q_CONTRIBUTION,
                                             .micro = 1,
                                             .rank = rank,
                                             .param = BIAS,
                                             .dtype = ZB_BF16,
                                             .numel = BIAS_NUMEL },
                           rank == 1 ? values : (uint16_t[BIAS_NUMEL]){ 0 }));
        assert_ok(zb_trace_writer_finish(writer));
        zb_trace_writer_destroy(writer);
    }
    difference = diff();
    assert_true(difference.found);
    assert_int_equal(difference.quantity, ZB_Q_CONTRIBUTION);
    assert_says(difference.text,
                "step 0, micro-batch 1, rank 1, contribution fc.bias[77]: bf16 0x0000 (0) against");
}

static void stages_that_send_otherwise_are_not_compared(void **state)
{
    (void)state;
    run t = RUN;
    assert_ok(write_run("a", &t));
    t.when = ZB_REDUCE_AT_BOUNDARY;
    assert_ok(write_run("b", &t));
    /* Contributions of micro-batch 1 differ; what is reported is the gradient. */
    const zb_difference difference = diff();
    assert_true(difference.found);
    assert_int_equal(difference.quantity, ZB_Q_GRAD);
}

/* --- explaining --- */

static void explains_every_collective(void **state)
{
    (void)state;
    run t = RUN;
    assert_ok(write_run("a", &t));
    zb_trace_explanation told;
    assert_ok(write_run("b", &t));
    told = explained(-1);
    assert_int_equal(told.step, -1);
    assert_int_equal(told.count, 0);
    zb_trace_explanation_destroy(&told);
    told = explained(1);
    assert_int_equal(told.step, 1);
    assert_int_equal(told.count, 2);
    for (size_t i = 0; i < 2; i++) assert_true(told.collectives[i].explanation.as_expected);
    assert_string_equal(told.collectives[0].text,
                        "step 1, collective 0 (reduce_scatter_v, 600 elements): order: as rank");
    zb_trace_explanation_destroy(&told);

    t.wrong_step = 1;
    t.added[1] = "gloo";
    assert_ok(write_run("b", &t));
    told = explained(-1);
    assert_int_equal(told.step, 1);
    assert_true(told.collectives[0].explanation.as_expected);
    assert_false(told.collectives[1].explanation.as_expected);
    assert_string_equal(told.collectives[1].explanation.source, "gloo");
    assert_says(told.collectives[1].text,
                "step 1, collective 1 (all_reduce, 410 elements): order: as gloo; expected: rank");
    zb_trace_explanation_destroy(&told);

    t.spoiled = 631;
    t.added[1] = "rank";
    assert_ok(write_run("b", &t));
    told = explained(-1);
    assert_int_equal(told.collectives[1].explanation.verdict, ZB_VERDICT_VALUE);
    assert_string_equal(told.collectives[1].place, "fc.weight[631]");
    assert_says(told.collectives[1].text,
                "(all_reduce, 410 elements): fc.weight[631]: value: element 31 of 410 is 0x");
    zb_trace_explanation_destroy(&told);
}

static void explains_what_is_sent_at_once(void **state)
{
    (void)state;
    run t = RUN;
    t.when = ZB_REDUCE_AT_BOUNDARY;
    t.orders = "all_reduce: mpi-ring";
    assert_ok(write_run("a", &t));
    t.wrong_step = 0;
    t.added[0] = "mpi-ring";
    t.added[1] = "mpi-ring";
    assert_ok(write_run("b", &t));
    zb_trace_explanation told = explained(-1);
    assert_int_equal(told.step, 0);
    assert_string_equal(told.collectives[0].explanation.source, "mpi-default"); /* the same bits */
    assert_says(told.collectives[0].text, "; expected: rank, ");
    assert_true(told.collectives[1].explanation.as_expected);
    zb_trace_explanation_destroy(&told);
}

/* What diff says below the first difference. */
static void a_difference_is_explained(void **state)
{
    (void)state;
    static const struct {
        const char *a_added, *b_added;
        int a_lacks, b_lacks;
        const char *says[2]; /* NULL: nothing */
    } cases[] = {
        { "rank",
          "gloo",
          0,
          0,
          { "/b: step 0, collective 1 (all_reduce, 410 elements): order: as gloo; expected: rank", NULL } },
        { "rank",
          "gloo",
          0,
          1,
          { "/b: step 0, collective 1 (all_reduce, 410 elements): order: as gloo; expected: rank", NULL } },
        { "rank",
          "gloo",
          1,
          0,
          { "/b: step 0, collective 1 (all_reduce, 410 elements): order: as gloo; expected: rank", NULL } },
        { "gloo",
          "rank",
          0,
          0,
          { "/b: step 0, collective 1 (all_reduce, 410 elements): order: as rank\n",
            "/a: step 0, collective 1 (all_reduce, 410 elements): order: as gloo; expected: rank" } },
        { "rank", "gloo", 1, 1, { NULL, NULL } },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        run a = RUN, b = RUN;
        a.wrong_step = b.wrong_step = 0;
        a.added[1] = cases[i].a_added;
        b.added[1] = cases[i].b_added;
        a.skip_contributions = a.skip_route = cases[i].a_lacks;
        b.skip_contributions = b.skip_route = cases[i].b_lacks;
        assert_ok(write_run("a", &a));
        assert_ok(write_run("b", &b));
        const zb_difference difference = diff();
        assert_int_equal(difference.quantity, ZB_Q_GRAD);
        char text[2 * ZB_COLLECTIVE_TEXT_BYTES];
        assert_ok(
            zb_trace_explain_difference(in_folder("a"), in_folder("b"), &difference, text, sizeof text));
        if (cases[i].says[0] == NULL) assert_string_equal(text, "");
        for (int k = 0; k < 2; k++)
            if (cases[i].says[k] != NULL) assert_says(text, cases[i].says[k]);
    }
}

static void what_is_lacking_is_named(void **state)
{
    (void)state;
    static const struct {
        int no_contributions, no_route;
        int64_t step, b_steps;
        const char *message;
    } cases[] = {
        { 1, 0, -1, 2, "/a: step 0 holds no contributions, so no order can be told" },
        { 0, 1, -1, 2, "/a: holds no route of its gradients, so no order can be told" },
        { 0, 0, 7, 2, "holds no step 7" },
        { 0, 0, 1, 1, "/b: holds no step 1" },
        { 0, 0, -1, 1, "/b: holds no step 1" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        run a = RUN, b = RUN;
        a.skip_contributions = cases[i].no_contributions;
        a.skip_route = cases[i].no_route;
        b.steps = cases[i].b_steps;
        assert_ok(write_run("a", &a));
        assert_ok(write_run("b", &b));
        zb_trace_explanation told;
        assert_int_equal(zb_trace_explain(in_folder("a"), in_folder("b"), cases[i].step, &told),
                         ZB_INVALID_ARGUMENT);
        assert_says(zb_error_message(), cases[i].message);
    }
}

static void allocation_failures_are_survived(void **state)
{
    (void)state;
    cjson_allocates_here();
    run t = RUN;
    assert_ok(write_run("a", &t));
    t.wrong_step = 0;
    t.added[1] = "gloo";
    assert_ok(write_run("b", &t));
    const zb_difference difference = diff();
    for (int64_t n = 0;; n++) {
        static char text[2 * ZB_COLLECTIVE_TEXT_BYTES];
        zb_trace_explanation told = { 0 };
        const uint64_t live = zb_alloc_get_stats().live;
        zb_alloc_fail_at(n);
        zb_status status = zb_trace_explain(in_folder("a"), in_folder("b"), -1, &told);
        if (status == ZB_OK)
            status = zb_trace_explain_difference(in_folder("a"), in_folder("b"), &difference, text,
                                                 sizeof text);
        const int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        zb_trace_explanation_destroy(&told);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        assert_int_equal(zb_alloc_get_stats().live, live);
        if (!fired) break;
    }
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_create, folder_remove)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(the_route_reads_back),
        IN_FOLDER(bad_routes_are_refused),
        IN_FOLDER(other_versions_are_refused),
        IN_FOLDER(contributions_are_compared_where_both_show_them),
        IN_FOLDER(stages_that_send_otherwise_are_not_compared),
        IN_FOLDER(explains_every_collective),
        IN_FOLDER(explains_what_is_sent_at_once),
        IN_FOLDER(a_difference_is_explained),
        IN_FOLDER(what_is_lacking_is_named),
        IN_FOLDER(allocation_failures_are_survived),
    };
    return cmocka_run_group_tests_name("trace_explain", tests, NULL, NULL);
}
