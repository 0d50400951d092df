/* Max pooling over windows that lie inside the image: a few blocks for each image of each channel (a plane).
 */
#include "kernels/cuda/operations.h"

#include "kernels/cuda/planes.cuh"

struct window_shape {
    unsigned ih, iw, oh, ow, kernel, stride;
    unsigned each; /* blocks for each plane */
};

template <typename T>
__global__ void __launch_bounds__(ZB_EACH_THREADS)
    maxpool_forward(const T *x, T *y, int32_t *argmax, window_shape s)
{
    const zb_plane_place at = zb_plane_place_of(s.each);
    const unsigned out = s.oh * s.ow;
    if (at.element >= out) return;
    x += at.plane * s.ih * s.iw;
    const unsigned corner = at.element / s.ow * s.stride * s.iw + at.element % s.ow * s.stride;
    float best = -INFINITY;
    unsigned kept = corner;
    for (unsigned r = 0; r < s.kernel; r++)
        for (unsigned c = 0; c < s.kernel; c++) {
            const unsigned tap = corner + r * s.iw + c;
            const float v = zb_widen(x[tap]);
            if (v > best || isnan(v)) best = v, kept = tap;
        }
    zb_narrow(best, &y[at.plane * out + at.element]);
    argmax[at.plane * out + at.element] = (int32_t)kept;
}

/* An element gathers from the windows that it lies in, ascending; each sum is rounded before the next one. */
template <typename T>
__global__ void __launch_bounds__(ZB_EACH_THREADS)
    maxpool_backward(const T *dy, const int32_t *argmax, T *dx, window_shape s)
{
    const zb_plane_place at = zb_plane_place_of(s.each);
    if (at.element >= s.ih * s.iw) return;
    const unsigned h = at.element / s.iw, v = at.element % s.iw, reach = s.kernel - 1;
    const unsigned p_first = h > reach ? (h - reach + s.stride - 1) / s.stride : 0, p_last = h / s.stride;
    const unsigned q_first = v > reach ? (v - reach + s.stride - 1) / s.stride : 0, q_last = v / s.stride;
    const size_t first = at.plane * s.oh * s.ow;
    float sum = 0;
    for (unsigned p = p_first; p <= p_last && p < s.oh; p++)
        for (unsigned q = q_first; q <= q_last && q < s.ow; q++) {
            const size_t i = first + p * s.ow + q;
            if ((unsigned)argmax[i] == at.element) sum = zb_rounded<T>(sum + zb_widen(dy[i]));
        }
    zb_narrow(sum, &dx[at.plane * s.ih * s.iw + at.element]);
}

static zb_status plan(const char *operation, const zb_maxpool2d_shape *s, size_t elements,
                      zb_planes *planes_p, window_shape *shape_p)
{
    if (s->ih * s->iw > INT32_MAX)
        return zb_fail(ZB_UNSUPPORTED, "%s on CUDA of images of %zu x %zu; want fewer than 2^31 elements",
                       operation, s->ih, s->iw);
    ZB_TRY(zb_planes_of(operation, s->rows * s->channels, elements, planes_p));
    *shape_p = window_shape{ (unsigned)s->ih,     (unsigned)s->iw,     (unsigned)s->oh, (unsigned)s->ow,
                             (unsigned)s->kernel, (unsigned)s->stride, planes_p->each };
    return ZB_OK;
}

zb_status zb_cuda_op_maxpool2d_forward(cudaStream_t stream, const zb_maxpool2d_forward_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("maxpool2d_forward", args->dtype));
    const zb_maxpool2d_shape *s = &args->shape;
    if (s->rows * s->channels * s->oh * s->ow == 0) return ZB_OK;
    zb_planes planes = {};
    window_shape shape = {};
    ZB_TRY(plan("maxpool2d_forward", s, s->oh * s->ow, &planes, &shape));
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        typedef decltype(type) T;
        return ZB_CUDA_RUN(maxpool_forward<T>, dim3(planes.blocks), dim3(planes.threads), 0, stream,
                           static_cast<const T *>(args->x), static_cast<T *>(args->y), args->argmax, shape);
    });
}

zb_status zb_cuda_op_maxpool2d_backward(cudaStream_t stream, const zb_maxpool2d_backward_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("maxpool2d_backward", args->dtype));
    const zb_maxpool2d_shape *s = &args->shape;
    if (s->rows * s->channels * s->ih * s->iw == 0) return ZB_OK;
    zb_planes planes = {};
    window_shape shape = {};
    ZB_TRY(plan("maxpool2d_backward", s, s->ih * s->iw, &planes, &shape));
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        typedef decltype(type) T;
        return ZB_CUDA_RUN(maxpool_backward<T>, dim3(planes.blocks), dim3(planes.threads), 0, stream,
                           static_cast<const T *>(args->dy), args->argmax, static_cast<T *>(args->dx), shape);
    });
}
