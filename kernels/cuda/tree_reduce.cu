/*
 * A reduction in the order of a tree. Each thread goes through the tree for its own few elements: the sum
 * under way is in registers, the sums that wait for it on a stack in shared memory, of which every thread has
 * a column of its own.
 *
 * The host turns the tree into one step for each contribution: where it lies, whether a new sum begins with
 * it, and how many waiting sums are added after it. So the loads of the next few steps can start before
 * anything is added.
 */
#include "kernels/cuda/inputs.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/reduce_check.h"

enum { STEPS_BY_VALUE = 64, STEPS_AT_A_TIME = 4 };

struct tree_step {
    const void *from; /* element `first` of the contribution */
    uint32_t begins, merges;
};
static_assert(sizeof(tree_step) == 2 * sizeof(uint64_t), "steps are staged as words");

struct step_list {
    tree_step here[STEPS_BY_VALUE];
    const tree_step *there; /* device memory; NULL: they are here */
    __device__ tree_step at(int k) const { return there != NULL ? there[k] : here[k]; }
};

/* --- the arithmetic of one addition --- */

/*
 * x * factor + sum for 16-bit x and sum, rounded to odd: the product is exact in fp64, and what the sum loses
 * is known exactly (two-sum). Of the two neighbours of an inexact sum one is odd. A NaN is neither above nor
 * below 0.
 */
ZB_DEVICE float fma_to_odd(float x, float factor, float sum)
{
    const double scaled = (double)x * (double)factor, s = scaled + (double)sum, part = s - scaled;
    const double lost = (scaled - (s - part)) + ((double)sum - part);
    long long bits = __double_as_longlong(s);
    if ((lost > 0 || lost < 0) && !(bits & 1)) bits = (lost > 0) == (s > 0) ? bits + 1 : bits - 1;
    return zb_odd_from_double(__longlong_as_double(bits));
}

/*
 * x * factor + sum to the 16-bit type T with one rounding. By way of fp32 it is rounded twice, which shows
 * only where fp32 has arrived halfway between two numbers of T; fp16's subnormals are all taken for halfway.
 */
ZB_DEVICE bool is_halfway(uint32_t bits, zb_fp16)
{
    return (bits & 0x1fff) == 0x1000 || (bits & 0x7fffffff) < 0x38800000;
}
ZB_DEVICE bool is_halfway(uint32_t bits, zb_bf16)
{
    return (bits & 0xffff) == 0x8000;
}
template <typename T> ZB_DEVICE float fma_rounded(float x, float factor, float sum)
{
    const float near = fmaf(x, factor, sum);
    if constexpr (sizeof(T) == sizeof(float))
        return near;
    else
        return zb_rounded<T>(is_halfway(__float_as_uint(near), T()) ? fma_to_odd(x, factor, sum) : near);
}

/* What is the same for all elements. `wide`: sums are fp32 and not rounded on the way. */
template <typename T> struct tree_arithmetic {
    int wide;
    zb_scaling scaling;
    float factor, divisor;

    __device__ float rounded(float x) const { return wide ? x : zb_rounded<T>(x); }
    __device__ float scale(float x) const
    {
        if (scaling == ZB_SCALING_NONE) return x;
        return rounded(scaling == ZB_SCALING_DIVIDE ? x / factor : x * factor);
    }
    /* `offset`: bytes from the first element of the range */
    __device__ float add(float sum, float x, size_t offset) const
    {
        const unsigned pack = (unsigned)(offset / 16 % 60);
        const bool fused = scaling == ZB_SCALING_FUSED || (scaling == ZB_SCALING_FUSED_LL128 &&
                                                           (offset % 16 < 8 || (pack < 32 && pack % 8 == 7)));
        if (fused) return wide ? fmaf(x, factor, sum) : fma_rounded<T>(x, factor, sum);
        return merge(sum, scale(x));
    }
    __device__ float merge(float a, float b) const { return rounded(a + b); }
    __device__ float divided(float sum) const { return divisor == 0 ? sum : sum / divisor; }
};

/* fp64 and integers are computed in themselves; the host has refused fused operations and divisions of
 * integers. */
template <typename T> struct plain_arithmetic {
    typedef typename zb_number<T>::sum sum;
    zb_scaling scaling;
    sum factor, divisor;

    __device__ sum scale(sum x) const
    {
        if (scaling == ZB_SCALING_NONE) return x;
        if constexpr (!zb_number<T>::INTEGER)
            if (scaling == ZB_SCALING_DIVIDE) return x / factor;
        return x * factor;
    }
    __device__ sum add(sum acc, sum x, size_t) const
    {
        if constexpr (!zb_number<T>::INTEGER)
            if (scaling == ZB_SCALING_FUSED) return fma(x, factor, acc);
        return merge(acc, scale(x));
    }
    __device__ sum merge(sum a, sum b) const { return a + b; }
    __device__ sum divided(sum acc) const
    {
        if constexpr (zb_number<T>::INTEGER)
            return acc;
        else
            return divisor == 0 ? acc : acc / divisor;
    }
};

/* A NaN that an addition made has NVIDIA's bits. */
ZB_DEVICE void canonicalise(float *x)
{
    if (*x != *x) *x = __uint_as_float(0x7fffffff);
}
ZB_DEVICE void canonicalise(zb_fp16 *x)
{
    if ((x->bits & 0x7fff) > 0x7c00) x->bits = 0x7fff;
}
ZB_DEVICE void canonicalise(zb_bf16 *x)
{
    if ((x->bits & 0x7fff) > 0x7f80) x->bits = 0x7fff;
}
template <typename T> ZB_DEVICE void canonicalise(T *) {}

/* --- one thread's way through the tree --- */

template <typename T, typename Arithmetic> struct tree {
    typedef zb_number<T> number;
    typedef typename number::sum sum;
    enum { WIDTH = sizeof(T) == 8 ? 2 : 4, UNROLL = 1 }; /* 16 bytes of sums, so that the stack fits */
    T *out;
    int count, canonical_nan;
    size_t range_offset; /* elements from the first one of the range to out[0] */
    Arithmetic arithmetic;
    step_list steps;

    template <int N> struct values {
    };
    template <int N> __device__ values<N> load(size_t) const { return {}; }

    template <int N>
    __device__ void step(const tree_step &s, const zb_pack<T, N> &x, size_t i, sum *acc, int *waiting) const
    {
        ZB_SHARED_DYNAMIC(sum, stack);
        const size_t offset = (range_offset + i) * sizeof(T);
#pragma unroll
        for (int k = 0; k < N; k++) {
            sum *const column = stack + k * ZB_EACH_THREADS +
                                threadIdx.x; /* levels are N * ZB_EACH_THREADS apart */
            if (s.begins) {
                if (*waiting >= 0) column[*waiting * (N * ZB_EACH_THREADS)] = acc[k];
                acc[k] = arithmetic.scale(number::widen(x.at[k]));
            } else {
                acc[k] = arithmetic.add(acc[k], number::widen(x.at[k]), offset + k * sizeof(T));
            }
            const int top = *waiting + (int)s.begins;
            for (uint32_t m = 1; m <= s.merges; m++)
                acc[k] = arithmetic.merge(column[(top - (int)m) * (N * ZB_EACH_THREADS)], acc[k]);
        }
        *waiting += (int)s.begins - (int)s.merges;
    }

    template <int N> __device__ void finish(size_t i, const values<N> &) const
    {
        sum acc[N] = {};
        int waiting = -1; /* sums on the stack; before the first step not even acc */
        for (int first = 0; first < count; first += STEPS_AT_A_TIME) {
            tree_step s[STEPS_AT_A_TIME];
            zb_pack<T, N> x[STEPS_AT_A_TIME];
#pragma unroll
            for (int k = 0; k < STEPS_AT_A_TIME; k++) {
                if (first + k >= count) break;
                s[k] = steps.at(first + k);
                x[k] = zb_load_pack<N>(zb_global(static_cast<const T *>(s[k].from)) + i);
            }
#pragma unroll
            for (int k = 0; k < STEPS_AT_A_TIME; k++) {
                if (first + k >= count) break;
                step(s[k], x[k], i, acc, &waiting);
            }
        }
        zb_pack<T, N> result;
#pragma unroll
        for (int k = 0; k < N; k++) {
            result.at[k] = number::narrow(arithmetic.divided(acc[k]));
            if (canonical_nan) canonicalise(&result.at[k]);
        }
        zb_store_pack(out + i, result);
    }
};

/* --- the host's side --- */

/* One step for each contribution, in the order of the tree. *depth_p: how many sums wait at most. */
static zb_status plan_steps(const zb_tree_reduce_args *args, tree_step *steps, int *depth_p)
{
    const int length = 2 * args->count - 1;
    int open = 0, deepest = 0;
    for (int k = 0, s = 0; k < length; s++) {
        const int begins = k == 0 || args->tree[k + 1] != ZB_TREE_ADD;
        int index = args->start + args->tree[k];
        if (index >= args->count) index -= args->count;
        const void *input = args->inputs[args->order[index]];
        steps[s].from = static_cast<const char *>(input) + args->first * zb_dtype_bytes(args->dtype);
        steps[s].begins = (uint32_t)begins;
        steps[s].merges = 0;
        open += begins;
        if (open > deepest) deepest = open;
        for (k += begins ? 1 : 2; k < length && args->tree[k] == ZB_TREE_ADD; k++) steps[s].merges++;
        open -= (int)steps[s].merges;
        if (open < 1 || deepest > ZB_TREE_DEPTH)
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "tree_reduce: after contribution %d of the tree %d sums are open, at most %d "
                           "were; want 1 to %d",
                           s, open, deepest, ZB_TREE_DEPTH);
    }
    *depth_p = deepest - 1;
    return ZB_OK;
}

template <typename T, typename Arithmetic>
static zb_status run_typed(cudaStream_t stream, const zb_tree_reduce_args *args, const step_list &steps,
                           int depth, const Arithmetic &arithmetic, const zb_array *arrays)
{
    typedef tree<T, Arithmetic> operation;
    const operation tree = {
        static_cast<T *>(args->out),     args->count, args->rounding.canonical_nan && args->count > 1,
        args->first - args->range_first, arithmetic,  steps
    };
    const size_t level_bytes = operation::WIDTH * ZB_EACH_THREADS * sizeof(typename operation::sum);
    const size_t levels = depth > 0 ? (size_t)depth : 1;
    return zb_each(ZB_CUDA_PLACE("tree_reduce"), stream, tree, args->numel, arrays, (size_t)args->count + 1,
                   levels * level_bytes);
}

static zb_status run(cudaStream_t stream, const zb_tree_reduce_args *args, const step_list &steps, int depth,
                     const zb_array *arrays)
{
    const zb_rounding r = args->rounding;
    if (zb_is_tensor_dtype(args->dtype))
        return zb_with_tensor_type(args->dtype, [&](auto type) {
            using T = decltype(type);
            const tree_arithmetic<T> arithmetic = { r.wide, r.scaling, (float)r.factor, (float)r.divisor };
            return run_typed<T>(stream, args, steps, depth, arithmetic, arrays);
        });
    return zb_with_plain_type(args->dtype, [&](auto type) {
        using T = decltype(type);
        using sum = typename zb_number<T>::sum;
        const double factor = r.scaling == ZB_SCALING_NONE ? 1 : r.factor;
        const plain_arithmetic<T> arithmetic = { r.scaling, zb_factor_of<T>(factor), (sum)r.divisor };
        return run_typed<T>(stream, args, steps, depth, arithmetic, arrays);
    });
}

/* `steps` and `arrays` have room for all contributions, and one more array. */
static zb_status plan_and_run(cudaStream_t stream, const zb_tree_reduce_args *args, tree_step *steps,
                              zb_array *arrays)
{
    const size_t bytes = zb_dtype_bytes(args->dtype), count = (size_t)args->count;
    step_list list = {};
    int depth = 0;
    ZB_TRY(plan_steps(args, steps, &depth));
    for (size_t s = 0; s < count; s++) arrays[s] = { steps[s].from, bytes };
    arrays[count] = { args->out, bytes };
    if (count <= STEPS_BY_VALUE) {
        memcpy(list.here, steps, count * sizeof steps[0]);
        return run(stream, args, list, depth, arrays);
    }
    uint64_t *there;
    ZB_TRY(zb_cuda_stage(stream, reinterpret_cast<const uint64_t *>(steps), 2 * count, &there));
    list.there = reinterpret_cast<const tree_step *>(there);
    const zb_status status = run(stream, args, list, depth, arrays), given = zb_cuda_give(stream, there);
    return status != ZB_OK ? status : given;
}

zb_status zb_cuda_op_tree_reduce(cudaStream_t stream, const zb_tree_reduce_args *args)
{
    ZB_TRY(zb_tree_reduce_check(args));
    if (args->numel == 0) return ZB_OK;
    const size_t count = (size_t)args->count;
    tree_step *const steps = static_cast<tree_step *>(malloc(count * sizeof *steps));
    zb_array *const arrays = static_cast<zb_array *>(malloc((count + 1) * sizeof *arrays));
    const zb_status status = steps != NULL && arrays != NULL
                                 ? plan_and_run(stream, args, steps, arrays)
                                 : zb_fail(ZB_NO_MEMORY, "tree_reduce over %zu inputs", count);
    free(steps);
    free(arrays);
    return status;
}
