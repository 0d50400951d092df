/*
 * Learning-rate schedules in double, operation by operation as DeepSpeed's Python computes them.
 *
 * A schedule is built before the first step, when last_batch_iteration is -1, and gives its constructor's
 * value then. Source: deepspeed/runtime/lr_schedules.py.
 */
#include <zerobit/schedule.h>

#include <math.h>
#include <stddef.h>

/* M_PI is not C. The double nearest to pi, which is Python's math.pi. */
static const double pi = 3.14159265358979323846;

/* ---- what is refused --------------------------------------------------------------------------------- */

typedef struct named_number {
    const char *name;
    double value;
} named_number;

static zb_status check_finite(const named_number *numbers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(numbers[i].value))
            return zb_fail(ZB_INVALID_CONFIG, "%s is %g, want a finite number", numbers[i].name,
                           numbers[i].value);
    return ZB_OK;
}

static zb_status check_count(const char *name, int64_t count, int64_t min)
{
    if (count >= min) return ZB_OK;
    return zb_fail(ZB_INVALID_CONFIG, "%s is %lld, want at least %lld", name, (long long)count,
                   (long long)min);
}

#define NUMBER(field)                                                                                        \
    {                                                                                                        \
#field, config->field                                                                                \
    }
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static zb_status check_warmup(const zb_schedule_config *config)
{
    const named_number rates[] = { NUMBER(warmup_min_lr), NUMBER(warmup_max_lr) };
    const named_number ratios[] = { { "lr", config->base_lr },
                                    NUMBER(warmup_min_ratio),
                                    NUMBER(cos_min_ratio) };
    if (config->kind == ZB_SCHEDULE_WARMUP_COSINE_LR)
        ZB_TRY(check_finite(ratios, COUNT(ratios)));
    else
        ZB_TRY(check_finite(rates, COUNT(rates)));
    ZB_TRY(check_count("warmup_num_steps", config->warmup_num_steps, 1));
    if (config->kind != ZB_SCHEDULE_WARMUP_LR)
        ZB_TRY(check_count("total_num_steps", config->total_num_steps, 0));
    if (config->warmup_type != ZB_WARMUP_LOG && config->warmup_type != ZB_WARMUP_LINEAR)
        return zb_fail(ZB_INVALID_CONFIG, "warmup_type is %d, want log or linear", (int)config->warmup_type);
    return ZB_OK;
}

static zb_status check_range_test(const zb_schedule_config *config)
{
    const named_number numbers[] = { NUMBER(lr_range_test_min_lr), NUMBER(lr_range_test_step_rate) };
    ZB_TRY(check_finite(numbers, COUNT(numbers)));
    return check_count("lr_range_test_step_size", config->lr_range_test_step_size, 1);
}

static zb_status check_one_cycle(const zb_schedule_config *config)
{
    const named_number numbers[] = {
        NUMBER(cycle_min_lr),    NUMBER(cycle_max_lr),          NUMBER(decay_lr_rate),
        NUMBER(decay_step_size), NUMBER(cycle_first_step_size), NUMBER(cycle_second_step_size),
        NUMBER(cycle_min_mom),   NUMBER(cycle_max_mom),         NUMBER(decay_mom_rate),
        NUMBER(cycle_start_mom), NUMBER(cycle_beta2),
    };
    ZB_TRY(check_finite(numbers, COUNT(numbers)));
    if (config->cycle_first_step_size <= 0)
        return zb_fail(ZB_INVALID_CONFIG, "cycle_first_step_size is %g, want more than 0",
                       config->cycle_first_step_size);
    if (config->cycle_second_step_size < 0)
        return zb_fail(ZB_INVALID_CONFIG, "cycle_second_step_size is %g, want at least 0",
                       config->cycle_second_step_size);
    ZB_TRY(check_count("cycle_first_stair_count", config->cycle_first_stair_count, 0));
    return check_count("cycle_second_stair_count", config->cycle_second_stair_count, 0);
}

static zb_status check(const zb_schedule_config *config)
{
    switch (config->kind) {
    case ZB_SCHEDULE_CONSTANT:
        return check_finite(&(named_number){ "lr", config->base_lr }, 1);
    case ZB_SCHEDULE_WARMUP_LR:
    case ZB_SCHEDULE_WARMUP_DECAY_LR:
    case ZB_SCHEDULE_WARMUP_COSINE_LR:
        return check_warmup(config);
    case ZB_SCHEDULE_LR_RANGE_TEST:
        return check_range_test(config);
    case ZB_SCHEDULE_ONE_CYCLE:
        return check_one_cycle(config);
    }
    return zb_fail(ZB_INVALID_CONFIG, "schedule kind is %d, want a known one", (int)config->kind);
}

/* ---- Warmup* ----------------------------------------------------------------------------------------- */

static int64_t warmup_steps(const zb_schedule_config *config)
{
    return config->warmup_num_steps > 2 ? config->warmup_num_steps : 2;
}

/* From 0 at last = 0, where log(1) and 0/n are 0, so that the first step() gives the minimum once more. */
static double warmup_gamma(const zb_schedule_config *config, int64_t last)
{
    double steps = (double)warmup_steps(config);
    if (config->warmup_type == ZB_WARMUP_LOG) return (1.0 / log(steps)) * log((double)(last + 1));
    return (double)last / steps;
}

static double warmup_rate(const zb_schedule_config *config, int64_t last)
{
    if (last < 0) return config->warmup_min_lr;
    const int64_t steps = warmup_steps(config), total = config->total_num_steps;
    double gamma = 1.0;
    if (last < steps)
        gamma = warmup_gamma(config, last);
    else if (config->kind == ZB_SCHEDULE_WARMUP_DECAY_LR)
        gamma = fmax(0.0, (double)(total - last) / fmax(1.0, (double)(total - steps)));
    return config->warmup_min_lr + (config->warmup_max_lr - config->warmup_min_lr) * gamma;
}

/* The constructor's value is 0, not the smallest ratio: DeepSpeed asks for the rate before it has begun. */
static double warmup_cosine_rate(const zb_schedule_config *config, int64_t last)
{
    if (last < 0) return 0.0;
    const int64_t steps = warmup_steps(config), total = config->total_num_steps;
    double ratio;
    if (last < steps) {
        ratio = config->warmup_min_ratio + warmup_gamma(config, last) * (1.0 - config->warmup_min_ratio);
    } else {
        double progress = fmin(1.0,
                               (double)(last - steps + 1) / (double)(total - steps > 1 ? total - steps : 1));
        double height = (1 + cos(pi * progress)) / 2;
        ratio = fmax(0.0, config->cos_min_ratio + (1.0 - config->cos_min_ratio) * height);
    }
    return config->base_lr * ratio;
}

/* ---- LRRangeTest ------------------------------------------------------------------------------------- */

static double range_test_rate(const zb_schedule_config *config, int64_t last)
{
    if (last < 0) return config->lr_range_test_min_lr;
    double interval = (double)(last + 1) / (double)config->lr_range_test_step_size;
    if (config->lr_range_test_staircase) interval = floor(interval);
    return config->lr_range_test_min_lr * (1 + config->lr_range_test_step_rate * interval);
}

/* ---- OneCycle ---------------------------------------------------------------------------------------- */

static double cycle_size(const zb_schedule_config *config)
{
    return config->cycle_first_step_size + config->cycle_second_step_size;
}

/* A stair comes from the count of steps, not from the continuous height, which rounds to just below one. */
static double stair_height(const zb_schedule_config *config, double step, int64_t stair_count)
{
    const double first = config->cycle_first_step_size, total = cycle_size(config);
    double stairs = (double)stair_count, within = fmod(step, total);
    double position = within <= first ? within * stairs / first
                                      : (total - within) * stairs / config->cycle_second_step_size;
    return floor(position) / stairs;
}

/* How far between the low and the high end of the cycle; 0 at its ends, 1 where its halves meet. */
static double cycle_height(const zb_schedule_config *config, int64_t last)
{
    const double total = cycle_size(config), turn = config->cycle_first_step_size / total;
    double step = (double)(last + 1);
    double x = 1.0 + step / total - floor(1.0 + step / total);
    int rising = x <= turn;
    int64_t stair_count = rising ? config->cycle_first_stair_count : config->cycle_second_stair_count;
    if (stair_count > 0) return stair_height(config, step, stair_count);
    return rising ? x / turn : (x - 1) / (turn - 1);
}

/* How many decay steps have gone by since the cycle ended, in parts of one. */
static double decay_interval(const zb_schedule_config *config, int64_t last)
{
    return ((double)last - cycle_size(config) + 1) / config->decay_step_size;
}

static double one_cycle_rate(const zb_schedule_config *config, int64_t last)
{
    const double low = config->cycle_min_lr, high = config->cycle_max_lr;
    if (last < 0) return low;
    if ((double)last < cycle_size(config)) return low + (high - low) * cycle_height(config, last);
    if (config->decay_step_size == 0) return low;
    return low / (1 + config->decay_lr_rate * decay_interval(config, last));
}

/* Against the rate: high at the ends. Its decay is an increase, as in DeepSpeed. */
static double one_cycle_beta1(const zb_schedule_config *config, int64_t last)
{
    const double low = config->cycle_min_mom, high = config->cycle_max_mom;
    if (last < 0) return config->cycle_start_mom;
    if ((double)last < cycle_size(config)) return high - (high - low) * cycle_height(config, last);
    if (config->decay_step_size == 0) return high;
    return high * (1 + config->decay_mom_rate * decay_interval(config, last));
}

/* ---- the state machine ------------------------------------------------------------------------------- */

static double rate(const zb_schedule *schedule)
{
    const zb_schedule_config *config = &schedule->config;
    const int64_t last = schedule->last_batch_iteration;
    switch (config->kind) {
    case ZB_SCHEDULE_CONSTANT:
        return config->base_lr;
    case ZB_SCHEDULE_WARMUP_LR:
    case ZB_SCHEDULE_WARMUP_DECAY_LR:
        return warmup_rate(config, last);
    case ZB_SCHEDULE_WARMUP_COSINE_LR:
        return warmup_cosine_rate(config, last);
    case ZB_SCHEDULE_LR_RANGE_TEST:
        return range_test_rate(config, last);
    case ZB_SCHEDULE_ONE_CYCLE:
        return one_cycle_rate(config, last);
    }
    ZB_ASSERT(!"a schedule that zb_schedule_init let through");
    return NAN;
}

static void publish(zb_schedule *schedule)
{
    schedule->lr = rate(schedule);
    if (!zb_schedule_has_momentum(schedule)) return;
    schedule->beta1 = one_cycle_beta1(&schedule->config, schedule->last_batch_iteration);
    schedule->beta2 = schedule->config.cycle_beta2;
}

zb_status zb_schedule_init(zb_schedule *schedule, const zb_schedule_config *config)
{
    ZB_TRY(check(config));
    *schedule = (zb_schedule){ .config = *config, .last_batch_iteration = -1 };
    publish(schedule);
    return ZB_OK;
}

void zb_schedule_step(zb_schedule *schedule)
{
    schedule->last_batch_iteration++;
    publish(schedule);
}

double zb_schedule_lr(const zb_schedule *schedule)
{
    return schedule->lr;
}

int zb_schedule_has_momentum(const zb_schedule *schedule)
{
    return schedule->config.kind == ZB_SCHEDULE_ONE_CYCLE && schedule->config.cycle_momentum;
}

double zb_schedule_beta1(const zb_schedule *schedule)
{
    ZB_ASSERT(zb_schedule_has_momentum(schedule));
    return schedule->beta1;
}

double zb_schedule_beta2(const zb_schedule *schedule)
{
    ZB_ASSERT(zb_schedule_has_momentum(schedule));
    return schedule->beta2;
}

/* ---- all parameter groups ---------------------------------------------------------------------------- */

zb_status zb_schedules_init(zb_schedules *schedules, const zb_schedule_config *configs, int group_count)
{
    zb_schedules made = { .group_count = group_count };
    for (int g = 0; g < group_count; g++) ZB_TRY(zb_schedule_init(&made.group[g], &configs[g]));
    *schedules = made;
    return ZB_OK;
}

void zb_schedules_step(zb_schedules *schedules)
{
    for (int g = 0; g < schedules->group_count; g++) zb_schedule_step(&schedules->group[g]);
}

void zb_schedules_rates(const zb_schedules *schedules, double *rates)
{
    for (int g = 0; g < schedules->group_count; g++) rates[g] = zb_schedule_lr(&schedules->group[g]);
}

void zb_schedules_apply(const zb_schedules *schedules, zb_optimizer_config *groups)
{
    for (int g = 0; g < schedules->group_count; g++) {
        const zb_schedule *schedule = &schedules->group[g];
        groups[g].lr = zb_schedule_lr(schedule);
        if (!zb_schedule_has_momentum(schedule)) continue;
        groups[g].beta1 = zb_schedule_beta1(schedule);
        groups[g].beta2 = zb_schedule_beta2(schedule);
    }
}
