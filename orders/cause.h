/*
 * What a result is that is not the sum that was asked for: one that leaves ranks out, takes one twice, or is
 * divided by something else. Found in numbers, within rounding, and then, where a tree gives it, to the bit.
 */
#ifndef ZB_ORDERS_CAUSE_H
#define ZB_ORDERS_CAUSE_H

#include "orders/seen.h"

typedef struct zb_cause {
    int found;
    size_t first, numel; /* the elements that it holds for */
    char text[320];      /* "the sum of ranks 0, 1, 3: rank 2 is missing" */
    size_t sum_numel;    /* how many of them, from the first on, are to the bit */
    char sum[160];       /* "(0 + 1) + 3" */
    const char *rounding;
} zb_cause;

/** `element` is one that is not the sum of all ranks. cause->found is 0 where nothing fits, or too much does.
 */
zb_status zb_cause_find(const zb_seen *seen, size_t element, zb_cause *cause);

#endif
