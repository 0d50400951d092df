/* Max pooling over windows that lie inside the image. */

/* Four neighbouring windows are compared together: which value is larger is anyone's guess, and a branch on
 * it too. */
enum { WINDOWS = 4 };
typedef float window_values __attribute__((vector_size(16)));
typedef int32_t window_bits __attribute__((vector_size(16)));

/* y and argmax of up to four windows of one row of outputs, the first of them at x[corner]. */
ZB_SPECIALISED void maxpool_windows(const zb_dtype dtype, const zb_maxpool2d_shape *s, const void *x,
                                    size_t corner, size_t count, void *y, int32_t *argmax)
{
    size_t from[WINDOWS]; /* where no window is left, the last one again */
    for (size_t i = 0; i < WINDOWS; i++) from[i] = corner + smaller(i, count - 1) * s->stride;
    window_values best = { -INFINITY, -INFINITY, -INFINITY, -INFINITY };
    window_bits kept = { (int32_t)from[0], (int32_t)from[1], (int32_t)from[2], (int32_t)from[3] };
    const window_bits corners = kept;
    for (size_t r = 0; r < s->kernel; r++)
        for (size_t c = 0; c < s->kernel; c++) {
            const size_t tap = r * s->iw + c;
            const window_values v = { load_one(dtype, x, tap + from[0]), load_one(dtype, x, tap + from[1]),
                                      load_one(dtype, x, tap + from[2]), load_one(dtype, x, tap + from[3]) };
            const window_bits take = (v > best) | (v != v); /* all ones or all zeros */
            best = (window_values)(((window_bits)v & take) | ((window_bits)best & ~take));
            kept = ((corners + (int32_t)tap) & take) | (kept & ~take);
        }
    for (size_t i = 0; i < count; i++) {
        store_one(dtype, y, i, best[i]);
        argmax[i] = kept[i];
    }
}

ZB_SPECIALISED void maxpool_forward(const zb_dtype dtype, const zb_maxpool2d_forward_args *args)
{
    const zb_maxpool2d_shape *s = &args->shape;
    for (size_t plane = 0; plane < s->rows * s->channels; plane++)
        for (size_t p = 0; p < s->oh; p++)
            for (size_t q = 0; q < s->ow; q += WINDOWS) {
                const size_t out = (plane * s->oh + p) * s->ow + q;
                maxpool_windows(dtype, s, const_element(dtype, args->x, plane * s->ih * s->iw),
                                (p * s->iw + q) * s->stride, smaller(WINDOWS, s->ow - q),
                                element(dtype, args->y, out), args->argmax + out);
            }
}

static zb_status op_maxpool2d_forward(const zb_maxpool2d_forward_args *args)
{
    ZB_TRY(check_dtype("maxpool2d_forward", args->dtype));
    if (args->dtype == ZB_FP32)
        maxpool_forward(ZB_FP32, args);
    else if (args->dtype == ZB_FP16)
        maxpool_forward(ZB_FP16, args);
    else
        maxpool_forward(ZB_BF16, args);
    return ZB_OK;
}

/* Windows may overlap: each sum is rounded before the next one reads it. */
ZB_SPECIALISED void maxpool_backward(const zb_dtype dtype, const zb_maxpool2d_backward_args *args)
{
    const zb_maxpool2d_shape *s = &args->shape;
    const size_t in = s->ih * s->iw, out = s->oh * s->ow;
    for (size_t plane = 0; plane < s->rows * s->channels; plane++) {
        void *dx = element(dtype, args->dx, plane * in);
        memset(dx, 0, in * zb_dtype_bytes(dtype));
        for (size_t i = plane * out; i < (plane + 1) * out; i++) {
            const size_t to = (size_t)args->argmax[i];
            store_one(dtype, dx, to, load_one(dtype, dx, to) + load_one(dtype, args->dy, i));
        }
    }
}

static zb_status op_maxpool2d_backward(const zb_maxpool2d_backward_args *args)
{
    ZB_TRY(check_dtype("maxpool2d_backward", args->dtype));
    if (args->dtype == ZB_FP32)
        maxpool_backward(ZB_FP32, args);
    else if (args->dtype == ZB_FP16)
        maxpool_backward(ZB_FP16, args);
    else
        maxpool_backward(ZB_BF16, args);
    return ZB_OK;
}
