/*
 * Numbers of a recorded run (docs/replay.md): fp32 bits in the JSON text, or tensors of safetensors files
 * beside it, which are opened once.
 */
#ifndef ZB_CORE_RUN_VALUES_H
#define ZB_CORE_RUN_VALUES_H

#include <stddef.h>
#include <zerobit/status.h>

#include "core/json.h"

typedef struct zb_run_values {
    const char *path;          /* of the JSON text; borrowed */
    struct zb_run_file *files; /* [count] owned */
    size_t count;
} zb_run_values;

void zb_run_values_close(zb_run_values *values);

/* How many numbers stand at a place. Refuses what holds none. */
zb_status zb_run_values_count(zb_run_values *values, const zb_json_at *at, size_t *numel);
/* Refuses another number than `want`. */
zb_status zb_run_values_expect(zb_run_values *values, const zb_json_at *at, size_t want);
/* out: as many as counted. */
zb_status zb_run_values_read(zb_run_values *values, const zb_json_at *at, float *out);

#endif
