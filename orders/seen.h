/*
 * What explaining starts from: contributions, and a result that has been seen. Here a record is played, its
 * sums are made into results as the run has made them, and both are held against one another, to the bit or
 * in numbers.
 */
#ifndef ZB_ORDERS_SEEN_H
#define ZB_ORDERS_SEEN_H

#include <zerobit/orders.h>

enum { ZB_SEEN_BLOCK = 4096 };

/* One multiplication or division of a sum, in the type of the call; fp64 in itself, others as zb_factor. */
typedef struct zb_after {
    zb_factor_kind kind;
    double by;
} zb_after;

enum { ZB_AFTER_MAX = 2 };

typedef struct zb_seen {
    const zb_reduction_call *call;
    const void *const *inputs; /* [rounds * world_size] */
    int rounds;
    zb_after after; /* of a result that is as it should be */
    const void *result;
    zb_dtype dtype; /* of the result */
    size_t numel;
    void *sum, *finished; /* ZB_SEEN_BLOCK elements of either type */
} zb_seen;

/** How many elements from `first` on, up to `end`, the record and what comes after it give as they were seen.
 */
zb_status zb_seen_fit(const zb_seen *seen, const zb_reduction *reduction, const zb_after after[ZB_AFTER_MAX],
                      size_t first, size_t end, size_t *numel_p);
/** Element `at` as the record gives it, at the beginning of `finished`. */
zb_status zb_seen_play(const zb_seen *seen, const zb_reduction *reduction, const zb_after after[ZB_AFTER_MAX],
                       size_t at, size_t numel);

int zb_seen_is_whole(zb_dtype dtype);
/** Element i as a number; integers of 64 bits lose none of theirs. */
long double zb_seen_value(zb_dtype dtype, const void *data, size_t i);
/** What is multiplied into every contribution on its way to the result, if it is as it should be. */
long double zb_seen_scale(const zb_seen *seen);
/**
 * How far the result may be from a sum of `count` contributions, whose magnitudes add up to `magnitude`, in
 * whatever order it is added, scaled and rounded. `wide`: partial sums are in fp32 at least.
 */
long double zb_seen_bound(const zb_seen *seen, int count, int wide, long double magnitude);

#endif
