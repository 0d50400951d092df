/*
 * Matrix products as the contract has them: each output is one chain of fmaf over k, ascending, in one
 * thread's register.
 *
 * A block of threads computes a tile of C. Slices of A and B, 8 wide in k, go to shared memory as fp32, k
 * outermost, several of them ahead of their use: fp32 by asynchronous copies, 16-bit elements through
 * registers, where they are widened. A thread holds a few rows and columns of the tile and reads them from a
 * slice as vectors. Where the elements of A and B come from is the business of loaders: a convolution is the
 * same product, with loaders that look into images.
 *
 * The last slice may be short; its missing part takes part in no chain, since even +0 times +0 turns a -0
 * into a +0. Rows and columns outside C are computed from anything and not stored.
 */
#ifndef ZB_KERNELS_CUDA_PRODUCT_CUH
#define ZB_KERNELS_CUDA_PRODUCT_CUH

#include "kernels/cuda/simt.cuh"

enum { ZB_K_STEP = 8 };

/* --- tiles --- */

/*
 * Warps along m and n, and the rows and columns of C that a thread holds, in runs of `run` neighbours. The
 * lanes of a warp lie 4 x 8, so that each vector that they read from shared memory is one of few, and each
 * pair of lanes shares one: no bank is asked twice. `blocks` of them should fit a multiprocessor, which
 * bounds the registers of a thread. A tile that lies `inside` never reaches beyond C: the last ones are moved
 * back, over their neighbours, and store only what is theirs; C is at least as large. It asks no questions.
 */
template <int m_warps_, int n_warps_, int thread_m_, int thread_n_, int blocks_, bool inside_>
struct zb_tile {
    static constexpr int m_warps = m_warps_, n_warps = n_warps_, thread_m = thread_m_, thread_n = thread_n_,
                         blocks = blocks_;
    static constexpr bool inside = inside_;
    static constexpr int lanes_m = 4, lanes_n = 8;
    static constexpr int threads = ZB_WARP * m_warps * n_warps;
    static constexpr int run_m = thread_m < 4 ? thread_m : 4, run_n = thread_n < 4 ? thread_n : 4;
    static constexpr int warp_m = lanes_m * thread_m, warp_n = lanes_n * thread_n;
    static constexpr int m = m_warps * warp_m, n = n_warps * warp_n;
    /* Four floats more than needed: 8 neighbours in k of 4 neighbouring rows lie in 32 different banks. */
    static constexpr int a_row = m + 4, b_row = n + 4;
    static constexpr int slice_floats = ZB_K_STEP * (a_row + b_row);
};
typedef zb_tile<4, 2, 8, 8, 2, true> zb_tile_large;   /* 128 x 128 */
typedef zb_tile<2, 1, 8, 8, 6, false> zb_tile_middle; /*  64 x  64 */
typedef zb_tile<2, 1, 8, 8, 6, true> zb_tile_middle_inside;
typedef zb_tile<1, 4, 4, 4, 4, false> zb_tile_wide;  /*  16 x 128 */
typedef zb_tile<2, 2, 2, 2, 6, false> zb_tile_small; /*  16 x  32 */

/* Where a thread's rows and columns begin in the tile; the runs after the first lie a warp's width of runs
 * further. */
struct zb_corner {
    int row, column;
};
template <typename Tile> ZB_DEVICE zb_corner zb_corner_of(unsigned thread)
{
    const int warp = (int)thread / ZB_WARP, lane = (int)thread % ZB_WARP;
    const int lane_m = lane % 2 + lane / 16 * 2, lane_n = lane / 2 % 8;
    return zb_corner{ warp % Tile::m_warps * Tile::warp_m + lane_m * Tile::run_m,
                      warp / Tile::m_warps * Tile::warp_n + lane_n * Tile::run_n };
}
template <typename Tile> ZB_DEVICE int zb_row_of(zb_corner corner, int i)
{
    return corner.row + i / Tile::run_m * (Tile::lanes_m * Tile::run_m) + i % Tile::run_m;
}
template <typename Tile> ZB_DEVICE int zb_column_of(zb_corner corner, int j)
{
    return corner.column + j / Tile::run_n * (Tile::lanes_n * Tile::run_n) + j % Tile::run_n;
}

/* --- loaders: from memory to a slice. What does not exist is left out, or becomes +0 where it is a tap
 * outside an image. --- */

/* Any strides: row (column) i of C and k = p lie at data[i * tile_stride + p * k_stride]. */
template <typename T> struct zb_matrix {
    const T *data;
    size_t tile_stride, k_stride;
};

/* What is on its way: fp32 by itself, 16-bit elements in registers until they are stored. */
template <typename T, int count> struct zb_transit {
    static constexpr int stages = 2;
    T values[count];

    __device__ __forceinline__ void send(float *, int n, const T *from) { values[n] = *from; }
    __device__ __forceinline__ void send_zero(float *, int n, const T *) { zb_narrow(0.0f, &values[n]); }
    __device__ __forceinline__ void arrive(float *to, int n) const { *to = zb_widen(values[n]); }
};
template <int count> struct zb_transit<float, count> {
    static constexpr int stages = 4;

    __device__ __forceinline__ void send(float *to, int, const float *from) { zb_copy_async<4>(to, from); }
    /* In order with the others, so by a copy too, of no bytes. */
    __device__ __forceinline__ void send_zero(float *to, int, const float *somewhere)
    {
        zb_copy_async<4>(to, somewhere, 0);
    }
    __device__ __forceinline__ void arrive(float *, int) const {}
};

/* Which elements of a slice a thread loads: neighbouring threads lie along k (k_fast) or along the tile, as
 * suits the memory. */
template <int tile, int threads, bool k_fast> struct zb_share {
    static constexpr int count = tile * ZB_K_STEP / threads, row = tile + 4;
    static_assert(count * threads == tile * ZB_K_STEP && threads % (k_fast ? ZB_K_STEP : tile) == 0,
                  "every thread loads the same number of elements");
    /* from one element of a thread to its next */
    static constexpr int tile_step = k_fast ? threads / ZB_K_STEP : 0, k_step = k_fast ? 0 : threads / tile;
    static constexpr int step = k_step * row + tile_step; /* in the slice */

    static __device__ __forceinline__ int first_of_tile(int thread)
    {
        return k_fast ? thread / ZB_K_STEP : thread % tile;
    }
    static __device__ __forceinline__ int first_of_k(int thread)
    {
        return k_fast ? thread % ZB_K_STEP : thread / tile;
    }
};

/* A matrix, element by element. `from` is what the thread's first element of the next slice is. */
template <typename T, int tile, int threads, bool inside, bool k_fast> struct zb_elements {
    typedef zb_matrix<T> operand;
    typedef zb_share<tile, threads, k_fast> share;
    static constexpr int stages = zb_transit<T, share::count>::stages;

    zb_transit<T, share::count> transit;
    const T *from;
    int i, p, rows, to; /* rows that exist from the thread's first one on */

    __device__ __forceinline__ zb_elements(const operand &matrix, size_t first, size_t size, int thread)
    {
        i = share::first_of_tile(thread), p = share::first_of_k(thread);
        from = matrix.data + (first + i) * matrix.tile_stride + p * matrix.k_stride;
        rows = (int)(size - first < tile ? size - first : tile) - i;
        to = p * share::row + i;
    }
    /* The next slice, of which the first `k` exist, or all (`whole`). */
    template <bool whole> __device__ __forceinline__ void fetch(const operand &matrix, float *slice, int k)
    {
        const size_t step = share::tile_step * matrix.tile_stride + share::k_step * matrix.k_stride;
        const T *at = from;
#pragma unroll
        for (int n = 0; n < share::count; n++, at += step)
            if ((inside || n * share::tile_step < rows) && (whole || p + n * share::k_step < k))
                transit.send(slice + to + n * share::step, n, at);
        from += ZB_K_STEP * matrix.k_stride;
    }
    __device__ __forceinline__ void deposit(float *slice) const
    {
#pragma unroll
        for (int n = 0; n < share::count; n++) transit.arrive(slice + to + n * share::step, n);
    }
};

/*
 * 16 bytes at a time, of fp32 that lies side by side along the tile: all addresses, and the size along the
 * tile, are multiples of that. For tiles that lie inside.
 */
template <int tile, int threads> struct zb_vectors {
    typedef zb_matrix<float> operand;
    static constexpr int stages = zb_transit<float, 1>::stages;
    static constexpr int row = tile + 4, per_row = tile / 4;
    static_assert(threads == per_row * ZB_K_STEP, "every thread loads one vector of a slice");

    const float *from;
    int p, to;

    __device__ __forceinline__ zb_vectors(const operand &matrix, size_t first, size_t, int thread)
    {
        const int i = thread % per_row * 4;
        p = thread / per_row;
        from = matrix.data + first + i + p * matrix.k_stride;
        to = p * row + i;
    }
    template <bool whole> __device__ __forceinline__ void fetch(const operand &matrix, float *slice, int k)
    {
        if (whole || p < k) zb_copy_async<16>(slice + to, from);
        from += ZB_K_STEP * matrix.k_stride;
    }
    __device__ __forceinline__ void deposit(float *) const {}
};

/* --- the kernel --- */

template <typename ALoader, typename BLoader, typename C> struct zb_product_args {
    size_t m, n, k;
    unsigned column_tiles;
    typename ALoader::operand a;
    typename BLoader::operand b;
    C c; /* where chains start, and what becomes of them */
};

template <typename Tile> struct zb_fragments {
    float a[Tile::thread_m], b[Tile::thread_n];

    /* Those of one k, from a slice. */
    __device__ __forceinline__ void load(const float *a_row, const float *b_row)
    {
#pragma unroll
        for (int i = 0; i < Tile::thread_m; i += Tile::run_m) {
            const auto run = zb_load_pack<Tile::run_m>(a_row + i * Tile::lanes_m);
#pragma unroll
            for (int e = 0; e < Tile::run_m; e++) a[i + e] = run.at[e];
        }
#pragma unroll
        for (int j = 0; j < Tile::thread_n; j += Tile::run_n) {
            const auto run = zb_load_pack<Tile::run_n>(b_row + j * Tile::lanes_n);
#pragma unroll
            for (int e = 0; e < Tile::run_n; e++) b[j + e] = run.at[e];
        }
    }
};

template <typename Tile> struct zb_chains {
    float at[Tile::thread_m][Tile::thread_n];

    __device__ __forceinline__ void extend(const zb_fragments<Tile> &f)
    {
#pragma unroll
        for (int i = 0; i < Tile::thread_m; i++)
#pragma unroll
            for (int j = 0; j < Tile::thread_n; j++) at[i][j] = fmaf(f.a[i], f.b[j], at[i][j]);
    }
    /* By a whole slice; the next fragments are read while these are used. */
    __device__ __forceinline__ void extend_whole(const float *a, const float *b)
    {
        zb_fragments<Tile> now, next;
        now.load(a, b);
#pragma unroll
        for (int p = 0; p < ZB_K_STEP; p++) {
            if (p + 1 < ZB_K_STEP) next.load(a + (p + 1) * Tile::a_row, b + (p + 1) * Tile::b_row);
            extend(now);
            now = next;
        }
    }
    __device__ __forceinline__ void extend_part(const float *a, const float *b, int count)
    {
#pragma unroll 1
        for (int p = 0; p < count; p++) {
            zb_fragments<Tile> now;
            now.load(a + p * Tile::a_row, b + p * Tile::b_row);
            extend(now);
        }
    }
};

/* The way of a block through all slices, in a ring of buffers in shared memory. */
template <typename Tile, typename ALoader, typename BLoader, typename C> struct zb_pipeline {
    static constexpr int stages = ALoader::stages, b_slice = ZB_K_STEP * Tile::a_row;
    static_assert(ALoader::stages == BLoader::stages, "both operands are of one type");
    typedef zb_product_args<ALoader, BLoader, C> args_type;

    float *ring;
    ALoader a;
    BLoader b;
    zb_corner corner;
    int reading, filling; /* buffers: of the next slice to use, and of the next to fetch */

    __device__ __forceinline__ zb_pipeline(const args_type &args, float *ring_, zb_corner corner_,
                                           size_t first_row, size_t first_column)
        : ring(ring_), a(args.a, first_row, args.m, (int)threadIdx.x),
          b(args.b, first_column, args.n, (int)threadIdx.x), corner(corner_), reading(0), filling(0)
    {
    }
    template <bool whole> __device__ __forceinline__ void fetch(const args_type &args, int k)
    {
        float *slice = ring + filling * Tile::slice_floats;
        a.template fetch<whole>(args.a, slice, k), b.template fetch<whole>(args.b, slice + b_slice, k);
    }
    __device__ __forceinline__ void deposit()
    {
        float *slice = ring + filling * Tile::slice_floats;
        a.deposit(slice), b.deposit(slice + b_slice);
        filling = filling + 1 == stages ? 0 : filling + 1;
    }
    /* Slice t is there afterwards, and nobody reads slice t - 1 any more, whose buffer is filled next. */
    __device__ __forceinline__ void await()
    {
        zb_copy_wait<stages - 2>();
        __syncthreads();
    }
    __device__ __forceinline__ const float *next_slice()
    {
        const float *slice = ring + reading * Tile::slice_floats;
        reading = reading + 1 == stages ? 0 : reading + 1;
        return slice;
    }
    __device__ __forceinline__ void extend_whole(zb_chains<Tile> &chains)
    {
        const float *slice = next_slice();
        chains.extend_whole(slice + corner.row, slice + b_slice + corner.column);
    }
    __device__ __forceinline__ void extend_part(zb_chains<Tile> &chains, int k)
    {
        const float *slice = next_slice();
        chains.extend_part(slice + corner.row, slice + b_slice + corner.column, k);
    }
    __device__ __forceinline__ void run(const args_type &args, zb_chains<Tile> &chains)
    {
        const int slices = (int)((args.k + ZB_K_STEP - 1) / ZB_K_STEP), whole = (int)(args.k / ZB_K_STEP);
        const int rest = (int)(args.k % ZB_K_STEP);
        int t = 0; /* slices used */
#pragma unroll 1
        for (int s = 0; s < stages - 1; s++) {
            if (s < slices) fetch<false>(args, s < whole ? ZB_K_STEP : rest), deposit();
            zb_copy_commit();
        }
#pragma unroll 1
        for (; t + (stages - 1) < whole; t++) { /* where the time goes: whole slices to use and to fetch */
            await();
            fetch<true>(args, ZB_K_STEP);
            zb_copy_commit();
            extend_whole(chains);
            deposit();
        }
#pragma unroll 1
        for (; t < slices; t++) {
            await();
            const bool more = t + (stages - 1) < slices;
            if (more) fetch<false>(args, rest);
            zb_copy_commit();
            if (t < whole)
                extend_whole(chains);
            else
                extend_part(chains, rest);
            if (more) deposit();
        }
    }
};

template <typename Tile, typename ALoader, typename BLoader, typename C>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks)
    zb_product(const zb_product_args<ALoader, BLoader, C> args)
{
    const size_t own_row = (size_t)(blockIdx.x / args.column_tiles) * Tile::m;
    const size_t own_column = (size_t)(blockIdx.x % args.column_tiles) * Tile::n;
    const size_t first_row = Tile::inside && own_row + Tile::m > args.m ? args.m - Tile::m : own_row;
    const size_t first_column = Tile::inside && own_column + Tile::n > args.n ? args.n - Tile::n : own_column;
    const zb_corner corner = zb_corner_of<Tile>(threadIdx.x);
    zb_chains<Tile> chains;
#pragma unroll
    for (int j = 0; j < Tile::thread_n; j++) {
        const size_t column = first_column + zb_column_of<Tile>(corner, j);
        const typename C::column_part part = args.c.of_column(column < args.n ? column : args.n - 1);
#pragma unroll
        for (int i = 0; i < Tile::thread_m; i++) {
            const size_t row = first_row + zb_row_of<Tile>(corner, i);
            chains.at[i][j] = args.c.start(row < args.m ? row : args.m - 1, part);
        }
    }
    ZB_SHARED_DYNAMIC(float, ring);
    zb_pipeline<Tile, ALoader, BLoader, C>(args, ring, corner, first_row, first_column).run(args, chains);
#pragma unroll
    for (int j = 0; j < Tile::thread_n; j++) {
        const size_t column = first_column + zb_column_of<Tile>(corner, j);
        if (column < own_column || column >= args.n) continue;
        const typename C::column_part part = args.c.of_column(column);
#pragma unroll
        for (int i = 0; i < Tile::thread_m; i++) {
            const size_t row = first_row + zb_row_of<Tile>(corner, i);
            if (row >= own_row && row < args.m) args.c.store(row, part, chains.at[i][j]);
        }
    }
}

template <typename Tile, typename ALoader, typename BLoader, typename C>
zb_status zb_product_run(cudaStream_t stream, size_t m, size_t n, size_t k,
                         const typename ALoader::operand &a, const typename BLoader::operand &b, const C &c)
{
    const size_t row_tiles = (m + Tile::m - 1) / Tile::m, column_tiles = (n + Tile::n - 1) / Tile::n;
    if (row_tiles > INT32_MAX / column_tiles || k > INT32_MAX)
        return zb_fail(
            ZB_UNSUPPORTED,
            "a product of %zu x %zu x %zu on CUDA; want at most %d tiles of %d x %d, and k at most %d", m, n,
            k, INT32_MAX, Tile::m, Tile::n, INT32_MAX);
    const zb_product_args<ALoader, BLoader, C> args = { m, n, k, (unsigned)column_tiles, a, b, c };
    return ZB_CUDA_RUN((zb_product<Tile, ALoader, BLoader, C>), dim3((unsigned)(row_tiles * column_tiles)),
                       dim3(Tile::threads), ALoader::stages * Tile::slice_floats * sizeof(float), stream,
                       args);
}

#endif
