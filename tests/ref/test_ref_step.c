/*
 * From reduced gradients to weights, by hand: who holds what, each norm, and each rule of a plan about
 * overflow, loss scale and clipping.
 */
#include "tests/ref/bits.h"

#include <stdio.h>
#include <zerobit/memory.h>

#include "ref/oracle.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { PARAMS_MAX = 32, NUMEL_MAX = 128, WORLD_MAX = 4 };

/* A model that has parameters only: all that is needed after backward. */
typedef struct bare_model {
    zb_model model;
    zb_param params[PARAMS_MAX];
} bare_model;

/* sizes end with -1; a negative size below that is a frozen parameter of so many elements. */
static zb_model *bare(bare_model *bare, const int *sizes)
{
    *bare = (bare_model){ .model = { .params = bare->params } };
    for (int p = 0; sizes[p] != -1; p++) {
        const int frozen = sizes[p] < 0;
        bare->params[p] = (zb_param){ .numel = (size_t)(frozen ? -sizes[p] : sizes[p]),
                                      .requires_grad = !frozen };
        bare->model.param_numel += bare->params[p].numel;
        bare->model.param_count++;
    }
    return &bare->model;
}

/* --- who holds what --- */

/*
 * A rank's tensors as text: "[group: param(first..last)@at ... /numel]". What is written here is section
 * "flat layout" and "sub-groups" of DeepSpeed's own layout, worked out for these sizes.
 */
static void describe(const zb_ref_shard *shard, char *text, size_t text_bytes)
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t t = 0; t < shard->tensor_count; t++) {
        const zb_ref_shard_tensor *tensor = &shard->tensors[t];
        used += (size_t)snprintf(text + used, text_bytes - used, "[%d:", tensor->group);
        for (size_t i = 0; i < tensor->piece_count; i++) {
            const zb_ref_piece *piece = &shard->pieces[tensor->first_piece + i];
            used += (size_t)snprintf(text + used, text_bytes - used, " %d(%zu..%zu)@%zu", piece->param,
                                     piece->first, piece->first + piece->numel - 1, piece->at);
        }
        used += (size_t)snprintf(text + used, text_bytes - used, " /%zu]", tensor->numel);
        assert_true(used < text_bytes);
    }
}

static const struct layout {
    const char *name;
    zb_tensors tensors;
    int sizes[8], world;
    int group_of[8]; /* used when any is not 0 */
    int round_robin;
    uint64_t sub_group_numel;
    const char *ranks[WORLD_MAX];
} layouts[] = {
    { "parameters, a frozen one left out",
      ZB_TENSORS_PARAMETERS,
      { 3, -5, 4, -1 },
      2,
      .ranks = { "[0: 0(0..2)@0 /3][0: 2(0..3)@0 /4]", "[0: 0(0..2)@0 /3][0: 2(0..3)@0 /4]" } },
    { "parameters, group by group",
      ZB_TENSORS_PARAMETERS,
      { 3, 5, 4, -1 },
      1,
      { 1, 0, 1 },
      .ranks = { "[0: 1(0..4)@0 /5][1: 0(0..2)@0 /3][1: 2(0..3)@0 /4]" } },
    { "groups", ZB_TENSORS_GROUPS, { 3, -5, 4, -1 }, 1, .ranks = { "[0: 0(0..2)@0 2(0..3)@3 /7]" } },
    { "groups, two of them",
      ZB_TENSORS_GROUPS,
      { 3, 5, 4, -1 },
      1,
      { 1, 0, 1 },
      .ranks = { "[0: 1(0..4)@0 /5][1: 0(0..2)@0 2(0..3)@3 /7]" } },
    { "partitions of one rank are padded as well",
      ZB_TENSORS_PARTITIONS,
      { 3, 5, 4, 7, -1 },
      1,
      .ranks = { "[0: 0(0..2)@0 1(0..4)@3 2(0..3)@8 3(0..6)@12 /20]" } },
    { "partitions of two",
      ZB_TENSORS_PARTITIONS,
      { 3, 5, 4, 7, -1 },
      2,
      .ranks = { "[0: 0(0..2)@0 1(0..4)@3 2(0..1)@8 /10]", "[0: 2(2..3)@0 3(0..6)@2 /10]" } },
    { "partitions of three",
      ZB_TENSORS_PARTITIONS,
      { 3, 5, 4, 7, -1 },
      3,
      .ranks = { "[0: 0(0..2)@0 1(0..4)@3 /8]", "[0: 2(0..3)@0 3(0..3)@4 /8]", "[0: 3(4..6)@0 /8]" } },
    { "partitions of four",
      ZB_TENSORS_PARTITIONS,
      { 3, 5, 4, 7, -1 },
      4,
      .ranks = { "[0: 0(0..2)@0 1(0..2)@3 /6]", "[0: 1(3..4)@0 2(0..3)@2 /6]", "[0: 3(0..5)@0 /6]",
                 "[0: 3(6..6)@0 /6]" } },
    { "ranks with nothing but padding",
      ZB_TENSORS_PARTITIONS,
      { 1, 1, -1 },
      4,
      .ranks = { "[0: 0(0..0)@0 1(0..0)@1 /2]", "[0: /2]", "[0: /2]", "[0: /2]" } },
    { "round robin of two",
      ZB_TENSORS_PARTITIONS,
      { 3, 5, 4, 7, -1 },
      2,
      .round_robin = 1,
      .ranks = { "[0: 0(0..2)@0 2(0..3)@3 1(0..2)@7 /10]", "[0: 1(3..4)@0 3(0..6)@2 /10]" } },
    { "round robin counts within a group, frozen parameters left out",
      ZB_TENSORS_PARTITIONS,
      { 1, 2, -3, 4, 5, 6, -1 },
      2,
      { 0, 1, 1, 1, 0, 1 },
      .round_robin = 1,
      .ranks = { "[0: 0(0..0)@0 4(0..2)@1 /4][1: 1(0..1)@0 5(0..3)@2 /6]",
                 "[0: 4(3..4)@0 /4][1: 5(4..5)@0 3(0..3)@2 /6]" } },
    { "sub-groups: closed when full",
      ZB_TENSORS_SUB_GROUPS,
      { 16, 4, 24, 4, 10, 3, -1 },
      2,
      .sub_group_numel = 10,
      .ranks = { "[0: 0(0..7)@0 1(0..1)@8 /10][0: 2(0..11)@0 /12][0: 3(0..1)@0 4(0..4)@2 5(0..1)@7 /9]",
                 "[0: 0(8..15)@0 1(2..3)@8 /10][0: 2(12..23)@0 /12][0: 3(2..3)@0 4(5..9)@2 5(2..2)@7 /9]" } },
    { "one sub-group; ranks past the end of a parameter",
      ZB_TENSORS_SUB_GROUPS,
      { 5, 1, -1 },
      4,
      .sub_group_numel = 1000,
      .ranks = { "[0: 0(0..1)@0 1(0..0)@2 /3]", "[0: 0(2..3)@0 /3]", "[0: 0(4..4)@0 /3]", "[0: /3]" } },
    { "an empty parameter has its turn in the round, and no piece",
      ZB_TENSORS_PARTITIONS,
      { 2, 0, 3, 1, -1 },
      2,
      .round_robin = 1,
      .ranks = { "[0: 0(0..1)@0 2(0..1)@2 /4]", "[0: 2(2..2)@0 3(0..0)@1 /4]" } },
    { "nor a tensor",
      ZB_TENSORS_PARAMETERS,
      { 2, 0, 3, -1 },
      1,
      .ranks = { "[0: 0(0..1)@0 /2][0: 2(0..2)@0 /3]" } },
    { "a group begins a sub-group",
      ZB_TENSORS_SUB_GROUPS,
      { 2, 2, 2, -1 },
      1,
      { 0, 1, 0 },
      .sub_group_numel = 1000,
      .ranks = { "[0: 0(0..1)@0 2(0..1)@2 /4][1: 1(0..1)@0 /2]" } },
    { "nothing to train", ZB_TENSORS_SUB_GROUPS, { -2, -1 }, 1, .sub_group_numel = 9, .ranks = { "" } },
};

static int has_groups(const int *group_of, int count)
{
    for (int p = 0; p < count; p++)
        if (group_of[p] != 0) return 1;
    return 0;
}

static void check_layout(void **state)
{
    const struct layout *c = *state;
    const zb_plan plan = { .world_size = c->world,
                           .round_robin = c->round_robin,
                           .sub_group_numel = c->sub_group_numel };
    bare_model memory;
    const zb_model *model = bare(&memory, c->sizes);
    const int *group_of = has_groups(c->group_of, 8) ? c->group_of : NULL;
    zb_ref_shard *shards;
    assert_int_equal(zb_ref_shards_create(&plan, c->tensors, model, group_of, &shards), ZB_OK);
    for (int rank = 0; rank < c->world; rank++) {
        char text[512];
        describe(&shards[rank], text, sizeof text);
        assert_string_equal(text, c->ranks[rank]);
    }

    /* There and back again, zeros in the padding. */
    zb_ref_tensors from, to;
    assert_int_equal(zb_ref_tensors_create(model, &from), ZB_OK);
    assert_int_equal(zb_ref_tensors_create(model, &to), ZB_OK);
    fill_random(from.data, from.numel, 5);
    for (int rank = 0; rank < c->world; rank++)
        for (size_t t = 0; t < shards[rank].tensor_count; t++) {
            float tensor[NUMEL_MAX];
            size_t live = 0, zeros = 0;
            memset(tensor, 0xff, sizeof tensor);
            zb_ref_shard_gather(&shards[rank], t, &from, tensor);
            zb_ref_shard_scatter(&shards[rank], t, tensor, &to);
            const zb_ref_shard_tensor *what = &shards[rank].tensors[t];
            for (size_t i = 0; i < what->piece_count; i++)
                live += shards[rank].pieces[what->first_piece + i].numel;
            for (size_t i = 0; i < what->numel; i++) zeros += tensor[i] == 0.0f;
            assert_int_equal(zeros, what->numel - live);
        }
    for (int p = 0; p < model->param_count; p++)
        if (model->params[p].requires_grad)
            assert_same_floats("back", from.param[p], to.param[p], model->params[p].numel);
    zb_ref_tensors_destroy(&from);
    zb_ref_tensors_destroy(&to);
    zb_ref_shards_destroy(c->world, shards);
}

/* --- norms --- */

/* How a norm comes from a sum of squares. */
enum root {
    FP64,    /* sqrt */
    FP32,    /* the same in fp32 */
    FLAT,    /* in fp32, and again from the square of that, rounded to fp32, in fp64 */
    AS_IT_IS /* it is the norm itself */
};

/*
 * A gradient as text: '#' is 2^12, 'i' an infinity, 'n' a NaN. fp32 loses a single 1 that is added to the
 * square of 2^12, which is 2^24; ones that have met one another first count.
 */
static const struct norm {
    const char *name;
    zb_norm_method method;
    int world;
    const char *params; /* separated by spaces */
    const char *groups; /* one letter per parameter, from 'a'; NULL: one group */
    uint64_t sub_group_numel;
    double sum;
    enum root root;
} norms[] = {
    { "exact", ZB_NORM_EXACT, 2, "#1", NULL, 0, 0x1p24 + 1.0, FP64 },

    { "flat: three ones in each of seven lanes", ZB_NORM_FLAT, 1, "#111111101111111 01111111", NULL, 0,
      0x1p24 + 28.0, FLAT },
    { "flat: what is left over comes last, one by one", ZB_NORM_FLAT, 1, "#111111100000000 1111111", NULL, 0,
      0x1p24, FLAT },
    { "flat: nothing but what is left over", ZB_NORM_FLAT, 1, "11 1#", NULL, 0, 0x1p24 + 4.0, FLAT },
    { "flat: groups meet in fp64", ZB_NORM_FLAT, 1, "# 1 1", "abc", 0, 0x1p24 + 2.0, FP64 },
    { "flat: and are then rounded to fp32", ZB_NORM_FLAT, 1, "# 1", "ab", 0, 0x1p24, FP64 },
    { "flat: an infinity counts as 1", ZB_NORM_FLAT, 1, "i 1", NULL, 0, 1.0, AS_IT_IS },
    { "flat: a NaN counts as 1", ZB_NORM_FLAT, 1, "2 n", "ab", 0, 1.0, AS_IT_IS },
    { "unfused: parameters meet in fp32, one by one", ZB_NORM_UNFUSED, 1, "# 1 1", NULL, 0, 4096.0,
      AS_IT_IS },
    { "unfused: groups meet in fp64", ZB_NORM_UNFUSED, 1, "# 1", "ab", 0, 0x1p24 + 1.0, FP64 },
    { "unfused: an infinity counts as 1", ZB_NORM_UNFUSED, 1, "i 1", NULL, 0, 1.0, AS_IT_IS },
    { "unfused: a NaN counts as 1 beside other groups", ZB_NORM_UNFUSED, 1, "n 2", "ab", 0, 5.0, FP64 },

    { "mean: parameters meet in fp32", ZB_NORM_PARAMETERS_MEAN, 1, "# 1 1", NULL, 0, 0x1p24, FP32 },
    { "mean: in the model's order, whatever the groups", ZB_NORM_PARAMETERS_MEAN, 1, "# 1 1", "baa", 0,
      0x1p24, FP32 },
    { "mean: a seventh of 5, seven times", ZB_NORM_PARAMETERS_MEAN, 7, "2222 3", NULL, 0, 0x1.400002p2,
      AS_IT_IS },
    { "mean: an infinity", ZB_NORM_PARAMETERS_MEAN, 2, "1 i", NULL, 0, (double)INFINITY, AS_IT_IS },
    { "mean: a NaN", ZB_NORM_PARAMETERS_MEAN, 2, "1 n", NULL, 0, (double)NAN, AS_IT_IS },

    { "parameters: in the order of the groups", ZB_NORM_PARAMETERS, 2, "# 1 1", "baa", 0, 0x1p24 + 2.0,
      FP32 },
    { "parameters: meet in fp32", ZB_NORM_PARAMETERS, 2, "# 1 1", NULL, 0, 0x1p24, FP32 },
    { "parameters: eight lanes of each", ZB_NORM_PARAMETERS, 2, "#11111110111111101111111", NULL, 0,
      0x1p24 + 28.0, FP32 },
    { "parameters: an infinity becomes -1", ZB_NORM_PARAMETERS, 2, "i 1", NULL, 0, -1.0, AS_IT_IS },
    { "parameters: a NaN becomes -1", ZB_NORM_PARAMETERS, 2, "1 n", NULL, 0, -1.0, AS_IT_IS },

    { "pytorch: parameters' norms meet in eight lanes", ZB_NORM_PYTORCH, 2,
      "# 1 1 1 1 1 1 1 0 1 1 1 1 1 1 1 0 1 1 1 1 1 1 1", NULL, 0, 0x1p24 + 28.0, FP32 },
    { "pytorch: the last ones are fused", ZB_NORM_PYTORCH, 1, "2 1 7 1 9 96", NULL, 0, 0x1.fcfdbep+3,
      AS_IT_IS },
    { "pytorch: in the model's order, whatever the groups", ZB_NORM_PYTORCH, 2, "# 1 1", "baa", 0, 0x1p24,
      FP32 },
    { "pytorch: an infinity", ZB_NORM_PYTORCH, 2, "1 i", NULL, 0, (double)INFINITY, AS_IT_IS },
    { "pytorch: a NaN", ZB_NORM_PYTORCH, 2, "1 n", NULL, 0, (double)NAN, AS_IT_IS },

    { "partitions: fp64 within a rank", ZB_NORM_PARTITION_FP32, 2, "# 1 1 0 0000", NULL, 0, 0x1p24 + 2.0,
      FP32 },
    { "partitions: fp32 over ranks", ZB_NORM_PARTITION_FP32, 3, "#0 01 01", NULL, 0, 0x1p24, FP32 },
    { "partitions: ranks with padding only", ZB_NORM_PARTITION_FP32, 4, "2", NULL, 0, 4.0, FP32 },
    { "partitions: groups' norms 3 and 4", ZB_NORM_PARTITION_FP32, 2, "22 2222 1", "aba", 0, 25.0, FP32 },
    { "partitions: eight lanes of groups", ZB_NORM_PARTITION_FP32, 1,
      "# 1 1 1 1 1 1 1 0 1 1 1 1 1 1 1 0 1 1 1 1 1 1 1", "abcdefghijklmnopqrstuvwx", 0, 0x1p24 + 28.0, FP32 },
    { "partitions: an infinity counts as 1", ZB_NORM_PARTITION_FP32, 2, "i1", NULL, 0, 1.0, AS_IT_IS },
    { "partitions: a group with a NaN counts as 1", ZB_NORM_PARTITION_FP32, 2, "n22 2", "ab", 0, 5.0, FP32 },

    { "sub-groups: nothing is lost", ZB_NORM_PARTITION_FP64, 2, "#1 1", NULL, 1000, 0x1p24 + 2.0, FP64 },
    { "sub-groups: each one with an infinity counts as 1", ZB_NORM_PARTITION_FP64, 2, "i1 in 2", NULL, 1, 6.0,
      FP64 },
    { "sub-groups: together they count as 1", ZB_NORM_PARTITION_FP64, 2, "i1 in 2", NULL, 1000, 1.0,
      AS_IT_IS },
    { "sub-groups: groups are apart", ZB_NORM_PARTITION_FP64, 2, "i1 2", "ab", 1000, 5.0, FP64 },
};

static double norm_wanted(const struct norm *c)
{
    const double flat = (double)sqrtf((float)c->sum);
    switch (c->root) {
    case FP64:
        return sqrt(c->sum);
    case FP32:
        return flat;
    case FLAT:
        return sqrt((double)(float)(flat * flat));
    case AS_IT_IS:
        break;
    }
    return c->sum;
}

static float number_of(char letter)
{
    if (letter == '#') return 0x1p12f;
    if (letter == 'i') return -INFINITY;
    return letter == 'n' ? NAN : (float)(letter - '0');
}

/* Sizes for bare(), and the elements behind one another. */
static void read_gradients(const char *text, int sizes[PARAMS_MAX], float *data)
{
    int p = 0;
    sizes[0] = 0;
    for (; *text != '\0'; text++) {
        if (*text == ' ') {
            sizes[++p] = 0;
        } else {
            sizes[p]++;
            *data++ = number_of(*text);
        }
    }
    sizes[p + 1] = -1;
}

static void check_norm(void **state)
{
    const struct norm *c = *state;
    const zb_plan plan = { .norm = c->method, .world_size = c->world, .sub_group_numel = c->sub_group_numel };
    int sizes[PARAMS_MAX], group_of[PARAMS_MAX] = { 0 };
    float data[NUMEL_MAX], scratch[NUMEL_MAX];
    read_gradients(c->params, sizes, data);
    bare_model memory;
    const zb_model *model = bare(&memory, sizes);
    for (int p = 0; c->groups != NULL && p < model->param_count; p++) group_of[p] = c->groups[p] - 'a';
    zb_ref_tensors gradients;
    assert_int_equal(zb_ref_tensors_create(model, &gradients), ZB_OK);
    memcpy(gradients.data, data, gradients.numel * sizeof *data);

    zb_ref_shard *shards;
    assert_int_equal(zb_ref_shards_create(&plan, zb_ref_norm_tensors(&plan), model,
                                          c->groups != NULL ? group_of : NULL, &shards),
                     ZB_OK);
    zb_ref_exchange exchange;
    assert_int_equal(zb_ref_exchange_create(&(zb_plan){ .world_size = c->world }, NULL, &exchange), ZB_OK);
    const double got = zb_ref_plan_norm(&plan, model, shards, &gradients, &exchange, scratch),
                 want = norm_wanted(c);
    zb_ref_exchange_destroy(&exchange);
    if (got != want && !(isnan(got) && isnan(want))) fail_msg("%a, want %a", got, want);
    zb_ref_shards_destroy(c->world, shards);
    zb_ref_tensors_destroy(&gradients);
}

/* --- steps --- */

/* One parameter of one element that begins at 0; SGD. */
enum { STEPS_MAX = 3 };
static const zb_plan step_plan = {
    .world_size = 1,
    .micro_batch_size = 1,
    .accumulation_steps = 1,
    .loss_is_scaled = 1,
    .scaler = { .kind = ZB_SCALER_STATIC, .initial_scale = 1.0 },
    .groups = { { .kind = ZB_OPTIMIZER_SGD } },
    .group_count = 1,
};

/* Doubles in the second step: from 8 to 16. */
static void set_growing_scale(zb_plan *plan)
{
    plan->scaler = (zb_loss_scaler_config){
        .kind = ZB_SCALER_DYNAMIC, .initial_scale = 8.0, .min_scale = 1.0, .window = 1, .hysteresis = 1
    };
}
static void set_clip_2(zb_plan *plan) /* a norm of 8 is four times too large */
{
    set_growing_scale(plan);
    plan->clip_norm = (8.0 + 1e-6) / 4.0;
}
static void set_unscale_by_next(zb_plan *plan)
{
    set_growing_scale(plan);
    plan->unscale_by_next_scale = 1;
}
static void set_clip_by_next(zb_plan *plan)
{
    set_unscale_by_next(plan);
    plan->clip_norm = (4.0 + 1e-6) / 2.0;
}
static void set_report_by_next(zb_plan *plan)
{
    set_growing_scale(plan);
    plan->report_norm_by_next_scale = 1;
}
static void set_skip(zb_plan *plan)
{
    plan->overflow = ZB_OVERFLOW_SKIP;
    set_growing_scale(plan);
}
static void set_skip_without_norm(zb_plan *plan)
{
    set_skip(plan);
    plan->norm = ZB_NORM_FLAT;
}
static void set_count(zb_plan *plan)
{
    plan->overflow = ZB_OVERFLOW_COUNT;
}
static void set_stop(zb_plan *plan)
{
    plan->overflow = ZB_OVERFLOW_STOP;
    plan->norm = ZB_NORM_PARAMETERS;
}
static void set_stop_exact(zb_plan *plan)
{
    plan->overflow = ZB_OVERFLOW_STOP;
}
static void set_unseen(zb_plan *plan)
{
    (void)plan;
}

/* The rate is 1 in every step, or 1, 1, 2, 3 .. after each step that moved the schedule on. */
static const zb_schedule_config rate_1 = { .kind = ZB_SCHEDULE_CONSTANT, .base_lr = 1.0 };
static const zb_schedule_config rates_1_1_2 = { .kind = ZB_SCHEDULE_WARMUP_LR,
                                                .base_lr = 1.0,
                                                .warmup_min_lr = 1.0,
                                                .warmup_max_lr = 11.0,
                                                .warmup_num_steps = 10,
                                                .warmup_type = ZB_WARMUP_LINEAR };

static const struct step {
    const char *name;
    void (*set)(zb_plan *plan);
    const zb_schedule_config *schedule;
    int count;
    struct {
        float grad;
        zb_status status; /* what follows is of a step that did not fail */
        float weight;
        double norm, loss_scale, lr;
        int64_t overflow, skipped, optimizer_steps;
    } steps[STEPS_MAX];
} steps[] = {
    { "the scale that made the gradients takes itself out",
      set_growing_scale,
      &rate_1,
      2,
      { { 8, ZB_OK, -1, 1, 8, 1, 0, 0, 1 }, { 8, ZB_OK, -2, 1, 8, 1, 0, 0, 2 } } },
    { "clipping by the scale that made the gradients",
      set_clip_2,
      &rate_1,
      2,
      { { 64, ZB_OK, -2, 8, 8, 1, 0, 0, 1 }, { 64, ZB_OK, -4, 8, 8, 1, 0, 0, 2 } } },
    { "unscaling by the next scale halves a growing step",
      set_unscale_by_next,
      &rate_1,
      3,
      { { 8, ZB_OK, -1, 1, 8, 1, 0, 0, 1 },
        { 8, ZB_OK, -1.5f, 1, 8, 1, 0, 0, 2 },
        { 16, ZB_OK, -2, 1, 16, 1, 0, 0, 3 } } },
    { "clipping by the next scale, of which the norm is twice too large",
      set_clip_by_next,
      &rate_1,
      2,
      { { 8, ZB_OK, -1, 1, 8, 1, 0, 0, 1 }, { 64, ZB_OK, -3, 8, 8, 1, 0, 0, 2 } } },
    { "the norm reported by the next scale, unscaling not",
      set_report_by_next,
      &rate_1,
      2,
      { { 8, ZB_OK, -1, 1, 8, 1, 0, 0, 1 }, { 8, ZB_OK, -2, 0.5, 8, 1, 0, 0, 2 } } },
    { "a skipped step moves neither weights nor schedule",
      set_skip,
      &rates_1_1_2,
      3,
      { { -INFINITY, ZB_OK, 0, (double)INFINITY, 8, 1, 1, 1, 0 },
        { 4, ZB_OK, -1, 1, 4, 1, 0, 1, 1 },
        { 4, ZB_OK, -2, 1, 4, 1, 0, 1, 2 } } },
    { "DeepSpeed takes no norm of it: the one before stays",
      set_skip_without_norm,
      &rate_1,
      3,
      { { NAN, ZB_OK, 0, 0, 8, 1, 1, 1, 0 },
        { 12, ZB_OK, -3, 3, 4, 1, 0, 1, 1 },
        { INFINITY, ZB_OK, -3, 3, 4, 1, 1, 2, 1 } } },
    { "unseen, it is taken",
      set_unseen,
      &rates_1_1_2,
      3,
      { { 0, ZB_OK, 0, 0, 1, 1, 0, 0, 1 },
        { INFINITY, ZB_OK, -INFINITY, (double)INFINITY, 1, 1, 0, 0, 2 },
        { 1, ZB_OK, -INFINITY, 1, 1, 2, 0, 0, 3 } } },
    { "counted, it is taken, and the schedule stays",
      set_count,
      &rates_1_1_2,
      3,
      { { 0, ZB_OK, 0, 0, 1, 1, 0, 0, 1 },
        { INFINITY, ZB_OK, -INFINITY, (double)INFINITY, 1, 1, 1, 1, 2 },
        { 1, ZB_OK, -INFINITY, 1, 1, 1, 0, 1, 3 } } },
    { "a norm that is a number goes on", set_stop, &rate_1, 1, { { 2, ZB_OK, -2, 2, 1, 1, 0, 0, 1 } } },
    { "no gradient ends training", set_stop, &rate_1, 1, { { .status = ZB_LOSS_SCALE } } },
    { "an infinity ends training", set_stop, &rate_1, 1, { { .grad = INFINITY, .status = ZB_LOSS_SCALE } } },
    { "a NaN ends training", set_stop, &rate_1, 1, { { .grad = NAN, .status = ZB_LOSS_SCALE } } },
    { "an infinite norm ends training",
      set_stop_exact,
      &rate_1,
      1,
      { { .grad = INFINITY, .status = ZB_LOSS_SCALE } } },
};

static void check_step(void **state)
{
    const struct step *c = *state;
    zb_plan plan = step_plan;
    c->set(&plan);
    bare_model memory;
    const zb_model *model = bare(&memory, (const int[]){ 1, -1 });
    zb_ref_state s;
    assert_int_equal(zb_ref_state_create(&plan, c->schedule, model, NULL, NULL, &s), ZB_OK);
    zb_ref_state_begin(&s);
    for (int i = 0; i < c->count; i++) {
        s.sums.reduced.data[0] = c->steps[i].grad;
        assert_int_equal(zb_ref_state_step(&s), c->steps[i].status);
        if (c->steps[i].status != ZB_OK) break;
        if (!same_bits(s.master.data[0], c->steps[i].weight))
            fail_msg("step %d: weight %a", i, (double)s.master.data[0]);
        if (s.norm != c->steps[i].norm) fail_msg("step %d: norm %a", i, s.norm);
        assert_true(s.loss_scale == c->steps[i].loss_scale);
        if (s.lr[0] != c->steps[i].lr) fail_msg("step %d: rate %a", i, s.lr[0]);
        assert_int_equal(s.overflow, c->steps[i].overflow);
        assert_int_equal(s.skipped, c->steps[i].skipped);
        assert_int_equal(s.optimizer.step, c->steps[i].optimizer_steps);
        assert_int_equal(s.steps, i + 1);
    }
    zb_ref_state_destroy(&s);
}

/* The square root of 12 as a norm, clipped to 1: fp32 arithmetic and fp64 differ in the last bit of what is
 * applied. */
static const struct clip {
    const char *name;
    zb_norm_method norm;
    zb_clip_method clip;
    double applied;
} clips[] = {
    { "as at stages 1 and 2", ZB_NORM_PARTITION_FP32, ZB_CLIP_COMBINED_FP32, 0.28867506980895996 },
    { "as at stage 3", ZB_NORM_PARTITION_FP64, ZB_CLIP_COMBINED, 0.2886750400066376 },
};

static void check_clip(void **state)
{
    const struct clip *c = *state;
    zb_plan plan = step_plan;
    plan.world_size = 2;
    plan.norm = c->norm;
    plan.clip = c->clip;
    plan.clip_norm = 1.0;
    plan.sub_group_numel = 1000;
    bare_model memory;
    const zb_model *model = bare(&memory, (const int[]){ 8, 4, -1 });
    zb_ref_state s;
    assert_int_equal(zb_ref_state_create(&plan, &rate_1, model, NULL, NULL, &s), ZB_OK);
    for (size_t i = 0; i < 12; i++) s.sums.reduced.data[i] = 1.0f;
    assert_int_equal(zb_ref_state_step(&s), ZB_OK);
    for (size_t i = 0; i < 12; i++) assert_true((double)s.master.data[i] == -c->applied);
    zb_ref_state_destroy(&s);
}

/* fp32: clip_norm / (norm + 1e-6), at most 1. */
static void check_coefficient(void **state)
{
    (void)state;
    const zb_plan plan = { .clip = ZB_CLIP_COEFFICIENT, .clip_norm = 1.0 },
                  off = { .clip = ZB_CLIP_COEFFICIENT };
    assert_true(zb_ref_plan_grad_scale(&plan, 0.5, 1.0) == 1.0f);
    assert_true(zb_ref_plan_grad_scale(&plan, 4.0, 1.0) == 1.0f / (4.0f + 1e-6f));
    assert_true(zb_ref_plan_grad_scale(&plan, (double)INFINITY, 1.0) == 0.0f);
    assert_true(isnan(zb_ref_plan_grad_scale(&plan, (double)NAN, 1.0)));
    assert_true(zb_ref_plan_grad_scale(&off, 4.0, 1.0) == 1.0f);
}

/*
 * The optimizer steps once with no gradient when it is made, at its own rate: Adam's decoupled decay of 0.5
 * at 0.1 takes 1 and 2 to 0.95 and 1.9, and its next step is its second.
 */
static void check_hidden_first_step(void **state)
{
    (void)state;
    zb_plan plan = step_plan;
    plan.hidden_first_step = 1;
    plan.tensors = ZB_TENSORS_GROUPS;
    plan.group_count = 1;
    plan.groups[0] = (zb_optimizer_config){ .kind = ZB_OPTIMIZER_ADAM,
                                            .lr = 0.1,
                                            .beta1 = 0.9,
                                            .beta2 = 0.999,
                                            .eps = 1e-8,
                                            .bias_correction = 1,
                                            .decay_mode = ZB_DECAY_DECOUPLED,
                                            .weight_decay = 0.5 };
    bare_model memory;
    const zb_model *model = bare(&memory, (const int[]){ 1, -1 });
    zb_ref_state s;
    assert_int_equal(zb_ref_state_create(&plan, &rate_1, model, NULL, NULL, &s), ZB_OK);
    s.master.data[0] = 1.0f;
    zb_ref_state_begin(&s);
    assert_true(s.master.data[0] == 0.95f);
    assert_int_equal(s.optimizer.step, 1);
    assert_int_equal(s.steps, 0);
    s.sums.reduced.data[0] = 1.0f;
    assert_int_equal(zb_ref_state_step(&s), ZB_OK);
    assert_int_equal(s.optimizer.step, 2);
    assert_int_equal(s.steps, 1);
    zb_ref_state_destroy(&s);
}

/* What the loss gradient begins as. fp16 has no 2^16; bf16 has no 2^8 + 1. */
static void check_seed(void **state)
{
    (void)state;
    zb_ref_state s = { .plan = step_plan };
    s.scaler.scale = 65536.0;
    assert_true(zb_ref_seed(&s) == 65536.0f);
    s.plan.seed_dtype = ZB_FP16;
    assert_true(isinf(zb_ref_seed(&s)));
    s.scaler.scale = 257.0;
    assert_true(zb_ref_seed(&s) == 257.0f);
    s.plan.seed_dtype = ZB_BF16;
    assert_true(zb_ref_seed(&s) == 256.0f);
    s.plan.loss_is_scaled = 0;
    assert_true(zb_ref_seed(&s) == 1.0f);
}

/*
 * Nothing is sent: an element's gradient is that of the rank whose optimizer has it. Two parameters of 3
 * elements and two ranks: the first rank has the first parameter and one element of the second.
 */
static void check_nothing_sent(void **state)
{
    (void)state;
    zb_plan plan = step_plan;
    plan.world_size = 2;
    plan.accumulation_steps = 2;
    plan.averaging.absent = 1;
    bare_model memory;
    const zb_model *model = bare(&memory, (const int[]){ 3, 3, -1 });
    for (int when = ZB_REDUCE_AT_BOUNDARY; when <= ZB_REDUCE_EVERY_MICRO_BATCH; when++) {
        plan.reduce_when = (zb_reduce_when)when;
        zb_ref_state s;
        zb_ref_tensors gradient;
        assert_int_equal(zb_ref_state_create(&plan, &rate_1, model, NULL, NULL, &s), ZB_OK);
        assert_int_equal(zb_ref_tensors_create(model, &gradient), ZB_OK);
        for (int64_t micro = 0; micro < 2; micro++)
            for (int rank = 0; rank < 2; rank++) {
                for (size_t i = 0; i < 6; i++) gradient.data[i] = (float)(10 * rank + 1 + micro);
                zb_ref_state_add(&s, micro, rank, &gradient);
            }
        assert_same_floats("gradient", (const float[]){ 3, 3, 3, 3, 23, 23 }, s.sums.reduced.data, 6);
        zb_ref_tensors_destroy(&gradient);
        zb_ref_state_destroy(&s);
    }
}

/* Each rank's tensor is the optimizer's own: what one rank does with its part reaches no other element. */
static void check_tensors_make_no_difference(void **state)
{
    (void)state;
    float want[19];
    for (int tensors = ZB_TENSORS_PARAMETERS; tensors <= ZB_TENSORS_SUB_GROUPS; tensors++) {
        zb_plan plan = step_plan;
        plan.world_size = 3;
        plan.tensors = (zb_tensors)tensors;
        plan.round_robin = 1;
        plan.sub_group_numel = 3;
        plan.group_count = 1;
        plan.groups[0] = (zb_optimizer_config){
            .kind = ZB_OPTIMIZER_ADAM, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .bias_correction = 1
        };
        bare_model memory;
        const zb_model *model = bare(&memory, (const int[]){ 3, 5, 4, 7, -1 });
        zb_ref_state s;
        assert_int_equal(zb_ref_state_create(&plan, &rate_1, model, NULL, NULL, &s), ZB_OK);
        for (uint32_t step = 0; step < 3; step++) {
            fill_random(s.sums.reduced.data, 19, step);
            assert_int_equal(zb_ref_state_step(&s), ZB_OK);
        }
        if (tensors == ZB_TENSORS_PARAMETERS) memcpy(want, s.master.data, sizeof want);
        assert_same_floats("weights", want, s.master.data, 19);
        zb_ref_state_destroy(&s);
    }
}

int main(void)
{
    const struct CMUnitTest single[] = {
        cmocka_unit_test(check_coefficient),
        cmocka_unit_test(check_hidden_first_step),
        cmocka_unit_test(check_seed),
        cmocka_unit_test(check_nothing_sent),
        cmocka_unit_test(check_tensors_make_no_difference),
    };
    struct CMUnitTest tests[COUNT(single) + COUNT(layouts) + COUNT(norms) + COUNT(steps) + COUNT(clips)];
    size_t count = COUNT(single);
    memcpy(tests, single, sizeof single);
    for (size_t i = 0; i < COUNT(layouts); i++)
        tests[count++] = (struct CMUnitTest){ layouts[i].name, check_layout, NULL, NULL,
                                              (void *)&layouts[i] };
    for (size_t i = 0; i < COUNT(norms); i++)
        tests[count++] = (struct CMUnitTest){ norms[i].name, check_norm, NULL, NULL, (void *)&norms[i] };
    for (size_t i = 0; i < COUNT(steps); i++)
        tests[count++] = (struct CMUnitTest){ steps[i].name, check_step, NULL, NULL, (void *)&steps[i] };
    for (size_t i = 0; i < COUNT(clips); i++)
        tests[count++] = (struct CMUnitTest){ clips[i].name, check_clip, NULL, NULL, (void *)&clips[i] };
    return cmocka_run_group_tests_name("ref_step", tests, NULL, NULL);
}
