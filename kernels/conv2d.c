/* How much workspace a convolution needs. */
#include <zerobit/kernels.h>

size_t zb_conv2d_workspace_numel(const zb_conv2d_shape *shape)
{
    const size_t window = shape->kernel * shape->kernel;
    /* forward and backward_weight: the taps of one image */
    const size_t input = shape->ic * window * shape->oh * shape->ow;
    /* backward_input: the taps of one image's dy, and the weights with (c, o) in place of (o, c) */
    const size_t output = shape->oc * window * shape->ih * shape->iw + shape->ic * shape->oc * window;
    return input > output ? input : output;
}
