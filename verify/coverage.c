/* Which elements of a tensor have been shown, as intervals. */
#include "verify/coverage.h"

#include <string.h>
#include <zerobit/memory.h>

zb_status zb_coverage_add(zb_coverage *coverage, size_t first, size_t numel)
{
    if (numel == 0) return ZB_OK;
    zb_interval merged = { first, first + numel };

    /* [low, high): the intervals that touch the new one and melt into it. */
    zb_interval *intervals = coverage->intervals;
    size_t low = 0;
    while (low < coverage->count && intervals[low].end < merged.first) low++;
    size_t high = low;
    for (; high < coverage->count && intervals[high].first <= merged.end; high++) {
        if (intervals[high].first < merged.first) merged.first = intervals[high].first;
        if (intervals[high].end > merged.end) merged.end = intervals[high].end;
    }

    if (low == high && coverage->count == coverage->capacity) {
        size_t capacity = 2 * coverage->capacity + 4;
        intervals = zb_realloc(intervals, capacity * sizeof *intervals);
        if (intervals == NULL) return ZB_NO_MEMORY;
        coverage->intervals = intervals;
        coverage->capacity = capacity;
    }
    memmove(intervals + low + 1, intervals + high, (coverage->count - high) * sizeof *intervals);
    intervals[low] = merged;
    coverage->count = coverage->count + 1 - (high - low);
    return ZB_OK;
}

size_t zb_coverage_gap(const zb_coverage *coverage, size_t numel)
{
    if (coverage->count == 0 || coverage->intervals[0].first > 0) return 0;
    return coverage->intervals[0].end < numel ? coverage->intervals[0].end : numel;
}

void zb_coverage_clear(zb_coverage *coverage)
{
    coverage->count = 0;
}

void zb_coverage_destroy(zb_coverage *coverage)
{
    zb_free(coverage->intervals);
    *coverage = (zb_coverage){ 0 };
}
