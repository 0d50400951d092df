/* In which order a forward and a backward elsewhere go through a list of parameters. */
#include <zerobit/model.h>

#include <string.h>
#include <zerobit/memory.h>

#include "core/model_parts.h"

void zb_model_order_destroy(zb_model_order *order)
{
    if (order == NULL) return;
    for (int l = 0; order->layers != NULL && l < order->layer_count; l++) zb_free(order->layers[l].items);
    zb_free(order->layers);
    zb_free(order->forward.items);
    zb_free(order->backward.items);
    zb_free(order->ready.items);
    zb_free(order);
}

/* --- checks --- */

static zb_status check_indices(const zb_model *model, const zb_index_list *list, const char *what, int limit)
{
    for (int i = 0; i < list->count; i++)
        if (list->items[i] < 0 || list->items[i] >= limit)
            return zb_fail(ZB_INVALID_ARGUMENT, "model \"%s\": entry %d of its %s order is %d, want 0 to %d",
                           model->name, i, what, list->items[i], limit - 1);
    return ZB_OK;
}

static zb_status check_calls(const zb_model *model, const zb_model_order *order, const zb_index_list *calls,
                             const char *what)
{
    if (calls->count == 0 || calls->items[0] != 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "model \"%s\": its %s order does not begin with layer 0",
                       model->name, what);
    return check_indices(model, calls, what, order->layer_count);
}

/* Each trainable parameter with elements once, and no other. */
static zb_status check_ready(const zb_model *model, const zb_index_list *ready)
{
    if (ready->count == 0) return ZB_OK;
    ZB_TRY(check_indices(model, ready, "gradient", model->param_count));
    for (int p = 0; p < model->param_count; p++) {
        const int want = model->params[p].requires_grad && model->params[p].numel > 0;
        int times = 0;
        for (int i = 0; i < ready->count; i++) times += ready->items[i] == p;
        if (times != want)
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "model \"%s\": its gradient order has parameter %s %d times, want %d", model->name,
                           model->params[p].name, times, want);
    }
    return ZB_OK;
}

static zb_status check_order(const zb_model *model, const zb_model_order *order)
{
    if (model->loss != ZB_LOSS_ELSEWHERE)
        return zb_fail(ZB_INVALID_ARGUMENT, "model \"%s\": has an order of its own", model->name);
    ZB_TRY(check_calls(model, order, &order->forward, "forward"));
    ZB_TRY(check_calls(model, order, &order->backward, "backward"));
    for (int l = 0; l < order->layer_count; l++)
        ZB_TRY(check_indices(model, &order->layers[l], "layer", model->param_count));
    return check_ready(model, &order->ready);
}

/* --- copying --- */

static zb_status copy_list(const zb_index_list *from, zb_index_list *to)
{
    to->items = zb_alloc_array((size_t)from->count, sizeof *to->items);
    if (to->items == NULL) return ZB_NO_MEMORY;
    if (from->count > 0) memcpy(to->items, from->items, (size_t)from->count * sizeof *to->items);
    to->count = from->count;
    return ZB_OK;
}

static zb_status copy_order(const zb_model_order *from, zb_model_order *to)
{
    to->layers = zb_alloc_array((size_t)from->layer_count, sizeof *to->layers);
    if (to->layers == NULL) return ZB_NO_MEMORY;
    to->layer_count = from->layer_count;
    for (int l = 0; l < from->layer_count; l++) ZB_TRY(copy_list(&from->layers[l], &to->layers[l]));
    ZB_TRY(copy_list(&from->forward, &to->forward));
    ZB_TRY(copy_list(&from->backward, &to->backward));
    return copy_list(&from->ready, &to->ready);
}

zb_status zb_model_set_order(zb_model *model, const zb_model_order *order)
{
    ZB_TRY(check_order(model, order));
    zb_model_order *copy = zb_alloc(sizeof *copy);
    if (copy == NULL) return ZB_NO_MEMORY;
    const zb_status status = copy_order(order, copy);
    if (status != ZB_OK) {
        zb_model_order_destroy(copy);
        return status;
    }
    zb_model_order_destroy(model->order);
    model->order = copy;
    return ZB_OK;
}
