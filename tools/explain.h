/* What `explain` does with safetensors files, and how it prints JSON. */
#ifndef TOOLS_EXPLAIN_H
#define TOOLS_EXPLAIN_H

#include <zerobit/orders.h>
#include <zerobit/trace.h>

enum { EXPLAIN_WORLD_MAX = 65536 };

typedef struct explain_request {
    zb_collective_kind kind;
    zb_redop op;
    double factor;
    size_t counts[EXPLAIN_WORLD_MAX]; /* [count_count] */
    int count_count;
    int root;
    zb_orders expected; /* owned */
    int is_expected;
    const char *tensor; /* NULL: all */
    int json;
} explain_request;

/**
 * Explains the tensors of two safetensors files and prints what it finds once all are explained. *is_right_p:
 * all are as expected; or, when nothing is expected, all are sums in some order.
 */
zb_status explain_safetensors(const char *contributions_path, const char *result_path,
                              const explain_request *request, int *is_right_p);

/** One JSON value. */
zb_status explain_print_trace_json(const char *const *paths, const zb_trace_explanation *told);

#endif
