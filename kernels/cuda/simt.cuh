/*
 * What every kernel here begins with. The same source is compiled by nvcc for GPUs, and as plain C++ for the
 * CPU, where fibers take the place of threads (ZB_SIMT_EMULATED): what the two need to be told differently
 * stands in this file and nowhere else.
 *
 * Arithmetic is written as on the CPU: plain operators round on their own (the flags forbid contraction), and
 * fmaf stands where the contract has an fma.
 */
#ifndef ZB_KERNELS_CUDA_SIMT_CUH
#define ZB_KERNELS_CUDA_SIMT_CUH

#include <cuda_runtime_api.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

#ifdef ZB_SIMT_EMULATED
#include "kernels/half.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#endif

#define ZB_DEVICE static __device__ __forceinline__
#define ZB_DEVICE_RARE                                                                                       \
    static __device__ __noinline__ /* what is seldom called does not crowd the rest out                      \
                                    */
#define ZB_ALL_LANES 0xffffffffu
enum { ZB_WARP = 32 };

/* --- launching --- */

/* Where a call to CUDA stands, and what for. */
struct zb_cuda_place {
    const char *what, *file;
    int line;
};
#define ZB_CUDA_PLACE(what) (zb_cuda_place{ what, __FILE__, __LINE__ })

/*
 * Queues `kernel`<<<grid, block, shared_bytes, stream>>>(arguments...), which it converts to the types of the
 * parameters. A kernel whose name has commas goes in parentheses.
 */
#define ZB_CUDA_RUN(kernel, grid, block, shared_bytes, stream, ...)                                          \
    zb_cuda_run(ZB_CUDA_PLACE(#kernel), kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

#ifdef ZB_SIMT_EMULATED
template <typename... Parameters, typename... Arguments>
zb_status zb_cuda_run(zb_cuda_place place, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                      size_t shared_bytes, cudaStream_t, const Arguments &...arguments)
{
    return sim_simt_launch_body(place.what, place.file, place.line, grid, block, shared_bytes,
                                [&] { kernel(static_cast<Parameters>(arguments)...); });
}
#else
/* ZB_OK for cudaSuccess. Otherwise the failure with its place and CUDA's words; CUDA forgets it, or the next
 * launch would find it again. */
static inline zb_status zb_cuda_check(cudaError_t error, zb_cuda_place place)
{
    if (error == cudaSuccess) return ZB_OK;
    (void)cudaGetLastError();
    return zb_fail(error == cudaErrorMemoryAllocation ? ZB_NO_MEMORY : ZB_INTERNAL,
                   "CUDA, %s at %s:%d, or a kernel before it: %s (%s)", place.what, place.file, place.line,
                   cudaGetErrorString(error), cudaGetErrorName(error));
}

/*
 * Lets a kernel have `bytes` of dynamic shared memory. The limit is the kernel's, not the launch's: always
 * the most that the GPU has, or a thread that launches it with less would lower the limit under another's
 * launch.
 */
static inline zb_status zb_cuda_allow_shared(const void *kernel, size_t bytes, zb_cuda_place place)
{
    int device = 0, most = 0;
    ZB_TRY(zb_cuda_check(cudaGetDevice(&device), place));
    ZB_TRY(
        zb_cuda_check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), place));
    if (bytes > (size_t)most)
        return zb_fail(ZB_UNSUPPORTED, "%s with %zu bytes of shared memory for a block; GPU %d has %d",
                       place.what, bytes, device, most);
    return zb_cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
                         place);
}

template <typename... Parameters, typename... Arguments>
zb_status zb_cuda_run(zb_cuda_place place, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                      size_t shared_bytes, cudaStream_t stream, const Arguments &...arguments)
{
    if (shared_bytes > 48 * 1024) /* what every GPU gives; more has to be asked for */
        ZB_TRY(zb_cuda_allow_shared(reinterpret_cast<const void *>(kernel), shared_bytes, place));
    kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
    return zb_cuda_check(cudaGetLastError(), place);
}
#endif

/* --- device memory, in stream order --- */

#ifdef ZB_SIMT_EMULATED
static inline zb_status zb_cuda_fill(cudaStream_t, void *to, uint8_t value, size_t bytes)
{
    memset(to, value, bytes);
    return ZB_OK;
}
static inline zb_status zb_cuda_copy(cudaStream_t, void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
    return ZB_OK;
}
static inline zb_status zb_cuda_take(cudaStream_t, size_t bytes, void **pointer_p)
{
    *pointer_p = malloc(bytes);
    return *pointer_p != NULL ? ZB_OK : zb_fail(ZB_NO_MEMORY, "%zu bytes for a kernel", bytes);
}
static inline zb_status zb_cuda_give(cudaStream_t, void *pointer)
{
    free(pointer);
    return ZB_OK;
}
#else
static inline zb_status zb_cuda_fill(cudaStream_t stream, void *to, uint8_t value, size_t bytes)
{
    return zb_cuda_check(cudaMemsetAsync(to, value, bytes, stream), ZB_CUDA_PLACE("cudaMemsetAsync"));
}
static inline zb_status zb_cuda_copy(cudaStream_t stream, void *to, const void *from, size_t bytes)
{
    return zb_cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream),
                         ZB_CUDA_PLACE("cudaMemcpyAsync"));
}
/* Memory for the kernels that are queued next, until zb_cuda_give. */
static inline zb_status zb_cuda_take(cudaStream_t stream, size_t bytes, void **pointer_p)
{
    return zb_cuda_check(cudaMallocAsync(pointer_p, bytes, stream), ZB_CUDA_PLACE("cudaMallocAsync"));
}
static inline zb_status zb_cuda_give(cudaStream_t stream, void *pointer)
{
    return zb_cuda_check(cudaFreeAsync(pointer, stream), ZB_CUDA_PLACE("cudaFreeAsync"));
}
#endif

/* --- shared memory --- */

/*
 * ZB_SHARED(float, tile, [32][33]) declares a variable of the block, ZB_SHARED_DYNAMIC(float, x) a pointer to
 * the shared memory whose size the launch has named, aligned for vectors. Both hold anything at first.
 */
#ifdef ZB_SIMT_EMULATED
#define ZB_SHARED(type, name, ...)                                                                           \
    typedef type name##_shared_type __VA_ARGS__;                                                             \
    static const char name##_shared_tag = 0;                                                                 \
    name##_shared_type &name = *static_cast<name##_shared_type *>(                                           \
        sim_simt_shared(&name##_shared_tag, sizeof(name##_shared_type)))
#define ZB_SHARED_DYNAMIC(type, name) type *const name = static_cast<type *>(sim_simt_dynamic_shared())
#else
#define ZB_SHARED(type, name, ...)    __shared__ __align__(16) type name __VA_ARGS__
extern __shared__ __align__(128) unsigned char zb_dynamic_shared[];
#define ZB_SHARED_DYNAMIC(type, name) type *const name = reinterpret_cast<type *>(zb_dynamic_shared)
#endif

/*
 * Copies 4, 8 or 16 bytes from global to shared memory, both aligned to that, without waiting; only the first
 * `valid` of them are read, and the rest becomes 0. Those between two commits are a group; after
 * zb_copy_wait<n>() all groups but the last n have arrived, for this thread: others see them after a barrier.
 */
template <int bytes> ZB_DEVICE void zb_copy_async(void *shared, const void *global, int valid = bytes)
{
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "asynchronous copies move 4, 8 or 16 bytes");
#ifdef ZB_SIMT_EMULATED
    if ((uintptr_t)shared % bytes != 0 || (uintptr_t)global % bytes != 0)
        sim_simt_fail(__FILE__, __LINE__, "a copy of %d bytes from %p to %p, which are not aligned", bytes,
                      global, shared);
    sim_simt_copy_async(shared, global, (size_t)valid, bytes);
#else
    __pipeline_memcpy_async(shared, global, bytes, bytes - valid);
#endif
}
ZB_DEVICE void zb_copy_commit()
{
#ifdef ZB_SIMT_EMULATED
    sim_simt_copy_commit();
#else
    __pipeline_commit();
#endif
}
template <int groups> ZB_DEVICE void zb_copy_wait()
{
#ifdef ZB_SIMT_EMULATED
    sim_simt_copy_wait(groups);
#else
    __pipeline_wait_prior(groups);
#endif
}

/* --- neighbouring elements in registers --- */

/* Moved by one instruction: up to 16 bytes, from an address that is a multiple of its size. */
template <typename T, int count> struct alignas(sizeof(T) * count) zb_pack {
    T at[count];
};

template <typename Pack> ZB_DEVICE void zb_check_aligned(const void *pointer)
{
    static_assert(sizeof(Pack) <= 16, "an instruction moves at most 16 bytes");
#ifdef ZB_SIMT_EMULATED
    if ((uintptr_t)pointer % sizeof(Pack) != 0)
        sim_simt_fail(__FILE__, __LINE__, "%zu bytes at %p, which is not aligned", sizeof(Pack), pointer);
#else
    (void)pointer;
#endif
}
/* What the compiler moves as one, where it would take a pack apart. */
template <int bytes> struct zb_word;
template <> struct zb_word<1> {
    typedef uint8_t type;
};
template <> struct zb_word<2> {
    typedef uint16_t type;
};
template <> struct zb_word<4> {
    typedef uint32_t type;
};
template <> struct zb_word<8> {
    typedef uint2 type;
};
template <> struct zb_word<16> {
    typedef uint4 type;
};

template <typename Word> ZB_DEVICE void zb_store_word(Word *to, Word word)
{
    *to = word;
}
#ifndef ZB_SIMT_EMULATED
/* The compiler likes to make four stores of one, even of a vector type. */
template <> __device__ __forceinline__ void zb_store_word(uint4 *to, uint4 word)
{
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
                 : "memory");
}
template <> __device__ __forceinline__ void zb_store_word(uint2 *to, uint2 word)
{
    asm volatile("st.global.v2.b32 [%0], {%1, %2};"
                 :
                 : "l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y)
                 : "memory");
}
#endif

/* From any memory; to global memory. */
template <int count, typename T> ZB_DEVICE zb_pack<T, count> zb_load_pack(const T *from)
{
    typedef typename zb_word<sizeof(zb_pack<T, count>)>::type word;
    zb_check_aligned<zb_pack<T, count>>(from);
    const word bits = *reinterpret_cast<const word *>(from);
    zb_pack<T, count> pack;
    memcpy(&pack, &bits, sizeof pack);
    return pack;
}
template <int count, typename T> ZB_DEVICE void zb_store_pack(T *to, const zb_pack<T, count> &pack)
{
    typedef typename zb_word<sizeof(zb_pack<T, count>)>::type word;
    zb_check_aligned<zb_pack<T, count>>(to);
    word bits;
    memcpy(&bits, &pack, sizeof bits);
    zb_store_word(reinterpret_cast<word *>(to), bits);
}

/* The same pointer, for the compiler to know that it is one to global memory, where it came out of memory
 * itself. */
template <typename T> ZB_DEVICE T *zb_global(T *pointer)
{
#ifndef ZB_SIMT_EMULATED
    __builtin_assume(__isGlobal(pointer));
#endif
    return pointer;
}

/* --- 16-bit elements --- */

struct zb_fp16 {
    uint16_t bits;
};
struct zb_bf16 {
    uint16_t bits;
};

/* Exact. */
ZB_DEVICE float zb_widen(float x)
{
    return x;
}
ZB_DEVICE float zb_widen(zb_fp16 x)
{
#ifdef ZB_SIMT_EMULATED
    return zb_float_from_fp16(x.bits);
#else
    return __half2float(__ushort_as_half(x.bits));
#endif
}
ZB_DEVICE float zb_widen(zb_bf16 x)
{
    return __uint_as_float((unsigned)x.bits << 16);
}

/* Rounds once, to nearest even; overflow gives infinity, a NaN stays one. */
ZB_DEVICE void zb_narrow(float x, float *to)
{
    *to = x;
}
ZB_DEVICE void zb_narrow(float x, zb_fp16 *to)
{
#ifdef ZB_SIMT_EMULATED
    to->bits = zb_fp16_from_float(x);
#else
    to->bits = __half_as_ushort(__float2half_rn(x));
#endif
}
ZB_DEVICE void zb_narrow(float x, zb_bf16 *to)
{
#ifdef ZB_SIMT_EMULATED
    to->bits = zb_bf16_from_float(x);
#else
    to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#endif
}
/*
 * fp64 to fp32 with rounding to odd: towards zero, and the last bit set where that lost something. fp32 has
 * at least two bits more than the 16-bit types, so that rounding this to one of them gives what rounding x at
 * once would.
 */
ZB_DEVICE float zb_odd_from_double(double x)
{
#ifdef ZB_SIMT_EMULATED
    return zb_float_odd_from_double(x);
#else
    const float truncated = __double2float_rz(x);
    const int inexact = (double)truncated < x || (double)truncated > x; /* not of a NaN */
    return inexact ? __uint_as_float(__float_as_uint(truncated) | 1) : truncated;
#endif
}

/* x as it is after a trip through the type T. */
template <typename T> ZB_DEVICE float zb_rounded(float x)
{
    T narrow;
    zb_narrow(x, &narrow);
    return zb_widen(narrow);
}

#endif
