/* Observations of one step, kept with their values: what a trace writer gathers and a reader hands out. */
#ifndef VERIFY_RECORD_LIST_H
#define VERIFY_RECORD_LIST_H

#include <stddef.h>
#include <zerobit/observe.h>

typedef struct zb_record_list {
    zb_observation *records; /* data is set by zb_record_list_seal */
    size_t count, capacity;
    unsigned char *values; /* of all records, each at a multiple of 8 */
    size_t value_bytes, value_capacity;
} zb_record_list;

/** Append a record whose values (numel * bytes of its dtype) the caller writes to *values, valid until the
 * next call. */
zb_status zb_record_list_append(zb_record_list *list, const zb_observation *observation, void **values);
/** No record will follow: set every record's data, and sort. */
void zb_record_list_seal(zb_record_list *list);
/** Forget the records, keep the memory. */
void zb_record_list_clear(zb_record_list *list);
void zb_record_list_destroy(zb_record_list *list);

#endif
