/* Names of the quantities that a run shows. */
#include <zerobit/observe.h>

const char *zb_quantity_name(zb_quantity quantity)
{
    static const char *const names[] = {
#define ZB_QUANTITY_NAME(name, text, dtype) [ZB_Q_##name] = text,
        ZB_QUANTITY_MAP(ZB_QUANTITY_NAME)
#undef ZB_QUANTITY_NAME
    };
    return (unsigned)quantity < ZB_QUANTITY_COUNT ? names[quantity] : "?";
}
