/* Which elements of a tensor have been shown, as intervals. */
#ifndef VERIFY_COVERAGE_H
#define VERIFY_COVERAGE_H

#include <stddef.h>
#include <zerobit/status.h>

typedef struct zb_interval {
    size_t first, end;
} zb_interval;

typedef struct zb_coverage {
    zb_interval *intervals; /* ascending, with gaps between them */
    size_t count, capacity;
} zb_coverage;

zb_status zb_coverage_add(zb_coverage *coverage, size_t first, size_t numel);
/** The first element below `numel` that has not been shown; numel when all have. */
size_t zb_coverage_gap(const zb_coverage *coverage, size_t numel);
/** Forget everything, keep the memory. */
void zb_coverage_clear(zb_coverage *coverage);
void zb_coverage_destroy(zb_coverage *coverage);

#endif
