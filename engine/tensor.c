/* Storing and accumulating between element types; see tensor.h. */
#include "engine/tensor.h"

zb_status zb_store(zb_stream *stream, void *to, zb_dtype to_dtype, const void *from, zb_dtype from_dtype,
                   size_t numel)
{
    if (to == from || numel == 0) return ZB_OK;
    if (to_dtype == from_dtype)
        return zb_launch_copy(
            stream, &(zb_copy_args){ .to = to, .from = from, .bytes = numel * zb_dtype_bytes(to_dtype) });
    return zb_launch_cast(
        stream, &(zb_cast_args){
                    .to = to, .to_dtype = to_dtype, .from = from, .from_dtype = from_dtype, .numel = numel });
}

zb_status zb_accumulate(zb_stream *stream, void *to, zb_dtype to_dtype, const void *from, zb_dtype from_dtype,
                        size_t numel)
{
    if (numel == 0) return ZB_OK;
    return zb_launch_add(
        stream,
        &(zb_add_args){ .y_dtype = to_dtype, .y = to, .x_dtype = from_dtype, .x = from, .numel = numel });
}
