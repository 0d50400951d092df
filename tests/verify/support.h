/* A small model and observations in one line: for the tests of traces and comparisons. */
#ifndef TESTS_VERIFY_SUPPORT_H
#define TESTS_VERIFY_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zerobit/model.h>
#include <zerobit/observe.h>
#include <zerobit/plan.h>
#include <zerobit/trace.h>

#include "tests/folder.h"

enum { SMALL_WEIGHT, SMALL_BIAS, SMALL_FROZEN, SMALL_EMPTY, SMALL_PARAM_COUNT };

/* fc.weight [2, 3], fc.bias [2], a frozen tensor of 4 and an empty one. */
static zb_model *small_model(void)
{
    static zb_param params[SMALL_PARAM_COUNT] = {
        { .name = "fc.weight", .shape = { 2, { 2, 3 } }, .numel = 6, .requires_grad = 1 },
        { .name = "fc.bias", .shape = { 1, { 2 } }, .numel = 2, .requires_grad = 1 },
        { .name = "frozen", .shape = { 1, { 4 } }, .numel = 4 },
        { .name = "empty", .shape = { 1, { 0 } }, .numel = 0, .requires_grad = 1 },
    };
    static zb_model model = {
        .name = "small", .params = params, .param_count = SMALL_PARAM_COUNT, .param_numel = 12
    };
    return &model;
}

static zb_plan small_plan(int world_size)
{
    return (zb_plan){ .world_size = world_size,
                      .micro_batch_size = 2,
                      .accumulation_steps = 1,
                      .groups = { { .lr = 0.1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8 } },
                      .group_count = 1 };
}

static zb_trace_header small_header(int stage, int world_size)
{
    return (zb_trace_header){ .model = small_model(),
                              .plan = small_plan(world_size),
                              .stage = stage,
                              .comm = "sim",
                              .device = "cpu",
                              .order = "rank",
                              .steps = 2 };
}

/* --- one observation, its values in place --- */

typedef struct shown {
    zb_quantity quantity;
    int64_t step, micro;
    int rank, param;
    size_t first, numel;
    union {
        float f[8];
        double d[8];
        int64_t i[16];
        uint32_t bits[16];
    } values;
} shown;

static inline zb_dtype shown_dtype(zb_quantity quantity)
{
    static const zb_dtype dtypes[] = {
#define SHOWN_DTYPE(name, text, dtype) [ZB_Q_##name] = ZB_##dtype,
        ZB_QUANTITY_MAP(SHOWN_DTYPE)
#undef SHOWN_DTYPE
    };
    return dtypes[quantity];
}

static inline zb_observation shown_observation(const shown *s)
{
    return (zb_observation){ .quantity = s->quantity,
                             .step = s->step,
                             .micro = s->micro,
                             .rank = s->rank,
                             .param = s->param,
                             .dtype = shown_dtype(s->quantity),
                             .first = s->first,
                             .numel = s->numel,
                             .data = &s->values };
}

/* Everything in `list`, in its order, as one trace. */
static inline zb_status write_trace(const char *path, int stage, int world_size, const shown *list,
                                    size_t count)
{
    zb_trace_header header = small_header(stage, world_size);
    zb_trace_writer *writer;
    zb_status status = zb_trace_writer_create(path, &header, &writer);
    if (status != ZB_OK) return status;
    for (size_t i = 0; i < count && status == ZB_OK; i++) {
        zb_observation observation = shown_observation(&list[i]);
        status = zb_trace_write(writer, &observation);
    }
    if (status == ZB_OK) status = zb_trace_writer_finish(writer);
    zb_trace_writer_destroy(writer);
    return status;
}

#endif
