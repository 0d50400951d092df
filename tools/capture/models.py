"""Models to record, and their data. A model's forward takes one micro-batch and returns the loss.

build(text, seed) understands

    params:6,3,10,2             parameters p0, p1, ... of one module; loss = sum of (p.float() * x).sum()
    layers:16,4/24,4/10,3       the same with one module per part between slashes
    mlp:8,16,4                  Linear layers with ReLU between them, cross entropy
    cifar10-net[:6,16,120,84]   DeepSpeed's CIFAR-10 example: two convolutions and three linear layers, with these widths
    module:my_model.py:build    your own: build(seed) returns (model, batch), batch(step, micro, rank) the model's arguments

All data is random: it is the arithmetic after backward that a run records, and any gradient serves for that.

A model is told the type that it will compute in. To ask one of its layers' weights would do as well, but at stage 3 DeepSpeed
notices who looks at a weight, and takes one that is looked at from outside of its layer for a parameter of the model itself too.
"""
import importlib.util
import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Layer(nn.Module):
    """Adds sum(p.float() * x) over its parameters to what earlier layers gave."""

    def __init__(self, first, values):
        super().__init__()
        self.count = len(values)
        for i, value in enumerate(values):
            setattr(self, f"p{first + i}", nn.Parameter(value))

    def forward(self, total, xs):
        for p, x in zip(self.parameters(recurse=False), xs):
            total = total + (p.float() * x).sum()
        return total


class Layers(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *xs):
        total = torch.zeros((), requires_grad=True)
        at = 0
        for layer in self.layers:
            total = layer(total, xs[at:at + layer.count])
            at += layer.count
        return total


class Params(Layer):
    def forward(self, *xs):
        return super().forward(torch.zeros(()), xs)


class Mlp(nn.Module):
    def __init__(self, widths, dtype):
        super().__init__()
        self.dtype = dtype
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))

    def forward(self, x, labels):
        x = x.to(self.dtype)
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return functional.cross_entropy(self.layers[-1](x).float(), labels)


class CifarNet(nn.Module):
    def __init__(self, conv1, conv2, fc1, fc2, dtype):
        super().__init__()
        self.dtype = dtype
        self.conv1 = nn.Conv2d(3, conv1, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(conv1, conv2, 5)
        self.fc1 = nn.Linear(conv2 * 5 * 5, fc1)
        self.fc2 = nn.Linear(fc1, fc2)
        self.fc3 = nn.Linear(fc2, 10)

    def forward(self, x, labels):
        x = x.to(self.dtype)
        x = self.pool(functional.relu(self.conv1(x)))
        x = self.pool(functional.relu(self.conv2(x)))
        x = x.flatten(1)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        return functional.cross_entropy(self.fc3(x).float(), labels)


def _generator(*key):
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _build_params(parts, seed):
    random = _generator(seed)
    values = [[torch.from_numpy(random.standard_normal(n).astype(np.float32)) for n in part] for part in parts]
    sizes = [n for part in parts for n in part]

    def batch(step, micro, rank):
        random = _generator(seed, 1 + step, micro, rank)
        return tuple(torch.from_numpy(random.standard_normal(n).astype(np.float32)) for n in sizes)

    if len(parts) == 1:
        return Params(0, values[0]), batch
    first = np.cumsum([0] + [len(part) for part in parts])
    return Layers([Layer(int(f), v) for f, v in zip(first, values)]), batch


def _classifier_batch(seed, shape, classes, count):
    def batch(step, micro, rank):
        random = _generator(seed, 1 + step, micro, rank)
        x = torch.from_numpy(random.standard_normal((count, *shape)).astype(np.float32))
        return x, torch.from_numpy(random.integers(0, classes, count))

    return batch


def _integers(text):
    return [int(n) for n in text.split(",")]


def build(text, seed, micro_batch_size, dtype):
    kind, _, rest = text.partition(":")
    torch.manual_seed(seed)
    if kind == "params":
        return _build_params([_integers(rest)], seed)
    if kind == "layers":
        return _build_params([_integers(part) for part in rest.split("/")], seed)
    if kind == "mlp":
        widths = _integers(rest)
        return Mlp(widths, dtype), _classifier_batch(seed, widths[:1], widths[-1], micro_batch_size)
    if kind == "cifar10-net":
        widths = _integers(rest or "6,16,120,84")
        return CifarNet(*widths, dtype), _classifier_batch(seed, (3, 32, 32), 10, micro_batch_size)
    if kind == "module":
        path, _, function = rest.rpartition(":")
        spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, function)(seed)
    raise ValueError(f"model {text!r}: want params:, layers:, mlp:, cifar10-net or module:FILE:FUNCTION")
