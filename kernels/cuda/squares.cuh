/*
 * Exact sums of squares, as integers: every square is a whole number below 2^48, its mantissa squared, times
 * a power of two that its exponent gives.
 *
 * A warp has a window of 22 neighbouring exponents, and each thread four 64-bit sums for it: the squares are
 * shifted into place by a multiplication, which is one instruction with the addition. What falls outside the
 * window goes, element by element, to the block's digits in shared memory; when that happens to many lanes at
 * a time, the window moves. At the end the sums become digits, those of the lanes are added up, and the block
 * adds its normalised digits to the accumulator: integers all the way, so that no order shows.
 */
#ifndef ZB_KERNELS_CUDA_SQUARES_CUH
#define ZB_KERNELS_CUDA_SQUARES_CUH

#include <zerobit/kernels.h>

#include "kernels/cuda/elementwise.cuh"

typedef unsigned long long zb_digit;

enum {
    ZB_HALF_WINDOW =
        11, /* exponents; shifted by up to 20 bits, the lower 32 bits of a square stay below 2^52 */
    ZB_WINDOW = 2 * ZB_HALF_WINDOW,
    ZB_WINDOW_BASE_MAX = 255 - ZB_WINDOW, /* so that infinities and NaNs are outside */
    ZB_WINDOW_ABOVE = 3,       /* exponents left free above the largest one when the window moves */
    ZB_WINDOW_ADDS_MAX = 4096, /* 2^12 times 2^52 fit 64 bits */
    ZB_WINDOW_MISSES = 8,      /* lanes that miss it at a time before it moves */
    ZB_LIMBS = 4
};

/* Bit 0 of low[0] is worth the square of 2^(base - 150), base being an exponent as fp32 stores it. */
struct zb_square_window {
    unsigned base; /* the same in all lanes of a warp */
    unsigned adds;
    uint64_t low[2],
        high[2]; /* sums of the lower 32 bits of the squares and of the upper ones; [1]: 22 bits further up */
};

ZB_DEVICE void zb_window_open(zb_square_window *w)
{
    w->base = ZB_WINDOW_BASE_MAX;
    w->adds = 0;
    w->low[0] = w->low[1] = w->high[0] = w->high[1] = 0;
}

ZB_DEVICE unsigned zb_exponent_of(float x)
{
    return __float_as_uint(x) >> 23 & 255;
}
ZB_DEVICE bool zb_misses(const zb_square_window &w, float x)
{
    return zb_exponent_of(x) - w.base >= ZB_WINDOW && (__float_as_uint(x) & 0x7fffffff) != 0;
}

/* Adds the square of an x inside the window; another one, or 0, adds nothing. */
ZB_DEVICE void zb_window_add(zb_square_window *w, float x)
{
    const unsigned t = zb_exponent_of(x) - w->base, u = t - ZB_HALF_WINDOW;
    const uint32_t mantissa = (__float_as_uint(x) & 0x7fffff) | 0x800000;
    const uint64_t square = (uint64_t)mantissa * mantissa;
    const uint32_t low = (uint32_t)square, high = (uint32_t)(square >> 32);
    const uint32_t lower = t < ZB_HALF_WINDOW ? 1u << 2 * t : 0, upper = u < ZB_HALF_WINDOW ? 1u << 2 * u : 0;
    w->low[0] += (uint64_t)low * lower;
    w->high[0] += (uint64_t)high * lower;
    w->low[1] += (uint64_t)low * upper;
    w->high[1] += (uint64_t)high * upper;
}

/* number * 2^position, counted from the lowest bit of digit 0, into the digits. */
ZB_DEVICE void zb_add_to_digits(zb_digit *digits, uint64_t number, unsigned position)
{
    const unsigned d = position / 32, shift = position % 32;
    const uint64_t low = (number & 0xffffffff) << shift, high = (number >> 32) << shift;
    const uint64_t parts[3] = { low & 0xffffffff, (low >> 32) + (high & 0xffffffff), high >> 32 };
#pragma unroll
    for (int i = 0; i < 3; i++)
        if (parts[i] != 0) atomicAdd(&digits[d + i], (zb_digit)parts[i]);
}

ZB_DEVICE_RARE void zb_add_square_outside(zb_digit *digits, float x)
{
    const unsigned magnitude = __float_as_uint(x) & 0x7fffffff, exponent = magnitude >> 23;
    if (exponent == 255) {
        atomicAdd(&digits[magnitude == 0x7f800000 ? ZB_SUM_SQUARES_INF : ZB_SUM_SQUARES_NAN], (zb_digit)1);
        return;
    }
    const uint32_t mantissa = (magnitude & 0x7fffff) | (exponent != 0 ? 0x800000 : 0);
    zb_add_to_digits(digits, (uint64_t)mantissa * mantissa, 2 * (exponent != 0 ? exponent : 1) + 20);
}

/* All lanes' sums, the members of their windows, to the block's digits; the whole warp. */
ZB_DEVICE_RARE void zb_sums_to_digits(unsigned base, uint64_t low, uint64_t upper_low, uint64_t high,
                                      uint64_t upper_high, zb_digit *digits)
{
    const uint64_t mask = 0xffffffff;
    uint64_t limbs[ZB_LIMBS] = {
        (low & mask) + (upper_low << 22 & mask),
        (low >> 32) + (upper_low >> 10 & mask) + (high & mask) + (upper_high << 22 & mask),
        (upper_low >> 42) + (high >> 32) + (upper_high >> 10 & mask),
        upper_high >> 42,
    };
    const unsigned lane = threadIdx.x % ZB_WARP, position = 2 * base + 20;
#pragma unroll
    for (int i = 0; i < ZB_LIMBS; i++) {
#pragma unroll
        for (int with = ZB_WARP / 2; with > 0; with /= 2)
            limbs[i] += __shfl_xor_sync(ZB_ALL_LANES, limbs[i], with);
        if (lane == (unsigned)i) zb_add_to_digits(digits, limbs[i], position + 32 * i);
    }
}

ZB_DEVICE void zb_window_flush(zb_square_window *w, zb_digit *digits)
{
    zb_sums_to_digits(w->base, w->low[0], w->low[1], w->high[0], w->high[1], digits);
    w->adds = 0;
    w->low[0] = w->low[1] = w->high[0] = w->high[1] = 0;
}

/* The base for numbers whose largest exponent is that of some lane; the old one where that is 0 in all lanes.
 */
ZB_DEVICE_RARE unsigned zb_base_for(unsigned largest, unsigned old)
{
#pragma unroll
    for (int with = ZB_WARP / 2; with > 0; with /= 2) {
        const unsigned other = __shfl_xor_sync(ZB_ALL_LANES, largest, with);
        if (other > largest) largest = other;
    }
    const unsigned top = largest + ZB_WINDOW_ABOVE + 1, base = top <= ZB_WINDOW ? 1 : top - ZB_WINDOW;
    return largest == 0 ? old : base > ZB_WINDOW_BASE_MAX ? ZB_WINDOW_BASE_MAX : base;
}

/* To where the numbers are that the warp is about to add, unless none of them is a normal one. */
template <int N> ZB_DEVICE void zb_window_move(zb_square_window *w, const float *x, zb_digit *digits)
{
    unsigned largest = 0;
#pragma unroll
    for (int k = 0; k < N; k++)
        if (zb_exponent_of(x[k]) < 255 && zb_exponent_of(x[k]) > largest) largest = zb_exponent_of(x[k]);
    zb_window_flush(w, digits);
    w->base = zb_base_for(largest, w->base);
}

/* N numbers of each lane; the whole warp, lanes without numbers with zeros. */
template <int N> ZB_DEVICE void zb_window_add_pack(zb_square_window *w, const float *x, zb_digit *digits)
{
    bool missed = false;
#pragma unroll
    for (int k = 0; k < N; k++) missed |= zb_misses(*w, x[k]);
    const unsigned lanes = __ballot_sync(ZB_ALL_LANES, missed);
    if (lanes != 0) {
        if (__popc(lanes) >= ZB_WINDOW_MISSES) zb_window_move<N>(w, x, digits);
#pragma unroll
        for (int k = 0; k < N; k++)
            if (zb_misses(*w, x[k])) zb_add_square_outside(digits, x[k]);
    }
#pragma unroll
    for (int k = 0; k < N; k++) zb_window_add(w, x[k]);
    w->adds += N;
    if (w->adds > ZB_WINDOW_ADDS_MAX - N) zb_window_flush(w, digits);
}

/* Carries, so that every digit but the last lies in 0..2^32-1. By one thread. */
ZB_DEVICE void zb_normalise(int64_t *digits)
{
    int64_t carry = 0;
    for (int d = 0; d < ZB_SUM_SQUARES_DIGITS - 1; d++) {
        /* The carry is taken out of the digit first: together they might not fit. */
        const int64_t low = (digits[d] & 0xffffffff) + (carry & 0xffffffff);
        carry = (digits[d] >> 32) + (carry >> 32) + (low >> 32);
        digits[d] = low & 0xffffffff;
    }
    digits[ZB_SUM_SQUARES_DIGITS - 1] += carry;
}

/* --- the kernel: a source gives each element, and one or two numbers of it to be squared --- */

#ifdef ZB_SIMT_EMULATED
enum { ZB_SQUARE_BLOCKS_MAX = 2 }; /* so that a test can have threads with many additions */
#else
enum { ZB_SQUARE_BLOCKS_MAX = 2048 };
#endif
enum { ZB_SQUARE_THREADS = 256 };

static __global__ void zb_normalise_accumulators(int64_t *accumulators, int count)
{
    if (threadIdx.x < (unsigned)count) zb_normalise(accumulators + threadIdx.x * ZB_SUM_SQUARES_WORDS);
}

template <typename Source> struct zb_block_sums {
    zb_square_window windows[Source::SUMS];
    zb_digit (*digits)[ZB_SUM_SQUARES_WORDS]; /* [SUMS], shared */
};

/* The numbers of N elements, or zeros, to the windows. */
template <int N, typename Source>
ZB_DEVICE void zb_square(const Source &source, zb_block_sums<Source> *sums, bool exists, size_t i,
                         const typename Source::template values<N> &values)
{
    float x[Source::SUMS][N] = {};
    if (exists) source.template finish<N>(i, values, x);
#pragma unroll
    for (int s = 0; s < Source::SUMS; s++) zb_window_add_pack<N>(&sums->windows[s], x[s], sums->digits[s]);
}

/* Elements [head, head + packs * N), by tiles; all threads of a block go through as many. */
template <int N, typename Source>
ZB_DEVICE void zb_square_tiles(const Source &source, zb_block_sums<Source> *sums, size_t head, size_t packs)
{
    enum { UNROLL = Source::UNROLL };
    for (size_t tile = (size_t)blockIdx.x * (ZB_SQUARE_THREADS * UNROLL); tile < packs;
         tile += (size_t)gridDim.x * (ZB_SQUARE_THREADS * UNROLL)) {
        typename Source::template values<N> values[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const size_t pack = tile + u * ZB_SQUARE_THREADS + threadIdx.x;
            if (pack < packs) values[u] = source.template load<N>(head + pack * N);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const size_t pack = tile + u * ZB_SQUARE_THREADS + threadIdx.x;
            zb_square<N>(source, sums, pack < packs, head + pack * N, values[u]);
        }
    }
}

/* The block's digits to the accumulators; one block alone leaves these normalised. */
template <typename Source> ZB_DEVICE void zb_square_finish(zb_block_sums<Source> *sums, int64_t *accumulators)
{
    const unsigned t = threadIdx.x;
#pragma unroll
    for (int s = 0; s < Source::SUMS; s++) zb_window_flush(&sums->windows[s], sums->digits[s]);
    __syncthreads();
    if (t < Source::SUMS) {
        zb_normalise(reinterpret_cast<int64_t *>(sums->digits[t])); /* so that many blocks fit a digit */
        if (gridDim.x == 1) zb_normalise(accumulators + t * ZB_SUM_SQUARES_WORDS);
    }
    __syncthreads();
    if (t < Source::SUMS * ZB_SUM_SQUARES_WORDS) {
        const zb_digit digit = sums->digits[t / ZB_SUM_SQUARES_WORDS][t % ZB_SUM_SQUARES_WORDS];
        if (digit != 0) atomicAdd(reinterpret_cast<zb_digit *>(accumulators) + t, digit);
    }
    __syncthreads();
    if (t < Source::SUMS && gridDim.x == 1) zb_normalise(accumulators + t * ZB_SUM_SQUARES_WORDS);
}

template <int N, typename Source>
__global__ void __launch_bounds__(ZB_SQUARE_THREADS)
    zb_square_kernel(Source source, zb_layout layout, size_t numel, int64_t *accumulators)
{
    ZB_SHARED(zb_digit, digits, [Source::SUMS][ZB_SUM_SQUARES_WORDS]);
    const unsigned t = threadIdx.x;
    static_assert(Source::SUMS * ZB_SUM_SQUARES_WORDS <= ZB_SQUARE_THREADS, "a thread for each digit");
    if (t < Source::SUMS * ZB_SUM_SQUARES_WORDS)
        digits[t / ZB_SUM_SQUARES_WORDS][t % ZB_SUM_SQUARES_WORDS] = 0;
    zb_block_sums<Source> sums;
    sums.digits = digits;
#pragma unroll
    for (int s = 0; s < Source::SUMS; s++) zb_window_open(&sums.windows[s]);
    __syncthreads();
    zb_square_tiles<N>(source, &sums, layout.head, layout.packs);
    if (blockIdx.x == 0) { /* what lies before the first and behind the last pack */
        const size_t i = t < layout.head ? t : t + layout.packs * N;
        typename Source::template values<1> values;
        if (i < numel) values = source.template load<1>(i);
        zb_square<1>(source, &sums, i < numel, i, values);
    }
    zb_square_finish(&sums, accumulators);
}

/* accumulators: [SUMS][ZB_SUM_SQUARES_WORDS] */
template <typename Source, size_t count>
zb_status zb_sum_squares_of(zb_cuda_place place, cudaStream_t stream, const Source &source, size_t numel,
                            int64_t *accumulators, const zb_array (&arrays)[count])
{
    const int sums = Source::SUMS;
    if (numel == 0)
        return zb_cuda_run(place, zb_normalise_accumulators, 1, ZB_WARP, 0, stream, accumulators, sums);
    zb_layout layout = zb_layout_of(numel, Source::WIDTH, arrays, count);
    if (!layout.by_packs) layout.packs = numel;
    unsigned blocks = zb_blocks_for(layout.packs, ZB_SQUARE_THREADS * Source::UNROLL);
    if (blocks > ZB_SQUARE_BLOCKS_MAX) blocks = ZB_SQUARE_BLOCKS_MAX;
    if (blocks > 1)
        ZB_TRY(zb_cuda_run(place, zb_normalise_accumulators, 1, ZB_WARP, 0, stream, accumulators, sums));
    if (layout.by_packs)
        ZB_TRY(zb_cuda_run(place, zb_square_kernel<Source::WIDTH, Source>, blocks, ZB_SQUARE_THREADS, 0,
                           stream, source, layout, numel, accumulators));
    else
        ZB_TRY(zb_cuda_run(place, zb_square_kernel<1, Source>, blocks, ZB_SQUARE_THREADS, 0, stream, source,
                           layout, numel, accumulators));
    if (blocks > 1)
        return zb_cuda_run(place, zb_normalise_accumulators, 1, ZB_WARP, 0, stream, accumulators, sums);
    return ZB_OK;
}

#endif
