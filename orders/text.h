/* Writing words into room that may be too small, or be none: then they are counted. */
#ifndef ZB_ORDERS_TEXT_H
#define ZB_ORDERS_TEXT_H

#include <zerobit/orders.h>

typedef struct zb_text {
    char *text;         /* NULL: count only */
    size_t bytes, used; /* used: as if there were room for everything, without the end */
} zb_text;

void zb_text_put(zb_text *to, const char *format, ...) __attribute__((format(printf, 2, 3)));
void zb_text_put_source(zb_text *to, const zb_order_source *source);

#endif
