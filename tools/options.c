/* Options of a command as a table. */
#include "tools/options.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- what was probably meant --- */

enum { WORD_MAX = 32 };

/* Letters to insert, delete or replace; WORD_MAX for words that are too long to be a slip. */
static int edit_distance(const char *a, const char *b)
{
    size_t length_a = strlen(a), length_b = strlen(b);
    if (length_a >= WORD_MAX || length_b >= WORD_MAX) return WORD_MAX;
    int row[WORD_MAX + 1];
    for (size_t j = 0; j <= length_b; j++) row[j] = (int)j;
    for (size_t i = 1; i <= length_a; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= length_b; j++) {
            int replace = diagonal + (a[i - 1] != b[j - 1]);
            int shorter = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = replace < shorter ? replace : shorter;
        }
    }
    return row[length_b];
}

const char *closest_word(const char *word, const char *const *candidates)
{
    const char *best = NULL;
    int best_distance = 3;
    for (; *candidates != NULL; candidates++) {
        int distance = edit_distance(word, *candidates);
        if (distance >= best_distance) continue;
        best_distance = distance;
        best = *candidates;
    }
    return best;
}

/* --- values --- */

static int parse_integer(const char *text, const char *end, int64_t *value)
{
    /* strtoll would also take blanks and a plus sign. */
    if (text == end || (*text != '-' && (*text < '0' || *text > '9'))) return 0;
    char *stop;
    errno = 0;
    long long parsed = strtoll(text, &stop, 10);
    if (errno != 0 || stop != end) return 0;
    *value = parsed;
    return 1;
}

/* One integer in [text, end), of an option's value. */
static zb_status read_integer(const option_spec *option, const char *text, const char *end, int64_t *value)
{
    if (!parse_integer(text, end, value) || *value < option->min || *value > option->max) {
        if (option->max == INT64_MAX)
            return zb_fail(ZB_INVALID_ARGUMENT, "%s %.*s: want an integer of at least %" PRId64, option->name,
                           (int)(end - text), text, option->min);
        return zb_fail(ZB_INVALID_ARGUMENT, "%s %.*s: want an integer from %" PRId64 " to %" PRId64,
                       option->name, (int)(end - text), text, option->min, option->max);
    }
    return ZB_OK;
}

static zb_status given_twice(const option_spec *option, const char *text, const char *end)
{
    return zb_fail(ZB_INVALID_ARGUMENT, "%s: %.*s is given twice", option->name, (int)(end - text), text);
}

static zb_status add_integer(const option_spec *option, const char *text, const char *end)
{
    int_list *list = option->to;
    int64_t value;
    ZB_TRY(read_integer(option, text, end, &value));
    for (int i = 0; i < list->count; i++)
        if (list->values[i] == value) return given_twice(option, text, end);
    if (list->count == OPTION_LIST_MAX)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s: more than %d values", option->name, OPTION_LIST_MAX);
    list->values[list->count++] = (int)value;
    return ZB_OK;
}

static zb_status add_dtype(const option_spec *option, const char *text, const char *end)
{
    dtype_list *list = option->to;
    char word[16] = "";
    zb_dtype dtype;
    if ((size_t)(end - text) < sizeof word) memcpy(word, text, (size_t)(end - text));
    if (!zb_dtype_parse(word, &dtype) || (dtype != ZB_FP32 && dtype != ZB_FP16 && dtype != ZB_BF16))
        return zb_fail(ZB_INVALID_ARGUMENT, "%s %.*s: want fp32, fp16 or bf16", option->name,
                       (int)(end - text), text);
    for (int i = 0; i < list->count; i++)
        if (list->values[i] == dtype) return given_twice(option, text, end);
    list->values[list->count++] = dtype;
    return ZB_OK;
}

static zb_status read_list(const option_spec *option, const char *text,
                           zb_status (*add)(const option_spec *, const char *, const char *))
{
    for (;;) {
        const char *end = strchr(text, ',');
        if (end == NULL) return add(option, text, text + strlen(text));
        ZB_TRY(add(option, text, end));
        text = end + 1;
    }
}

static zb_status read_value(const option_spec *option, const char *text)
{
    switch (option->kind) {
    case OPTION_FLAG:
        *(int *)option->to = 1;
        return ZB_OK;
    case OPTION_TEXT:
        if (*text == '\0')
            return zb_fail(ZB_INVALID_ARGUMENT, "%s: want %s, not nothing", option->name, option->value);
        *(const char **)option->to = text;
        return ZB_OK;
    case OPTION_INT: {
        int64_t value;
        ZB_TRY(read_integer(option, text, text + strlen(text), &value));
        *(int64_t *)option->to = value;
        return ZB_OK;
    }
    case OPTION_INTS:
        ((int_list *)option->to)->count = 0;
        return read_list(option, text, add_integer);
    case OPTION_DTYPES:
        ((dtype_list *)option->to)->count = 0;
        return read_list(option, text, add_dtype);
    }
    return zb_fail(ZB_INTERNAL, "option %s of no kind", option->name);
}

/* --- words --- */

enum { OPTION_COUNT_MAX = 63 }; /* one bit each in `given` */

static int option_count(const command_spec *spec)
{
    int count = 0;
    while (spec->options[count].name != NULL) count++;
    ZB_ASSERT(count <= OPTION_COUNT_MAX);
    return count;
}

static zb_status unknown_option(const command_spec *spec, const char *word, size_t length)
{
    const char *names[OPTION_COUNT_MAX + 2] = { 0 };
    int count = option_count(spec);
    for (int i = 0; i < count; i++) names[i] = spec->options[i].name;
    names[count] = "--help";
    char name[WORD_MAX] = "";
    if (length < sizeof name) memcpy(name, word, length);
    const char *meant = closest_word(name, names);
    if (meant != NULL)
        return zb_fail(ZB_INVALID_ARGUMENT, "unknown option %.*s; did you mean %s?", (int)length, word,
                       meant);
    return zb_fail(ZB_INVALID_ARGUMENT, "unknown option %.*s; see zerobit %s --help", (int)length, word,
                   spec->name);
}

static const option_spec *find_option(const command_spec *spec, const char *word, size_t length)
{
    for (const option_spec *option = spec->options; option->name != NULL; option++)
        if (strlen(option->name) == length && memcmp(option->name, word, length) == 0) return option;
    return NULL;
}

/* The option at argv[*at]; moves *at on when the next word is its value. */
static zb_status parse_option(const command_spec *spec, int argc, char **argv, int *at, uint64_t *given)
{
    const char *word = argv[*at], *equals = strchr(word, '=');
    size_t length = equals != NULL ? (size_t)(equals - word) : strlen(word);
    const option_spec *option = find_option(spec, word, length);
    if (option == NULL) return unknown_option(spec, word, length);
    uint64_t bit = UINT64_C(1) << (option - spec->options);
    if (*given & bit) return zb_fail(ZB_INVALID_ARGUMENT, "%s is given twice", option->name);
    *given |= bit;

    if (option->kind == OPTION_FLAG) {
        if (equals != NULL) return zb_fail(ZB_INVALID_ARGUMENT, "%s takes no value", option->name);
        return read_value(option, "");
    }
    if (equals != NULL) return read_value(option, equals + 1);
    /* Another option is no value: "--data --steps 3" forgot one. A single dash is. */
    if (*at + 1 >= argc || strncmp(argv[*at + 1], "--", 2) == 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s wants a value: %s", option->name, option->value);
    return read_value(option, argv[++*at]);
}

static int operand_count(const command_spec *spec)
{
    int count = 0;
    while (spec->operands[count] != NULL) count++;
    return count;
}

static int asks_for_help(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return 1;
    return 0;
}

zb_status options_parse(const command_spec *spec, int argc, char **argv, const char **operands, int *help_p)
{
    *help_p = asks_for_help(argc, argv);
    if (*help_p) return ZB_OK;

    uint64_t given = 0;
    int wanted = operand_count(spec), count = 0, options_ended = 0;
    for (int at = 1; at < argc; at++) {
        if (!options_ended && strcmp(argv[at], "--") == 0) {
            options_ended = 1;
        } else if (!options_ended && argv[at][0] == '-' && argv[at][1] != '\0') {
            ZB_TRY(parse_option(spec, argc, argv, &at, &given));
        } else if (count == wanted) {
            return zb_fail(ZB_INVALID_ARGUMENT, "unexpected \"%s\"; see zerobit %s --help", argv[at],
                           spec->name);
        } else {
            if (argv[at][0] == '\0')
                return zb_fail(ZB_INVALID_ARGUMENT, "%s: want a path, not nothing", spec->operands[count]);
            operands[count++] = argv[at];
        }
    }
    if (count < wanted)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s is missing; see zerobit %s --help", spec->operands[count],
                       spec->name);
    return ZB_OK;
}

void options_print_help(const command_spec *spec)
{
    printf("usage: zerobit %s", spec->name);
    for (int i = 0; spec->operands[i] != NULL; i++) printf(" %s", spec->operands[i]);
    printf("%s\n\n%s\n", spec->options->name != NULL ? " [options]" : "", spec->summary);
    if (spec->options->name != NULL) puts("");
    for (const option_spec *option = spec->options; option->name != NULL; option++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s%s", option->name, option->value != NULL ? " " : "",
                 option->value != NULL ? option->value : "");
        printf("  %-26s %s\n", left, option->help);
    }
}
