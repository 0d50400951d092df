"""A torch.distributed back end that writes down every collective and hands it on to gloo.

Registered as "recording". Whatever runs on top of torch.distributed, from Python (DeepSpeed, FSDP2) or from C++ (DDP),
meets it. With order "gloo" sums are gloo's own. With order "rank" every rank gathers all contributions and adds ranks
0, 1, 2, ... in that order: 16-bit types in float32, rounded once at the end.
"""
import torch
import torch.distributed as dist

SUM, MAX = dist.ReduceOp.SUM, dist.ReduceOp.MAX


def _type(tensor):
    return str(tensor.dtype).removeprefix("torch.")


def _operation(op):
    return next(name for name in ("SUM", "MAX", "MIN", "PRODUCT", "AVG") if op == getattr(dist.ReduceOp, name)).lower()


def add_in_rank_order(parts, op):
    if op == MAX:
        return torch.stack(parts).amax(0)
    if op != SUM:
        raise NotImplementedError(f"rank-order collectives know sum and max, not {op}")
    wide = torch.float32 if parts[0].dtype in (torch.float16, torch.bfloat16) else parts[0].dtype
    total = parts[0].to(wide)
    for part in parts[1:]:
        total = total + part.to(wide)
    return total.to(parts[0].dtype)


class Recorder(dist.ProcessGroup):
    """One process group. `calls` is shared by all groups of the process."""

    calls = []
    order = "gloo"

    def __init__(self, store, rank, size, timeout):
        super().__init__(rank, size)
        self.inner = dist.ProcessGroupGloo(store, rank, size, timeout)
        self.name = ""

    def _set_group_name(self, name):
        self.name = name

    @property
    def group_name(self):
        return self.name

    def _note(self, *call):
        group = [] if self.size() == dist.get_world_size() else [{"ranks": dist.get_process_group_ranks(self)}]
        self.calls.append([*call, *group])

    def _gathered(self, tensor):
        parts = [torch.empty_like(tensor) for _ in range(self.size())]
        self.inner.allgather([parts], [tensor]).wait()
        return parts

    def allreduce(self, tensors, opts=None):
        opts = opts or dist.AllreduceOptions()
        for tensor in tensors:
            self._note("all_reduce", _type(tensor), tensor.numel(), _operation(opts.reduceOp))
        if self.order == "gloo":
            return self.inner.allreduce(tensors, opts)
        for tensor in tensors:
            tensor.copy_(add_in_rank_order(self._gathered(tensor), opts.reduceOp))
        return _done(tensors)

    def allreduce_coalesced(self, tensors, opts=None):
        raise NotImplementedError("allreduce_coalesced is not recorded")

    def reduce(self, tensors, opts):
        (tensor,) = tensors
        self._note("reduce", _type(tensor), tensor.numel(), opts.rootRank)
        if self.order == "gloo":
            return self.inner.reduce(tensors, opts)
        parts = self._gathered(tensor)
        if self.rank() == opts.rootRank:
            tensor.copy_(add_in_rank_order(parts, opts.reduceOp))
        return _done(tensors)

    def broadcast(self, tensors, opts):
        (tensor,) = tensors
        self._note("broadcast", _type(tensor), tensor.numel(), opts.rootRank)
        return self.inner.broadcast(tensors, opts)

    def allgather(self, outputs, inputs, opts=None):
        for tensor in inputs:
            self._note("all_gather", _type(tensor), tensor.numel() * self.size(), tensor.numel())
        return self.inner.allgather(outputs, inputs, opts or dist.AllgatherOptions())

    def _allgather_base(self, output, input, opts=None):
        self._note("all_gather_into_tensor", _type(input), output.numel(), input.numel())
        return self.inner._allgather_base(output, input, opts or dist.AllgatherOptions())

    def _reduce_scatter_base(self, output, input, opts=None):
        opts = opts or dist.ReduceScatterOptions()
        self._note("reduce_scatter_tensor", _type(input), input.numel(), output.numel())
        if self.order == "gloo":
            return self.inner._reduce_scatter_base(output, input, opts)
        parts = self._gathered(input)
        output.view(-1).copy_(add_in_rank_order([p.view(self.size(), -1)[self.rank()] for p in parts], opts.reduceOp))
        return _done([output])

    def allgather_into_tensor_coalesced(self, outputs, inputs, opts=None):
        for output, input in zip(outputs, inputs):
            work = self._allgather_base(output, input)
            work.wait()
        return work

    def reduce_scatter_tensor_coalesced(self, outputs, inputs, opts=None):
        for output, input in zip(outputs, inputs):
            work = self._reduce_scatter_base(output, input, opts)
            work.wait()
        return work

    def barrier(self, opts=None):
        return self.inner.barrier(opts or dist.BarrierOptions())

    def getBackendName(self):
        return "recording"

    def __getattr__(self, name):
        raise NotImplementedError(f"collective {name} is not recorded")


def _done(tensors):
    future = torch.futures.Future()
    future.set_result(tensors)
    return torch._C._distributed_c10d._create_work_from_future(future)


def initialize(rank, world, init_file, order):
    Recorder.calls, Recorder.order = [], order
    dist.Backend.register_backend("recording", Recorder, devices=["cpu"])
    dist.init_process_group("recording", init_method=f"file://{init_file}", rank=rank, world_size=world)
