/* The quirks by name, and the two presets. */
#include <zerobit/quirks.h>

const char *zb_semantics_name(zb_semantics semantics)
{
    switch (semantics) {
    case ZB_SEMANTICS_STANDARD:
        return "standard";
    case ZB_SEMANTICS_DEEPSPEED_0_19_6:
        return "deepspeed-0.19.6";
    }
    return "?";
}

const char *zb_quirk_name(zb_quirk quirk)
{
    static const char *const names[] = {
#define NAME(name) #name,
        ZB_QUIRK_MAP(NAME)
#undef NAME
    };
    return quirk >= 0 && quirk < ZB_QUIRK_COUNT ? names[quirk] : "?";
}

int *zb_quirk_switch(zb_quirks *quirks, zb_quirk quirk)
{
    switch (quirk) {
#define SWITCH(name)                                                                                         \
    case ZB_QUIRK_##name:                                                                                    \
        return &quirks->name;
        ZB_QUIRK_MAP(SWITCH)
#undef SWITCH
    case ZB_QUIRK_COUNT:
        break;
    }
    return NULL;
}

zb_quirks zb_quirks_of(zb_semantics semantics)
{
    zb_quirks quirks = { 0 };
    if (semantics == ZB_SEMANTICS_STANDARD) return quirks;
    for (int q = 0; q < ZB_QUIRK_COUNT; q++) *zb_quirk_switch(&quirks, (zb_quirk)q) = 1;
    /* It happens where DeepSpeed runs on its CPU accelerator only. */
    quirks.unreduced_without_contiguous_gradients = 0;
    return quirks;
}
