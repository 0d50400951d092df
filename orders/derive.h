/* What the derivations share. Each fills a record for a call that has been checked; of `rounding` it sets
 * what is its own. */
#ifndef ZB_ORDERS_DERIVE_H
#define ZB_ORDERS_DERIVE_H

#include <zerobit/orders.h>

#include "orders/record.h"

/** Elements that rank `owner` keeps of a reduce_scatter. */
size_t zb_call_block(const zb_reduction_call *call, int owner);
/** Elements that a rank contributes. */
size_t zb_call_total(const zb_reduction_call *call);
int zb_call_scatters(const zb_reduction_call *call);
/** ZB_UNSUPPORTED: "nccl-ring does not offer reduce: <why>". */
zb_status zb_derive_refuse(const zb_order_source *source, const zb_reduction_call *call, const char *why);

zb_status zb_derive_mpi(const zb_order_source *source, const zb_reduction_call *call,
                        zb_reduction *reduction_p);
zb_status zb_derive_nccl(const zb_order_source *source, const zb_reduction_call *call,
                         zb_reduction *reduction_p);

#endif
