/*
 * A model is data: an ordered list of modules, and its parameters named and ordered as PyTorch's
 * state_dict. ref/ and engine/ each interpret it with their own code.
 */
#ifndef ZEROBIT_MODEL_H
#define ZEROBIT_MODEL_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZB_MODULE_MAP(X)                                                                                   \
    X(LINEAR, "linear")       /* y[n,out] = x[n,in] w[out,in]^T + b[out]                                */ \
    X(CONV2D, "conv2d")       /* NCHW, square kernel, stride, zero padding; w[oc,ic,k,k], b[oc]         */ \
    X(MAXPOOL2D, "maxpool2d") /* NCHW, square window, stride, no padding, floor mode                    */ \
    X(RELU, "relu")                                                                                        \
    X(FLATTEN, "flatten")     /* [n, ...] -> [n, product]                                               */ \
    X(ADD, "add")             /* sum of two inputs of one shape                                         */ \
    X(PARAMETER, "parameter") /* holds a parameter that nothing uses; takes no input, gives no output   */

typedef enum zb_module_kind {
#define ZB_MODULE_ENUM(name, text) ZB_MODULE_##name,
    ZB_MODULE_MAP(ZB_MODULE_ENUM)
#undef ZB_MODULE_ENUM
} zb_module_kind;
ZB_API const char *zb_module_kind_name(zb_module_kind kind);

typedef enum zb_loss_kind {
    ZB_LOSS_CROSS_ENTROPY,
    ZB_LOSS_MSE,
    ZB_LOSS_ELSEWHERE /* a list of parameters: forward and backward are made by someone else (zb_engine_external_micro_batch) */
} zb_loss_kind;

/** Shape of one sample, without the batch dimension. */
typedef struct zb_shape {
    int dims;
    int64_t extent[ZB_MAX_DIMS];
} zb_shape;
ZB_API size_t zb_shape_numel(const zb_shape *shape);

enum { ZB_MODEL_INPUT = -1, ZB_NO_PARAM = -1, ZB_NAME_BYTES = 96 };

typedef struct zb_module {
    zb_module_kind kind;
    char name[ZB_NAME_BYTES];
    int input_count; /* 0 for PARAMETER, 2 for ADD, else 1 */
    int inputs[2];   /* index of an earlier module, or ZB_MODEL_INPUT */
    zb_shape in, out; /* per sample; `in` is the first input's shape */
    int kernel, stride, padding; /* CONV2D, MAXPOOL2D */
    int weight, bias; /* index into params, or ZB_NO_PARAM. Two modules with one index are tied. */
} zb_module;

typedef struct zb_param {
    char name[ZB_NAME_BYTES]; /* the first name under which state_dict lists it */
    zb_shape shape;           /* of the tensor itself; may have extent 0 */
    size_t numel;
    int requires_grad; /* 0: frozen */
    float init_bound;  /* initial values are uniform in [-bound, bound) */
    int use_count;     /* modules that use it in forward: 0 unused, > 1 tied */
} zb_param;

typedef struct zb_index_list { int *items; int count; } zb_index_list;

/** ZB_LOSS_ELSEWHERE: how that forward and backward go through their layers, of which only the parameters are known here. */
typedef struct zb_model_order {
    zb_index_list *layers; /* [layer_count] the parameters that each has itself; layer 0 is the model, around all others */
    int layer_count;
    zb_index_list forward;  /* layers as they are called: 0, then others; each leaves before the next one enters */
    zb_index_list backward; /* layers as the gradients of their outputs arrive: 0, then others */
    zb_index_list ready;    /* trainable parameters with elements, as their gradients get complete; empty: from the last to the first */
} zb_model_order;

typedef struct zb_model {
    char name[ZB_NAME_BYTES];
    zb_shape input; /* of one sample */
    zb_loss_kind loss;
    zb_module *modules; /* in call order */
    int module_count;
    zb_param *params; /* unique tensors, in state_dict order */
    int param_count;
    size_t param_numel; /* elements over all params */
    zb_model_order *order; /* owned; NULL: not known, which is as if there were one layer with all parameters */
} zb_model;

/* --- building from C: create, add modules in call order, finish --- */

typedef struct zb_module_spec {
    zb_module_kind kind;
    const char *name;   /* unique, required; printable ASCII; not "input" */
    const char *input;  /* an earlier module, or "input": the model's. NULL: the last one with an output, else the model's */
    const char *input2; /* ADD only */
    int64_t out_features;  /* LINEAR */
    int64_t out_channels;  /* CONV2D */
    int kernel, stride, padding; /* CONV2D, MAXPOOL2D; stride 0: 1 for CONV2D, kernel for MAXPOOL2D */
    int no_bias;           /* LINEAR, CONV2D */
    int frozen;            /* requires_grad false for the parameters that this module creates */
    const char *tie;       /* LINEAR, CONV2D: an earlier module of this kind whose weight (not bias) this one uses; equal shapes */
    zb_shape shape;        /* PARAMETER */
} zb_module_spec;

/* A refusal is ZB_INVALID_ARGUMENT and leaves the model as it was. A member that the kind does not take must be 0. */

/** The caller owns *model_p (zb_model_destroy). ZB_LOSS_ELSEWHERE takes no input (NULL), and then only PARAMETER modules. */
ZB_API zb_status zb_model_create(const char *name, const zb_shape *input, zb_loss_kind loss, zb_model **model_p);
ZB_API zb_status zb_model_add(zb_model *model, const zb_module_spec *spec);
/** Checks the whole: at least one module with output, cross entropy over a flat output, no dangling output. ZB_LOSS_ELSEWHERE: a parameter. */
ZB_API zb_status zb_model_finish(zb_model *model);
/** Copied. After the last parameter of a list of parameters; ZB_INVALID_ARGUMENT names what is no layer or parameter. */
ZB_API zb_status zb_model_set_order(zb_model *model, const zb_model_order *order);
ZB_API void zb_model_destroy(zb_model *model);

/* --- built in, and from JSON --- */

/**
 * "cifar10-net" (DeepSpeedExamples training/cifar: conv 3-6-16 with 5x5 kernels, pools, linear 400-120-84-10,
 * cross entropy), or "mlp:IN-HIDDEN-...-OUT" (linear layers with relu between, cross entropy; "mlp-mse:..." for
 * mean squared error). Otherwise a path to a JSON description (docs/model.md).
 */
ZB_API zb_status zb_model_open(const char *name_or_path, zb_model **model_p);
ZB_API zb_status zb_model_parse_json(const char *text, size_t text_bytes, const char *path, zb_model **model_p);

/** Index of the last module with an output; ZB_MODEL_INPUT while there is none (zb_model_finish refuses that). */
ZB_API int zb_model_output_module(const zb_model *model);
/** Index, or ZB_NO_PARAM. */
ZB_API int zb_model_find_param(const zb_model *model, const char *name);

/**
 * Initial values of elements [first, first + numel) of a parameter, from the seed: PyTorch's default bounds,
 * value = (2 u - 1) * bound in fp32 with u = zb_random_uniform(seed, param index, element).
 */
ZB_API void zb_model_init_param(const zb_model *model, int param, uint64_t seed, size_t first, size_t numel, float *out);

/* --- weights from a file --- */

/** Values of every parameter, in order; made from a seed or read from a safetensors file. Owns the values. */
typedef struct zb_weights {
    float **values; /* [param_count], each [numel] */
    int param_count;
} zb_weights;
ZB_API zb_status zb_weights_from_seed(const zb_model *model, uint64_t seed, zb_weights *weights);
/** Every parameter must be there with its exact shape (F32; F16 and BF16 are widened); extra tensors are refused by name. */
ZB_API zb_status zb_weights_load(const zb_model *model, const char *safetensors_path, zb_weights *weights);
/** Written whole to a temporary file beside it and renamed: never leaves half a file. */
ZB_API zb_status zb_weights_save(const zb_model *model, const zb_weights *weights, const char *safetensors_path);
ZB_API void zb_weights_destroy(zb_weights *weights);

#ifdef __cplusplus
}
#endif
#endif
