/*
 * Learning rates and betas, step by step, as DeepSpeed's scheduler classes set them (fixtures/lr-schedules):
 * from the text of a config to the last bit of a double. What a config leaves out is DeepSpeed's default.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <string.h>
#include <zerobit/config.h>
#include <zerobit/schedule.h>

#include "core/json.h"

#define SCHEDULES ZB_SOURCE_DIR "/fixtures/lr-schedules/schedules.json"

static void assert_ok(zb_status status)
{
    if (status != ZB_OK) fail_msg("%s", zb_error_message());
}

static zb_schedule schedule_of(const zb_json_at *recorded)
{
    const zb_json_at at = zb_json_member(recorded, "config");
    const char *text;
    zb_config *config;
    zb_schedule schedule;
    assert_ok(zb_json_string(&at, &text));
    assert_ok(zb_config_parse(text, strlen(text), "schedules.json", &config));
    assert_ok(zb_schedule_init(&schedule, &config->groups[0].schedule));
    zb_config_destroy(config);
    return schedule;
}

/* The recorded value of a list's next step, and on to the one after it. */
static void check_value(const char *name, size_t number, int step, zb_json_at *next, double got)
{
    double want;
    assert_ok(zb_json_double(next, &want));
    if (memcmp(&got, &want, sizeof got) != 0)
        fail_msg("schedule %zu, step %d: %s is %.17g, want %.17g", number, step, name, got, want);
    *next = zb_json_next(next);
}

static void check_schedule(const zb_json_at *recorded, size_t number)
{
    zb_schedule schedule = schedule_of(recorded);
    const zb_json_at lists[] = { zb_json_member(recorded, "lr"), zb_json_member(recorded, "beta1"),
                                 zb_json_member(recorded, "beta2") };
    zb_json_at lr = zb_json_first(&lists[0]), beta1 = zb_json_first(&lists[1]),
               beta2 = zb_json_first(&lists[2]);
    const int has_momentum = zb_json_given(&lists[1]);
    size_t steps;
    assert_ok(zb_json_array(&lists[0], &steps));
    assert_int_equal(steps, 24);
    assert_int_equal(zb_schedule_has_momentum(&schedule), has_momentum);
    for (int step = 0; step < (int)steps; step++) {
        check_value("lr", number, step, &lr, zb_schedule_lr(&schedule));
        if (has_momentum) {
            check_value("beta1", number, step, &beta1, zb_schedule_beta1(&schedule));
            check_value("beta2", number, step, &beta2, zb_schedule_beta2(&schedule));
        }
        zb_schedule_step(&schedule);
    }
}

static void every_recorded_step(void **state)
{
    (void)state;
    zb_json *file;
    assert_ok(zb_json_load(SCHEDULES, &file));
    const zb_json_at root = zb_json_root(file), schedules = zb_json_member(&root, "schedules");
    size_t count;
    assert_ok(zb_json_array(&schedules, &count));
    assert_int_equal(count, 92);
    size_t number = 0;
    for (zb_json_at at = zb_json_first(&schedules); at.value != NULL; at = zb_json_next(&at))
        check_schedule(&at, number++);
    zb_json_destroy(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(every_recorded_step) };
    return cmocka_run_group_tests_name("lr_schedules", tests, NULL, NULL);
}
