/* The optimizer step at an accumulation boundary. */
#ifndef ZEROBIT_ENGINE_BOUNDARY_H
#define ZEROBIT_ENGINE_BOUNDARY_H

#include <zerobit/engine.h>

/* Reduce, overflow, loss scale, norm, clip and optimizer, publish, learning rate. ZB_LOSS_SCALE where
 * DeepSpeed ends training. */
zb_status zb_boundary_step(zb_engine *engine);
/* The step that DeepSpeed's 16-bit optimizers of stage 0 take when they are made: zero gradients, the
 * optimizer's own learning rate; the model does not see the weights that come of it. Source:
 * fp16/fused_optimizer.py, initialize_optimizer_states. */
zb_status zb_boundary_hidden_step(zb_engine *engine);

#endif
