/* A reduction over ranks, ascending: each thread takes the same elements of every input, four inputs at a
 * time. */
#include "kernels/cuda/inputs.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/reduce_check.h"

enum { INPUTS_BY_VALUE = 64, AT_A_TIME = 4 };

struct input_list {
    const void *here[INPUTS_BY_VALUE];
    const uint64_t *there; /* device memory; NULL: they are here */
    __device__ const void *at(int rank) const
    {
        return zb_global(there != NULL ? reinterpret_cast<const void *>(there[rank]) : here[rank]);
    }
};

/* A NaN wins; -0 < +0. Of two NaNs either. */
template <typename T> ZB_DEVICE T smaller_of(T a, T b)
{
    if (a < b || a != a) return a;
    if (b < a || b != b) return b;
    return signbit(a) ? a : b;
}
template <typename T> ZB_DEVICE T larger_of(T a, T b)
{
    if (a > b || a != a) return a;
    if (b > a || b != b) return b;
    return signbit(a) ? b : a;
}

/* What a kernel is compiled for; the rest of zb_redop is asked for as it runs. */
enum combination { PLAIN_SUM, SCALED_SUM, EXTREME };

template <typename T, combination how> struct ordered {
    typedef zb_number<T> number;
    typedef typename number::sum sum;
    enum { WIDTH = zb_width<T>(), UNROLL = 1 };
    T *out;
    int count;
    zb_redop op;
    sum factor;
    input_list inputs;

    template <int N> using values = zb_pack<T, N>;
    template <int N> __device__ values<N> load(size_t i) const
    {
        return zb_load_pack<N>(static_cast<const T *>(inputs.at(0)) + i);
    }

    __device__ sum extreme(sum a, sum b) const
    {
        if constexpr (number::INTEGER) {
            const bool less = (T)a < (T)b;
            return less == (op == ZB_MIN) ? a : b;
        } else {
            return op == ZB_MIN ? smaller_of(a, b) : larger_of(a, b);
        }
    }
    __device__ sum scaled(T x) const
    {
        return how == SCALED_SUM ? number::widen(x) * factor : number::widen(x);
    }
    __device__ sum combine(sum acc, T x) const
    {
        return how == EXTREME ? extreme(acc, number::widen(x)) : acc + scaled(x);
    }
    __device__ sum averaged(sum acc) const
    {
        if constexpr (number::INTEGER)
            return acc;
        else
            return op == ZB_AVG ? acc / (sum)count : acc;
    }

    template <int N> __device__ void finish(size_t i, const values<N> &first) const
    {
        sum acc[N];
#pragma unroll
        for (int k = 0; k < N; k++) acc[k] = scaled(first.at[k]);
        for (int rank = 1; rank < count; rank += AT_A_TIME) {
            zb_pack<T, N> x[AT_A_TIME];
#pragma unroll
            for (int r = 0; r < AT_A_TIME; r++)
                if (rank + r < count) x[r] = zb_load_pack<N>(static_cast<const T *>(inputs.at(rank + r)) + i);
#pragma unroll
            for (int r = 0; r < AT_A_TIME; r++) {
                if (rank + r >= count) break;
#pragma unroll
                for (int k = 0; k < N; k++) acc[k] = combine(acc[k], x[r].at[k]);
            }
        }
        zb_pack<T, N> result;
#pragma unroll
        for (int k = 0; k < N; k++) result.at[k] = number::narrow(averaged(acc[k]));
        zb_store_pack(out + i, result);
    }
};

template <combination how>
static zb_status run_as(cudaStream_t stream, const zb_ordered_reduce_args *args, const input_list &inputs,
                        const zb_array *arrays)
{
    return zb_with_number_type(args->dtype, [&](auto type) {
        using T = decltype(type);
        const double factor = how == SCALED_SUM ? args->factor : 1;
        const ordered<T, how> operation = { static_cast<T *>(args->out), args->count, args->op,
                                            zb_factor_of<T>(factor), inputs };
        return zb_each(ZB_CUDA_PLACE("ordered_reduce"), stream, operation, args->numel, arrays,
                       (size_t)args->count + 1, 0);
    });
}

/* `arrays` has room for the inputs and `out`. */
static zb_status run(cudaStream_t stream, const zb_ordered_reduce_args *args, const input_list &inputs,
                     zb_array *arrays)
{
    const size_t bytes = zb_dtype_bytes(args->dtype), count = (size_t)args->count;
    for (size_t r = 0; r < count; r++) arrays[r] = { args->inputs[r], bytes };
    arrays[count] = { args->out, bytes };
    if (args->op == ZB_MIN || args->op == ZB_MAX) return run_as<EXTREME>(stream, args, inputs, arrays);
    if (args->op == ZB_PREMUL_SUM) return run_as<SCALED_SUM>(stream, args, inputs, arrays);
    return run_as<PLAIN_SUM>(stream, args, inputs, arrays);
}

static zb_status run_staged(cudaStream_t stream, const zb_ordered_reduce_args *args, zb_array *arrays)
{
    static_assert(sizeof(void *) == sizeof(uint64_t), "pointers are staged as words");
    uint64_t *there;
    ZB_TRY(
        zb_cuda_stage(stream, reinterpret_cast<const uint64_t *>(args->inputs), (size_t)args->count, &there));
    input_list inputs = {};
    inputs.there = there;
    const zb_status status = run(stream, args, inputs, arrays), given = zb_cuda_give(stream, there);
    return status != ZB_OK ? status : given;
}

zb_status zb_cuda_op_ordered_reduce(cudaStream_t stream, const zb_ordered_reduce_args *args)
{
    ZB_TRY(zb_ordered_reduce_check(args));
    if (args->numel == 0) return ZB_OK;
    zb_array few[INPUTS_BY_VALUE + 1];
    if (args->count <= INPUTS_BY_VALUE) {
        input_list inputs = {};
        memcpy(inputs.here, args->inputs, (size_t)args->count * sizeof inputs.here[0]);
        return run(stream, args, inputs, few);
    }
    zb_array *const many = static_cast<zb_array *>(malloc(((size_t)args->count + 1) * sizeof *many));
    if (many == NULL) return zb_fail(ZB_NO_MEMORY, "ordered_reduce over %d inputs", args->count);
    const zb_status status = run_staged(stream, args, many);
    free(many);
    return status;
}
