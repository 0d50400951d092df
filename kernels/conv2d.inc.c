/*
 * Convolution as matrix products, one image at a time: the taps are laid out as a matrix in the workspace,
 * with +0 where a tap has nothing to look at, so that each product's chain over k is the chain that the
 * contract asks for.
 */

/* taps[(c, r, s), (p, q)] = x[c, p * stride + r - padding, q * stride + s - padding] */
static void gather_input(const zb_conv2d_shape *s, const float *x, float *taps)
{
    for (size_t c = 0; c < s->ic; c++, x += s->ih * s->iw)
        for (size_t r = 0; r < s->kernel; r++)
            for (size_t t = 0; t < s->kernel; t++)
                for (size_t p = 0; p < s->oh; p++, taps += s->ow) {
                    const size_t h = p * s->stride + r; /* in the padded image */
                    if (h < s->padding || h >= s->ih + s->padding) {
                        memset(taps, 0, s->ow * sizeof taps[0]);
                        continue;
                    }
                    const float *row = x + (h - s->padding) * s->iw;
                    for (size_t q = 0; q < s->ow; q++) {
                        const size_t v = q * s->stride + t;
                        taps[q] = v < s->padding || v >= s->iw + s->padding ? 0.0f : row[v - s->padding];
                    }
                }
}

/* taps[(o, r, s), (h, v)] = dy[o, p, q] with p * stride + r - padding = h and q * stride + s - padding = v */
static void gather_output(const zb_conv2d_shape *s, const float *dy, float *taps)
{
    for (size_t o = 0; o < s->oc; o++, dy += s->oh * s->ow)
        for (size_t r = 0; r < s->kernel; r++)
            for (size_t t = 0; t < s->kernel; t++, taps += s->ih * s->iw) {
                memset(taps, 0, s->ih * s->iw * sizeof taps[0]);
                for (size_t p = 0; p < s->oh; p++) {
                    const size_t h = p * s->stride + r; /* in the padded image */
                    if (h < s->padding || h >= s->ih + s->padding) continue;
                    float *row = taps + (h - s->padding) * s->iw;
                    for (size_t q = 0; q < s->ow; q++) {
                        const size_t v = q * s->stride + t;
                        if (v >= s->padding && v < s->iw + s->padding)
                            row[v - s->padding] = dy[p * s->ow + q];
                    }
                }
            }
}

static zb_status op_conv2d_forward(const zb_conv2d_forward_args *args)
{
    const zb_conv2d_shape *s = &args->shape;
    const size_t taps = s->ic * s->kernel * s->kernel, pixels = s->oh * s->ow;
    for (size_t n = 0; n < s->rows; n++) {
        float *y = args->y + n * s->oc * pixels;
        gather_input(s, args->x + n * s->ic * s->ih * s->iw, args->workspace);
        ZB_TRY(op_matmul(&(zb_matmul_args){
            .m = s->oc,
            .n = pixels,
            .k = taps,
            .a = args->w,
            .a_row = taps,
            .a_col = 1,
            .b = args->workspace,
            .b_row = pixels,
            .b_col = 1,
            .c = y,
            .c_row = pixels,
        }));
        for (size_t o = 0; args->b != NULL && o < s->oc; o++) {
            const float bias = args->b[o];
            for (size_t i = 0; i < pixels; i++) y[o * pixels + i] += bias;
        }
    }
    return ZB_OK;
}

static zb_status op_conv2d_backward_input(const zb_conv2d_backward_input_args *args)
{
    const zb_conv2d_shape *s = &args->shape;
    const size_t window = s->kernel * s->kernel, taps = s->oc * window, pixels = s->ih * s->iw;
    float *gathered = args->workspace, *w = gathered + taps * pixels; /* w[c, o, r, s] */
    for (size_t o = 0; o < s->oc; o++)
        for (size_t c = 0; c < s->ic; c++)
            memcpy(w + (c * s->oc + o) * window, args->w + (o * s->ic + c) * window, window * sizeof w[0]);
    for (size_t n = 0; n < s->rows; n++) {
        gather_output(s, args->dy + n * s->oc * s->oh * s->ow, gathered);
        ZB_TRY(op_matmul(&(zb_matmul_args){
            .m = s->ic,
            .n = pixels,
            .k = taps,
            .a = w,
            .a_row = taps,
            .a_col = 1,
            .b = gathered,
            .b_row = pixels,
            .b_col = 1,
            .c = args->dx + n * s->ic * pixels,
            .c_row = pixels,
        }));
    }
    return ZB_OK;
}

static zb_status op_conv2d_backward_weight(const zb_conv2d_backward_weight_args *args)
{
    const zb_conv2d_shape *s = &args->shape;
    const size_t taps = s->ic * s->kernel * s->kernel, pixels = s->oh * s->ow;
    memset(args->dw, 0, s->oc * taps * sizeof args->dw[0]);
    for (size_t n = 0; n < s->rows; n++) {
        gather_input(s, args->x + n * s->ic * s->ih * s->iw, args->workspace);
        ZB_TRY(op_matmul(&(zb_matmul_args){
            .m = s->oc,
            .n = taps,
            .k = pixels,
            .a = args->dy + n * s->oc * pixels,
            .a_row = pixels,
            .a_col = 1,
            .b = args->workspace,
            .b_row = 1,
            .b_col = pixels,
            .c = args->dw,
            .c_row = taps,
            .accumulate = 1,
        }));
    }
    return ZB_OK;
}

static zb_status op_conv2d_backward_bias(const zb_conv2d_backward_bias_args *args)
{
    const zb_conv2d_shape *s = &args->shape;
    const size_t pixels = s->oh * s->ow;
    for (size_t o = 0; o < s->oc; o++) {
        reduction sum = { .numel = 0 };
        for (size_t n = 0; n < s->rows; n++) reduction_add(&sum, args->dy + (n * s->oc + o) * pixels, pixels);
        args->db[o] = reduction_result(&sum);
    }
    return ZB_OK;
}
