/* Fully connected layers: three products and the sum of a bias's gradient. */

static zb_status op_linear_forward(const zb_linear_forward_args *args)
{
    return op_matmul(&(zb_matmul_args){
        .dtype = args->dtype,
        .m = args->rows,
        .n = args->out,
        .k = args->in,
        .a = args->x,
        .a_row = args->in,
        .a_col = 1,
        .b = args->w,
        .b_row = 1,
        .b_col = args->in,
        .c = args->y,
        .c_row = args->out,
        .bias = args->b,
    });
}

static zb_status op_linear_backward_input(const zb_linear_backward_input_args *args)
{
    return op_matmul(&(zb_matmul_args){
        .dtype = args->dtype,
        .m = args->rows,
        .n = args->in,
        .k = args->out,
        .a = args->dy,
        .a_row = args->out,
        .a_col = 1,
        .b = args->w,
        .b_row = args->in,
        .b_col = 1,
        .c = args->dx,
        .c_row = args->in,
    });
}

static zb_status op_linear_backward_weight(const zb_linear_backward_weight_args *args)
{
    return op_matmul(&(zb_matmul_args){
        .dtype = args->dtype,
        .m = args->out,
        .n = args->in,
        .k = args->rows,
        .a = args->dy,
        .a_row = 1,
        .a_col = args->out,
        .b = args->x,
        .b_row = args->in,
        .b_col = 1,
        .c = args->dw,
        .c_row = args->in,
    });
}

static zb_status op_linear_backward_bias(const zb_linear_backward_bias_args *args)
{
    ZB_TRY(check_dtype("linear_backward_bias", args->dtype));
    ZB_EACH_BLOCK(first, count, args->out, COLUMN_BLOCK)
    {
        reduce_columns(args->dtype, const_element(args->dtype, args->dy, first), args->rows, args->out, count,
                       element(args->dtype, args->db, first));
    }
    return ZB_OK;
}
