/* The source of an order as one line of text, and back. */
#include <zerobit/orders.h>

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

#include "orders/text.h"

/* --- reading --- */

/* What is known to exist and cannot be told in advance. */
static const struct {
    const char *name, *why;
} unpredictable[] = {
    { "nccl-pat", "the order of NCCL's PAT algorithm has not been worked out; set NCCL_ALGO=Ring" },
    { "nccl-nvls", "the switch adds, in an order that is not documented and varies; set NCCL_ALGO=Ring" },
    { "nccl-nvlstree", "the switch adds, in an order that is not documented and varies; set NCCL_ALGO=Ring" },
    { "nccl-collnet", "the network adds, in an order of its own; set NCCL_ALGO=Ring" },
    { "nccl-symmetric",
      "kernels for symmetric windows have an order of their own; do not register the buffers as windows" },
    { "mpi-nonoverlapping",
      "it is the communicator's reduce, then a broadcast or scatter; name mpi-linear or mpi-default" },
};

typedef struct reader {
    const char *at;
    zb_order_source *source;
} reader;

/* The next word, up to a blank. Its length is 0 at the end. */
static size_t next_word(reader *r)
{
    while (isspace((unsigned char)*r->at)) r->at++;
    size_t length = 0;
    while (r->at[length] != '\0' && !isspace((unsigned char)r->at[length])) length++;
    return length;
}

static int is_word(const char *word, size_t length, const char *text)
{
    return strlen(text) == length && memcmp(word, text, length) == 0;
}

static zb_status read_algorithm(reader *r)
{
    const size_t length = next_word(r);
    for (int a = 0; a < ZB_ALGORITHM_COUNT; a++) {
        if (!is_word(r->at, length, zb_algorithm_name((zb_algorithm)a))) continue;
        r->source->algorithm = (zb_algorithm)a;
        r->at += length;
        return ZB_OK;
    }
    for (size_t i = 0; i < sizeof unpredictable / sizeof unpredictable[0]; i++)
        if (is_word(r->at, length, unpredictable[i].name))
            return zb_fail(ZB_UNSUPPORTED, "the order \"%s\" cannot be predicted: %s", unpredictable[i].name,
                           unpredictable[i].why);
    return zb_fail(
        ZB_INVALID_ARGUMENT,
        "the order \"%.*s\" is not known; want rank, gloo, mpi-default, mpi-linear, mpi-recursive-doubling, "
        "mpi-ring, mpi-segmented-ring, mpi-rabenseifner, mpi-recursive-halving, mpi-butterfly, nccl-ring or "
        "nccl-tree",
        (int)length, r->at);
}

/* A number at *at, which goes behind it. */
static int read_number(const char **at, long long least, long long most, long long *number)
{
    if (!isdigit((unsigned char)**at) && **at != '-') return 0;
    char *end;
    errno = 0;
    *number = strtoll(*at, &end, 10);
    *at = end;
    return errno == 0 && *number >= least && *number <= most;
}

static zb_status wrong_value(const char *key, const char *value, size_t length, const char *want)
{
    const int shown = length < 80 ? (int)length : 80;
    return zb_fail(ZB_INVALID_ARGUMENT, "%s=%.*s%s; want %s", key, shown, value,
                   shown < (int)length ? "..." : "", want);
}

static zb_status read_version(zb_order_source *source, const char *key, const char *value, size_t length)
{
    long long major, minor;
    const char *at = value;
    if (!read_number(&at, 0, 99, &major) || *at++ != '.' || !read_number(&at, 0, 99, &minor) ||
        (at != value + length && *at != '.')) /* a patch level may follow, and does not matter */
        return wrong_value(key, value, length, "MAJOR.MINOR");
    source->version = (int)(100 * major + minor);
    return ZB_OK;
}

static zb_status read_protocol(zb_order_source *source, const char *key, const char *value, size_t length)
{
    for (int p = ZB_NCCL_SIMPLE; p <= ZB_NCCL_LL128; p++) {
        if (!is_word(value, length, zb_nccl_protocol_name((zb_nccl_protocol)p))) continue;
        source->protocol = (zb_nccl_protocol)p;
        return ZB_OK;
    }
    return wrong_value(key, value, length, "simple, ll or ll128");
}

static const char *const fusion_names[] = { [ZB_NCCL_AS_RELEASED] = "released",
                                            [ZB_NCCL_FUSED] = "fused",
                                            [ZB_NCCL_UNFUSED] = "unfused",
                                            [ZB_NCCL_FUSED_LL128] = "fused-ll128" };

static zb_status read_fusion(zb_order_source *source, const char *key, const char *value, size_t length)
{
    for (int f = ZB_NCCL_AS_RELEASED; f <= ZB_NCCL_FUSED_LL128; f++) {
        if (!is_word(value, length, fusion_names[f])) continue;
        source->fusion = (zb_nccl_fusion)f;
        return ZB_OK;
    }
    return wrong_value(key, value, length, "released, fused, unfused or fused-ll128");
}

static zb_status read_count(const char *key, const char *value, size_t length, int *count_p)
{
    long long number;
    const char *at = value;
    if (!read_number(&at, 1, 1 << 20, &number) || at != value + length)
        return wrong_value(key, value, length, "a whole number from 1");
    *count_p = (int)number;
    return ZB_OK;
}

static zb_status read_channels(zb_order_source *source, const char *key, const char *value, size_t length)
{
    return read_count(key, value, length, &source->channels);
}
static zb_status read_used_channels(zb_order_source *source, const char *key, const char *value,
                                    size_t length)
{
    return read_count(key, value, length, &source->used_channels);
}
static zb_status read_threads(zb_order_source *source, const char *key, const char *value, size_t length)
{
    return read_count(key, value, length, &source->threads);
}

static zb_status read_chunk_bytes(zb_order_source *source, const char *key, const char *value, size_t length)
{
    long long number;
    const char *at = value;
    if (!read_number(&at, 1, LLONG_MAX, &number) || at != value + length)
        return wrong_value(key, value, length, "a whole number from 1");
    source->chunk_bytes = (size_t)number;
    return ZB_OK;
}

/* Rings and trees are lists with a place for each rank; the first says how many ranks there are. */
static zb_status agree_on_world(zb_order_source *source, const char *key, const char *value, size_t length)
{
    int places = 1;
    for (size_t i = 0; i < length; i++) places += value[i] == ',';
    if (source->world_size == 0) source->world_size = places;
    if (source->world_size == places) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "%s=%.*s has %d ranks, what came before has %d", key, (int)length,
                   value, places, source->world_size);
}

static zb_status read_ring(zb_order_source *source, const char *key, const char *value, size_t length)
{
    ZB_TRY(agree_on_world(source, key, value, length));
    const size_t n = (size_t)source->world_size, count = (size_t)source->ring_count;
    int32_t *rings = zb_realloc(source->rings, (count + 1) * n * sizeof *rings);
    if (rings == NULL) return ZB_NO_MEMORY;
    source->rings = rings;
    const char *at = value;
    for (size_t i = 0; i < n; i++) {
        long long rank;
        if (!read_number(&at, 0, (long long)n - 1, &rank) ||
            (i + 1 < n ? *at++ != ',' : at != value + length))
            return wrong_value(key, value, length, "ranks with commas between them");
        rings[count * n + i] = (int32_t)rank;
    }
    if (rings[count * n] != 0) return wrong_value(key, value, length, "a ring that begins at rank 0");
    source->ring_count++;
    return ZB_OK;
}

static zb_status read_tree(zb_order_source *source, const char *key, const char *value, size_t length)
{
    ZB_TRY(agree_on_world(source, key, value, length));
    const size_t n = (size_t)source->world_size, count = (size_t)source->tree_count;
    zb_nccl_node *trees = zb_realloc(source->trees, (count + 1) * n * sizeof *trees);
    if (trees == NULL) return ZB_NO_MEMORY;
    source->trees = trees;
    const char *at = value;
    for (size_t i = 0; i < 3 * n; i++) {
        long long child;
        const char after = i % 3 < 2 ? '/' : ',';
        if (!read_number(&at, -1, (long long)n - 1, &child) ||
            (i + 1 < 3 * n ? *at++ != after : at != value + length))
            return wrong_value(key, value, length,
                               "CHILD/CHILD/CHILD for each rank, with commas between them");
        trees[count * n + i / 3].child[i % 3] = (int32_t)child;
    }
    source->tree_count++;
    return ZB_OK;
}

static const struct {
    const char *key;
    zb_status (*read)(zb_order_source *source, const char *key, const char *value, size_t length);
} nccl_keys[] = {
    { "version", read_version },   { "protocol", read_protocol },
    { "channels", read_channels }, { "used-channels", read_used_channels },
    { "threads", read_threads },   { "chunk-bytes", read_chunk_bytes },
    { "fusion", read_fusion },     { "ring", read_ring },
    { "tree", read_tree },
};
enum { NCCL_KEY_COUNT = sizeof nccl_keys / sizeof nccl_keys[0] };

static zb_status read_setting(reader *r, size_t length, unsigned *seen)
{
    const char *equals = memchr(r->at, '=', length);
    const size_t key_length = equals != NULL ? (size_t)(equals - r->at) : length;
    for (size_t k = 0; equals != NULL && k < NCCL_KEY_COUNT; k++) {
        if (!is_word(r->at, key_length, nccl_keys[k].key)) continue;
        const int repeats = nccl_keys[k].read == read_ring || nccl_keys[k].read == read_tree;
        if (*seen >> k & 1 && !repeats)
            return zb_fail(ZB_INVALID_ARGUMENT, "%s is given twice", nccl_keys[k].key);
        *seen |= 1u << k;
        return nccl_keys[k].read(r->source, nccl_keys[k].key, equals + 1, length - key_length - 1);
    }
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "\"%.*s\" of %s; want version=, protocol=, channels=, used-channels=, threads=, "
                   "chunk-bytes=, fusion=, "
                   "ring= or tree=",
                   (int)length, r->at, zb_algorithm_name(r->source->algorithm));
}

static zb_status read_source(reader *r)
{
    ZB_TRY(read_algorithm(r));
    const zb_algorithm algorithm = r->source->algorithm;
    const int nccl = algorithm == ZB_ALGORITHM_NCCL_RING || algorithm == ZB_ALGORITHM_NCCL_TREE;
    unsigned seen = 0;
    for (size_t length; (length = next_word(r)) > 0; r->at += length) {
        if (!nccl)
            return zb_fail(ZB_INVALID_ARGUMENT, "\"%.*s\" after %s, which has no settings", (int)length,
                           r->at, zb_algorithm_name(algorithm));
        ZB_TRY(read_setting(r, length, &seen));
    }
    for (size_t k = 0; nccl && k < 3; k++) /* the first three must be there */
        if (!(seen >> k & 1))
            return zb_fail(ZB_INVALID_ARGUMENT, "%s without %s=; its order depends on it",
                           zb_algorithm_name(algorithm), nccl_keys[k].key);
    return ZB_OK;
}

zb_status zb_order_source_parse(const char *text, zb_order_source *source_p)
{
    zb_order_source source = { 0 };
    reader r = { .at = text, .source = &source };
    const zb_status status = read_source(&r);
    if (status != ZB_OK) {
        zb_order_source_destroy(&source);
        return status;
    }
    *source_p = source;
    return ZB_OK;
}

/* --- writing --- */

void zb_text_put(zb_text *to, const char *format, ...)
{
    const int room = to->text != NULL && to->used < to->bytes;
    va_list args;
    va_start(args, format);
    const int written = vsnprintf(room ? to->text + to->used : NULL, room ? to->bytes - to->used : 0, format,
                                  args);
    va_end(args);
    ZB_ASSERT(written >= 0);
    to->used += (size_t)written;
}

void zb_text_put_source(zb_text *to, const zb_order_source *source)
{
    zb_text_put(to, "%s", zb_algorithm_name(source->algorithm));
    if (source->algorithm != ZB_ALGORITHM_NCCL_RING && source->algorithm != ZB_ALGORITHM_NCCL_TREE) return;
    zb_text_put(to, " version=%d.%d protocol=%s channels=%d", source->version / 100, source->version % 100,
                zb_nccl_protocol_name(source->protocol), source->channels);
    if (source->used_channels != 0) zb_text_put(to, " used-channels=%d", source->used_channels);
    if (source->threads != 0) zb_text_put(to, " threads=%d", source->threads);
    if (source->chunk_bytes != 0) zb_text_put(to, " chunk-bytes=%zu", source->chunk_bytes);
    if (source->fusion != ZB_NCCL_AS_RELEASED) zb_text_put(to, " fusion=%s", fusion_names[source->fusion]);
    const size_t n = (size_t)source->world_size;
    for (size_t i = 0; i < (size_t)source->ring_count * n; i++)
        zb_text_put(to, "%s%d", i % n == 0 ? " ring=" : ",", (int)source->rings[i]);
    for (size_t i = 0; i < (size_t)source->tree_count * n; i++) {
        const int32_t *child = source->trees[i].child;
        zb_text_put(to, "%s%d/%d/%d", i % n == 0 ? " tree=" : ",", (int)child[0], (int)child[1],
                    (int)child[2]);
    }
}

char *zb_order_source_text(const zb_order_source *source)
{
    zb_text to = { 0 };
    zb_text_put_source(&to, source);
    char *text = zb_alloc(to.used + 1);
    if (text == NULL) return NULL;
    to = (zb_text){ .text = text, .bytes = to.used + 1 };
    zb_text_put_source(&to, source);
    return text;
}
