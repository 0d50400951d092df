"""What the optimizers of PyTorch 2 and DeepSpeed compute on a CPU, operation by operation, in numpy.

Every function changes float32 arrays in place and gives the bits that the real implementation gives. check.py
derives recorded weights again with them; prove_arithmetic.py holds them to the real implementations.
"""
import math

import numpy as np

f32 = np.float32


def fma(a, b, c):
    """a * b + c, rounded once to float32."""
    a, b, c = (np.asarray(x, f32).astype(np.float64) for x in (a, b, c))
    product = a * b  # exact: 24 + 24 bits
    total = np.atleast_1d(product + c)
    virtual = total - product
    error = (product - (total - virtual)) + (c - virtual)
    # Round to odd in 53 bits first: the second rounding, to 24, is then the only one that counts.
    bits = total.view(np.int64)
    inexact_even = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
    away = (error > 0) == (total > 0)
    bits = np.where(inexact_even, np.where(away, bits + 1, bits - 1), bits)
    return bits.view(np.float64).astype(f32).reshape(np.broadcast_shapes(a.shape, b.shape, c.shape))


def plain(a, b, c):
    """a * b + c, rounded twice: PyTorch at ATEN_CPU_CAPABILITY=default."""
    return np.asarray(a, f32) * np.asarray(b, f32) + np.asarray(c, f32)


def torch_norm(x):
    """x.norm(2) of a float32 tensor: eight lanes without fused multiply-adds, lane after lane; then what is left over, four
    elements rounded twice if there are four, and the last one to three fused."""
    body = x.size - x.size % 8
    lanes = np.zeros(8, f32)
    for at in range(0, body, 8):
        lanes = lanes + x[at:at + 8] * x[at:at + 8]
    total = f32(0)
    for lane in lanes:
        total = total + lane
    fused = x.size - x.size % 4
    for element in x[body:fused]:
        total = total + element * element
    for element in x[fused:]:
        total = fma(element, element, total)[()]
    return np.sqrt(total)


# --- torch.optim, one tensor at a time (foreach and fused off, as on a CPU) ---


def torch_lerp(start, end, weight, madd):
    if abs(f32(weight)) < f32(0.5):
        return madd(f32(weight), end - start, start)
    return madd(f32(weight) - f32(1), end - start, end) if madd is fma else end - (end - start) * (f32(1) - f32(weight))


def torch_adam(p, g, state, step, lr, betas, eps, weight_decay, decoupled, madd):
    """torch.optim.Adam and AdamW. `step` counts from 1. Host numbers are doubles, rounded when they meet a tensor."""
    beta1, beta2 = betas
    m, v = state["exp_avg"], state["exp_avg_sq"]
    if weight_decay != 0 and decoupled:
        p *= f32(1 - lr * weight_decay)
    elif weight_decay != 0:
        g = madd(f32(weight_decay), p, g)
    m[:] = torch_lerp(m, g, 1 - beta1, madd)
    v *= f32(beta2)
    v[:] = madd(f32(1 - beta2) * g, g, v)
    denominator = np.sqrt(v) / f32(math.sqrt(1 - beta2**step)) + f32(eps)
    p += (f32(-(lr / (1 - beta1**step))) * m) / denominator


def torch_sgd(p, g, state, lr, momentum, dampening, weight_decay, nesterov, madd):
    if weight_decay != 0:
        g = madd(f32(weight_decay), p, g)
    if momentum != 0:
        buffer = state.get("momentum_buffer")
        if buffer is None:
            buffer = state["momentum_buffer"] = g.copy()
        else:
            buffer *= f32(momentum)
            buffer[:] = madd(f32(1 - dampening), g, buffer)
        g = madd(f32(momentum), buffer, g) if nesterov else buffer
    p[:] = madd(f32(-lr), g, p)


def torch_adagrad(p, g, state, step, lr, lr_decay, eps, weight_decay, madd):
    total = state["sum"]
    if weight_decay != 0:
        g = madd(f32(weight_decay), p, g)
    total[:] = madd(g, g, total)
    rate = lr / (1 + (step - 1) * lr_decay)
    p += (f32(-rate) * g) / (np.sqrt(total) + f32(eps))


# --- DeepSpeed's own Adam ---


def deepspeed_powers(betas, step, state):
    """beta^step as the C++ class keeps it: multiplied up in float32, by pow() when the step or the betas jump."""
    betas = tuple(f32(b) for b in betas)
    last = state.get("powers")
    if last is not None and last["betas"] == betas and last["step"] == step:
        return last["values"]
    if last is not None and last["betas"] == betas and step == last["step"] + 1:
        values = tuple(f32(v * b) for v, b in zip(last["values"], betas))
    else:
        values = tuple(f32(math.pow(float(b), step)) for b in betas)
    state["powers"] = {"betas": betas, "step": step, "values": values}
    return values


def deepspeed_cpu_adam(p, g, state, step, lr, betas, eps, weight_decay, decoupled, bias_correction, simd_width, powers):
    """The C++ kernel behind FusedAdam on the CPU accelerator and behind DeepSpeedCPUAdam, built with -O3 -march=native.

    `powers` is a dict that all tensors of one mode share, as they share one C++ object.
    """
    m, v = state["exp_avg"], state["exp_avg_sq"]
    b1, b2 = (f32(b) for b in betas)
    o1, o2 = f32(1) - b1, f32(1) - b2
    power1, power2 = deepspeed_powers(betas, step, powers)
    k1 = f32(1) - power1 if bias_correction else f32(1)
    k2 = f32(1) / np.sqrt(f32(1) - power2) if bias_correction else f32(1)
    lr, eps, decay = f32(lr), f32(eps), f32(weight_decay)
    if decay > 0 and not decoupled:
        g = fma(p, decay, g)
    body = np.arange(p.size) < p.size - p.size % simd_width
    # The compiler fuses the other product in the scalar loop that takes what is left over.
    m[:] = np.where(body, fma(g, o1, m * b1), fma(m, b1, g * o1))
    v[:] = np.where(body, fma(g * g, o2, v * b2), fma(v, b2, (g * g) * o2))
    update = m / fma(np.sqrt(v), k2, eps)
    if decay > 0 and decoupled:
        p[:] = fma(p, -lr * decay, p)
    p[:] = fma(update, -lr / k1, p)


def ieee_fused_adam(p, g, state, step, lr, betas, eps, weight_decay, decoupled, bias_correction):
    """The formula of FusedAdam's CUDA kernel in float32, every operation rounded by itself."""
    m, v = state["exp_avg"], state["exp_avg_sq"]
    b1, b2 = (f32(b) for b in betas)
    o1, o2 = f32(1) - b1, f32(1) - b2
    c1 = f32(1 - math.pow(float(b1), step)) if bias_correction else f32(1)
    c2 = f32(1 - math.pow(float(b2), step)) if bias_correction else f32(1)
    lr, eps, decay = f32(lr), f32(eps), f32(weight_decay)
    if not decoupled:
        g = g + decay * p
    m[:] = b1 * m + o1 * g
    v[:] = b2 * v + (o2 * g) * g
    update = (m / c1) / (np.sqrt(v / c2) + eps)
    if decoupled:
        update = update + decay * p
    p -= lr * update
