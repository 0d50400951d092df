/* Max pooling over windows that lie inside the image. */

static zb_status op_maxpool2d_forward(const zb_maxpool2d_forward_args *args)
{
    const zb_maxpool2d_shape *s = &args->shape;
    for (size_t plane = 0; plane < s->rows * s->channels; plane++) {
        const float *x = args->x + plane * s->ih * s->iw;
        float *y = args->y + plane * s->oh * s->ow;
        int32_t *argmax = args->argmax + plane * s->oh * s->ow;
        for (size_t p = 0; p < s->oh; p++)
            for (size_t q = 0; q < s->ow; q++) {
                const size_t corner = p * s->stride * s->iw + q * s->stride;
                float maximum = -INFINITY;
                size_t kept = corner;
                for (size_t r = 0; r < s->kernel; r++)
                    for (size_t c = 0; c < s->kernel; c++) {
                        const size_t index = corner + r * s->iw + c;
                        if (x[index] > maximum || isnan(x[index])) {
                            maximum = x[index];
                            kept = index;
                        }
                    }
                y[p * s->ow + q] = maximum;
                argmax[p * s->ow + q] = (int32_t)kept;
            }
    }
    return ZB_OK;
}

static zb_status op_maxpool2d_backward(const zb_maxpool2d_backward_args *args)
{
    const zb_maxpool2d_shape *s = &args->shape;
    const size_t in = s->ih * s->iw, out = s->oh * s->ow;
    for (size_t plane = 0; plane < s->rows * s->channels; plane++) {
        float *dx = args->dx + plane * in;
        memset(dx, 0, in * sizeof dx[0]);
        for (size_t i = plane * out; i < (plane + 1) * out; i++) dx[args->argmax[i]] += args->dy[i];
    }
    return ZB_OK;
}
