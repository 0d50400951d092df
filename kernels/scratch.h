/*
 * Room for packed panels of a matrix product and a block of its result, claimed for the time of one call.
 *
 * A fixed pool in place of allocations: a call can neither fail nor leave anything behind, and memory that no
 * thread ever uses is never touched. A kernel does not yield, so there are never more claims than threads in
 * kernels.
 */
#ifndef ZB_KERNELS_SCRATCH_H
#define ZB_KERNELS_SCRATCH_H

enum { ZB_SCRATCH_FLOATS = 544 * 1024, ZB_SCRATCH_SLOTS = 64 };

/** ZB_SCRATCH_FLOATS floats, 64-byte aligned, contents undefined. Waits while more than ZB_SCRATCH_SLOTS are
 * in use. */
float *zb_scratch_claim(void);
void zb_scratch_release(float *scratch);

#endif
