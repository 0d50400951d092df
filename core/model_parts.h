/* What the builder of models shares with the readers of model descriptions and of weights. Not public. */
#ifndef ZB_CORE_MODEL_PARTS_H
#define ZB_CORE_MODEL_PARTS_H

#include <zerobit/model.h>

/* The name by which a module asks for the model's own input; no module may be called so. */
#define ZB_MODEL_INPUT_NAME "input"

/* Largest number of elements of one tensor: its bytes fit in an int64_t at every element type. */
#define ZB_TENSOR_NUMEL_MAX (INT64_MAX / 8)

/* What a module can be told, beside its kind and name: the spellings of a JSON description, the members of
 * zb_module_spec. Which kind takes which: zb_module_kind_fields. */
#define ZB_MODULE_FIELD_MAP(X)                                                                               \
    X(INPUT, "input")                                                                                        \
    X(INPUT2, "input2")                                                                                      \
    X(OUT_FEATURES, "out_features")                                                                          \
    X(OUT_CHANNELS, "out_channels")                                                                          \
    X(KERNEL, "kernel")                                                                                      \
    X(STRIDE, "stride")                                                                                      \
    X(PADDING, "padding")                                                                                    \
    X(BIAS, "bias")                                                                                          \
    X(FROZEN, "frozen")                                                                                      \
    X(TIE, "tie")                                                                                            \
    X(SHAPE, "shape")

enum {
#define ZB_MODULE_FIELD_INDEX(name, text) ZB_MODULE_FIELD_INDEX_##name,
    ZB_MODULE_FIELD_MAP(ZB_MODULE_FIELD_INDEX)
#undef ZB_MODULE_FIELD_INDEX
        ZB_MODULE_FIELD_COUNT
};
enum {
#define ZB_MODULE_FIELD_BIT(name, text) ZB_MODULE_FIELD_##name = 1u << ZB_MODULE_FIELD_INDEX_##name,
    ZB_MODULE_FIELD_MAP(ZB_MODULE_FIELD_BIT)
#undef ZB_MODULE_FIELD_BIT
};

/* Set of the fields that a kind takes. */
unsigned zb_module_kind_fields(zb_module_kind kind);

enum { ZB_SHAPE_TEXT_BYTES = 96 };
/* "[3,32,32]"; returns text. */
const char *zb_shape_format(const zb_shape *shape, char text[ZB_SHAPE_TEXT_BYTES]);
int zb_shape_equal(const zb_shape *a, const zb_shape *b);

/* Checks 1..ZB_MAX_DIMS dimensions, extents >= extent_min and the product. `what` begins the message. */
zb_status zb_shape_check(const zb_shape *shape, int64_t extent_min, const char *what);

/* The model that a JSON file describes. The caller owns *model_p. */
zb_status zb_model_load_json(const char *path, zb_model **model_p);

/* NULL is fine. */
void zb_model_order_destroy(zb_model_order *order);

#endif
