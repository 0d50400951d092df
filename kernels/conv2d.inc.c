/*
 * Convolution as matrix products, one image at a time: the taps are laid out as a matrix in the workspace,
 * with +0 where a tap has nothing to look at, so that each product's chain over k is the chain that the
 * contract asks for. Arrays of 16 bits are widened into the workspace, an image at a time, and results are
 * rounded on their way out of it.
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

/* The parts of the workspace; see zb_conv2d_workspace_numel. Without 16-bit arrays only some are used. */
typedef struct conv_rooms {
    float *taps;    /* of one image: of x or of dy */
    float *weights; /* w or dw                     */
    float *input;   /* one image of x or dx        */
    float *output;  /* one image of y or dy        */
} conv_rooms;

static conv_rooms conv_rooms_of(const zb_conv2d_shape *s, float *workspace)
{
    const size_t input = s->ic * s->ih * s->iw, output = s->oc * s->oh * s->ow;
    return (conv_rooms){ .input = workspace,
                         .output = workspace + input,
                         .weights = workspace + input + output,
                         .taps = workspace + input + output + s->oc * s->ic * s->kernel * s->kernel };
}

static zb_status op_conv2d_forward(const zb_conv2d_forward_args *args)
{
    ZB_TRY(check_dtype("conv2d_forward", args->dtype));
    const zb_conv2d_shape *s = &args->shape;
    const size_t taps = s->ic * s->kernel * s->kernel, pixels = s->oh * s->ow;
    const size_t input = s->ic * s->ih * s->iw, output = s->oc * pixels;
    const conv_rooms rooms = conv_rooms_of(s, args->workspace);
    const float *w = block_read(args->dtype, args->w, 0, s->oc * taps, rooms.weights);
    for (size_t n = 0; n < s->rows; n++) {
        float *y = block_target(args->dtype, args->y, n * output, rooms.output);
        gather_input(s, block_read(args->dtype, args->x, n * input, input, rooms.input), rooms.taps);
        ZB_TRY(op_matmul(&(zb_matmul_args){
            .dtype = ZB_FP32,
            .m = s->oc,
            .n = pixels,
            .k = taps,
            .a = w,
            .a_row = taps,
            .a_col = 1,
            .b = rooms.taps,
            .b_row = pixels,
            .b_col = 1,
            .c = y,
            .c_row = pixels,
        }));
        for (size_t o = 0; args->b != NULL && o < s->oc; o++) {
            const float bias = load_one(args->dtype, args->b, o);
            for (size_t i = 0; i < pixels; i++) y[o * pixels + i] += bias;
        }
        block_write(args->dtype, args->y, n * output, output, y);
    }
    return ZB_OK;
}

static zb_status op_conv2d_backward_input(const zb_conv2d_backward_input_args *args)
{
    ZB_TRY(check_dtype("conv2d_backward_input", args->dtype));
    const zb_conv2d_shape *s = &args->shape;
    const size_t window = s->kernel * s->kernel, taps = s->oc * window, pixels = s->ih * s->iw;
    const size_t input = s->ic * pixels, output = s->oc * s->oh * s->ow;
    const conv_rooms rooms = conv_rooms_of(s, args->workspace);
    float *w = rooms.weights; /* w[c, o, r, s] */
    for (size_t o = 0; o < s->oc; o++)
        for (size_t c = 0; c < s->ic; c++)
            widen(args->dtype, w + (c * s->oc + o) * window,
                  const_element(args->dtype, args->w, (o * s->ic + c) * window), window);
    for (size_t n = 0; n < s->rows; n++) {
        float *dx = block_target(args->dtype, args->dx, n * input, rooms.input);
        gather_output(s, block_read(args->dtype, args->dy, n * output, output, rooms.output), rooms.taps);
        ZB_TRY(op_matmul(&(zb_matmul_args){
            .dtype = ZB_FP32,
            .m = s->ic,
            .n = pixels,
            .k = taps,
            .a = w,
            .a_row = taps,
            .a_col = 1,
            .b = rooms.taps,
            .b_row = pixels,
            .b_col = 1,
            .c = dx,
            .c_row = pixels,
        }));
        block_write(args->dtype, args->dx, n * input, input, dx);
    }
    return ZB_OK;
}

static zb_status op_conv2d_backward_weight(const zb_conv2d_backward_weight_args *args)
{
    ZB_TRY(check_dtype("conv2d_backward_weight", args->dtype));
    const zb_conv2d_shape *s = &args->shape;
    const size_t taps = s->ic * s->kernel * s->kernel, pixels = s->oh * s->ow;
    const size_t input = s->ic * s->ih * s->iw, output = s->oc * pixels;
    const conv_rooms rooms = conv_rooms_of(s, args->workspace);
    float *dw = block_target(args->dtype, args->dw, 0, rooms.weights);
    memset(dw, 0, s->oc * taps * sizeof dw[0]);
    for (size_t n = 0; n < s->rows; n++) {
        gather_input(s, block_read(args->dtype, args->x, n * input, input, rooms.input), rooms.taps);
        ZB_TRY(op_matmul(&(zb_matmul_args){
            .dtype = ZB_FP32,
            .m = s->oc,
            .n = taps,
            .k = pixels,
            .a = block_read(args->dtype, args->dy, n * output, output, rooms.output),
            .a_row = pixels,
            .a_col = 1,
            .b = rooms.taps,
            .b_row = 1,
            .b_col = pixels,
            .c = dw,
            .c_row = taps,
            .accumulate = 1,
        }));
    }
    block_write(args->dtype, args->dw, 0, s->oc * taps, dw);
    return ZB_OK;
}

static zb_status op_conv2d_backward_bias(const zb_conv2d_backward_bias_args *args)
{
    ZB_TRY(check_dtype("conv2d_backward_bias", args->dtype));
    const zb_conv2d_shape *s = &args->shape;
    const size_t pixels = s->oh * s->ow;
    float room[BLOCK];
    for (size_t o = 0; o < s->oc; o++) {
        reduction sum = { .numel = 0 };
        for (size_t n = 0; n < s->rows; n++) {
            const void *dy = const_element(args->dtype, args->dy, (n * s->oc + o) * pixels);
            ZB_EACH_BLOCK(first, count, pixels, block_step(args->dtype == ZB_FP32, pixels))
            {
                reduction_add(&sum, block_read(args->dtype, dy, first, count, room), count);
            }
        }
        store_one(args->dtype, args->db, o, reduction_result(&sum));
    }
    return ZB_OK;
}
