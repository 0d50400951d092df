/* Whether two ranks' calls of a collective fit together: what every back end that checks calls compares. */
#ifndef ZB_ORDERS_SIGNATURE_H
#define ZB_ORDERS_SIGNATURE_H

#include <stddef.h>
#include <zerobit/comm.h>

/* Splitting a communicator is compared like a collective, but is not one of the public kinds. */
enum { ZB_CALL_SPLIT = ZB_COLLECTIVE_COUNT };

/** send or recv: two ranks take part, not all. */
int zb_call_is_pair(int kind);
int zb_call_is_reduction(int kind);
/** Neither a barrier nor a split. */
int zb_call_has_data(int kind);
/** broadcast or reduce: all ranks name the same root. */
int zb_call_has_root(int kind);
/** "all_reduce", ..., "split". */
const char *zb_call_kind_name(int kind);

/* One rank's call. */
typedef struct zb_call_side {
    int rank; /* as reports name it */
    const zb_collective *call;
    const char
        *order; /* its order in words, where the call has come without it; NULL: call->order is compared */
} zb_call_side;

/**
 * Writes which field differs, with both values, and returns 1; 0 when the calls fit together. `world_size`:
 * how many counts a reduce_scatter_v has.
 */
int zb_calls_differ(const zb_call_side *a, const zb_call_side *b, int world_size, char *text,
                    size_t text_bytes);

/** The last two components of a path: enough, and the same wherever it was compiled. */
const char *zb_call_short_path(const char *path);

#endif
