/*
 * How the ranks of a job find each other: rank 0 listens at an address that all know. Every other rank comes
 * there and says who it is and where it listens itself; when all have come, each is told where the others
 * are, and they connect. Knows neither NCCL nor CUDA.
 */
#ifndef ZB_ENGINE_NCCL_RENDEZVOUS_H
#define ZB_ENGINE_NCCL_RENDEZVOUS_H

#include <stdint.h>
#include <zerobit/nccl.h>

enum { MEETING_WORDS = 4, MEETING_GIFT_BYTES = 128 };

typedef struct nccl_meeting {
    const zb_nccl_environment *here;
    double timeout_seconds;
    /* What has to be equal on all ranks, and its names. */
    const char *names[MEETING_WORDS];
    uint64_t words[MEETING_WORDS];
    unsigned char gift[MEETING_GIFT_BYTES]; /* rank 0 gives it to all others */
} nccl_meeting;

/**
 * sockets[r]: connected to rank r, not blocking, the caller's; this rank's own is -1. ZB_IO and ZB_MISMATCH
 * say what went wrong, and the ranks that have come are told.
 */
zb_status zb_nccl_meet(nccl_meeting *meeting, int *sockets);

#endif
