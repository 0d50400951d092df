/* Which configs are accepted, what they mean, and what exactly is said about those that are not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zerobit/config.h>
#include <zerobit/memory.h>
#include "tests/cjson_memory.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define CIFAR10_PATH ZB_SOURCE_DIR "/examples/configs/cifar10.json"

static zb_config *parse(const char *text)
{
    zb_config *config = NULL;
    if (zb_config_parse(text, strlen(text), "f.json", &config) != ZB_OK)
        fail_msg("%s\n%s", text, zb_error_message());
    return config;
}

static const char *find_note(const zb_config *config, const char *part)
{
    for (size_t i = 0; i < config->note_count; i++)
        if (strstr(config->notes[i], part) != NULL) return config->notes[i];
    return NULL;
}

/* ---- semantics and quirks ---------------------------------------------------------------------------- */

/* Single switches lie over the preset, whichever it is and wherever it comes from. */
static void quirks_over_semantics(void **state)
{
    (void)state;
    zb_config *config = parse(
        "{\"zerobit\": {\"quirks\": {\"norm_per_stage\": true, \"clip_per_stage\": false}}}");
    zb_quirks want = zb_quirks_of(ZB_SEMANTICS_STANDARD);
    want.norm_per_stage = 1;
    assert_memory_equal(&config->quirks, &want, sizeof want);
    zb_config_destroy(config);

    config = parse(
        "{\"zerobit\": {\"quirks\": {\"norm_per_stage\": false}, \"semantics\": \"deepspeed-0.19.6\"}}");
    want = zb_quirks_of(ZB_SEMANTICS_DEEPSPEED_0_19_6);
    want.norm_per_stage = 0;
    assert_memory_equal(&config->quirks, &want, sizeof want);
    zb_config_destroy(config);

    const char *path = "quirks_over_semantics.json";
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("{\"zerobit\": {\"semantics\": \"standard\", \"quirks\": {\"norm_per_stage\": false}}}", file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(zb_config_load_as(path, ZB_SEMANTICS_DEEPSPEED_0_19_6, &config), ZB_OK);
    assert_int_equal(config->semantics, ZB_SEMANTICS_DEEPSPEED_0_19_6);
    assert_memory_equal(&config->quirks, &want, sizeof want);
    zb_config_destroy(config);
    assert_int_equal(zb_config_load(path, &config), ZB_OK);
    assert_int_equal(config->semantics, ZB_SEMANTICS_STANDARD);
    zb_config_destroy(config);
    remove(path);
}

/* ---- refused ----------------------------------------------------------------------------------------- */

#define ZERO(members)      "{\"zero_optimization\": {" members "}}"
#define FP16(members)      "{\"fp16\": {" members "}}"
#define ADAM(members)      "{\"optimizer\": {\"type\": \"Adam\", \"params\": {" members "}}}"
#define OPTIMIZER(name)    "{\"optimizer\": {\"type\": \"" name "\"}}"
#define SCHEDULER(members) "{\"scheduler\": {" members "}}"
#define WARMUP(members)                                                                                      \
    "{\"scheduler\": {\"type\": \"WarmupLR\", \"params\": {\"warmup_max_lr\": 1, " members "}}}"

#define OF_TYPE(name, members) "{\"scheduler\": {\"type\": \"" name "\", \"params\": {" members "}}}"
#define ONE_CYCLE(members)     OF_TYPE("OneCycle", members)
#define RANGE_TEST(members)    OF_TYPE("LRRangeTest", members)
#define DECAY(members)         OF_TYPE("WarmupDecayLR", members)
#define COSINE(members)        OF_TYPE("WarmupCosineLR", members)
#define CYCLE                  "\"cycle_min_lr\": 0.25, \"cycle_max_lr\": 0.5, "

static const struct bad_case {
    const char *text;
    zb_status status;
    const char *want;
} bad_cases[] = {
    { "[]", ZB_INVALID_CONFIG, "f.json: is [], want an object" },
    { "{\"a\" 1}", ZB_INVALID_CONFIG, "f.json:1:6: JSON syntax error" },
    { "{\"train_batch_size\": 8, \"train_batch_size\": 8}", ZB_INVALID_CONFIG,
      "train_batch_size: is given more than once" },

    /* Batch sizes: zero is not "not given". */
    { "{\"train_batch_size\": 0}", ZB_INVALID_CONFIG, "train_batch_size: is 0, want an integer from 1" },
    { "{\"train_batch_size\": -8}", ZB_INVALID_CONFIG, "train_batch_size: is -8, want an integer from 1" },
    { "{\"train_batch_size\": 8.5}", ZB_INVALID_CONFIG, "train_batch_size: is 8.5, want an integer" },
    { "{\"train_batch_size\": \"8\"}", ZB_INVALID_CONFIG, "train_batch_size: is \"8\", want an integer" },
    { "{\"train_batch_size\": \"auto\"}", ZB_INVALID_CONFIG,
      "train_batch_size: is \"auto\", want a value: DeepSpeed" },
    { "{\"train_batch_size\": 8, \"train_micro_batch_size_per_gpu\": 0}", ZB_INVALID_CONFIG,
      "train_micro_batch_size_per_gpu: is 0, want an integer from 1" },
    { "{\"gradient_accumulation_steps\": true}", ZB_INVALID_CONFIG,
      "gradient_accumulation_steps: is true, want" },
    { "{\"train_batch_size\": 1e300}", ZB_INVALID_CONFIG,
      "train_batch_size: is 1e+300, want an integer from 1 to 9007" },

    /* Other scalars. */
    { "{\"gradient_clipping\": -1}", ZB_INVALID_CONFIG,
      "gradient_clipping: is -1, want a number not below 0" },
    { "{\"gradient_clipping\": \"auto\"}", ZB_INVALID_CONFIG, "gradient_clipping: is \"auto\", want" },
    { "{\"gradient_clipping\": null}", ZB_INVALID_CONFIG, "gradient_clipping: is null, want a number" },
    { "{\"gradient_allreduce_op\": \"max\"}", ZB_INVALID_CONFIG,
      "gradient_allreduce_op: is \"max\", want mean or sum" },
    { "{\"gradient_allreduce_op\": \"sum\", \"zero_optimization\": {\"stage\": 3}}", ZB_INVALID_CONFIG,
      "gradient_allreduce_op: is \"sum\", want \"mean\", since zero_optimization.stage is 3" },
    { "{\"steps_per_print\": 0}", ZB_INVALID_CONFIG, "steps_per_print: is 0, want an integer from 1" },
    { "{\"dataloader_drop_last\": 1}", ZB_INVALID_CONFIG, "dataloader_drop_last: is 1, want true or false" },
    { "{\"communication_data_type\": \"fp64\"}", ZB_INVALID_CONFIG,
      "communication_data_type: is \"fp64\", want fp32, fp16" },
    { "{\"seq_parallel_communication_data_type\": 32}", ZB_INVALID_CONFIG,
      "seq_parallel_communication_data_type: is 32, want a string" },
    { "{\"data_types\": {\"grad_accum_dtype\": \"fp64\"}}", ZB_INVALID_CONFIG,
      "data_types.grad_accum_dtype: is \"fp64\", want fp32, fp16 or bf16" },
    { "{\"data_types\": {\"param_dtype\": \"fp16\"}, \"bf16\": {\"enabled\": true}}", ZB_INVALID_CONFIG,
      "data_types.param_dtype: is \"fp16\", want bf16 or null, since that is what fp16 and bf16 say" },
    { "{\"data_types\": {\"buffer_dtype\": 7}}", ZB_INVALID_CONFIG,
      "data_types.buffer_dtype: is 7, want a string" },
    { "{\"data_types\": {\"param_dtype\": \"int32\"}}", ZB_INVALID_CONFIG,
      "data_types.param_dtype: is \"int32\", want fp32" },
    { "{\"data_types\": 5}", ZB_INVALID_CONFIG, "data_types: is 5, want an object" },
    { "{\"prescale_gradients\": 7}", ZB_INVALID_CONFIG, "prescale_gradients: is 7, want " },
    { "{\"gradient_predivide_factor\": 0}", ZB_INVALID_CONFIG,
      "gradient_predivide_factor: is 0, want a number above 0" },
    { "{\"gradient_predivide_factor\": \"x\"}", ZB_INVALID_CONFIG,
      "gradient_predivide_factor: is \"x\", want a number" },
    { "{\"sparse_gradients\": true}", ZB_UNSUPPORTED, "sparse_gradients: is true, want false" },
    { "{\"sequence_parallel_size\": 2}", ZB_UNSUPPORTED, "sequence_parallel_size: is 2, want 1" },
    { "{\"data_parallel_size\": 2}", ZB_UNSUPPORTED, "data_parallel_size: is 2, want it left out" },
    { "{\"amp\": {\"enabled\": true}}", ZB_UNSUPPORTED,
      "amp.enabled: is true, want false: this feature is not" },
    { "{\"amp\": true}", ZB_INVALID_CONFIG, "amp: is true, want an object" },
    { "{\"elasticity\": {\"enabled\": 1}}", ZB_UNSUPPORTED, "elasticity.enabled: is 1, want false" },
    { "{\"compression_training\": {\"a\": {\"b\": [{\"enabled\": true}]}}}", ZB_UNSUPPORTED,
      "compression_training.a.b[0].enabled: is true, want false" },
    { "{\"compile\": {\"deepcompile\": true}}", ZB_UNSUPPORTED, "compile.deepcompile: is true, want false" },
    { "{\"tensor_parallel\": {\"autotp_size\": 2}}", ZB_UNSUPPORTED,
      "tensor_parallel: is {\"autotp_size\":2}, want it left out" },
    { "{\"checkpoint\": {\"tag_validation\": \"maybe\"}}", ZB_INVALID_CONFIG,
      "checkpoint.tag_validation: is \"maybe\", want WARN" },
    { "{\"wall_clock_breakdown\": \"yes\"}", ZB_INVALID_CONFIG,
      "wall_clock_breakdown: is \"yes\", want true or false" },
    { "{\"zerobit\": {\"semantic\": \"standard\"}}", ZB_INVALID_CONFIG,
      "zerobit.semantic: is not a key that is known here" },
    { "{\"zerobit\": {\"quirks\": []}}", ZB_INVALID_CONFIG, "zerobit.quirks: is [], want an object" },
    { "{\"zerobit\": {\"quirks\": {\"norm_per_stage\": 1}}}", ZB_INVALID_CONFIG,
      "zerobit.quirks.norm_per_stage: is 1, want true or false" },
    { "{\"zerobit\": {\"quirks\": {\"norm_per_stages\": true}}}", ZB_INVALID_CONFIG,
      "zerobit.quirks.norm_per_stages: is not a key that is known here, want one of: "
      "loss_unscaled_at_stage_0, hidden_first_step, " },
    { "{\"zerobit\": {\"quirks\": {\"norm_per_stages\": true}}}", ZB_INVALID_CONFIG,
      ", first_iteration_recorded, unreduced_without_contiguous_gradients" },
    { "{\"zerobit\": {\"semantics\": \"mine\"}}", ZB_INVALID_CONFIG,
      "zerobit.semantics: is \"mine\", want \"standard\" or" },

    /* zero_optimization: closed. */
    { "{\"zero_optimization\": 2}", ZB_INVALID_CONFIG, "zero_optimization: is 2, want an object" },
    { ZERO("\"stage\": 4"), ZB_INVALID_CONFIG, "zero_optimization.stage: is 4, want an integer from 0 to 3" },
    { ZERO("\"stage\": -1"), ZB_INVALID_CONFIG,
      "zero_optimization.stage: is -1, want an integer from 0 to 3" },
    { ZERO("\"stage\": 1.5"), ZB_INVALID_CONFIG, "zero_optimization.stage: is 1.5, want an integer" },
    { ZERO("\"stage\": null"), ZB_INVALID_CONFIG, "zero_optimization.stage: is null, want an integer" },
    { ZERO("\"stage\": \"two\""), ZB_INVALID_CONFIG, "zero_optimization.stage: is \"two\", want an integer" },
    { ZERO("\"stge\": 2"), ZB_INVALID_CONFIG,
      "zero_optimization.stge: is 2, want a key that zero_optimization knows" },
    { ZERO("\"stge\": \"auto\""), ZB_INVALID_CONFIG, "zero_optimization.stge: is \"auto\", want a key" },
    { ZERO("\"reduce_bucket_size\": -1"), ZB_INVALID_CONFIG,
      "zero_optimization.reduce_bucket_size: is -1, want an integer from 0" },
    { ZERO("\"reduce_bucket_size\": \"1.5\""), ZB_INVALID_CONFIG,
      "zero_optimization.reduce_bucket_size: is \"1.5\", want" },
    { ZERO("\"reduce_bucket_size\": \" 5\""), ZB_INVALID_CONFIG,
      "zero_optimization.reduce_bucket_size: is \" 5\", want" },
    { ZERO("\"reduce_bucket_size\": \"\""), ZB_INVALID_CONFIG,
      "zero_optimization.reduce_bucket_size: is \"\", want" },
    { ZERO("\"overlap_comm\": \"maybe\""), ZB_INVALID_CONFIG,
      "zero_optimization.overlap_comm: is \"maybe\", want true or false" },
    { ZERO("\"overlap_comm\": 2"), ZB_INVALID_CONFIG,
      "zero_optimization.overlap_comm: is 2, want true or false" },
    { ZERO("\"sub_group_size\": -1"), ZB_INVALID_CONFIG,
      "zero_optimization.sub_group_size: is -1, want an integer not below 0" },
    { ZERO("\"sub_group_size\": 1.5"), ZB_INVALID_CONFIG,
      "zero_optimization.sub_group_size: is 1.5, want an integer not below 0" },
    { ZERO("\"max_reuse_distance\": -1"), ZB_INVALID_CONFIG,
      "zero_optimization.max_reuse_distance: is -1, want an integer not below 0" },
    { ZERO("\"stage3_max_live_parameters\": 1.5"), ZB_INVALID_CONFIG,
      "zero_optimization.stage3_max_live_parameters: is 1.5, want an integer not below 0" },
    { ZERO("\"stage3_allgather_sequential\": 2"), ZB_INVALID_CONFIG,
      "zero_optimization.stage3_allgather_sequential: is 2, want" },
    { ZERO("\"contiguous_gradients\": 2"), ZB_INVALID_CONFIG,
      "zero_optimization.contiguous_gradients: is 2, want" },
    { ZERO("\"use_multi_rank_bucket_allreduce\": \"maybe\""), ZB_INVALID_CONFIG,
      "zero_optimization.use_multi_rank_bucket_allreduce: is \"maybe\", want" },
    { ZERO("\"zero_quantized_gradients\": true"), ZB_UNSUPPORTED,
      "zero_optimization.zero_quantized_gradients: is true, want" },
    { ZERO("\"zero_hpz_partition_size\": 8"), ZB_UNSUPPORTED,
      "zero_optimization.zero_hpz_partition_size: is 8, want 1" },
    { ZERO("\"mics_shard_size\": 4"), ZB_UNSUPPORTED, "zero_optimization.mics_shard_size: is 4, want -1" },
    { ZERO("\"zenflow\": {\"topk_ratio\": 0.1}"), ZB_UNSUPPORTED,
      "zero_optimization.zenflow: is {\"topk_ratio\":0.1}, want it" },
    { ZERO("\"legacy_stage1\": true"), ZB_INVALID_CONFIG,
      "zero_optimization.legacy_stage1: is true, want false" },
    { ZERO("\"stage\": 2, \"allgather_bucket_size\": 7"), ZB_INVALID_CONFIG,
      "zero_optimization.allgather_bucket_size: is 7, want a multiple of 2 at stage 2" },
    { ZERO("\"prefetch_bucket_size\": 1, \"stage3_prefetch_bucket_size\": 1"), ZB_INVALID_CONFIG,
      "zero_optimization.stage3_prefetch_bucket_size: is 1, want either this key or prefetch_bucket_size, "
      "not both" },
    { ZERO("\"cpu_offload\": true"), ZB_UNSUPPORTED,
      "zero_optimization.cpu_offload: is true, want false: offload is not" },
    { ZERO("\"cpu_offload\": false, \"offload_optimizer\": {\"device\": \"none\"}"), ZB_INVALID_CONFIG,
      "zero_optimization.cpu_offload: is false, want only offload_optimizer, which replaces" },
    { ZERO("\"cpu_offload_param\": false, \"offload_param\": null"), ZB_INVALID_CONFIG,
      "zero_optimization.cpu_offload_param: is false, want only offload_param" },
    { ZERO("\"stage3_gather_fp16_weights_on_model_save\": false, \"gather_16bit_weights_on_model_save\": "
           "false"),
      ZB_INVALID_CONFIG, "stage3_gather_fp16_weights_on_model_save: is false, want only gather_16bit" },
    { ZERO("\"offload_optimizer\": {\"device\": \"cpu\"}"), ZB_UNSUPPORTED,
      "zero_optimization.offload_optimizer.device: is \"cpu\", want \"none\": offload is not supported yet" },
    { ZERO("\"offload_param\": {\"device\": \"gpu\"}"), ZB_INVALID_CONFIG,
      "zero_optimization.offload_param.device: is \"gpu\", want none, cpu or nvme" },
    { ZERO("\"offload_param\": {\"devise\": \"cpu\"}"), ZB_INVALID_CONFIG,
      "zero_optimization.offload_param.devise: is \"cpu\", want a key" },
    { ZERO("\"offload_optimizer\": {\"ratio\": 1.5}"), ZB_INVALID_CONFIG,
      "offload_optimizer.ratio: is 1.5, want a number from 0 to 1" },
    { ZERO("\"stage\": 2, \"offload_optimizer\": {\"ratio\": 0.5}"), ZB_INVALID_CONFIG,
      "offload_optimizer.ratio: is 0.5, want 1.0" },

    /* fp16 and bf16: closed. */
    { FP16("\"enable\": true"), ZB_INVALID_CONFIG, "fp16.enable: is true, want a key that fp16 knows" },
    { FP16("\"loss_scale\": -1"), ZB_INVALID_CONFIG, "fp16.loss_scale: is -1, want a number not below 0" },
    { FP16("\"loss_scale\": true"), ZB_INVALID_CONFIG, "fp16.loss_scale: is true, want a number" },
    { FP16("\"loss_scale\": \"inf\""), ZB_INVALID_CONFIG, "fp16.loss_scale: is \"inf\", want a number" },
    { FP16("\"loss_scale\": \"1e999\""), ZB_INVALID_CONFIG, "fp16.loss_scale: is \"1e999\", want a number" },
    { FP16("\"min_loss_scale\": 0.5"), ZB_INVALID_CONFIG, "fp16.min_loss_scale: is 0.5, want an integer" },
    { FP16("\"enabled\": true, \"min_loss_scale\": 0"), ZB_INVALID_CONFIG,
      "fp16.min_loss_scale: is 0, want an integer above 0" },
    { FP16("\"enabled\": true, \"loss_scale_window\": 0"), ZB_INVALID_CONFIG,
      "fp16.loss_scale_window: is 0, want an integer above 0" },
    { FP16("\"loss_scale_window\": true"), ZB_INVALID_CONFIG,
      "fp16.loss_scale_window: is true, want an integer" },
    { FP16("\"initial_scale_power\": 128"), ZB_INVALID_CONFIG,
      "fp16.initial_scale_power: is 128, want an integer from -126 to 127" },
    { FP16("\"auto_cast\": true"), ZB_UNSUPPORTED, "fp16.auto_cast: is true, want false" },
    { FP16("\"fp16_master_weights_and_grads\": true"), ZB_INVALID_CONFIG,
      "fp16.fp16_master_weights_and_grads: is true, want false, or zero_optimization.stage 1, 2 or 3 (it is "
      "0)" },
    { "{\"fp16\": {\"fp16_master_weights_and_grads\": true}, \"zero_optimization\": {\"stage\": 1}}",
      ZB_UNSUPPORTED, "fp16.fp16_master_weights_and_grads: is true, want false: 16-bit" },
    { "{\"fp16\": null}", ZB_INVALID_CONFIG, "fp16: is null, want an object" },
    { "{\"fp16\": {\"enabled\": true}, \"bf16\": {\"enabled\": true}}", ZB_INVALID_CONFIG,
      "fp16.enabled: is true, want either fp16 or bf16" },
    { "{\"bf16\": {\"check_overflow\": true}}", ZB_INVALID_CONFIG,
      "bf16.check_overflow: is true, want a key that bf16 knows" },
    { "{\"bf16\": null, \"bfloat16\": {\"x\": 1}}", ZB_INVALID_CONFIG,
      "bfloat16.x: is 1, want a key that bfloat16 knows" },
    { "{\"bf16\": {\"bf16_optimizer_states\": true}}", ZB_INVALID_CONFIG,
      "bf16.bf16_optimizer_states: is true, want false, or" },

    /* Optimizers. */
    { "{\"optimizer\": null}", ZB_INVALID_CONFIG, "optimizer: is null, want an object" },
    { "{\"optimizer\": {}}", ZB_INVALID_CONFIG, "optimizer.type: is missing, want a string" },
    { "{\"optimizer\": {\"type\": \"Adam\", \"legacy_fusion\": true}}", ZB_UNSUPPORTED,
      "optimizer.legacy_fusion: is true, want false" },
    { "{\"optimizer\": {\"type\": \"Adam\", \"params\": []}}", ZB_INVALID_CONFIG,
      "optimizer.params: is [], want an object" },
    { ADAM("\"learning_rate\": 1"), ZB_INVALID_CONFIG,
      "optimizer.params.learning_rate: is 1, want a key that Adam knows" },
    { ADAM("\"max_grad_norm\": 0"), ZB_INVALID_CONFIG,
      "optimizer.params.max_grad_norm: is 0, want it left out: gradient_clipping" },
    { ADAM("\"lr\": \"auto\""), ZB_INVALID_CONFIG, "optimizer.params.lr: is \"auto\", want a number" },
    { ADAM("\"lr\": \"0.1\""), ZB_INVALID_CONFIG, "optimizer.params.lr: is \"0.1\", want a number" },
    { ADAM("\"lr\": -0.1"), ZB_INVALID_CONFIG, "optimizer.params.lr: is -0.1, want a number not below 0" },
    { ADAM("\"betas\": [0.9]"), ZB_INVALID_CONFIG, "optimizer.params.betas: is [0.9], want two numbers" },
    { ADAM("\"betas\": 0.9"), ZB_INVALID_CONFIG, "optimizer.params.betas: is 0.9, want an array" },
    { ADAM("\"betas\": [0.9, 1]"), ZB_INVALID_CONFIG,
      "optimizer.params.betas[1]: is 1, want a number from 0 up to" },
    { ADAM("\"betas\": [-0.1, 0.9]"), ZB_INVALID_CONFIG,
      "optimizer.params.betas[0]: is -0.1, want a number from 0 up to" },
    { ADAM("\"eps\": -1"), ZB_INVALID_CONFIG, "optimizer.params.eps: is -1, want a number not below 0" },

    /* Schedulers. */
    { SCHEDULER(""), ZB_INVALID_CONFIG, "scheduler.type: is missing, want a string" },
    { SCHEDULER("\"type\": \"StepLR\""), ZB_UNSUPPORTED,
      "scheduler.type: is \"StepLR\", want LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR or WarmupCosineLR: "
      "PyTorch's own are not supported yet" },
    { SCHEDULER("\"type\": \"warmuplr\""), ZB_INVALID_CONFIG,
      "scheduler.type: is \"warmuplr\", want LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR or "
      "WarmupCosineLR: "
      "neither" },
    { SCHEDULER("\"type\": \"OneCycle\""), ZB_INVALID_CONFIG,
      "scheduler.params: is missing, want an object" },
    { ONE_CYCLE("\"cycle_max_lr\": 1"), ZB_INVALID_CONFIG,
      "scheduler.params.cycle_min_lr: is missing, want a number: this scheduler has no default for it" },
    { ONE_CYCLE("\"cycle_min_lr\": 1"), ZB_INVALID_CONFIG,
      "scheduler.params.cycle_max_lr: is missing, want a number" },
    { ONE_CYCLE("\"cycle_min_lr\": [1], \"cycle_max_lr\": 1"), ZB_INVALID_CONFIG,
      "scheduler.params.cycle_min_lr: is [1], want a number not below 0" },
    { ONE_CYCLE(CYCLE "\"cycle_first_step_size\": 0"), ZB_INVALID_CONFIG,
      "scheduler.params.cycle_first_step_size: is 0, want a number above 0" },
    { ONE_CYCLE(CYCLE "\"cycle_first_step_size\": null"), ZB_INVALID_CONFIG,
      "scheduler.params.cycle_first_step_size: is null, want a number" },
    { ONE_CYCLE(CYCLE "\"cycle_second_step_size\": -1"), ZB_INVALID_CONFIG,
      "scheduler.params.cycle_second_step_size: is -1, want a number not below 0" },
    { ONE_CYCLE(CYCLE "\"cycle_first_stair_count\": 1.5"), ZB_INVALID_CONFIG,
      "scheduler.params.cycle_first_stair_count: is 1.5, want an integer from 0" },
    { ONE_CYCLE(CYCLE "\"cycle_second_stair_count\": -1"), ZB_INVALID_CONFIG,
      "scheduler.params.cycle_second_stair_count: is -1, want an integer from 0" },
    { ONE_CYCLE(CYCLE "\"decay_step_size\": -1"), ZB_INVALID_CONFIG,
      "scheduler.params.decay_step_size: is -1, want a number not below 0" },
    { ONE_CYCLE(CYCLE "\"decay_lr_rate\": \"0\""), ZB_INVALID_CONFIG,
      "scheduler.params.decay_lr_rate: is \"0\", want a number" },
    { ONE_CYCLE(CYCLE "\"cycle_momentum\": 1"), ZB_INVALID_CONFIG,
      "scheduler.params.cycle_momentum: is 1, want true or false" },
    { ONE_CYCLE(CYCLE "\"cycle_min_mom\": 1"), ZB_INVALID_CONFIG,
      "scheduler.params.cycle_min_mom: is 1, want a number from 0 up to, not including, 1" },
    { ONE_CYCLE(CYCLE "\"cycle_max_mom\": -0.5"), ZB_INVALID_CONFIG,
      "scheduler.params.cycle_max_mom: is -0.5, want a number not below 0" },
    { ONE_CYCLE(CYCLE "\"decay_mom_rate\": []"), ZB_INVALID_CONFIG,
      "scheduler.params.decay_mom_rate: is [], want a number" },
    { ONE_CYCLE(CYCLE "\"cycle_mid_lr\": 1"), ZB_INVALID_CONFIG,
      "scheduler.params.cycle_mid_lr: is 1, want a key that OneCycle knows" },
    { ONE_CYCLE(CYCLE "\"last_batch_iteration\": 0"), ZB_UNSUPPORTED,
      "scheduler.params.last_batch_iteration: is 0, want -1" },
    { RANGE_TEST("\"lr_range_test_min_lr\": [0.1, 0.2]"), ZB_INVALID_CONFIG,
      "scheduler.params.lr_range_test_min_lr: is [0.1,0.2], want one rate for each parameter group: there is "
      "1" },
    { RANGE_TEST("\"lr_range_test_step_size\": 0"), ZB_INVALID_CONFIG,
      "scheduler.params.lr_range_test_step_size: is 0, want an integer from 1" },
    { RANGE_TEST("\"lr_range_test_step_rate\": -1"), ZB_INVALID_CONFIG,
      "scheduler.params.lr_range_test_step_rate: is -1, want a number not below 0" },
    { RANGE_TEST("\"lr_range_test_staircase\": 1"), ZB_INVALID_CONFIG,
      "scheduler.params.lr_range_test_staircase: is 1, want true or false" },
    { DECAY(""), ZB_INVALID_CONFIG,
      "scheduler.params.total_num_steps: is missing, want an integer: this scheduler has no default for it" },
    { DECAY("\"total_num_steps\": 10.5"), ZB_INVALID_CONFIG,
      "scheduler.params.total_num_steps: is 10.5, want an integer from 0" },
    { DECAY("\"total_num_steps\": 10, \"warmup_max_lr\": null"), ZB_INVALID_CONFIG,
      "scheduler.params.warmup_max_lr: is null, want a number, since there is no optimizer" },
    { DECAY("\"total_num_steps\": 10, \"warmup_max_lr\": -1"), ZB_INVALID_CONFIG,
      "scheduler.params.warmup_max_lr: is -1, want a number not below 0" },
    { DECAY("\"total_num_steps\": 10, \"warmup_num_steps\": 0"), ZB_INVALID_CONFIG,
      "scheduler.params.warmup_num_steps: is 0, want an integer from 1" },
    { COSINE("\"warmup_num_steps\": 5"), ZB_INVALID_CONFIG, "scheduler.params.total_num_steps: is missing" },
    { COSINE("\"total_num_steps\": 10"), ZB_INVALID_CONFIG,
      "want an optimizer beside it, whose lr it scales" },
    { COSINE("\"total_num_steps\": 10, \"warmup_min_ratio\": [0]"), ZB_INVALID_CONFIG,
      "scheduler.params.warmup_min_ratio: is [0], want a number" },
    { COSINE("\"total_num_steps\": 10, \"cos_min_ratio\": -1"), ZB_INVALID_CONFIG,
      "scheduler.params.cos_min_ratio: is -1, want a number not below 0" },
    { COSINE("\"total_num_steps\": 10, \"warmup_min_lr\": 0"), ZB_INVALID_CONFIG,
      "scheduler.params.warmup_min_lr: is 0, want a key that WarmupCosineLR knows" },
    { SCHEDULER("\"type\": \"WarmupLR\""), ZB_INVALID_CONFIG,
      "scheduler.params: is missing, want an object" },
    { SCHEDULER("\"type\": \"WarmupLR\", \"params\": {}"), ZB_INVALID_CONFIG,
      "scheduler.params.warmup_max_lr: is missing, want a number" },
    { WARMUP("\"warmup_steps\": 5"), ZB_INVALID_CONFIG,
      "scheduler.params.warmup_steps: is 5, want a key that WarmupLR knows" },
    { WARMUP("\"warmup_num_steps\": 0"), ZB_INVALID_CONFIG,
      "scheduler.params.warmup_num_steps: is 0, want an integer from 1" },
    { WARMUP("\"warmup_num_steps\": 1.5"), ZB_INVALID_CONFIG,
      "scheduler.params.warmup_num_steps: is 1.5, want an integer" },
    { WARMUP("\"warmup_min_lr\": [0, 0]"), ZB_INVALID_CONFIG,
      "scheduler.params.warmup_min_lr: is [0,0], want one rate" },
    { WARMUP("\"warmup_min_lr\": null"), ZB_INVALID_CONFIG,
      "scheduler.params.warmup_min_lr: is null, want a number" },
    { WARMUP("\"warmup_type\": 5"), ZB_INVALID_CONFIG, "scheduler.params.warmup_type: is 5, want a string" },
    { WARMUP("\"last_batch_iteration\": 7"), ZB_UNSUPPORTED,
      "scheduler.params.last_batch_iteration: is 7, want -1" },
};

static void refuses(void **state)
{
    (void)state;
    uint64_t live = zb_alloc_get_stats().live;
    for (size_t i = 0; i < COUNT(bad_cases); i++) {
        const struct bad_case *c = &bad_cases[i];
        zb_config *config = NULL;
        zb_status status = zb_config_parse(c->text, strlen(c->text), "f.json", &config);
        if (status != c->status || strstr(zb_error_message(), c->want) == NULL ||
            strncmp(zb_error_message(), "f.json:", 7) != 0)
            fail_msg("%s\n  gives: %s: %s\n  want:  %s: %s", c->text, zb_status_string(status),
                     status == ZB_OK ? "" : zb_error_message(), zb_status_string(c->status), c->want);
        assert_null(config);
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
}

/* ---- accepted ---------------------------------------------------------------------------------------- */

/* `note`: part of the only note; NULL: there is none. */
static const struct note_case {
    const char *text;
    const char *note;
} note_cases[] = {
    { "{}", NULL },
    { "{\"made_up\": 1}", "made_up: no effect: DeepSpeed ignores keys that it does not know here" },
    { "{\"made_up\": \"auto\"}", "made_up: no effect" },
    { "{\"wall_clock_breakdown\": false, \"memory_breakdown\": false, \"dump_state\": false}", NULL },
    { "{\"wall_clock_breakdown\": true}", "wall_clock_breakdown: no effect: it only sets what is measured" },
    { "{\"tensorboard\": {\"enabled\": true}}", "tensorboard: no effect" },
    { "{\"activation_checkpointing\": {\"cpu_checkpointing\": true}}",
      "activation_checkpointing: no effect: computing" },
    { "{\"prescale_gradients\": false, \"gradient_predivide_factor\": 1.0, \"sparse_gradients\": false}",
      NULL },
    { "{\"amp\": {\"enabled\": false}, \"elasticity\": {\"enabled\": null}, \"compile\": {}, \"autotuning\": "
      "null}",
      NULL },
    { "{\"tensor_parallel\": {}, \"sparse_attention\": null}", NULL },
    { "{\"communication_data_type\": null, \"seq_parallel_communication_data_type\": \"fp32\"}", NULL },
    { "{\"communication_data_type\": \"BF16\"}", NULL },
    { "{\"seq_parallel_communication_data_type\": \"fp16\"}",
      "seq_parallel_communication_data_type: no effect: there is no sequence parallelism" },
    { "{\"data_types\": {\"buffer_dtype\": \"bf16\"}}", "data_types.buffer_dtype: no effect" },
    { "{\"data_types\": {\"param_dtype\": \"half\", \"grad_accum_dtype\": \"bf16\"}, \"fp16\": {\"enabled\": "
      "true}}",
      NULL },
    { "{\"data_types\": {\"grad_accum_dtype\": null, \"param_dtype\": \"torch.float32\"}}", NULL },
    { "{\"data_types\": {\"other\": 1}}", "data_types.other: no effect" },
    { "{\"checkpoint\": {\"tag_validation\": \"ignore\"}}", "checkpoint: no effect" },
    { "{\"vocabulary_size\": null, \"steps_per_print\": null}", NULL },
    { "{\"zero_optimization\": true}",
      "zero_optimization: a bare boolean is deprecated; it means {\"stage\": 1}" },
    { ZERO("\"stage\": \"auto\", \"reduce_bucket_size\": \"auto\", \"sub_group_size\": \"auto\""), NULL },
    { ZERO("\"prefetch_bucket_size\": \"auto\", \"stage3_prefetch_bucket_size\": 5e8"), NULL },
    { ZERO("\"model_persistence_threshold\": 9223372036854775807"), NULL },
    { ZERO("\"leaf_module\": {}"), "leaf_module: no effect: it only sets when" },
    { ZERO("\"sub_group_size\": \"1000\""), NULL },
    { ZERO("\"cpu_offload\": false"),
      "zero_optimization.cpu_offload: no effect: deprecated in favour of offload_optimizer" },
    { ZERO("\"cpu_offload\": false, \"offload_optimizer\": \"auto\""),
      "zero_optimization.cpu_offload: no effect" },
    { ZERO("\"stage3_gather_fp16_weights_on_model_save\": true"),
      "no effect: deprecated, and zerobit writes" },
    { ZERO("\"offload_param\": null, \"offload_optimizer\": {\"device\": \"none\", \"nvme_path\": null}"),
      NULL },
    { ZERO("\"offload_param\": {\"device\": \"none\", \"buffer_count\": 5}"),
      "offload_param.buffer_count: no effect: nothing is" },
    { ZERO("\"stage\": 3, \"offload_optimizer\": {\"ratio\": 0.5}"), NULL },
    { ZERO("\"allgather_bucket_size\": 7"), "allgather_bucket_size: no effect" },
    { ZERO("\"round_robin_gradients\": \"off\", \"mics_shard_size\": -1, \"zenflow\": null"), NULL },
    { ZERO("\"legacy_stage1\": false, \"contiguous_gradients\": 1, \"reduce_scatter\": \"Yes\""), NULL },
    { "{\"bf16\": {\"check_grad_overflow\": false, \"immediate_grad_update\": \"off\"}}", NULL },
    { "{\"bf16\": {\"immediate_grad_update\": true}}",
      "bf16.immediate_grad_update: no effect: it only sets when" },
    { "{\"bf16\": {}, \"bfloat16\": {\"nonsense\": 1}}",
      "bfloat16: no effect: bf16 is given as well and wins" },
    { FP16("\"loss_scale\": \"128\", \"hysteresis\": 0, \"min_loss_scale\": -3, \"loss_scale_window\": 0"),
      NULL },
    { FP16("\"enabled\": true, \"loss_scale\": 4, \"loss_scale_window\": 0, \"min_loss_scale\": 0"), NULL },
    { OPTIMIZER("ADAMW"), NULL },
    { "{\"optimizer\": {\"type\": \"Adam\", \"extra\": 1}}", "optimizer.extra: no effect" },
    { "{\"optimizer\": {\"type\": \"AdamW\", \"params\": {\"adam_w_mode\": false}}}",
      "optimizer.params.adam_w_mode: no effect: AdamW always decouples" },
    { WARMUP("\"warmup_type\": \"cosine\""),
      "scheduler.params.warmup_type: \"cosine\" is unknown; \"log\" is used instead" },
    { DECAY("\"total_num_steps\": 9, \"warmup_type\": \"exp\""), "warmup_type: \"exp\" is unknown" },
    { ONE_CYCLE(CYCLE "\"last_batch_iteration\": -1"), NULL },
    { "{\"optimizer\": {\"type\": \"SGD\", \"params\": {\"lr\": 1}}, \"scheduler\": {\"type\": \"OneCycle\", "
      "\"params\": {" CYCLE "\"cycle_momentum\": true}}}",
      "scheduler.params.cycle_momentum: no effect: DeepSpeed cycles betas, which this optimizer does not "
      "have" },
    { "{\"optimizer\": {\"type\": \"SGD\", \"params\": {\"lr\": 1}}, \"scheduler\": {\"type\": \"OneCycle\", "
      "\"params\": {" CYCLE "\"cycle_momentum\": false}}}",
      NULL },
};

static void accepts_and_notes(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(note_cases); i++) {
        const struct note_case *c = &note_cases[i];
        zb_config *config = parse(c->text);
        if (config->note_count != (c->note != NULL ? 1 : 0))
            fail_msg("%s: %zu notes, first: %s", c->text, config->note_count,
                     config->note_count ? config->notes[0] : "");
        if (c->note != NULL && find_note(config, c->note) == NULL)
            fail_msg("%s\n  notes: %s\n  want:  %s", c->text, config->notes[0], c->note);
        zb_config_destroy(config);
    }
}

static void defaults_are_deepspeeds(void **state)
{
    (void)state;
    zb_config *config = parse("{}");
    assert_string_equal(config->path, "f.json");
    assert_true(config->gradient_clipping == 1.0);
    assert_int_equal(config->steps_per_print, 0);
    assert_int_equal(config->grad_sum, 0);
    assert_int_equal(config->prescale_gradients, 0);
    assert_true(config->gradient_predivide_factor == 1.0);
    assert_int_equal(config->semantics, ZB_SEMANTICS_STANDARD);
    assert_int_equal(config->dtype, ZB_FP32);
    assert_int_equal(config->optimizer_given, 0);
    assert_int_equal(config->groups[0].schedule.kind, ZB_SCHEDULE_CONSTANT);
    assert_int_equal(config->zero.stage, 0);
    assert_int_equal(config->zero.overlap_comm, -1);
    assert_int_equal(config->zero.contiguous_gradients, 1);
    assert_int_equal(config->zero.reduce_scatter, 1);
    assert_int_equal(config->zero.reduce_bucket_numel, 500000000);
    assert_int_equal(config->zero.prefetch_bucket_numel, 50000000);
    assert_int_equal(config->zero.max_live_numel, 1000000000);
    assert_int_equal(config->zero.max_reuse_numel, 1000000000);
    assert_int_equal(config->zero.param_persistence_numel, 100000);
    assert_int_equal(config->zero.model_persistence_numel, (int64_t)1 << 53);
    assert_int_equal(config->zero.module_granularity_numel, 0);
    assert_int_equal(config->zero.allgather_sequential, 0);
    assert_int_equal(config->comm_dtype, -1);
    assert_int_equal(config->grad_accum_dtype, -1);
    assert_int_equal(config->bf16_check_grad_overflow, 1);
    assert_int_equal(config->fp16.initial_scale_power, 16);
    assert_int_equal(config->fp16.loss_scale_window, 1000);
    assert_int_equal(config->fp16.hysteresis, 2);
    assert_int_equal(config->fp16.min_loss_scale, 1);
    zb_config_destroy(config);

    config = parse("{\"optimizer\": {\"type\": \"Adam\"}}");
    assert_int_equal(config->optimizer.kind, ZB_OPTIMIZER_ADAM);
    assert_int_equal(config->optimizer.decay_mode, ZB_DECAY_DECOUPLED);
    assert_int_equal(config->optimizer.bias_correction, 1);
    assert_true(config->optimizer.lr == 1e-3 && config->optimizer.beta1 == 0.9 &&
                config->optimizer.beta2 == 0.999 && config->optimizer.eps == 1e-8 &&
                config->optimizer.weight_decay == 0);
    assert_true(config->groups[0].schedule.base_lr == 1e-3);
    zb_config_destroy(config);
}

static void values_arrive(void **state)
{
    (void)state;
    zb_config *config = parse(
        "{\"train_batch_size\": 16.0, \"train_micro_batch_size_per_gpu\": 2, "
        "\"gradient_accumulation_steps\": null,"
        "\"gradient_clipping\": 0, \"gradient_allreduce_op\": \"Sum\", \"steps_per_print\": 7, "
        "\"dataloader_drop_last\": true,"
        "\"zero_allow_untested_optimizer\": true, \"zerobit\": {\"semantics\": \"deepspeed-0.19.6\"},"
        "\"zero_optimization\": {\"stage\": \"2\", \"reduce_bucket_size\": 5e3, \"overlap_comm\": \"on\"},"
        "\"bfloat16\": {\"enabled\": \"TRUE\", \"check_grad_overflow\": 0},"
        "\"communication_data_type\": \"FP16\", \"data_types\": {\"grad_accum_dtype\": \"torch.float32\"},"
        "\"optimizer\": {\"type\": \"SGD\", \"params\": {\"lr\": 0.5, \"momentum\": 0.9, \"weight_decay\": "
        "0.1, \"nesterov\": true}},"
        "\"scheduler\": {\"type\": \"WarmupLR\", \"params\": {\"warmup_min_lr\": [0.25], "
        "\"warmup_num_steps\": 3, \"warmup_type\": \"linear\"}}}");
    assert_int_equal(config->batch.train_batch_size, 16);
    assert_int_equal(config->batch.micro_batch_size, 2);
    assert_int_equal(config->batch.accumulation_steps, 0);
    assert_true(config->gradient_clipping == 0);
    assert_int_equal(config->grad_sum, 1);
    assert_int_equal(config->steps_per_print, 7);
    assert_int_equal(config->dataloader_drop_last, 1);
    assert_int_equal(config->zero_allow_untested_optimizer, 1);
    assert_int_equal(config->semantics, ZB_SEMANTICS_DEEPSPEED_0_19_6);
    assert_int_equal(config->zero.stage, 2);
    assert_int_equal(config->zero.reduce_bucket_numel, 5000);
    assert_int_equal(config->zero.overlap_comm, 1);
    assert_int_equal(config->bf16_enabled, 1);
    assert_int_equal(config->bf16_check_grad_overflow, 0);
    assert_int_equal(config->dtype, ZB_BF16);
    assert_int_equal(config->comm_dtype, ZB_FP16);
    assert_int_equal(config->grad_accum_dtype, ZB_FP32);
    assert_int_equal(config->optimizer_given, 1);
    assert_int_equal(config->optimizer.kind, ZB_OPTIMIZER_SGD);
    assert_int_equal(config->optimizer.decay_mode, ZB_DECAY_L2);
    assert_int_equal(config->optimizer.nesterov, 1);
    assert_true(config->optimizer.lr == 0.5 && config->optimizer.momentum == 0.9 &&
                config->optimizer.dampening == 0 && config->optimizer.weight_decay == 0.1);
    assert_int_equal(config->groups[0].schedule.kind, ZB_SCHEDULE_WARMUP_LR);
    assert_int_equal(config->groups[0].schedule.warmup_type, ZB_WARMUP_LINEAR);
    assert_int_equal(config->groups[0].schedule.warmup_num_steps, 3);
    assert_true(config->groups[0].schedule.warmup_min_lr == 0.25 &&
                config->groups[0].schedule.warmup_max_lr == 0.5);
    zb_config_destroy(config);

    config = parse("{\"zero_optimization\": {\"stage\": 3, \"overlap_comm\": null},"
                   "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"adam_w_mode\": false, "
                   "\"bias_correction\": false}}}");
    assert_int_equal(config->zero.overlap_comm, -1);
    assert_int_equal(config->optimizer.decay_mode, ZB_DECAY_L2);
    assert_int_equal(config->optimizer.bias_correction, 0);
    zb_config_destroy(config);

    config = parse("{\"optimizer\": {\"type\": \"AdamW\", \"params\": {\"adam_w_mode\": false}}}");
    assert_int_equal(config->optimizer.decay_mode, ZB_DECAY_DECOUPLED);
    zb_config_destroy(config);
}

static void gathering_arrives(void **state)
{
    (void)state;
    /* Under either name. */
    static const char *const prefixes[] = { "", "stage3_" };
    for (size_t i = 0; i < 2; i++) {
        const char *p = prefixes[i];
        char text[512];
        snprintf(text, sizeof text,
                 "{\"zero_optimization\": {\"%sprefetch_bucket_size\": 1, \"%smax_live_parameters\": 2e1, "
                 "\"%smax_reuse_distance\": \"3\", \"%sparam_persistence_threshold\": 4, "
                 "\"%smodel_persistence_threshold\": 9223372036854775807, "
                 "\"%smodule_granularity_threshold\": 6}}",
                 p, p, p, p, p, p);
        zb_config *config = parse(text);
        assert_int_equal(config->zero.prefetch_bucket_numel, 1);
        assert_int_equal(config->zero.max_live_numel, 20);
        assert_int_equal(config->zero.max_reuse_numel, 3);
        assert_int_equal(config->zero.param_persistence_numel, 4);
        assert_int_equal(config->zero.model_persistence_numel, (int64_t)1 << 53);
        assert_int_equal(config->zero.module_granularity_numel, 6);
        assert_int_equal(config->zero.allgather_sequential, 0);
        zb_config_destroy(config);

        snprintf(text, sizeof text,
                 "{\"zero_optimization\": {\"%sallgather_sequential\": true, \"prefetch_bucket_size\": 7}}",
                 p);
        config = parse(text);
        assert_int_equal(config->zero.allgather_sequential, 1);
        assert_int_equal(config->zero.prefetch_bucket_numel, 1);
        zb_config_destroy(config);
    }
}

/* Every parameter of every scheduler, once left out and once given. */
static void schedulers_arrive(void **state)
{
    (void)state;
#define ADAM_BEFORE "{\"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": 0.125}}, "
#define AFTER_ADAM(name, members)                                                                            \
    ADAM_BEFORE "\"scheduler\": {\"type\": \"" name "\", \"params\": {" members "}}}"
    static const struct {
        const char *text;
        zb_schedule_config want;
    } rows[] = {
        { AFTER_ADAM("WarmupLR", ""),
          { .kind = ZB_SCHEDULE_WARMUP_LR, .warmup_max_lr = 0.125, .warmup_num_steps = 1000 } },
        { AFTER_ADAM("WarmupDecayLR", "\"total_num_steps\": 0"),
          { .kind = ZB_SCHEDULE_WARMUP_DECAY_LR, .warmup_max_lr = 0.001, .warmup_num_steps = 1000 } },
        { AFTER_ADAM("WarmupDecayLR",
                     "\"total_num_steps\": 9, \"warmup_min_lr\": [2], \"warmup_max_lr\": null, "
                     "\"warmup_num_steps\": 4, \"warmup_type\": \"linear\""),
          { .kind = ZB_SCHEDULE_WARMUP_DECAY_LR,
            .total_num_steps = 9,
            .warmup_min_lr = 2,
            .warmup_max_lr = 0.125,
            .warmup_num_steps = 4,
            .warmup_type = ZB_WARMUP_LINEAR } },
        { AFTER_ADAM("WarmupDecayLR", "\"total_num_steps\": 9, \"warmup_max_lr\": [3]"),
          { .kind = ZB_SCHEDULE_WARMUP_DECAY_LR,
            .total_num_steps = 9,
            .warmup_max_lr = 3,
            .warmup_num_steps = 1000 } },
        { AFTER_ADAM("WarmupCosineLR", "\"total_num_steps\": 9"),
          { .kind = ZB_SCHEDULE_WARMUP_COSINE_LR,
            .total_num_steps = 9,
            .warmup_num_steps = 1000,
            .cos_min_ratio = 0.0001 } },
        { AFTER_ADAM("WarmupCosineLR",
                     "\"total_num_steps\": 9, \"warmup_min_ratio\": 0.5, \"cos_min_ratio\": 0.25, "
                     "\"warmup_num_steps\": 4, \"warmup_type\": \"linear\""),
          { .kind = ZB_SCHEDULE_WARMUP_COSINE_LR,
            .total_num_steps = 9,
            .warmup_num_steps = 4,
            .warmup_min_ratio = 0.5,
            .cos_min_ratio = 0.25,
            .warmup_type = ZB_WARMUP_LINEAR } },
        { AFTER_ADAM("LRRangeTest", ""),
          { .kind = ZB_SCHEDULE_LR_RANGE_TEST,
            .lr_range_test_min_lr = 1e-3,
            .lr_range_test_step_size = 2000,
            .lr_range_test_step_rate = 1 } },
        { AFTER_ADAM("LRRangeTest", "\"lr_range_test_min_lr\": [0.5], \"lr_range_test_step_size\": 5, "
                                    "\"lr_range_test_step_rate\": 2, \"lr_range_test_staircase\": true"),
          { .kind = ZB_SCHEDULE_LR_RANGE_TEST,
            .lr_range_test_min_lr = 0.5,
            .lr_range_test_step_size = 5,
            .lr_range_test_step_rate = 2,
            .lr_range_test_staircase = 1 } },
        { AFTER_ADAM("OneCycle", CYCLE "\"decay_lr_rate\": 0"),
          { .kind = ZB_SCHEDULE_ONE_CYCLE,
            .cycle_min_lr = 0.25,
            .cycle_max_lr = 0.5,
            .cycle_first_step_size = 2000,
            .cycle_second_step_size = 2000,
            .cycle_momentum = 1,
            .cycle_min_mom = 0.8,
            .cycle_max_mom = 0.9,
            .cycle_start_mom = 0.9,
            .cycle_beta2 = 0.999 } },
        { AFTER_ADAM("OneCycle", CYCLE "\"cycle_first_step_size\": 7, \"cycle_second_step_size\": null, "
                                       "\"cycle_first_stair_count\": 3, \"cycle_second_stair_count\": null"),
          { .kind = ZB_SCHEDULE_ONE_CYCLE,
            .cycle_min_lr = 0.25,
            .cycle_max_lr = 0.5,
            .cycle_first_step_size = 7,
            .cycle_second_step_size = 7,
            .cycle_first_stair_count = 3,
            .cycle_second_stair_count = 3,
            .cycle_momentum = 1,
            .cycle_min_mom = 0.8,
            .cycle_max_mom = 0.9,
            .cycle_start_mom = 0.9,
            .cycle_beta2 = 0.999 } },
        { AFTER_ADAM("OneCycle",
                     CYCLE "\"cycle_first_step_size\": 7, \"cycle_second_step_size\": 2.5, "
                           "\"cycle_first_stair_count\": 3, \"cycle_second_stair_count\": 2, "
                           "\"decay_lr_rate\": 0.5, \"decay_step_size\": 6, \"cycle_momentum\": false, "
                           "\"cycle_min_mom\": 0.25, \"cycle_max_mom\": 0.75, \"decay_mom_rate\": -0.5"),
          { .kind = ZB_SCHEDULE_ONE_CYCLE,
            .cycle_min_lr = 0.25,
            .cycle_max_lr = 0.5,
            .cycle_first_step_size = 7,
            .cycle_second_step_size = 2.5,
            .cycle_first_stair_count = 3,
            .cycle_second_stair_count = 2,
            .decay_lr_rate = 0.5,
            .decay_step_size = 6,
            .cycle_min_mom = 0.25,
            .cycle_max_mom = 0.75,
            .decay_mom_rate = -0.5,
            .cycle_start_mom = 0.75,
            .cycle_beta2 = 0.999 } },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        zb_config *config = parse(rows[i].text);
        const zb_schedule_config *got = &config->groups[0].schedule, *want = &rows[i].want;
        assert_int_equal(config->note_count, 0);
        assert_true(got->base_lr == 0.125);
#define FIELD(name)                                                                                          \
    if (got->name != want->name)                                                                             \
    fail_msg("%s: %s is %g, want %g", rows[i].text, #name, (double)got->name, (double)want->name)
        FIELD(kind);
        FIELD(warmup_min_lr);
        FIELD(warmup_max_lr);
        FIELD(warmup_num_steps);
        FIELD(warmup_type);
        FIELD(total_num_steps);
        FIELD(warmup_min_ratio);
        FIELD(cos_min_ratio);
        FIELD(lr_range_test_min_lr);
        FIELD(lr_range_test_step_rate);
        FIELD(lr_range_test_step_size);
        FIELD(lr_range_test_staircase);
        FIELD(cycle_min_lr);
        FIELD(cycle_max_lr);
        FIELD(cycle_first_step_size);
        FIELD(cycle_second_step_size);
        FIELD(cycle_first_stair_count);
        FIELD(cycle_second_stair_count);
        FIELD(decay_lr_rate);
        FIELD(decay_step_size);
        FIELD(cycle_momentum);
        FIELD(cycle_min_mom);
        FIELD(cycle_max_mom);
        FIELD(decay_mom_rate);
        zb_schedule schedule;
        assert_int_equal(zb_schedule_init(&schedule, got), ZB_OK);
        zb_config_destroy(config);
    }
}

static void momentum_needs_betas(void **state)
{
    (void)state;
    zb_config *config = parse(
        "{\"optimizer\": {\"type\": \"SGD\", \"params\": {\"lr\": 1}}, \"scheduler\": {\"type\": "
        "\"OneCycle\", \"params\": {" CYCLE "\"cycle_momentum\": true}}}");
    assert_int_equal(config->groups[0].schedule.cycle_momentum, 0);
    zb_config_destroy(config);
}

/* ---- the example ------------------------------------------------------------------------------------- */

static void cifar10_example(void **state)
{
    (void)state;
    zb_config *config = NULL;
    if (zb_config_load(CIFAR10_PATH, &config) != ZB_OK) fail_msg("%s", zb_error_message());
    assert_string_equal(config->path, CIFAR10_PATH);
    assert_int_equal(config->dtype, ZB_FP16);
    assert_int_equal(config->fp16.initial_scale_power, 15);
    assert_int_equal(config->fp16.loss_scale_window, 500);
    assert_int_equal(config->zero.overlap_comm, 1);
    assert_int_equal(config->zero.reduce_bucket_numel, 50000000);
    assert_true(config->optimizer.beta1 == 0.8 && config->optimizer.weight_decay == 3e-7);
    assert_int_equal(config->optimizer.decay_mode, ZB_DECAY_DECOUPLED);
    assert_int_equal(config->groups[0].schedule.kind, ZB_SCHEDULE_WARMUP_LR);
    assert_int_equal(config->note_count, 2);
    assert_non_null(find_note(config, "zero_optimization.allgather_bucket_size"));
    assert_non_null(find_note(config, "zero_optimization.cpu_offload"));

    static const int dividing[] = { 1, 2, 4, 8 }, others[] = { 3, 5, 7 };
    zb_plan plan;
    for (size_t i = 0; i < COUNT(dividing); i++) {
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
            assert_int_equal(zb_plan_derive(config, stage, ZB_FP32, dividing[i], &plan), ZB_OK);
            assert_int_equal(plan.micro_batch_size, 16 / dividing[i]);
            assert_int_equal(plan.accumulation_steps, 1);
        }
    }
    assert_int_equal(zb_plan_derive(config, 0, config->dtype, 1, &plan), ZB_OK);
    assert_int_equal(plan.param_dtype, ZB_FP16);
    assert_int_equal(plan.scaler.kind, ZB_SCALER_DYNAMIC);
    assert_true(plan.scaler.initial_scale == 32768);
    for (size_t i = 0; i < COUNT(others); i++)
        assert_int_equal(zb_plan_derive(config, 0, ZB_FP32, others[i], &plan), ZB_INVALID_CONFIG);

    config->batch = (zb_batch_triangle){ .micro_batch_size = 4 };
    for (size_t i = 0; i < COUNT(others); i++) {
        assert_int_equal(zb_plan_derive(config, 3, ZB_FP32, others[i], &plan), ZB_OK);
        assert_int_equal(plan.micro_batch_size, 4);
        assert_int_equal(plan.accumulation_steps, 1);
    }
    zb_config_destroy(config);
    assert_int_equal(zb_config_load("/nowhere.json", &config), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "/nowhere.json: cannot be opened"));
}

static size_t read_example(char *text, size_t capacity)
{
    FILE *file = fopen(CIFAR10_PATH, "rb");
    assert_non_null(file);
    size_t bytes = fread(text, 1, capacity, file);
    fclose(file);
    assert_in_range(bytes, 100, capacity - 1);
    return bytes;
}

static void survives_every_allocation_failure(void **state)
{
    (void)state;
    char text[4096];
    size_t bytes = read_example(text, sizeof text);
    uint64_t live = zb_alloc_get_stats().live;
    for (int64_t n = 0;; n++) {
        zb_config *config = NULL;
        zb_alloc_fail_at(n);
        zb_status status = zb_config_parse(text, bytes, "f.json", &config);
        int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        if (fired) {
            assert_int_equal(status, ZB_NO_MEMORY);
            assert_null(config);
        }
        zb_config_destroy(config);
        assert_int_equal(zb_alloc_get_stats().live, live);
        if (fired) continue;
        assert_int_equal(status, ZB_OK);
        assert_true(n > 100);
        return;
    }
}

/* ---- mutations --------------------------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* One to four edits: another byte, one left out, one put in, or a piece repeated elsewhere. */
static size_t mutate(char *text, size_t bytes, size_t capacity, uint64_t *random)
{
    static const char likely[] = "{}[]:,\"\\/*#-+.eE0159nulltruefalse \n\x01\xff";
    for (uint64_t edits = 1 + next_random(random) % 4; edits > 0; edits--) {
        size_t at = next_random(random) % bytes;
        char c = likely[next_random(random) % sizeof likely];
        switch (next_random(random) % 4) {
        case 0:
            text[at] = c;
            break;
        case 1:
            memmove(text + at, text + at + 1, --bytes - at);
            break;
        case 2:
            if (bytes == capacity) break;
            memmove(text + at + 1, text + at, bytes++ - at);
            text[at] = c;
            break;
        default: {
            size_t from = next_random(random) % bytes, length = next_random(random) % 40;
            size_t room = bytes - (at > from ? at : from);
            memmove(text + at, text + from, length < room ? length : room);
        }
        }
    }
    return bytes;
}

static void mutations_never_crash(void **state)
{
    (void)state;
    char original[4096], text[4200];
    size_t original_bytes = read_example(original, sizeof original);
    uint64_t random = 0x9e3779b97f4a7c15u, live = zb_alloc_get_stats().live;
    size_t accepted = 0, refused = 0;
    for (int i = 0; i < 20000; i++) {
        memcpy(text, original, original_bytes);
        size_t bytes = mutate(text, original_bytes, sizeof text, &random);
        zb_config *config = NULL;
        zb_fail(ZB_INTERNAL, "%s", ""); /* an empty message, to see that a new one comes */
        zb_status status = zb_config_parse(text, bytes, "f.json", &config);
        if (status == ZB_OK) {
            accepted++;
            zb_plan plan;
            zb_batch_triangle batch;
            if (zb_plan_derive(config, 1, ZB_FP32, 4, &plan) == ZB_OK)
                assert_int_equal(zb_batch_resolve(&config->batch, 4, &batch), ZB_OK);
        } else {
            refused++;
            if (status != ZB_INVALID_CONFIG && status != ZB_UNSUPPORTED)
                fail_msg("mutation %d: status %d", i, status);
            if (strncmp(zb_error_message(), "f.json:", 7) != 0)
                fail_msg("mutation %d: '%s'", i, zb_error_message());
            assert_null(config);
        }
        zb_config_destroy(config);
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
    assert_true(accepted > 500 && refused > 5000);
}

int main(void)
{
    cjson_allocates_here();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quirks_over_semantics), cmocka_unit_test(refuses),
        cmocka_unit_test(accepts_and_notes),     cmocka_unit_test(defaults_are_deepspeeds),
        cmocka_unit_test(values_arrive),         cmocka_unit_test(gathering_arrives),
        cmocka_unit_test(schedulers_arrive),     cmocka_unit_test(momentum_needs_betas),
        cmocka_unit_test(cifar10_example),       cmocka_unit_test(survives_every_allocation_failure),
        cmocka_unit_test(mutations_never_crash),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
