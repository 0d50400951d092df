"""One rank of a recorded run: trains, and notes everything that docs/replay.md lists."""
import os
import traceback

import torch
import torch.distributed as dist

import collectives
import frameworks
import models


class Watch:
    """Hooks on the model. They only look: gradients as autograd hands them over, and the order of everything."""

    def __init__(self, model, fsdp2):
        self.parameters = list(model.parameters())
        self.index = {id(p): i for i, p in enumerate(self.parameters)}
        self.modules = [(name, [self.index[id(p)] for p in m.parameters(recurse=False)])
                        for name, m in model.named_modules()]
        self.forward, self.backward, self.ready = [], [], []
        self.grads = {}
        for i, module in enumerate(model.modules()):
            module.register_forward_pre_hook(self._forward_hook(i))
            module.register_forward_hook(self._output_hook(i))
        if fsdp2:
            self._watch_unsharded()
        else:
            for i, p in enumerate(self.parameters):
                if p.requires_grad:
                    p.register_hook(self._grad_hook(i))

    def _forward_hook(self, module):
        return lambda *_: self.forward.append(module)

    def _output_hook(self, module):
        def hook(_module, _inputs, output):
            outputs = output if isinstance(output, (tuple, list)) else [output]
            seen = []
            for tensor in outputs:
                if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda _: seen or (seen.append(1), self.backward.append(module)) and None)

        return hook

    def _grad_hook(self, i):
        def hook(grad):
            if i in self.grads:
                raise RuntimeError(f"parameter {i} got two gradients in one backward pass")
            self.grads[i] = grad.detach().clone()
            self.ready.append(i)

        return hook

    def _watch_unsharded(self):
        """FSDP2 computes with parameters of its own making: hook them where they are made."""
        from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

        make, hooked, watch = FSDPParam.init_unsharded_param, set(), self

        def init_unsharded_param(param):
            make(param)
            if id(param) not in hooked:
                hooked.add(id(param))
                name = param._module_info.param_name
                module = param._module_info.module
                i = next(i for i, p in enumerate(watch.parameters) if getattr(module, name) is p or
                         watch.places[i] == (id(module), name))
                param._unsharded_param.register_hook(watch._grad_hook(i))

        self.places = {}
        FSDPParam.init_unsharded_param = init_unsharded_param

    def note_places(self, model):
        self.places = {self.index[id(p)]: (id(m), name) for m in model.modules()
                       for name, p in m.named_parameters(recurse=False)}

    def take(self):
        grads = [self.grads.get(i) for i in range(len(self.parameters))]
        order = {"forward": self.forward, "backward": self.backward, "gradient_order": self.ready}
        self.forward, self.backward, self.ready, self.grads = [], [], [], {}
        return grads, order


def simd_width():
    """Elements that DeepSpeed's kernel takes at a time; what is left over goes through its scalar loop."""
    from deepspeed.ops.op_builder.cpu import FusedAdamBuilder

    return {"-D__AVX512__": 16, "-D__AVX256__": 8}.get(FusedAdamBuilder().simd_width(), 1)


def optimizer_facts(optimizer, ieee):
    """Which implementation changed the weights: tools/capture/README.md has the formulas."""
    name = type(optimizer).__name__
    facts = {"class": f"{type(optimizer).__module__}.{name}", "torch": torch.__version__}
    if type(optimizer).__module__.startswith("torch.optim"):
        return {**facts, "arithmetic": "torch-2", "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    if ieee:
        return {**facts, "arithmetic": "deepspeed-cuda-ieee"}
    return {**facts, "arithmetic": "deepspeed-cpu", "simd_width": simd_width()}


def use_ieee_fused_adam():
    """In place of FusedAdam's kernel: its CUDA formula in IEEE fp32."""
    import numpy as np

    import arithmetic
    from deepspeed.ops.op_builder.cpu import FusedAdamBuilder

    class Kernel:
        @staticmethod
        def multi_tensor_adam(_chunk, _flag, lists, lr, beta1, beta2, eps, step, mode, bias_correction, decay):
            for g, p, m, v in zip(*(list(tensors) for tensors in lists)):
                state = {"exp_avg": m.numpy(), "exp_avg_sq": v.numpy()}
                with np.errstate(all="ignore"):
                    arithmetic.ieee_fused_adam(p.detach().numpy(), g.numpy(), state, step, lr, (beta1, beta2), eps,
                                               decay, mode == 1, bias_correction == 1)

    FusedAdamBuilder.load = lambda self, verbose=True: Kernel


def check_square_root():
    x = torch.arange(1, 1 << 16, dtype=torch.float32) * 1.000123
    if not torch.equal(x.sqrt(), x.double().sqrt().float()):
        raise RuntimeError("torch.sqrt is not correctly rounded here, so that a run would not be defined to the bit")


def model_dtype(run):
    """What DeepSpeed turns the whole model into. DDP leaves it alone, and FSDP2 converts inputs by itself."""
    if run["framework"] == "deepspeed":
        for key, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
            if run["config"].get(key, {}).get("enabled"):
                return dtype
    return torch.float32


def train(run, rank, init_file):
    torch.set_num_threads(1)
    check_square_root()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(run["world"]))
    collectives.initialize(rank, run["world"], init_file, run["collectives"])
    if run["fused_adam"] == "ieee":
        use_ieee_fused_adam()
    config = run["config"]
    model, batch = models.build(run["model"], run["seed"], config.get("train_micro_batch_size_per_gpu", 1), model_dtype(run))
    for name, p in model.named_parameters():
        p.requires_grad_(name not in run["frozen"])
    out = {"names": [n for n, _ in model.named_parameters()], "shapes": [list(p.shape) for p in model.parameters()],
           "init": [p.detach().clone() for p in model.parameters()], "local_grads": [], "steps": [], "forward": [], "backward": [], "gradient_order": []}
    watch = Watch(model, run["framework"] == "fsdp2")
    watch.note_places(model)
    trainer = frameworks.TRAINERS[run["framework"]](model, config)
    out.update(wrapper=trainer.wrapper, dtype=str(trainer.dtype).removeprefix("torch."),
               optimizer=optimizer_facts(trainer.optimizer, run["fused_adam"] == "ieee"))
    seen = []
    step = trainer.optimizer.step

    def stepping(*args, **kwargs):
        seen.append(trainer.gradients())
        return step(*args, **kwargs)

    trainer.optimizer.step = stepping

    def collect():
        calls, collectives.Recorder.calls[:] = list(collectives.Recorder.calls), []
        return calls

    out["steps"].append({"step": -1, "hp": trainer.masters(), "lr": trainer.results()["lr"], "comm": collect()})
    accumulation = config.get("gradient_accumulation_steps", 1)
    for s in range(run["steps"]):
        grads = []
        out["local_grads"].append(grads)
        error = None
        seen.clear()
        try:
            for micro in range(accumulation):
                spoil = [s, rank] in run["overflow"] and micro == 0
                trainer.micro_step(batch(s, micro, rank), spoil)
                local, order = watch.take()
                grads.append(local)
                if s == 0 and micro == 0:
                    out.update(order)
        except Exception as failure:  # what DeepSpeed raises ends the run and belongs in it
            local, _ = watch.take()
            if len(grads) < accumulation:
                grads.append(local)
            error = f"{type(failure).__name__}: {failure}"
            if os.environ.get("CAPTURE_TRACEBACK"):
                traceback.print_exc()
        if error is not None:
            out["steps"].append({"step": s, "error": error, "comm": collect()})
            break
        # ZeRO steps its optimizer once for each group, and frees a group's gradient afterwards.
        reduced = None
        if seen:
            reduced = [max((g[i] for g in seen), key=lambda t: int(torch.count_nonzero(t))) for i in range(len(seen[0]))]
        out["steps"].append({"step": s, "hp": trainer.masters(), "reduced": reduced, **trainer.results(),
                             "comm": collect(), "error": None})
    out["modules"] = watch.modules
    dist.barrier()
    return out
