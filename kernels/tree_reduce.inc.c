/*
 * A reduction in the order of a tree, block by block, in passes over the block. A pass adds contributions one
 * after the other, all of a chain, and then sums that wait for their other half, in registers; those sums lie
 * on a small stack in the first-level cache. The last pass writes the block of `out`, each element when its
 * contributions have been read, so that `out` may be one of the inputs.
 */

enum { TREE_BLOCK = 512, PLAIN_BLOCK = 256, TREE_RUN = 32 };

/* Where the block at element `at` of the contribution at a position lies. */
static const void *contribution_at(const zb_tree_reduce_args *args, int32_t position, size_t at)
{
    int index = args->start + position;
    if (index >= args->count) index -= args->count;
    return (const char *)args->inputs[args->order[index]] + at * zb_dtype_bytes(args->dtype);
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

/* x is the sum of two numbers that have been rounded. */
ZB_SPECIALISED vec tree_round_sum(const tree_arithmetic a, vec x)
{
    return !a.wide && a.dtype == ZB_BF16 ? vec_round_bf16_sum(x) : tree_round(a, x);
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
    const vec twice = tree_round_sum(a, vec_add(sum, tree_scale(a, x)));
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

/* --- passes --- */

typedef struct tree_pass {
    const void *from[TREE_RUN]; /* contributions, added one after the other */
    int count;
    int begins; /* the first of them is a new sum; else they are added to the one on top of the stack */
    int merges; /* sums below, from the top down, that are added then */
} tree_pass;

/* The pass that begins at tree[*k_p], which goes behind it. */
static tree_pass tree_next_pass(const zb_tree_reduce_args *args, size_t at, int *k_p)
{
    const int length = 2 * args->count - 1;
    const int32_t *tree = args->tree;
    tree_pass pass = { .count = 0 };
    int k = *k_p;
    if (tree[k] != ZB_TREE_ADD && (k == 0 || tree[k + 1] != ZB_TREE_ADD)) {
        pass.begins = 1;
        pass.from[pass.count++] = contribution_at(args, tree[k++], at);
    }
    while (pass.count < TREE_RUN && k + 1 < length && tree[k] != ZB_TREE_ADD && tree[k + 1] == ZB_TREE_ADD) {
        pass.from[pass.count++] = contribution_at(args, tree[k], at);
        k += 2;
    }
    for (; k < length && tree[k] == ZB_TREE_ADD; k++) pass.merges++;
    *k_p = k;
    return pass;
}

/* The stack of a block, and what its passes share. */
typedef struct tree_sums {
    tree_block open[ZB_TREE_DEPTH], mask;
    int top;
    float divisor; /* 0: none */
} tree_sums;

enum { TREE_VECS = 4 }; /* in registers at a time, where there are so many elements */

/* `vecs` vectors, or, where it is one, its first `part` elements. */
ZB_SPECIALISED void tree_load(const zb_dtype dtype, const int vecs, const void *from, size_t part, vec *x)
{
    if (vecs > 1)
        load_vecs(dtype, vecs, from, x);
    else
        x[0] = part == VL ? load_vec(dtype, from) : load_vec_part(dtype, from, part);
}

ZB_SPECIALISED void tree_store(const zb_dtype dtype, const int vecs, void *to, size_t part, const vec *x)
{
    if (vecs > 1) {
        store_vecs(dtype, vecs, to, x);
    } else if (part == VL) {
        store_vec(dtype, to, x[0]);
    } else {
        float room[VL];
        vec_store(room, x[0]);
        narrow(dtype, to, room, part);
    }
}

/* Elements from i on, `vecs` vectors of them. `out` NULL: the sum stays on the stack. */
ZB_SPECIALISED void tree_pass_vecs(const tree_arithmetic a, const int vecs, const tree_pass *pass,
                                   tree_sums *sums, size_t i, size_t part, void *out)
{
    vec acc[TREE_VECS], x[TREE_VECS];
    vec_bits fused[TREE_VECS];
    int below = sums->top;
    ZB_UNROLL
    for (int v = 0; v < vecs; v++)
        fused[v] = a.scaling == ZB_SCALING_FUSED_LL128 ? (vec_bits)vec_load(sums->mask.x + i + v * VL)
                                                       : (vec_bits)vec_zero();
    if (pass->begins) {
        tree_load(a.dtype, vecs, const_element(a.dtype, pass->from[0], i), part, acc);
        ZB_UNROLL
        for (int v = 0; v < vecs; v++) acc[v] = tree_scale(a, acc[v]);
    } else {
        ZB_UNROLL
        for (int v = 0; v < vecs; v++) acc[v] = vec_load(sums->open[below].x + i + v * VL);
        below--;
    }
    for (int k = pass->begins; k < pass->count; k++) {
        tree_load(a.dtype, vecs, const_element(a.dtype, pass->from[k], i), part, x);
        ZB_UNROLL
        for (int v = 0; v < vecs; v++) acc[v] = tree_add(a, acc[v], x[v], fused[v]);
    }
    for (int m = 0; m < pass->merges; m++) {
        const float *other = sums->open[below - m].x + i;
        ZB_UNROLL
        for (int v = 0; v < vecs; v++) acc[v] = tree_round_sum(a, vec_add(vec_load(other + v * VL), acc[v]));
    }
    if (out == NULL) {
        ZB_UNROLL
        for (int v = 0; v < vecs; v++) vec_store(sums->open[below - pass->merges + 1].x + i + v * VL, acc[v]);
        return;
    }
    if (sums->divisor != 0) {
        ZB_UNROLL
        for (int v = 0; v < vecs; v++) acc[v] = acc[v] / vec_all(sums->divisor);
    }
    if (a.dtype == ZB_BF16 && vecs > 1 && (a.wide || sums->divisor != 0)) {
        ZB_UNROLL
        for (int v = 0; v < vecs; v++) acc[v] = vec_round_bf16(acc[v]);
    }
    tree_store(a.dtype, vecs, element(a.dtype, out, i), part, acc);
}

ZB_SPECIALISED void tree_run_pass(const tree_arithmetic a, const tree_pass *pass, tree_sums *sums,
                                  size_t numel, void *out)
{
    size_t i = 0;
    for (; i + TREE_VECS * VL <= numel; i += TREE_VECS * VL)
        tree_pass_vecs(a, TREE_VECS, pass, sums, i, VL, out);
    for (; i < numel; i += VL) tree_pass_vecs(a, 1, pass, sums, i, smaller(VL, numel - i), out);
    sums->top += pass->begins - pass->merges;
}

/* One block of at most TREE_BLOCK elements. */
ZB_SPECIALISED void tree_reduce_block(const tree_arithmetic a, const zb_tree_reduce_args *args, size_t done,
                                      size_t numel)
{
    tree_sums sums;
    const size_t at = args->first + done;
    sums.top = -1;
    sums.divisor = (float)args->rounding.divisor;
    if (a.scaling == ZB_SCALING_FUSED_LL128) fill_ll128_mask(at - args->range_first, numel, &sums.mask);
    for (int k = 0; k < 2 * args->count - 1;) {
        const tree_pass pass = tree_next_pass(args, at, &k);
        void *out = k == 2 * args->count - 1 ? element(a.dtype, args->out, done) : NULL;
        tree_run_pass(a, &pass, &sums, numel, out);
    }
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
#define ZB_NO_LL128(statement)   /* zb_tree_reduce_check has refused it */
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
    ZB_TRY(zb_tree_reduce_check(args));
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
