/*
 * Convolution as one matrix product over all images, whose taps are looked up while they are loaded (see
 * product.cuh):
 *
 *     y[o, (n,p,q)]    = chain over (c,r,s) of w[o, (c,r,s)],    x's taps[(n,p,q), (c,r,s)]
 *     dx[c, (n,h,v)]   = chain over (o,r,s) of w[c, (o,r,s)],    dy's taps[(n,h,v), (o,r,s)]
 *     dw[o, (c,r,s)]   = chain over (n,p,q) of dy[o, (n,p,q)],   x's taps[(n,p,q), (c,r,s)]
 *
 * A tap that looks outside is +0 and takes part. No workspace is needed.
 */
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/operations.h"

#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/product.cuh"
#include "kernels/cuda/reduce.cuh"

/* --- division by what is known at the launch --- */

/* For numbers below 2^31: a multiplication and a shift. See Granlund and Montgomery, "Division by Invariant
 * Integers using Multiplication", 1994. */
struct divider {
    unsigned divisor, factor, shift;
};

static divider divider_of(size_t divisor)
{
    if (divisor == 0) divisor = 1; /* nothing is there to be divided */
    unsigned shift = 0;
    while ((uint64_t)1 << shift < divisor) shift++;
    const uint64_t factor = ((((uint64_t)1 << shift) - divisor) << 32) / divisor + 1;
    return divider{ (unsigned)divisor, (unsigned)factor, shift };
}

struct quotient {
    unsigned whole, rest;
};
ZB_DEVICE quotient divide(unsigned x, const divider &by)
{
    const unsigned high = (unsigned)((uint64_t)x * by.factor >> 32);
    const unsigned whole = (high + x) >> by.shift;
    return quotient{ whole, x - whole * by.divisor };
}

/* --- operands: an element's place is the sum of a part from its row or column of C and a part from its k ---
 */

/* w and dy: one index counts rows of memory, the other is split: (outer, inner) lie at outer * outer_stride +
 * inner. */
template <typename T> struct split_matrix {
    typedef T element;
    typedef size_t part;
    const T *data;
    size_t tile_stride, outer_stride;
    divider inner;

    __device__ __forceinline__ part of_tile(unsigned i) const { return i * tile_stride; }
    __device__ __forceinline__ part of_k(unsigned p) const
    {
        const quotient at = divide(p, inner);
        return at.whole * outer_stride + at.rest;
    }
    __device__ __forceinline__ const T *find(part i, part p) const { return data + i + p; }
};

/* Where a tap or a pixel lies: `offset` elements into the array for whole images and channels, and two
 * coordinates. */
struct place {
    size_t offset;
    int h, v;
};

/* x's taps: pixels (n,p,q) of the output and taps (c,r,s). */
template <typename T> struct input_taps {
    typedef T element;
    typedef place part;
    const T *data;
    divider pixels, row, window, kernel; /* oh * ow, ow, kernel * kernel, kernel */
    size_t image, plane;
    int ih, iw, stride, padding;

    __device__ __forceinline__ place of_pixel(unsigned i) const
    {
        const quotient n = divide(i, pixels), p = divide(n.rest, row);
        return place{ n.whole * image, (int)p.whole * stride - padding, (int)p.rest * stride - padding };
    }
    __device__ __forceinline__ place of_tap(unsigned i) const
    {
        const quotient c = divide(i, window), r = divide(c.rest, kernel);
        return place{ c.whole * plane, (int)r.whole, (int)r.rest };
    }
    /* NULL: outside the image */
    __device__ __forceinline__ const T *find(const place &a, const place &b) const
    {
        const int h = a.h + b.h, v = a.v + b.v;
        if ((unsigned)h >= (unsigned)ih || (unsigned)v >= (unsigned)iw) return nullptr;
        return data + (a.offset + b.offset) + ((size_t)h * iw + v);
    }
};
template <typename T> struct pixels_by_tap : input_taps<T> {
    __device__ __forceinline__ place of_tile(unsigned i) const { return this->of_pixel(i); }
    __device__ __forceinline__ place of_k(unsigned p) const { return this->of_tap(p); }
};
template <typename T> struct taps_by_pixel : input_taps<T> {
    __device__ __forceinline__ place of_tile(unsigned i) const { return this->of_tap(i); }
    __device__ __forceinline__ place of_k(unsigned p) const { return this->of_pixel(p); }
};

/* dy's taps: pixels (n,h,v) of the input by taps (o,r,s), with p * stride + r - padding = h. */
template <typename T> struct output_taps {
    typedef T element;
    typedef place part;
    const T *data;
    divider pixels, row, window, kernel, stride; /* ih * iw, iw, kernel * kernel, kernel */
    size_t image, plane;
    unsigned oh, ow;
    int padding;

    __device__ __forceinline__ place of_tile(unsigned i) const
    {
        const quotient n = divide(i, pixels), h = divide(n.rest, row);
        return place{ n.whole * image, (int)h.whole + padding, (int)h.rest + padding };
    }
    __device__ __forceinline__ place of_k(unsigned p) const
    {
        const quotient o = divide(p, window), r = divide(o.rest, kernel);
        return place{ o.whole * plane, -(int)r.whole, -(int)r.rest };
    }
    /* NULL: no output looks there through that tap */
    __device__ __forceinline__ const T *find(const place &a, const place &b) const
    {
        const int h = a.h + b.h, v = a.v + b.v;
        if (h < 0 || v < 0) return nullptr;
        const quotient p = divide((unsigned)h, stride), q = divide((unsigned)v, stride);
        if (p.rest != 0 || q.rest != 0 || p.whole >= oh || q.whole >= ow) return nullptr;
        return data + (a.offset + b.offset) + ((size_t)p.whole * ow + q.whole);
    }
};

/* Loads any of these, element by element. The parts of the place that stay from slice to slice are kept. */
template <typename Operand, int tile, int threads, bool k_fast> struct gather {
    typedef Operand operand;
    typedef typename Operand::element T;
    typedef zb_share<tile, threads, k_fast> share;
    static constexpr int stages = zb_transit<T, share::count>::stages, kept = k_fast ? share::count : 1;

    typename Operand::part parts[kept];
    zb_transit<T, share::count> transit;
    int rows, p, to; /* rows that exist from the thread's first one on; its first k in the slice */
    unsigned before; /* k of the slices before */

    __device__ __forceinline__ gather(const Operand &from, size_t first, size_t size, int thread) : before(0)
    {
        const int i = share::first_of_tile(thread);
        p = share::first_of_k(thread);
        to = p * share::row + i;
        rows = (int)(size - first < tile ? size - first : tile) - i;
#pragma unroll
        for (int n = 0; n < kept; n++)
            if (n * share::tile_step < rows)
                parts[n] = from.of_tile((unsigned)first + i + n * share::tile_step);
    }
    template <bool whole> __device__ __forceinline__ void fetch(const Operand &from, float *slice, int k)
    {
        typename Operand::part part = {};
#pragma unroll
        for (int n = 0; n < share::count; n++) {
            const int at = p + n * share::k_step;
            if (n * share::tile_step >= rows || (!whole && at >= k)) continue;
            if (!k_fast || n == 0) part = from.of_k(before + at);
            const T *element = from.find(parts[k_fast ? n : 0], part);
            if (element != nullptr)
                transit.send(slice + to + n * share::step, n, element);
            else
                transit.send_zero(slice + to + n * share::step, n, from.data);
        }
        before += ZB_K_STEP;
    }
    __device__ __forceinline__ void deposit(float *slice) const
    {
#pragma unroll
        for (int n = 0; n < share::count; n++) transit.arrive(slice + to + n * share::step, n);
    }
};

/* --- results --- */

/* y and dx: columns of C are pixels of all images, its rows channels. */
template <typename T> struct image_output {
    T *data;
    divider pixels;
    size_t image, plane;
    const T *bias; /* of the channel, or NULL */

    typedef size_t column_part;
    __device__ __forceinline__ column_part of_column(size_t j) const
    {
        const quotient n = divide((unsigned)j, pixels);
        return n.whole * image + n.rest;
    }
    __device__ __forceinline__ float start(size_t, column_part) const { return 0.0f; }
    __device__ __forceinline__ void store(size_t i, column_part column, float chain) const
    {
        if (bias != nullptr) chain = chain + zb_widen(bias[i]);
        zb_narrow(chain, &data[i * plane + column]);
    }
};

/* dw */
template <typename T> struct weight_output {
    T *data;
    size_t row;

    typedef size_t column_part;
    __device__ __forceinline__ column_part of_column(size_t j) const { return j; }
    __device__ __forceinline__ float start(size_t, column_part) const { return 0.0f; }
    __device__ __forceinline__ void store(size_t i, column_part column, float chain) const
    {
        zb_narrow(chain, &data[i * row + column]);
    }
};

/* --- launching --- */

/* `taps_along_k`: neighbouring threads load neighbours in k of b, too, as they do of a. */
template <typename Tile, bool taps_along_k, typename A, typename B, typename C>
static zb_status run_tile(cudaStream_t stream, size_t m, size_t n, size_t k, const A &a, const B &b,
                          const C &c)
{
    return zb_product_run<Tile, gather<A, Tile::m, Tile::threads, true>,
                          gather<B, Tile::n, Tile::threads, taps_along_k>>(stream, m, n, k, a, b, c);
}
template <bool taps_along_k, typename A, typename B, typename C>
static zb_status run(cudaStream_t stream, size_t m, size_t n, size_t k, const A &a, const B &b, const C &c)
{
    if (m == 0 || n == 0) return ZB_OK;
    switch (zb_tile_size_for(m, n)) {
    case ZB_TILE_LARGE:
    case ZB_TILE_MIDDLE:
        return run_tile<zb_tile_middle, taps_along_k>(stream, m, n, k, a, b, c);
    case ZB_TILE_WIDE:
        return run_tile<zb_tile_wide, taps_along_k>(stream, m, n, k, a, b, c);
    default:
        return run_tile<zb_tile_small, taps_along_k>(stream, m, n, k, a, b, c);
    }
}

/* Indices are 31 bits on the GPU: of pixels over all images, of taps, and of padded rows and columns. */
static zb_status check_shape(const char *operation, const zb_conv2d_shape *s)
{
    const size_t window = s->kernel * s->kernel, limit = INT32_MAX;
    const size_t pixels = s->ih * s->iw > s->oh * s->ow ? s->ih * s->iw : s->oh * s->ow;
    const size_t channels = s->ic > s->oc ? s->ic : s->oc;
    const size_t side = (s->ih > s->iw ? s->ih : s->iw) + 2 * s->padding;
    if (side <= limit && (s->rows == 0 || pixels <= limit / s->rows) &&
        window <= limit / (channels > 0 ? channels : 1))
        return ZB_OK;
    return zb_fail(ZB_UNSUPPORTED,
                   "%s on CUDA of %zu images with up to %zu pixels and %zu channels, kernel %zu, padding "
                   "%zu; want fewer "
                   "than 2^31 pixels and taps",
                   operation, s->rows, pixels, channels, s->kernel, s->padding);
}

template <typename Taps, typename T> static Taps input_taps_of(const zb_conv2d_shape *s, const void *x)
{
    Taps taps;
    taps.data = static_cast<const T *>(x);
    taps.pixels = divider_of(s->oh * s->ow), taps.row = divider_of(s->ow);
    taps.window = divider_of(s->kernel * s->kernel), taps.kernel = divider_of(s->kernel);
    taps.plane = s->ih * s->iw, taps.image = s->ic * taps.plane;
    taps.ih = (int)s->ih, taps.iw = (int)s->iw, taps.stride = (int)s->stride, taps.padding = (int)s->padding;
    return taps;
}

template <typename T> static output_taps<T> output_taps_of(const zb_conv2d_shape *s, const void *dy)
{
    output_taps<T> taps;
    taps.data = static_cast<const T *>(dy);
    taps.pixels = divider_of(s->ih * s->iw), taps.row = divider_of(s->iw);
    taps.window = divider_of(s->kernel * s->kernel), taps.kernel = divider_of(s->kernel),
    taps.stride = divider_of(s->stride);
    taps.plane = s->oh * s->ow, taps.image = s->oc * taps.plane;
    taps.oh = (unsigned)s->oh, taps.ow = (unsigned)s->ow, taps.padding = (int)s->padding;
    return taps;
}

zb_status zb_cuda_op_conv2d_forward(cudaStream_t stream, const zb_conv2d_forward_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("conv2d_forward", args->dtype));
    const zb_conv2d_shape *s = &args->shape;
    ZB_TRY(check_shape("conv2d_forward", s));
    const size_t window = s->kernel * s->kernel, pixels = s->oh * s->ow, taps = s->ic * window;
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        typedef decltype(type) T;
        const split_matrix<T> w = { static_cast<const T *>(args->w), taps, 0, divider_of(taps) };
        const image_output<T> y = { static_cast<T *>(args->y), divider_of(pixels), s->oc * pixels, pixels,
                                    static_cast<const T *>(args->b) };
        return run<false>(stream, s->oc, s->rows * pixels, taps, w,
                          input_taps_of<pixels_by_tap<T>, T>(s, args->x), y);
    });
}

zb_status zb_cuda_op_conv2d_backward_input(cudaStream_t stream, const zb_conv2d_backward_input_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("conv2d_backward_input", args->dtype));
    const zb_conv2d_shape *s = &args->shape;
    ZB_TRY(check_shape("conv2d_backward_input", s));
    const size_t window = s->kernel * s->kernel, pixels = s->ih * s->iw;
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        typedef decltype(type) T;
        const split_matrix<T> w = { static_cast<const T *>(args->w), window, s->ic * window,
                                    divider_of(window) };
        const image_output<T> dx = { static_cast<T *>(args->dx), divider_of(pixels), s->ic * pixels, pixels,
                                     nullptr };
        return run<false>(stream, s->ic, s->rows * pixels, s->oc * window, w, output_taps_of<T>(s, args->dy),
                          dx);
    });
}

zb_status zb_cuda_op_conv2d_backward_weight(cudaStream_t stream, const zb_conv2d_backward_weight_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("conv2d_backward_weight", args->dtype));
    const zb_conv2d_shape *s = &args->shape;
    ZB_TRY(check_shape("conv2d_backward_weight", s));
    const size_t pixels = s->oh * s->ow, taps = s->ic * s->kernel * s->kernel;
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        typedef decltype(type) T;
        const split_matrix<T> dy = { static_cast<const T *>(args->dy), pixels, s->oc * pixels,
                                     divider_of(pixels) };
        const weight_output<T> dw = { static_cast<T *>(args->dw), taps };
        return run<true>(stream, s->oc, taps, s->rows * pixels, dy,
                         input_taps_of<taps_by_pixel<T>, T>(s, args->x), dw);
    });
}

/* --- the bias's gradient: a block for each channel --- */

enum { BIAS_THREADS = 256 };

template <typename T>
__global__ void __launch_bounds__(BIAS_THREADS)
    sum_channel(const T *dy, size_t count, divider pixels, size_t image, size_t plane, T *db)
{
    const T *channel = dy + blockIdx.x * plane;
    const float sum = zb_reduce_block<BIAS_THREADS>(count, [&](size_t i) {
        const quotient n = divide((unsigned)i, pixels);
        return zb_widen(channel[n.whole * image + n.rest]);
    });
    if (threadIdx.x == 0) zb_narrow(sum, &db[blockIdx.x]);
}

zb_status zb_cuda_op_conv2d_backward_bias(cudaStream_t stream, const zb_conv2d_backward_bias_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("conv2d_backward_bias", args->dtype));
    const zb_conv2d_shape *s = &args->shape;
    ZB_TRY(check_shape("conv2d_backward_bias", s));
    if (s->oc == 0) return ZB_OK;
    const size_t pixels = s->oh * s->ow;
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        typedef decltype(type) T;
        return ZB_CUDA_RUN(sum_channel<T>, dim3((unsigned)s->oc), dim3(BIAS_THREADS), 0, stream,
                           static_cast<const T *>(args->dy), s->rows * pixels, divider_of(pixels),
                           s->oc * pixels, pixels, static_cast<T *>(args->db));
    });
}
