/* Losses: cross entropy over logits, and mean squared error. */

static float row_maximum(const float *x, size_t numel)
{
    float maximum = -INFINITY;
    for (size_t i = 0; i < numel; i++)
        if (x[i] > maximum || isnan(x[i])) {
            maximum = x[i];
            if (isnan(maximum)) break;
        }
    return maximum;
}

static zb_status op_cross_entropy_forward(const zb_cross_entropy_forward_args *args)
{
    for (size_t row = 0; row < args->rows; row++) {
        const float *x = args->x + row * args->classes;
        float *log_probs = args->log_probs + row * args->classes;
        float maximum = row_maximum(x, args->classes);
        reduction sum = { .numel = 0 };
        for (size_t i = 0; i < args->classes; i++) reduction_add_one(&sum, zb_expf(x[i] - maximum));
        float log_sum = zb_logf(reduction_result(&sum));
        for (size_t i = 0; i < args->classes; i++) log_probs[i] = (x[i] - maximum) - log_sum;
        args->row_loss[row] = -log_probs[args->labels[row]];
    }
    reduction total = { .numel = 0 };
    reduction_add(&total, args->row_loss, args->rows);
    args->loss[0] = reduction_result(&total) / (float)args->rows;
    return ZB_OK;
}

static zb_status op_cross_entropy_backward(const zb_cross_entropy_backward_args *args)
{
    const float weight = args->seed / (float)args->rows;
    for (size_t row = 0; row < args->rows; row++) {
        const float *log_probs = args->log_probs + row * args->classes;
        float *dx = args->dx + row * args->classes;
        const size_t label = (size_t)args->labels[row];
        for (size_t i = 0; i < args->classes; i++)
            dx[i] = (zb_expf(log_probs[i]) - (i == label ? 1.0f : 0.0f)) * weight;
    }
    return ZB_OK;
}

static zb_status op_mse_forward(const zb_mse_forward_args *args)
{
    reduction sum = { .numel = 0 };
    float squares[8 * LANES];
    enum { BLOCK = sizeof squares / sizeof squares[0] };
    for (size_t first = 0; first < args->numel; first += BLOCK) {
        const size_t numel = args->numel - first < BLOCK ? args->numel - first : BLOCK;
        for (size_t i = 0; i < numel; i++) {
            float d = args->x[first + i] - args->t[first + i];
            squares[i] = d * d;
        }
        reduction_add(&sum, squares, numel);
    }
    args->loss[0] = reduction_result(&sum) / (float)args->numel;
    return ZB_OK;
}

static zb_status op_mse_backward(const zb_mse_backward_args *args)
{
    const float weight = (2 * args->seed) / (float)args->numel;
    const float *restrict x = args->x, *restrict t = args->t;
    float *restrict dx = args->dx;
    for (size_t i = 0; i < args->numel; i++) dx[i] = (x[i] - t[i]) * weight;
    return ZB_OK;
}
