/*
 * The batch triangle: global batch = micro-batch x accumulation steps x world size, two of which give the
 * rest. Source: deepspeed/runtime/config.py, _set_batch_related_parameters and _batch_assertion.
 */
#include <zerobit/config.h>

#include <inttypes.h>
#include <stdio.h>

static void describe(char *text, size_t text_bytes, int64_t value)
{
    if (value == 0)
        snprintf(text, text_bytes, "not given");
    else
        snprintf(text, text_bytes, "%" PRId64, value);
}

static zb_status refuse(const zb_batch_triangle *given, int world_size, const char *reason)
{
    char train[32], micro[32], accumulation[32];
    describe(train, sizeof train, given->train_batch_size);
    describe(micro, sizeof micro, given->micro_batch_size);
    describe(accumulation, sizeof accumulation, given->accumulation_steps);
    return zb_fail(ZB_INVALID_CONFIG,
                   "batch sizes do not fit: train_batch_size %s, train_micro_batch_size_per_gpu %s, "
                   "gradient_accumulation_steps %s, world size %d: %s",
                   train, micro, accumulation, world_size, reason);
}

/* Fills in what is missing, by floor divisions nested as DeepSpeed nests them. */
static zb_status fill_in(const zb_batch_triangle *given, int64_t world, zb_batch_triangle *full)
{
    int train = given->train_batch_size != 0, micro = given->micro_batch_size != 0,
        accumulation = given->accumulation_steps != 0;
    *full = *given;
    if (train) {
        if (!accumulation && micro)
            full->accumulation_steps = given->train_batch_size / given->micro_batch_size / world;
        else if (!accumulation)
            full->accumulation_steps = 1;
        if (!micro) full->micro_batch_size = given->train_batch_size / world / full->accumulation_steps;
        return ZB_OK;
    }
    if (!micro)
        return refuse(given, (int)world,
                      "want train_batch_size or train_micro_batch_size_per_gpu to be given");
    if (!accumulation) full->accumulation_steps = 1;
    if (__builtin_mul_overflow(full->micro_batch_size, full->accumulation_steps, &full->train_batch_size) ||
        __builtin_mul_overflow(full->train_batch_size, world, &full->train_batch_size))
        return refuse(given, (int)world, "their product does not fit 64 bits");
    return ZB_OK;
}

zb_status zb_batch_resolve(const zb_batch_triangle *given, int world_size, zb_batch_triangle *resolved)
{
    if (world_size < 1) return zb_fail(ZB_INVALID_CONFIG, "world size is %d, want at least 1", world_size);
    if (given->train_batch_size < 0 || given->micro_batch_size < 0 || given->accumulation_steps < 0)
        return refuse(given, world_size, "want positive numbers");

    zb_batch_triangle full;
    ZB_TRY(fill_in(given, world_size, &full));
    char reason[192];
    if (full.micro_batch_size == 0) {
        snprintf(reason, sizeof reason,
                 "the micro-batch comes out as 0 (%" PRId64 " / %d / %" PRId64
                 " rounded down), want at least 1",
                 full.train_batch_size, world_size, full.accumulation_steps);
        return refuse(given, world_size, reason);
    }
    if (full.accumulation_steps == 0) {
        snprintf(reason, sizeof reason,
                 "accumulation steps come out as 0 (%" PRId64 " / %" PRId64
                 " / %d rounded down), want at least 1",
                 full.train_batch_size, full.micro_batch_size, world_size);
        return refuse(given, world_size, reason);
    }
    int64_t product;
    int overflow = __builtin_mul_overflow(full.micro_batch_size, full.accumulation_steps, &product) ||
                   __builtin_mul_overflow(product, (int64_t)world_size, &product);
    if (overflow || product != full.train_batch_size) {
        snprintf(reason, sizeof reason, "%" PRId64 " is not %" PRId64 " x %" PRId64 " x %d",
                 full.train_batch_size, full.micro_batch_size, full.accumulation_steps, world_size);
        return refuse(given, world_size, reason);
    }
    *resolved = full;
    return ZB_OK;
}
