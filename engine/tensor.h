/* Arrays whose element type is a value: addresses within them, and the two ways a gradient is taken in. */
#ifndef ZEROBIT_ENGINE_TENSOR_H
#define ZEROBIT_ENGINE_TENSOR_H

#include <stddef.h>
#include <zerobit/device.h>
#include <zerobit/types.h>

/* Address of element `index`. */
static inline void *zb_at(const void *base, size_t index, zb_dtype dtype)
{
    return (char *)base + index * zb_dtype_bytes(dtype);
}

/* to = from, converted where the types differ. */
zb_status zb_store(zb_stream *stream, void *to, zb_dtype to_dtype, const void *from, zb_dtype from_dtype,
                   size_t numel);
/* to = to + from, rounded to to_dtype. */
zb_status zb_accumulate(zb_stream *stream, void *to, zb_dtype to_dtype, const void *from, zb_dtype from_dtype,
                        size_t numel);

#endif
