/*
 * The words of CUDA C++ in plain C++, for the kernels of kernels/cuda on the CPU: put in front of every .cu
 * file by the compiler's -include. Only what those files use; what is missing does not compile.
 */
#ifndef ZB_SIM_SIMT_CUDA_LANGUAGE_H
#define ZB_SIM_SIMT_CUDA_LANGUAGE_H

#define ZB_SIMT_EMULATED 1

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/half.h"
#include "sim/simt/simt.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__    __attribute__((noinline))
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};

#define threadIdx (sim_simt_here->thread)
#define blockIdx  (sim_simt_here->block)
#define blockDim  (sim_simt_here->block_dim)
#define gridDim   (sim_simt_here->grid_dim)
static constexpr int warpSize = 32;

/* --- together. Where a call stands in the source says which calls of other lanes it belongs to. --- */

#define ZB_SIMT_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(ZB_SIMT_CALLER)
{
    sim_simt_barrier(file, line);
}
static inline void __syncwarp(unsigned mask = ~0u, ZB_SIMT_CALLER)
{
    sim_simt_warp(SIM_SIMT_SYNC, mask, 0, 0, file, line);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, ZB_SIMT_CALLER)
{
    return (unsigned)sim_simt_warp(SIM_SIMT_BALLOT, mask, predicate != 0, 0, file, line);
}
static inline int __any_sync(unsigned mask, int predicate, ZB_SIMT_CALLER)
{
    return __ballot_sync(mask, predicate, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, ZB_SIMT_CALLER)
{
    return __ballot_sync(mask, !predicate, file, line) == 0;
}

static inline int sim_simt_lane()
{
    const sim_simt_place *at = sim_simt_here;
    return (int)((at->thread.x + at->block_dim.x * (at->thread.y + at->block_dim.y * at->thread.z)) % 32);
}

/* The value of lane `from`; the thread's own where that lies outside its part of the warp, `width` lanes
 * wide. */
template <typename T>
static inline T sim_simt_shuffle(unsigned mask, T value, int from, int width, const char *file, int line)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    const int lane = sim_simt_lane(), first = lane / width * width;
    if (from < first || from >= first + width) from = lane;
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = sim_simt_warp(SIM_SIMT_VALUE, mask, bits, (unsigned)from, file, line);
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename T>
static inline T __shfl_sync(unsigned mask, T value, int from, int width = 32, ZB_SIMT_CALLER)
{
    return sim_simt_shuffle(mask, value, sim_simt_lane() / width * width + (from & (width - 1)), width, file,
                            line);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, ZB_SIMT_CALLER)
{
    return sim_simt_shuffle(mask, value, sim_simt_lane() + (int)by, width, file, line);
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, ZB_SIMT_CALLER)
{
    return sim_simt_shuffle(mask, value, sim_simt_lane() - (int)by, width, file, line);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, ZB_SIMT_CALLER)
{
    return sim_simt_shuffle(mask, value, sim_simt_lane() ^ with, width, file, line);
}

/* --- atomic, as one thread runs at a time --- */

template <typename T, typename U> static inline T atomicAdd(T *at, U value)
{
    const T before = *at;
    *at = before + (T)value;
    return before;
}
template <typename T, typename U> static inline T atomicMax(T *at, U value)
{
    const T before = *at;
    if ((T)value > before) *at = (T)value;
    return before;
}
template <typename T, typename U> static inline T atomicOr(T *at, U value)
{
    const T before = *at;
    *at = before | (T)value;
    return before;
}
static inline void __threadfence() {}

/* --- bits --- */

static inline unsigned __float_as_uint(float x)
{
    return zb_float_bits(x);
}
static inline int __float_as_int(float x)
{
    return (int)zb_float_bits(x);
}
static inline float __uint_as_float(unsigned bits)
{
    return zb_float_from_bits(bits);
}
static inline float __int_as_float(int bits)
{
    return zb_float_from_bits((unsigned)bits);
}
static inline long long __double_as_longlong(double x)
{
    long long bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline double __longlong_as_double(long long bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __clz(int x)
{
    return x == 0 ? 32 : __builtin_clz((unsigned)x);
}
static inline int __clzll(long long x)
{
    return x == 0 ? 64 : __builtin_clzll((unsigned long long)x);
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

/* --- launching --- */

template <typename Body> static inline void sim_simt_call(void *body)
{
    (*static_cast<Body *>(body))();
}
template <typename Body>
static inline zb_status sim_simt_launch_body(const char *kernel, const char *file, int line, dim3 grid,
                                             dim3 block, size_t shared_bytes, Body body)
{
    const sim_simt_launch launch = { kernel,
                                     file,
                                     line,
                                     { grid.x, grid.y, grid.z },
                                     { block.x, block.y, block.z },
                                     shared_bytes,
                                     sim_simt_call<Body>,
                                     &body };
    return sim_simt_run(&launch);
}

#endif
