/*
 * What each kind of layer and loss computes, by the oracle, by the kernels, and in fp64 with bounds: forward,
 * then every gradient for a given gradient of the output.
 */
#ifndef ZB_TESTS_GOLDEN_LAYER_KINDS_H
#define ZB_TESTS_GOLDEN_LAYER_KINDS_H

#include <zerobit/device.h>
#include <zerobit/model.h>

#include "tests/golden/bounded.h"

/* What goes in. An input that a layer does not have is NULL. */
typedef struct problem {
    zb_module module;
    zb_dtype dtype;
    size_t rows, numel; /* numel: of x */
    float *x, *w, *b, *dy, *t;
    int32_t *labels;
    float seed, divisor;
} problem;

enum { OUTPUTS_MAX = 4 };

typedef struct kind {
    const char *name;
    const char *outputs[OUTPUTS_MAX]; /* as recorded; the bias' gradient is there when the bias is */
    void (*oracle)(const problem *p, float *const *out);
    void (*kernel)(const problem *p, float *const *out);
    void (*truth)(const problem *p, bounded *out); /* NULL: bits */
} kind;

extern const kind linear, conv2d, maxpool2d, relu, add, cast, cross_entropy, mse;

/* The kernels run here. */
extern zb_stream *kernel_stream;

/* Elements; fails the test when there is no memory. Freed with zb_free. */
void *room(size_t numel, size_t bytes);

size_t out_numel(const problem *p);
size_t channels_of(const problem *p);
size_t weight_numel(const problem *p);

#endif
