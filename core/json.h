/*
 * JSON text to a tree, and typed reads of that tree whose errors name the file, the key's path, the value
 * found and what was wanted. For the config and the model description; not for writing JSON.
 *
 * cJSON parses. What it does not do is done here: comments (//, #, slash-star) and trailing commas are
 * accepted, since DeepSpeed reads Hjson; syntax errors carry line and column; duplicate keys, NUL, numbers
 * that are not JSON or not finite, raw line breaks in strings and deep nesting are refused.
 */
#ifndef ZEROBIT_CORE_JSON_H
#define ZEROBIT_CORE_JSON_H

#include <stddef.h>
#include <stdint.h>
#include <cjson/cJSON.h>
#include <zerobit/status.h>

enum { ZB_JSON_MAX_BYTES = 16 * 1024 * 1024, ZB_JSON_MAX_DEPTH = 64 };
/* Largest integer up to which every integer is a double, so that what is read is what was written. */
#define ZB_JSON_MAX_INTEGER ((int64_t)1 << 53)

/* A parsed text. The strings of its nodes live as long as it does. */
typedef struct zb_json zb_json;

/** `path` is used in messages only; NULL means "<memory>". On success the caller owns *json_p. */
zb_status zb_json_parse(const char *text, size_t text_bytes, const char *path, zb_json **json_p);
/** ZB_IO when the file cannot be read or is larger than ZB_JSON_MAX_BYTES, ZB_INVALID_CONFIG when it is not
 * JSON. */
zb_status zb_json_load(const char *path, zb_json **json_p);
/** For data rather than settings: with another limit than ZB_JSON_MAX_BYTES. */
zb_status zb_json_load_up_to(size_t max_bytes, const char *path, zb_json **json_p);
/** NULL is fine. */
void zb_json_destroy(zb_json *json);
const char *zb_json_path(const zb_json *json);

/*
 * A place in the tree: a value together with the way to it. Lives on the stack; `parent` and the tree must
 * outlive it. The value is NULL when the key is absent.
 */
typedef struct zb_json_at {
    const struct zb_json_at *parent; /* NULL: the root                        */
    const char *name;                /* key in the parent; file, for the root */
    int64_t index;                   /* in an array; -1 elsewhere             */
    const cJSON *value;
} zb_json_at;

zb_json_at zb_json_root(const zb_json *json);
/** The member `key` of an object; absent when the object lacks it, or is itself absent or no object. */
zb_json_at zb_json_member(const zb_json_at *object, const char *key);
/** Members of an object or elements of an array in the text's order; absent after the last. */
zb_json_at zb_json_first(const zb_json_at *container);
zb_json_at zb_json_next(const zb_json_at *child);

/** True when the key is there and not null. */
int zb_json_given(const zb_json_at *at);

/** `FILE: KEY.PATH: is VALUE, want <formatted text>`; returns `status`. An absent key reads "is missing". */
zb_status zb_json_fail(const zb_json_at *at, zb_status status, const char *want, ...)
    __attribute__((format(printf, 3, 4)));
/** `KEY.PATH` into text, cut at its end. "" for the root. */
void zb_json_describe(const zb_json_at *at, char *text, size_t text_bytes);
/** The value as one short line, "missing" when absent. */
void zb_json_describe_value(const zb_json_at *at, char *text, size_t text_bytes);

/*
 * Reads. Each refuses an absent key, null and another type, and leaves *out untouched then. Integers may be
 * written as 5e8; `max` must not exceed ZB_JSON_MAX_INTEGER.
 */
zb_status zb_json_object(const zb_json_at *at);
zb_status zb_json_array(const zb_json_at *at, size_t *count);
zb_status zb_json_bool(const zb_json_at *at, int *out);
zb_status zb_json_int64(const zb_json_at *at, int64_t min, int64_t max, int64_t *out);
zb_status zb_json_double(const zb_json_at *at, double *out);
/** *out points into the tree. */
zb_status zb_json_string(const zb_json_at *at, const char **out);

/** Refuses a member of `object` that is not in the NULL-terminated list, naming it and the list. */
zb_status zb_json_check_keys(const zb_json_at *object, const char *const *allowed);

#endif
