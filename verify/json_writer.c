/* JSON text, written front to back. */
#include "verify/json_writer.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

static void append(zb_json_writer *writer, const char *text, size_t bytes)
{
    if (writer->status != ZB_OK) return;
    if (writer->capacity - writer->bytes < bytes + 1) {
        size_t capacity = 2 * (writer->capacity + bytes) + 64;
        char *grown = zb_realloc(writer->text, capacity);
        if (grown == NULL) {
            writer->status = ZB_NO_MEMORY;
            return;
        }
        writer->text = grown;
        writer->capacity = capacity;
    }
    memcpy(writer->text + writer->bytes, text, bytes);
    writer->bytes += bytes;
    writer->text[writer->bytes] = '\0';
}

static void append_text(zb_json_writer *writer, const char *text)
{
    append(writer, text, strlen(text));
}

size_t zb_utf8_length(const char *text)
{
    const unsigned char *c = (const unsigned char *)text;
    if (c[0] < 0x80) return 1;
    /* What the second byte may be tells overlong forms, surrogates and what is above U+10FFFF. */
    unsigned low = 0x80, high = 0xbf;
    size_t length;
    if (c[0] >= 0xc2 && c[0] <= 0xdf) {
        length = 2;
    } else if ((c[0] & 0xf0) == 0xe0) {
        length = 3;
        if (c[0] == 0xe0) low = 0xa0;
        if (c[0] == 0xed) high = 0x9f;
    } else if (c[0] >= 0xf0 && c[0] <= 0xf4) {
        length = 4;
        if (c[0] == 0xf0) low = 0x90;
        if (c[0] == 0xf4) high = 0x8f;
    } else {
        return 0;
    }
    if (c[1] < low || c[1] > high) return 0;
    for (size_t i = 2; i < length; i++)
        if ((c[i] & 0xc0) != 0x80) return 0;
    return length;
}

/* Paths and keys are the user's, in any encoding: a byte that is not UTF-8 becomes U+FFFD, as JSON must be
 * UTF-8. */
static void append_quoted(zb_json_writer *writer, const char *text)
{
    append(writer, "\"", 1);
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0';) {
        size_t length = zb_utf8_length((const char *)c);
        if (*c == '"' || *c == '\\') {
            append(writer, (char[]){ '\\', (char)*c }, 2);
        } else if (*c < 0x20) {
            char escaped[8];
            append(writer, escaped, (size_t)snprintf(escaped, sizeof escaped, "\\u%04x", *c));
        } else if (length == 0) {
            append_text(writer, "\\ufffd");
        } else {
            append(writer, (const char *)c, length);
        }
        c += length > 0 ? length : 1;
    }
    append(writer, "\"", 1);
}

static void new_line(zb_json_writer *writer)
{
    if (!writer->indented) return;
    append(writer, "\n", 1);
    for (int i = 0; i < writer->depth; i++) append(writer, "  ", 2);
}

/* What stands before a value: comma, line break, key. */
static void begin_value(zb_json_writer *writer, const char *key)
{
    if (writer->has_member) append(writer, ",", 1);
    if (writer->depth > 0) new_line(writer);
    if (key != NULL) {
        append_quoted(writer, key);
        append_text(writer, writer->indented ? ": " : ":");
    }
    writer->has_member = 1;
}

static void begin_container(zb_json_writer *writer, const char *key, const char *bracket)
{
    begin_value(writer, key);
    append_text(writer, bracket);
    writer->depth++;
    writer->has_member = 0;
}

static void end_container(zb_json_writer *writer, const char *bracket)
{
    ZB_ASSERT(writer->depth > 0);
    writer->depth--;
    if (writer->has_member) new_line(writer);
    append_text(writer, bracket);
    writer->has_member = 1;
}

void zb_json_begin_object(zb_json_writer *writer, const char *key)
{
    begin_container(writer, key, "{");
}
void zb_json_end_object(zb_json_writer *writer)
{
    end_container(writer, "}");
}
void zb_json_begin_array(zb_json_writer *writer, const char *key)
{
    begin_container(writer, key, "[");
}
void zb_json_end_array(zb_json_writer *writer)
{
    end_container(writer, "]");
}

void zb_json_put_string(zb_json_writer *writer, const char *key, const char *value)
{
    begin_value(writer, key);
    if (value != NULL)
        append_quoted(writer, value);
    else
        append_text(writer, "null");
}

void zb_json_put_int(zb_json_writer *writer, const char *key, int64_t value)
{
    char digits[32];
    begin_value(writer, key);
    append(writer, digits, (size_t)snprintf(digits, sizeof digits, "%" PRId64, value));
}

void zb_json_put_uint(zb_json_writer *writer, const char *key, uint64_t value)
{
    char digits[32];
    begin_value(writer, key);
    append(writer, digits, (size_t)snprintf(digits, sizeof digits, "%" PRIu64, value));
}

void zb_json_put_double(zb_json_writer *writer, const char *key, double value)
{
    char digits[32];
    begin_value(writer, key);
    if (isfinite(value))
        append(writer, digits, (size_t)snprintf(digits, sizeof digits, "%.17g", value));
    else
        append_text(writer, "null");
}

void zb_json_put_bool(zb_json_writer *writer, const char *key, int value)
{
    begin_value(writer, key);
    append_text(writer, value ? "true" : "false");
}

zb_status zb_json_writer_finish(zb_json_writer *writer)
{
    ZB_ASSERT(writer->depth == 0);
    return writer->status;
}

void zb_json_writer_destroy(zb_json_writer *writer)
{
    zb_free(writer->text);
    *writer = (zb_json_writer){ 0 };
}
