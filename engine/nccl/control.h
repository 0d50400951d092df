/*
 * The connections between any two ranks of a world, over which they compare calls, say that they have failed
 * or ended, and send messages. Frames arrive whole and in order from each rank. Knows neither NCCL nor CUDA.
 * The caller holds a lock where several threads use one.
 */
#ifndef ZB_ENGINE_NCCL_CONTROL_H
#define ZB_ENGINE_NCCL_CONTROL_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/status.h>

typedef struct nccl_control nccl_control;

/* FAILED and ENDED carry a text, the others are looked up by group and sequence. */
typedef enum frame_kind {
    FRAME_CALL = 1, /* a collective: this rank's call                         */
    FRAME_SEND,     /* a message: the call of its sender, of its receiver     */
    FRAME_RECV,
    FRAME_PAYLOAD, /* a piece of a message                                   */
    FRAME_FAILED,
    FRAME_ENDED /* the last one of a rank                                 */
} frame_kind;

enum { FRAME_BYTES_MAX = 1 << 20 }; /* of a payload; a call may be longer, with the counts of a large world */

typedef struct frame {
    struct frame *next;
    int from;
    frame_kind kind;
    uint64_t group, sequence;
    size_t bytes;
    unsigned char body[];
} frame;

typedef enum peer_state { PEER_OPEN, PEER_ENDED, PEER_LOST } peer_state;

/** `sockets`: [size] connected ones, by rank, this rank's own -1. They are the control's, also on failure. */
zb_status zb_control_create(int rank, int size, const int *sockets, nccl_control **control_p);
/** Sends what is left to send and waits until the others have closed, for `linger_seconds` at most. NULL is
 * fine. */
void zb_control_destroy(nccl_control *control, double linger_seconds);

/** Queued, and sent as far as it goes at once. To a rank that is gone: nothing. ZB_NO_MEMORY. */
zb_status zb_control_send(nccl_control *control, int to, frame_kind kind, uint64_t group, uint64_t sequence,
                          const void *body, size_t bytes);
/** Bytes to `rank` that wait to be sent. */
size_t zb_control_unsent(const nccl_control *control, int rank);
/** Sends and receives what can be; waits for that up to `wait_ms`. *moved_p (or NULL): whether anything was.
 */
zb_status zb_control_pump(nccl_control *control, int wait_ms, int *moved_p);
/** The oldest such frame that has come, to be freed by zb_free; NULL when there is none. */
frame *zb_control_take(nccl_control *control, int from, frame_kind kind, uint64_t group, uint64_t sequence);
frame *zb_control_take_any(nccl_control *control, frame_kind kind);
peer_state zb_control_peer(const nccl_control *control, int rank);
/** Why a rank is PEER_LOST. */
const char *zb_control_why_lost(const nccl_control *control, int rank);

double zb_control_now(void);

#endif
