/* A safetensors file of recorded values, read whole and asked by name; a missing tensor fails the test. */
#ifndef ZB_TESTS_GOLDEN_RECORDED_H
#define ZB_TESTS_GOLDEN_RECORDED_H

#include "core/safetensors.h"

/* `found` is NULL when the file has no such tensor. */
typedef struct recorded {
    const zb_safetensors_tensor *found;
    float *values; /* [found->numel], widened; owned */
} recorded;

recorded recorded_find(const zb_safetensors *file, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
recorded recorded_get(const zb_safetensors *file, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void recorded_destroy(recorded *made);

#endif
