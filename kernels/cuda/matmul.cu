/* The matrix product with any strides; see product.cuh. */
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/operations.h"

#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/product.cuh"

static zb_tile_size fixed_size = ZB_TILE_SIZES;

void zb_cuda_set_tile_size(zb_tile_size size)
{
    fixed_size = size;
}

/*
 * The tile with which the busiest multiprocessor has least to do. `cost` is the time of one element of C
 * beside that of the large tile, which reads least from shared memory for each fmaf. 132 multiprocessors
 * (H100, H200); a guess that is off by some costs little.
 */
zb_tile_size zb_tile_size_for(size_t m, size_t n)
{
    static const struct {
        size_t m, n;
        double cost;
        bool inside;
    } tiles[] = { { zb_tile_large::m, zb_tile_large::n, 1, zb_tile_large::inside },
                  { zb_tile_middle::m, zb_tile_middle::n, 1.1, zb_tile_middle::inside },
                  { zb_tile_wide::m, zb_tile_wide::n, 1.5, zb_tile_wide::inside },
                  { zb_tile_small::m, zb_tile_small::n, 2.5, zb_tile_small::inside } };
    const size_t multiprocessors = 132;
    if (fixed_size != ZB_TILE_SIZES) return fixed_size;
    int best = ZB_TILE_SMALL;
    double best_time = INFINITY;
    for (int i = 0; i < ZB_TILE_SIZES; i++) {
        const size_t blocks = ((m + tiles[i].m - 1) / tiles[i].m) * ((n + tiles[i].n - 1) / tiles[i].n);
        const size_t rounds = (blocks + multiprocessors - 1) / multiprocessors;
        const double time = (double)rounds * (double)(tiles[i].m * tiles[i].n) * tiles[i].cost;
        if (tiles[i].inside && (m < tiles[i].m || n < tiles[i].n)) continue;
        if (time < best_time) best = i, best_time = time;
    }
    return (zb_tile_size)best;
}

/* C in memory, row after row, with a bias for each column. */
template <typename T> struct matmul_output {
    T *data;
    size_t row;
    const T *bias; /* or NULL */
    int accumulate;

    struct column_part {
        size_t place;
        float bias;
    };
    __device__ __forceinline__ column_part of_column(size_t j) const
    {
        return column_part{ j, bias != nullptr ? zb_widen(bias[j]) : 0.0f };
    }
    __device__ __forceinline__ float start(size_t i, column_part column) const
    {
        return accumulate ? zb_widen(data[i * row + column.place]) : 0.0f;
    }
    __device__ __forceinline__ void store(size_t i, column_part column, float chain) const
    {
        if (bias != nullptr) chain = chain + column.bias;
        zb_narrow(chain, &data[i * row + column.place]);
    }
};

template <typename T> struct product {
    size_t m, n, k;
    zb_matrix<T> a, b;
    matmul_output<T> c;
};

template <typename Tile, typename ALoader, typename BLoader, typename T>
static zb_status run_with(cudaStream_t stream, const product<T> &p)
{
    return zb_product_run<Tile, ALoader, BLoader>(stream, p.m, p.n, p.k, p.a, p.b, p.c);
}

/* Whether neighbours in memory are neighbours in k. */
template <typename T> static bool lies_along_k(const zb_matrix<T> &operand)
{
    return operand.k_stride == 1 || operand.tile_stride != 1;
}

template <typename Tile, typename ALoader, typename T>
static zb_status run_b(cudaStream_t stream, const product<T> &p)
{
    if (lies_along_k(p.b))
        return run_with<Tile, ALoader, zb_elements<T, Tile::n, Tile::threads, Tile::inside, true>>(stream, p);
    return run_with<Tile, ALoader, zb_elements<T, Tile::n, Tile::threads, Tile::inside, false>>(stream, p);
}

template <typename Tile, typename T> static zb_status run(cudaStream_t stream, const product<T> &p)
{
    if (lies_along_k(p.a))
        return run_b<Tile, zb_elements<T, Tile::m, Tile::threads, Tile::inside, true>>(stream, p);
    return run_b<Tile, zb_elements<T, Tile::m, Tile::threads, Tile::inside, false>>(stream, p);
}

/* Whether vectors of four can be read along the tile, from any row of it. */
static bool takes_vectors(const zb_matrix<float> &operand, size_t size)
{
    return operand.tile_stride == 1 && operand.k_stride % 4 == 0 && size % 4 == 0 &&
           (uintptr_t)operand.data % 16 == 0;
}

/* The large tile, with vectors for the operands that allow them. */
template <typename T> static zb_status run_large(cudaStream_t stream, const product<T> &p)
{
    return run<zb_tile_large>(stream, p);
}
template <typename ALoader> static zb_status run_large_b(cudaStream_t stream, const product<float> &p)
{
    typedef zb_tile_large Tile;
    if (takes_vectors(p.b, p.n))
        return run_with<Tile, ALoader, zb_vectors<Tile::n, Tile::threads>>(stream, p);
    return run_b<Tile, ALoader>(stream, p);
}
static zb_status run_large(cudaStream_t stream, const product<float> &p)
{
    typedef zb_tile_large Tile;
    if (takes_vectors(p.a, p.m)) return run_large_b<zb_vectors<Tile::m, Tile::threads>>(stream, p);
    if (lies_along_k(p.a))
        return run_large_b<zb_elements<float, Tile::m, Tile::threads, Tile::inside, true>>(stream, p);
    return run_large_b<zb_elements<float, Tile::m, Tile::threads, Tile::inside, false>>(stream, p);
}

template <typename T>
static zb_status matmul(cudaStream_t stream, const zb_matmul_args *args, zb_tile_size size)
{
    const product<T> p = {
        args->m,
        args->n,
        args->k,
        { static_cast<const T *>(args->a), args->a_row, args->a_col },
        { static_cast<const T *>(args->b), args->b_col, args->b_row },
        { static_cast<T *>(args->c), args->c_row, static_cast<const T *>(args->bias), args->accumulate },
    };
    switch (size) {
    case ZB_TILE_LARGE:
        return run_large(stream, p);
    case ZB_TILE_MIDDLE:
        if (p.m >= zb_tile_middle_inside::m && p.n >= zb_tile_middle_inside::n)
            return run<zb_tile_middle_inside>(stream, p);
        return run<zb_tile_middle>(stream, p);
    case ZB_TILE_WIDE:
        return run<zb_tile_wide>(stream, p);
    default:
        return run<zb_tile_small>(stream, p);
    }
}

zb_status zb_cuda_op_matmul(cudaStream_t stream, const zb_matmul_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("matmul", args->dtype));
    if (args->accumulate && args->dtype != ZB_FP32)
        return zb_fail(ZB_UNSUPPORTED, "matmul of %s cannot accumulate; want fp32",
                       zb_dtype_name(args->dtype));
    if (args->m == 0 || args->n == 0) return ZB_OK;
    const zb_tile_size size = zb_tile_size_for(args->m, args->n);
    if (size == ZB_TILE_LARGE && (args->m < zb_tile_large::m || args->n < zb_tile_large::n))
        return zb_fail(ZB_INVALID_ARGUMENT, "matmul of %zu x %zu in tiles of %d x %d, which it must fill",
                       args->m, args->n, zb_tile_large::m, zb_tile_large::n);
    return zb_with_tensor_type(args->dtype,
                               [&](auto type) { return matmul<decltype(type)>(stream, args, size); });
}
