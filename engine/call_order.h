/*
 * The order in which someone else's forward and backward call modules (zb_call_order of engine.h), checked,
 * and what the engine derives from it.
 */
#ifndef ZEROBIT_ENGINE_CALL_ORDER_H
#define ZEROBIT_ENGINE_CALL_ORDER_H

#include <zerobit/engine.h>

#include "engine/graph.h"

/* Refuses what does not fit the model. */
zb_status zb_call_order_check(const zb_call_order *order, const zb_model *model);
/* The order in which gradients become ready takes the place of the graph's own. */
void zb_call_order_apply(const zb_call_order *order, zb_graph *graph);
/* Index in order->backward of the module whose backward completes the parameter's gradient; at the end of
 * backward when it is nobody's but the model's own. */
int zb_call_order_completes(const zb_call_order *order, int param);

#endif
