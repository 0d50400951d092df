/*
 * A reduction in the order of a tree, block by block. A block's sums that wait for their other half lie on a
 * small stack in the first-level cache; a run of contributions added one after the other, all of a chain,
 * goes through registers. The block of `out` is written last, so that it may be one of the inputs.
 */

enum { TREE_BLOCK = 512, PLAIN_BLOCK = 256, TREE_RUN = 32 };

/* Where the block at element `at` of the contribution at a position lies. */
static const void *contribution_at(const zb_tree_reduce_args *args, int32_t position, size_t at)
{
    int index = args->start + position;
    if (index >= args->count) index -= args->count;
    return (const char *)args->inputs[args->order[index]] + at * zb_dtype_bytes(args->dtype);
}

/* Contributions tree[k] + tree[k + 2] + ... that are each followed by an addition: how many, at most
 * TREE_RUN. */
static int gather_run(const zb_tree_reduce_args *args, int k, size_t at, const void *from[TREE_RUN])
{
    const int length = 2 * args->count - 1;
    int count = 0;
    while (count < TREE_RUN && k + 1 < length && args->tree[k] != ZB_TREE_ADD &&
           args->tree[k + 1] == ZB_TREE_ADD) {
        from[count++] = contribution_at(args, args->tree[k], at);
        k += 2;
    }
    return count;
}

/* --- fp32, fp16, bf16 --- */

/*
 * x * factor + sum for 16-bit x and sum, rounded to odd in fp64 and again in fp32, so that the rounding to 16
 * bits that follows is the only one. The product is exact in fp64; what the sum loses is known exactly
 * (two-sum).
 */
static inline float fma_to_odd(float x, float factor, float sum)
{
    const double scaled = (double)x * (double)factor, s = scaled + (double)sum, part = s - scaled;
    const double lost = (scaled - (s - part)) + ((double)sum - part);
    uint64_t bits;
    memcpy(&bits, &s, sizeof bits);
    /* Of the two neighbours of an inexact sum one is odd. NaN, from infinities, is neither above nor below 0.
     */
    const int inexact = lost > 0 || lost < 0, even = !(bits & 1);
    if (inexact && even) bits = (lost > 0) == (s > 0) ? bits + 1 : bits - 1;
    double odd;
    memcpy(&odd, &bits, sizeof odd);
    return zb_float_odd_from_double(odd);
}

/*
 * x * factor + sum to a 16-bit type with one rounding. By way of fp32 it is rounded twice, which shows only
 * where fp32 has arrived halfway between two 16-bit numbers: those are fp32 numbers, and no rounding crosses
 * one. That is rare, but for fp16's subnormal numbers, which are all taken for halfway.
 */
ZB_SPECIALISED vec vec_fma_to_half(const zb_dtype dtype, vec x, float factor, vec sum)
{
    const vec near = vec_fma(x, vec_all(factor), sum);
    const vec_bits bits = (vec_bits)near, dropped = bits & (dtype == ZB_FP16 ? 0x1fff : 0xffff);
    vec_bits halfway = (vec_bits)(dropped == (dtype == ZB_FP16 ? 0x1000 : 0x8000));
    if (dtype == ZB_FP16) halfway |= (vec_bits)((bits & 0x7fffffff) < 0x38800000);
    if (vec_any(halfway)) {
        float a[VL], b[VL];
        vec_store(a, x);
        vec_store(b, sum);
        for (int l = 0; l < VL; l++) b[l] = fma_to_odd(a[l], factor, b[l]);
        return dtype == ZB_FP16 ? vec_round_fp16(vec_load(b)) : vec_round_bf16(vec_load(b));
    }
    return dtype == ZB_FP16 ? vec_round_fp16(near) : vec_round_bf16(near);
}

/* What is the same for all elements; constants but for the scalars. */
typedef struct tree_arithmetic {
    zb_dtype dtype;
    int wide;
    zb_scaling scaling;
    float factor;
} tree_arithmetic;

ZB_SPECIALISED vec tree_round(const tree_arithmetic a, vec x)
{
    if (a.wide || a.dtype == ZB_FP32) return x;
    return a.dtype == ZB_FP16 ? vec_round_fp16(x) : vec_round_bf16(x);
}

ZB_SPECIALISED vec tree_scale(const tree_arithmetic a, vec x)
{
    if (a.scaling == ZB_SCALING_NONE) return x;
    if (a.scaling == ZB_SCALING_DIVIDE) return tree_round(a, x / vec_all(a.factor));
    return tree_round(a, x * vec_all(a.factor));
}

/* sum + a contribution. `fused` has the lanes that LL128 fuses. */
ZB_SPECIALISED vec tree_add(const tree_arithmetic a, vec sum, vec x, vec_bits fused)
{
    const int half = a.dtype != ZB_FP32 && !a.wide;
    if (a.scaling == ZB_SCALING_FUSED)
        return half ? vec_fma_to_half(a.dtype, x, a.factor, sum) : vec_fma(x, vec_all(a.factor), sum);
    const vec twice = tree_round(a, vec_add(sum, tree_scale(a, x)));
    if (a.scaling != ZB_SCALING_FUSED_LL128) return twice;
    return vec_select(fused, vec_fma(x, vec_all(a.factor), sum), twice);
}

/* A block of open sums or of the mask, with room for whole vectors. */
typedef struct tree_block {
    float x[TREE_BLOCK];
} tree_block;

/* All ones for the elements of the block at `offset` of its range that LL128 fuses. */
static void fill_ll128_mask(size_t offset, size_t numel, tree_block *mask)
{
    for (size_t i = 0; i < numel; i++) {
        const size_t byte = (offset + i) * sizeof(float), pack = byte / 16 % 60;
        const int fused = byte % 16 < 8 || (pack < 32 && pack % 8 == 7);
        mask->x[i] = zb_float_from_bits(fused ? ~0u : 0);
    }
}

ZB_SPECIALISED vec tree_load(const zb_dtype dtype, const void *from, size_t i, size_t numel)
{
    const void *at = const_element(dtype, from, i);
    return i + VL <= numel ? load_vec(dtype, at) : load_vec_part(dtype, at, numel - i);
}

ZB_SPECIALISED void tree_push(const tree_arithmetic a, const void *from, size_t numel, tree_block *sum)
{
    for (size_t i = 0; i < numel; i += VL)
        vec_store(sum->x + i, tree_scale(a, tree_load(a.dtype, from, i, numel)));
}

ZB_SPECIALISED void tree_add_run(const tree_arithmetic a, const void *const *from, int count,
                                 const tree_block *mask, size_t numel, tree_block *sum)
{
    for (size_t i = 0; i < numel; i += VL) {
        const vec_bits fused = a.scaling == ZB_SCALING_FUSED_LL128 ? (vec_bits)vec_load(mask->x + i)
                                                                   : (vec_bits)vec_zero();
        vec acc = vec_load(sum->x + i);
        for (int k = 0; k < count; k++) acc = tree_add(a, acc, tree_load(a.dtype, from[k], i, numel), fused);
        vec_store(sum->x + i, acc);
    }
}

ZB_SPECIALISED void tree_merge(const tree_arithmetic a, const tree_block *from, size_t numel, tree_block *sum)
{
    for (size_t i = 0; i < numel; i += VL)
        vec_store(sum->x + i, tree_round(a, vec_add(vec_load(sum->x + i), vec_load(from->x + i))));
}

/* One block of at most TREE_BLOCK elements. */
ZB_SPECIALISED void tree_reduce_block(const tree_arithmetic a, const zb_tree_reduce_args *args, size_t done,
                                      size_t numel)
{
    tree_block open[ZB_TREE_DEPTH], mask;
    const size_t at = args->first + done;
    if (a.scaling == ZB_SCALING_FUSED_LL128) fill_ll128_mask(at - args->range_first, numel, &mask);
    int top = -1;
    for (int k = 0; k < 2 * args->count - 1;) {
        const void *from[TREE_RUN];
        const int run = top >= 0 ? gather_run(args, k, at, from) : 0;
        if (run > 0) {
            tree_add_run(a, from, run, &mask, numel, &open[top]);
            k += 2 * run;
        } else if (args->tree[k++] == ZB_TREE_ADD) {
            tree_merge(a, &open[top], numel, &open[top - 1]);
            top--;
        } else {
            tree_push(a, contribution_at(args, args->tree[k - 1], at), numel, &open[++top]);
        }
    }
    float *sum = open[0].x;
    if (args->rounding.divisor != 0)
        for (size_t i = 0; i < numel; i++) sum[i] /= (float)args->rounding.divisor;
    narrow(a.dtype, element(a.dtype, args->out, done), sum, numel);
}

ZB_SPECIALISED void tree_reduce_with(const tree_arithmetic a, const zb_tree_reduce_args *args)
{
    ZB_EACH_BLOCK(done, numel, args->numel, TREE_BLOCK) tree_reduce_block(a, args, done, numel);
}

/* One loop for each way of scaling and rounding. */
#define ZB_TREE_REDUCE(name, dtype, wide, LL128)                                                             \
    static void tree_reduce_##name(const zb_tree_reduce_args *args)                                          \
    {                                                                                                        \
        const float factor = (float)args->rounding.factor;                                                   \
        switch (args->rounding.scaling) {                                                                    \
        case ZB_SCALING_NONE:                                                                                \
            tree_reduce_with((tree_arithmetic){ dtype, wide, ZB_SCALING_NONE, factor }, args);               \
            break;                                                                                           \
        case ZB_SCALING_MULTIPLY:                                                                            \
            tree_reduce_with((tree_arithmetic){ dtype, wide, ZB_SCALING_MULTIPLY, factor }, args);           \
            break;                                                                                           \
        case ZB_SCALING_DIVIDE:                                                                              \
            tree_reduce_with((tree_arithmetic){ dtype, wide, ZB_SCALING_DIVIDE, factor }, args);             \
            break;                                                                                           \
        case ZB_SCALING_FUSED:                                                                               \
            tree_reduce_with((tree_arithmetic){ dtype, wide, ZB_SCALING_FUSED, factor }, args);              \
            break;                                                                                           \
        case ZB_SCALING_FUSED_LL128:                                                                         \
            LL128(tree_reduce_with((tree_arithmetic){ dtype, wide, ZB_SCALING_FUSED_LL128, factor }, args);) \
            break;                                                                                           \
        }                                                                                                    \
    }
#define ZB_WITH_LL128(statement) statement
#define ZB_NO_LL128(statement)   /* tree_reduce_check has refused it */
ZB_TREE_REDUCE(fp32, ZB_FP32, 0, ZB_WITH_LL128)
ZB_TREE_REDUCE(fp16, ZB_FP16, 0, ZB_NO_LL128)
ZB_TREE_REDUCE(fp16_wide, ZB_FP16, 1, ZB_NO_LL128)
ZB_TREE_REDUCE(bf16, ZB_BF16, 0, ZB_NO_LL128)
ZB_TREE_REDUCE(bf16_wide, ZB_BF16, 1, ZB_NO_LL128)
#undef ZB_TREE_REDUCE

/* --- fp64 and integers, which are computed in themselves --- */

#define ZB_TREE_REDUCE_PLAIN(name, element, sum, DIVIDE, FMA)                                                \
    static inline sum tree_scale_##name(zb_scaling scaling, sum factor, element x)                           \
    {                                                                                                        \
        if (scaling == ZB_SCALING_NONE) return (sum)x;                                                       \
        return scaling == ZB_SCALING_DIVIDE ? DIVIDE((sum)x, factor) : (sum)((sum)x * factor);               \
    }                                                                                                        \
    static inline sum tree_add_##name(zb_scaling scaling, sum factor, sum acc, element x)                    \
    {                                                                                                        \
        if (scaling == ZB_SCALING_FUSED) return FMA((sum)x, factor, acc);                                    \
        return (sum)(acc + tree_scale_##name(scaling, factor, x));                                           \
    }                                                                                                        \
    static void tree_reduce_##name(const zb_tree_reduce_args *args, sum factor, sum divisor)                 \
    {                                                                                                        \
        sum open[ZB_TREE_DEPTH][PLAIN_BLOCK];                                                                \
        const zb_scaling scaling = args->rounding.scaling;                                                   \
        ZB_EACH_BLOCK(done, numel, args->numel, PLAIN_BLOCK)                                                 \
        {                                                                                                    \
            int top = -1;                                                                                    \
            for (int k = 0; k < 2 * args->count - 1; k++) {                                                  \
                if (args->tree[k] == ZB_TREE_ADD) {                                                          \
                    sum *into = open[top - 1];                                                               \
                    for (size_t i = 0; i < numel; i++) into[i] = (sum)(into[i] + open[top][i]);              \
                    top--;                                                                                   \
                    continue;                                                                                \
                }                                                                                            \
                const element *x = contribution_at(args, args->tree[k], args->first + done);                 \
                if (top >= 0 && args->tree[k + 1] == ZB_TREE_ADD) { /* a position is never the last */       \
                    for (size_t i = 0; i < numel; i++)                                                       \
                        open[top][i] = tree_add_##name(scaling, factor, open[top][i], x[i]);                 \
                    k++;                                                                                     \
                } else {                                                                                     \
                    top++;                                                                                   \
                    for (size_t i = 0; i < numel; i++)                                                       \
                        open[top][i] = tree_scale_##name(scaling, factor, x[i]);                             \
                }                                                                                            \
            }                                                                                                \
            element *out = (element *)args->out + done;                                                      \
            for (size_t i = 0; i < numel; i++)                                                               \
                out[i] = (element)(divisor == 0 ? open[0][i] : DIVIDE(open[0][i], divisor));                 \
        }                                                                                                    \
    }
#define ZB_DIVIDE_REAL(a, b)  ((a) / (b))
#define ZB_FMA_WHOLE(a, b, c) (0) /* refused, like division */
#define ZB_DIVIDE_WHOLE(a, b) (0)
ZB_TREE_REDUCE_PLAIN(fp64, double, double, ZB_DIVIDE_REAL, __builtin_fma)
ZB_TREE_REDUCE_PLAIN(int32, int32_t, uint32_t, ZB_DIVIDE_WHOLE, ZB_FMA_WHOLE)
ZB_TREE_REDUCE_PLAIN(int64, int64_t, uint64_t, ZB_DIVIDE_WHOLE, ZB_FMA_WHOLE)
ZB_TREE_REDUCE_PLAIN(uint8, uint8_t, uint8_t, ZB_DIVIDE_WHOLE, ZB_FMA_WHOLE)
#undef ZB_TREE_REDUCE_PLAIN

/* --- */

static zb_status tree_reduce_check(const zb_tree_reduce_args *args)
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
    if (is_tensor_dtype(dtype) || dtype == ZB_FP64) return ZB_OK;
    if (r->divisor != 0 || r->scaling > ZB_SCALING_MULTIPLY)
        return zb_fail(
            ZB_UNSUPPORTED,
            "tree_reduce of %s with a division or a fused operation; want fp32, fp16, bf16 or fp64",
            zb_dtype_name(dtype));
    const double limit = dtype == ZB_UINT8 ? 0x1p8 : dtype == ZB_INT32 ? 0x1p31 : 0x1p63;
    if (r->scaling == ZB_SCALING_MULTIPLY &&
        !is_whole_number_within(r->factor, dtype == ZB_UINT8 ? 0 : -limit, limit))
        return zb_fail(ZB_INVALID_ARGUMENT, "tree_reduce of %s with factor %.17g, which is no %s",
                       zb_dtype_name(dtype), r->factor, zb_dtype_name(dtype));
    return ZB_OK;
}

static int64_t whole_factor(const zb_tree_reduce_args *args)
{
    return args->rounding.scaling == ZB_SCALING_MULTIPLY ? (int64_t)args->rounding.factor : 1;
}

/* Whichever addition made the NaN, those after it have kept it one. */
static void canonicalise_nan(zb_dtype dtype, void *out, size_t numel)
{
    if (dtype == ZB_FP32) {
        uint32_t *x = out;
        for (size_t i = 0; i < numel; i++) x[i] = (x[i] & 0x7fffffff) > 0x7f800000 ? 0x7fffffff : x[i];
    } else if (dtype == ZB_FP16 || dtype == ZB_BF16) {
        uint16_t *x = out;
        const uint16_t infinity = dtype == ZB_FP16 ? 0x7c00 : 0x7f80;
        for (size_t i = 0; i < numel; i++) x[i] = (x[i] & 0x7fff) > infinity ? 0x7fff : x[i];
    }
}

static zb_status op_tree_reduce(const zb_tree_reduce_args *args)
{
    ZB_TRY(tree_reduce_check(args));
    const zb_rounding *r = &args->rounding;
    switch (args->dtype) {
    case ZB_FP32:
        tree_reduce_fp32(args);
        break;
    case ZB_FP16:
        (r->wide ? tree_reduce_fp16_wide : tree_reduce_fp16)(args);
        break;
    case ZB_BF16:
        (r->wide ? tree_reduce_bf16_wide : tree_reduce_bf16)(args);
        break;
    case ZB_FP64:
        tree_reduce_fp64(args, r->factor, r->divisor);
        break;
    case ZB_INT32:
        tree_reduce_int32(args, (uint32_t)whole_factor(args), 0);
        break;
    case ZB_INT64:
        tree_reduce_int64(args, (uint64_t)whole_factor(args), 0);
        break;
    case ZB_UINT8:
        tree_reduce_uint8(args, (uint8_t)whole_factor(args), 0);
        break;
    case ZB_DTYPE_COUNT:
        break;
    }
    if (r->canonical_nan && args->count > 1) canonicalise_nan(args->dtype, args->out, args->numel);
    return ZB_OK;
}
