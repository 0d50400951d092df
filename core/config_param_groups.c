/*
 * The parameter groups: "zerobit": {"param_groups": [...]}. DeepSpeed is given them as model_parameters, a
 * list of dictionaries, each with its parameters and the hyper-parameters in which it departs from the
 * optimizer's. Here a group names its parameters by patterns.
 */
#include "core/config_rules.h"

#include <fnmatch.h>
#include <math.h>
#include <stddef.h>
#include <string.h>
#include <zerobit/memory.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

enum {
    ADAM = 1 << ZB_OPTIMIZER_ADAM,
    SGD = 1 << ZB_OPTIMIZER_SGD,
    ADAGRAD = 1 << ZB_OPTIMIZER_ADAGRAD,
    LION = 1 << ZB_OPTIMIZER_LION,
    LAMB = 1 << ZB_OPTIMIZER_LAMB,
    HAVE_BETAS = ADAM | LION | LAMB,
    ALL = HAVE_BETAS | SGD | ADAGRAD
};

/* The numbers that a group may give, and the optimizers that have them. */
static const struct hyper_parameter {
    const char *key;
    unsigned kinds;
    double min;
    size_t offset; /* of a double in zb_optimizer_config */
} hyper_parameters[] = {
    { "lr", ALL, 0, offsetof(zb_optimizer_config, lr) },
    { "weight_decay", ALL, 0, offsetof(zb_optimizer_config, weight_decay) },
    { "eps", ADAM | ADAGRAD | LAMB, 0, offsetof(zb_optimizer_config, eps) },
    { "momentum", SGD, 0, offsetof(zb_optimizer_config, momentum) },
    { "lr_decay", ADAGRAD, 0, offsetof(zb_optimizer_config, lr_decay) },
    { "min_coeff", LAMB, 0, offsetof(zb_optimizer_config, min_coeff) },
    { "max_coeff", LAMB, 0, offsetof(zb_optimizer_config, max_coeff) },
    { "dampening", SGD, -INFINITY, offsetof(zb_optimizer_config, dampening) },
};

static const struct hyper_parameter *find(const char *key)
{
    for (size_t i = 0; i < COUNT(hyper_parameters); i++)
        if (strcmp(hyper_parameters[i].key, key) == 0) return &hyper_parameters[i];
    return NULL;
}

static zb_status refuse_foreign(const zb_json_at *at)
{
    return zb_json_fail(at, ZB_INVALID_CONFIG, "it left out: the optimizer has no such hyper-parameter");
}

static zb_status read_number(const zb_json_at *at, zb_optimizer_config *optimizer)
{
    const struct hyper_parameter *known = find(at->name);
    if (known == NULL)
        return zb_json_fail(
            at, ZB_INVALID_CONFIG,
            "params, or a hyper-parameter that differs by group: lr, weight_decay, betas, eps, "
            "momentum, dampening, lr_decay, min_coeff, max_coeff");
    if (!(known->kinds & 1u << optimizer->kind)) return refuse_foreign(at);
    if (optimizer->arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU && strcmp(at->name, "lr_decay") == 0)
        return refuse_foreign(at);
    double *number = (double *)(void *)((char *)optimizer + known->offset);
    return zb_config_read_number(at, ZB_SECTION_CALL, known->min, number);
}

static zb_status read_patterns(const zb_json_at *at, zb_param_group *group)
{
    size_t count = 0;
    ZB_TRY(zb_json_array(at, &count));
    if (count == 0)
        return zb_json_fail(at, ZB_INVALID_CONFIG, "patterns of parameter names, or the key left out");
    group->patterns = zb_alloc_array(count, sizeof *group->patterns);
    if (group->patterns == NULL) return ZB_NO_MEMORY;
    for (zb_json_at pattern = zb_json_first(at); pattern.value != NULL; pattern = zb_json_next(&pattern)) {
        const char *text;
        ZB_TRY(zb_json_string(&pattern, &text));
        char *copy = zb_strdup(text);
        if (copy == NULL) return ZB_NO_MEMORY;
        group->patterns[group->pattern_count++] = copy;
    }
    return ZB_OK;
}

static zb_status read_group(const zb_json_at *at, zb_param_group *group)
{
    ZB_TRY(zb_json_object(at));
    for (zb_json_at member = zb_json_first(at); member.value != NULL; member = zb_json_next(&member)) {
        if (strcmp(member.name, "params") == 0)
            ZB_TRY(read_patterns(&member, group));
        else if (strcmp(member.name, "betas") == 0 && !(HAVE_BETAS & 1u << group->optimizer.kind))
            return refuse_foreign(&member);
        else if (strcmp(member.name, "betas") == 0)
            ZB_TRY(zb_config_read_betas(at, &group->optimizer));
        else
            ZB_TRY(read_number(&member, &group->optimizer));
    }
    return ZB_OK;
}

/* What no pattern names is the rest; two groups cannot both have it. */
static zb_status check_one_rest(const zb_config *config, const zb_json_at *groups)
{
    int rests = 0;
    for (int g = 0; g < config->group_count; g++) rests += config->groups[g].pattern_count == 0;
    if (rests < 2) return ZB_OK;
    return zb_json_fail(groups, ZB_INVALID_CONFIG,
                        "at most one group without params: it gets all that no other names");
}

zb_status zb_config_read_param_groups(zb_config *config, const zb_json_at *root)
{
    zb_json_at section = zb_json_member(root, "zerobit"), groups = zb_json_member(&section, "param_groups");
    config->group_count = 1;
    config->groups[0].optimizer = config->optimizer;
    if (groups.value == NULL) return ZB_OK;
    size_t count = 0;
    ZB_TRY(zb_json_array(&groups, &count));
    if (count < 1 || count > ZB_PARAM_GROUP_MAX)
        return zb_json_fail(&groups, ZB_INVALID_CONFIG, "1 to %d groups", ZB_PARAM_GROUP_MAX);
    if (!config->optimizer_given)
        return zb_json_fail(&groups, ZB_INVALID_CONFIG,
                            "it left out: there is no optimizer to give groups to");
    config->group_count = 0;
    for (zb_json_at at = zb_json_first(&groups); at.value != NULL; at = zb_json_next(&at)) {
        zb_param_group *group = &config->groups[config->group_count++];
        group->optimizer = config->optimizer;
        ZB_TRY(read_group(&at, group));
    }
    return check_one_rest(config, &groups);
}

static void destroy_group(zb_param_group *group)
{
    for (size_t i = 0; i < group->pattern_count; i++) zb_free(group->patterns[i]);
    zb_free(group->patterns);
}

void zb_config_destroy_param_groups(zb_config *config)
{
    for (int g = 0; g < ZB_PARAM_GROUP_MAX; g++) destroy_group(&config->groups[g]);
}

static int names(const zb_param_group *group, const char *param)
{
    for (size_t i = 0; i < group->pattern_count; i++)
        if (fnmatch(group->patterns[i], param, 0) == 0) return 1;
    return 0;
}

/* The first group that names it, else the one of the rest; -1: none. */
static int group_of_param(const zb_config *config, const char *param)
{
    int rest = -1;
    for (int g = 0; g < config->group_count; g++) {
        if (config->groups[g].pattern_count == 0)
            rest = g;
        else if (names(&config->groups[g], param))
            return g;
    }
    return rest;
}

/* A group without a trainable parameter breaks DeepSpeed's stages 1 and 2; here it would be a pattern with a
 * slip. */
static zb_status check_used(const zb_config *config, const zb_model *model, const int *group_of)
{
    for (int g = 0; g < config->group_count; g++) {
        int used = 0;
        for (int p = 0; p < model->param_count; p++)
            used += group_of[p] == g && model->params[p].requires_grad;
        if (used == 0)
            return zb_fail(
                ZB_INVALID_CONFIG,
                "%s: zerobit.param_groups[%d]: has no trainable parameter of model %s, want at least one",
                config->path, g, model->name);
    }
    return ZB_OK;
}

zb_status zb_config_assign_groups(const zb_config *config, const zb_model *model, int *group_of)
{
    for (int p = 0; p < model->param_count; p++) {
        const int group = group_of_param(config, model->params[p].name);
        if (group < 0 && model->params[p].requires_grad)
            return zb_fail(
                ZB_INVALID_CONFIG,
                "%s: zerobit.param_groups: no group has parameter %s of model %s; a group without params "
                "would get the rest",
                config->path, model->params[p].name, model->name);
        group_of[p] = group < 0 ? 0 : group;
    }
    return config->group_count == 1 && config->groups[0].pattern_count == 0
               ? ZB_OK
               : check_used(config, model, group_of);
}

void zb_config_list_schedules(const zb_config *config, zb_schedule_config schedules[ZB_PARAM_GROUP_MAX])
{
    for (int g = 0; g < config->group_count; g++) schedules[g] = config->groups[g].schedule;
}
