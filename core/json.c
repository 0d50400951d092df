/* JSON for humans on top of cJSON: see json.h for what is added to it. */
#include "core/json.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zerobit/memory.h>

struct zb_json {
    cJSON *root;
    char *path;
};

/* ---- from lenient to plain JSON --------------------------------------------------------------------- */

/*
 * One pass over the text that turns comments and trailing commas into spaces, so that every other byte
 * keeps its line and column, and refuses what cJSON would let through or explain badly.
 */
typedef struct scanner {
    char *text; /* changed in place; text[bytes] is NUL */
    size_t bytes;
    size_t at;
    const char *path;
    int depth;
    char last; /* the last significant character; '"' for a string, '0' for a word or number */
    size_t last_at;
} scanner;

static void line_and_column(const char *text, size_t at, size_t *line, size_t *column)
{
    *line = 1;
    *column = 1;
    for (size_t i = 0; i < at; i++) {
        if (text[i] == '\n') {
            *line += 1;
            *column = 1;
        } else {
            *column += 1;
        }
    }
}

static zb_status fail_at(const scanner *s, size_t at, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static zb_status fail_at(const scanner *s, size_t at, const char *format, ...)
{
    char what[256];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    size_t line, column;
    line_and_column(s->text, at, &line, &column);
    return zb_fail(ZB_INVALID_CONFIG, "%s:%zu:%zu: %s", s->path, line, column, what);
}

static void blank(scanner *s, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++)
        if (s->text[i] != '\n') s->text[i] = ' ';
}

static void significant(scanner *s, char kind)
{
    s->last = kind;
    s->last_at = s->at;
}

static void skip_line_comment(scanner *s)
{
    size_t from = s->at;
    while (s->at < s->bytes && s->text[s->at] != '\n') s->at++;
    blank(s, from, s->at);
}

static zb_status skip_block_comment(scanner *s)
{
    size_t from = s->at;
    for (s->at += 2; s->at + 1 < s->bytes; s->at++) {
        if (s->text[s->at] == '*' && s->text[s->at + 1] == '/') {
            s->at += 2;
            blank(s, from, s->at);
            return ZB_OK;
        }
    }
    return fail_at(s, from, "comment is not closed, want */");
}

static zb_status skip_string(scanner *s)
{
    size_t from = s->at;
    significant(s, '"');
    for (s->at++; s->at < s->bytes; s->at++) {
        char c = s->text[s->at];
        if (c == '"') {
            s->at++;
            return ZB_OK;
        }
        if ((unsigned char)c < 0x20) break;
        if (c != '\\') continue;
        if (strncmp(s->text + s->at, "\\u0000", 6) == 0)
            return fail_at(s, s->at, "string contains NUL (\\u0000), want text");
        if (s->at + 1 < s->bytes && (unsigned char)s->text[s->at + 1] >= 0x20) s->at++;
    }
    return fail_at(s, from, "string is not closed on its line, want \"");
}

static int is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '\'' ||
           (unsigned char)c >= 0x80;
}

/* Length of the JSON number at text; 0 when there is none. text ends with a NUL. */
static size_t number_length(const char *text)
{
    size_t i = text[0] == '-' ? 1 : 0;
    if (!is_digit(text[i])) return 0;
    if (text[i] == '0') {
        i++;
    } else {
        while (is_digit(text[i])) i++;
    }
    if (text[i] == '.') {
        if (!is_digit(text[++i])) return 0;
        while (is_digit(text[i])) i++;
    }
    if (text[i] == 'e' || text[i] == 'E') {
        i++;
        if (text[i] == '+' || text[i] == '-') i++;
        if (!is_digit(text[i])) return 0;
        while (is_digit(text[i])) i++;
    }
    return i;
}

static zb_status skip_word(scanner *s)
{
    const char *word = s->text + s->at;
    size_t length = 0;
    while (is_word(word[length]) || is_digit(word[length]) || strchr("+-.", word[length]) != NULL) {
        if (word[length] == '\0') break;
        length++;
    }
    int known = (length == 4 && (memcmp(word, "true", 4) == 0 || memcmp(word, "null", 4) == 0)) ||
                (length == 5 && memcmp(word, "false", 5) == 0);
    int numeric = is_digit(word[0]) || strchr("+-.", word[0]) != NULL;
    int shown = length < 40 ? (int)length : 40;
    if (numeric && number_length(word) != length)
        return fail_at(s, s->at, "'%.*s' is not a number of JSON", shown, word);
    /* cJSON copies a number into 63 characters. */
    if (numeric && length > 63) return fail_at(s, s->at, "number of %zu characters, want at most 63", length);
    if (!numeric && !known)
        return fail_at(s, s->at,
                       "'%.*s' is not true, false, null or a number; keys and strings need double quotes",
                       shown, word);
    significant(s, '0');
    s->at += length;
    return ZB_OK;
}

static zb_status skip_punctuation(scanner *s)
{
    char c = s->text[s->at];
    if (c == '{' || c == '[') {
        if (++s->depth > ZB_JSON_MAX_DEPTH)
            return fail_at(s, s->at, "nested deeper than %d levels", ZB_JSON_MAX_DEPTH);
    } else if (c == '}' || c == ']') {
        s->depth--;
        if (s->last == ',') s->text[s->last_at] = ' ';
    } else if (c == ',' && (s->last == 0 || strchr(",:[{", s->last) != NULL)) {
        return fail_at(s, s->at, "unexpected ',', want a value before it");
    }
    significant(s, c);
    s->at++;
    return ZB_OK;
}

static zb_status make_plain(scanner *s)
{
    /* A byte order mark is cJSON's to skip. */
    if (s->bytes >= 3 && memcmp(s->text, "\xef\xbb\xbf", 3) == 0) s->at = 3;
    while (s->at < s->bytes) {
        char c = s->text[s->at], next = s->text[s->at + 1];
        if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
            s->at++;
        } else if (c == '#' || (c == '/' && next == '/')) {
            skip_line_comment(s);
        } else if (c == '/' && next == '*') {
            ZB_TRY(skip_block_comment(s));
        } else if (c == '"') {
            ZB_TRY(skip_string(s));
        } else if (is_word(c) || is_digit(c) || c == '-' || c == '+' || c == '.') {
            ZB_TRY(skip_word(s));
        } else if (c > 0x20 && c < 0x7f) {
            ZB_TRY(skip_punctuation(s));
        } else {
            return fail_at(s, s->at, "unexpected byte 0x%02x, want JSON text", (unsigned char)c);
        }
    }
    if (s->last == 0) return zb_fail(ZB_INVALID_CONFIG, "%s: is empty, want a JSON object", s->path);
    return ZB_OK;
}

static zb_status parse_plain(scanner *s, cJSON **root_p)
{
    const char *end = NULL;
    /* cJSON returns NULL for bad text and for lack of memory alike; malloc leaves this trace. Its hooks would
     * tell more, but they are the whole process's: a host that uses cJSON itself must find its own there. */
    errno = 0;
    cJSON *root = cJSON_ParseWithLengthOpts(s->text, s->bytes + 1, &end, 1);
    if (root != NULL) {
        *root_p = root;
        return ZB_OK;
    }
    if (errno == ENOMEM) return zb_fail(ZB_NO_MEMORY, "%s: out of memory while parsing", s->path);
    size_t at = end != NULL ? (size_t)(end - s->text) : s->bytes;
    while (at < s->bytes && strchr(" \t\r\n", s->text[at]) != NULL) at++;
    if (at >= s->bytes) return fail_at(s, s->bytes, "the text ends too early; a bracket or value is missing");
    return fail_at(s, at, "JSON syntax error at '%c'", s->text[at]);
}

/* ---- checks on the tree ----------------------------------------------------------------------------- */

static const char *file_of(const zb_json_at *at)
{
    while (at->parent != NULL) at = at->parent;
    return at->name;
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static zb_status check_duplicates(const zb_json_at *object)
{
    size_t count = 0;
    for (const cJSON *child = object->value->child; child != NULL; child = child->next) count++;
    if (count < 2) return ZB_OK;
    const char **keys = zb_alloc_array(count, sizeof *keys);
    if (keys == NULL) return ZB_NO_MEMORY;
    size_t i = 0;
    for (const cJSON *child = object->value->child; child != NULL; child = child->next)
        keys[i++] = child->string;
    qsort(keys, count, sizeof *keys, compare_keys);

    zb_status status = ZB_OK;
    for (i = 1; i < count && status == ZB_OK; i++) {
        if (strcmp(keys[i - 1], keys[i]) != 0) continue;
        zb_json_at twice = zb_json_member(object, keys[i]);
        char key[256];
        zb_json_describe(&twice, key, sizeof key);
        status = zb_fail(ZB_INVALID_CONFIG, "%s: %s: is given more than once, want each key once",
                         file_of(object), key);
    }
    zb_free(keys);
    return status;
}

static zb_status check_tree(const zb_json_at *at)
{
    if (cJSON_IsNumber(at->value) && !isfinite(at->value->valuedouble))
        return zb_json_fail(at, ZB_INVALID_CONFIG, "a finite number");
    if (cJSON_IsObject(at->value)) ZB_TRY(check_duplicates(at));
    for (zb_json_at child = zb_json_first(at); child.value != NULL; child = zb_json_next(&child))
        ZB_TRY(check_tree(&child));
    return ZB_OK;
}

/* ---- a whole text ----------------------------------------------------------------------------------- */

void zb_json_destroy(zb_json *json)
{
    if (json == NULL) return;
    cJSON_Delete(json->root);
    zb_free(json->path);
    zb_free(json);
}

const char *zb_json_path(const zb_json *json)
{
    return json->path;
}

static zb_status parse(const char *text, size_t text_bytes, const char *path, zb_json **json_p)
{
    zb_status status = ZB_NO_MEMORY;
    scanner s = { .bytes = text_bytes, .path = path };
    zb_json *json = zb_alloc(sizeof *json);
    if (json == NULL) return ZB_NO_MEMORY;
    json->path = zb_strdup(path);
    if (json->path == NULL) goto fail;
    s.text = zb_alloc(text_bytes + 1);
    if (s.text == NULL) goto fail;
    if (text_bytes > 0) memcpy(s.text, text, text_bytes);

    status = make_plain(&s);
    if (status == ZB_OK) status = parse_plain(&s, &json->root);
    if (status != ZB_OK) goto fail;
    zb_json_at root = zb_json_root(json);
    status = check_tree(&root);
    if (status != ZB_OK) goto fail;
    zb_free(s.text);
    *json_p = json;
    return ZB_OK;
fail:
    zb_free(s.text);
    zb_json_destroy(json);
    return status;
}

zb_status zb_json_parse(const char *text, size_t text_bytes, const char *path, zb_json **json_p)
{
    if (path == NULL) path = "<memory>";
    if (text_bytes > ZB_JSON_MAX_BYTES)
        return zb_fail(ZB_INVALID_CONFIG, "%s: is %zu bytes, want at most %d", path, text_bytes,
                       ZB_JSON_MAX_BYTES);
    return parse(text, text_bytes, path, json_p);
}

/* Reads to the end rather than trusting a size, so that a pipe works as well. */
static zb_status read_all(int file, const char *path, size_t max_bytes, char **text_p, size_t *bytes_p)
{
    size_t capacity = 16 * 1024, used = 0;
    char *text = zb_alloc(capacity);
    if (text == NULL) return ZB_NO_MEMORY;
    zb_status status = ZB_OK;
    for (;;) {
        ssize_t got = read(file, text + used, capacity - used);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) status = zb_fail(ZB_IO, "%s: cannot be read: %s", path, strerror(errno));
        if (got <= 0) break;
        used += (size_t)got;
        if (used > max_bytes) {
            status = zb_fail(ZB_IO, "%s: is longer than %zu bytes, the most a JSON file may have", path,
                             max_bytes);
            break;
        }
        if (used < capacity) continue;
        char *larger = zb_realloc(text, capacity * 2);
        if (larger == NULL) {
            status = ZB_NO_MEMORY;
            break;
        }
        text = larger;
        capacity *= 2;
    }
    if (status != ZB_OK) {
        zb_free(text);
        return status;
    }
    *text_p = text;
    *bytes_p = used;
    return ZB_OK;
}

zb_status zb_json_load(const char *path, zb_json **json_p)
{
    return zb_json_load_up_to(ZB_JSON_MAX_BYTES, path, json_p);
}

zb_status zb_json_load_up_to(size_t max_bytes, const char *path, zb_json **json_p)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return zb_fail(ZB_IO, "%s: cannot be opened: %s", path, strerror(errno));
    char *text = NULL;
    size_t bytes = 0;
    struct stat info;
    zb_status status;
    if (fstat(file, &info) == 0 && S_ISDIR(info.st_mode))
        status = zb_fail(ZB_IO, "%s: is a directory, want a JSON file", path);
    else
        status = read_all(file, path, max_bytes, &text, &bytes);
    close(file);
    if (status == ZB_OK) status = parse(text, bytes, path, json_p);
    zb_free(text);
    return status;
}

/* ---- places ----------------------------------------------------------------------------------------- */

zb_json_at zb_json_root(const zb_json *json)
{
    return (zb_json_at){ .name = json->path, .index = -1, .value = json->root };
}

zb_json_at zb_json_member(const zb_json_at *object, const char *key)
{
    zb_json_at member = { .parent = object, .name = key, .index = -1 };
    if (cJSON_IsObject(object->value)) member.value = cJSON_GetObjectItemCaseSensitive(object->value, key);
    return member;
}

static zb_json_at child_at(const zb_json_at *container, const cJSON *value, int64_t index)
{
    int in_array = cJSON_IsArray(container->value);
    return (zb_json_at){ .parent = container,
                         .name = value != NULL ? value->string : NULL,
                         .index = in_array ? index : -1,
                         .value = value };
}

zb_json_at zb_json_first(const zb_json_at *container)
{
    int holds = cJSON_IsObject(container->value) || cJSON_IsArray(container->value);
    return child_at(container, holds ? container->value->child : NULL, 0);
}

zb_json_at zb_json_next(const zb_json_at *child)
{
    return child_at(child->parent, child->value->next, child->index + 1);
}

int zb_json_given(const zb_json_at *at)
{
    return at->value != NULL && !cJSON_IsNull(at->value);
}

void zb_json_describe(const zb_json_at *at, char *text, size_t text_bytes)
{
    if (at->parent == NULL) {
        if (text_bytes > 0) text[0] = '\0';
        return;
    }
    zb_json_describe(at->parent, text, text_bytes);
    size_t used = strlen(text);
    if (at->index >= 0)
        snprintf(text + used, text_bytes - used, "[%lld]", (long long)at->index);
    else
        snprintf(text + used, text_bytes - used, "%s%s", used > 0 ? "." : "", at->name);
    /* A key is the user's text: keep the message on one line. */
    for (char *c = text; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
}

void zb_json_describe_value(const zb_json_at *at, char *text, size_t text_bytes)
{
    if (at->value == NULL) {
        snprintf(text, text_bytes, "missing");
        return;
    }
    if (cJSON_IsNumber(at->value) && !isfinite(at->value->valuedouble)) { /* cJSON would print null */
        snprintf(text, text_bytes, "out of the range of a double");
        return;
    }
    /* cJSON asks for room for 5 bytes more than it writes. */
    char printed[120];
    if (cJSON_PrintPreallocated((cJSON *)at->value, printed, (int)sizeof printed, 0))
        snprintf(text, text_bytes, "%s", printed);
    else if (cJSON_IsString(at->value))
        snprintf(text, text_bytes, "a string of %zu bytes", strlen(at->value->valuestring));
    else
        snprintf(text, text_bytes, "%s of %d %s", cJSON_IsObject(at->value) ? "an object" : "an array",
                 cJSON_GetArraySize(at->value), cJSON_IsObject(at->value) ? "keys" : "elements");
}

zb_status zb_json_fail(const zb_json_at *at, zb_status status, const char *want, ...)
{
    char key[256], value[160], wanted[640];
    zb_json_describe(at, key, sizeof key);
    zb_json_describe_value(at, value, sizeof value);
    va_list args;
    va_start(args, want);
    vsnprintf(wanted, sizeof wanted, want, args);
    va_end(args);
    return zb_fail(status, "%s: %s%sis %s, want %s", file_of(at), key, key[0] != '\0' ? ": " : "", value,
                   wanted);
}

/* ---- typed reads ------------------------------------------------------------------------------------ */

zb_status zb_json_object(const zb_json_at *at)
{
    return cJSON_IsObject(at->value) ? ZB_OK : zb_json_fail(at, ZB_INVALID_CONFIG, "an object");
}

zb_status zb_json_array(const zb_json_at *at, size_t *count)
{
    if (!cJSON_IsArray(at->value)) return zb_json_fail(at, ZB_INVALID_CONFIG, "an array");
    *count = (size_t)cJSON_GetArraySize(at->value);
    return ZB_OK;
}

zb_status zb_json_bool(const zb_json_at *at, int *out)
{
    if (!cJSON_IsBool(at->value)) return zb_json_fail(at, ZB_INVALID_CONFIG, "true or false");
    *out = cJSON_IsTrue(at->value);
    return ZB_OK;
}

zb_status zb_json_int64(const zb_json_at *at, int64_t min, int64_t max, int64_t *out)
{
    ZB_ASSERT(min >= -ZB_JSON_MAX_INTEGER && max <= ZB_JSON_MAX_INTEGER);
    double value = cJSON_IsNumber(at->value) ? at->value->valuedouble : NAN;
    if (!(value >= (double)min && value <= (double)max && value == floor(value)))
        return zb_json_fail(at, ZB_INVALID_CONFIG, "an integer from %lld to %lld", (long long)min,
                            (long long)max);
    *out = (int64_t)value;
    return ZB_OK;
}

zb_status zb_json_double(const zb_json_at *at, double *out)
{
    if (!cJSON_IsNumber(at->value)) return zb_json_fail(at, ZB_INVALID_CONFIG, "a number");
    *out = at->value->valuedouble;
    return ZB_OK;
}

zb_status zb_json_string(const zb_json_at *at, const char **out)
{
    if (!cJSON_IsString(at->value)) return zb_json_fail(at, ZB_INVALID_CONFIG, "a string");
    *out = at->value->valuestring;
    return ZB_OK;
}

zb_status zb_json_check_keys(const zb_json_at *object, const char *const *allowed)
{
    for (zb_json_at child = zb_json_first(object); child.value != NULL; child = zb_json_next(&child)) {
        const char *const *key = allowed;
        while (*key != NULL && strcmp(*key, child.name) != 0) key++;
        if (*key != NULL) continue;
        char list[1024];
        size_t used = 0;
        list[0] = '\0';
        for (key = allowed; *key != NULL && used < sizeof list; key++)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", used > 0 ? ", " : "", *key);
        char path[256];
        zb_json_describe(&child, path, sizeof path);
        return zb_fail(ZB_INVALID_CONFIG, "%s: %s: is not a key that is known here, want one of: %s",
                       file_of(object), path, list);
    }
    return ZB_OK;
}
