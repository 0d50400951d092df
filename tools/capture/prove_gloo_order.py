#!/usr/bin/env python3
"""Holds the order of addition that README.md states to gloo itself, bit for bit, on random data.

    python tools/capture/prove_gloo_order.py
"""
import multiprocessing
import os
import tempfile

import torch
import torch.distributed as dist

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SIZES = (*range(1, 121), 1000, 4097)


def contribution(rank, n, dtype):
    return torch.randn(n, generator=torch.Generator().manual_seed(1000 * n + rank)).to(dtype)


def expected(xs):
    world, n, width = len(xs), xs[0].numel(), xs[0].element_size()
    segment = -(-n * width // (2 * world))
    chunk = 2 * -(-segment // width)
    out = torch.empty_like(xs[0])
    for c in range(world):
        at = slice(min(n, c * chunk), min(n, (c + 1) * chunk))
        total = xs[(c - 1) % world][at].clone()
        for k in range(2, world + 1):
            total = total + xs[(c - k) % world][at]
        out[at] = total
    return out


def compare(rank, world, init_file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=world)
    for dtype in TYPES:
        for n in SIZES:
            xs = [contribution(r, n, dtype) for r in range(world)]
            want = expected(xs)
            got = xs[rank].clone()
            dist.all_reduce(got)
            assert torch.equal(got, want), f"all_reduce of {n} {dtype}, {world} ranks"
            for root in range(world):
                got = xs[rank].clone()
                dist.reduce(got, root)
                assert rank != root or torch.equal(got, want), f"reduce of {n} {dtype} to {root}, {world} ranks"
            if n % world == 0:
                block = torch.empty(n // world, dtype=dtype)
                dist.reduce_scatter_tensor(block, xs[rank].clone())
                assert torch.equal(block, want.view(world, -1)[rank]), f"reduce_scatter_tensor of {n} {dtype}, {world} ranks"
    os._exit(0)


def main():
    context = multiprocessing.get_context("fork")
    for world in (2, 3, 4, 5, 8):
        with tempfile.TemporaryDirectory() as folder:
            ranks = [context.Process(target=compare, args=(r, world, os.path.join(folder, "rendezvous"))) for r in range(world)]
            for rank in ranks:
                rank.start()
            for rank in ranks:
                rank.join()
        if any(rank.exitcode for rank in ranks):
            raise SystemExit(f"{world} ranks: different")
        print(f"equal: {world} ranks", flush=True)


if __name__ == "__main__":
    main()
