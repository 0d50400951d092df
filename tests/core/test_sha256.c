/* SHA-256 against the examples of FIPS 180-4 and Python's hashlib, and however the bytes are cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "core/sha256.h"

static const struct example {
    const char *text;
    size_t times;
    const char *digest;
} examples[] = {
    { "", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
    { "abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
    { "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
      "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
    { "a", 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0" },
    { "a", 55, "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318" },
    { "a", 56, "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a" },
    { "a", 64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb" },
};

static void check_example(void **state)
{
    const struct example *c = *state;
    char digest[ZB_SHA256_TEXT_BYTES];
    zb_sha256 sha;
    zb_sha256_init(&sha);
    for (size_t i = 0; i < c->times; i++) zb_sha256_add(&sha, c->text, strlen(c->text));
    zb_sha256_finish(&sha, digest);
    assert_string_equal(digest, c->digest);
}

static void cuts_make_no_difference(void **state)
{
    (void)state;
    unsigned char bytes[200];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)(7 * i + 3);
    for (size_t cut = 0; cut <= sizeof bytes; cut++) {
        char whole[ZB_SHA256_TEXT_BYTES], parts[ZB_SHA256_TEXT_BYTES];
        zb_sha256 sha;
        zb_sha256_init(&sha);
        zb_sha256_add(&sha, bytes, sizeof bytes);
        zb_sha256_finish(&sha, whole);
        zb_sha256_init(&sha);
        zb_sha256_add(&sha, bytes, cut);
        zb_sha256_add(&sha, bytes + cut, sizeof bytes - cut);
        zb_sha256_finish(&sha, parts);
        assert_string_equal(whole, parts);
    }
}

int main(void)
{
    enum { COUNT = sizeof examples / sizeof examples[0] };
    struct CMUnitTest tests[COUNT + 1] = { cmocka_unit_test(cuts_make_no_difference) };
    for (size_t i = 0; i < COUNT; i++)
        tests[i + 1] = (struct CMUnitTest){ examples[i].digest, check_example, NULL, NULL,
                                            (void *)&examples[i] };
    return cmocka_run_group_tests_name("sha256", tests, NULL, NULL);
}
