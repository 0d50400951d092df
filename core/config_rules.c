/* Judging the keys of a config section by a table, and DeepSpeed's conversions of values. */
#include "core/config_rules.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <zerobit/memory.h>

zb_status zb_config_note(zb_config *config, const zb_json_at *at, const char *format, ...)
{
    char text[1024];
    zb_json_describe(at, text, 256);
    size_t used = strlen(text);
    used += (size_t)snprintf(text + used, sizeof text - used, ": ");
    va_list args;
    va_start(args, format);
    vsnprintf(text + used, sizeof text - used, format, args);
    va_end(args);

    char **notes = zb_realloc(config->notes, (config->note_count + 1) * sizeof *notes);
    if (notes == NULL) return ZB_NO_MEMORY;
    config->notes = notes;
    char *note = zb_strdup(text);
    if (note == NULL) return ZB_NO_MEMORY;
    notes[config->note_count++] = note;
    return ZB_OK;
}

int zb_config_index_of(const char *text, const char *const *list, int ignore_case)
{
    for (int i = 0; list[i] != NULL; i++)
        if ((ignore_case ? strcasecmp(text, list[i]) : strcmp(text, list[i])) == 0) return i;
    return -1;
}

static int is_auto(const zb_json_at *at)
{
    return cJSON_IsString(at->value) && strcmp(at->value->valuestring, "auto") == 0;
}

zb_json_at zb_config_closed_member(const zb_json_at *section, const char *key)
{
    zb_json_at member = zb_json_member(section, key);
    if (is_auto(&member)) member.value = NULL;
    return member;
}

/* ---- values ------------------------------------------------------------------------------------------ */

/* pydantic takes 0 and 1 and these words, in any case. */
static int bool_from_lax(const cJSON *value, int *out)
{
    static const char *const off[] = { "0", "off", "f", "false", "n", "no", NULL };
    static const char *const on[] = { "1", "on", "t", "true", "y", "yes", NULL };
    if (cJSON_IsNumber(value) && (value->valuedouble == 0 || value->valuedouble == 1)) {
        *out = value->valuedouble == 1;
        return 1;
    }
    if (!cJSON_IsString(value)) return 0;
    if (zb_config_index_of(value->valuestring, off, 1) >= 0) {
        *out = 0;
        return 1;
    }
    if (zb_config_index_of(value->valuestring, on, 1) < 0) return 0;
    *out = 1;
    return 1;
}

zb_status zb_config_read_bool(const zb_json_at *at, zb_section_kind kind, int *out)
{
    if (at->value == NULL) return ZB_OK;
    if (kind == ZB_SECTION_CLOSED && bool_from_lax(at->value, out)) return ZB_OK;
    return zb_json_bool(at, out);
}

/* True when the value is a number, or text that is one and may be. */
static int number_from(const cJSON *value, zb_section_kind kind, double *out)
{
    if (cJSON_IsNumber(value)) {
        *out = value->valuedouble;
        return 1;
    }
    if (kind != ZB_SECTION_CLOSED || !cJSON_IsString(value)) return 0;
    const char *text = value->valuestring;
    /* strtod would take hexadecimal, inf and leading blanks as well. */
    if (text[0] == '\0' || strspn(text, "0123456789+-.eE") != strlen(text)) return 0;
    char *end;
    double number = strtod(text, &end);
    if (*end != '\0' || !isfinite(number)) return 0;
    *out = number;
    return 1;
}

zb_status zb_config_read_number(const zb_json_at *at, zb_section_kind kind, double min, double *out)
{
    if (at->value == NULL) return ZB_OK;
    double number;
    if (!number_from(at->value, kind, &number) || number < min) {
        if (min == -INFINITY) return zb_json_fail(at, ZB_INVALID_CONFIG, "a number");
        return zb_json_fail(at, ZB_INVALID_CONFIG, "a number not below %g", min);
    }
    *out = number;
    return ZB_OK;
}

zb_status zb_config_read_integer(const zb_json_at *at, zb_section_kind kind, int64_t min, int64_t max,
                                 int64_t *out)
{
    if (at->value == NULL) return ZB_OK;
    double number;
    if (!number_from(at->value, kind, &number) || number != floor(number) || number < (double)min ||
        number > (double)max)
        return zb_json_fail(at, ZB_INVALID_CONFIG, "an integer from %lld to %lld", (long long)min,
                            (long long)max);
    *out = (int64_t)number;
    return ZB_OK;
}

/* ---- rules ------------------------------------------------------------------------------------------- */

static zb_status judge_number(const zb_json_at *at, zb_section_kind kind, const zb_config_rule *rule,
                              int *neutral)
{
    double number = 0;
    if (rule->type == ZB_RULE_BOOL) {
        int boolean = 0;
        ZB_TRY(zb_config_read_bool(at, kind, &boolean));
        number = boolean;
    } else if (rule->type == ZB_RULE_NUMBER) {
        ZB_TRY(zb_config_read_number(at, kind, rule->min, &number));
    } else if (!number_from(at->value, kind, &number) || number != floor(number) || number < rule->min) {
        /* No upper end: Python's sys.maxsize is a usual value for "no limit". */
        return zb_json_fail(at, ZB_INVALID_CONFIG, "an integer not below %g", rule->min);
    }
    *neutral = number == rule->neutral;
    return ZB_OK;
}

/* Refuses a member `name` that is not off, wherever it is below `at`. */
static zb_status refuse_switched_on(const zb_json_at *at, const char *name)
{
    for (zb_json_at child = zb_json_first(at); child.value != NULL; child = zb_json_next(&child)) {
        int is_switch = child.name != NULL && strcmp(child.name, name) == 0;
        if (is_switch && zb_json_given(&child) && !cJSON_IsFalse(child.value))
            return zb_json_fail(&child, ZB_UNSUPPORTED, "false: this feature is not supported yet");
        ZB_TRY(refuse_switched_on(&child, name));
    }
    return ZB_OK;
}

static zb_status refuse_other_value(const zb_json_at *at, const zb_config_rule *rule)
{
    if (rule->type == ZB_RULE_EMPTY)
        return zb_json_fail(at, ZB_UNSUPPORTED, "it left out: this feature is not supported yet");
    if (rule->type == ZB_RULE_BOOL)
        return zb_json_fail(at, ZB_UNSUPPORTED, "%s: the other value is not supported yet",
                            rule->neutral != 0 ? "true" : "false");
    return zb_json_fail(at, ZB_UNSUPPORTED, "%g: other values are not supported yet", rule->neutral);
}

static zb_status judge_value(zb_config *config, const zb_json_at *at, zb_section_kind kind,
                             const zb_config_rule *rule)
{
    int neutral = 0;
    if (cJSON_IsNull(at->value) && rule->null_fine) return ZB_OK;
    switch (rule->type) {
    case ZB_RULE_BOOL:
    case ZB_RULE_INTEGER:
    case ZB_RULE_NUMBER:
        ZB_TRY(judge_number(at, kind, rule, &neutral));
        break;
    case ZB_RULE_ANY:
        break;
    case ZB_RULE_OBJECT:
        ZB_TRY(zb_json_object(at));
        break;
    case ZB_RULE_SWITCH:
        ZB_TRY(zb_json_object(at));
        return refuse_switched_on(at, rule->detail);
    case ZB_RULE_EMPTY:
        neutral = cJSON_IsNull(at->value) || (cJSON_IsObject(at->value) && at->value->child == NULL);
    }
    if (neutral) return ZB_OK;
    if (rule->effect == ZB_RULE_DEEPSPEED && config->semantics == ZB_SEMANTICS_DEEPSPEED_0_19_6) return ZB_OK;
    if (rule->effect != ZB_RULE_NO_EFFECT) return refuse_other_value(at, rule);
    return zb_config_note(config, at, "no effect: %s", rule->detail);
}

static const zb_config_rule *find_rule(const char *key, const zb_config_rule *rules, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(rules[i].key, key) == 0 || (rules[i].alias != NULL && strcmp(rules[i].alias, key) == 0))
            return &rules[i];
    return NULL;
}

static zb_status judge_member(zb_config *config, const zb_json_at *section, const zb_json_at *at,
                              zb_section_kind kind, const char *label, const zb_config_rule *rules,
                              size_t count)
{
    const zb_config_rule *rule = find_rule(at->name, rules, count);
    if (rule == NULL && kind == ZB_SECTION_OPEN)
        return zb_config_note(config, at, "no effect: DeepSpeed ignores keys that it does not know here");
    if (kind == ZB_SECTION_CLOSED && is_auto(at) && rule != NULL) return ZB_OK;
    if (rule == NULL)
        return zb_json_fail(at, ZB_INVALID_CONFIG, "a key that %s knows: this one is unknown", label);
    if (kind == ZB_SECTION_OPEN && is_auto(at))
        return zb_json_fail(
            at, ZB_INVALID_CONFIG,
            "a value: DeepSpeed understands \"auto\" only inside zero_optimization, fp16 and bf16");
    if (rule->alias != NULL && strcmp(at->name, rule->alias) == 0 &&
        zb_config_closed_member(section, rule->key).value != NULL)
        return zb_json_fail(at, ZB_INVALID_CONFIG, "either this key or %s, not both", rule->key);
    if (rule->effect == ZB_RULE_HONOURED) return ZB_OK;
    return judge_value(config, at, kind, rule);
}

zb_status zb_config_judge(zb_config *config, const zb_json_at *section, zb_section_kind kind,
                          const char *label, const zb_config_rule *rules, size_t count)
{
    ZB_TRY(zb_json_object(section));
    for (zb_json_at at = zb_json_first(section); at.value != NULL; at = zb_json_next(&at))
        ZB_TRY(judge_member(config, section, &at, kind, label, rules, count));
    return ZB_OK;
}
