/*
 * Which accesses are ordered. An allocation, which begins with a write of all of it, is cut into segments; of
 * each, the last write is known and the reads since, as far as none of them comes before another. That is
 * enough: what is ordered with these is ordered with all that came before them. So an access costs as many
 * comparisons as there are segments under it, however long the run.
 */
#include "sim/cuda/state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void si_stream_name(const si_stream *stream, char *text, size_t text_bytes)
{
    const char *given = si.options.stream_name != NULL
                            ? si.options.stream_name(si.options.user, stream->handle)
                            : NULL;
    if (given != NULL)
        snprintf(text, text_bytes, "%s", given);
    else if (stream->name != NULL && stream->owner->rank >= 0)
        snprintf(text, text_bytes, "%s (stream %d) of rank %d", stream->name, stream->owner_number,
                 stream->owner->rank);
    else if (stream->name != NULL)
        snprintf(text, text_bytes, "%s (stream %d)", stream->name, stream->owner_number);
    else if (stream->owner_number < 0)
        snprintf(text, text_bytes, "the default stream of device %d", stream->device);
    else if (stream->owner->rank >= 0)
        snprintf(text, text_bytes, "stream %d of rank %d", stream->owner_number, stream->owner->rank);
    else
        snprintf(text, text_bytes, "stream %d", stream->owner_number);
}

void si_describe_mark(const si_mark *mark, char *text, size_t text_bytes)
{
    char place[128];
    if (mark->stream != NULL)
        si_stream_name(mark->stream, place, sizeof place);
    else
        si_host_name(mark->host, place, sizeof place);
    snprintf(text, text_bytes, "%s%s%s%s on %s", mark->operation, mark->argument ? " (" : "",
             mark->argument ? mark->argument : "", mark->argument ? ")" : "", place);
}

static void report(const si_mark *old, int old_writes, const si_mark *new, int new_writes,
                   const si_range *range, size_t first, size_t end)
{
    char old_text[256], new_text[256], memory[128];
    si_describe_mark(old, old_text, sizeof old_text);
    si_describe_mark(new, new_text, sizeof new_text);
    si_describe_allocation(range->allocation, memory, sizeof memory);
    si.counters.races++;
    si_find(ZB_RACE, "race: %s %s and %s %s bytes %zu..%zu of %s, and nothing orders them", old_text,
            old_writes ? "writes" : "reads", new_text, new_writes ? "writes" : "reads", first, end - 1,
            memory);
}

static int ordered(const si_clock *now, const si_mark *old)
{
    return si_clock_get(now, old->slot) >= old->epoch;
}

/* Each operation is reported once per access, not once per segment. */
static int check_segment(const si_clock *now, const si_mark *mark, const si_range *range, const si_segment *s)
{
    const size_t first = s->first > range->first ? s->first : range->first;
    const size_t end = s->end < range->end ? s->end : range->end;
    si.counters.accesses_checked++;
    if (s->write.epoch != 0 && !ordered(now, &s->write)) {
        report(&s->write, 1, mark, range->writes, range, first, end);
        return 0;
    }
    for (int i = 0; range->writes && i < s->read_count; i++)
        if (!ordered(now, &s->reads[i])) {
            report(&s->reads[i], 0, mark, 1, range, first, end);
            return 0;
        }
    return 1;
}

/* --- segments --- */

static void insert_segment(si_allocation *a, int index, si_segment segment)
{
    if (a->segment_count == a->segment_capacity) {
        a->segment_capacity = a->segment_capacity == 0 ? 4 : 2 * a->segment_capacity;
        a->segments = si_grow(a->segments, (size_t)a->segment_capacity, sizeof *a->segments);
    }
    memmove(a->segments + index + 1, a->segments + index,
            (size_t)(a->segment_count - index) * sizeof *a->segments);
    a->segments[index] = segment;
    a->segment_count++;
}

static void remove_segments(si_allocation *a, int first, int count)
{
    if (count == 0) return;
    for (int i = first; i < first + count; i++) free(a->segments[i].reads);
    memmove(a->segments + first, a->segments + first + count,
            (size_t)(a->segment_count - first - count) * sizeof *a->segments);
    a->segment_count -= count;
}

/* The first segment that ends after `at`. */
static int segment_after(const si_allocation *a, size_t at)
{
    int low = 0, high = a->segment_count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (a->segments[middle].end > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Makes `at` a boundary. */
static void split(si_allocation *a, size_t at)
{
    const int index = segment_after(a, at);
    if (index == a->segment_count || a->segments[index].first >= at) return;
    si_segment right = a->segments[index];
    right.first = at;
    if (right.read_count > 0) {
        right.reads = si_calloc((size_t)right.read_count, sizeof *right.reads);
        memcpy(right.reads, a->segments[index].reads, (size_t)right.read_count * sizeof *right.reads);
    } else {
        right.reads = NULL;
    }
    right.read_capacity = right.read_count;
    a->segments[index].end = at;
    insert_segment(a, index + 1, right);
}

static void add_read(si_segment *s, const si_clock *now, const si_mark *mark)
{
    int kept = 0;
    for (int i = 0; i < s->read_count; i++)
        if (!ordered(now, &s->reads[i])) s->reads[kept++] = s->reads[i];
    s->read_count = kept;
    if (s->read_count == s->read_capacity) {
        s->read_capacity = 2 * s->read_capacity + 1;
        s->reads = si_grow(s->reads, (size_t)s->read_capacity, sizeof *s->reads);
    }
    s->reads[s->read_count++] = *mark;
}

static void record_read(si_allocation *a, const si_clock *now, const si_mark *mark, const si_range *range)
{
    split(a, range->first);
    split(a, range->end);
    for (int i = segment_after(a, range->first); i < a->segment_count && a->segments[i].first < range->end;
         i++)
        add_read(&a->segments[i], now, mark);
}

static void record_write(si_allocation *a, const si_mark *mark, const si_range *range)
{
    split(a, range->first);
    split(a, range->end);
    const int first = segment_after(a, range->first);
    int end = first;
    while (end < a->segment_count && a->segments[end].first < range->end) end++;
    remove_segments(a, first, end - first);
    insert_segment(a, first, (si_segment){ .first = range->first, .end = range->end, .write = *mark });
}

void si_check(const si_clock *now, const si_mark *mark, const si_range *range)
{
    si_allocation *a = range->allocation;
    si_mark named = *mark;
    named.argument = range->argument;
    for (int i = segment_after(a, range->first); i < a->segment_count && a->segments[i].first < range->end;
         i++)
        if (!check_segment(now, &named, range, &a->segments[i])) break;
    if (range->writes)
        record_write(a, &named, range);
    else
        record_read(a, now, &named, range);
}

void si_allocation_forget(si_allocation *a)
{
    remove_segments(a, 0, a->segment_count);
    free(a->segments);
    free(a);
}
