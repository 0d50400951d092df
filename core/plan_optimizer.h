/* The optimizer's part of a plan. */
#ifndef ZEROBIT_CORE_PLAN_OPTIMIZER_H
#define ZEROBIT_CORE_PLAN_OPTIMIZER_H

#include <zerobit/config.h>
#include <zerobit/plan.h>
#include <zerobit/status.h>

/** torch.optim's own arithmetic. */
int zb_optimizer_is_of_torch(const zb_optimizer_config *optimizer);
/** The last few elements of a tensor are computed in another way. */
int zb_optimizer_has_tails(const zb_optimizer_config *optimizer);

/** True when both take every weight to the same bits. */
int zb_plan_optimizers_equal(const zb_plan *a, const zb_plan *b);

/** The optimizer that the config means at a stage, for each parameter group. ZB_INVALID_CONFIG without one,
 * or where DeepSpeed refuses it. */
zb_status zb_plan_derive_optimizer(const zb_config *config, int stage, zb_plan *plan);

#endif
