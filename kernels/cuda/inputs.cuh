/* The arrays on the host that a reduction gets, on their way to the kernel: by value, or, where there are
 * many, by device memory. */
#ifndef ZB_KERNELS_CUDA_INPUTS_CUH
#define ZB_KERNELS_CUDA_INPUTS_CUH

#include "kernels/cuda/elementwise.cuh"

enum { ZB_STAGED_WORDS = 448, ZB_STAGED_THREADS = 256 }; /* a kernel's parameters may have 4096 bytes */

struct zb_staged {
    uint64_t words[ZB_STAGED_WORDS];
};

static __global__ void zb_put_words(uint64_t *to, zb_staged staged, int count)
{
    for (int i = (int)threadIdx.x; i < count; i += ZB_STAGED_THREADS) to[i] = staged.words[i];
}

/*
 * Words of the host in device memory, in stream order. They travel as parameters of kernels, which are copied
 * when the kernel is queued: the host's array may then be gone, be it pinned or not. zb_cuda_give frees them.
 */
static inline zb_status zb_cuda_stage(cudaStream_t stream, const uint64_t *words, size_t count,
                                      uint64_t **device_p)
{
    void *memory;
    ZB_TRY(zb_cuda_take(stream, count * sizeof words[0], &memory));
    uint64_t *const to = static_cast<uint64_t *>(memory);
    for (size_t first = 0; first < count; first += ZB_STAGED_WORDS) {
        zb_staged staged;
        size_t some = count - first;
        if (some > ZB_STAGED_WORDS) some = ZB_STAGED_WORDS;
        memcpy(staged.words, words + first, some * sizeof words[0]);
        const zb_status status = ZB_CUDA_RUN(zb_put_words, 1, ZB_STAGED_THREADS, 0, stream, to + first,
                                             staged, (int)some);
        if (status != ZB_OK) {
            zb_cuda_give(stream, memory);
            return status;
        }
    }
    *device_p = to;
    return ZB_OK;
}

/* As zb_with_tensor_type, for the types that are not for models, and for all. */
template <typename Call> zb_status zb_with_plain_type(zb_dtype dtype, const Call &call)
{
    if (dtype == ZB_FP64) return call(double());
    if (dtype == ZB_INT32) return call(int32_t());
    if (dtype == ZB_INT64) return call(int64_t());
    ZB_ASSERT(dtype == ZB_UINT8);
    return call(uint8_t());
}
template <typename Call> zb_status zb_with_number_type(zb_dtype dtype, const Call &call)
{
    return zb_is_tensor_dtype(dtype) ? zb_with_tensor_type(dtype, call) : zb_with_plain_type(dtype, call);
}

/* How a type is added: in fp32 the floating types up to that; integers without sign, so that they wrap
 * around. */
template <typename T> struct zb_number {
    typedef float sum;
    enum { INTEGER = 0 };
    static __device__ float widen(T x) { return zb_widen(x); }
    static __device__ T narrow(float x)
    {
        T narrow;
        zb_narrow(x, &narrow);
        return narrow;
    }
};
template <> struct zb_number<double> {
    typedef double sum;
    enum { INTEGER = 0 };
    static __device__ double widen(double x) { return x; }
    static __device__ double narrow(double x) { return x; }
};
template <typename T, typename Sum> struct zb_integer {
    typedef Sum sum;
    enum { INTEGER = 1 };
    static __device__ Sum widen(T x) { return (Sum)x; }
    static __device__ T narrow(Sum x) { return (T)x; }
};
template <> struct zb_number<int32_t> : zb_integer<int32_t, uint32_t> {
};
template <> struct zb_number<int64_t> : zb_integer<int64_t, uint64_t> {
};
template <> struct zb_number<uint8_t> : zb_integer<uint8_t, uint32_t> {
};

/* Of integers it is one, too: zb_ordered_reduce_check has seen to it. */
template <typename T> typename zb_number<T>::sum zb_factor_of(double factor)
{
    if (zb_number<T>::INTEGER) return (typename zb_number<T>::sum)(int64_t)factor;
    return (typename zb_number<T>::sum)factor;
}

#endif
