/* Element types: sizes and names. */
#include <zerobit/types.h>

#include <string.h>

size_t zb_dtype_bytes(zb_dtype dtype)
{
    static const size_t bytes[] = {
#define ZB_DTYPE_BYTES(name, text, size) [ZB_##name] = size,
        ZB_DTYPE_MAP(ZB_DTYPE_BYTES)
#undef ZB_DTYPE_BYTES
    };
    return (unsigned)dtype < ZB_DTYPE_COUNT ? bytes[dtype] : 0;
}

const char *zb_dtype_name(zb_dtype dtype)
{
    static const char *const names[] = {
#define ZB_DTYPE_NAME(name, text, size) [ZB_##name] = text,
        ZB_DTYPE_MAP(ZB_DTYPE_NAME)
#undef ZB_DTYPE_NAME
    };
    return (unsigned)dtype < ZB_DTYPE_COUNT ? names[dtype] : "?";
}

int zb_dtype_parse(const char *text, zb_dtype *dtype)
{
    static const struct {
        const char *text;
        zb_dtype dtype;
    } spellings[] = {
#define ZB_DTYPE_SPELLING(name, spelling, size) { spelling, ZB_##name },
        ZB_DTYPE_MAP(ZB_DTYPE_SPELLING)
#undef ZB_DTYPE_SPELLING
            { "float32", ZB_FP32 },
        { "float", ZB_FP32 },
        { "float16", ZB_FP16 },
        { "half", ZB_FP16 },
        { "bfloat16", ZB_BF16 },
        { "float64", ZB_FP64 },
    };
    for (size_t i = 0; i < sizeof spellings / sizeof spellings[0]; i++) {
        if (strcmp(text, spellings[i].text) == 0) {
            *dtype = spellings[i].dtype;
            return 1;
        }
    }
    return 0;
}
