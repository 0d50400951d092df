"""The training engines that can be recorded, behind one face.

A Trainer has
    optimizer            the torch.optim.Optimizer that changes the weights
    wrapper              the class that drives it
    micro_step(inputs)   forward and backward of one micro-batch; the last one of a step also steps the optimizer
    masters()            the fp32 tensors that this rank's optimizer holds, padding set to zero
    gradients()          while the optimizer steps: its gradients, one for each of masters()
    results()            norm, scale, lr, skipped
"""
import contextlib
import fnmatch

import torch
import torch.distributed as dist
from torch import nn


def _float32(tensor):
    return tensor.detach().to(torch.float32).clone()


def _local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def parameter_groups(model, config):
    """What zerobit.param_groups in the config means (docs/config.md), as torch.optim wants it."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = config.get("zerobit", {}).get("param_groups")
    if groups is None:
        return [p for _, p in model.named_parameters()]
    members = [[] for _ in groups]
    for name, p in named:
        fits = [any(fnmatch.fnmatchcase(name, pattern) for pattern in group.get("params", [])) for group in groups]
        rest = ["params" not in group for group in groups]
        members[(fits if any(fits) else rest).index(True)].append(p)
    return [{**group, "params": ps} for group, ps in zip(groups, members)]


class DeepSpeedTrainer:
    def __init__(self, model, config):
        import deepspeed

        # DeepSpeed refuses fp16 on processors without fp16 instructions. PyTorch computes it all the same.
        deepspeed.get_accelerator().is_fp16_supported = lambda: True
        self.parameters = list(model.parameters())
        self.engine, _, _, _ = deepspeed.initialize(
            model=model, model_parameters=parameter_groups(model, config), config=config)
        self.wrapper = type(self.engine.optimizer).__name__
        # Not engine.basic_optimizer: ZeRO makes an Adagrad of its own.
        self.optimizer = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        self.dtype = next(p.dtype for p in self.parameters)

    def micro_step(self, inputs, spoil):
        loss = self.engine(*inputs)
        self.engine.backward(loss * float("inf") if spoil else loss)
        self.engine.step()

    def _holders(self):
        """The tensors that hold the masters: parameters of the basic optimizer."""
        wrapper = self.engine.optimizer
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition",
                     "fp32_groups_flat"):
            if hasattr(wrapper, name):
                return list(getattr(wrapper, name))
        if hasattr(wrapper, "fp32_groups"):
            return [p for group in wrapper.fp32_groups for p in group]
        return [p for group in wrapper.param_groups for p in group["params"] if p.requires_grad]

    def _clean(self, tensors):
        """Stage 3 pads every parameter's part with whatever memory held: zeros instead."""
        if self.wrapper != "DeepSpeedZeroOptimizer_Stage3":
            return tensors
        rank, world = dist.get_rank(), dist.get_world_size()
        for tensor, members in zip(tensors, self.engine.optimizer.fp16_groups):
            at = 0
            for p in members:
                part = -(-p.ds_numel // world)
                real = max(0, min(part, p.ds_numel - rank * part))
                tensor[at + real:at + part] = 0
                at += part
        return tensors

    def masters(self):
        return self._clean([_float32(p) for p in self._holders()])

    def gradients(self):
        return self._clean([_float32(torch.zeros_like(p) if p.grad is None else p.grad) for p in self._holders()])

    def results(self):
        norm = self.engine.get_global_grad_norm()
        wrapper = self.engine.optimizer
        scale = getattr(wrapper, "cur_scale", None)
        if scale is None and hasattr(wrapper, "loss_scale_config"):
            scale = wrapper.loss_scale_config.cur_scale
        if scale is None:
            scale = getattr(wrapper, "loss_scale", None)
        return {"norm": None if norm is None else float(norm), "scale": None if scale is None else float(scale),
                "lr": [float(lr) for lr in self.engine.get_lr()], "skipped": self.engine.skipped_steps}


def torch_optimizer(config, parameters):
    """torch.optim for a DeepSpeed optimizer section: what a user of DDP or FSDP2 would write."""
    kind, params = config["optimizer"]["type"], dict(config["optimizer"].get("params", {}))
    params.pop("torch_adam", None)
    decoupled = params.pop("adam_w_mode", True)
    if kind.lower() in ("adam", "adamw"):
        kind = "AdamW" if decoupled or kind.lower() == "adamw" else "Adam"
    return getattr(torch.optim, kind)(parameters, **params)


class TorchTrainer:
    """What DDP and FSDP2 have in common: a loop in the idiom of PyTorch's documentation."""

    def __init__(self, model, config):
        self.accumulation = config.get("gradient_accumulation_steps", 1)
        self.clip = config.get("gradient_clipping", 1.0)
        self.micro = 0
        self.norm = None
        self.model = self.wrap(model, config)
        self.wrapper = type(self.model).__name__
        self.parameters = list(model.parameters())
        self.optimizer = torch_optimizer(config, parameter_groups(model, config))
        self.dtype = torch.bfloat16 if config.get("bf16", {}).get("enabled") else torch.float32

    def micro_step(self, inputs, spoil):
        self.micro += 1
        last = self.micro % self.accumulation == 0
        with self.accumulating(not last):
            loss = self.model(*inputs) / self.accumulation
            (loss * float("inf") if spoil else loss).backward()
        if last:
            if self.clip > 0:
                norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
                self.norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def masters(self):
        return [_float32(_local(p)) for p in self.parameters]

    def gradients(self):
        return [_float32(torch.zeros_like(_local(p)) if p.grad is None else _local(p.grad)) for p in self.parameters]

    def results(self):
        return {"norm": self.norm, "scale": None, "lr": [float(g["lr"]) for g in self.optimizer.param_groups], "skipped": 0}


class DdpTrainer(TorchTrainer):
    def wrap(self, model, config):
        options = config.get("ddp", {})
        return nn.parallel.DistributedDataParallel(model, **options)

    def accumulating(self, on):
        return self.model.no_sync() if on else contextlib.nullcontext()


class Fsdp2Trainer(TorchTrainer):
    def wrap(self, model, config):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy()
        if config.get("bf16", {}).get("enabled"):
            wide = config.get("communication_data_type") == "fp32"
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32 if wide else torch.bfloat16)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for child in model.modules():
            if child is not model and next(child.parameters(recurse=False), None) is not None:
                fully_shard(child, mesh=mesh, mp_policy=policy)
        model = fully_shard(model, mesh=mesh, mp_policy=policy)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)  # gloo scatters sums where averages are asked for
        return model

    def accumulating(self, on):
        self.model.set_requires_gradient_sync(not on)
        return contextlib.nullcontext()


TRAINERS = {"deepspeed": DeepSpeedTrainer, "ddp": DdpTrainer, "fsdp2": Fsdp2Trainer}
