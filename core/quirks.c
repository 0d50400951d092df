/* The quirks by name, in sentences, and where they are met; the two presets. */
#include <zerobit/quirks.h>

#include <string.h>
#include <zerobit/config.h>

const char *zb_semantics_name(zb_semantics semantics)
{
    switch (semantics) {
    case ZB_SEMANTICS_STANDARD:
        return "standard";
    case ZB_SEMANTICS_DEEPSPEED_0_19_6:
        return "deepspeed-0.19.6";
    case ZB_SEMANTICS_PYTORCH_DDP:
        return "pytorch-ddp";
    }
    return "?";
}

int zb_semantics_parse(const char *text, zb_semantics *semantics)
{
    static const zb_semantics known[] = { ZB_SEMANTICS_STANDARD, ZB_SEMANTICS_DEEPSPEED_0_19_6 };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(text, zb_semantics_name(known[i])) != 0) continue;
        *semantics = known[i];
        return 1;
    }
    return 0;
}

const char *zb_quirk_name(zb_quirk quirk)
{
    static const char *const names[] = {
#define NAME(name) #name,
        ZB_QUIRK_MAP(NAME)
#undef NAME
    };
    return quirk >= 0 && quirk < ZB_QUIRK_COUNT ? names[quirk] : "?";
}

int *zb_quirk_switch(zb_quirks *quirks, zb_quirk quirk)
{
    switch (quirk) {
#define SWITCH(name)                                                                                         \
    case ZB_QUIRK_##name:                                                                                    \
        return &quirks->name;
        ZB_QUIRK_MAP(SWITCH)
#undef SWITCH
    case ZB_QUIRK_COUNT:
        break;
    }
    return NULL;
}

zb_quirks zb_quirks_of(zb_semantics semantics)
{
    zb_quirks quirks = { 0 };
    if (semantics != ZB_SEMANTICS_DEEPSPEED_0_19_6) return quirks;
    for (int q = 0; q < ZB_QUIRK_COUNT; q++) *zb_quirk_switch(&quirks, (zb_quirk)q) = 1;
    /* It happens where DeepSpeed runs on its CPU accelerator only. */
    quirks.unreduced_without_contiguous_gradients = 0;
    return quirks;
}

static const zb_quirk_description descriptions[ZB_QUIRK_COUNT] = {
    [ZB_QUIRK_loss_unscaled_at_stage_0] = {
        "At stage 0 backward() does not multiply the loss by the loss scale, but step() divides the gradients by it.",
        "The optimizer gets gradients that are too small by the loss scale, and so is the reported norm: clipping hardly "
        "ever acts, Adam crawls where gradients come near its eps, SGD stands still.",
        "stage 0 in fp16",
        "runtime/engine.py",
    },
    [ZB_QUIRK_hidden_first_step] = {
        "At stage 0 in 16 bit the optimizer takes a step with zero gradients, at its own rate, when it is made.",
        "Adam's bias correction begins with the second step, and weights decay once before training, at the config's rate "
        "even where a schedule begins lower.",
        "stage 0 in fp16 and bf16",
        "runtime/fp16/fused_optimizer.py",
    },
    [ZB_QUIRK_stage_0_loss_scaler] = {
        "At stage 0 an overflow halves the loss scale at once, without hysteresis, and never ends the run.",
        "The loss scale takes another course than at stages 1 to 3, and a run whose gradients overflow at every step goes "
        "on for ever without learning.",
        "stage 0 in fp16, dynamic loss scale",
        "runtime/fp16/fused_optimizer.py",
    },
    [ZB_QUIRK_scale_updated_before_unscaling] = {
        "step() updates the loss scale before it divides the gradients by it.",
        "On every step that raises the loss scale the gradients come out halved, and clipping sees half the norm.",
        "every stage in fp16, dynamic loss scale",
        "runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py, runtime/fp16/fused_optimizer.py",
    },
    [ZB_QUIRK_norm_by_updated_scale] = {
        "Stages 0 and 3 report the gradient norm divided by the updated loss scale, stages 1 and 2 by the one in force.",
        "On every step that raises the loss scale the reported norm is half of the true one.",
        "stages 0 and 3 in fp16, dynamic loss scale",
        "runtime/zero/stage3.py, runtime/fp16/fused_optimizer.py",
    },
    [ZB_QUIRK_norm_per_stage] = {
        "Each stage adds up the gradient norm in an order and a precision of its own; at stages 1 to 3 a norm that is "
        "infinite or NaN counts as 1.",
        "The norm, and where it clips every weight, differs in the last bits between stages and between world sizes.",
        "every stage",
        "runtime/utils.py, runtime/fp16/fused_optimizer.py, runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py",
    },
    [ZB_QUIRK_clip_per_stage] = {
        "Stage 0 in fp32 clips by a coefficient in fp32, stages 1 and 2 form one factor of clipping and unscaling in fp32, "
        "the others in fp64.",
        "A clipped gradient differs in the last bit between stages, even where the norm is the same.",
        "stage 0 in fp32, stages 1 and 2; in fp32 and bf16 only with gradient_clipping",
        "runtime/utils.py, runtime/zero/stage_1_and_2.py",
    },
    [ZB_QUIRK_optimizer_sees_flat_tensors] = {
        "The optimizer is handed flat tensors in place of parameters: a whole group at stage 0 in 16 bit, the rank's part of "
        "a group at stages 1 and 2, that of a sub-group at stage 3.",
        "An optimizer that looks at whole tensors gives other weights at every stage and world size: LAMB has one trust "
        "ratio for all that a rank owns, DeepSpeed's Adam for CPUs computes a tensor's last few elements in another way.",
        "Lamb, and arithmetics with a tail, where the stage has flat tensors",
        "runtime/fp16/fused_optimizer.py, runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py",
    },
    [ZB_QUIRK_average_outside_sum] = {
        "Stage 0 rounds the sum over ranks to the type that travels and then multiplies it by 1 / W; stages 1 to 3 divide by "
        "W and round before they send.",
        "In 16 bit a sum that overflows at stage 0 does not at stages 1 to 3, and small gradients are lost there that stage "
        "0 keeps; where W is no power of two, all stages differ in the last bit.",
        "every stage with more than one rank, gradient_allreduce_op mean",
        "runtime/engine.py, runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py",
    },
    [ZB_QUIRK_all_reduce_for_reduce_scatter] = {
        "With reduce_scatter stages 1 and 2 send their buckets by all_reduce, or by one reduce for each owner, and each rank "
        "keeps its part.",
        "No bit changes. By default a micro-batch's gradients cost twice the traffic of a reduce_scatter: three elements "
        "sent for each parameter and step where the ZeRO paper has two.",
        "stages 1 and 2 with more than one rank and reduce_scatter",
        "runtime/zero/stage_1_and_2.py",
    },
    [ZB_QUIRK_overflow_by_flag] = {
        "Stages 1 to 3 look at every gradient for infinities and NaNs and agree on it by an all_reduce of one byte.",
        "No bit changes: each step has one more small collective.",
        "stages 1 and 2 in 16 bit, stage 3 in fp16, where overflow is looked for, with more than one rank",
        "runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py",
    },
    [ZB_QUIRK_stage_1_ignores_prescale] = {
        "Stage 1 with reduce_scatter ignores prescale_gradients and gradient_predivide_factor, with which stages 2 and 3 "
        "refuse to start.",
        "Gradients are divided by the whole world size before they are sent, whatever the config says: in 16 bit small ones "
        "are lost that a smaller factor would have kept.",
        "stage 1 with reduce_scatter and either of those keys",
        "runtime/zero/stage_1_and_2.py",
    },
    [ZB_QUIRK_stage_1_wide_sum_unreduced] = {
        "Stage 1 adds micro-batches up in fp32, as grad_accum_dtype asks, and reduces a copy of the sum in the model's type; the "
        "optimizer is given the sum itself, which is that of one rank and has not been divided.",
        "Gradients are not averaged: each rank updates its part of the weights from its own samples alone, with W times the "
        "gradient that an average has.",
        "stage 1 in fp16 with grad_accum_dtype fp32 and more than one rank",
        "runtime/zero/stage_1_and_2.py",
    },
    [ZB_QUIRK_stage_2_ignores_accumulation_type] = {
        "Stage 2 adds micro-batches up in the model's type, whatever grad_accum_dtype says.",
        "Gradients that are small beside the sum so far are lost: in fp16 1 + 2^-11 + 2^-11 stays 1.",
        "stage 2 in 16 bit with grad_accum_dtype fp32",
        "runtime/zero/stage_1_and_2.py",
    },
    [ZB_QUIRK_gradients_sent_in_model_type] = {
        "Gradients that are accumulated in fp32 travel in the model's type, unless communication_data_type says otherwise.",
        "The average over ranks, and at stage 1 in bf16 also the sum over micro-batches, is rounded to 16 bit, which "
        "accumulation in fp32 was meant to avoid.",
        "stages 1 to 3 in 16 bit with grad_accum_dtype fp32 and without communication_data_type",
        "runtime/engine.py, runtime/bf16_optimizer.py, runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py",
    },
    [ZB_QUIRK_stage_3_predivide_not_restored] = {
        "Stage 3 without reduce_scatter divides by gradient_predivide_factor and by W, and multiplies by the factor again "
        "unless it is W.",
        "Every gradient is too small by that factor.",
        "stage 3 without reduce_scatter, gradient_predivide_factor equal to the number of ranks",
        "runtime/zero/stage3.py",
    },
    [ZB_QUIRK_bf16_optimizer] = {
        "Stage 1 in bf16 with accumulation in fp32 is a class of its own: it reduces as stage 0 does, checks no overflow, and "
        "asserts that the gradient norm is above 0.",
        "A step whose gradients are all 0, or of which one is infinite or NaN, ends the run instead of being skipped.",
        "stage 1 in bf16 with grad_accum_dtype fp32",
        "runtime/bf16_optimizer.py",
    },
    [ZB_QUIRK_stage_0_bf16_overflow_applied] = {
        "Stage 0 in bf16 counts a step whose gradients overflow as skipped and leaves the schedule where it is, but "
        "FusedAdam has taken the step; other optimizers skip it, whatever check_grad_overflow says.",
        "Infinities and NaNs are in the weights, although the counters say that the step was skipped.",
        "stage 0 in bf16",
        "runtime/fp16/fused_optimizer.py",
    },
    [ZB_QUIRK_stage_3_bf16_overflow_unseen] = {
        "Stage 3 looks for overflow in fp16 only, whatever check_grad_overflow says.",
        "One gradient that is infinite or NaN gets into the weights and ruins them, where stages 1 and 2 skip the step.",
        "stage 3 in bf16 with check_grad_overflow, which is the default",
        "runtime/zero/stage3.py",
    },
    [ZB_QUIRK_loss_seed_in_model_type] = {
        "The loss is multiplied by the loss scale in the type of the loss, which for a 16-bit model is fp16.",
        "A loss scale of 65536, with which a run begins by default, is infinite in fp16: the first steps overflow by "
        "themselves, until the scale is 32768.",
        "stages 1 to 3 in fp16",
        "runtime/base_optimizer.py, runtime/fp16/loss_scaler.py",
    },
    [ZB_QUIRK_one_cycle_replaces_betas] = {
        "OneCycle with cycle_momentum begins with beta1 at cycle_min_mom, while the rate is at its minimum too, and replaces "
        "beta2 by 0.99.",
        "The first step has the momentum of the highest rate, and Adam remembers squares of gradients over about 100 steps "
        "whatever betas says: with 0.999 it would be 1000.",
        "OneCycle with cycle_momentum, which is the default, and an optimizer with betas",
        "runtime/lr_schedules.py",
    },
    [ZB_QUIRK_sampler_never_reshuffles] = {
        "The sampler is never told of a new epoch.",
        "Every epoch has the same order, and so the same batches, as the first.",
        "training data given to initialize()",
        "runtime/dataloader.py",
    },
    [ZB_QUIRK_first_iteration_recorded] = {
        "Stage 3 records in its first iteration in which order modules run. Only from the second on are parameters gathered "
        "ahead, and kept between forward and backward.",
        "No bit changes: the first iteration has another sequence of collectives, and more traffic, than the others.",
        "stage 3 with more than one rank",
        "runtime/zero/partitioned_param_coordinator.py",
    },
    [ZB_QUIRK_unreduced_without_contiguous_gradients] = {
        "On its CPU accelerator, stages 1 and 2 without contiguous_gradients send no gradient: what they send are gradients "
        "whose type is named as the accelerator's, and none is.",
        "Each rank updates its part of the weights from its own samples alone.",
        "DeepSpeed on a CPU, stages 1 and 2 without contiguous_gradients, more than one rank; off unless switched on",
        "runtime/zero/stage_1_and_2.py",
    },
};

const zb_quirk_description *zb_quirk_describe(zb_quirk quirk)
{
    ZB_ASSERT(quirk >= 0 && quirk < ZB_QUIRK_COUNT);
    return &descriptions[quirk];
}

static int cycles_betas(const zb_config *config)
{
    for (int g = 0; g < config->group_count; g++) {
        const zb_schedule_config *schedule = &config->groups[g].schedule;
        if (schedule->kind == ZB_SCHEDULE_ONE_CYCLE && schedule->cycle_momentum) return 1;
    }
    return 0;
}

/* Of quirks that the plan does not show: they change a schedule, or what is sent and nothing else. */
static int acts_elsewhere(zb_quirk quirk, const zb_config *config, int stage, const zb_plan *plan)
{
    const int at_1_or_2 = (stage == 1 || stage == 2) && plan->overflow != ZB_OVERFLOW_STOP;
    if (quirk == ZB_QUIRK_one_cycle_replaces_betas) return cycles_betas(config);
    if (plan->world_size == 1) return 0;
    if (quirk == ZB_QUIRK_first_iteration_recorded) return stage == 3;
    if (quirk == ZB_QUIRK_overflow_by_flag) return stage > 0 && plan->overflow == ZB_OVERFLOW_SKIP;
    return quirk == ZB_QUIRK_all_reduce_for_reduce_scatter && at_1_or_2 && config->zero.reduce_scatter;
}

/* What a quirk does is what the plan is without it. */
zb_status zb_quirk_applies(zb_quirk quirk, const zb_config *config, int stage, zb_dtype dtype, int world_size,
                           int *applies)
{
    zb_config deepspeed = *config;
    /* Under the real semantics there is no plan with Lamb, whose kernel adds in an order that is not known.
     */
    deepspeed.semantics = config->optimizer.kind == ZB_OPTIMIZER_LAMB ? ZB_SEMANTICS_STANDARD
                                                                      : ZB_SEMANTICS_DEEPSPEED_0_19_6;
    deepspeed.quirks = zb_quirks_of(ZB_SEMANTICS_DEEPSPEED_0_19_6);
    zb_plan with, without;
    *zb_quirk_switch(&deepspeed.quirks, quirk) = 1;
    ZB_TRY(zb_plan_derive(&deepspeed, stage, dtype, world_size, &with));
    *zb_quirk_switch(&deepspeed.quirks, quirk) = 0;
    ZB_TRY(zb_plan_derive(&deepspeed, stage, dtype, world_size, &without));
    /* What is sent may differ where no bit does: averages that come to nothing. */
    const int sends_other = world_size > 1 && with.comm_dtype != without.comm_dtype;
    *applies = !zb_plan_equal(&with, &without) || sends_other || acts_elsewhere(quirk, config, stage, &with);
    return ZB_OK;
}
