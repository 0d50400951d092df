/*
 * The route of gradients: the collectives in which a step's gradients cross ranks, where in each of them every element of a
 * parameter lies, and how it is added there. Where an order of addition depends on an element's place in its collective (rings,
 * chunks), the bits of a stage follow from plan and route together. A stage publishes its route (zb_route_create, engine.h), the
 * oracle plays it, and a trace keeps it.
 */
#ifndef ZEROBIT_ROUTE_H
#define ZEROBIT_ROUTE_H

#include <stddef.h>
#include <zerobit/reduction.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Elements [first, first + numel) of a parameter lie from element `at` on in the collective. */
typedef struct zb_route_piece {
    int param;
    size_t first, numel, at;
} zb_route_piece;

typedef struct zb_route_collective {
    zb_reduction_call call; /* its counts are owned by the route; of a reduce_scatter_v numel is rank 0's share, counts[0] */
    zb_reduction reduction;
    zb_route_piece *pieces; /* [piece_count], ascending `at`; what lies between them is padding, zero on every rank */
    size_t piece_count;
} zb_route_collective;

/** Owns everything; zeros are an empty one. */
typedef struct zb_route {
    int world_size;
    zb_route_collective *collectives; /* [count], those of one reduction of all gradients, in the order of the calls */
    size_t count;
    zb_reduction sum_fp32, sum_fp64; /* of one number of each rank: what norms that sum one over ranks are put together
                                        with (ZB_NORM_PARTITION_*, ZB_NORM_PARAMETERS_MEAN where it clips); others: empty */
} zb_route;

/** Fine on zeros and to repeat. */
ZB_API void zb_route_destroy(zb_route *route);

/**
 * *alike: whether both add every element of every parameter by the same tree of ranks, with the same roundings; operands of an
 * addition may change places. Both must be of the same model and world (asserted). ZB_NO_MEMORY.
 */
ZB_API zb_status zb_routes_add_alike(const zb_route *a, const zb_route *b, int *alike_p);

#ifdef __cplusplus
}
#endif
#endif
