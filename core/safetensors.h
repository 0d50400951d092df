/*
 * The safetensors file format: named tensors behind a JSON header. Reads F32, F16 and BF16, widened to fp32,
 * or these and F64, I32 and I64 as they are; writes F32. Knows no model (weights.c does).
 *
 * A file is 8 bytes with the header's length (little endian), the header, and the tensors' bytes, which cover
 * the rest without gap or overlap. Source: github.com/huggingface/safetensors, README, "Format".
 */
#ifndef ZB_CORE_SAFETENSORS_H
#define ZB_CORE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/model.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

#include "core/json.h"

typedef struct zb_safetensors_tensor {
    const char *name; /* lives as long as the file's header */
    zb_dtype dtype;   /* FP32, FP16 or BF16; of zb_safetensors_open_numbers also FP64, INT32, INT64 */
    zb_shape shape;   /* a scalar has 0 dimensions */
    size_t numel;
    uint64_t first_byte, end_byte; /* behind the header */
} zb_safetensors_tensor;

typedef struct zb_safetensors {
    int file;
    const char *path;  /* borrowed */
    int takes_numbers; /* other types than weights have, too */
    zb_json *header;
    uint64_t data_at;               /* where the tensors' bytes begin */
    zb_safetensors_tensor *tensors; /* [count], as they lie in the file */
    size_t count;
} zb_safetensors;

/**
 * Opens and checks the header and every offset; `path` must outlive *file. ZB_IO when it cannot be read,
 * ZB_CORRUPT when it breaks the format, ZB_UNSUPPORTED for another element type or more than ZB_MAX_DIMS
 * dimensions.
 */
zb_status zb_safetensors_open(const char *path, zb_safetensors *file);
/** The same, of more types: every number that ranks add up. */
zb_status zb_safetensors_open_numbers(const char *path, zb_safetensors *file);
void zb_safetensors_close(zb_safetensors *file);
/** NULL when there is none of that name. */
const zb_safetensors_tensor *zb_safetensors_find(const zb_safetensors *file, const char *name);
/** values: [numel] of the tensor's own type */
zb_status zb_safetensors_read_as_is(const zb_safetensors *file, const zb_safetensors_tensor *tensor,
                                    void *values);
/** values: [numel]; FP32, FP16 and BF16 only */
zb_status zb_safetensors_read(const zb_safetensors *file, const zb_safetensors_tensor *tensor, float *values);

/* What to write: one tensor. Everything is borrowed. */
typedef struct zb_safetensors_source {
    const char *name; /* printable ASCII, shorter than ZB_NAME_BYTES */
    const zb_shape *shape;
    size_t numel;
    const float *values;
} zb_safetensors_source;

/** On failure `path` is as it was (output_file.h). */
zb_status zb_safetensors_write(const char *path, const zb_safetensors_source *tensors, size_t count);

#endif
