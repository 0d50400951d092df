/* The oracle of a verification; see oracle.h. */
#include "verify/oracle.h"

zb_status zb_oracle_create(const zb_oracle_options *options, zb_ref **ref_p)
{
    const zb_verify_options *verify = options->verify;
    zb_schedule_config schedules[ZB_PARAM_GROUP_MAX];
    zb_config_list_schedules(verify->config, schedules);
    return zb_ref_create(&(zb_ref_options){ .plan = options->plan,
                                            .schedules = schedules,
                                            .group_of = options->group_of,
                                            .model = verify->model,
                                            .weights = verify->weights,
                                            .dataset = verify->dataset,
                                            .route = options->route,
                                            .with_contributions = options->with_contributions,
                                            .with_bounds = options->with_bounds,
                                            .sampler_seed = verify->sampler_seed,
                                            .shuffle = 1,
                                            .drop_last = verify->config->dataloader_drop_last,
                                            .reshuffle = options->plan->reshuffle },
                         ref_p);
}
