/* Arguments of the reductions over ranks; see reduce_check.h. */
#include "kernels/reduce_check.h"

#include <math.h>

static int is_floating(zb_dtype dtype)
{
    return dtype == ZB_FP32 || dtype == ZB_FP16 || dtype == ZB_BF16 || dtype == ZB_FP64;
}

/* The factor of a pre-multiplied sum of integers must itself be one. */
static zb_status check_integer_factor(const char *operation, zb_dtype dtype, double factor)
{
    const double limit = dtype == ZB_UINT8 ? 0x1p8 : dtype == ZB_INT32 ? 0x1p31 : 0x1p63;
    const double least = dtype == ZB_UINT8 ? 0 : -limit;
    if (factor >= least && factor < limit && factor == trunc(factor)) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "%s of %s with factor %.17g, which is no %s", operation,
                   zb_dtype_name(dtype), factor, zb_dtype_name(dtype));
}

zb_status zb_ordered_reduce_check(const zb_ordered_reduce_args *args)
{
    const zb_dtype dtype = args->dtype;
    if ((unsigned)dtype >= ZB_DTYPE_COUNT)
        return zb_fail(ZB_INVALID_ARGUMENT, "ordered_reduce of element type %d", (int)dtype);
    if ((unsigned)args->op > ZB_PREMUL_SUM)
        return zb_fail(ZB_INVALID_ARGUMENT, "ordered_reduce with operation %d", (int)args->op);
    if (args->count < 1) return zb_fail(ZB_INVALID_ARGUMENT, "ordered_reduce over %d inputs", args->count);
    if (args->op == ZB_AVG && !is_floating(dtype))
        return zb_fail(ZB_UNSUPPORTED, "the average of %s is not defined; want fp32, fp16, bf16 or fp64",
                       zb_dtype_name(dtype));
    if (args->op == ZB_PREMUL_SUM && !is_floating(dtype))
        return check_integer_factor("ordered_reduce", dtype, args->factor);
    return ZB_OK;
}

zb_status zb_tree_reduce_check(const zb_tree_reduce_args *args)
{
    const zb_dtype dtype = args->dtype;
    const zb_rounding *r = &args->rounding;
    if ((unsigned)dtype >= ZB_DTYPE_COUNT)
        return zb_fail(ZB_INVALID_ARGUMENT, "tree_reduce of element type %d", (int)dtype);
    if (args->count < 1) return zb_fail(ZB_INVALID_ARGUMENT, "tree_reduce over %d inputs", args->count);
    if ((unsigned)r->scaling > ZB_SCALING_FUSED_LL128)
        return zb_fail(ZB_INVALID_ARGUMENT, "tree_reduce with scaling %d", (int)r->scaling);
    if (r->scaling == ZB_SCALING_FUSED_LL128 && dtype != ZB_FP32)
        return zb_fail(ZB_UNSUPPORTED, "tree_reduce of %s, fused as LL128 does; want fp32",
                       zb_dtype_name(dtype));
    if (is_floating(dtype)) return ZB_OK;
    if (r->divisor != 0 || r->scaling > ZB_SCALING_MULTIPLY)
        return zb_fail(
            ZB_UNSUPPORTED,
            "tree_reduce of %s with a division or a fused operation; want fp32, fp16, bf16 or fp64",
            zb_dtype_name(dtype));
    return r->scaling == ZB_SCALING_MULTIPLY ? check_integer_factor("tree_reduce", dtype, r->factor) : ZB_OK;
}
