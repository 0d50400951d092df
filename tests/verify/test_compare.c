/* The engine's observations against the oracle's: the earliest difference, and everything that must be shown.
 */
#include "support.h"

#include "verify/compare.h"

#include <pthread.h>
#include <zerobit/memory.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define ALL          ZB_EVERY_RANK
#define SCALAR       ZB_NO_PARAM, 0, 1

/* What the oracle shows of step 0 in a world of two. */
static const shown oracle[] = {
    { ZB_Q_SAMPLES, 0, 0, 0, ZB_NO_PARAM, 0, 2, { .i = { 7, 9 } } },
    { ZB_Q_SAMPLES, 0, 0, 1, ZB_NO_PARAM, 0, 1, { .i = { 1 } } },
    { ZB_Q_LOSS, 0, 0, 0, SCALAR, { .f = { 2.5f } } },
    { ZB_Q_LOSS, 0, 0, 1, SCALAR, { .f = { 2.25f } } },
    { ZB_Q_GRAD, 0, -1, ALL, SMALL_WEIGHT, 0, 6, { .f = { 1, 2, 3, 4, 5, 6 } } },
    { ZB_Q_GRAD, 0, -1, ALL, SMALL_BIAS, 0, 2, { .f = { 7, 8 } } },
    { ZB_Q_NORM, 0, -1, ALL, SCALAR, { .d = { 0.5 } } },
    { ZB_Q_MASTER, 0, -1, ALL, SMALL_FROZEN, 0, 4, { .f = { 1, 2, 3, 4 } } },
    { ZB_Q_PARAM, 0, -1, ALL, SMALL_WEIGHT, 0, 6, { .f = { 1, 2, 3, 4, 5, 6 } } },
    { ZB_Q_PARAM, 0, -1, ALL, SMALL_BIAS, 0, 2, { .f = { 7, 8 } } },
    { ZB_Q_PARAM, 0, -1, ALL, SMALL_FROZEN, 0, 4, { .f = { 1, 2, 3, 4 } } },
    { ZB_Q_PARAM, 0, -1, ALL, SMALL_EMPTY, 0, 0, { .f = { 0 } } },
};

/* What an engine without a fault shows: gradients in shards, weights whole on both ranks. */
static const shown engine[] = {
    { ZB_Q_SAMPLES, 0, 0, 0, ZB_NO_PARAM, 0, 2, { .i = { 7, 9 } } },
    { ZB_Q_SAMPLES, 0, 0, 1, ZB_NO_PARAM, 0, 1, { .i = { 1 } } },
    { ZB_Q_LOSS, 0, 0, 0, SCALAR, { .f = { 2.5f } } },
    { ZB_Q_LOSS, 0, 0, 1, SCALAR, { .f = { 2.25f } } },
    { ZB_Q_GRAD, 0, -1, 0, SMALL_WEIGHT, 0, 4, { .f = { 1, 2, 3, 4 } } },
    { ZB_Q_GRAD, 0, -1, 1, SMALL_WEIGHT, 4, 2, { .f = { 5, 6 } } },
    { ZB_Q_GRAD, 0, -1, 1, SMALL_BIAS, 0, 2, { .f = { 7, 8 } } },
    { ZB_Q_NORM, 0, -1, 0, SCALAR, { .d = { 0.5 } } },
    { ZB_Q_NORM, 0, -1, 1, SCALAR, { .d = { 0.5 } } },
    { ZB_Q_PARAM, 0, -1, 0, SMALL_WEIGHT, 0, 6, { .f = { 1, 2, 3, 4, 5, 6 } } },
    { ZB_Q_PARAM, 0, -1, 0, SMALL_BIAS, 0, 2, { .f = { 7, 8 } } },
    { ZB_Q_PARAM, 0, -1, 0, SMALL_FROZEN, 0, 4, { .f = { 1, 2, 3, 4 } } },
    { ZB_Q_PARAM, 0, -1, 1, SMALL_WEIGHT, 0, 6, { .f = { 1, 2, 3, 4, 5, 6 } } },
    { ZB_Q_PARAM, 0, -1, 1, SMALL_BIAS, 0, 2, { .f = { 7, 8 } } },
    { ZB_Q_PARAM, 0, -1, 1, SMALL_FROZEN, 0, 4, { .f = { 1, 2, 3, 4 } } },
    { ZB_Q_BYTES_HELD, 0, -1, 0, ZB_NO_PARAM, 0, ZB_MEM_COUNT, { .i = { 100, 50 } } },
    { ZB_Q_BYTES_HELD, 0, -1, 1, ZB_NO_PARAM, 0, ZB_MEM_COUNT, { .i = { 100, 50 } } },
    { ZB_Q_CALLS, 0, -1, 0, ZB_NO_PARAM, 0, ZB_COLLECTIVE_COUNT, { .i = { 3 } } },
    { ZB_Q_CALLS, 0, -1, 1, ZB_NO_PARAM, 0, ZB_COLLECTIVE_COUNT, { .i = { 3 } } },
    { ZB_Q_BYTES_SENT, 0, -1, 0, ZB_NO_PARAM, 0, ZB_COLLECTIVE_COUNT, { .i = { 16 } } },
    { ZB_Q_BYTES_SENT, 0, -1, 1, ZB_NO_PARAM, 0, ZB_COLLECTIVE_COUNT, { .i = { 16 } } },
};
enum {
    ENGINE_COUNT = COUNT(engine),
    EQUAL_VALUES = 2 + 1 + 2 + 6 + 2 + 2 + 24 + 2 * ZB_MEM_COUNT + 4 * ZB_COLLECTIVE_COUNT
};

static zb_status show_all(const zb_observer *observer, const shown *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (list[i].rank == INT32_MAX) continue; /* left out */
        zb_observation observation = shown_observation(&list[i]);
        ZB_TRY(observer->observe(observer->user, &observation));
    }
    return ZB_OK;
}

typedef struct fixture {
    zb_reference *reference;
    zb_compare *compare;
} fixture;

static void fixture_destroy(fixture *f)
{
    zb_compare_destroy(f->compare);
    zb_reference_destroy(f->reference);
    *f = (fixture){ 0 };
}

static const zb_traffic traffic[ZB_COLLECTIVE_COUNT] = { { .calls = 3, .bytes = 16 } };

static zb_status fixture_create_with(fixture *f, int whole_params, int contributions)
{
    zb_plan plan = small_plan(2);
    *f = (fixture){ 0 };
    ZB_TRY(zb_reference_create(small_model(), &plan, contributions, &f->reference));
    zb_compare_options options = { .reference = f->reference,
                                   .whole_param_on_every_rank = whole_params,
                                   .bytes_held = { 100, 50 } };
    ZB_TRY(zb_compare_create(&options, &f->compare));
    zb_reference_begin(f->reference, 0);
    zb_observer observer = zb_reference_observer(f->reference);
    ZB_TRY(show_all(&observer, oracle, COUNT(oracle)));
    zb_compare_begin(f->compare, traffic);
    return ZB_OK;
}

static zb_status fixture_create(fixture *f, int whole_params)
{
    return fixture_create_with(f, whole_params, 0);
}

/* --- faults: one change to what the engine shows --- */

static void break_nothing(shown *list)
{
    (void)list;
}
static void break_sample(shown *list)
{
    list[0].values.i[1] = 8;
}
static void break_sample_count(shown *list)
{
    list[0].numel = 1;
}
static void break_sample_surplus(shown *list)
{
    list[1].numel = 2;
}
static void break_loss(shown *list)
{
    list[3].values.f[0] = 2;
}
static void break_shard(shown *list)
{
    list[5].values.f[1] = 7;
}
static void break_two(shown *list)
{
    list[5].values.f[0] = 0; /* rank 1, element 4 */
    list[4].values.f[3] = 0; /* rank 0, element 3: earlier */
    list[7].values.d[0] = 0; /* the norm: later still */
}
static void break_same_place(shown *list)
{
    list[13].values.f[1] = 1; /* rank 1 */
    list[10].values.f[1] = 2; /* rank 0, the same element */
}
static void lose_element(shown *list)
{
    list[4].numel = 3;
}
static void lose_bias_gradient(shown *list)
{
    list[6].rank = INT32_MAX;
}
static void lose_norm(shown *list)
{
    list[8].rank = INT32_MAX;
}
static void lose_loss(shown *list)
{
    list[3].rank = INT32_MAX;
}
static void lose_frozen_weight(shown *list)
{
    list[11].rank = list[14].rank = INT32_MAX;
}
static void lose_replica(shown *list)
{
    list[13].rank = INT32_MAX;
}
static void break_held(shown *list)
{
    list[16].values.i[ZB_MEM_GRAD] = 51;
}
static void break_calls(shown *list)
{
    list[18].values.i[ZB_COLLECTIVE_BARRIER] = 1;
}
static void break_sent(shown *list)
{
    list[20].values.i[ZB_COLLECTIVE_BARRIER] = 1;
}
static void show_unknown(shown *list)
{
    list[8] = (shown){ ZB_Q_EXP_AVG, 0, -1, 1, SMALL_BIAS, 0, 2, { .f = { 0 } } };
}

static const struct fault_case {
    const char *name;
    void (*fault)(shown *list);
    int whole_params;
    const char *text; /* NULL: equal */
} cases[] = {
    { "no fault", break_nothing, 1, NULL },
    { "sample", break_sample, 1, "step 0, micro-batch 0, rank 0, sample indices[1]: 9 against 8" },
    { "a sample too few", break_sample_count, 1,
      "step 0, rank 0, sample indices[1]: shown by the oracle, not shown by the engine" },
    { "a sample too many", break_sample_surplus, 1,
      "step 0, rank 1, sample indices[1]: shown by the engine, not shown by the oracle" },
    { "loss", break_loss, 1,
      "step 0, micro-batch 0, rank 1, loss: 0x40100000 (2.25) against 0x40000000 (2)" },
    { "in a shard", break_shard, 1, "step 0, rank 1, reduced gradient fc.weight[5]: 0x40c00000 (6) against" },
    { "the earliest of several", break_two, 1, "step 0, rank 0, reduced gradient fc.weight[3]: " },
    { "the lowest rank at one place", break_same_place, 1, "step 0, rank 0, model weight fc.bias[1]: " },
    { "an element that no rank shows", lose_element, 1,
      "step 0, reduced gradient fc.weight[3]: shown by the oracle, not shown by the engine" },
    { "a tensor that no rank shows", lose_bias_gradient, 1, "step 0, reduced gradient fc.bias[0]: shown by" },
    { "a rank without a norm", lose_norm, 1, "step 0, rank 1, gradient norm: shown by the oracle" },
    { "a rank without a loss", lose_loss, 1, "step 0, rank 1, loss: shown by the oracle" },
    { "a frozen weight that no rank shows", lose_frozen_weight, 0,
      "step 0, model weight frozen[0]: shown by" },
    { "a weight that one rank lacks", lose_replica, 1,
      "step 0, rank 1, model weight[10]: shown by the oracle" },
    { "a weight that one rank lacks, stage 3", lose_replica, 0, NULL },
    { "bytes held", break_held, 1, "step 0, rank 1, bytes held (gradients): 50 against 51" },
    { "collectives called", break_calls, 1, "step 0, rank 1, collectives called (barrier): 0 against 1" },
    { "bytes sent", break_sent, 1, "step 0, rank 1, bytes sent (barrier): 0 against 1" },
    { "more than the oracle", show_unknown, 1, "step 0, rank 1, gradient norm: shown by the oracle" },
};

static void check_case(void **state)
{
    const struct fault_case *c = *state;
    fixture f;
    assert_int_equal(fixture_create(&f, c->whole_params), ZB_OK);
    zb_observer observer = zb_compare_observer(f.compare);

    /* Ranks come in any order. */
    shown list[ENGINE_COUNT];
    srand(3);
    for (int round = 0; round < 10; round++) {
        memcpy(list, engine, sizeof engine);
        c->fault(list);
        for (size_t i = ENGINE_COUNT - 1; round > 0 && i > 0; i--) {
            size_t j = (size_t)rand() % (i + 1);
            shown held = list[i];
            list[i] = list[j];
            list[j] = held;
        }
        zb_compare_begin(f.compare, traffic);
        assert_int_equal(show_all(&observer, list, ENGINE_COUNT), ZB_OK);
        zb_difference difference;
        zb_compare_finish(f.compare, &difference);
        if (c->text == NULL) {
            if (difference.found) fail_msg("found: %s", difference.text);
        } else {
            assert_true(difference.found);
            if (strncmp(difference.text, c->text, strlen(c->text)) != 0)
                fail_msg("found: %s\n want: %s", difference.text, c->text);
        }
    }
    if (c->fault == break_nothing) assert_int_equal(zb_compare_value_count(f.compare), 10 * EQUAL_VALUES);
    fixture_destroy(&f);
}

/* What no engine may show at all is refused where it is shown. */
static void impossible_observations_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *message;
        shown shown;
    } impossible[] = {
        { "another step", { ZB_Q_NORM, 1, -1, 0, SCALAR, { .d = { 0 } } } },
        { "no rank", { ZB_Q_NORM, 0, -1, ALL, SCALAR, { .d = { 0 } } } },
        { "rank outside the world", { ZB_Q_NORM, 0, -1, 2, SCALAR, { .d = { 0 } } } },
        { "a micro-batch too many", { ZB_Q_LOSS, 0, 1, 0, SCALAR, { .f = { 0 } } } },
        { "elements outside the tensor", { ZB_Q_GRAD, 0, -1, 0, SMALL_BIAS, 1, 2, { .f = { 0 } } } },
    };
    fixture f;
    assert_int_equal(fixture_create(&f, 1), ZB_OK);
    zb_observer observer = zb_compare_observer(f.compare);
    for (size_t i = 0; i < COUNT(impossible); i++) {
        assert_int_equal(show_all(&observer, &impossible[i].shown, 1), ZB_DIFFERENT);
        assert_non_null(strstr(zb_error_message(), impossible[i].message));
    }
    fixture_destroy(&f);
}

/* Together they cover everything, but rank 1 shows again what rank 0 owns in place of its own. */
static void every_rank_shows_its_own(void **state)
{
    (void)state;
    static const uint64_t owned[] = { 4, 2 };
    static const struct {
        const char *name;
        size_t numel[2];
        int found;
    } rows[] = { { "as owned", { 4, 2 }, 0 },
                 { "rank 0 shows all", { 6, 2 }, 1 },
                 { "rank 1 lacks one", { 6, 1 }, 1 } };
    const shown weights[] = {
        { ZB_Q_MASTER, -1, -1, ALL, SMALL_WEIGHT, 0, 6, { .f = { 1, 2, 3, 4, 5, 6 } } }
    };
    zb_plan plan = small_plan(2);
    for (size_t i = 0; i < COUNT(rows); i++) {
        shown list[] = {
            { ZB_Q_MASTER, -1, -1, 0, SMALL_WEIGHT, 0, rows[i].numel[0], { .f = { 1, 2, 3, 4, 5, 6 } } },
            { ZB_Q_MASTER, -1, -1, 1, SMALL_WEIGHT, 4, rows[i].numel[1], { .f = { 5, 6 } } },
            { ZB_Q_BYTES_HELD, -1, -1, 0, ZB_NO_PARAM, 0, ZB_MEM_COUNT, { .i = { 0 } } },
            { ZB_Q_BYTES_HELD, -1, -1, 1, ZB_NO_PARAM, 0, ZB_MEM_COUNT, { .i = { 0 } } },
        };
        fixture f = { 0 };
        zb_difference difference;
        assert_int_equal(zb_reference_create(small_model(), &plan, 0, &f.reference), ZB_OK);
        zb_compare_options options = { .reference = f.reference, .owned_numel = owned };
        assert_int_equal(zb_compare_create(&options, &f.compare), ZB_OK);
        zb_reference_begin(f.reference, -1);
        zb_observer observer = zb_reference_observer(f.reference);
        assert_int_equal(show_all(&observer, weights, 1), ZB_OK);
        zb_compare_begin(f.compare, traffic);
        observer = zb_compare_observer(f.compare);
        assert_int_equal(show_all(&observer, list, COUNT(list)), ZB_OK);
        zb_compare_finish(f.compare, &difference);
        if (difference.found != rows[i].found)
            fail_msg("%s: %s", rows[i].name, difference.found ? difference.text : "nothing found");
        fixture_destroy(&f);
    }
}

/* What ranks send is compared where it is asked for, rank by rank and parameter by parameter; then all of it
 * must be shown. */
static void contributions_are_compared(void **state)
{
    (void)state;
    const shown sent[] = {
        { ZB_Q_CONTRIBUTION, 0, 0, 0, SMALL_WEIGHT, 0, 6, { .f = { 1, 2, 3, 4, 5, 6 } } },
        { ZB_Q_CONTRIBUTION, 0, 0, 1, SMALL_WEIGHT, 0, 6, { .f = { 9, 8, 7, 6, 5, 4 } } },
        { ZB_Q_CONTRIBUTION, 0, 0, 1, SMALL_BIAS, 0, 2, { .f = { 3, 1 } } },
    };
    static const struct {
        const char *name;
        size_t oracle_shows, engine_shows; /* of `sent` */
        int breaks;
        const char *text;
    } rows[] = {
        { "both", 3, 3, 0, NULL },
        { "nobody", 0, 0, 0, NULL },
        { "only the oracle", 3, 0, 0,
          "step 0, rank 0, contribution[0]: shown by the oracle, not shown by the engine" },
        { "only the engine", 0, 3, 0,
          "step 0, rank 0, contribution[0]: shown by the engine, not shown by the oracle" },
        { "the engine a part", 3, 2, 0,
          "step 0, rank 1, contribution[6]: shown by the oracle, not shown by the engine" },
        { "both, a rank differs", 3, 3, 1,
          "step 0, micro-batch 0, rank 1, contribution fc.bias[1]: 0x3f800000 (1) against 0x00000000 (0)" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        fixture f;
        zb_difference difference;
        shown list[COUNT(sent)];
        memcpy(list, sent, sizeof sent);
        if (rows[i].breaks) list[2].values.f[1] = 0;
        assert_int_equal(fixture_create_with(&f, 1, 1), ZB_OK);
        zb_observer observer = zb_reference_observer(f.reference);
        assert_int_equal(show_all(&observer, sent, rows[i].oracle_shows), ZB_OK);
        observer = zb_compare_observer(f.compare);
        assert_int_equal(show_all(&observer, list, rows[i].engine_shows), ZB_OK);
        assert_int_equal(show_all(&observer, engine, ENGINE_COUNT), ZB_OK);
        zb_compare_finish(f.compare, &difference);
        if (difference.found != (rows[i].text != NULL) ||
            (difference.found && strncmp(difference.text, rows[i].text, strlen(rows[i].text)) != 0))
            fail_msg("%s: %s", rows[i].name, difference.found ? difference.text : "nothing found");
        fixture_destroy(&f);
    }
}

static void contributions_that_no_engine_may_show(void **state)
{
    (void)state;
    static const struct {
        int asked_for, rank;
        const char *words;
    } rows[] = { { 1, ALL, "no rank" }, { 0, 0, "nobody asking" } };
    for (size_t i = 0; i < COUNT(rows); i++) {
        fixture f;
        const shown sent = { ZB_Q_CONTRIBUTION, 0, 0, rows[i].rank, SMALL_BIAS, 0, 2, { .f = { 0 } } };
        assert_int_equal(fixture_create_with(&f, 1, rows[i].asked_for), ZB_OK);
        const zb_observer observer = zb_compare_observer(f.compare);
        assert_int_equal(show_all(&observer, &sent, 1), ZB_DIFFERENT);
        if (strstr(zb_error_message(), rows[i].words) == NULL) fail_msg("%s", zb_error_message());
        fixture_destroy(&f);
    }
}

/* Before training the oracle shows weights only; the engine may show more, but no less. */
static void before_training(void **state)
{
    (void)state;
    const shown weights[] = { { ZB_Q_PARAM, -1, -1, ALL, SMALL_BIAS, 0, 2, { .f = { 1, 2 } } } };
    shown list[] = { { ZB_Q_PARAM, -1, -1, 0, SMALL_BIAS, 0, 2, { .f = { 1, 2 } } },
                     { ZB_Q_LR, -1, -1, 0, SCALAR, { .d = { 5 } } },
                     { ZB_Q_EXP_AVG, -1, -1, 0, SMALL_BIAS, 0, 2, { .f = { 0 } } },
                     { ZB_Q_BYTES_SENT, -1, -1, 0, ZB_NO_PARAM, 0, ZB_COLLECTIVE_COUNT, { .i = { 4711 } } },
                     { ZB_Q_BYTES_HELD, -1, -1, 0, ZB_NO_PARAM, 0, ZB_MEM_COUNT, { .i = { 100, 50 } } },
                     { ZB_Q_BYTES_HELD, -1, -1, 1, ZB_NO_PARAM, 0, ZB_MEM_COUNT, { .i = { 100, 50 } } } };
    fixture f;
    zb_difference difference;
    assert_int_equal(fixture_create(&f, 0), ZB_OK);
    zb_reference_begin(f.reference, -1);
    zb_observer observer = zb_reference_observer(f.reference);
    assert_int_equal(show_all(&observer, weights, 1), ZB_OK);
    observer = zb_compare_observer(f.compare);
    zb_compare_begin(f.compare, traffic);
    assert_int_equal(show_all(&observer, list, COUNT(list)), ZB_OK);
    zb_compare_finish(f.compare, &difference);
    if (difference.found) fail_msg("found: %s", difference.text);

    list[0].values.f[1] = 3;
    zb_compare_begin(f.compare, traffic);
    assert_int_equal(show_all(&observer, list, COUNT(list)), ZB_OK);
    zb_compare_finish(f.compare, &difference);
    assert_string_equal(difference.text,
                        "after initialize, rank 0, model weight fc.bias[1]: 0x40000000 (2) against "
                        "0x40400000 (3), 4194304 ulps");
    fixture_destroy(&f);
}

static void wrong_oracle_is_an_internal_error(void **state)
{
    (void)state;
    const shown wrong[] = { { ZB_Q_NORM, 1, -1, ALL, SCALAR, { .d = { 0 } } },
                            { ZB_Q_LOSS, 0, 0, ALL, SCALAR, { .f = { 0 } } },
                            { ZB_Q_GRAD, 0, -1, ALL, SMALL_WEIGHT, 3, 2, { .f = { 0 } } } };
    fixture f;
    assert_int_equal(fixture_create(&f, 1), ZB_OK);
    zb_observer observer = zb_reference_observer(f.reference);
    for (size_t i = 0; i < COUNT(wrong); i++)
        assert_int_equal(show_all(&observer, &wrong[i], 1), ZB_INTERNAL);
    fixture_destroy(&f);
}

/* --- both ranks at once --- */

typedef struct rank_thread {
    zb_compare *compare;
    int rank;
} rank_thread;

static void *show_rank(void *user)
{
    rank_thread *thread = user;
    zb_observer observer = zb_compare_observer(thread->compare);
    for (size_t i = 0; i < ENGINE_COUNT; i++) {
        shown one = engine[i];
        if (one.rank != thread->rank) continue;
        if (one.quantity == ZB_Q_PARAM && one.param == SMALL_BIAS) one.values.f[1] = 0;
        if (show_all(&observer, &one, 1) != ZB_OK) return user;
    }
    return NULL;
}

static void ranks_in_parallel(void **state)
{
    (void)state;
    fixture f;
    assert_int_equal(fixture_create(&f, 1), ZB_OK);
    for (int round = 0; round < 100; round++) {
        pthread_t threads[2];
        rank_thread ranks[2] = { { f.compare, 0 }, { f.compare, 1 } };
        zb_compare_begin(f.compare, traffic);
        for (int r = 0; r < 2; r++)
            assert_int_equal(pthread_create(&threads[r], NULL, show_rank, &ranks[r]), 0);
        for (int r = 0; r < 2; r++) {
            void *failed;
            pthread_join(threads[r], &failed);
            assert_null(failed);
        }
        zb_difference difference;
        zb_compare_finish(f.compare, &difference);
        assert_int_equal(difference.quantity, ZB_Q_PARAM);
        assert_int_equal(difference.rank_b, 0);
    }
    fixture_destroy(&f);
}

static void allocation_failures_are_survived(void **state)
{
    (void)state;
    for (int64_t n = 0;; n++) {
        fixture f;
        uint64_t live = zb_alloc_get_stats().live;
        zb_alloc_fail_at(n);
        zb_status status = fixture_create(&f, 1);
        if (status == ZB_OK) {
            zb_observer observer = zb_compare_observer(f.compare);
            status = show_all(&observer, engine, ENGINE_COUNT);
        }
        fixture_destroy(&f);
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
    const struct CMUnitTest whole[] = {
        cmocka_unit_test(impossible_observations_are_refused),
        cmocka_unit_test(every_rank_shows_its_own),
        cmocka_unit_test(contributions_are_compared),
        cmocka_unit_test(contributions_that_no_engine_may_show),
        cmocka_unit_test(before_training),
        cmocka_unit_test(wrong_oracle_is_an_internal_error),
        cmocka_unit_test(ranks_in_parallel),
        cmocka_unit_test(allocation_failures_are_survived),
    };
    struct CMUnitTest tests[COUNT(cases)];
    for (size_t i = 0; i < COUNT(cases); i++)
        tests[i] = (struct CMUnitTest){ cases[i].name, check_case, NULL, NULL, (void *)&cases[i] };
    return cmocka_run_group_tests_name("compare", tests, NULL, NULL) +
           cmocka_run_group_tests_name("compare, whole", whole, NULL, NULL);
}
