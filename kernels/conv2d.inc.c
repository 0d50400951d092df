/*
 * Convolution as matrix products, one image at a time: the taps are laid out as a matrix in the workspace,
 * with +0 where a tap has nothing to look at, so that each product's chain over k is the chain that the
 * contract asks for.
 */

/*
 * The outputs q for which the tap s looks inside a row of `width` pixels, 0 <= q * stride + s - padding <
 * width, are first..end-1; the first of them looks at pixel `pixel`.
 */
typedef struct inside {
    size_t first, end, pixel;
} inside;

static inside inside_row(const zb_conv2d_shape *g, size_t width, size_t out, size_t s)
{
    const size_t first = s >= g->padding ? 0 : divide_up(g->padding - s, g->stride);
    const size_t end = width + g->padding > s ? divide_up(width + g->padding - s, g->stride) : 0;
    const inside none = { out, out, 0 };
    if (first >= out || end <= first) return none;
    return (inside){ first, smaller(end, out), first * g->stride + s - g->padding };
}

/* taps[(c, r, s), (p, q)] = x[c, p * stride + r - padding, q * stride + s - padding] */
static void gather_input(const zb_conv2d_shape *g, const float *x, float *taps)
{
    for (size_t c = 0; c < g->ic; c++, x += g->ih * g->iw)
        for (size_t r = 0; r < g->kernel; r++)
            for (size_t s = 0; s < g->kernel; s++) {
                const inside rows = inside_row(g, g->ih, g->oh, r), columns = inside_row(g, g->iw, g->ow, s);
                memset(taps, 0, rows.first * g->ow * sizeof taps[0]);
                for (size_t p = rows.first; p < rows.end; p++) {
                    float *to = taps + p * g->ow;
                    const float *from = x + (rows.pixel + (p - rows.first) * g->stride) * g->iw +
                                        columns.pixel;
                    for (size_t q = 0; q < columns.first; q++) to[q] = 0;
                    if (g->stride == 1) {
                        for (size_t q = columns.first; q < columns.end; q++) to[q] = from[q - columns.first];
                    } else {
                        for (size_t q = columns.first; q < columns.end; q++)
                            to[q] = from[(q - columns.first) * g->stride];
                    }
                    for (size_t q = columns.end; q < g->ow; q++) to[q] = 0;
                }
                memset(taps + rows.end * g->ow, 0, (g->oh - rows.end) * g->ow * sizeof taps[0]);
                taps += g->oh * g->ow;
            }
}

/* taps[(o, r, s), (h, v)] = dy[o, p, q] with p * stride + r - padding = h and q * stride + s - padding = v */
static void gather_output(const zb_conv2d_shape *g, const float *dy, float *taps)
{
    for (size_t o = 0; o < g->oc; o++, dy += g->oh * g->ow)
        for (size_t r = 0; r < g->kernel; r++)
            for (size_t s = 0; s < g->kernel; s++, taps += g->ih * g->iw) {
                const inside rows = inside_row(g, g->ih, g->oh, r), columns = inside_row(g, g->iw, g->ow, s);
                memset(taps, 0, g->ih * g->iw * sizeof taps[0]);
                for (size_t p = rows.first; p < rows.end; p++) {
                    float *to = taps + (rows.pixel + (p - rows.first) * g->stride) * g->iw + columns.pixel;
                    const float *from = dy + p * g->ow + columns.first;
                    const size_t numel = columns.end - columns.first;
                    if (g->stride == 1) {
                        for (size_t q = 0; q < numel; q++) to[q] = from[q];
                    } else {
                        for (size_t q = 0; q < numel; q++) to[q * g->stride] = from[q];
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
