/*
 * Operations that treat each element on its own: one kernel for all of them.
 *
 * Such an operation says what it reads (load) and what it does with that (finish), for a pack of neighbours
 * or for one element. A pack has as many elements as make 16 bytes of the widest type; the arrays move by
 * packs where one number of elements before the first pack aligns all of them, and element by element, side
 * by side, where none does. Every thread has UNROLL packs on their way before it computes: memory is kept
 * busy by the bytes in flight.
 *
 *     struct double_it {
 *         enum { WIDTH = 4, UNROLL = 4 };
 *         float *y;
 *         template <int N> struct values { zb_pack<float, N> y; };
 *         template <int N> __device__ values<N> load(size_t i) const { return { zb_load_pack<N>(y + i) }; }
 *         template <int N> __device__ void finish(size_t i, values<N> v) const { ... zb_store_pack(y + i,
 * v.y); }
 *     };
 *     const zb_array arrays[] = { { y, sizeof *y } };
 *     return zb_each(ZB_CUDA_PLACE("double_it"), stream, double_it{ y }, numel, arrays);
 */
#ifndef ZB_KERNELS_CUDA_ELEMENTWISE_CUH
#define ZB_KERNELS_CUDA_ELEMENTWISE_CUH

#include "kernels/cuda/simt.cuh"

enum { ZB_EACH_THREADS = 256, ZB_EACH_ELEMENTS = 4 };

struct zb_array {
    const void *data; /* NULL: there is none, and nothing to align */
    size_t element_bytes;
};

/* Elements [head, head + packs * width) move by packs. */
struct zb_layout {
    int by_packs;
    size_t head, packs;
};

static inline int zb_aligned_after(size_t head, size_t width, const zb_array *arrays, size_t count)
{
    for (size_t a = 0; a < count; a++)
        if (arrays[a].data != NULL && ((uintptr_t)arrays[a].data + head * arrays[a].element_bytes) %
                                              (width * arrays[a].element_bytes) !=
                                          0)
            return 0;
    return 1;
}

static inline zb_layout zb_layout_of(size_t numel, size_t width, const zb_array *arrays, size_t count)
{
    size_t head = 0;
    while (head < width && !zb_aligned_after(head, width, arrays, count)) head++;
    if (head == width) return { 0, 0, 0 };
    return { 1, head, numel > head ? (numel - head) / width : 0 };
}

/* What lies before the first and behind the last pack. */
template <typename Operation>
ZB_DEVICE void zb_edges(const Operation &operation, zb_layout layout, size_t numel)
{
    const size_t t = threadIdx.x;
    const size_t i = t < layout.head ? t : t + layout.packs * Operation::WIDTH;
    if (i < numel) operation.template finish<1>(i, operation.template load<1>(i));
}

template <typename Operation>
__global__ void __launch_bounds__(ZB_EACH_THREADS)
    zb_each_pack(Operation operation, zb_layout layout, size_t numel)
{
    enum { WIDTH = Operation::WIDTH, UNROLL = Operation::UNROLL };
    const size_t first = (size_t)blockIdx.x * (ZB_EACH_THREADS * UNROLL) + threadIdx.x;
    typename Operation::template values<WIDTH> values[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        const size_t pack = first + u * ZB_EACH_THREADS;
        if (pack < layout.packs) values[u] = operation.template load<WIDTH>(layout.head + pack * WIDTH);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        const size_t pack = first + u * ZB_EACH_THREADS;
        if (pack < layout.packs) operation.template finish<WIDTH>(layout.head + pack * WIDTH, values[u]);
    }
    static_assert(2 * WIDTH <= ZB_EACH_THREADS, "one block does the edges");
    if (blockIdx.x == 0) zb_edges(operation, layout, numel);
}

template <typename Operation>
__global__ void __launch_bounds__(ZB_EACH_THREADS) zb_each_element(Operation operation, size_t numel)
{
    const size_t first = (size_t)blockIdx.x * (ZB_EACH_THREADS * ZB_EACH_ELEMENTS) + threadIdx.x;
    typename Operation::template values<1> values[ZB_EACH_ELEMENTS];
#pragma unroll
    for (int u = 0; u < ZB_EACH_ELEMENTS; u++) {
        const size_t i = first + u * ZB_EACH_THREADS;
        if (i < numel) values[u] = operation.template load<1>(i);
    }
#pragma unroll
    for (int u = 0; u < ZB_EACH_ELEMENTS; u++) {
        const size_t i = first + u * ZB_EACH_THREADS;
        if (i < numel) operation.template finish<1>(i, values[u]);
    }
}

static inline unsigned zb_blocks_for(size_t items, size_t items_of_block)
{
    const size_t blocks = (items + items_of_block - 1) / items_of_block;
    return blocks > 0 ? (unsigned)blocks : 1;
}

/* `shared_bytes`: dynamic shared memory of a block. */
template <typename Operation>
zb_status zb_each(zb_cuda_place place, cudaStream_t stream, const Operation &operation, size_t numel,
                  const zb_array *arrays, size_t array_count, size_t shared_bytes)
{
    if (numel == 0) return ZB_OK;
    const zb_layout layout = zb_layout_of(numel, Operation::WIDTH, arrays, array_count);
    if (layout.by_packs)
        return zb_cuda_run(place, zb_each_pack<Operation>,
                           zb_blocks_for(layout.packs, ZB_EACH_THREADS * Operation::UNROLL), ZB_EACH_THREADS,
                           shared_bytes, stream, operation, layout, numel);
    return zb_cuda_run(place, zb_each_element<Operation>,
                       zb_blocks_for(numel, ZB_EACH_THREADS * ZB_EACH_ELEMENTS), ZB_EACH_THREADS,
                       shared_bytes, stream, operation, numel);
}
template <typename Operation, size_t count>
zb_status zb_each(zb_cuda_place place, cudaStream_t stream, const Operation &operation, size_t numel,
                  const zb_array (&arrays)[count])
{
    return zb_each(place, stream, operation, numel, arrays, count, 0);
}

/* --- types --- */

/* fp32, fp16 and bf16 are what models compute with. */
static inline int zb_is_tensor_dtype(zb_dtype dtype)
{
    return dtype == ZB_FP32 || dtype == ZB_FP16 || dtype == ZB_BF16;
}
static inline zb_status zb_check_tensor_dtype(const char *operation, zb_dtype dtype)
{
    if (zb_is_tensor_dtype(dtype)) return ZB_OK;
    return zb_fail(ZB_UNSUPPORTED, "%s of %s; want fp32, fp16 or bf16", operation, zb_dtype_name(dtype));
}

/* call(T()) with the C++ type of the elements; the type has been checked. */
template <typename Call> zb_status zb_with_tensor_type(zb_dtype dtype, const Call &call)
{
    if (dtype == ZB_FP32) return call(float());
    if (dtype == ZB_FP16) return call(zb_fp16());
    ZB_ASSERT(dtype == ZB_BF16);
    return call(zb_bf16());
}

/* Elements that make 16 bytes of the wider of two types. */
template <typename A, typename B = A> constexpr int zb_width()
{
    return 16 / (int)(sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B));
}

#endif
