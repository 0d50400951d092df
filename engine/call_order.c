/* Modules as someone else calls them; see call_order.h. */
#include "engine/call_order.h"

#include <string.h>

static zb_status check_indices(const zb_index_list *list, const char *what, int limit)
{
    for (int i = 0; i < list->count; i++)
        if (list->items[i] < 0 || list->items[i] >= limit)
            return zb_fail(ZB_INVALID_ARGUMENT, "call order: %s [%d] is %d, want 0 to %d", what, i,
                           list->items[i], limit - 1);
    return ZB_OK;
}

static int owns(const zb_index_list *module, int param)
{
    for (int i = 0; i < module->count; i++)
        if (module->items[i] == param) return 1;
    return 0;
}

/* The model first, and then not again: all other modules are inside it. */
static zb_status check_calls(const zb_index_list *calls, const char *what, int module_count)
{
    ZB_TRY(check_indices(calls, what, module_count));
    for (int i = 0; i < calls->count; i++)
        if ((calls->items[i] == 0) != (i == 0))
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "call order: %s [%d] is %d, want module 0 first and only there", what, i,
                           calls->items[i]);
    if (calls->count == 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "call order: %s is empty, want module 0", what);
    return ZB_OK;
}

static zb_status check_gradients(const zb_index_list *gradients, const zb_model *model)
{
    int wanted = 0;
    ZB_TRY(check_indices(gradients, "gradient", model->param_count));
    for (int p = 0; p < model->param_count; p++)
        wanted += model->params[p].requires_grad && model->params[p].numel > 0;
    for (int i = 0; i < gradients->count; i++) {
        const zb_param *param = &model->params[gradients->items[i]];
        const zb_index_list earlier = { .items = gradients->items, .count = i };
        if (!param->requires_grad || param->numel == 0 || owns(&earlier, gradients->items[i]))
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "call order: gradient [%d] is that of %s, want every trainable "
                           "parameter once",
                           i, param->name);
    }
    if (gradients->count != 0 && gradients->count != wanted)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "call order: %d gradients, want one for each of %d trainable "
                       "parameters, or none",
                       gradients->count, wanted);
    return ZB_OK;
}

zb_status zb_call_order_check(const zb_call_order *order, const zb_model *model)
{
    if (model->loss != ZB_LOSS_ELSEWHERE)
        return zb_fail(ZB_INVALID_ARGUMENT, "a call order for model %s, which calls its modules itself",
                       model->name);
    for (int m = 0; m < order->module_count; m++)
        ZB_TRY(check_indices(&order->modules[m], "parameter of a module", model->param_count));
    ZB_TRY(check_calls(&order->forward, "forward", order->module_count));
    ZB_TRY(check_calls(&order->backward, "backward", order->module_count));
    return check_gradients(&order->gradients, model);
}

void zb_call_order_apply(const zb_call_order *order, zb_graph *graph)
{
    if (order->gradients.count == 0) return;
    ZB_ASSERT(order->gradients.count == graph->ready_count);
    memcpy(graph->ready_order, order->gradients.items,
           (size_t)graph->ready_count * sizeof *graph->ready_order);
}

int zb_call_order_completes(const zb_call_order *order, int param)
{
    for (int i = order->backward.count - 1; i > 0; i--)
        if (owns(&order->modules[order->backward.items[i]], param)) return i;
    return order->backward.count;
}
