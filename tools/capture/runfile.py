"""Writes recorded runs: docs/replay.md is the format."""
import hashlib
import json

import numpy as np
import torch

INLINE = 256  # elements; longer tensors go to the safetensors file


def _float32_bits(tensor):
    return tensor.to(torch.float32).contiguous().view(-1).numpy().view(np.uint32)


class TensorFile:
    """Tensors by content: equal tensors of all runs are stored once."""

    def __init__(self, name):
        self.name, self.tensors = name, {}

    def put(self, tensor):
        tensor = tensor.contiguous().view(-1)
        raw = tensor.view(torch.uint8).numpy().tobytes()
        key = f"{str(tensor.dtype).removeprefix('torch.')}-{hashlib.sha256(raw).hexdigest()[:16]}"
        self.tensors[key] = tensor.clone()
        return f"{self.name}#{key}"

    def save(self, path):
        from safetensors.torch import save_file

        save_file(self.tensors, path)


def values(tensor, file, digest=False):
    """null, hexadecimal fp32 bits, a digest, or the name of a tensor in the file beside."""
    if tensor is None:
        return None
    if tensor.numel() <= INLINE:
        return [f"{bits:08x}" for bits in _float32_bits(tensor)]
    if digest:
        raw = _float32_bits(tensor).astype("<u4").tobytes()
        return {"sha256": hashlib.sha256(raw).hexdigest(), "numel": tensor.numel()}
    return file.put(tensor)


def _hexadecimal(x):
    return None if x is None else float(x).hex()


def _entry(entry, file, digest):
    if entry.get("error") is not None:
        return {"step": entry["step"], "error": entry["error"], "comm": entry["comm"]}
    out = {"step": entry["step"], "hp": [values(t, file, digest) for t in entry["hp"]],
           "lr": [_hexadecimal(lr) for lr in entry["lr"]]}
    if entry["step"] >= 0:
        reduced = entry["reduced"]
        out.update(reduced=None if reduced is None else [values(t, file, True) for t in reduced],
                   norm=_hexadecimal(entry["norm"]), scale=entry["scale"], skipped=entry["skipped"], error=None)
    out["comm"] = entry["comm"]
    return out


def describe(run, ranks, file, versions):
    first = ranks[0]
    for key in ("forward", "backward", "gradient_order", "modules", "optimizer", "wrapper"):
        for other in ranks[1:]:
            if other[key] != first[key]:
                raise RuntimeError(f"the ranks do not agree on {key}: {first[key]} and {other[key]}")
    steps = len(first["local_grads"])
    last = len(first["steps"]) - 1
    out = {
        "name": run["name"], "world": run["world"], "framework": run["framework"], "dtype": first["dtype"],
        "names": first["names"], "shapes": first["shapes"], "sizes": [int(np.prod(s)) for s in first["shapes"]],
        "config": run["config"], "collectives": run["collectives"], "optimizer": first["optimizer"],
        "modules": [{"name": name, "params": params} for name, params in first["modules"]],
        "forward": first["forward"], "backward": first["backward"], "gradient_order": first["gradient_order"],
    }
    if run["frozen"]:
        out["frozen"] = [first["names"].index(name) for name in run["frozen"]]
    out["init"] = [values(t, file) for t in first["init"]]
    out["local_grads"] = [[[[values(t, file) for t in rank["local_grads"][s][m]] for rank in ranks]
                           for m in range(len(first["local_grads"][s]))] for s in range(steps)]
    out["ranks"] = [{"wrapper": rank["wrapper"],
                     "steps": [_entry(e, file, 0 < i < last) for i, e in enumerate(rank["steps"])]} for rank in ranks]
    out["made_with"] = versions
    return out


def save(path, runs):
    with open(path, "w", encoding="ascii") as out:
        out.write("[" + ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs) + "]\n")
