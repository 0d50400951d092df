/* Names, and what the record of an order's source owns. */
#include <zerobit/memory.h>
#include <zerobit/orders.h>

const char *zb_algorithm_name(zb_algorithm algorithm)
{
    static const char *const names[] = {
#define ZB_ALGORITHM_NAME(name, text) [ZB_ALGORITHM_##name] = text,
        ZB_ALGORITHM_MAP(ZB_ALGORITHM_NAME)
#undef ZB_ALGORITHM_NAME
    };
    return (unsigned)algorithm < ZB_ALGORITHM_COUNT ? names[algorithm] : "?";
}

const char *zb_nccl_protocol_name(zb_nccl_protocol protocol)
{
    static const char *const names[] = {
        [ZB_NCCL_SIMPLE] = "simple", [ZB_NCCL_LL] = "ll", [ZB_NCCL_LL128] = "ll128"
    };
    return (unsigned)protocol <= ZB_NCCL_LL128 ? names[protocol] : "?";
}

const char *zb_verdict_name(zb_verdict verdict)
{
    static const char *const names[] = {
        [ZB_VERDICT_NAMED] = "named", [ZB_VERDICT_ORDER] = "order", [ZB_VERDICT_VALUE] = "value"
    };
    return (unsigned)verdict <= ZB_VERDICT_VALUE ? names[verdict] : "?";
}

void zb_order_source_destroy(zb_order_source *source)
{
    zb_free(source->rings);
    zb_free(source->trees);
    *source = (zb_order_source){ 0 };
}
