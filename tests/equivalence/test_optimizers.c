/*
 * The engine's optimizers, on the CPU's kernels at every SIMD level: against what the real ones computed, and
 * against the oracle over random numbers of every kind, in random segments, over several steps.
 */
#include "tests/kernels/support.h"

#include <math.h>
#include <string.h>

#include "engine/optimizer.h"
#include "ref/oracle.h"
#include "tests/golden/optimizer_vectors.h"

/* --- an optimizer over plain arrays --- */

typedef struct rig {
    zb_device *device;
    zb_stream *stream;
    zb_shard shard;
    zb_optimizer optimizer;
} rig;

/* The segments hold the initial weights in the plan's type. */
static void rig_open(rig *r, const zb_plan *plan, zb_segment *segments, int segment_count, size_t numel)
{
    r->shard = (zb_shard){ .segments = segments, .segment_count = segment_count, .numel = numel };
    assert_ok(zb_device_cpu_create(&r->device));
    assert_ok(zb_stream_create(r->device, "compute", &r->stream));
    assert_ok(zb_optimizer_create(plan, r->stream, &r->shard, (zb_optimizer_exchange){ 0 }, &r->optimizer));
}

static void rig_close(rig *r)
{
    zb_optimizer_destroy(&r->optimizer, r->device);
    zb_stream_destroy(r->stream);
    zb_device_destroy(r->device);
}

/* --- recorded --- */

static void assert_hex(const optimizer_vector *c, const char *what, const uint32_t *want, const float *got)
{
    for (size_t i = 0; i < c->numel; i++)
        if (bits_of(got[i]) != want[i])
            fail_msg("%s: %s[%zu] is %08x, want %08x", c->name, what, i, bits_of(got[i]), want[i]);
}

static void vectors(void **state)
{
    use_level(state);
    for (size_t i = 0; i < OPTIMIZER_VECTOR_COUNT; i++) {
        const optimizer_vector *c = &optimizer_vectors[i];
        const zb_plan plan = { .groups = { c->config }, .group_count = 1 };
        float p[VECTOR_NUMEL_MAX], grad[VECTOR_NUMEL_MAX];
        zb_segment whole = { .numel = c->numel, .param = p, .grad = grad };
        rig r;
        optimizer_vector_start(c, p);
        rig_open(&r, &plan, &whole, 1, c->numel);
        for (int step = 1; step <= VECTOR_STEPS; step++) {
            optimizer_vector_gradient(c, step, grad);
            assert_ok(zb_optimizer_step(&r.optimizer, r.stream, &r.shard, 1.0f, &c->config));
        }
        assert_hex(c, "p", c->p, p);
        if (r.optimizer.exp_avg != NULL) assert_hex(c, "m", c->m, r.optimizer.exp_avg);
        if (r.optimizer.exp_avg_sq != NULL) assert_hex(c, "v", c->v, r.optimizer.exp_avg_sq);
        rig_close(&r);
    }
}

/* --- the oracle --- */

enum { STEPS = 4, SEGMENTS_MAX = 4, GROUPS = 2 };

static double pick(rng *r, const double *values, size_t count)
{
    return values[rng_below(r, count)];
}
#define PICK(r, ...)                                                                                         \
    pick(r, (const double[]){ __VA_ARGS__ }, sizeof((double[]){ __VA_ARGS__ }) / sizeof(double))

static zb_optimizer_config random_config(rng *r, zb_optimizer_kind kind, zb_optimizer_arithmetic arithmetic)
{
    return (zb_optimizer_config){
        .kind = kind,
        .arithmetic = arithmetic,
        .lr = PICK(r, 1e-3, 0.1, 0.0317),
        .weight_decay = PICK(r, 0, 0.01, 0.5),
        .beta1 = PICK(r, 0.9, 0.4, 0.5, 0, 0.95),
        .beta2 = PICK(r, 0.999, 0.6, 0.98),
        .eps = PICK(r, 1e-8, 1e-3),
        .bias_correction = rng_below(r, 4) != 0,
        .decay_mode = rng_below(r, 2) ? ZB_DECAY_L2 : ZB_DECAY_DECOUPLED,
        .momentum = 0.9,
        .dampening = PICK(r, 0, 0.3),
        .nesterov = (int)rng_below(r, 2),
        .lr_decay = PICK(r, 0, 0.1),
        .eps_inside_sqrt = (int)rng_below(r, 2),
        .min_coeff = PICK(r, 0.01, 0.3),
        .max_coeff = PICK(r, 10, 0.7),
        .vector_width = (int)PICK(r, 1, 8, 16),
    };
}

typedef struct run {
    rig engine;
    zb_ref_optimizer oracle[GROUPS];
    zb_optimizer_config now[GROUPS];
    zb_segment segments[SEGMENTS_MAX];
    int segment_count;
    size_t numel;
    tensor param, grad;
    float *p, *m, *v; /* the oracle's */
} run;

/* The shard cut at random into segments, some of them empty. */
static void cut(run *x, rng *r)
{
    size_t at = 0;
    x->segment_count = 1 + (int)rng_below(r, SEGMENTS_MAX);
    for (int i = 0; i < x->segment_count; i++) {
        const size_t rest = x->numel - at;
        const size_t size = i + 1 == x->segment_count ? rest : rng_below(r, rest + 1);
        x->segments[i] = (zb_segment){ .group = (int)rng_below(r, GROUPS),
                                       .shard_offset = at,
                                       .numel = size };
        at += size;
    }
}

static void point(run *x)
{
    for (int i = 0; i < x->segment_count; i++) {
        zb_segment *s = &x->segments[i];
        s->param = (char *)x->param.data + s->shard_offset * zb_dtype_bytes(x->param.dtype);
        s->grad = (char *)x->grad.data + s->shard_offset * zb_dtype_bytes(x->grad.dtype);
    }
}

static void step_oracle(run *x, float grad_scale)
{
    for (int g = 0; g < GROUPS; g++) zb_ref_optimizer_begin(&x->oracle[g], &x->now[g]);
    for (int i = 0; i < x->segment_count; i++) {
        const zb_segment *s = &x->segments[i];
        const size_t offset = s->shard_offset;
        zb_ref_update(&x->oracle[s->group], grad_scale, s->numel, x->p + offset, x->grad.values + offset,
                      x->m + offset, x->v + offset);
    }
}

static void compare(run *x, const char *label)
{
    const zb_optimizer *o = &x->engine.optimizer;
    const char *const kind = zb_optimizer_kind_name(o->kind);
    assert_same_floats(zb_optimizer_master(o, x->param.data, 0), x->p, x->numel, "%s %s: p", kind, label);
    if (o->exp_avg != NULL) assert_same_floats(o->exp_avg, x->m, x->numel, "%s %s: m", kind, label);
    if (o->exp_avg_sq != NULL) assert_same_floats(o->exp_avg_sq, x->v, x->numel, "%s %s: v", kind, label);
    memcpy(x->param.values, x->p, x->numel * sizeof(float));
    assert_tensor(&x->param, "%s %s: param", kind, label);
}

static void new_gradient(run *x, rng *r, fill_kind kind, zb_dtype dtype)
{
    tensor_free(&x->grad);
    x->grad = tensor_random(r, dtype, kind, x->numel);
    point(x);
}

static void check(rng *r, zb_optimizer_kind kind, zb_optimizer_arithmetic arithmetic, size_t numel,
                  fill_kind fill_with, zb_dtype param_dtype, zb_dtype grad_dtype)
{
    run x = { .numel = numel };
    const zb_optimizer_config config = random_config(r, kind, arithmetic);
    const zb_plan plan = {
        .param_dtype = param_dtype, .grad_dtype = grad_dtype, .groups = { config }, .group_count = 1
    };
    /* Groups have the same betas: to DeepSpeedCPUAdam's powers others would be a change within the step. */
    for (int g = 0; g < GROUPS; g++) x.now[g] = config;
    x.now[1].lr = 0.02, x.now[1].weight_decay = 0.3;
    cut(&x, r);
    x.param = tensor_random(r, param_dtype, fill_with, numel);
    x.grad = tensor_random(r, grad_dtype, fill_with, numel);
    point(&x);
    x.p = guarded_floats(numel, 0), x.m = guarded_floats(numel, 0), x.v = guarded_floats(numel, 0);
    memcpy(x.p, x.param.values, numel * sizeof(float));
    memset(x.m, 0, numel * sizeof(float)), memset(x.v, 0, numel * sizeof(float));
    rig_open(&x.engine, &plan, x.segments, x.segment_count, numel);
    for (int step = 0; step < STEPS; step++) {
        const float grad_scale = step % 2 ? 0.37f : 1.0f;
        if (step == 2 && rng_below(r, 3) == 0)
            for (int g = 0; g < GROUPS; g++) x.now[g].beta1 = 0.85, x.now[g].beta2 = 0.99;
        if (step > 0) new_gradient(&x, r, step == 3 ? FILL_SPECIAL : fill_with, grad_dtype);
        step_oracle(&x, grad_scale);
        assert_ok(
            zb_optimizer_step(&x.engine.optimizer, x.engine.stream, &x.engine.shard, grad_scale, x.now));
        compare(&x, zb_optimizer_arithmetic_name(arithmetic));
    }
    rig_close(&x.engine);
    tensor_free(&x.param), tensor_free(&x.grad);
    guarded_free(x.p), guarded_free(x.m), guarded_free(x.v);
}

static void oracle(void **state)
{
    use_level(state);
    rng r = { 31 };
    for (int kind = 0; kind < ZB_OPTIMIZER_KIND_COUNT; kind++)
        for (int a = 0; a < ZB_ARITHMETIC_COUNT; a++) {
            if (!zb_optimizer_has_arithmetic((zb_optimizer_kind)kind, (zb_optimizer_arithmetic)a)) continue;
            for (size_t s = 0; s < edge_size_count; s++)
                for (int fill_with = 0; fill_with < FILL_KINDS; fill_with++) {
                    const zb_dtype param = tensor_dtypes[rng_below(&r, TENSOR_DTYPES)];
                    const zb_dtype grad = rng_below(&r, 2) ? param : ZB_FP32;
                    check(&r, (zb_optimizer_kind)kind, (zb_optimizer_arithmetic)a, edge_sizes[s],
                          (fill_kind)fill_with, param, grad);
                }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = { AT_EACH_LEVEL(vectors), AT_EACH_LEVEL(oracle) };
    return cmocka_run_group_tests_name("optimizers", tests, NULL, NULL);
}
