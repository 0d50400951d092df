/* Learning-rate schedules in double, operation by operation as DeepSpeed's Python computes them. */
#include <zerobit/schedule.h>

#include <math.h>
#include <stddef.h>

static zb_status check_rate(const char *name, double rate)
{
    if (isfinite(rate)) return ZB_OK;
    return zb_fail(ZB_INVALID_CONFIG, "%s is %g, want a finite number", name, rate);
}

/*
 * A schedule is built before the first step, when last_batch_iteration is -1, and gives its minimum then;
 * its first step() makes that 0, where log(1) and 0/n give the minimum again. Hence the two first equal
 * rates. Source: deepspeed/runtime/lr_schedules.py, WarmupLR.get_lr and _get_gamma.
 */
static double warmup_rate(const zb_schedule_config *config, int64_t last)
{
    if (last < 0) return config->warmup_min_lr;
    int64_t steps = config->warmup_num_steps > 2 ? config->warmup_num_steps : 2;
    double gamma = 1.0;
    if (last < steps) {
        if (config->warmup_type == ZB_WARMUP_LOG)
            gamma = (1.0 / log((double)steps)) * log((double)(last + 1));
        else
            gamma = (double)last / (double)steps;
    }
    return config->warmup_min_lr + (config->warmup_max_lr - config->warmup_min_lr) * gamma;
}

static double rate(const zb_schedule *schedule)
{
    switch (schedule->config.kind) {
    case ZB_SCHEDULE_CONSTANT:
        return schedule->config.base_lr;
    case ZB_SCHEDULE_WARMUP_LR:
        return warmup_rate(&schedule->config, schedule->last_batch_iteration);
    }
    ZB_ASSERT(!"a schedule that zb_schedule_init let through");
    return NAN;
}

zb_status zb_schedule_init(zb_schedule *schedule, const zb_schedule_config *config)
{
    switch (config->kind) {
    case ZB_SCHEDULE_CONSTANT:
        ZB_TRY(check_rate("lr", config->base_lr));
        break;
    case ZB_SCHEDULE_WARMUP_LR:
        ZB_TRY(check_rate("warmup_min_lr", config->warmup_min_lr));
        ZB_TRY(check_rate("warmup_max_lr", config->warmup_max_lr));
        if (config->warmup_num_steps < 1)
            return zb_fail(ZB_INVALID_CONFIG, "warmup_num_steps is %lld, want at least 1",
                           (long long)config->warmup_num_steps);
        if (config->warmup_type != ZB_WARMUP_LOG && config->warmup_type != ZB_WARMUP_LINEAR)
            return zb_fail(ZB_INVALID_CONFIG, "warmup_type is %d, want log or linear",
                           (int)config->warmup_type);
        break;
    default:
        return zb_fail(ZB_INVALID_CONFIG, "schedule kind is %d, want a known one", (int)config->kind);
    }
    *schedule = (zb_schedule){ .config = *config, .last_batch_iteration = -1 };
    schedule->lr = rate(schedule);
    return ZB_OK;
}

void zb_schedule_step(zb_schedule *schedule)
{
    schedule->last_batch_iteration++;
    schedule->lr = rate(schedule);
}

double zb_schedule_lr(const zb_schedule *schedule)
{
    return schedule->lr;
}
