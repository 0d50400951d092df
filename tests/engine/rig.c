/* See rig.h. */
#include "tests/engine/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>

#define DEEPSPEED "deepspeed-0.19.6"
#define FP16      "\"fp16\": {\"enabled\": true, \"initial_scale_power\": 8, \"loss_scale_window\": 1}"
#define BF16      "\"bf16\": {\"enabled\": true}"
#define IN_FP32   "\"data_types\": {\"grad_accum_dtype\": \"fp32\"}"
#define SEND(t)   "\"communication_data_type\": \"" t "\""

enum { AT_0 = 1, AT_1 = 2, AT_2 = 4, AT_3 = 8, EVERYWHERE = 15 };

const rig_plan rig_plans[] = {
    { "sent in another type", NULL, NULL, SEND("bf16"), EVERYWHERE },
    { "fp16, accumulated and sent in fp32", NULL, NULL, FP16 ", " IN_FP32 ", " SEND("fp32"), EVERYWHERE },
    { "all_reduce", NULL, "\"reduce_scatter\": false", BF16, AT_1 | AT_2 | AT_3 },
    { "prescaled", NULL, NULL, "\"prescale_gradients\": true", AT_0 | AT_1 },
    { "divided in two parts", NULL, "\"reduce_scatter\": false", "\"gradient_predivide_factor\": 3",
      EVERYWHERE },
    { "summed", NULL, NULL, "\"gradient_allreduce_op\": \"sum\"", AT_0 | AT_1 | AT_2 },
    { "DeepSpeed", DEEPSPEED, NULL, NULL, EVERYWHERE },
    { "DeepSpeed, fp16", DEEPSPEED, "\"round_robin_gradients\": true, \"sub_group_size\": 9", FP16,
      EVERYWHERE },
    { "DeepSpeed, bf16 sent in fp32", DEEPSPEED, NULL, BF16 ", " SEND("fp32"), EVERYWHERE },
    { "DeepSpeed, rooted", DEEPSPEED, "\"use_multi_rank_bucket_allreduce\": false", FP16, AT_1 | AT_2 },
    { "DeepSpeed, all_reduce", DEEPSPEED, "\"reduce_scatter\": false", NULL, AT_1 | AT_2 | AT_3 },
    { "DeepSpeed, scattered", DEEPSPEED, "\"contiguous_gradients\": false", BF16, AT_1 | AT_2 },
    { "DeepSpeed, accumulated in fp32", DEEPSPEED, NULL, FP16 ", " IN_FP32, AT_1 | AT_2 | AT_3 },
    { "DeepSpeed, BF16_Optimizer", DEEPSPEED, NULL, BF16 ", " IN_FP32, AT_1 },
};
const int rig_plan_count = (int)COUNT(rig_plans);

const char *rig_name(const rig_options *o)
{
    static char text[512];
    snprintf(text, sizeof text, "%s, stage %d x %d%s%s%s bucket %llu %s%s%s", o->model, o->stage,
             o->accumulation ? o->accumulation : 1, o->overlap ? ", overlap" : "", o->lazy ? ", lazy" : "",
             o->recorded ? ", recorded" : "", (unsigned long long)o->bucket,
             o->gathering != NULL ? o->gathering : "", o->plan != NULL ? ", " : "",
             o->plan != NULL ? o->plan->name : "");
    return text;
}

static const char *member(const char *keys)
{
    return keys != NULL ? keys : "";
}

zb_config *rig_config(const rig_options *o)
{
    char text[1536];
    zb_config *config = NULL;
    static const rig_plan standard = { .name = "standard" };
    const rig_plan *plan = o->plan != NULL ? o->plan : &standard;
    int length = snprintf(
        text, sizeof text,
        "{\"train_micro_batch_size_per_gpu\": %d, \"gradient_accumulation_steps\": %d, "
        "\"gradient_clipping\": 0.5, \"zero_allow_untested_optimizer\": true, \"dataloader_drop_last\": %s, "
        "\"optimizer\": %s, "
        "\"zero_optimization\": {\"stage\": %d, \"overlap_comm\": %s, \"reduce_bucket_size\": %llu, %s%s%s}, "
        "\"zerobit\": {\"semantics\": \"%s\", \"quirks\": {\"first_iteration_recorded\": %s}}%s%s}",
        RIG_MICRO_BATCH, o->accumulation ? o->accumulation : 1, o->drop_last ? "true" : "false",
        o->optimizer != NULL ? o->optimizer : RIG_ADAM, o->stage, o->overlap ? "true" : "false",
        o->bucket != 0 ? (unsigned long long)o->bucket : 500000000ull,
        o->gathering != NULL ? o->gathering : RIG_SOME_STAY, plan->zero != NULL ? ", " : "",
        member(plan->zero), plan->semantics != NULL ? plan->semantics : "standard",
        o->recorded ? "true" : "false", plan->rest != NULL ? ", " : "", member(plan->rest));
    if (zb_config_parse(text, (size_t)length, "rig.json", &config) != ZB_OK)
        fail_msg("%s", zb_error_message());
    return config;
}

void rig_open(rig *r, const rig_options *o)
{
    memset(r, 0, sizeof *r);
    r->live = zb_alloc_get_stats().live;
    r->config = rig_config(o);
    r->model = test_model(o->model);
    assert_int_equal(
        zb_dataset_synthetic(r->model, o->dataset_size != 0 ? o->dataset_size : 7, 3, &r->dataset), ZB_OK);
    probe_device_init(&r->device);
    probe_comm_init(&r->comm, &r->device);
    r->comm.lazy = o->lazy;
    r->options = (zb_engine_options){ .config = r->config,
                                      .model = r->model,
                                      .dataset = r->dataset,
                                      .device = &r->device.base,
                                      .comm = &r->comm.base,
                                      .stage = -1,
                                      .dtype = -1,
                                      .init_seed = 11 };
}

void rig_start(rig *r)
{
    if (zb_initialize(&r->options, &r->engine) != ZB_OK) fail_msg("%s", zb_error_message());
}

void rig_train(rig *r, int steps)
{
    for (int i = 0; i < steps; i++)
        if (zb_engine_train_step(r->engine, NULL) != ZB_OK) fail_msg("%s", zb_error_message());
}

void rig_close(rig *r)
{
    zb_engine_destroy(r->engine);
    for (int kind = 0; kind < ZB_MEM_COUNT; kind++)
        if (r->device.base.held_bytes[kind] != 0)
            fail_msg("%llu bytes of %s are left", (unsigned long long)r->device.base.held_bytes[kind],
                     zb_memory_kind_name((zb_memory_kind)kind));
    probe_comm_close(&r->comm);
    probe_device_close(&r->device);
    zb_dataset_destroy(r->dataset);
    zb_model_destroy(r->model);
    zb_config_destroy(r->config);
    assert_int_equal(zb_alloc_get_stats().live, r->live);
}

size_t rig_weights_bytes(const rig *r)
{
    return r->model->param_numel * sizeof(float);
}

float *rig_weights(rig *r)
{
    float *all = malloc(rig_weights_bytes(r) + 1), *next = all, *out[32];
    assert_non_null(all);
    assert_true(r->model->param_count <= (int)COUNT(out));
    for (int p = 0; p < r->model->param_count; p++) {
        out[p] = next;
        next += r->model->params[p].numel;
    }
    if (zb_engine_gather_weights(r->engine, out) != ZB_OK) fail_msg("%s", zb_error_message());
    return all;
}
