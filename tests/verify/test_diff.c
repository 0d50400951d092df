/* The first difference between two traces: found where it is, named as it is, and nowhere else. */
#include "support.h"

#include <zerobit/memory.h>
#include "tests/cjson_memory.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
enum { MAX_SHOWN = 12 };

typedef struct diff_run {
    int stage, world;
    shown list[MAX_SHOWN]; /* as many as are written down; the rest is zero */
} diff_run;

typedef struct diff_case {
    const char *name;
    diff_run a, b;
    const char *text; /* the sentence or its beginning; NULL: equal */
} diff_case;

#define SCALAR            ZB_NO_PARAM, 0, 1
#define ALL               ZB_EVERY_RANK
#define GRAD_WEIGHT(rank) ZB_Q_GRAD, 0, -1, rank, SMALL_WEIGHT
#define GRAD_BIAS(rank)   ZB_Q_GRAD, 0, -1, rank, SMALL_BIAS, 0, 2

static const diff_case cases[] = {
    { "loss of a rank",
      { 0,
        2,
        { { ZB_Q_LOSS, 0, 0, 0, SCALAR, { .f = { 1 } } }, { ZB_Q_LOSS, 0, 0, 1, SCALAR, { .f = { 2 } } } } },
      { 0,
        2,
        { { ZB_Q_LOSS, 0, 0, 0, SCALAR, { .f = { 1 } } }, { ZB_Q_LOSS, 0, 0, 1, SCALAR, { .f = { 4 } } } } },
      "step 0, micro-batch 0, rank 1, loss: 0x40000000 (2) against 0x40800000 (4), 8388608 ulps" },
    { "sample index",
      { 0, 1, { { ZB_Q_SAMPLES, 3, 1, 0, ZB_NO_PARAM, 0, 2, { .i = { 5, 6 } } } } },
      { 0, 1, { { ZB_Q_SAMPLES, 3, 1, 0, ZB_NO_PARAM, 0, 2, { .i = { 5, 7 } } } } },
      "step 3, micro-batch 1, rank 0, sample indices[1]: 6 against 7" },
    { "a shorter micro-batch",
      { 0, 1, { { ZB_Q_SAMPLES, 3, 1, 0, ZB_NO_PARAM, 0, 2, { .i = { 5, 6 } } } } },
      { 0, 1, { { ZB_Q_SAMPLES, 3, 1, 0, ZB_NO_PARAM, 0, 1, { .i = { 5 } } } } },
      "step 3, micro-batch 1, rank 0, sample indices[1]: shown by " },
    { "gradient, one unit in the last place",
      { 0, 1, { { GRAD_BIAS(0), { .bits = { 0x3f800000, 0x3dcccccd } } } } },
      { 0, 1, { { GRAD_BIAS(0), { .bits = { 0x3f800000, 0x3dccccce } } } } },
      "step 0, rank 0, reduced gradient fc.bias[1]: 0x3dcccccd (0.100000001) against 0x3dccccce "
      "(0.100000009), "
      "1 ulp" },
    { "norm",
      { 0, 1, { { ZB_Q_NORM, 0, -1, 0, SCALAR, { .d = { 0.5 } } } } },
      { 0, 1, { { ZB_Q_NORM, 0, -1, 0, SCALAR, { .d = { 0.25 } } } } },
      "step 0, rank 0, gradient norm: 0x3fe0000000000000 (0.5) against 0x3fd0000000000000 (0.25), "
      "4503599627370496 ulps" },
    { "overflow",
      { 0, 1, { { ZB_Q_OVERFLOW, 0, -1, 0, SCALAR, { .i = { 0 } } } } },
      { 0, 1, { { ZB_Q_OVERFLOW, 0, -1, 0, SCALAR, { .i = { 1 } } } } },
      "step 0, rank 0, overflow: 0 against 1" },
    { "loss scale",
      { 0, 1, { { ZB_Q_LOSS_SCALE, 0, -1, 0, SCALAR, { .d = { 1 } } } } },
      { 0, 1, { { ZB_Q_LOSS_SCALE, 0, -1, 0, SCALAR, { .d = { 2 } } } } },
      "step 0, rank 0, loss scale: " },
    { "learning rate",
      { 0, 1, { { ZB_Q_LR, 0, -1, 0, SCALAR, { .d = { 1 } } } } },
      { 0, 1, { { ZB_Q_LR, 0, -1, 0, SCALAR, { .d = { 2 } } } } },
      "step 0, rank 0, learning rate[0]: " },
    { "fp32 weight after initialize",
      { 0, 1, { { ZB_Q_MASTER, -1, -1, 0, SMALL_BIAS, 0, 2, { .f = { 1, 2 } } } } },
      { 0, 1, { { ZB_Q_MASTER, -1, -1, 0, SMALL_BIAS, 0, 2, { .f = { 1, 3 } } } } },
      "after initialize, rank 0, fp32 weight fc.bias[1]: " },
    { "first moment",
      { 0, 1, { { ZB_Q_EXP_AVG, 0, -1, 0, SMALL_BIAS, 0, 2, { .f = { 1, 2 } } } } },
      { 0, 1, { { ZB_Q_EXP_AVG, 0, -1, 0, SMALL_BIAS, 0, 2, { .f = { 1, 3 } } } } },
      "step 0, rank 0, first moment fc.bias[1]: " },
    { "second moment",
      { 0, 1, { { ZB_Q_EXP_AVG_SQ, 0, -1, 0, SMALL_BIAS, 0, 2, { .f = { 1, 2 } } } } },
      { 0, 1, { { ZB_Q_EXP_AVG_SQ, 0, -1, 0, SMALL_BIAS, 0, 2, { .f = { 1, 3 } } } } },
      "step 0, rank 0, second moment fc.bias[1]: " },
    { "model weight of a frozen tensor",
      { 0, 1, { { ZB_Q_PARAM, 0, -1, 0, SMALL_FROZEN, 0, 4, { .f = { 1, 2, 3, 4 } } } } },
      { 0, 1, { { ZB_Q_PARAM, 0, -1, 0, SMALL_FROZEN, 0, 4, { .f = { 1, 2, 3, 5 } } } } },
      "step 0, rank 0, model weight frozen[3]: " },
    { "a counter",
      { 0, 1, { { ZB_Q_COUNTERS, 0, -1, 0, ZB_NO_PARAM, 0, 4, { .i = { 1, 1, 4, 0 } } } } },
      { 0, 1, { { ZB_Q_COUNTERS, 0, -1, 0, ZB_NO_PARAM, 0, 4, { .i = { 1, 1, 8, 0 } } } } },
      "step 0, rank 0, counters (global_samples): 4 against 8" },
    { "bytes held, equal stages",
      { 2, 1, { { ZB_Q_BYTES_HELD, 0, -1, 0, ZB_NO_PARAM, 0, 7, { .i = { 8, 4 } } } } },
      { 2, 1, { { ZB_Q_BYTES_HELD, 0, -1, 0, ZB_NO_PARAM, 0, 7, { .i = { 8, 5 } } } } },
      "step 0, rank 0, bytes held (gradients): 4 against 5" },
    { "bytes held, different stages",
      { 1, 1, { { ZB_Q_BYTES_HELD, 0, -1, 0, ZB_NO_PARAM, 0, 7, { .i = { 8, 4 } } } } },
      { 2, 1, { { ZB_Q_BYTES_HELD, 0, -1, 0, ZB_NO_PARAM, 0, 7, { .i = { 8, 5 } } } } },
      NULL },
    { "bytes sent, equal stages",
      { 2, 1, { { ZB_Q_BYTES_SENT, 0, -1, 0, ZB_NO_PARAM, 0, 10, { .i = { 8, 4 } } } } },
      { 2, 1, { { ZB_Q_BYTES_SENT, 0, -1, 0, ZB_NO_PARAM, 0, 10, { .i = { 9, 4 } } } } },
      "step 0, rank 0, bytes sent (all_reduce): 8 against 9" },

    { "NaN equals NaN, whatever its payload",
      { 0, 1, { { GRAD_BIAS(0), { .bits = { 0x7fc00001, 0xff800001 } } } } },
      { 0, 1, { { GRAD_BIAS(0), { .bits = { 0xffc00000, 0x7fc00000 } } } } },
      NULL },
    { "NaN is no number",
      { 0, 1, { { GRAD_BIAS(0), { .bits = { 0x7fc00000, 0 } } } } },
      { 0, 1, { { GRAD_BIAS(0), { .bits = { 0x3f800000, 0 } } } } },
      "step 0, rank 0, reduced gradient fc.bias[0]: 0x7fc00000 (nan) against 0x3f800000 (1)" },
    { "the two zeros differ",
      { 0, 1, { { GRAD_BIAS(0), { .bits = { 0, 0 } } } } },
      { 0, 1, { { GRAD_BIAS(0), { .bits = { 0, 0x80000000 } } } } },
      "step 0, rank 0, reduced gradient fc.bias[1]: 0x00000000 (0) against 0x80000000 (-0), the signs of "
      "zero "
      "differ" },
    { "across zero",
      { 0, 1, { { GRAD_BIAS(0), { .bits = { 0x80000001, 0 } } } } },
      { 0, 1, { { GRAD_BIAS(0), { .bits = { 0x00000001, 0 } } } } },
      "step 0, rank 0, reduced gradient fc.bias[0]: 0x80000001 (-1.40129846e-45) against 0x00000001 "
      "(1.40129846e-45), 2 ulps" },

    { "whole copies against shards: equal",
      { 0,
        2,
        { { GRAD_WEIGHT(0), 0, 6, { .f = { 1, 2, 3, 4, 5, 6 } } },
          { GRAD_WEIGHT(1), 0, 6, { .f = { 1, 2, 3, 4, 5, 6 } } } } },
      { 2,
        2,
        { { GRAD_WEIGHT(0), 0, 4, { .f = { 1, 2, 3, 4 } } }, { GRAD_WEIGHT(1), 4, 2, { .f = { 5, 6 } } } } },
      NULL },
    { "whole copies against shards: the shard's rank is named",
      { 0,
        2,
        { { GRAD_WEIGHT(0), 0, 6, { .f = { 1, 2, 3, 4, 5, 6 } } },
          { GRAD_WEIGHT(1), 0, 6, { .f = { 1, 2, 3, 4, 5, 6 } } } } },
      { 2,
        2,
        { { GRAD_WEIGHT(0), 0, 4, { .f = { 1, 2, 3, 4 } } }, { GRAD_WEIGHT(1), 4, 2, { .f = { 5, 7 } } } } },
      "step 0, rank 0 against rank 1, reduced gradient fc.weight[5]: 0x40c00000 (6) against 0x40e00000 (7)" },
    { "shards of different worlds",
      { 2,
        3,
        { { GRAD_WEIGHT(0), 0, 2, { .f = { 1, 2 } } },
          { GRAD_WEIGHT(1), 2, 2, { .f = { 3, 4 } } },
          { GRAD_WEIGHT(2), 4, 2, { .f = { 5, 6 } } } } },
      { 2,
        2,
        { { GRAD_WEIGHT(0), 0, 3, { .f = { 1, 2, 3 } } }, { GRAD_WEIGHT(1), 3, 3, { .f = { 9, 5, 6 } } } } },
      "step 0, rank 1, reduced gradient fc.weight[3]: 0x40800000 (4) against 0x41100000 (9)" },
    { "shards that overlap",
      { 2,
        2,
        { { GRAD_WEIGHT(0), 0, 4, { .f = { 1, 2, 3, 4 } } },
          { GRAD_WEIGHT(1), 2, 4, { .f = { 3, 4, 5, 6 } } } } },
      { 2, 2, { { GRAD_WEIGHT(0), 0, 6, { .f = { 1, 2, 3, 4, 5, 6 } } } } },
      NULL },
    { "replicas of one side disagree",
      { 0, 2, { { GRAD_BIAS(0), { .f = { 1, 2 } } }, { GRAD_BIAS(1), { .f = { 1, 2 } } } } },
      { 0, 2, { { GRAD_BIAS(0), { .f = { 1, 2 } } }, { GRAD_BIAS(1), { .f = { 1, 3 } } } } },
      "step 0, rank 0 against rank 1, reduced gradient fc.bias[1]: 0x40000000 (2) against 0x40400000 (3), "
      "4194304 ulps, both in " },
    { "the oracle's numbers hold on every rank",
      { -1, 2, { { ZB_Q_LR, 0, -1, ALL, SCALAR, { .d = { 1 } } } } },
      { 0,
        2,
        { { ZB_Q_LR, 0, -1, 0, SCALAR, { .d = { 1 } } }, { ZB_Q_LR, 0, -1, 1, SCALAR, { .d = { 2 } } } } },
      "step 0, rank 0 against rank 1, learning rate[0]: " },
    { "the oracle's loss holds on every rank",
      { -1, 2, { { ZB_Q_LOSS, 0, 0, ALL, SCALAR, { .f = { 1 } } } } },
      { 0,
        2,
        { { ZB_Q_LOSS, 0, 0, 0, SCALAR, { .f = { 1 } } }, { ZB_Q_LOSS, 0, 0, 1, SCALAR, { .f = { 2 } } } } },
      "step 0, micro-batch 0, rank 1, loss: " },

    { "the earliest quantity comes first",
      { 0, 1, { { ZB_Q_LR, 0, -1, 0, SCALAR, { .d = { 1 } } }, { GRAD_BIAS(0), { .f = { 1, 2 } } } } },
      { 0, 1, { { ZB_Q_LR, 0, -1, 0, SCALAR, { .d = { 2 } } }, { GRAD_BIAS(0), { .f = { 1, 3 } } } } },
      "step 0, rank 0, reduced gradient fc.bias[1]" },
    { "the earliest element comes first, whatever its rank",
      { 2,
        2,
        { { GRAD_WEIGHT(0), 4, 2, { .f = { 5, 6 } } }, { GRAD_WEIGHT(1), 0, 4, { .f = { 1, 2, 3, 4 } } } } },
      { 2,
        2,
        { { GRAD_WEIGHT(0), 4, 2, { .f = { 9, 9 } } }, { GRAD_WEIGHT(1), 0, 4, { .f = { 1, 9, 3, 4 } } } } },
      "step 0, rank 1, reduced gradient fc.weight[1]" },

    { "a tensor that only one side shows",
      { 0, 1, { { GRAD_WEIGHT(0), 0, 6, { .f = { 1 } } }, { GRAD_BIAS(0), { .f = { 1, 2 } } } } },
      { 0, 1, { { GRAD_WEIGHT(0), 0, 6, { .f = { 1 } } } } },
      "step 0, rank 0, reduced gradient fc.bias[0]: shown by " },
    { "elements that no rank of one side shows",
      { 2, 2, { { GRAD_WEIGHT(0), 0, 3, { .f = { 1 } } }, { GRAD_WEIGHT(1), 4, 2, { .f = { 1 } } } } },
      { 0, 1, { { GRAD_WEIGHT(0), 0, 6, { .f = { 1, 0, 0, 0, 1 } } } } },
      "step 0, rank 0, reduced gradient fc.weight[3]: shown by " },
    { "elements that nobody shows",
      { 2, 1, { { GRAD_WEIGHT(0), 0, 5, { .f = { 1 } } } } },
      { 2, 1, { { GRAD_WEIGHT(0), 0, 5, { .f = { 1 } } } } },
      "step 0, reduced gradient fc.weight[5]: shown neither by " },
    { "an empty tensor that only one side shows",
      { 0, 1, { { ZB_Q_PARAM, 0, -1, 0, SMALL_EMPTY, 0, 0, { .f = { 1 } } } } },
      { 0, 1, { { ZB_Q_PARAM, 1, -1, 0, SMALL_EMPTY, 0, 0, { .f = { 1 } } } } },
      "step 0, rank 0, model weight empty[0]: shown by " },
    { "a frozen tensor needs no master weight",
      { 0,
        1,
        { { ZB_Q_MASTER, 0, -1, 0, SMALL_FROZEN, 0, 4, { .f = { 1 } } },
          { ZB_Q_LR, 0, -1, 0, SCALAR, { .d = { 1 } } } } },
      { 0, 1, { { ZB_Q_LR, 0, -1, 0, SCALAR, { .d = { 1 } } } } },
      NULL },
    { "before training an engine may show more than the oracle",
      { -1, 1, { { ZB_Q_MASTER, -1, -1, ALL, SMALL_BIAS, 0, 2, { .f = { 1 } } } } },
      { 0,
        1,
        { { ZB_Q_MASTER, -1, -1, 0, SMALL_BIAS, 0, 2, { .f = { 1 } } },
          { ZB_Q_LR, -1, -1, 0, SCALAR, { .d = { 1 } } } } },
      NULL },
    { "a rank that shows nothing",
      { 0,
        2,
        { { ZB_Q_LOSS, 0, 0, 0, SCALAR, { .f = { 1 } } }, { ZB_Q_LOSS, 0, 0, 1, SCALAR, { .f = { 2 } } } } },
      { 0, 2, { { ZB_Q_LOSS, 0, 0, 0, SCALAR, { .f = { 1 } } } } },
      "step 0, micro-batch 0, rank 1, loss: shown by " },
    { "a step that one side lacks",
      { 0,
        1,
        { { ZB_Q_LR, 0, -1, 0, SCALAR, { .d = { 1 } } }, { ZB_Q_LR, 1, -1, 0, SCALAR, { .d = { 1 } } } } },
      { 0, 1, { { ZB_Q_LR, 0, -1, 0, SCALAR, { .d = { 1 } } } } },
      "step 1, rank 0, learning rate[0]: shown by " },
    { "different worlds share no losses, samples or counters",
      { 0,
        2,
        { { ZB_Q_LOSS, 0, 0, 0, SCALAR, { .f = { 1 } } },
          { ZB_Q_SAMPLES, 0, 0, 0, SCALAR, { .i = { 1 } } },
          { ZB_Q_COUNTERS, 0, -1, 0, SCALAR, { .i = { 1 } } },
          { ZB_Q_LR, 0, -1, 0, SCALAR, { .d = { 1 } } } } },
      { 0,
        1,
        { { ZB_Q_LOSS, 0, 0, 0, SCALAR, { .f = { 2 } } }, { ZB_Q_LR, 0, -1, 0, SCALAR, { .d = { 1 } } } } },
      NULL },
};

/* A row's list ends where nothing more is written down. */
static size_t shown_count(const diff_run *r)
{
    static const shown nothing;
    size_t count = 0;
    while (count < MAX_SHOWN && memcmp(&r->list[count], &nothing, sizeof nothing) != 0) count++;
    return count;
}

static zb_status write_run(const char *path, const diff_run *r)
{
    return write_trace(path, r->stage, r->world, r->list, shown_count(r));
}

static void check_diff(void **state)
{
    const diff_case *c = *state;
    folder_create(NULL);
    assert_int_equal(write_run(in_folder("a"), &c->a), ZB_OK);
    assert_int_equal(write_run(in_folder("b"), &c->b), ZB_OK);
    zb_difference d;
    assert_int_equal(zb_trace_diff(in_folder("a"), in_folder("b"), &d), ZB_OK);
    if (c->text == NULL) {
        if (d.found) fail_msg("found: %s", d.text);
    } else {
        assert_true(d.found);
        if (strncmp(d.text, c->text, strlen(c->text)) != 0) fail_msg("found: %s\n want: %s", d.text, c->text);
    }
    /* Both ways round it is the same place. */
    zb_difference e;
    assert_int_equal(zb_trace_diff(in_folder("b"), in_folder("a"), &e), ZB_OK);
    assert_int_equal(d.found, e.found);
    if (d.found) {
        assert_int_equal(d.step, e.step);
        assert_int_equal(d.quantity, e.quantity);
        assert_int_equal(d.element, e.element);
        assert_string_equal(d.tensor, e.tensor);
    }
    assert_int_equal(zb_trace_diff(in_folder("a"), in_folder("a"), &d), ZB_OK);
    folder_remove(NULL);
}

static void other_models_are_refused(void **state)
{
    (void)state;
    zb_model other = *small_model();
    zb_param params[SMALL_PARAM_COUNT];
    memcpy(params, other.params, sizeof params);
    other.params = params;
    params[SMALL_BIAS].shape.extent[0] = 3;
    params[SMALL_BIAS].numel = 3;
    zb_trace_header header = small_header(0, 1);
    zb_trace_writer *writer;
    zb_difference d;
    for (int fewer = 0; fewer < 2; fewer++) {
        header.model = &other;
        other.param_count = SMALL_PARAM_COUNT - fewer;
        assert_int_equal(zb_trace_writer_create(in_folder("b"), &header, &writer), ZB_OK);
        assert_int_equal(zb_trace_writer_finish(writer), ZB_OK);
        zb_trace_writer_destroy(writer);
        assert_int_equal(write_trace(in_folder("a"), 0, 1, NULL, 0), ZB_OK);
        assert_int_equal(zb_trace_diff(in_folder("a"), in_folder("b"), &d), ZB_INVALID_ARGUMENT);
        assert_non_null(strstr(zb_error_message(), fewer ? "3" : "fc.bias (2 elements)"));
    }
}

/* A difference at the start must not hide that the end is damaged. */
static void damage_behind_a_difference_is_found(void **state)
{
    (void)state;
    enum { STEPS = 4 };
    shown a[STEPS], b[STEPS];
    for (int step = 0; step < STEPS; step++)
        a[step] = b[step] = (shown){ ZB_Q_LR, step, -1, 0, SCALAR, { .d = { 1 } } };
    b[0].values.d[0] = 2;
    assert_int_equal(write_trace(in_folder("a"), 0, 1, a, STEPS), ZB_OK);
    assert_int_equal(write_trace(in_folder("b"), 0, 1, b, STEPS), ZB_OK);
    size_t bytes;
    unsigned char *data = read_whole(in_folder("b"), &bytes);
    write_whole(in_folder("b"), data, bytes - 8);
    free(data);
    zb_difference d;
    assert_int_equal(zb_trace_diff(in_folder("a"), in_folder("b"), &d), ZB_CORRUPT);
}

static void allocation_failures_are_survived(void **state)
{
    (void)state;
    const diff_case *c = &cases[COUNT(cases) - 2];
    assert_int_equal(write_run(in_folder("a"), &c->a), ZB_OK);
    assert_int_equal(write_run(in_folder("b"), &c->b), ZB_OK);
    for (int64_t n = 0;; n++) {
        zb_difference d;
        uint64_t live = zb_alloc_get_stats().live;
        zb_alloc_fail_at(n);
        zb_status status = zb_trace_diff(in_folder("a"), in_folder("b"), &d);
        int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        assert_int_equal(zb_alloc_get_stats().live, live);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        if (!fired) break;
        assert_true(n < 1000);
    }
}

int main(void)
{
    cjson_allocates_here();
    const struct CMUnitTest whole[] = {
        cmocka_unit_test_setup_teardown(other_models_are_refused, folder_create, folder_remove),
        cmocka_unit_test_setup_teardown(damage_behind_a_difference_is_found, folder_create, folder_remove),
        cmocka_unit_test_setup_teardown(allocation_failures_are_survived, folder_create, folder_remove),
    };
    struct CMUnitTest tests[COUNT(cases)];
    for (size_t i = 0; i < COUNT(cases); i++)
        tests[i] = (struct CMUnitTest){ cases[i].name, check_diff, NULL, NULL, (void *)&cases[i] };
    return cmocka_run_group_tests_name("diff", tests, NULL, NULL) +
           cmocka_run_group_tests_name("diff, whole", whole, NULL, NULL);
}
