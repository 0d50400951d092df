#!/usr/bin/env python3
"""Checks recorded runs by themselves, with numpy alone: from the weights before a step and the gradients that the
optimizer was given (`reduced`), derives the weights after it, bit for bit. And the shape of everything else.

    python tools/capture/check.py fixtures/captured/*.json
"""
import hashlib
import json
import pathlib
import struct
import sys

import numpy as np

import arithmetic

f32 = np.float32
TYPES = {"F32": (np.float32, 4), "F16": (np.float16, 2), "BF16": (np.uint16, 2)}


class Tensors:
    """The values of a run, wherever they are."""

    def __init__(self, folder):
        self.folder, self.files = folder, {}

    def _file(self, name):
        if name not in self.files:
            raw = (self.folder / name).read_bytes()
            (length,) = struct.unpack_from("<Q", raw)
            self.files[name] = json.loads(raw[8:8 + length]), raw[8 + length:]
        return self.files[name]

    def get(self, value):
        """A float32 array, or None for a digest."""
        if isinstance(value, list):
            return np.array([int(bits, 16) for bits in value], np.uint32).view(f32)
        if isinstance(value, dict):
            return None
        file, _, name = value.partition("#")
        header, data = self._file(file)
        kind, (first, last) = header[name]["dtype"], header[name]["data_offsets"]
        found = np.frombuffer(data[first:last], TYPES[kind][0])
        if kind == "BF16":
            return (found.astype(np.uint32) << 16).view(f32)
        return found.astype(f32)

    def same(self, array, value):
        if isinstance(value, dict):
            return hashlib.sha256(array.astype("<f4").tobytes()).hexdigest() == value["sha256"]
        other = self.get(value)
        return np.array_equal(array.view(np.uint32), other.view(np.uint32)) or np.array_equal(array, other, equal_nan=True)


def optimizer_params(config):
    kind = config["optimizer"]["type"].lower()
    eps = 1e-10 if kind == "adagrad" else 1e-8
    params = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": eps, "weight_decay": 0.0, "bias_correction": True, "lr_decay": 0.0,
              "momentum": 0.0, "dampening": 0.0, "nesterov": False, **config["optimizer"].get("params", {})}
    params["decoupled"] = kind == "adamw" or params.get("adam_w_mode", True)
    return kind, params


class Optimizer:
    """One master tensor and its moments."""

    def __init__(self, run, masters, powers):
        self.kind, self.params = optimizer_params(run["config"])
        self.facts, self.p, self.powers = run["optimizer"], masters, powers
        names = ("sum",) if self.kind == "adagrad" else ("exp_avg", "exp_avg_sq") if "adam" in self.kind else ()
        self.state = {name: np.zeros_like(masters) for name in names}
        self.count = 0

    def step(self, g, lr):
        self.count += 1
        o, madd = self.params, arithmetic.fma if self.facts.get("cpu_capability") != "DEFAULT" else arithmetic.plain
        if self.kind == "sgd":
            arithmetic.torch_sgd(self.p, g, self.state, lr, o["momentum"], o["dampening"], o["weight_decay"], o["nesterov"], madd)
        elif self.kind == "adagrad":
            arithmetic.torch_adagrad(self.p, g, self.state, self.count, lr, o["lr_decay"], o["eps"], o["weight_decay"], madd)
        else:
            common = (self.p, g, self.state, self.count, lr, o["betas"], o["eps"], o["weight_decay"], o["decoupled"])
            if self.facts["arithmetic"] == "torch-2":
                arithmetic.torch_adam(*common, madd)
            elif self.facts["arithmetic"] == "deepspeed-cpu":
                arithmetic.deepspeed_cpu_adam(*common, o["bias_correction"], self.facts["simd_width"], self.powers)
            else:
                arithmetic.ieee_fused_adam(*common, o["bias_correction"])


def derivable(run):
    """Runs whose optimizer has one group, one rate and state that starts at the first step."""
    config = run["config"]
    momentum = config.get("scheduler", {}).get("type") == "OneCycle"
    return "param_groups" not in config.get("zerobit", {}) and not momentum


def check_rank(run, rank, tensors, where):
    steps = rank["steps"]
    masters = [tensors.get(t) for t in steps[0]["hp"]]
    if not derivable(run) or any(m is None for m in masters):
        return 0
    powers = {}
    optimizers = [Optimizer(run, m.copy(), powers) for m in masters]
    rate = float.fromhex(steps[0]["lr"][0])
    derived = 0
    if rank["wrapper"] in ("FP16_Optimizer", "FP16_UnfusedOptimizer"):
        for optimizer in optimizers:
            optimizer.count = 1  # the hidden step with zero gradients, before entry -1
    for entry in steps[1:]:
        if entry["error"] is not None:
            break
        lr, rate = rate, float.fromhex(entry["lr"][0])
        if "reduced" not in entry:
            return derived
        if entry["reduced"] is not None:
            for optimizer, reduced in zip(optimizers, entry["reduced"]):
                gradient = tensors.get(reduced)
                if gradient is None:
                    return derived
                optimizer.step(gradient.copy(), lr)
        for i, (optimizer, after) in enumerate(zip(optimizers, entry["hp"])):
            if not tensors.same(optimizer.p, after):
                raise SystemExit(f"{where}, step {entry['step']}: tensor {i} of hp is not what its gradient makes of it")
            derived += 1
    return derived


def check_lengths(run, tensors, where):
    accumulation = run["config"].get("gradient_accumulation_steps", 1)
    for s, step in enumerate(run["local_grads"]):
        if len(step) != accumulation and s + 1 < len(run["local_grads"]):
            raise SystemExit(f"{where}: {len(step)} micro-batches in step {s}")
        for micro in step:
            for rank in micro:
                for size, value in zip(run["sizes"], rank, strict=True):
                    if value is not None and tensors.get(value).size != size:
                        raise SystemExit(f"{where}: a gradient in step {s} has {tensors.get(value).size} elements, want {size}")
    for size, value in zip(run["sizes"], run["init"], strict=True):
        if tensors.get(value).size != size:
            raise SystemExit(f"{where}: an initial tensor has {tensors.get(value).size} elements, want {size}")


def main():
    for path in map(pathlib.Path, sys.argv[1:]):
        tensors = Tensors(path.parent)
        runs = json.loads(path.read_text(encoding="ascii"))
        derived = 0
        for run in runs:
            where = f"{path.name}: {run['name']}"
            check_lengths(run, tensors, where)
            for r, rank in enumerate(run["ranks"]):
                derived += check_rank(run, rank, tensors, f"{where}, rank {r}")
        print(f"{path}: {len(runs)} runs, {derived} tensors derived again")


if __name__ == "__main__":
    with np.errstate(all="ignore"):
        main()
