/*
 * Every quirk, in both positions: what the plan of a config is with it and without it, alone on top of the
 * standard semantics and alone missing from deepspeed-0.19.6; where it is met; and what is said about it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include <zerobit/config.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static zb_config *parse(const char *members, const char *semantics)
{
    char text[1024];
    const char *adam = "\"optimizer\": {\"type\": \"Adam\"}, ";
    snprintf(text, sizeof text,
             "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": 2, %s\"zerobit\": "
             "{\"semantics\": \"%s\"}%s%s}",
             strstr(members, "\"optimizer\"") == NULL ? adam : "", semantics, members[0] != '\0' ? ", " : "",
             members);
    zb_config *config = NULL;
    if (zb_config_parse(text, strlen(text), "f.json", &config) != ZB_OK) fail_msg("%s", zb_error_message());
    return config;
}

/* The plan's line without the semantics and the batch sizes, and then the fields that it does not show. */
static void describe(const zb_config *config, int stage, zb_dtype dtype, int world, char *text,
                     size_t text_bytes)
{
    zb_plan plan;
    char line[ZB_PLAN_TEXT_BYTES];
    if (zb_plan_derive(config, stage, dtype, world, &plan) != ZB_OK) fail_msg("%s", zb_error_message());
    zb_plan_describe(&plan, line, sizeof line);
    static const char *const clips[] = { "combined", "combined-fp32", "coefficient", "reciprocal" };
    static const char *const tensors[] = { "parameters", "groups", "partitions", "sub-groups" };
    snprintf(text, text_bytes, "%s%s%s%s%s%s seed=%s clip=%s tensors=%s", strstr(line, "reduce="),
             plan.loss_is_scaled ? "" : " unscaled-loss", plan.unscale_by_next_scale ? " next-scale" : "",
             plan.report_norm_by_next_scale ? " norm-by-next-scale" : "",
             plan.hidden_first_step ? " hidden-step" : "", plan.reshuffle ? "" : " no-reshuffle",
             zb_dtype_name(plan.seed_dtype), clips[plan.clip], tensors[plan.tensors]);
}

#define FP32_ACCUM    "\"data_types\": {\"grad_accum_dtype\": \"fp32\"}"
#define NO_SCATTER    "\"zero_optimization\": {\"reduce_scatter\": false}"
#define PREDIVIDE_2   "\"gradient_predivide_factor\": 2"
#define NO_CONTIGUOUS "\"zero_optimization\": {\"contiguous_gradients\": false}"

#define ONE_CYCLE(more)                                                                                      \
    "\"scheduler\": {\"type\": \"OneCycle\", \"params\": {\"cycle_min_lr\": 0, \"cycle_max_lr\": 1, "        \
    "\"cycle_first_step_size\": 4" more "}}"

/*
 * One quirk on a config at a stage, precision and world size: a piece of the line that is there with the
 * quirk and not without it, and one that is there without it and not with it. NULL: there is none to look
 * for.
 */
static const struct position_case {
    zb_quirk quirk;
    const char *members;
    int stage;
    zb_dtype dtype;
    int world;
    const char *semantics; /* of everything else; NULL: both */
    const char *with, *without;
} position_cases[] = {
    { ZB_QUIRK_loss_unscaled_at_stage_0, "", 0, ZB_FP16, 2, NULL, " unscaled-loss", NULL },
    { ZB_QUIRK_loss_unscaled_at_stage_0, "\"fp16\": {\"loss_scale\": 8}", 0, ZB_FP16, 2, NULL,
      " unscaled-loss", NULL },
    { ZB_QUIRK_hidden_first_step, "", 0, ZB_FP16, 2, NULL, " hidden-step", NULL },
    { ZB_QUIRK_hidden_first_step, "", 0, ZB_BF16, 1, NULL, " hidden-step", NULL },
    { ZB_QUIRK_stage_0_loss_scaler, "", 0, ZB_FP16, 2, NULL, "scale=stage0:65536/1000/1 ",
      "scale=dynamic:65536/1000/2/1 " },
    { ZB_QUIRK_scale_updated_before_unscaling, "", 0, ZB_FP16, 2, NULL, " next-scale", NULL },
    { ZB_QUIRK_scale_updated_before_unscaling, "", 1, ZB_FP16, 2, NULL, " next-scale", NULL },
    { ZB_QUIRK_scale_updated_before_unscaling, "", 3, ZB_FP16, 1, NULL, " next-scale", NULL },
    { ZB_QUIRK_norm_by_updated_scale, "", 0, ZB_FP16, 2, NULL, " norm-by-next-scale", NULL },
    { ZB_QUIRK_norm_by_updated_scale, "", 3, ZB_FP16, 2, NULL, " norm-by-next-scale", NULL },
    { ZB_QUIRK_norm_per_stage, "", 0, ZB_FP32, 2, NULL, "norm=parameters-mean ", "norm=exact " },
    { ZB_QUIRK_norm_per_stage, "", 0, ZB_BF16, 2, NULL, "norm=flat ", "norm=exact " },
    { ZB_QUIRK_norm_per_stage, "", 1, ZB_FP32, 2, NULL, "norm=partition-fp32 ", "norm=exact " },
    { ZB_QUIRK_norm_per_stage, "", 2, ZB_FP16, 2, NULL, "norm=partition-fp32 ", "norm=exact " },
    { ZB_QUIRK_norm_per_stage, "", 3, ZB_FP32, 1, NULL, "norm=partition-fp64 ", "norm=exact " },
    { ZB_QUIRK_clip_per_stage, "", 0, ZB_FP32, 2, NULL, "clip=coefficient ", "clip=combined " },
    { ZB_QUIRK_clip_per_stage, "", 1, ZB_FP32, 2, NULL, "clip=combined-fp32 ", "clip=combined " },
    { ZB_QUIRK_clip_per_stage, "\"gradient_clipping\": 0", 2, ZB_FP16, 2, NULL, "clip=combined-fp32 ",
      "clip=combined " },
    { ZB_QUIRK_optimizer_sees_flat_tensors, "", 0, ZB_FP16, 2, NULL, "tensors=groups", "tensors=parameters" },
    { ZB_QUIRK_optimizer_sees_flat_tensors, "", 1, ZB_FP32, 2, NULL, "tensors=partitions",
      "tensors=parameters" },
    { ZB_QUIRK_optimizer_sees_flat_tensors, "", 3, ZB_FP32, 2, NULL, "tensors=sub-groups",
      "tensors=parameters" },
    { ZB_QUIRK_average_outside_sum, "", 0, ZB_FP32, 4, NULL, "average=sum *0.25 ", "average=inside " },
    { ZB_QUIRK_average_outside_sum, "", 1, ZB_FP16, 4, NULL, "average=/4 sum ", "average=inside " },
    { ZB_QUIRK_average_outside_sum, "", 3, ZB_BF16, 4, NULL, "average=/4 sum ", "average=inside " },
    { ZB_QUIRK_average_outside_sum, "\"prescale_gradients\": true", 0, ZB_FP32, 4, NULL, "average=*0.25 sum ",
      "average=/4 sum " },
    { ZB_QUIRK_average_outside_sum, NO_SCATTER ", " PREDIVIDE_2, 3, ZB_FP32, 4, NULL, "average=/2 /4 sum *2 ",
      "average=*0.5 sum *0.5 " },
    { ZB_QUIRK_average_outside_sum, "\"communication_data_type\": \"fp32\"", 2, ZB_BF16, 2, "standard",
      "grad=bf16>fp32>bf16 comm=fp32 ", "grad=fp32>bf16 comm=fp32 " },
    { ZB_QUIRK_stage_1_ignores_prescale, PREDIVIDE_2, 1, ZB_FP32, 4, "standard", "average=inside ",
      "average=*0.5 sum *0.5 " },
    { ZB_QUIRK_stage_1_ignores_prescale, PREDIVIDE_2, 1, ZB_FP32, 4, "deepspeed-0.19.6", "average=/4 sum ",
      "average=*0.5 sum *0.5 " },
    { ZB_QUIRK_stage_1_ignores_prescale, "\"prescale_gradients\": true", 1, ZB_FP16, 4, "standard",
      "average=inside ", "average=/4 sum " },
    { ZB_QUIRK_stage_1_wide_sum_unreduced, FP32_ACCUM, 1, ZB_FP16, 2, "standard", "average=none ",
      "average=inside " },
    { ZB_QUIRK_stage_1_wide_sum_unreduced, FP32_ACCUM, 1, ZB_FP16, 2, "deepspeed-0.19.6", "average=none ",
      "average=/2 sum " },
    { ZB_QUIRK_stage_2_ignores_accumulation_type, FP32_ACCUM, 2, ZB_BF16, 2, "standard",
      "grad=bf16>fp32>bf16 ", "grad=fp32 " },
    { ZB_QUIRK_stage_2_ignores_accumulation_type, FP32_ACCUM, 2, ZB_FP16, 2, "deepspeed-0.19.6", "grad=fp16 ",
      "grad=fp32>fp16>fp32 " },
    { ZB_QUIRK_gradients_sent_in_model_type, FP32_ACCUM, 3, ZB_FP16, 2, NULL, "grad=fp16>fp32 comm=fp16 ",
      "grad=fp32 comm=fp32 " },
    { ZB_QUIRK_gradients_sent_in_model_type, FP32_ACCUM, 1, ZB_BF16, 2, NULL, " comm=bf16 ", " comm=fp32 " },
    { ZB_QUIRK_stage_3_predivide_not_restored, NO_SCATTER ", " PREDIVIDE_2, 3, ZB_FP32, 2, "standard",
      "average=*0.5 sum *0.5 ", "average=*0.5 sum order" },
    { ZB_QUIRK_stage_3_predivide_not_restored, NO_SCATTER ", " PREDIVIDE_2, 3, ZB_FP32, 2, "deepspeed-0.19.6",
      "average=/2 /2 sum order", "average=/2 /2 sum *2 " },
    { ZB_QUIRK_bf16_optimizer, FP32_ACCUM, 1, ZB_BF16, 2, "standard", "overflow=stop", "overflow=skip" },
    { ZB_QUIRK_bf16_optimizer, FP32_ACCUM, 1, ZB_BF16, 2, "deepspeed-0.19.6",
      "average=sum *0.5 order=rank norm=parameters grad=fp32>bf16>fp32 comm=bf16 scale=none overflow=stop "
      "no-reshuffle seed=fp32 clip=reciprocal ",
      "average=none order=rank norm=partition-fp32 grad=fp32>bf16>fp32 comm=bf16 scale=none overflow=skip "
      "no-reshuffle seed=fp32 clip=combined-fp32 " },
    { ZB_QUIRK_stage_0_bf16_overflow_applied, "", 0, ZB_BF16, 2, NULL, "overflow=count", "overflow=skip" },
    { ZB_QUIRK_stage_0_bf16_overflow_applied, "\"bf16\": {\"check_grad_overflow\": false}", 0, ZB_BF16, 2,
      NULL, "overflow=count", "overflow=apply" },
    { ZB_QUIRK_stage_3_bf16_overflow_unseen, "", 3, ZB_BF16, 2, NULL, "overflow=apply", "overflow=skip" },
    { ZB_QUIRK_loss_seed_in_model_type, "", 2, ZB_FP16, 2, NULL, "seed=fp16 ", "seed=fp32 " },
    { ZB_QUIRK_loss_seed_in_model_type, "", 0, ZB_FP16, 2, "standard", "seed=fp16 ", "seed=fp32 " },
    { ZB_QUIRK_sampler_never_reshuffles, "", 2, ZB_FP32, 1, NULL, " no-reshuffle", NULL },
    { ZB_QUIRK_unreduced_without_contiguous_gradients, NO_CONTIGUOUS, 1, ZB_FP32, 2, NULL, "average=none ",
      NULL },
    { ZB_QUIRK_unreduced_without_contiguous_gradients, NO_CONTIGUOUS, 2, ZB_FP16, 2, "deepspeed-0.19.6",
      "average=none ", "average=/2 sum " },
};

static void check_position(size_t row, const char *semantics)
{
    const struct position_case *c = &position_cases[row];
    zb_config *config = parse(c->members, semantics);
    char with[1024], without[1024];
    *zb_quirk_switch(&config->quirks, c->quirk) = 1;
    describe(config, c->stage, c->dtype, c->world, with, sizeof with);
    *zb_quirk_switch(&config->quirks, c->quirk) = 0;
    describe(config, c->stage, c->dtype, c->world, without, sizeof without);
    if ((c->with != NULL && (strstr(with, c->with) == NULL || strstr(without, c->with) != NULL)) ||
        (c->without != NULL && (strstr(without, c->without) == NULL || strstr(with, c->without) != NULL)))
        fail_msg("row %zu, %s on top of %s:\n  with:    %s\n  without: %s", row, zb_quirk_name(c->quirk),
                 semantics, with, without);
    zb_config_destroy(config);
}

static void both_positions(void **state)
{
    (void)state;
    static const char *const semantics[] = { "standard", "deepspeed-0.19.6" };
    for (size_t i = 0; i < COUNT(position_cases); i++)
        for (size_t s = 0; s < COUNT(semantics); s++)
            if (position_cases[i].semantics == NULL || strcmp(position_cases[i].semantics, semantics[s]) == 0)
                check_position(i, semantics[s]);
}

/* The quirks that DeepSpeed shows at stages 0, 1, 2, 3, as a string of stage numbers; those not listed
 * nowhere. */
static const struct met_case {
    const char *members;
    zb_dtype dtype;
    int world;
    struct {
        zb_quirk quirk;
        const char *stages;
    } met[ZB_QUIRK_COUNT];
} met_cases[] = {
    { "",
      ZB_FP32,
      2,
      { { ZB_QUIRK_norm_per_stage, "0123" },
        { ZB_QUIRK_clip_per_stage, "012" },
        { ZB_QUIRK_average_outside_sum, "0123" },
        { ZB_QUIRK_all_reduce_for_reduce_scatter, "12" },
        { ZB_QUIRK_sampler_never_reshuffles, "0123" },
        { ZB_QUIRK_first_iteration_recorded, "3" } } },
    { "",
      ZB_FP16,
      2,
      { { ZB_QUIRK_loss_unscaled_at_stage_0, "0" },
        { ZB_QUIRK_hidden_first_step, "0" },
        { ZB_QUIRK_stage_0_loss_scaler, "0" },
        { ZB_QUIRK_scale_updated_before_unscaling, "0123" },
        { ZB_QUIRK_norm_by_updated_scale, "03" },
        { ZB_QUIRK_norm_per_stage, "0123" },
        { ZB_QUIRK_clip_per_stage, "12" },
        { ZB_QUIRK_average_outside_sum, "0123" },
        { ZB_QUIRK_all_reduce_for_reduce_scatter, "12" },
        { ZB_QUIRK_overflow_by_flag, "123" },
        { ZB_QUIRK_loss_seed_in_model_type, "123" },
        { ZB_QUIRK_sampler_never_reshuffles, "0123" },
        { ZB_QUIRK_first_iteration_recorded, "3" } } },
    { "",
      ZB_BF16,
      3,
      { { ZB_QUIRK_hidden_first_step, "0" },
        { ZB_QUIRK_norm_per_stage, "0123" },
        { ZB_QUIRK_clip_per_stage, "12" },
        { ZB_QUIRK_average_outside_sum, "0123" },
        { ZB_QUIRK_all_reduce_for_reduce_scatter, "12" },
        { ZB_QUIRK_overflow_by_flag, "12" },
        { ZB_QUIRK_stage_0_bf16_overflow_applied, "0" },
        { ZB_QUIRK_stage_3_bf16_overflow_unseen, "3" },
        { ZB_QUIRK_sampler_never_reshuffles, "0123" },
        { ZB_QUIRK_first_iteration_recorded, "3" } } },
    /* A scale that does not change, no clipping, one rank. */
    { "\"fp16\": {\"loss_scale\": 8}, \"gradient_clipping\": 0",
      ZB_FP16,
      1,
      { { ZB_QUIRK_loss_unscaled_at_stage_0, "0" },
        { ZB_QUIRK_hidden_first_step, "0" },
        { ZB_QUIRK_norm_per_stage, "0123" },
        { ZB_QUIRK_clip_per_stage, "12" },
        { ZB_QUIRK_loss_seed_in_model_type, "123" },
        { ZB_QUIRK_sampler_never_reshuffles, "0123" } } },
    { "\"bf16\": {\"check_grad_overflow\": false}, \"gradient_clipping\": 0, \"gradient_allreduce_op\": "
      "\"sum\"",
      ZB_BF16,
      2,
      { { ZB_QUIRK_hidden_first_step, "0" },
        { ZB_QUIRK_norm_per_stage, "012" },
        { ZB_QUIRK_all_reduce_for_reduce_scatter, "12" },
        { ZB_QUIRK_stage_0_bf16_overflow_applied, "0" },
        { ZB_QUIRK_sampler_never_reshuffles, "012" } } },
    { FP32_ACCUM,
      ZB_FP16,
      2,
      { { ZB_QUIRK_scale_updated_before_unscaling, "123" },
        { ZB_QUIRK_norm_by_updated_scale, "3" },
        { ZB_QUIRK_norm_per_stage, "123" },
        { ZB_QUIRK_clip_per_stage, "12" },
        { ZB_QUIRK_average_outside_sum, "23" },
        { ZB_QUIRK_all_reduce_for_reduce_scatter, "12" },
        { ZB_QUIRK_overflow_by_flag, "123" },
        { ZB_QUIRK_stage_1_wide_sum_unreduced, "1" },
        { ZB_QUIRK_stage_2_ignores_accumulation_type, "2" },
        { ZB_QUIRK_gradients_sent_in_model_type, "123" },
        { ZB_QUIRK_loss_seed_in_model_type, "123" },
        { ZB_QUIRK_sampler_never_reshuffles, "123" },
        { ZB_QUIRK_first_iteration_recorded, "3" } } },
    { FP32_ACCUM,
      ZB_BF16,
      2,
      { { ZB_QUIRK_norm_per_stage, "123" },
        { ZB_QUIRK_clip_per_stage, "12" },
        { ZB_QUIRK_average_outside_sum, "123" },
        { ZB_QUIRK_all_reduce_for_reduce_scatter, "2" },
        { ZB_QUIRK_overflow_by_flag, "2" },
        { ZB_QUIRK_stage_2_ignores_accumulation_type, "2" },
        { ZB_QUIRK_gradients_sent_in_model_type, "123" },
        { ZB_QUIRK_bf16_optimizer, "1" },
        { ZB_QUIRK_stage_3_bf16_overflow_unseen, "3" },
        { ZB_QUIRK_sampler_never_reshuffles, "123" },
        { ZB_QUIRK_first_iteration_recorded, "3" } } },
    { NO_SCATTER ", " PREDIVIDE_2 ", \"gradient_clipping\": 0",
      ZB_FP32,
      2,
      { { ZB_QUIRK_norm_per_stage, "0123" },
        { ZB_QUIRK_average_outside_sum, "3" },
        { ZB_QUIRK_stage_3_predivide_not_restored, "3" },
        { ZB_QUIRK_sampler_never_reshuffles, "0123" },
        { ZB_QUIRK_first_iteration_recorded, "3" } } },
    { ONE_CYCLE(", \"cycle_momentum\": false"),
      ZB_FP32,
      1,
      { { ZB_QUIRK_norm_per_stage, "0123" },
        { ZB_QUIRK_clip_per_stage, "012" },
        { ZB_QUIRK_sampler_never_reshuffles, "0123" } } },
    { ONE_CYCLE(""),
      ZB_FP32,
      1,
      { { ZB_QUIRK_norm_per_stage, "0123" },
        { ZB_QUIRK_clip_per_stage, "012" },
        { ZB_QUIRK_one_cycle_replaces_betas, "0123" },
        { ZB_QUIRK_sampler_never_reshuffles, "0123" } } },
    { "\"optimizer\": {\"type\": \"Lamb\"}, \"zero_allow_untested_optimizer\": true, \"gradient_clipping\": "
      "0",
      ZB_FP32,
      1,
      { { ZB_QUIRK_norm_per_stage, "0123" },
        { ZB_QUIRK_optimizer_sees_flat_tensors, "123" },
        { ZB_QUIRK_sampler_never_reshuffles, "0123" } } },
    { NO_CONTIGUOUS ", \"gradient_clipping\": 0",
      ZB_FP32,
      2,
      { { ZB_QUIRK_norm_per_stage, "0123" },
        { ZB_QUIRK_average_outside_sum, "0123" },
        { ZB_QUIRK_all_reduce_for_reduce_scatter, "12" },
        { ZB_QUIRK_unreduced_without_contiguous_gradients, "12" },
        { ZB_QUIRK_sampler_never_reshuffles, "0123" },
        { ZB_QUIRK_first_iteration_recorded, "3" } } },
};

static const char *stages_met(const struct met_case *c, zb_quirk quirk)
{
    for (size_t i = 0; i < COUNT(c->met) && c->met[i].stages != NULL; i++)
        if (c->met[i].quirk == quirk) return c->met[i].stages;
    return "";
}

/* Whatever semantics the config asks for. Stages that DeepSpeed refuses are left out. */
static void where_each_is_met(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(met_cases); i++)
        for (int s = 0; s < 2; s++) {
            const struct met_case *c = &met_cases[i];
            zb_config *config = parse(c->members, s == 0 ? "standard" : "deepspeed-0.19.6");
            for (int q = 0; q < ZB_QUIRK_COUNT; q++) {
                char met[ZB_STAGE_COUNT + 1] = "";
                for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
                    int applies = -1;
                    zb_status status = zb_quirk_applies((zb_quirk)q, config, stage, c->dtype, c->world,
                                                        &applies);
                    if (status == ZB_INVALID_CONFIG) assert_int_equal(applies, -1);
                    if (status == ZB_OK && applies) snprintf(met + strlen(met), 2, "%d", stage);
                }
                if (strcmp(met, stages_met(c, (zb_quirk)q)) != 0)
                    fail_msg("row %zu: %s is met at stages \"%s\", want \"%s\"", i,
                             zb_quirk_name((zb_quirk)q), met, stages_met(c, (zb_quirk)q));
            }
            zb_config_destroy(config);
        }
}

/* The schedule is no part of the plan. */
static void one_cycle_betas(void **state)
{
    (void)state;
    static const struct {
        const char *semantics, *schedule;
        double beta1[3], beta2;
    } cases[] = {
        { "standard", ONE_CYCLE(""), { 0.9, 0.875, 0.8500000000000001 }, 0.999 },
        { "deepspeed-0.19.6", ONE_CYCLE(""), { 0.8, 0.875, 0.8500000000000001 }, 0.99 },
        { "standard",
          ONE_CYCLE(", \"cycle_max_mom\": 0.5, \"cycle_min_mom\": 0.25"),
          { 0.5, 0.4375, 0.375 },
          0.999 },
        { "deepspeed-0.19.6",
          ONE_CYCLE(", \"cycle_max_mom\": 0.5, \"cycle_min_mom\": 0.25"),
          { 0.25, 0.4375, 0.375 },
          0.99 },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        zb_config *config = parse(cases[i].schedule, cases[i].semantics);
        zb_schedule schedule;
        assert_int_equal(zb_schedule_init(&schedule, &config->groups[0].schedule), ZB_OK);
        for (size_t k = 0; k < COUNT(cases[i].beta1); k++, zb_schedule_step(&schedule)) {
            assert_true(zb_schedule_beta1(&schedule) == cases[i].beta1[k]);
            assert_true(zb_schedule_beta2(&schedule) == cases[i].beta2);
        }
        int applies = -1;
        assert_int_equal(zb_quirk_applies(ZB_QUIRK_one_cycle_replaces_betas, config, 0, ZB_FP32, 1, &applies),
                         ZB_OK);
        assert_int_equal(applies, 1);
        zb_config_destroy(config);
    }
}

static void every_position_is_tested(void **state)
{
    (void)state;
    for (int q = 0; q < ZB_QUIRK_COUNT; q++) {
        int sends_only = q == ZB_QUIRK_all_reduce_for_reduce_scatter || q == ZB_QUIRK_overflow_by_flag ||
                         q == ZB_QUIRK_first_iteration_recorded;
        if (q == ZB_QUIRK_one_cycle_replaces_betas) continue; /* above */
        int rows = 0;
        for (size_t i = 0; i < COUNT(position_cases); i++) rows += position_cases[i].quirk == (zb_quirk)q;
        if (!sends_only && rows == 0) fail_msg("%s has no row", zb_quirk_name((zb_quirk)q));
    }
}

/* What DeepSpeed refuses, and what the standard semantics would not. */
static void refused_configs(void **state)
{
    (void)state;
    zb_config *config = parse(FP32_ACCUM, "standard");
    int applies = -1;
    zb_plan plan;
    assert_int_equal(zb_plan_derive(config, 0, ZB_FP16, 2, &plan), ZB_OK);
    assert_int_equal(zb_quirk_applies(ZB_QUIRK_norm_per_stage, config, 0, ZB_FP16, 2, &applies),
                     ZB_INVALID_CONFIG);
    assert_int_equal(applies, -1);
    assert_non_null(strstr(zb_error_message(), "grad_accum_dtype: is fp32, want fp16 at stage 0"));
    zb_config_destroy(config);
}

static void every_one_is_described(void **state)
{
    (void)state;
    for (int q = 0; q < ZB_QUIRK_COUNT; q++) {
        const zb_quirk_description *d = zb_quirk_describe((zb_quirk)q);
        assert_non_null(d->does);
        assert_non_null(d->effect);
        assert_non_null(d->when);
        assert_non_null(d->source);
        assert_int_equal(d->does[strlen(d->does) - 1], '.');
        assert_int_equal(d->effect[strlen(d->effect) - 1], '.');
        assert_int_equal(strncmp(d->source, "runtime/", 8), 0);
        for (int other = 0; other < q; other++)
            assert_string_not_equal(zb_quirk_describe((zb_quirk)other)->does, d->does);
    }
    assert_string_equal(zb_quirk_name(ZB_QUIRK_COUNT), "?");
    assert_string_equal(zb_quirk_name((zb_quirk)-1), "?");
    assert_string_equal(zb_semantics_name((zb_semantics)7), "?");
}

/* docs/semantics.md has a heading for each, and for nothing that is none. */
static void the_docs_have_them_all(void **state)
{
    (void)state;
    char line[1024];
    int headings = 0, documented = 0;
    FILE *file = fopen(ZB_SOURCE_DIR "/docs/semantics.md", "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "### ", 4) != 0) continue;
        headings++;
        line[strcspn(line, "\n")] = '\0';
        for (int q = 0; q < ZB_QUIRK_COUNT; q++)
            documented += strcmp(line + 4, zb_quirk_name((zb_quirk)q)) == 0;
    }
    fclose(file);
    assert_int_equal(headings, ZB_QUIRK_COUNT);
    assert_int_equal(documented, ZB_QUIRK_COUNT);
}

/* Off everywhere, and on everywhere but for the one that only a CPU has. */
static void the_two_presets(void **state)
{
    (void)state;
    zb_quirks standard = zb_quirks_of(ZB_SEMANTICS_STANDARD);
    zb_quirks deepspeed = zb_quirks_of(ZB_SEMANTICS_DEEPSPEED_0_19_6);
    for (int q = 0; q < ZB_QUIRK_COUNT; q++) {
        assert_int_equal(*zb_quirk_switch(&standard, (zb_quirk)q), 0);
        assert_int_equal(*zb_quirk_switch(&deepspeed, (zb_quirk)q),
                         q != ZB_QUIRK_unreduced_without_contiguous_gradients);
    }
    assert_null(zb_quirk_switch(&standard, ZB_QUIRK_COUNT));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_positions),         cmocka_unit_test(where_each_is_met),
        cmocka_unit_test(one_cycle_betas),        cmocka_unit_test(every_position_is_tested),
        cmocka_unit_test(refused_configs),        cmocka_unit_test(every_one_is_described),
        cmocka_unit_test(the_docs_have_them_all), cmocka_unit_test(the_two_presets),
    };
    return cmocka_run_group_tests_name("quirks", tests, NULL, NULL);
}
