/*
 * JSON text, written front to back: for reports, for what `inspect` prints, for the header of a trace. cJSON
 * reads; this writes, because doubles must read back exactly and integers of 64 bits must stay what they are.
 *
 * The first failure sticks: call on, and look at what zb_json_writer_finish returns. `key` is NULL inside an
 * array and for the outermost value.
 */
#ifndef VERIFY_JSON_WRITER_H
#define VERIFY_JSON_WRITER_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/status.h>

typedef struct zb_json_writer {
    char *text; /* owned; NUL-terminated once finished */
    size_t bytes, capacity;
    int depth;
    int indented;   /* one member per line; otherwise all on one line */
    int has_member; /* the container being written is not empty */
    zb_status status;
} zb_json_writer;

void zb_json_begin_object(zb_json_writer *writer, const char *key);
void zb_json_end_object(zb_json_writer *writer);
void zb_json_begin_array(zb_json_writer *writer, const char *key);
void zb_json_end_array(zb_json_writer *writer);
void zb_json_put_string(zb_json_writer *writer, const char *key, const char *value); /* NULL: null */
void zb_json_put_int(zb_json_writer *writer, const char *key, int64_t value);
void zb_json_put_uint(zb_json_writer *writer, const char *key, uint64_t value);
void zb_json_put_double(zb_json_writer *writer, const char *key, double value); /* not finite: null */
void zb_json_put_bool(zb_json_writer *writer, const char *key, int value);

/** Bytes of the UTF-8 character at `text`, or 0 when there is none. A NUL ends the text and is never a
 * continuation. */
size_t zb_utf8_length(const char *text);

/** Ends the text. On failure nothing may be used of it but zb_json_writer_destroy. */
zb_status zb_json_writer_finish(zb_json_writer *writer);
void zb_json_writer_destroy(zb_json_writer *writer);

#endif
