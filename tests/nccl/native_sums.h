/* Reductions in an order of NCCL's, held against the record of that order; whoever adds them. */
#ifndef ZB_TESTS_NCCL_NATIVE_SUMS_H
#define ZB_TESTS_NCCL_NATIVE_SUMS_H

#include <zerobit/orders.h>

/* How many reductions that is on each rank. */
enum { NATIVE_SUMS = 20 };

/*
 * all_reduce and reduce_scatter of `numel` elements: sums, averages and pre-multiplied sums of fp32, fp16 and
 * bf16, and sums of int32. ZB_DIFFERENT names the first that is not, bit for bit, what the record of `order`
 * says.
 */
zb_status compare_native_sums(zb_comm *comm, const zb_orders *orders, size_t numel);

#endif
