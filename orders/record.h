/* Writing the record of a reduction: room for its parts, and ranges one after the other. */
#ifndef ZB_ORDERS_RECORD_H
#define ZB_ORDERS_RECORD_H

#include <zerobit/reduction.h>

/** A record without ranges; trees and orders are zero. On failure nothing is left. */
zb_status zb_reduction_create(int world_size, zb_dtype dtype, int tree_count, int order_count,
                              zb_reduction *reduction_p);
int32_t *zb_reduction_tree_at(zb_reduction *reduction, int tree);
int32_t *zb_reduction_order_at(zb_reduction *reduction, int order);
/** Positions are ranks. */
void zb_reduction_order_ascending(zb_reduction *reduction, int order);
/** Positions are ranks from the last to the first. */
void zb_reduction_order_descending(zb_reduction *reduction, int order);
/** The next `numel` elements, none of them when 0. */
zb_status zb_reduction_append(zb_reduction *reduction, size_t numel, int tree, int order, int start);

#endif
