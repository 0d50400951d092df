/*
 * Every layer and loss against PyTorch, forward and backward, in fp32, fp16 and bf16.
 *
 * The recorded file has inputs, PyTorch's results, and what those lack to the results of PyTorch in fp64.
 * Sums have an order of PyTorch's own, so each element is judged by its distance from the true value:
 * PyTorch's, the oracle's and the kernels' must each lie within the bound that bounded.h derives. Judging
 * each by itself tells who is wrong when two differ. What is rounded once, or not at all, must have PyTorch's
 * bits.
 *
 * A bound that lets everything through proves nothing: faults (see `faults`) must land far outside.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

#include "ref/oracle.h"
#include "tests/golden/bounded.h"
#include "tests/golden/layer_kinds.h"
#include "tests/golden/recorded.h"
#include "tests/kernels/support.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define LAYERS       ZB_SOURCE_DIR "/fixtures/pytorch-layers/layers.safetensors"

static zb_safetensors file;
static zb_device *device;

/* --- the recorded cases: what tensors' shapes do not tell --- */

static const struct layer_case {
    const kind *kind;
    const char *name;
    int kernel, stride, padding; /* kernel: of maxpool2d */
    float seed, divisor;         /* losses; 0: 1 */
} cases[] = {
    { .kind = &linear, .name = "one" },
    { .kind = &linear, .name = "odd" },
    { .kind = &linear, .name = "one-row" },
    { .kind = &linear, .name = "no-bias" },
    { .kind = &linear, .name = "many-rows" },
    { .kind = &linear, .name = "long" },
    { .kind = &linear, .name = "wide" },
    { .kind = &linear, .name = "cancelling" },
    { .kind = &linear, .name = "subnormal" },
    { .kind = &linear, .name = "overflow" },
    { .kind = &linear, .name = "special" },
    { .kind = &conv2d, .name = "as-in-the-example", .stride = 1 },
    { .kind = &conv2d, .name = "1x1", .stride = 1 },
    { .kind = &conv2d, .name = "kernel-is-image", .stride = 1 },
    { .kind = &conv2d, .name = "padding", .stride = 1, .padding = 1 },
    { .kind = &conv2d, .name = "stride", .stride = 2 },
    { .kind = &conv2d, .name = "stride-leaves-rows-out", .stride = 3 },
    { .kind = &conv2d, .name = "stride-and-padding", .stride = 2, .padding = 1 },
    { .kind = &conv2d, .name = "padding-wider-than-kernel", .stride = 1, .padding = 3 },
    { .kind = &conv2d, .name = "no-bias", .stride = 1 },
    { .kind = &conv2d, .name = "many-images", .stride = 1 },
    { .kind = &conv2d, .name = "wide", .stride = 1 },
    { .kind = &conv2d, .name = "subnormal", .stride = 1 },
    { .kind = &conv2d, .name = "special", .stride = 1 },
    { .kind = &maxpool2d, .name = "2", .kernel = 2, .stride = 2 },
    { .kind = &maxpool2d, .name = "odd", .kernel = 2, .stride = 2 },
    { .kind = &maxpool2d, .name = "overlapping", .kernel = 3, .stride = 1 },
    { .kind = &maxpool2d, .name = "overlapping-stride-2", .kernel = 3, .stride = 2 },
    { .kind = &maxpool2d, .name = "gaps", .kernel = 2, .stride = 3 },
    { .kind = &maxpool2d, .name = "kernel-is-image", .kernel = 4, .stride = 4 },
    { .kind = &maxpool2d, .name = "wide", .kernel = 3, .stride = 1 },
    { .kind = &maxpool2d, .name = "ties", .kernel = 2, .stride = 2 },
    { .kind = &maxpool2d, .name = "ties-overlapping", .kernel = 3, .stride = 1 },
    { .kind = &maxpool2d, .name = "special", .kernel = 2, .stride = 2 },
    { .kind = &maxpool2d, .name = "special-overlapping", .kernel = 2, .stride = 1 },
    { .kind = &relu, .name = "wide" },
    { .kind = &relu, .name = "special" },
    { .kind = &add, .name = "wide" },
    { .kind = &add, .name = "special" },
    { .kind = &cast, .name = "small" },
    { .kind = &cast, .name = "middle" },
    { .kind = &cast, .name = "large" },
    { .kind = &cast, .name = "not-finite" },
    { .kind = &cross_entropy, .name = "one-row" },
    { .kind = &cross_entropy, .name = "one-class" },
    { .kind = &cross_entropy, .name = "two-classes" },
    { .kind = &cross_entropy, .name = "ends" },
    { .kind = &cross_entropy, .name = "many-rows" },
    { .kind = &cross_entropy, .name = "many-classes" },
    { .kind = &cross_entropy, .name = "loss-scale", .seed = 65536, .divisor = 3 },
    { .kind = &cross_entropy, .name = "equal" },
    { .kind = &cross_entropy, .name = "sure" },
    { .kind = &cross_entropy, .name = "huge" },
    { .kind = &cross_entropy, .name = "tail" },
    { .kind = &cross_entropy, .name = "infinite" },
    { .kind = &cross_entropy, .name = "infinite-loss" },
    { .kind = &cross_entropy, .name = "not-finite" },
    { .kind = &mse, .name = "one" },
    { .kind = &mse, .name = "odd" },
    { .kind = &mse, .name = "wide" },
    { .kind = &mse, .name = "loss-scale", .seed = 1024, .divisor = 3 },
    { .kind = &mse, .name = "close" },
    { .kind = &mse, .name = "subnormal" },
    { .kind = &mse, .name = "not-finite" },
};

/* --- a case as recorded --- */

typedef struct layer {
    const struct layer_case *c;
    problem p;
    recorded inputs[6]; /* own what p borrows */
    size_t output_count;
    recorded torch[OUTPUTS_MAX]; /* PyTorch's results */
    recorded rest[OUTPUTS_MAX];  /* and what they lack to fp64; not for kinds that have bits */
    bounded truth[OUTPUTS_MAX];
} layer;

static zb_shape sample_shape(const zb_shape *batch)
{
    zb_shape shape = { .dims = batch->dims - 1 };
    for (int i = 0; i < shape.dims; i++) shape.extent[i] = batch->extent[i + 1];
    return shape;
}

static zb_module module_of(const layer *l, const zb_shape *x, const zb_safetensors_tensor *w,
                           const zb_shape *y)
{
    static const struct {
        const kind *kind;
        zb_module_kind module;
    } kinds[] = { { &linear, ZB_MODULE_LINEAR },
                  { &conv2d, ZB_MODULE_CONV2D },
                  { &maxpool2d, ZB_MODULE_MAXPOOL2D } };
    zb_module module = { .stride = l->c->stride, .padding = l->c->padding };
    for (size_t i = 0; i < COUNT(kinds); i++)
        if (kinds[i].kind == l->c->kind) module.kind = kinds[i].module;
    module.in = sample_shape(x);
    module.out = sample_shape(y);
    module.kernel = w != NULL && w->shape.dims == 4 ? (int)w->shape.extent[2] : l->c->kernel;
    return module;
}

static layer layer_open(const struct layer_case *c, zb_dtype dtype)
{
    static const char *const inputs[] = { "x", "w", "b", "dy", "t", "labels" };
    layer l = { .c = c };
    char prefix[ZB_NAME_BYTES];
    snprintf(prefix, sizeof prefix, "%s.%s.%s", c->kind->name, c->name, zb_dtype_name(dtype));
    for (size_t i = 0; i < COUNT(inputs); i++) l.inputs[i] = recorded_find(&file, "%s.%s", prefix, inputs[i]);
    while (l.output_count < OUTPUTS_MAX && c->kind->outputs[l.output_count] != NULL) {
        const size_t i = l.output_count;
        const char *name = c->kind->outputs[i];
        if (strcmp(name, "db") == 0 && l.inputs[2].found == NULL) break;
        l.torch[i] = recorded_get(&file, "%s.%s", prefix, name);
        if (c->kind->truth != NULL) l.rest[i] = recorded_get(&file, "%s.%s.rest", prefix, name);
        l.output_count++;
    }
    const zb_safetensors_tensor *x = l.inputs[0].found;
    assert_non_null(x);
    l.p = (problem){
        .dtype = dtype,
        .rows = (size_t)x->shape.extent[0],
        .numel = x->numel,
        .x = l.inputs[0].values,
        .w = l.inputs[1].values,
        .b = l.inputs[2].values,
        .dy = l.inputs[3].values,
        .t = l.inputs[4].values,
        .seed = c->seed == 0 ? 1 : c->seed,
        .divisor = c->divisor == 0 ? 1 : c->divisor,
    };
    l.p.module = module_of(&l, &x->shape, l.inputs[1].found,
                           l.torch[0].found->shape.dims == 0 ? &x->shape : &l.torch[0].found->shape);
    if (l.inputs[5].found != NULL) {
        l.p.labels = room(l.p.rows, sizeof *l.p.labels);
        for (size_t i = 0; i < l.p.rows; i++) l.p.labels[i] = (int32_t)l.inputs[5].values[i];
    }
    if (c->kind->truth != NULL) c->kind->truth(&l.p, l.truth);
    return l;
}

static void layer_close(layer *l)
{
    for (size_t i = 0; i < COUNT(l->inputs); i++) recorded_destroy(&l->inputs[i]);
    for (size_t i = 0; i < l->output_count; i++) {
        recorded_destroy(&l->torch[i]), recorded_destroy(&l->rest[i]);
        bounded_destroy(&l->truth[i]);
    }
    zb_free(l->p.labels);
}

static void outputs_create(const layer *l, float **out)
{
    for (size_t i = 0; i < l->output_count; i++) {
        out[i] = room(l->torch[i].found->numel, sizeof *out[i]);
        for (size_t j = 0; j < l->torch[i].found->numel; j++) out[i][j] = NAN; /* nothing may be left out */
    }
}

static void outputs_destroy(const layer *l, float **out)
{
    for (size_t i = 0; i < l->output_count; i++) zb_free(out[i]);
}

/* --- judging --- */

/*
 * The bits that PyTorch's result stands for. Its CPU relu keeps the sign of -0, its documentation says max(0,
 * x) and nothing of signs; the contract says +0.
 */
static float wanted_bits(const layer *l, size_t output, size_t i)
{
    const float torch = l->torch[output].values[i];
    return l->c->kind == &relu && output == 0 && torch == 0 ? 0.0f : torch;
}

/* Only PyTorch's own results may be that much further off. */
static double torch_also(const layer *l, size_t output, size_t i)
{
    if (l->c->kind != &linear && l->c->kind != &conv2d) return 0;
    return bounded_pytorch_cpu(&l->p.module, l->p.dtype, l->p.rows, (bounded_output)output, &l->truth[output],
                               i);
}

/* The largest distance of an element from the truth, 1 being allowed; of bits: infinite when one differs. */
static double worst_distance(const layer *l, size_t output, const float *got, int is_torch, size_t *where)
{
    double worst = 0;
    *where = 0;
    for (size_t i = 0; i < l->torch[output].found->numel; i++) {
        const float bits = wanted_bits(l, output, i);
        double distance;
        if (l->c->kind->truth == NULL)
            distance = bits_of(got[i]) == bits_of(bits) || (isnan(got[i]) && isnan(bits)) ? 0 : INFINITY;
        else
            distance = bounded_distance(l->torch[output].found->dtype, &l->truth[output], i,
                                        is_torch ? torch_also(l, output, i) : 0, got[i]);
        if (distance > worst) worst = distance, *where = i;
    }
    return worst;
}

static void assert_near(const layer *l, const char *who, size_t output, const float *got, int is_torch)
{
    size_t i;
    const double distance = worst_distance(l, output, got, is_torch, &i);
    if (distance <= 1) return;
    const char *name = l->c->kind->outputs[output];
    const size_t numel = l->torch[output].found->numel;
    if (l->c->kind->truth == NULL)
        fail_msg("%s, %s: element %zu of %zu is %.9g (%08x), want %.9g (%08x)", who, name, i, numel,
                 (double)got[i], bits_of(got[i]), (double)wanted_bits(l, output, i),
                 bits_of(wanted_bits(l, output, i)));
    fail_msg(
        "%s, %s: element %zu of %zu is %.9g; PyTorch has %.9g, true is %.17g +- %.3g: %.3g times too far",
        who, name, i, numel, (double)got[i], (double)l->torch[output].values[i], l->truth[output].value[i],
        l->truth[output].error[i], distance);
}

/*
 * The value that bounds are around must be that of PyTorch in fp64, recorded as the difference to its result:
 * in 16 bits, so that a part in 256 of it is lost.
 */
static void assert_same_truth(const layer *l, size_t output)
{
    const bounded *truth = &l->truth[output];
    for (size_t i = 0; i < truth->numel; i++) {
        const double torch = (double)l->torch[output].values[i], rest = (double)l->rest[output].values[i];
        const double recorded_truth = isfinite(torch) || rest == 0 ? torch + rest : rest;
        if (isnan(recorded_truth) && isnan(truth->value[i])) continue;
        if (recorded_truth == truth->value[i]) continue;
        const double lost = l->rest[output].found->dtype == ZB_BF16 ? 0x1p-134 : 0x1p-149;
        if (fabs(recorded_truth - truth->value[i]) <= fabs(rest) / 256 + truth->error[i] / 64 + lost)
            continue;
        fail_msg("%s: the true value of element %zu is %.17g, PyTorch in fp64 has %.17g",
                 l->c->kind->outputs[output], i, truth->value[i], recorded_truth);
    }
}

static void check_case(const struct layer_case *c, zb_dtype dtype)
{
    static const char *const levels[] = { "portable", "avx2", "avx512" };
    layer l = layer_open(c, dtype);
    float *out[OUTPUTS_MAX];
    for (size_t i = 0; i < l.output_count; i++) {
        if (c->kind->truth != NULL) assert_same_truth(&l, i);
        if (c->kind->truth != NULL) assert_near(&l, "PyTorch", i, l.torch[i].values, 1);
    }
    outputs_create(&l, out);
    c->kind->oracle(&l.p, out);
    for (size_t i = 0; i < l.output_count; i++) assert_near(&l, "oracle", i, out[i], 0);
    outputs_destroy(&l, out);
    for (size_t level = 0; level < COUNT(levels); level++) {
        if (zb_cpu_set_simd_level(levels[level]) != ZB_OK) continue; /* not on this machine */
        outputs_create(&l, out);
        c->kind->kernel(&l.p, out);
        for (size_t i = 0; i < l.output_count; i++) assert_near(&l, levels[level], i, out[i], 0);
        outputs_destroy(&l, out);
    }
    layer_close(&l);
}

/* --- faults: wrong computations, which the comparison must notice --- */

/* Runs the oracle on a damaged copy of the problem. */
static void run_damaged(const layer *l, void (*damage)(problem *), float *const *out)
{
    problem p = l->p;
    const size_t weights = p.w == NULL ? 0 : weight_numel(&p);
    float *x = room(p.numel, sizeof *x), *w = room(weights, sizeof *w);
    float *dy = p.dy == NULL ? NULL : room(out_numel(&p), sizeof *dy);
    int32_t *labels = room(p.rows, sizeof *labels);
    memcpy(x, p.x, p.numel * sizeof *x);
    if (p.w != NULL) memcpy(w, p.w, weights * sizeof *w), p.w = w;
    if (p.dy != NULL) memcpy(dy, p.dy, out_numel(&p) * sizeof *dy);
    if (p.labels != NULL) memcpy(labels, p.labels, p.rows * sizeof *labels), p.labels = labels;
    p.x = x, p.dy = dy;
    damage(&p);
    l->c->kind->oracle(&p, out);
    zb_free(x), zb_free(w), zb_free(dy), zb_free(labels);
}

static void swap(float *a, float *b)
{
    const float kept = *a;
    *a = *b, *b = kept;
}

static void drop_last_input(problem *p)
{
    const size_t in = p->numel / p->rows;
    for (size_t n = 0; n < p->rows; n++) p->x[n * in + in - 1] = 0;
}
static void drop_last_row(problem *p)
{
    const size_t out = out_numel(p) / p->rows;
    for (size_t i = 0; i < out; i++) p->dy[(p->rows - 1) * out + i] = 0;
}
static void drop_last_channel(problem *p)
{
    const size_t out = out_numel(p) / p->rows, positions = out / channels_of(p);
    for (size_t n = 0; n < p->rows; n++)
        for (size_t i = out - positions; i < out; i++) p->dy[n * out + i] = 0;
}
static void drop_last_position(problem *p)
{
    const size_t positions = out_numel(p) / p->rows / channels_of(p);
    for (size_t i = positions - 1; i < out_numel(p); i += positions) p->dy[i] = 0;
}
static void drop_last_tap(problem *p)
{
    const size_t taps = weight_numel(p) / channels_of(p);
    for (size_t o = 0; o < channels_of(p); o++) p->w[(o + 1) * taps - 1] = 0;
}
static void drop_bias(problem *p)
{
    p->b = NULL;
}
static void transpose_taps(problem *p)
{
    const size_t kernel = (size_t)p->module.kernel;
    for (float *w = p->w; w < p->w + weight_numel(p); w += kernel * kernel)
        for (size_t r = 0; r < kernel; r++)
            for (size_t s = 0; s < r; s++) swap(&w[r * kernel + s], &w[s * kernel + r]);
}
static void flip_taps(problem *p)
{
    const size_t taps = (size_t)(p->module.kernel * p->module.kernel);
    for (float *w = p->w; w < p->w + weight_numel(p); w += taps)
        for (size_t i = 0; i < taps / 2; i++) swap(&w[i], &w[taps - 1 - i]);
}
static void swap_channels(problem *p)
{
    const size_t image = (size_t)(p->module.in.extent[1] * p->module.in.extent[2]);
    for (size_t n = 0; n < p->rows; n++)
        for (size_t i = 0; i < image; i++) swap(&p->x[2 * n * image + i], &p->x[(2 * n + 1) * image + i]);
}
static void swap_first_rows(problem *p)
{
    const size_t in = p->numel / p->rows;
    for (size_t i = 0; i < in; i++) swap(&p->x[i], &p->x[in + i]);
}
static void swap_dy_neighbours(problem *p)
{
    for (size_t i = 0; i + 1 < out_numel(p); i += 2) swap(&p->dy[i], &p->dy[i + 1]);
}
/* What a product with less precise operands gives: 11 significant bits, as in TF32. */
static void shorten_x(problem *p)
{
    zb_ref_round_all(ZB_FP16, p->x, p->numel);
}
static void shorten_dy(problem *p)
{
    zb_ref_round_all(ZB_FP16, p->dy, out_numel(p));
}
static void move_image(problem *p)
{
    memmove(p->x + 1, p->x, (p->numel - 1) * sizeof *p->x);
}
static void last_place_of_x(problem *p)
{
    for (size_t i = 0; i < p->numel; i++) p->x[i] = nextafterf(p->x[i], INFINITY);
}
static void negate_zeros(problem *p)
{
    for (size_t i = 0; i < p->numel; i++)
        if (p->x[i] == 0) p->x[i] = -p->x[i];
}
static void replace_nans(problem *p)
{
    for (size_t i = 0; i < p->numel; i++)
        if (isnan(p->x[i])) p->x[i] = -INFINITY;
}
static void next_label(problem *p)
{
    const int32_t classes = (int32_t)(p->numel / p->rows);
    for (size_t n = 0; n < p->rows; n++) p->labels[n] = (p->labels[n] + 1) % classes;
}
static void forget_seed(problem *p)
{
    p->seed = 1;
}
static void forget_divisor(problem *p)
{
    p->divisor = 1;
}
static void sum_for_mean(problem *p)
{
    p->divisor /= (float)p->rows;
}
static void half_gradient(problem *p)
{
    p->seed /= 2;
}

static void flush_subnormals(const problem *p, float *const *out)
{
    linear.oracle(p, out);
    for (size_t i = 0; i < out_numel(p); i++)
        if (fabsf(out[0][i]) < 0x1p-126f) out[0][i] = 0;
}

/* y[n,o] and dw[o,i] of a linear layer whose running sums are stored in 16 bits. */
static void sums_in_16_bits(const problem *p, float *const *out)
{
    const size_t in = p->numel / p->rows, channels = channels_of(p);
    linear.oracle(p, out);
    for (size_t i = 0; i < p->rows * channels; i++) {
        out[0][i] = p->b == NULL ? 0 : p->b[i % channels];
        for (size_t k = 0; k < in; k++)
            out[0][i] = zb_ref_round(
                p->dtype, fmaf(p->x[i / channels * in + k], p->w[i % channels * in + k], out[0][i]));
    }
    for (size_t i = 0; i < channels * in; i++) {
        out[2][i] = 0;
        for (size_t n = 0; n < p->rows; n++)
            out[2][i] = zb_ref_round(p->dtype,
                                     fmaf(p->dy[n * channels + i / in], p->x[n * in + i % in], out[2][i]));
    }
}

/* Seen from the other end, the last of equal numbers comes first. Only where windows tile the image. */
static void last_tie_wins(const problem *p, float *const *out)
{
    problem turned = *p;
    turned.x = room(p->numel, sizeof *p->x), turned.dy = room(out_numel(p), sizeof *p->dy);
    for (size_t i = 0; i < p->numel; i++) turned.x[i] = p->x[p->numel - 1 - i];
    for (size_t i = 0; i < out_numel(p); i++) turned.dy[i] = p->dy[out_numel(p) - 1 - i];
    maxpool2d.oracle(&turned, out);
    for (size_t i = 0; i < p->numel / 2; i++) swap(&out[1][i], &out[1][p->numel - 1 - i]);
    for (size_t i = 0; i < out_numel(p) / 2; i++) swap(&out[0][i], &out[0][out_numel(p) - 1 - i]);
    zb_free(turned.x), zb_free(turned.dy);
}

/* log(sum of exp(x)) - x, without taking the maximum out first. */
static void without_maximum(const problem *p, float *const *out)
{
    const size_t classes = p->numel / p->rows;
    cross_entropy.oracle(p, out);
    out[0][0] = 0;
    for (size_t n = 0; n < p->rows; n++) {
        float sum = 0;
        for (size_t i = 0; i < classes; i++) sum += zb_ref_exp(p->x[n * classes + i]);
        out[0][0] += (zb_ref_log(sum) - p->x[n * classes + (size_t)p->labels[n]]) / (float)p->rows;
    }
}

/* Gradients from log-probabilities that were stored in 16 bits. */
static void rounded_log_probs(const problem *p, float *const *out)
{
    const size_t classes = p->numel / p->rows;
    float *log_probs = room(p->numel, sizeof *log_probs);
    out[0][0] = zb_ref_cross_entropy_forward(p->rows, classes, p->x, p->labels, log_probs);
    zb_ref_round_all(p->dtype, log_probs, p->numel);
    zb_ref_cross_entropy_backward(p->rows, classes, log_probs, p->labels, p->seed, p->divisor, out[1]);
    zb_ref_round_all(p->dtype, out[1], p->numel);
    zb_free(log_probs);
}

/* Where a relu's input is +0 or NaN the gradient is another matter than its sign. */
static void pass_at_zero(const problem *p, float *const *out)
{
    relu.oracle(p, out);
    for (size_t i = 0; i < p->numel; i++)
        if (p->x[i] == 0) out[1][i] = p->dy[i];
}
static void stop_at_nan(const problem *p, float *const *out)
{
    relu.oracle(p, out);
    for (size_t i = 0; i < p->numel; i++)
        if (isnan(p->x[i])) out[1][i] = 0;
}

/* Cutting bits off in place of rounding to nearest. */
static void cut_off(const problem *p, float *const *out)
{
    cast.oracle(p, out);
    for (size_t i = 0; i < p->numel; i++)
        if (isfinite(p->x[i])) out[1][i] = from_bits(bits_of(p->x[i]) & 0xffff0000);
}

/* `output` must be at least `times` as far from the truth as a right computation may be. */
static const struct fault {
    const char *name;
    const kind *kind;
    const char *in_case, *output;
    zb_dtype dtype;
    double times; /* INFINITY: bits, or a NaN or infinity */
    void (*damage)(problem *);
    void (*compute)(const problem *, float *const *);
} faults[] = {
    { "linear: last input dropped", &linear, "odd", "y", ZB_FP32, 1e5, drop_last_input, NULL },
    { "linear: last of 521 inputs dropped", &linear, "long", "y", ZB_FP32, 20, drop_last_input, NULL },
    { "linear: last input dropped, fp16", &linear, "odd", "y", ZB_FP16, 100, drop_last_input, NULL },
    { "linear: last input dropped, bf16", &linear, "odd", "y", ZB_BF16, 20, drop_last_input, NULL },
    { "linear: bias missing", &linear, "odd", "y", ZB_FP32, 1e5, drop_bias, NULL },
    { "linear: last row missing in dw", &linear, "many-rows", "dw", ZB_FP32, 1e4, drop_last_row, NULL },
    { "linear: last row missing in db", &linear, "many-rows", "db", ZB_FP32, 1e3, drop_last_row, NULL },
    { "linear: last output missing in dx", &linear, "odd", "dx", ZB_FP32, 1e5, drop_last_channel, NULL },
    { "linear: two samples swapped", &linear, "odd", "dw", ZB_FP32, 1e5, swap_first_rows, NULL },
    { "linear: dy in another order", &linear, "odd", "dx", ZB_FP32, 1e5, swap_dy_neighbours, NULL },
    { "linear: x as TF32", &linear, "odd", "y", ZB_FP32, 100, shorten_x, NULL },
    { "linear: x as TF32, 521 inputs", &linear, "long", "dw", ZB_FP32, 100, shorten_x, NULL },
    { "linear: dy as TF32", &linear, "odd", "db", ZB_FP32, 100, shorten_dy, NULL },
    { "linear: subnormals taken for zeros", &linear, "subnormal", "y", ZB_FP32, 1e4, NULL, flush_subnormals },
    { "linear: sums in fp16", &linear, "long", "y", ZB_FP16, 2, NULL, sums_in_16_bits },
    { "linear: sums in bf16", &linear, "long", "y", ZB_BF16, 3, NULL, sums_in_16_bits },
    { "linear: dw's sums in fp16", &linear, "many-rows", "dw", ZB_FP16, 3, NULL, sums_in_16_bits },
    { "conv2d: taps transposed", &conv2d, "padding", "y", ZB_FP32, 1e5, transpose_taps, NULL },
    { "conv2d: taps transposed in dx", &conv2d, "stride", "dx", ZB_FP32, 1e5, transpose_taps, NULL },
    { "conv2d: taps flipped", &conv2d, "stride", "y", ZB_FP32, 1e5, flip_taps, NULL },
    { "conv2d: taps not flipped in dx", &conv2d, "padding", "dx", ZB_FP32, 1e5, flip_taps, NULL },
    { "conv2d: last tap dropped", &conv2d, "as-in-the-example", "y", ZB_FP32, 1e4, drop_last_tap, NULL },
    { "conv2d: last tap dropped, bf16", &conv2d, "as-in-the-example", "y", ZB_BF16, 20, drop_last_tap, NULL },
    { "conv2d: last tap dropped in dx, fp16", &conv2d, "as-in-the-example", "dx", ZB_FP16, 20, drop_last_tap,
      NULL },
    { "conv2d: bias missing", &conv2d, "stride", "y", ZB_FP32, 1e5, drop_bias, NULL },
    { "conv2d: image moved by one", &conv2d, "stride-and-padding", "y", ZB_FP32, 1e5, move_image, NULL },
    { "conv2d: image moved by one in dw", &conv2d, "stride-and-padding", "dw", ZB_FP32, 1e4, move_image,
      NULL },
    { "conv2d: channels swapped", &conv2d, "padding", "y", ZB_FP32, 1e5, swap_channels, NULL },
    { "conv2d: last image missing in dw", &conv2d, "many-images", "dw", ZB_FP32, 1e3, drop_last_row, NULL },
    { "conv2d: last image missing in db", &conv2d, "many-images", "db", ZB_FP32, 1e3, drop_last_row, NULL },
    { "conv2d: last position missing in dw", &conv2d, "padding", "dw", ZB_FP32, 1e4, drop_last_position,
      NULL },
    { "conv2d: last channel missing in dx", &conv2d, "padding", "dx", ZB_FP32, 1e5, drop_last_channel, NULL },
    { "conv2d: x as TF32", &conv2d, "as-in-the-example", "y", ZB_FP32, 20, shorten_x, NULL },
    { "maxpool2d: a NaN does not win", &maxpool2d, "special", "y", ZB_FP32, INFINITY, replace_nans, NULL },
    { "maxpool2d: last tie wins", &maxpool2d, "ties", "dx", ZB_FP32, INFINITY, NULL, last_tie_wins },
    { "maxpool2d: sign of zero", &maxpool2d, "ties", "y", ZB_FP32, INFINITY, negate_zeros, NULL },
    { "maxpool2d: dy in another order", &maxpool2d, "overlapping", "dx", ZB_BF16, INFINITY,
      swap_dy_neighbours, NULL },
    { "relu: gradient at zero", &relu, "special", "dx", ZB_FP32, INFINITY, NULL, pass_at_zero },
    { "relu: no gradient at NaN", &relu, "special", "dx", ZB_FP32, INFINITY, NULL, stop_at_nan },
    { "relu: a NaN does not stay", &relu, "special", "y", ZB_FP32, INFINITY, replace_nans, NULL },
    { "relu: last place", &relu, "wide", "y", ZB_FP32, INFINITY, last_place_of_x, NULL },
    { "add: sign of zero", &add, "special", "y", ZB_FP32, INFINITY, negate_zeros, NULL },
    { "cast: cut off", &cast, "middle", "bf16", ZB_FP32, INFINITY, NULL, cut_off },
    { "cross_entropy: wrong label", &cross_entropy, "ends", "y", ZB_FP32, 1e4, next_label, NULL },
    { "cross_entropy: wrong label in dx", &cross_entropy, "ends", "dx", ZB_FP32, 1e5, next_label, NULL },
    { "cross_entropy: gradient of the sum", &cross_entropy, "ends", "dx", ZB_FP32, 1e5, sum_for_mean, NULL },
    { "cross_entropy: no loss scale", &cross_entropy, "loss-scale", "dx", ZB_FP32, 1e5, forget_seed, NULL },
    { "cross_entropy: no division", &cross_entropy, "loss-scale", "dx", ZB_BF16, 50, forget_divisor, NULL },
    { "cross_entropy: maximum left in", &cross_entropy, "huge", "y", ZB_FP32, INFINITY, NULL,
      without_maximum },
    { "cross_entropy: log-probabilities in fp16", &cross_entropy, "ends", "dx", ZB_FP16, 2, NULL,
      rounded_log_probs },
    { "cross_entropy: log-probabilities in bf16", &cross_entropy, "ends", "dx", ZB_BF16, 2, NULL,
      rounded_log_probs },
    { "cross_entropy: x as TF32", &cross_entropy, "ends", "dx", ZB_FP32, 20, shorten_x, NULL },
    { "mse: half the gradient", &mse, "odd", "dx", ZB_FP32, 1e5, half_gradient, NULL },
    { "mse: x as TF32", &mse, "close", "y", ZB_FP32, 100, shorten_x, NULL },
    { "mse: last place of x", &mse, "close", "dx", ZB_FP32, 10, last_place_of_x, NULL },
    { "mse: last input dropped", &mse, "odd", "y", ZB_FP32, 1e3, drop_last_input, NULL },
};

static void check_fault(void **state)
{
    const struct fault *f = *state;
    const struct layer_case *c = NULL;
    for (size_t i = 0; i < COUNT(cases); i++)
        if (cases[i].kind == f->kind && strcmp(cases[i].name, f->in_case) == 0) c = &cases[i];
    assert_non_null(c);
    layer l = layer_open(c, f->dtype);
    float *out[OUTPUTS_MAX];
    outputs_create(&l, out);
    if (f->damage != NULL)
        run_damaged(&l, f->damage, out);
    else
        f->compute(&l.p, out);
    size_t output = 0, where;
    while (strcmp(c->kind->outputs[output], f->output) != 0) output++;
    const double distance = worst_distance(&l, output, out[output], 0, &where);
    if (!(distance >= f->times)) fail_msg("only %.3g times too far, want %.3g", distance, f->times);
    outputs_destroy(&l, out);
    layer_close(&l);
}

/* --- the tests --- */

/* Every recorded tensor belongs to a case of the table: none has been forgotten. */
static void every_recorded_case_is_checked(void **state)
{
    (void)state;
    for (size_t i = 0; i < file.count; i++) {
        int known = 0;
        for (size_t j = 0; j < COUNT(cases) && !known; j++) {
            char prefix[ZB_NAME_BYTES];
            snprintf(prefix, sizeof prefix, "%s.%s.", cases[j].kind->name, cases[j].name);
            known = strncmp(file.tensors[i].name, prefix, strlen(prefix)) == 0;
        }
        if (!known) fail_msg("%s belongs to no case", file.tensors[i].name);
    }
}

/* A case in one type. */
typedef struct typed_case {
    const struct layer_case *c;
    zb_dtype dtype;
    char name[ZB_NAME_BYTES];
} typed_case;

static void check_typed_case(void **state)
{
    const typed_case *t = *state;
    check_case(t->c, t->dtype);
}

static int open_all(void **state)
{
    (void)state;
    assert_ok(zb_safetensors_open(LAYERS, &file));
    assert_ok(zb_device_cpu_create(&device));
    assert_ok(zb_stream_create(device, "compute", &kernel_stream));
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    zb_stream_destroy(kernel_stream);
    zb_device_destroy(device);
    zb_safetensors_close(&file);
    return 0;
}

int main(void)
{
    static typed_case typed[COUNT(cases) * TENSOR_DTYPES];
    static struct CMUnitTest tests[COUNT(typed) + COUNT(faults) + 1];
    size_t count = 0;
    for (size_t i = 0; i < COUNT(cases); i++)
        for (size_t d = 0; d < (cases[i].kind == &cast ? 1 : TENSOR_DTYPES); d++) {
            typed_case *t = &typed[count];
            *t = (typed_case){ .c = &cases[i], .dtype = tensor_dtypes[d] };
            snprintf(t->name, sizeof t->name, "%s %s, %s", cases[i].kind->name, cases[i].name,
                     zb_dtype_name(t->dtype));
            tests[count++] = (struct CMUnitTest){ t->name, check_typed_case, NULL, NULL, t };
        }
    for (size_t i = 0; i < COUNT(faults); i++)
        tests[count++] = (struct CMUnitTest){ faults[i].name, check_fault, NULL, NULL, (void *)&faults[i] };
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(every_recorded_case_is_checked);
    return _cmocka_run_group_tests("pytorch_layers", tests, count, open_all, close_all);
}
