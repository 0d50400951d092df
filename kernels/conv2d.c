/* How much workspace a convolution needs. */
#include <zerobit/kernels.h>

size_t zb_conv2d_workspace_numel(const zb_conv2d_shape *shape)
{
    const size_t window = shape->kernel * shape->kernel;
    const size_t input = shape->ic * shape->ih * shape->iw, output = shape->oc * shape->oh * shape->ow;
    /* the taps of one image: of x, or of dy */
    const size_t x_taps = shape->ic * window * shape->oh * shape->ow;
    const size_t dy_taps = shape->oc * window * shape->ih * shape->iw;
    /* and, as fp32, the weights, the image and its output */
    return (x_taps > dy_taps ? x_taps : dy_taps) + shape->oc * shape->ic * window + input + output;
}
