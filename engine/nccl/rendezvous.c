/* The ranks of a job find each other; see rendezvous.h. */
#define _GNU_SOURCE /* accept4 */
#include "engine/nccl/rendezvous.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zerobit/memory.h>

#include "engine/nccl/control.h"

static const char magic_text[16] = "zerobit ranks 1";

/* What a rank says first: to rank 0, that it joins; to any other, that it is a peer. */
typedef enum hello_kind { HELLO_JOIN = 1, HELLO_PEER } hello_kind;
typedef struct hello {
    char magic[16];
    int32_t kind, rank, world_size, port; /* where it listens itself */
    uint64_t words[MEETING_WORDS];
    char job[128];
} hello;

/* What rank 0 answers, when all have come or it refuses. The addresses of all ranks follow, [world_size]. */
typedef struct welcome {
    char magic[16];
    int32_t status, spare;
    char text[1024]; /* why it refuses */
    unsigned char gift[MEETING_GIFT_BYTES];
} welcome;
typedef struct place {
    struct sockaddr_storage address;
} place;

/* --- sockets, with a time limit --- */

static int wait_for(int socket, short events, double deadline)
{
    struct pollfd polled = { .fd = socket, .events = events };
    for (;;) {
        const double left = deadline - zb_control_now();
        if (left <= 0) return 0;
        const int ready = poll(&polled, 1, left < 1 ? (int)(1000 * left) + 1 : 1000);
        if (ready > 0) return 1;
        if (ready < 0 && errno != EINTR) return 0;
    }
}

/* How much went: less than `bytes` after an error, the end, or the time limit. */
static size_t transfer(int socket, void *data, size_t bytes, int sending, double deadline)
{
    size_t done = 0;
    while (done < bytes && wait_for(socket, sending ? POLLOUT : POLLIN, deadline)) {
        char *at = (char *)data + done;
        const ssize_t n = sending ? send(socket, at, bytes - done, MSG_NOSIGNAL)
                                  : recv(socket, at, bytes - done, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) break;
        if (n > 0) done += (size_t)n;
    }
    return done;
}

static int set_up(int socket)
{
    const int on = 1, flags = fcntl(socket, F_GETFL, 0);
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return flags >= 0 && fcntl(socket, F_SETFL, flags | O_NONBLOCK) == 0;
}

static void close_all(int *sockets, int count)
{
    for (int r = 0; r < count; r++) {
        if (sockets[r] >= 0) close(sockets[r]);
        sockets[r] = -1;
    }
}

static void set_port(struct sockaddr_storage *address, int port)
{
    if (address->ss_family == AF_INET6)
        ((struct sockaddr_in6 *)address)->sin6_port = htons((uint16_t)port);
    else
        ((struct sockaddr_in *)address)->sin_port = htons((uint16_t)port);
}

static int port_of(int socket)
{
    struct sockaddr_storage address = { 0 };
    socklen_t bytes = sizeof address;
    if (getsockname(socket, (struct sockaddr *)&address, &bytes) != 0) return -1;
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

/* --- listening --- */

static int is_loopback(const struct addrinfo *a)
{
    if (a->ai_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a->ai_addr)->sin6_addr);
    return ntohl(((const struct sockaddr_in *)(const void *)a->ai_addr)->sin_addr.s_addr) >> 24 == 127;
}

static int is_number(const char *address)
{
    unsigned char bytes[16];
    return inet_pton(AF_INET, address, bytes) == 1 || inet_pton(AF_INET6, address, bytes) == 1;
}

/*
 * A name may stand for this machine's loopback here and for a real address elsewhere: then, and for every
 * other address, all interfaces are listened on.
 */
static struct sockaddr_storage where_to_listen(const struct addrinfo *a, const char *address)
{
    struct sockaddr_storage where = { 0 };
    const int stays_here = is_loopback(a) && (is_number(address) || strcmp(address, "localhost") == 0);
    where.ss_family = (sa_family_t)a->ai_family;
    if (stays_here) memcpy(&where, a->ai_addr, a->ai_addrlen);
    return where;
}

static int listen_at(struct sockaddr_storage where, int port, int backlog)
{
    const int on = 1, s = socket(where.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const socklen_t bytes = where.ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                                        : sizeof(struct sockaddr_in);
    set_port(&where, port);
    if (s < 0) return -1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (set_up(s) && bind(s, (struct sockaddr *)&where, bytes) == 0 && listen(s, backlog) == 0) return s;
    const int error = errno;
    close(s);
    errno = error;
    return -1;
}

static zb_status resolve(const zb_nccl_environment *here, struct addrinfo **list_p)
{
    const struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM };
    char port[16];
    snprintf(port, sizeof port, "%d", here->port);
    const int code = getaddrinfo(here->address, port, &hints, list_p);
    if (code == 0) return ZB_OK;
    return zb_fail(ZB_IO, "rendezvous of rank %d at %s:%d: %s; want the address of rank 0's machine",
                   here->rank, here->address, here->port, gai_strerror(code));
}

static zb_status listen_as_first(const zb_nccl_environment *here, int *listener_p)
{
    struct addrinfo *list;
    ZB_TRY(resolve(here, &list));
    *listener_p = listen_at(where_to_listen(list, here->address), here->port, here->world_size + 16);
    const int error = errno;
    freeaddrinfo(list);
    if (*listener_p >= 0) return ZB_OK;
    return zb_fail(ZB_IO, "rank 0 cannot listen at %s:%d: %s%s", here->address, here->port, strerror(error),
                   error == EADDRINUSE ? "; want a port that no other program or job uses" : "");
}

/* --- ranks that come --- */

/* Who has connected, and not said yet who it is. */
typedef struct guest {
    int socket;
    size_t bytes;
    hello said;
} guest;
enum { GUESTS_MAX = 64 };

typedef struct reception {
    const nccl_meeting *meeting;
    hello_kind kind;
    int *sockets;
    place *places; /* NULL: nobody asks where they are */
    int missing;   /* ranks above this one that have not come */
    int strangers;
    guest guests[GUESTS_MAX];
    int guest_count;
} reception;

static void refuse(int socket, zb_status status, const char *text)
{
    welcome w = { .status = (int32_t)status };
    memcpy(w.magic, magic_text, sizeof w.magic);
    snprintf(w.text, sizeof w.text, "%s", text);
    transfer(socket, &w, sizeof w, 1, zb_control_now() + 1);
}

/* It goes, and the others are waited for as before. */
__attribute__((format(printf, 3, 4))) static void send_away(reception *r, int socket, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    refuse(socket, ZB_IO, text);
    close(socket);
    r->strangers++;
}

static zb_status compare_words(const reception *r, const hello *h)
{
    const nccl_meeting *m = r->meeting;
    if (h->world_size != m->here->world_size)
        return zb_fail(ZB_MISMATCH, "rank %d has a world of %d ranks, rank %d one of %d (WORLD_SIZE)",
                       m->here->rank, m->here->world_size, (int)h->rank, (int)h->world_size);
    for (int i = 0; i < MEETING_WORDS; i++)
        if (h->words[i] != m->words[i])
            return zb_fail(
                ZB_MISMATCH,
                "ranks were given different options: %s differs: rank %d has %llu, rank %d has %llu",
                m->names[i], m->here->rank, (unsigned long long)m->words[i], (int)h->rank,
                (unsigned long long)h->words[i]);
    return ZB_OK;
}

static zb_status admit(reception *r, const guest *g)
{
    const zb_nccl_environment *here = r->meeting->here;
    const hello *h = &g->said;
    if (memcmp(h->magic, magic_text, sizeof h->magic) != 0 || h->kind != (int32_t)r->kind) {
        close(g->socket);
        r->strangers++;
        return ZB_OK;
    }
    if (strncmp(h->job, here->job, sizeof h->job) != 0) {
        send_away(r, g->socket,
                  "rank %d of job \"%.120s\" has come to %s:%d, where job \"%.120s\" meets; want a port for "
                  "each job",
                  (int)h->rank, h->job, here->address, here->port, here->job);
        return ZB_OK;
    }
    zb_status status = compare_words(r, h);
    if (status != ZB_OK) {
        refuse(g->socket, status, zb_error_message());
        close(g->socket);
        return status;
    }
    if (h->rank <= here->rank || h->rank >= here->world_size || r->sockets[h->rank] >= 0) {
        send_away(
            r, g->socket,
            "a rank %d has come to rank %d of %d, which does not wait for it%s; want RANK 0 to %d, each once",
            (int)h->rank, here->rank, here->world_size,
            h->rank > 0 && h->rank < here->world_size ? ": it is there already" : "", here->world_size - 1);
        return ZB_OK;
    }
    r->sockets[h->rank] = g->socket;
    r->missing--;
    if (r->places == NULL) return ZB_OK;
    socklen_t bytes = sizeof r->places[h->rank].address;
    getpeername(g->socket, (struct sockaddr *)&r->places[h->rank].address, &bytes);
    set_port(&r->places[h->rank].address, (int)h->port);
    return ZB_OK;
}

static void take_guest(reception *r, int listener)
{
    const int s = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (s < 0) return;
    if (r->guest_count == GUESTS_MAX || !set_up(s)) {
        close(s);
        r->strangers++;
        return;
    }
    r->guests[r->guest_count++] = (guest){ .socket = s };
}

/* Reads on; whoever has said all, or is gone, is no guest any more. */
static zb_status hear_guest(reception *r, int index)
{
    guest *g = &r->guests[index], whole;
    const ssize_t n = recv(g->socket, (char *)&g->said + g->bytes, sizeof g->said - g->bytes, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return ZB_OK;
    if (n > 0) g->bytes += (size_t)n;
    if (n > 0 && g->bytes < sizeof g->said) return ZB_OK;
    whole = *g;
    *g = r->guests[--r->guest_count];
    if (n > 0) return admit(r, &whole);
    close(whole.socket);
    r->strangers++;
    return ZB_OK;
}

static zb_status report_missing(const reception *r)
{
    const zb_nccl_environment *here = r->meeting->here;
    char list[256] = "", strangers[96] = "";
    size_t used = 0;
    for (int rank = here->rank + 1; rank < here->world_size && used + 16 < sizeof list; rank++)
        if (r->sockets[rank] < 0)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%d", used > 0 ? "," : "", rank);
    if (r->strangers > 0)
        snprintf(strangers, sizeof strangers, "; %d connections came from something else", r->strangers);
    return zb_fail(ZB_IO, "rendezvous at %s:%d: rank%s %s of %d %s not come to rank %d within %g s%s",
                   here->address, here->port, r->missing == 1 ? "" : "s", list, here->world_size,
                   r->missing == 1 ? "has" : "have", here->rank, r->meeting->timeout_seconds, strangers);
}

/* Until all ranks above this one have come. */
static zb_status receive_ranks(reception *r, int listener, double deadline)
{
    zb_status status = ZB_OK;
    while (r->missing > 0 && status == ZB_OK) {
        struct pollfd polled[GUESTS_MAX + 1] = { { .fd = listener, .events = POLLIN } };
        const int count = r->guest_count;
        const double left = deadline - zb_control_now();
        for (int i = 0; i < count; i++)
            polled[i + 1] = (struct pollfd){ .fd = r->guests[i].socket, .events = POLLIN };
        if (left <= 0) {
            status = report_missing(r);
            break;
        }
        if (poll(polled, (nfds_t)count + 1, left < 1 ? (int)(1000 * left) + 1 : 1000) <= 0) continue;
        /* From the back: whoever leaves is replaced by the last one. */
        for (int i = count - 1; i >= 0 && status == ZB_OK; i--)
            if (polled[i + 1].revents != 0) status = hear_guest(r, i);
        if (polled[0].revents != 0) take_guest(r, listener);
    }
    while (r->guest_count > 0) close(r->guests[--r->guest_count].socket);
    return status;
}

static zb_status receive_all(const nccl_meeting *m, hello_kind kind, int listener, int *sockets,
                             place *places, double deadline)
{
    reception *r = zb_alloc(sizeof *r);
    if (r == NULL) return ZB_NO_MEMORY;
    r->meeting = m;
    r->kind = kind;
    r->sockets = sockets;
    r->places = places;
    r->missing = m->here->world_size - 1 - m->here->rank;
    const zb_status status = receive_ranks(r, listener, deadline);
    zb_free(r);
    return status;
}

/* --- rank 0 --- */

static void welcome_all(const nccl_meeting *m, zb_status status, const int *sockets, place *places)
{
    welcome w = { .status = (int32_t)status };
    memcpy(w.magic, magic_text, sizeof w.magic);
    memcpy(w.gift, m->gift, sizeof w.gift);
    if (status != ZB_OK) snprintf(w.text, sizeof w.text, "rank 0 failed: %.1000s", zb_error_message());
    for (int r = 1; r < m->here->world_size; r++) {
        if (sockets[r] < 0) continue;
        const double deadline = zb_control_now() + 10;
        if (transfer(sockets[r], &w, sizeof w, 1, deadline) == sizeof w && status == ZB_OK)
            transfer(sockets[r], places, (size_t)m->here->world_size * sizeof *places, 1, deadline);
    }
}

static zb_status meet_as_first(const nccl_meeting *m, int *sockets, place *places, double deadline)
{
    int listener;
    ZB_TRY(listen_as_first(m->here, &listener));
    const zb_status status = receive_all(m, HELLO_JOIN, listener, sockets, places, deadline);
    close(listener);
    welcome_all(m, status, sockets, places);
    return status;
}

/* --- all others --- */

/* -1, with errno, where there is no connection. */
static int connect_to(const struct sockaddr *address, socklen_t bytes, double deadline)
{
    const int s = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int error = 0;
    socklen_t error_bytes = sizeof error;
    if (s < 0) return -1;
    if (!set_up(s)) error = errno;
    if (error == 0 && connect(s, address, bytes) != 0) {
        error = errno;
        if (error == EINPROGRESS && wait_for(s, POLLOUT, deadline))
            getsockopt(s, SOL_SOCKET, SO_ERROR, &error, &error_bytes);
        else if (error == EINPROGRESS)
            error = ETIMEDOUT;
    }
    if (error == 0) return s;
    close(s);
    errno = error;
    return -1;
}

static int try_all(const struct addrinfo *list, double deadline)
{
    int s = -1;
    for (const struct addrinfo *a = list; a != NULL && s < 0; a = a->ai_next)
        s = connect_to(a->ai_addr, a->ai_addrlen, deadline);
    return s;
}

/* Rank 0 may come later than this one. */
static zb_status connect_to_first(const nccl_meeting *m, int *socket_p, double deadline)
{
    enum { RETRY_MS = 10 };
    const zb_nccl_environment *here = m->here;
    struct addrinfo *list;
    int s, error;
    ZB_TRY(resolve(here, &list));
    for (;;) {
        s = try_all(list, deadline);
        error = errno;
        if (s >= 0 || zb_control_now() + 1e-3 * RETRY_MS > deadline) break;
        poll(NULL, 0, RETRY_MS);
    }
    freeaddrinfo(list);
    *socket_p = s;
    if (s >= 0) return ZB_OK;
    return zb_fail(ZB_IO, "rank %d found no rank 0 at %s:%d within %g s: %s", here->rank, here->address,
                   here->port, m->timeout_seconds, strerror(error));
}

static zb_status say_hello(const nccl_meeting *m, hello_kind kind, int to, int socket, int port,
                           double deadline)
{
    hello h = {
        .kind = (int32_t)kind, .rank = m->here->rank, .world_size = m->here->world_size, .port = port
    };
    memcpy(h.magic, magic_text, sizeof h.magic);
    memcpy(h.words, m->words, sizeof h.words);
    snprintf(h.job, sizeof h.job, "%s", m->here->job);
    if (transfer(socket, &h, sizeof h, 1, deadline) == sizeof h) return ZB_OK;
    return zb_fail(ZB_IO, "rank %d could not say hello to rank %d: its connection was closed", m->here->rank,
                   to);
}

static zb_status read_welcome(nccl_meeting *m, int socket, place *places, double deadline)
{
    const zb_nccl_environment *here = m->here;
    welcome w;
    const size_t got = transfer(socket, &w, sizeof w, 0, deadline);
    if (got >= sizeof w.magic && memcmp(w.magic, magic_text, sizeof w.magic) != 0)
        return zb_fail(ZB_IO,
                       "what listens at %s:%d is not rank 0 of a zerobit job: another program uses the port",
                       here->address, here->port);
    if (got < sizeof w)
        return zb_fail(ZB_IO, "rank %d waited at %s:%d: %s", here->rank, here->address, here->port,
                       zb_control_now() >= deadline
                           ? "rank 0 has not answered within the time limit"
                           : "the connection was closed: rank 0 has ended, or another program uses the port");
    w.text[sizeof w.text - 1] = '\0';
    if (w.status != ZB_OK)
        return zb_fail(w.status > ZB_OK && w.status <= ZB_INTERNAL ? (zb_status)w.status : ZB_IO, "%s",
                       w.text);
    memcpy(m->gift, w.gift, sizeof m->gift);
    const size_t bytes = (size_t)here->world_size * sizeof *places;
    if (transfer(socket, places, bytes, 0, deadline) == bytes) return ZB_OK;
    return zb_fail(ZB_IO, "rank %d: rank 0 has ended while it told where the others are", here->rank);
}

/* This rank listens by the same family of addresses as it speaks to rank 0. */
static zb_status listen_as_peer(const nccl_meeting *m, int first, int *listener_p)
{
    struct sockaddr_storage mine = { 0 }, any = { 0 };
    socklen_t bytes = sizeof mine;
    getsockname(first, (struct sockaddr *)&mine, &bytes);
    any.ss_family = mine.ss_family;
    *listener_p = listen_at(any, 0, m->here->world_size + 16);
    if (*listener_p >= 0) return ZB_OK;
    return zb_fail(ZB_IO, "rank %d cannot listen for other ranks: %s", m->here->rank, strerror(errno));
}

static zb_status connect_to_peers(const nccl_meeting *m, int *sockets, place *places, double deadline)
{
    for (int r = 1; r < m->here->rank; r++) {
        const struct sockaddr *address = (const struct sockaddr *)&places[r].address;
        sockets[r] = connect_to(address, sizeof places[r].address, deadline);
        if (sockets[r] < 0)
            return zb_fail(ZB_IO, "rank %d cannot connect to rank %d: %s", m->here->rank, r, strerror(errno));
        ZB_TRY(say_hello(m, HELLO_PEER, r, sockets[r], 0, deadline));
    }
    return ZB_OK;
}

static zb_status meet_as_other(nccl_meeting *m, int *sockets, place *places, double deadline)
{
    int listener;
    ZB_TRY(connect_to_first(m, &sockets[0], deadline));
    ZB_TRY(listen_as_peer(m, sockets[0], &listener));
    zb_status status = say_hello(m, HELLO_JOIN, 0, sockets[0], port_of(listener), deadline);
    if (status == ZB_OK) status = read_welcome(m, sockets[0], places, deadline);
    if (status == ZB_OK) status = connect_to_peers(m, sockets, places, deadline);
    if (status == ZB_OK) status = receive_all(m, HELLO_PEER, listener, sockets, NULL, deadline);
    close(listener);
    return status;
}

zb_status zb_nccl_meet(nccl_meeting *m, int *sockets)
{
    const int size = m->here->world_size;
    const double deadline = zb_control_now() + m->timeout_seconds;
    for (int r = 0; r < size; r++) sockets[r] = -1;
    if (size == 1) return ZB_OK;
    place *places = zb_alloc_array((size_t)size, sizeof *places);
    if (places == NULL) return ZB_NO_MEMORY;
    const zb_status status = m->here->rank == 0 ? meet_as_first(m, sockets, places, deadline)
                                                : meet_as_other(m, sockets, places, deadline);
    zb_free(places);
    if (status != ZB_OK) close_all(sockets, size);
    return status;
}
