/*
 * Options of a command as a table: parsed strictly, and printed as help. A value stands behind its option as
 * the next word or behind '='; options and operands mix freely, and "--" ends the options.
 */
#ifndef TOOLS_OPTIONS_H
#define TOOLS_OPTIONS_H

#include <stdint.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

enum { OPTION_LIST_MAX = 64, OPERAND_MAX = 3 };

typedef struct int_list {
    int values[OPTION_LIST_MAX];
    int count;
} int_list;

typedef struct dtype_list {
    zb_dtype values[ZB_DTYPE_COUNT];
    int count;
} dtype_list;

typedef enum option_kind {
    OPTION_FLAG,  /* to: int *, set to 1              */
    OPTION_TEXT,  /* to: const char **                */
    OPTION_INT,   /* to: int64_t *, min to max        */
    OPTION_INTS,  /* to: int_list *, each min to max, none twice */
    OPTION_DTYPES /* to: dtype_list *, none twice     */
} option_kind;

typedef struct option_spec {
    const char *name; /* "--stages" */
    option_kind kind;
    void *to;          /* untouched when the option is not given */
    const char *value; /* what the value is called in the help; NULL for a flag */
    const char *help;
    int64_t min, max;
} option_spec;

typedef struct command_spec {
    const char *name; /* "verify", "inspect lr" */
    const char *summary;
    const char *operands[OPERAND_MAX + 1]; /* all required; ends with NULL */
    const option_spec *options;            /* ends with name NULL */
} command_spec;

/**
 * operands[] receives the words that are no options. *help_p is set when --help is among the arguments; then
 * nothing else counts. ZB_INVALID_ARGUMENT names the option, the value and what was expected.
 */
zb_status options_parse(const command_spec *spec, int argc, char **argv, const char **operands, int *help_p);

void options_print_help(const command_spec *spec);

/** The candidate (NULL-terminated list) that `word` was probably meant to be, or NULL. */
const char *closest_word(const char *word, const char *const *candidates);

#endif
