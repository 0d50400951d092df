/*
 * Room for packed panels of a matrix product and a block of its result, claimed for the time of one call.
 *
 * A pool that grows to as many slots as threads have been in kernels at once, and stays: it belongs to the
 * process, not to what is computed, so that a step that allocates nothing stays one. A kernel does not yield,
 * so there are never more claims than threads in kernels.
 */
#ifndef ZB_KERNELS_SCRATCH_H
#define ZB_KERNELS_SCRATCH_H

#include <zerobit/status.h>

enum { ZB_SCRATCH_FLOATS = 544 * 1024, ZB_SCRATCH_SLOTS = 64 };

/** ZB_SCRATCH_FLOATS floats, 64-byte aligned, contents undefined. Waits while all ZB_SCRATCH_SLOTS are in
 * use. ZB_NO_MEMORY where a new slot is needed and there is none. */
zb_status zb_scratch_claim(float **scratch_p);
/** By the thread that claimed it, before it claims another. */
void zb_scratch_release(float *scratch);

#endif
