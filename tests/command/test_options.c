/* Options are taken strictly: what is accepted, and what a refusal says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "tools/options.h"

enum { ARGS_MAX = 8 };

typedef struct parsed {
    int flag;
    const char *text;
    int64_t number;
    int_list list;
    dtype_list dtypes;
    const char *operands[OPERAND_MAX];
    int help;
} parsed;

static zb_status parse(const char *const *words, parsed *p)
{
    *p = (parsed){ .number = 7, .list = { { 1, 2 }, 2 } };
    const option_spec options[] = {
        { "--flag", OPTION_FLAG, &p->flag, NULL, "a flag", 0, 0 },
        { "--text", OPTION_TEXT, &p->text, "T", "a text", 0, 0 },
        { "--number", OPTION_INT, &p->number, "N", "a number", 1, 100 },
        { "--list", OPTION_INTS, &p->list, "LIST", "a list", 0, 9 },
        { "--dtypes", OPTION_DTYPES, &p->dtypes, "LIST", "precisions", 0, 0 },
        { 0 },
    };
    const command_spec spec = { "try", "Tries.", { "A", "B" }, options };
    char *argv[ARGS_MAX + 1] = { (char *)"try" };
    int argc = 1;
    for (; words[argc - 1] != NULL; argc++) argv[argc] = (char *)words[argc - 1];
    return options_parse(&spec, argc, argv, p->operands, &p->help);
}

static const struct refusal {
    const char *words[ARGS_MAX];
    const char *message;
} refusals[] = {
    { { "a" }, "B is missing; see zerobit try --help" },
    { { NULL }, "A is missing; see zerobit try --help" },
    { { "a", "b", "c" }, "unexpected \"c\"; see zerobit try --help" },
    { { "--flog" }, "unknown option --flog; did you mean --flag?" },
    { { "--lists=1" }, "unknown option --lists; did you mean --list?" },
    { { "--something-else" }, "unknown option --something-else; see zerobit try --help" },
    { { "--an-option-longer-than-any-slip-of-the-fingers" },
      "unknown option --an-option-longer-than-any-slip-of-the-fingers; see zerobit try --help" },
    { { "-x" }, "unknown option -x; see zerobit try --help" },
    { { "--flag=1" }, "--flag takes no value" },
    { { "--flag", "--flag" }, "--flag is given twice" },
    { { "--number", "3", "--number=4" }, "--number is given twice" },
    { { "--text" }, "--text wants a value: T" },
    { { "--text=" }, "--text: want T, not nothing" },
    { { "--text", "--flag" }, "--text wants a value: T" },
    { { "--number", "0" }, "--number 0: want an integer from 1 to 100" },
    { { "--number", "101" }, "--number 101: want an integer from 1 to 100" },
    { { "--number", "-1" }, "--number -1: want an integer from 1 to 100" },
    { { "--number", "99999999999999999999" },
      "--number 99999999999999999999: want an integer from 1 to 100" },
    { { "--number", "3x" }, "--number 3x: want an integer from 1 to 100" },
    { { "--number", " 3" }, "--number  3: want an integer from 1 to 100" },
    { { "--number", "+3" }, "--number +3: want an integer from 1 to 100" },
    { { "--number", "0x3" }, "--number 0x3: want an integer from 1 to 100" },
    { { "--number", "1e1" }, "--number 1e1: want an integer from 1 to 100" },
    { { "--number", "3.0" }, "--number 3.0: want an integer from 1 to 100" },
    { { "--number=" }, "--number : want an integer from 1 to 100" },
    { { "--list", "1,2,1" }, "--list: 1 is given twice" },
    { { "--list", "1,10" }, "--list 10: want an integer from 0 to 9" },
    { { "--list", "1,,2" }, "--list : want an integer from 0 to 9" },
    { { "--list", "1," }, "--list : want an integer from 0 to 9" },
    { { "--list", "a" }, "--list a: want an integer from 0 to 9" },
    { { "--dtypes", "fp8" }, "--dtypes fp8: want fp32, fp16 or bf16" },
    { { "--dtypes", "int64" }, "--dtypes int64: want fp32, fp16 or bf16" },
    { { "--dtypes", "fp32,float32" }, "--dtypes: float32 is given twice" },
};

static void bad_words_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        parsed p;
        assert_int_equal(parse(refusals[i].words, &p), ZB_INVALID_ARGUMENT);
        assert_string_equal(zb_error_message(), refusals[i].message);
    }
}

static void options_and_operands_mix(void **state)
{
    (void)state;
    parsed p;
    assert_int_equal(parse((const char *[]){ "--flag", "a", "--number", "100", "--list=0,9", "b", NULL }, &p),
                     ZB_OK);
    assert_int_equal(p.flag, 1);
    assert_int_equal(p.number, 100);
    assert_int_equal(p.list.count, 2);
    assert_int_equal(p.list.values[1], 9);
    assert_string_equal(p.operands[0], "a");
    assert_string_equal(p.operands[1], "b");

    assert_int_equal(parse((const char *[]){ "--text", "-", "--", "--flag", "-b", NULL }, &p), ZB_OK);
    assert_string_equal(p.text, "-");
    assert_int_equal(p.flag, 0);
    assert_string_equal(p.operands[0], "--flag");
    assert_string_equal(p.operands[1], "-b");

    assert_int_equal(parse((const char *[]){ "-", "b", "--text=a=b", "--dtypes", "bf16,half", NULL }, &p),
                     ZB_OK);
    assert_string_equal(p.operands[0], "-");
    assert_string_equal(p.text, "a=b");
    assert_int_equal(p.dtypes.count, 2);
    assert_int_equal(p.dtypes.values[1], ZB_FP16);
}

static void what_is_not_given_stays(void **state)
{
    (void)state;
    parsed p;
    assert_int_equal(parse((const char *[]){ "a", "b", NULL }, &p), ZB_OK);
    assert_int_equal(p.number, 7);
    assert_int_equal(p.list.count, 2);
    assert_null(p.text);
    assert_int_equal(p.help, 0);
}

static void help_counts_wherever_it_stands(void **state)
{
    (void)state;
    parsed p;
    assert_int_equal(parse((const char *[]){ "--nonsense", "--help", NULL }, &p), ZB_OK);
    assert_int_equal(p.help, 1);
    assert_int_equal(parse((const char *[]){ "-h", NULL }, &p), ZB_OK);
    assert_int_equal(p.help, 1);
    assert_int_equal(parse((const char *[]){ "a", "--", "--help", NULL }, &p), ZB_OK);
    assert_int_equal(p.help, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_words_are_refused),
        cmocka_unit_test(options_and_operands_mix),
        cmocka_unit_test(what_is_not_given_stays),
        cmocka_unit_test(help_counts_wherever_it_stands),
    };
    return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
