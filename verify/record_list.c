/* Observations of one step, kept with their values. */
#include "verify/record_list.h"

#include "verify/quantity.h"

#include <stdint.h>
#include <stdlib.h>
#include <zerobit/memory.h>

static zb_status reserve_values(zb_record_list *list, size_t bytes)
{
    if (list->values != NULL && bytes <= list->value_capacity - list->value_bytes) return ZB_OK;
    size_t needed, capacity;
    if (__builtin_add_overflow(list->value_bytes, bytes, &needed) ||
        __builtin_add_overflow(needed, needed / 2 + 4096, &capacity))
        return zb_fail(ZB_NO_MEMORY, "out of memory: a step with more values than an address can count");
    unsigned char *grown = zb_realloc(list->values, capacity);
    if (grown == NULL) return ZB_NO_MEMORY;
    list->values = grown;
    list->value_capacity = capacity;
    return ZB_OK;
}

zb_status zb_record_list_append(zb_record_list *list, const zb_observation *observation, void **values)
{
    size_t bytes, element_bytes = zb_dtype_bytes(observation->dtype);
    if (__builtin_mul_overflow(observation->numel, element_bytes, &bytes) || bytes > SIZE_MAX - 7)
        return zb_fail(ZB_NO_MEMORY, "out of memory: %zu values in one record", observation->numel);
    bytes = (bytes + 7) / 8 * 8;

    if (list->count == list->capacity) {
        size_t capacity = list->capacity + list->capacity / 2 + 64;
        zb_observation *grown = zb_realloc(list->records, capacity * sizeof *grown);
        if (grown == NULL) return ZB_NO_MEMORY;
        list->records = grown;
        list->capacity = capacity;
    }
    ZB_TRY(reserve_values(list, bytes));

    zb_observation *record = &list->records[list->count++];
    *record = *observation;
    /* The values may still move: until the list is sealed, data holds the offset. */
    record->data = (const void *)(uintptr_t)list->value_bytes;
    *values = list->values + list->value_bytes;
    list->value_bytes += bytes;
    return ZB_OK;
}

static int by_order(const void *a, const void *b)
{
    return zb_observation_order(a, b);
}

void zb_record_list_seal(zb_record_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        list->records[i].data = list->values + (uintptr_t)list->records[i].data;
    if (list->count > 1) qsort(list->records, list->count, sizeof *list->records, by_order);
}

void zb_record_list_clear(zb_record_list *list)
{
    list->count = list->value_bytes = 0;
}

void zb_record_list_destroy(zb_record_list *list)
{
    zb_free(list->records);
    zb_free(list->values);
    *list = (zb_record_list){ 0 };
}
