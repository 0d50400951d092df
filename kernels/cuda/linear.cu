/* Fully connected layers: three products and the sum of a bias's gradient. */
#include "kernels/cuda/operations.h"

#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/reduce.cuh"

zb_status zb_cuda_op_linear_forward(cudaStream_t stream, const zb_linear_forward_args *args)
{
    zb_matmul_args product = {};
    product.dtype = args->dtype;
    product.m = args->rows, product.n = args->out, product.k = args->in;
    product.a = args->x, product.a_row = args->in, product.a_col = 1;
    product.b = args->w, product.b_row = 1, product.b_col = args->in;
    product.c = args->y, product.c_row = args->out;
    product.bias = args->b;
    return zb_cuda_op_matmul(stream, &product);
}

zb_status zb_cuda_op_linear_backward_input(cudaStream_t stream, const zb_linear_backward_input_args *args)
{
    zb_matmul_args product = {};
    product.dtype = args->dtype;
    product.m = args->rows, product.n = args->in, product.k = args->out;
    product.a = args->dy, product.a_row = args->out, product.a_col = 1;
    product.b = args->w, product.b_row = args->in, product.b_col = 1;
    product.c = args->dx, product.c_row = args->in;
    return zb_cuda_op_matmul(stream, &product);
}

zb_status zb_cuda_op_linear_backward_weight(cudaStream_t stream, const zb_linear_backward_weight_args *args)
{
    zb_matmul_args product = {};
    product.dtype = args->dtype;
    product.m = args->out, product.n = args->in, product.k = args->rows;
    product.a = args->dy, product.a_row = 1, product.a_col = args->out;
    product.b = args->x, product.b_row = args->in, product.b_col = 1;
    product.c = args->dw, product.c_row = args->in;
    return zb_cuda_op_matmul(stream, &product);
}

/*
 * db[j] = REDUCE over i of dy[i, j], for 32 neighbouring columns: the threads of a warp read neighbours, one
 * column each and the rows of one lane of the sum. Then each warp takes a column, with its lanes for lanes.
 */
template <typename T>
__global__ void __launch_bounds__(ZB_WARP *ZB_WARP)
    sum_columns(const T *dy, size_t rows, size_t columns, T *db)
{
    ZB_SHARED(float, lanes, [ZB_WARP][ZB_WARP + 1]);
    const unsigned x = threadIdx.x, y = threadIdx.y;
    const size_t column = (size_t)blockIdx.x * ZB_WARP + x;
    float sum = 0;
    if (column < columns) {
#pragma unroll 8
        for (size_t row = y; row < rows; row += ZB_WARP) sum = sum + zb_widen(dy[row * columns + column]);
    }
    lanes[y][x] = sum;
    __syncthreads();
    const float total = zb_reduce_lanes(lanes[x][y]);
    const size_t own = (size_t)blockIdx.x * ZB_WARP + y;
    if (x == 0 && own < columns) zb_narrow(total, &db[own]);
}

zb_status zb_cuda_op_linear_backward_bias(cudaStream_t stream, const zb_linear_backward_bias_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("linear_backward_bias", args->dtype));
    if (args->out == 0) return ZB_OK;
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        typedef decltype(type) T;
        return ZB_CUDA_RUN(sum_columns<T>, zb_blocks_for(args->out, ZB_WARP), dim3(ZB_WARP, ZB_WARP), 0,
                           stream, static_cast<const T *>(args->dy), args->rows, args->out,
                           static_cast<T *>(args->db));
    });
}
