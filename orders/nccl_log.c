/*
 * NCCL's own account of what it chose (NCCL_DEBUG=INFO with the subsystems INIT, GRAPH and TUNING). Lines
 * that say something about the order of addition; everything else is passed over:
 *
 *     NCCL version 2.28.9+cuda13.0
 *     host:1:2 [0] NCCL INFO Channel 00/02 : 0 2 1              a ring, from rank 0 only; cut with "..." at
 * 128 characters host:1:2 [0] NCCL INFO Trees [0] 1/-1/-1->0->-1 [1] ...   children -> rank -> parent, from
 * every rank host:1:2 [0] NCCL INFO AllReduce: 4000 Bytes -> Algo RING proto SIMPLE channel{Lo..Hi}={0..1}
 * from rank 0 only
 */
#include <zerobit/orders.h>

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

enum { LINE_BYTES = 4096, CHANNEL_COUNT_MAX = 1024, UNKNOWN = -2 };

typedef struct reader {
    zb_nccl_log *log;
    int line;
    char text[LINE_BYTES]; /* of the line, cut */
} reader;

static zb_status fail_at(const reader *r, const char *what)
{
    return zb_fail(ZB_INVALID_ARGUMENT, "NCCL log line %d: %s: \"%.200s\"", r->line, what, r->text);
}

static const char *after(const char *text, const char *prefix)
{
    const size_t length = strlen(prefix);
    return strncmp(text, prefix, length) == 0 ? text + length : NULL;
}

/* What NCCL says on the line; NULL where it is somebody else's. */
static const char *message_of(const char *line)
{
    const char *info = strstr(line, "NCCL INFO ");
    return info != NULL ? info + strlen("NCCL INFO ") : NULL;
}

/* --- rings, and the version --- */

static zb_status read_version(reader *r)
{
    int major, minor, length = 0;
    const char *version = strstr(r->text, "NCCL version ");
    if (version == NULL) return ZB_OK;
    if (sscanf(version, "NCCL version %d.%d%n", &major, &minor, &length) != 2 || length == 0)
        return fail_at(r, "want NCCL version MAJOR.MINOR");
    r->log->source.version = 100 * major + minor;
    return ZB_OK;
}

/* The ranks after "Channel 00/02 :". Returns how many there are, or -1 where something else stands. `ranks`
 * may be NULL. */
static int read_ranks(const char *text, int32_t *ranks)
{
    int count = 0;
    for (;;) {
        while (isspace((unsigned char)*text)) text++;
        if (*text == '\0') return count;
        char *end;
        const long rank = strtol(text, &end, 10);
        if (end == text || rank < 0 || rank > 1 << 20) return -1;
        if (ranks != NULL) ranks[count] = (int32_t)rank;
        count++;
        text = end;
    }
}

/* All rings have room as soon as the first line says how many channels there are. */
static zb_status make_rings(reader *r, int channels, int world_size)
{
    zb_order_source *source = &r->log->source;
    if (source->rings != NULL) {
        if (source->channels == channels && source->world_size == world_size) return ZB_OK;
        return fail_at(r, "a ring of another size than before; want the log of one communicator");
    }
    source->rings = zb_alloc_array((size_t)channels * (size_t)world_size, sizeof *source->rings);
    source->trees = zb_alloc_array((size_t)channels * (size_t)world_size, sizeof *source->trees);
    if (source->rings == NULL || source->trees == NULL) return ZB_NO_MEMORY;
    source->channels = source->ring_count = source->tree_count = channels;
    source->world_size = world_size;
    for (size_t i = 0; i < (size_t)channels * (size_t)world_size; i++) {
        source->rings[i] = UNKNOWN;
        source->trees[i] = (zb_nccl_node){ .child = { UNKNOWN, UNKNOWN, UNKNOWN } };
    }
    return ZB_OK;
}

static zb_status read_ring(reader *r)
{
    int channel, channels, length = 0;
    const char *message = message_of(r->text);
    if (message == NULL || sscanf(message, "Channel %d/%d :%n", &channel, &channels, &length) != 2 ||
        length == 0 ||
        strchr(message, '[') != NULL) /* "Channel 00/0 : 0[0] -> 1[1] via P2P" is a connection */
        return ZB_OK;
    const char *list = message + length;
    if (strstr(list, "...") != NULL) return fail_at(r, "NCCL has cut the ring short, at 128 characters");
    const int count = read_ranks(list, NULL);
    if (count < 1 || channel < 0 || channel >= channels || channels > CHANNEL_COUNT_MAX)
        return fail_at(r, "want Channel K/N : and the ranks of a ring");
    ZB_TRY(make_rings(r, channels, count));
    int32_t *ring = r->log->source.rings + (size_t)channel * (size_t)count;
    if (ring[0] != UNKNOWN)
        return fail_at(r, "a second ring of this channel; want the log of one communicator");
    read_ranks(list, ring);
    return ring[0] == 0 ? ZB_OK : fail_at(r, "want a ring that begins at rank 0");
}

/* --- trees --- */

static zb_status read_trees(reader *r)
{
    const char *message = message_of(r->text), *at = message != NULL ? after(message, "Trees") : NULL;
    zb_order_source *source = &r->log->source;
    while (at != NULL && strchr(at, '[') != NULL) {
        int channel, rank, parent, length = 0;
        zb_nccl_node node;
        at = strchr(at, '[');
        if (sscanf(at, "[%d] %d/%d/%d->%d->%d%n", &channel, &node.child[0], &node.child[1], &node.child[2],
                   &rank, &parent, &length) != 6)
            return fail_at(r, "want [CHANNEL] CHILD/CHILD/CHILD->RANK->PARENT");
        if (channel < 0 || channel >= source->channels || rank < 0 || rank >= source->world_size)
            return fail_at(r, "a tree of a channel or rank that has no ring");
        source->trees[(size_t)channel * (size_t)source->world_size + (size_t)rank] = node;
        at += length;
    }
    return ZB_OK;
}

/* --- collectives --- */

static zb_status append(zb_nccl_log *log, const zb_nccl_collective *collective)
{
    const size_t count = log->collective_count;
    if ((count & (count - 1)) == 0) { /* a power of two is full */
        zb_nccl_collective *grown = zb_realloc(log->collectives,
                                               (count == 0 ? 1 : 2 * count) * sizeof *grown);
        if (grown == NULL) return ZB_NO_MEMORY;
        log->collectives = grown;
    }
    log->collectives[log->collective_count++] = *collective;
    return ZB_OK;
}

static zb_status read_collective(reader *r)
{
    const char *message = message_of(r->text);
    if (message == NULL || strstr(message, " Bytes -> Algo ") == NULL) return ZB_OK;
    zb_nccl_collective c = { .line = r->line };
    char protocol[16];
    if (sscanf(message, "%23[A-Za-z]: %zu Bytes -> Algo %23s proto %15s channel{Lo..Hi}={%d..%d}", c.function,
               &c.bytes, c.algorithm, protocol, &c.channel_low, &c.channel_high) != 6)
        return fail_at(r, "want FUNCTION: N Bytes -> Algo A proto P channel{Lo..Hi}={L..H}");
    for (char *p = protocol; *p != '\0'; p++) *p = (char)tolower((unsigned char)*p);
    for (char *p = c.algorithm; *p != '\0'; p++) *p = (char)tolower((unsigned char)*p);
    for (int p = ZB_NCCL_SIMPLE; p <= ZB_NCCL_LL128; p++) {
        if (strcmp(protocol, zb_nccl_protocol_name((zb_nccl_protocol)p)) != 0) continue;
        c.protocol = (zb_nccl_protocol)p;
        return append(r->log, &c);
    }
    return fail_at(r, "want proto SIMPLE, LL or LL128");
}

/* --- the whole log --- */

static zb_status read_lines(reader *r, const char *text, zb_status (*const readers[])(reader *),
                            int reader_count)
{
    r->line = 0;
    while (*text != '\0') {
        const size_t length = strcspn(text, "\n"), kept = length < LINE_BYTES - 1 ? length : LINE_BYTES - 1;
        memcpy(r->text, text, kept);
        r->text[kept] = '\0';
        r->line++;
        for (int i = 0; i < reader_count; i++) ZB_TRY(readers[i](r));
        text += length + (text[length] == '\n');
    }
    return ZB_OK;
}

/* Trees need the rings' sizes, and other ranks may have written first. */
static zb_status read_twice(reader *r, const char *text)
{
    static zb_status (*const first[])(reader *) = { read_version, read_ring };
    static zb_status (*const second[])(reader *) = { read_trees, read_collective };
    ZB_TRY(read_lines(r, text, first, 2));
    const zb_order_source *source = &r->log->source;
    if (source->version == 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "the NCCL log has no line \"NCCL version\"");
    if (source->rings == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "the NCCL log has no rings (Channel 00/01 : 0 1 ...); want that of rank 0, with "
                       "NCCL_DEBUG=INFO and NCCL_DEBUG_SUBSYS=INIT,GRAPH,TUNING");
    for (int k = 0; k < source->channels; k++)
        if (source->rings[(size_t)k * (size_t)source->world_size] == UNKNOWN)
            return zb_fail(ZB_INVALID_ARGUMENT, "the NCCL log has no ring of channel %d of %d", k,
                           source->channels);
    return read_lines(r, text, second, 2);
}

zb_status zb_nccl_log_read(const char *text, zb_nccl_log *log_p)
{
    zb_nccl_log log = { .source = { .algorithm = ZB_ALGORITHM_NCCL_RING } };
    reader *r = zb_alloc(sizeof *r);
    zb_status status = r != NULL ? ZB_OK : ZB_NO_MEMORY;
    if (status == ZB_OK) {
        r->log = &log;
        status = read_twice(r, text);
    }
    zb_free(r);
    if (status != ZB_OK) {
        zb_nccl_log_destroy(&log);
        return status;
    }
    *log_p = log;
    return ZB_OK;
}

void zb_nccl_log_destroy(zb_nccl_log *log)
{
    zb_order_source_destroy(&log->source);
    zb_free(log->collectives);
    *log = (zb_nccl_log){ 0 };
}

/* --- one collective's source --- */

static zb_status copy_rings(const zb_order_source *from, zb_order_source *to)
{
    const size_t count = (size_t)from->ring_count * (size_t)from->world_size;
    to->rings = zb_alloc_array(count, sizeof *to->rings);
    if (to->rings == NULL) return ZB_NO_MEMORY;
    memcpy(to->rings, from->rings, count * sizeof *to->rings);
    to->ring_count = from->ring_count;
    return ZB_OK;
}

static zb_status copy_trees(const zb_order_source *from, zb_order_source *to)
{
    const size_t count = (size_t)from->tree_count * (size_t)from->world_size;
    for (size_t i = 0; i < count; i++)
        if (from->trees[i].child[0] == UNKNOWN)
            return zb_fail(
                ZB_INVALID_ARGUMENT,
                "the NCCL log has no place of rank %zu in tree %zu (Trees [..]); want the logs of all ranks",
                i % (size_t)from->world_size, i / (size_t)from->world_size);
    to->trees = zb_alloc_array(count, sizeof *to->trees);
    if (to->trees == NULL) return ZB_NO_MEMORY;
    memcpy(to->trees, from->trees, count * sizeof *to->trees);
    to->tree_count = from->tree_count;
    return ZB_OK;
}

zb_status zb_nccl_log_source(const zb_nccl_log *log, size_t index, zb_order_source *source_p)
{
    if (index >= log->collective_count)
        return zb_fail(ZB_INVALID_ARGUMENT, "collective %zu of an NCCL log with %zu of them", index,
                       log->collective_count);
    const zb_nccl_collective *c = &log->collectives[index];
    const int tree = strcmp(c->algorithm, "tree") == 0;
    if (!tree && strcmp(c->algorithm, "ring") != 0)
        return zb_fail(ZB_UNSUPPORTED,
                       "NCCL log line %d: the order of algorithm %s cannot be predicted; set NCCL_ALGO=Ring",
                       c->line, c->algorithm);
    if (c->channel_low != 0 || c->channel_high < 0 || c->channel_high >= log->source.channels)
        return zb_fail(ZB_UNSUPPORTED,
                       "NCCL log line %d: channels %d to %d of %d; want some from 0 on, as for a collective "
                       "in a group of its own",
                       c->line, c->channel_low, c->channel_high, log->source.channels);
    zb_order_source source = { .algorithm = tree ? ZB_ALGORITHM_NCCL_TREE : ZB_ALGORITHM_NCCL_RING,
                               .version = log->source.version,
                               .protocol = c->protocol,
                               .channels = log->source.channels,
                               .used_channels = c->channel_high + 1,
                               .world_size = log->source.world_size };
    const zb_status status = tree ? copy_trees(&log->source, &source) : copy_rings(&log->source, &source);
    if (status != ZB_OK) {
        zb_order_source_destroy(&source);
        return status;
    }
    *source_p = source;
    return ZB_OK;
}
