/* The parameters of a recorded run as a model; see replay_model.h. */
#include "verify/replay_model.h"

/* DistributedDataParallel has buckets of its own, and tells the ranks in its second step how it has made them
 * anew. */
int zb_replay_calls_alike(const zb_replay_run *run)
{
    return run->config->semantics == ZB_SEMANTICS_DEEPSPEED_0_19_6;
}

/* The order of modules bears on nothing but collectives. */
zb_status zb_replay_model_create(const zb_replay_run *run, zb_model **model_p)
{
    *model_p = NULL;
    ZB_TRY(zb_model_create(run->name, NULL, ZB_LOSS_ELSEWHERE, model_p));
    for (int p = 0; p < run->param_count; p++)
        ZB_TRY(zb_model_add(*model_p, &(zb_module_spec){ .kind = ZB_MODULE_PARAMETER,
                                                         .name = run->param_names[p],
                                                         .shape = { 1, { (int64_t)run->param_numel[p] } },
                                                         .frozen = run->frozen[p] }));
    if (zb_replay_calls_alike(run) && run->order.layer_count > 0)
        ZB_TRY(zb_model_set_order(*model_p, &run->order));
    return zb_model_finish(*model_p);
}
