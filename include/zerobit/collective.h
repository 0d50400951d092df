/* The kinds of collective, by name. <zerobit/comm.h> says what each does. */
#ifndef ZEROBIT_COLLECTIVE_H
#define ZEROBIT_COLLECTIVE_H

#include <zerobit/export.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZB_COLLECTIVE_MAP(X)                                                                               \
    X(ALL_REDUCE, "all_reduce") X(REDUCE_SCATTER, "reduce_scatter") X(REDUCE_SCATTER_V, "reduce_scatter_v") \
    X(ALL_GATHER, "all_gather") X(ALL_TO_ALL, "all_to_all") X(BROADCAST, "broadcast") X(REDUCE, "reduce")   \
    X(SEND, "send") X(RECV, "recv") X(BARRIER, "barrier")

typedef enum zb_collective_kind {
#define ZB_COLLECTIVE_ENUM(name, text) ZB_COLLECTIVE_##name,
    ZB_COLLECTIVE_MAP(ZB_COLLECTIVE_ENUM)
#undef ZB_COLLECTIVE_ENUM
    ZB_COLLECTIVE_COUNT
} zb_collective_kind;
ZB_API const char *zb_collective_name(zb_collective_kind kind);

#ifdef __cplusplus
}
#endif
#endif
