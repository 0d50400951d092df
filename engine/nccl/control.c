/* Frames between ranks; see control.h. */
#include "engine/nccl/control.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <zerobit/memory.h>

enum { HEAD_MAGIC = 0x7a626672, CALL_BYTES_MAX = 64 << 20 };

typedef struct frame_head {
    uint32_t magic, kind;
    uint64_t group, sequence, bytes;
} frame_head;

typedef struct peer {
    int socket; /* -1: this rank itself, or closed */
    peer_state state;
    char why_lost[160];
    unsigned char *out; /* [out_begin, out_end) waits to be sent */
    size_t out_begin, out_end, out_capacity;
    int out_closed; /* nothing can be sent any more */
    frame_head head;
    size_t head_bytes; /* of it, so many have come */
    frame *body;       /* under way */
    size_t body_bytes;
} peer;

struct nccl_control {
    int rank, size;
    frame *first, *last; /* have come, oldest first */
    struct pollfd *polled;
    peer peers[]; /* [size] */
};

double zb_control_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* --- create --- */

zb_status zb_control_create(int rank, int size, const int *sockets, nccl_control **control_p)
{
    nccl_control *control = zb_alloc(sizeof *control + (size_t)size * sizeof(peer));
    struct pollfd *polled = zb_alloc_array((size_t)size, sizeof *polled);
    if (control == NULL || polled == NULL) {
        zb_free(control);
        zb_free(polled);
        for (int r = 0; r < size; r++)
            if (sockets[r] >= 0) close(sockets[r]);
        return ZB_NO_MEMORY;
    }
    control->rank = rank;
    control->size = size;
    control->polled = polled;
    for (int r = 0; r < size; r++) control->peers[r].socket = sockets[r];
    *control_p = control;
    return ZB_OK;
}

/* --- sending --- */

static void stop_sending(peer *p)
{
    p->out_closed = 1;
    p->out_begin = p->out_end = 0;
}

/* Returns how much went; a rank that cannot be written to is found out by reading. */
static size_t send_now(peer *p, const void *data, size_t bytes)
{
    size_t sent = 0;
    while (sent < bytes && !p->out_closed && p->socket >= 0) {
        const ssize_t n = send(p->socket, (const char *)data + sent, bytes - sent,
                               MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0)
            sent += (size_t)n;
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            break;
        else if (errno != EINTR)
            stop_sending(p);
    }
    return sent;
}

static zb_status queue(peer *p, const void *data, size_t bytes)
{
    if (bytes == 0 || p->out_closed) return ZB_OK;
    if (p->out_capacity - p->out_end < bytes && p->out_begin > 0) {
        memmove(p->out, p->out + p->out_begin, p->out_end - p->out_begin);
        p->out_end -= p->out_begin;
        p->out_begin = 0;
    }
    if (p->out_capacity - p->out_end < bytes) {
        const size_t capacity = 2 * (p->out_end + bytes);
        unsigned char *grown = zb_realloc(p->out, capacity);
        if (grown == NULL) return ZB_NO_MEMORY;
        p->out = grown;
        p->out_capacity = capacity;
    }
    memcpy(p->out + p->out_end, data, bytes);
    p->out_end += bytes;
    return ZB_OK;
}

/* Straight to the socket as long as nothing waits before it: that needs no memory. */
static zb_status push(peer *p, const void *data, size_t bytes)
{
    const size_t sent = p->out_begin == p->out_end ? send_now(p, data, bytes) : 0;
    return queue(p, (const char *)data + sent, bytes - sent);
}

zb_status zb_control_send(nccl_control *control, int to, frame_kind kind, uint64_t group, uint64_t sequence,
                          const void *body, size_t bytes)
{
    peer *p = &control->peers[to];
    if (p->state != PEER_OPEN || p->out_closed) return ZB_OK;
    const frame_head head = {
        .magic = HEAD_MAGIC, .kind = kind, .group = group, .sequence = sequence, .bytes = bytes
    };
    ZB_TRY(push(p, &head, sizeof head));
    const zb_status status = push(p, body, bytes);
    if (status != ZB_OK) stop_sending(p); /* half a frame is none */
    return status;
}

size_t zb_control_unsent(const nccl_control *control, int rank)
{
    return control->peers[rank].out_end - control->peers[rank].out_begin;
}

/* --- receiving --- */

static void lose(peer *p, const char *why)
{
    if (p->state == PEER_OPEN) {
        p->state = PEER_LOST;
        snprintf(p->why_lost, sizeof p->why_lost, "%s", why);
    }
    if (p->socket >= 0) close(p->socket);
    p->socket = -1;
    stop_sending(p);
}

static void append(nccl_control *control, frame *f)
{
    if (control->last != NULL)
        control->last->next = f;
    else
        control->first = f;
    control->last = f;
}

static zb_status begin_body(peer *p, int from)
{
    const frame_head *h = &p->head;
    const size_t largest = h->kind == FRAME_PAYLOAD ? FRAME_BYTES_MAX : CALL_BYTES_MAX;
    if (h->magic != HEAD_MAGIC || h->kind < FRAME_CALL || h->kind > FRAME_ENDED || h->bytes > largest) {
        lose(p, "it has sent what is no frame");
        return ZB_OK;
    }
    p->body = zb_alloc(sizeof *p->body + h->bytes + 1); /* a text ends with a zero */
    if (p->body == NULL) return ZB_NO_MEMORY;
    p->body->from = from;
    p->body->kind = (frame_kind)h->kind;
    p->body->group = h->group;
    p->body->sequence = h->sequence;
    p->body->bytes = h->bytes;
    p->body_bytes = 0;
    return ZB_OK;
}

static void end_body(nccl_control *control, peer *p)
{
    if (p->body->kind == FRAME_ENDED) p->state = PEER_ENDED;
    append(control, p->body);
    p->body = NULL;
    p->head_bytes = 0;
}

/* Up to `bytes` into `to`; 0 when nothing is there, or the rank is gone. */
static size_t receive_now(peer *p, void *to, size_t bytes)
{
    for (;;) {
        const ssize_t n = recv(p->socket, to, bytes, MSG_DONTWAIT);
        if (n > 0) return (size_t)n;
        if (n == 0) {
            lose(p, "its connection was closed without a word: it has crashed, or was killed");
            return 0;
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
        if (errno == EINTR) continue;
        char why[128];
        snprintf(why, sizeof why, "its connection broke: %s", strerror(errno));
        lose(p, why);
        return 0;
    }
}

static zb_status receive(nccl_control *control, int from, int *moved_p)
{
    peer *p = &control->peers[from];
    while (p->socket >= 0) {
        if (p->body == NULL) {
            const size_t got = receive_now(p, (char *)&p->head + p->head_bytes,
                                           sizeof p->head - p->head_bytes);
            if (got == 0) return ZB_OK;
            *moved_p = 1;
            p->head_bytes += got;
            if (p->head_bytes == sizeof p->head) ZB_TRY(begin_body(p, from));
        }
        if (p->body == NULL) continue;
        if (p->body_bytes < p->body->bytes) {
            const size_t got = receive_now(p, p->body->body + p->body_bytes, p->body->bytes - p->body_bytes);
            if (got == 0) return ZB_OK;
            *moved_p = 1;
            p->body_bytes += got;
        }
        if (p->body_bytes == p->body->bytes) end_body(control, p);
    }
    return ZB_OK;
}

/* --- both --- */

static void flush(peer *p, int *moved_p)
{
    const size_t sent = send_now(p, p->out + p->out_begin, p->out_end - p->out_begin);
    if (sent > 0) *moved_p = 1;
    p->out_begin += sent;
    if (p->out_begin >= p->out_end) p->out_begin = p->out_end = 0;
}

zb_status zb_control_pump(nccl_control *control, int wait_ms, int *moved_p)
{
    int moved = 0;
    for (int r = 0; r < control->size; r++) {
        const peer *p = &control->peers[r];
        const short out = p->out_begin < p->out_end ? POLLOUT : 0;
        control->polled[r] = (struct pollfd){ .fd = p->socket, .events = (short)(POLLIN | out) };
    }
    const int ready = poll(control->polled, (nfds_t)control->size, wait_ms);
    for (int r = 0; r < control->size && ready > 0; r++) {
        const short events = control->polled[r].revents;
        if (events & POLLOUT) flush(&control->peers[r], &moved);
        if (events & (POLLIN | POLLHUP | POLLERR)) ZB_TRY(receive(control, r, &moved));
    }
    if (moved_p != NULL) *moved_p = moved;
    return ZB_OK;
}

static frame *unlink_frame(nccl_control *control, frame *previous, frame *f)
{
    if (previous != NULL)
        previous->next = f->next;
    else
        control->first = f->next;
    if (control->last == f) control->last = previous;
    f->next = NULL;
    return f;
}

frame *zb_control_take(nccl_control *control, int from, frame_kind kind, uint64_t group, uint64_t sequence)
{
    for (frame *f = control->first, *previous = NULL; f != NULL; previous = f, f = f->next)
        if (f->from == from && f->kind == kind && f->group == group && f->sequence == sequence)
            return unlink_frame(control, previous, f);
    return NULL;
}

frame *zb_control_take_any(nccl_control *control, frame_kind kind)
{
    for (frame *f = control->first, *previous = NULL; f != NULL; previous = f, f = f->next)
        if (f->kind == kind) return unlink_frame(control, previous, f);
    return NULL;
}

peer_state zb_control_peer(const nccl_control *control, int rank)
{
    return control->peers[rank].state;
}

const char *zb_control_why_lost(const nccl_control *control, int rank)
{
    return control->peers[rank].why_lost;
}

/* --- the end --- */

/* What a rank has sent may be lost where its socket is closed with something unread: so read to the end. */
static int all_closed(nccl_control *control)
{
    int closed = 1;
    for (int r = 0; r < control->size; r++) {
        peer *p = &control->peers[r];
        if (p->socket < 0) continue;
        if (p->out_begin == p->out_end && !p->out_closed) {
            shutdown(p->socket, SHUT_WR);
            p->out_closed = 1;
        }
        closed = 0;
    }
    return closed;
}

void zb_control_destroy(nccl_control *control, double linger_seconds)
{
    if (control == NULL) return;
    const double deadline = zb_control_now() + linger_seconds;
    while (!all_closed(control) && zb_control_now() < deadline)
        if (zb_control_pump(control, 10, NULL) != ZB_OK) break;
    for (int r = 0; r < control->size; r++) {
        peer *p = &control->peers[r];
        if (p->socket >= 0) close(p->socket);
        zb_free(p->out);
        zb_free(p->body);
    }
    for (frame *f = control->first, *next; f != NULL; f = next) {
        next = f->next;
        zb_free(f);
    }
    zb_free(control->polled);
    zb_free(control);
}
