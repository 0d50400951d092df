/*
 * The bytes of a trace file, shared by writer and reader; docs/trace.md says the same in prose.
 *
 *   file head | header text, padded | check | record ... | end record
 *   record:     record head | check | values, padded | check
 *   end record: record head with kind END, numel = number of records | check
 *
 * Everything is little-endian and padded with zeros to 8 bytes. A check is the running hash of every byte of
 * the file before it, so that a record that is damaged, lost, doubled or moved is found at that record.
 */
#ifndef VERIFY_TRACE_FORMAT_H
#define VERIFY_TRACE_FORMAT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "trace files are written as they lie in memory");

#define ZB_TRACE_MAGIC "ZBTRACE\n"
enum {
    ZB_TRACE_VERSION = 2, /* 1: without contributions and routes */
    ZB_TRACE_RECORD = 0x44434552 /* "RECD" */,
    ZB_TRACE_END = 0x53444e45 /* "ENDS" */
};

typedef struct zb_trace_file_head {
    char magic[8];
    uint32_t version;
    uint32_t header_bytes; /* of the JSON text, without padding */
} zb_trace_file_head;
_Static_assert(sizeof(zb_trace_file_head) == 16, "no padding inside");

typedef struct zb_trace_record_head {
    uint32_t kind;
    uint32_t quantity; /* zb_quantity */
    int64_t step, micro;
    int32_t rank, param;
    uint32_t dtype;    /* zb_dtype */
    uint32_t reserved; /* 0 */
    uint64_t first, numel;
} zb_trace_record_head;
_Static_assert(sizeof(zb_trace_record_head) == 56, "no padding inside");

static inline uint64_t zb_trace_padded(uint64_t bytes)
{
    return (bytes + 7) / 8 * 8;
}

/*
 * One step per 64-bit word. For any state it is a bijection of the word, and for any word a bijection of the
 * state: damage within one word always changes the hash. `bytes` is a multiple of 8.
 */
static inline uint64_t zb_trace_hash(uint64_t hash, const void *data, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 8) {
        uint64_t word;
        memcpy(&word, (const unsigned char *)data + at, 8);
        hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 32;
    }
    return hash;
}

#endif
