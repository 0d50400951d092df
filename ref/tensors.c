/* One array per parameter: what values, gradients and moments are kept in. */
#include "ref/oracle.h"

#include <zerobit/memory.h>

zb_status zb_ref_tensors_create(const zb_model *model, zb_ref_tensors *tensors)
{
    zb_ref_tensors made = { .numel = model->param_numel };
    made.data = zb_alloc_array(model->param_numel, sizeof *made.data);
    made.param = zb_alloc_array((size_t)model->param_count, sizeof *made.param);
    if (made.data == NULL || made.param == NULL) {
        zb_ref_tensors_destroy(&made);
        return ZB_NO_MEMORY;
    }
    size_t first = 0;
    for (int p = 0; p < model->param_count; p++) {
        made.param[p] = made.data + first;
        first += model->params[p].numel;
    }
    ZB_ASSERT(first == model->param_numel);
    *tensors = made;
    return ZB_OK;
}

void zb_ref_tensors_destroy(zb_ref_tensors *tensors)
{
    zb_free(tensors->data);
    zb_free(tensors->param);
    *tensors = (zb_ref_tensors){ 0 };
}
