/* A micro-batch without a forward of our own: local gradients come from outside and take the way that those
 * of backward take. */
#ifndef ZEROBIT_ENGINE_EXTERNAL_H
#define ZEROBIT_ENGINE_EXTERNAL_H

#include <zerobit/engine.h>

/* Refuses what is missing; changes nothing. */
zb_status zb_external_check(const zb_engine *engine, const float *const *values);
/* The stage sees what a forward and a backward would show it, module by module and gradient by gradient.
 * `seed` is the gradient of the loss, divided by `divisor` at the model's output. */
zb_status zb_external_run(zb_engine *engine, zb_external_kind kind, const float *const *values, float seed,
                          float divisor);

#endif
