/*
 * Where this rank is, in words that a signal handler may ask for: no call of this file that reads a place
 * allocates, locks or formats by the C library.
 */
#include "engine/mpi/world.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "orders/signature.h"

/* --- writing --- */

typedef struct line {
    char *text;
    size_t bytes, used;
} line;

static void put(line *to, const char *text)
{
    for (; *text != '\0' && to->used + 1 < to->bytes; text++) to->text[to->used++] = *text;
    to->text[to->used] = '\0';
}

static void put_number(line *to, uint64_t number)
{
    char digits[24];
    size_t at = sizeof digits - 1;
    digits[at] = '\0';
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    put(to, digits + at);
}

/* --- the place --- */

typedef struct place {
    int known, inside;
    int kind, peer, line;
    uint64_t sequence;
    char group[128]; /* a copy: a group may be gone */
    const char *what, *file;
} place;
static place current;

/* A handler that comes between finds nothing rather than half of it. */
static void set_known(int known)
{
    atomic_signal_fence(memory_order_seq_cst);
    current.known = known;
    atomic_signal_fence(memory_order_seq_cst);
}

static void fill(place *p, const mpi_op *op)
{
    p->kind = (int)op->call.kind;
    p->peer = op->call.root;
    p->line = op->call.line;
    p->sequence = op->sequence;
    memcpy(p->group, op->group->name, sizeof p->group);
    p->what = op->call.what;
    p->file = op->call.file;
}

void zb_mpi_place_enter(const mpi_op *op)
{
    set_known(0);
    fill(&current, op);
    current.inside = 1;
    set_known(1);
}

void zb_mpi_place_leave(void)
{
    current.inside = 0;
}

void zb_mpi_place_clear(void)
{
    set_known(0);
}

static void put_call(line *to, const place *p)
{
    if (zb_call_is_pair(p->kind)) {
        put(to, p->kind == ZB_COLLECTIVE_SEND ? "send to rank " : "recv from rank ");
        put_number(to, (uint64_t)p->peer);
    } else {
        put(to, zb_call_kind_name(p->kind));
        put(to, " #");
        put_number(to, p->sequence);
    }
    put(to, " of ");
    put(to, p->group);
    if (p->what != NULL) {
        put(to, " (");
        put(to, p->what);
        put(to, ")");
    }
    if (p->file == NULL) return;
    put(to, " at ");
    put(to, zb_call_short_path(p->file));
    put(to, ":");
    put_number(to, (uint64_t)p->line);
}

void zb_mpi_describe(const mpi_op *op, char *text, size_t text_bytes)
{
    place p;
    fill(&p, op);
    put_call(&(line){ .text = text, .bytes = text_bytes }, &p);
}

const char *zb_mpi_place(void)
{
    static char text[512];
    if (!current.known) return NULL;
    line to = { .text = text, .bytes = sizeof text };
    put(&to, current.inside ? "waits in " : "came last to ");
    put_call(&to, &current);
    return text;
}
