/* Element types and the two kinds of array: one that owns its data, one that borrows it. */
#ifndef ZEROBIT_TYPES_H
#define ZEROBIT_TYPES_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/export.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZB_DTYPE_MAP(X)                                                                                    \
    X(FP32, "fp32", 4)                                                                                     \
    X(FP16, "fp16", 2)                                                                                     \
    X(BF16, "bf16", 2)                                                                                     \
    X(FP64, "fp64", 8)                                                                                     \
    X(INT32, "int32", 4)                                                                                   \
    X(INT64, "int64", 8)                                                                                   \
    X(UINT8, "uint8", 1)

typedef enum zb_dtype {
#define ZB_DTYPE_ENUM(name, text, bytes) ZB_##name,
    ZB_DTYPE_MAP(ZB_DTYPE_ENUM)
#undef ZB_DTYPE_ENUM
    ZB_DTYPE_COUNT
} zb_dtype;

/** Bytes of one element; 0 for a value outside the enum. */
ZB_API size_t zb_dtype_bytes(zb_dtype dtype);
/** "fp32", ...; "?" for a value outside the enum. */
ZB_API const char *zb_dtype_name(zb_dtype dtype);
/** Inverse of zb_dtype_name; also DeepSpeed's spellings float16/half/bfloat16/float32/float. Returns 0 when unknown. */
ZB_API int zb_dtype_parse(const char *text, zb_dtype *dtype);

enum { ZB_MAX_DIMS = 4 };

#ifdef __cplusplus
}
#endif
#endif
