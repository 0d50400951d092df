"""Writes recorded runs: docs/replay.md is the format."""
import hashlib
import json

import numpy as np
import torch

INLINE = 256  # elements; longer tensors go to the safetensors file
REMEMBERED = ("model", "steps", "seed", "overflow", "fused_adam", "frozen", "brief", "digest")  # to record the run again; off and [] are the defaults
DIGEST = 8  # elements; of shorter tensors the values are kept where a digest would do


def _float32_bits(tensor):
    return tensor.to(torch.float32).contiguous().view(-1).numpy().view(np.uint32)


class TensorFile:
    """Tensors by content: those that occur often are stored once. Runs are described twice, the first time to count."""

    def __init__(self, name):
        self.name, self.tensors, self.names, self.uses, self.counting = name, {}, {}, {}, True

    @staticmethod
    def _content(tensor):
        return str(tensor.dtype), tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()

    def belongs(self, tensor):
        """Whether the tensor takes less room in the file: about 60 bytes of header there, and its name at each use."""
        uses = self.uses.get(self._content(tensor), 0)
        beside = 60 + tensor.numel() * tensor.element_size() + uses * (len(self.name) + 6)
        return tensor.numel() > INLINE or beside < uses * 11 * tensor.numel()

    def put(self, tensor):
        content = self._content(tensor)
        if content not in self.names:
            self.names[content] = str(len(self.names))
            self.tensors[self.names[content]] = tensor.contiguous().view(-1).clone()
        return f"{self.name}#{self.names[content]}"

    def count(self, tensor):
        content = self._content(tensor)
        self.uses[content] = self.uses.get(content, 0) + 1

    def save(self, path):
        from safetensors.torch import save_file

        save_file(self.tensors, path)


def values(tensor, file, digest=False):
    """null, hexadecimal fp32 bits, a digest, or the name of a tensor in the file beside."""
    if tensor is None:
        return None
    if digest and tensor.numel() > DIGEST:
        raw = _float32_bits(tensor).astype("<u4").tobytes()
        return {"sha256": hashlib.sha256(raw).hexdigest(), "numel": tensor.numel()}
    if file.counting:
        return file.count(tensor)
    if file.belongs(tensor):
        return file.put(tensor)
    return [f"{bits:08x}" for bits in _float32_bits(tensor)]


def _hexadecimal(x):
    return None if x is None else float(x).hex()


def _as_recorded(run):
    """The config, with the quirk that zerobit leaves off since it shows on a CPU only, where these runs were made."""
    config = run["config"]
    zero = config.get("zero_optimization", {})
    if run["framework"] != "deepspeed" or zero.get("stage", 0) not in (1, 2) or zero.get("contiguous_gradients", True):
        return config
    ours = config.get("zerobit", {})
    quirks = {**ours.get("quirks", {}), "unreduced_without_contiguous_gradients": True}
    return {**config, "zerobit": {**ours, "quirks": quirks}}


def _entry(entry, file, digest, brief):
    if entry.get("error") is not None:
        return {"step": entry["step"], "error": entry["error"], "comm": entry["comm"]}
    out = {"step": entry["step"], "hp": [values(t, file, digest) for t in entry["hp"]],
           "lr": [_hexadecimal(lr) for lr in entry["lr"]]}
    if entry["step"] >= 0:
        reduced = entry["reduced"]
        if not brief:
            out["reduced"] = None if reduced is None else [values(t, file) for t in reduced]
        out.update(norm=_hexadecimal(entry["norm"]), scale=entry["scale"], skipped=entry["skipped"], error=None)
    out["comm"] = entry["comm"]
    return out


def describe(run, ranks, file, versions):
    first = ranks[0]
    for key in ("forward", "backward", "gradient_order", "modules", "optimizer", "wrapper"):
        for other in ranks[1:]:
            if other[key] != first[key]:
                raise RuntimeError(f"the ranks do not agree on {key}: {first[key]} and {other[key]}")
    steps = len(first["local_grads"])
    out = {
        "name": run["name"], "world": run["world"], "framework": run["framework"], "dtype": first["dtype"],
        "names": first["names"], "shapes": first["shapes"], "sizes": [int(np.prod(s)) for s in first["shapes"]],
        "config": _as_recorded(run), "capture": {key: run[key] for key in REMEMBERED if run[key]}, "collectives": run["collectives"], "optimizer": first["optimizer"],
        "modules": [{"name": name, "params": params} for name, params in first["modules"]],
        "forward": first["forward"], "backward": first["backward"], "gradient_order": first["gradient_order"],
    }
    if run["frozen"]:
        out["frozen"] = [first["names"].index(name) for name in run["frozen"]]
    out["init"] = [values(t, file) for t in first["init"]]
    out["local_grads"] = [[[[values(t, file) for t in rank["local_grads"][s][m]] for rank in ranks]
                           for m in range(len(first["local_grads"][s]))] for s in range(steps)]
    out["ranks"] = [{"wrapper": rank["wrapper"],
                     "steps": [_entry(e, file, run["digest"], run["brief"]) for e in rank["steps"]]} for rank in ranks]
    for rank in out["ranks"][1:]:
        for entry, of_first in zip(rank["steps"], out["ranks"][0]["steps"]):
            if entry["comm"] == of_first["comm"]:
                del entry["comm"]
    out["made_with"] = versions
    return out


def save(path, runs):
    with open(path, "w", encoding="ascii") as out:
        out.write("[" + ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs) + "]\n")
