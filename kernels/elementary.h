/* exp and log of fp32, correctly rounded: the same bits on every machine. NaN gives NaN. */
#ifndef ZB_KERNELS_ELEMENTARY_H
#define ZB_KERNELS_ELEMENTARY_H

float zb_expf(float x);
float zb_logf(float x);

/* The slow paths that the two above fall back to when a rounding is in doubt; the tests try them everywhere.
 */
float zb_expf_accurate(float x);
float zb_logf_accurate(float x);

#endif
