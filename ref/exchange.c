/*
 * What ranks tell one another, added up in the order of a route: gradients, collective by collective as they
 * travel, and single numbers. Without a route ranks are added in ascending order, which needs no buffers:
 * reduce.c has that for gradients.
 */
#include "ref/oracle.h"

#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/ref.h>

/* --- create, destroy --- */

static size_t largest_numel(const zb_route *route)
{
    size_t largest = 1;
    for (size_t i = 0; i < route->count; i++)
        if (route->collectives[i].reduction.numel > largest) largest = route->collectives[i].reduction.numel;
    return largest;
}

static zb_status fill(zb_ref_exchange *x, zb_dtype comm_dtype)
{
    const size_t world = (size_t)x->world_size;
    x->values = zb_alloc_array(world, sizeof *x->values);
    x->inputs = zb_alloc_array(world, sizeof *x->inputs);
    if (x->values == NULL || x->inputs == NULL) return ZB_NO_MEMORY;
    if (x->route == NULL) return ZB_OK;
    x->buffer_bytes = (largest_numel(x->route) * zb_dtype_bytes(comm_dtype) + 7) / 8 * 8;
    x->buffers = zb_alloc_array(world + 1, x->buffer_bytes);
    return x->buffers != NULL ? ZB_OK : ZB_NO_MEMORY;
}

zb_status zb_ref_exchange_create(const zb_plan *plan, const zb_route *route, zb_ref_exchange *exchange)
{
    zb_ref_exchange made = { .world_size = plan->world_size, .route = route };
    const zb_status status = fill(&made, plan->comm_dtype);
    if (status == ZB_OK)
        *exchange = made;
    else
        zb_ref_exchange_destroy(&made);
    return status;
}

void zb_ref_exchange_destroy(zb_ref_exchange *exchange)
{
    zb_free(exchange->values);
    zb_free((void *)exchange->inputs);
    zb_free(exchange->buffers);
    *exchange = (zb_ref_exchange){ 0 };
}

/* --- one number of each rank --- */

float zb_ref_exchange_sum_fp32(const zb_ref_exchange *x)
{
    float sum = (float)x->values[0];
    if (x->route == NULL) {
        for (int r = 1; r < x->world_size; r++) sum = sum + (float)x->values[r];
        return sum;
    }
    float *numbers = (float *)(void *)x->buffers;
    for (int r = 0; r < x->world_size; r++) {
        numbers[r] = (float)x->values[r];
        x->inputs[r] = &numbers[r];
    }
    zb_ref_reduction_run(&x->route->sum_fp32, x->inputs, 0, 1, &sum);
    return sum;
}

double zb_ref_exchange_sum_fp64(const zb_ref_exchange *x)
{
    double sum = x->values[0];
    if (x->route == NULL) {
        for (int r = 1; r < x->world_size; r++) sum = sum + x->values[r];
        return sum;
    }
    for (int r = 0; r < x->world_size; r++) x->inputs[r] = &x->values[r];
    zb_ref_reduction_run(&x->route->sum_fp64, x->inputs, 0, 1, &sum);
    return sum;
}

/* --- gradients --- */

static void put(zb_dtype dtype, float value, void *buffer, size_t at)
{
    if (dtype == ZB_FP32)
        ((float *)buffer)[at] = value;
    else
        ((uint16_t *)buffer)[at] = zb_ref_encode(dtype, value);
}

static float get(zb_dtype dtype, const void *buffer, size_t at)
{
    return dtype == ZB_FP32 ? ((const float *)buffer)[at]
                            : zb_ref_decode(dtype, ((const uint16_t *)buffer)[at]);
}

/* Each rank's buffer as it goes out; padding is zero. */
static void fill_buffers(const zb_ref_exchange *x, const zb_plan *plan, const zb_route_collective *collective,
                         const zb_ref_tensors *ranks)
{
    for (int r = 0; r < x->world_size; r++) {
        unsigned char *buffer = x->buffers + (size_t)r * x->buffer_bytes;
        memset(buffer, 0, collective->reduction.numel * zb_dtype_bytes(plan->comm_dtype));
        for (size_t p = 0; p < collective->piece_count; p++) {
            const zb_route_piece *piece = &collective->pieces[p];
            for (size_t i = 0; i < piece->numel; i++)
                put(plan->comm_dtype,
                    zb_ref_contribution(plan, ranks[r].param[piece->param][piece->first + i]), buffer,
                    piece->at + i);
        }
        x->inputs[r] = buffer;
    }
}

void zb_ref_exchange_gradients(const zb_ref_exchange *x, const zb_plan *plan, const zb_ref_tensors *ranks,
                               zb_ref_tensors *out)
{
    unsigned char *result = x->buffers + (size_t)x->world_size * x->buffer_bytes;
    for (size_t c = 0; c < x->route->count; c++) {
        const zb_route_collective *collective = &x->route->collectives[c];
        fill_buffers(x, plan, collective, ranks);
        zb_ref_reduction_run(&collective->reduction, x->inputs, 0, collective->reduction.numel, result);
        for (size_t p = 0; p < collective->piece_count; p++) {
            const zb_route_piece *piece = &collective->pieces[p];
            for (size_t i = 0; i < piece->numel; i++)
                out->param[piece->param][piece->first + i] = zb_ref_factor(
                    plan->averaging.after, plan->comm_dtype, get(plan->comm_dtype, result, piece->at + i));
        }
    }
}
