/* A config with a small model, its weights and data: what whole verifications in tests begin with. */
#ifndef TESTS_VERIFY_FIXTURE_H
#define TESTS_VERIFY_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include <zerobit/config.h>
#include <zerobit/data.h>
#include <zerobit/model.h>

typedef struct fixture {
    zb_config *config;
    zb_model *model;
    zb_weights weights;
    zb_dataset *dataset;
} fixture;

static void open_fixture(const char *config, fixture *f)
{
    assert_int_equal(zb_config_parse(config, strlen(config), NULL, &f->config), ZB_OK);
    assert_int_equal(zb_model_open("mlp:6-5-3", &f->model), ZB_OK);
    assert_int_equal(zb_weights_from_seed(f->model, 1, &f->weights), ZB_OK);
    assert_int_equal(zb_dataset_synthetic(f->model, 64, 1, &f->dataset), ZB_OK);
}

static void close_fixture(fixture *f)
{
    zb_dataset_destroy(f->dataset);
    zb_weights_destroy(&f->weights);
    zb_model_destroy(f->model);
    zb_config_destroy(f->config);
}

#endif
