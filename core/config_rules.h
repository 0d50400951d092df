/*
 * How the keys of a config section are judged, as data: each key is honoured by code, or known to make no
 * difference (a note tells why), or accepted only at the value that changes nothing. Also the conversions
 * that DeepSpeed's closed (pydantic) sections make. Shared by the files that read the config.
 */
#ifndef ZEROBIT_CORE_CONFIG_RULES_H
#define ZEROBIT_CORE_CONFIG_RULES_H

#include <zerobit/config.h>
#include "core/json.h"

/* OPEN: unknown keys are noted, values have their JSON types. CLOSED: unknown keys are refused, "auto" reads
 * as absent, and numbers and booleans may be written as text. CALL: keyword arguments of a Python function:
 * unknown keys are refused, values have their JSON types. */
typedef enum zb_section_kind { ZB_SECTION_OPEN, ZB_SECTION_CLOSED, ZB_SECTION_CALL } zb_section_kind;

typedef enum zb_rule_effect {
    ZB_RULE_HONOURED,  /* read by the caller */
    ZB_RULE_NO_EFFECT, /* type and range checked; noted unless it has its neutral value */
    ZB_RULE_ONLY,      /* another value than the neutral one is not supported yet */
    ZB_RULE_DEEPSPEED  /* the same, but for deepspeed-0.19.6 semantics, where the caller reads it */
} zb_rule_effect;

typedef enum zb_rule_type {
    ZB_RULE_BOOL,
    ZB_RULE_INTEGER,
    ZB_RULE_NUMBER,
    ZB_RULE_ANY,
    ZB_RULE_OBJECT,
    ZB_RULE_SWITCH, /* an object; neutral when no member called `detail`, at any depth, is on */
    ZB_RULE_EMPTY   /* neutral when null or without members */
} zb_rule_type;

typedef struct zb_config_rule {
    const char *key, *alias; /* alias: DeepSpeed's second spelling, or NULL */
    zb_rule_effect effect;
    zb_rule_type type;
    double neutral; /* booleans as 0 and 1; NAN: none */
    double min;     /* of a number */
    int null_fine;
    const char *detail; /* NO_EFFECT: why; SWITCH: the member's name */
} zb_config_rule;

#define ZB_HONOURED(name)                                                                                    \
    {                                                                                                        \
        .key = (name), .effect = ZB_RULE_HONOURED                                                            \
    }

/** Judge every member of `section` by `rules` (`count` of them). `label` names the section in messages. */
zb_status zb_config_judge(zb_config *config, const zb_json_at *section, zb_section_kind kind,
                          const char *label, const zb_config_rule *rules, size_t count);

/** Append a note `KEY.PATH: text`. */
zb_status zb_config_note(zb_config *config, const zb_json_at *at, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/** The member of a closed section; "auto" reads as absent. */
zb_json_at zb_config_closed_member(const zb_json_at *section, const char *key);

/* Reads that leave *out at its default when the key is absent. */
zb_status zb_config_read_bool(const zb_json_at *at, zb_section_kind kind, int *out);
zb_status zb_config_read_number(const zb_json_at *at, zb_section_kind kind, double min, double *out);
zb_status zb_config_read_integer(const zb_json_at *at, zb_section_kind kind, int64_t min, int64_t max,
                                 int64_t *out);

/** Index of the text in a NULL-terminated list, -1 when it is not there. */
int zb_config_index_of(const char *text, const char *const *list, int ignore_case);

/**
 * Read a config that is part of a larger text. `path` names it in later messages; `semantics` hold unless it
 * names others itself. The caller owns *config_p.
 */
zb_status zb_config_read(const zb_json_at *root, const char *path, zb_semantics semantics,
                         zb_config **config_p);

/* The sections, in the order in which DeepSpeed judges them. */
zb_status zb_config_read_zero(zb_config *config, const zb_json_at *root);
zb_status zb_config_read_precision(zb_config *config, const zb_json_at *root);
zb_status zb_config_read_optimizer(zb_config *config, const zb_json_at *root);
zb_status zb_config_read_param_groups(zb_config *config, const zb_json_at *root); /* after the optimizer */
void zb_config_destroy_param_groups(zb_config *config);
zb_status zb_config_read_schedule(zb_config *config, const zb_json_at *root); /* of every group */

/** The member `betas` of an object of hyper-parameters; leaves *optimizer as it is when there is none. */
zb_status zb_config_read_betas(const zb_json_at *params, zb_optimizer_config *optimizer);

#endif
