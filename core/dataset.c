/* The checked front door to every data set. */
#include <zerobit/data.h>

void zb_dataset_fetch(const zb_dataset *dataset, int64_t index, float *input, int32_t *label, float *target)
{
    ZB_ASSERT(index >= 0 && index < dataset->size);
    ZB_ASSERT(input != NULL);
    ZB_ASSERT(dataset->classes > 0 ? label != NULL : target != NULL);
    dataset->ops->fetch(dataset, index, input, label, target);
}

void zb_dataset_destroy(zb_dataset *dataset)
{
    if (dataset != NULL) dataset->ops->destroy(dataset);
}
