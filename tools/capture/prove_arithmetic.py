#!/usr/bin/env python3
"""Holds arithmetic.py to the real optimizers, bit for bit, on random data.

    python tools/capture/prove_arithmetic.py
"""
import itertools

import capture

SIZES = (1, 7, 15, 16, 17, 33, 100, 1000)
STEPS = 12


def main():
    capture.require_packages()
    capture.enter_environment()
    capture.prepare_deepspeed()
    import numpy as np
    import torch

    import arithmetic
    import worker
    from deepspeed.ops.adam import FusedAdam

    torch.set_num_threads(1)
    worker.check_square_root()
    random = np.random.default_rng(0)
    madd = arithmetic.fma

    def values(n):
        return (random.standard_normal(n) * np.exp(random.standard_normal(n) * 3)).astype(np.float32)

    def compare(label, make, model, states):
        for n in SIZES:
            p = values(n)
            real = torch.nn.Parameter(torch.from_numpy(p.copy()))
            optimizer, state = make([real]), {name: np.zeros(n, np.float32) for name in states}
            for step in range(1, STEPS + 1):
                g = values(n)
                real.grad = torch.from_numpy(g.copy())
                optimizer.step()
                model(p, g, state, step)
                if not np.array_equal(real.detach().numpy().view(np.uint32), p.view(np.uint32)):
                    raise SystemExit(f"{label}: different at step {step} with {n} elements")
        print("equal:", label)

    for n in (*range(1, 50), 100, 103, 1000, 1007):
        x = values(n)
        if torch.from_numpy(x).norm(2).numpy().view(np.uint32) != arithmetic.torch_norm(x).view(np.uint32):
            raise SystemExit(f"norm: different with {n} elements")
    print("equal: norm")

    moments = ("exp_avg", "exp_avg_sq")
    for lr, betas, decay, decoupled in itertools.product(
            (0.1, 1e-3), ((0.9, 0.999), (0.3, 0.6)), (0.0, 0.01), (False, True)):
        text = f"lr {lr}, betas {betas}, decay {decay}, {'decoupled' if decoupled else 'L2'}"
        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
        compare(f"torch Adam, {text}", lambda ps: kind(ps, lr=lr, betas=betas, weight_decay=decay),
                lambda p, g, s, t: arithmetic.torch_adam(p, g, s, t, lr, betas, 1e-8, decay, decoupled, madd), moments)
        powers = {}
        compare(f"DeepSpeed Adam, {text}",
                lambda ps: FusedAdam(ps, lr=lr, betas=betas, weight_decay=decay, adam_w_mode=decoupled),
                lambda p, g, s, t: arithmetic.deepspeed_cpu_adam(
                    p, g, s, t, lr, betas, 1e-8, decay, decoupled, True, worker.simd_width(), powers), moments)
    for momentum, dampening, nesterov, decay in ((0, 0, False, 0), (0, 0, False, .01), (.9, 0, False, .01),
                                                 (.9, .5, False, 0), (.9, 0, True, .01)):
        compare(f"SGD, momentum {momentum}, dampening {dampening}, nesterov {nesterov}, decay {decay}",
                lambda ps: torch.optim.SGD(ps, .1, momentum, dampening, decay, nesterov),
                lambda p, g, s, t: arithmetic.torch_sgd(p, g, s, .1, momentum, dampening, decay, nesterov, madd), ())
    for lr_decay, decay in ((0, 0), (.1, .01)):
        compare(f"Adagrad, lr_decay {lr_decay}, decay {decay}",
                lambda ps: torch.optim.Adagrad(ps, .1, lr_decay, decay),
                lambda p, g, s, t: arithmetic.torch_adagrad(p, g, s, t, .1, lr_decay, 1e-10, decay, madd), ("sum",))


if __name__ == "__main__":
    main()
