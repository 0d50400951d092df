/* What the tests of orders share: contributions of all ranks, and the comparison of results by their bits. */
#ifndef ZB_TESTS_ORDERS_SUPPORT_H
#define ZB_TESTS_ORDERS_SUPPORT_H

#include <zerobit/orders.h>
#include <zerobit/ref.h>

#include "tests/kernels/support.h"

typedef struct contributions {
    int world_size;
    size_t numel;
    zb_dtype dtype;
    void **inputs; /* [world_size], each guarded */
} contributions;
contributions contributions_random(rng *r, int world_size, size_t numel, zb_dtype dtype, fill_kind kind);
void contributions_free(contributions *c);

/** `x` in the type, at element i. Floating types round. */
void store_value(zb_dtype dtype, void *data, size_t i, double x);
/** The bits of element i. */
uint64_t load_bits(zb_dtype dtype, const void *data, size_t i);
/** Same bits, or both NaN (unless `nan_bits_count`). Returns numel where all are, else the first that
 * differs. */
size_t first_difference(zb_dtype dtype, const void *a, const void *b, size_t numel, int nan_bits_count);

zb_order_source source_of(const char *text);
zb_reduction derived(const char *source, const zb_reduction_call *call);
/** Fails unless zb_reduction_run gives what zb_ref_reduction_run gives, in one go and in pieces. */
void assert_runs_as_ref(rng *r, const zb_reduction *reduction, const contributions *c, const char *what);

#endif
