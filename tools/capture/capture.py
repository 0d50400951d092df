#!/usr/bin/env python3
"""Records training runs of real DeepSpeed, DDP and FSDP2 on CPU, one process per rank. README.md says how to use it."""
import argparse
import importlib.util
import json
import multiprocessing
import os
import pathlib
import queue
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
DEFAULTS = {"model": "params:6,3,10,2", "world": 2, "steps": 4, "seed": 1, "framework": "deepspeed",
            "collectives": "gloo", "fused_adam": "cpu", "frozen": [], "overflow": [], "brief": False, "digest": False}
RUN_KEYS = ("name", "config", *DEFAULTS)
PACKAGES = ("numpy", "torch", "safetensors", "deepspeed")
# What must hold before PyTorch is loaded, so that its arithmetic is defined.
ENVIRONMENT = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
               "CUDA_VISIBLE_DEVICES": ""}
# MKL computes a correctly rounded square root only on its path for Intel's AVX2 processors.
SHIM = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


def require_packages():
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"capture.py: missing Python packages: {', '.join(missing)}. Install them with\n"
                 f"    DS_BUILD_OPS=0 {sys.executable} -m pip install -r {HERE / 'requirements.txt'}")


def enter_environment():
    """Starts this program again with ENVIRONMENT and the shim, which only work from the start of a process."""
    if all(os.environ.get(k) == v for k, v in ENVIRONMENT.items()):
        return
    shim = pathlib.Path(tempfile.gettempdir()) / f"capture-mkl-{os.getuid()}.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(shim)], input=SHIM, text=True, check=True)
    path = str(pathlib.Path(sys.executable).parent)  # ninja, for DeepSpeed's kernels
    os.execve(sys.executable, [sys.executable, *sys.argv],
              {**os.environ, **ENVIRONMENT, "LD_PRELOAD": str(shim), "PATH": path + os.pathsep + os.environ["PATH"]})


def prepare_deepspeed():
    """Loads what all ranks need before they are forked. DeepSpeed asks py-cpuinfo for the processor's instructions again and
    again, which takes seconds each time; the kernel knows them."""
    import cpuinfo

    lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    answer = {"arch": "X86_64", "vendor_id_raw": facts["vendor_id"], "flags": facts["flags"].split()}
    cpuinfo.get_cpu_info = lambda: answer
    from deepspeed.ops.op_builder.cpu import FusedAdamBuilder

    FusedAdamBuilder().load(verbose=False)  # compiles it when it is first used


def overflow(text):
    step, rank = text.split(":")
    return [int(step), int(rank)]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="DeepSpeed config, a JSON file")
    parser.add_argument("--runs", help="instead of the options of one run: a JSON array of objects with name, config, "
                        "and any of the options below, by their names; or a file of recorded runs, to record them again")
    parser.add_argument("--only", help="with --runs: runs whose name contains this text")
    parser.add_argument("--out", required=True, help="file for the runs; long tensors go to a .safetensors file beside")
    parser.add_argument("--name", help="the run's name (default: the config file's)")
    parser.add_argument("--model", help="params:SIZES, layers:SIZES/SIZES, mlp:WIDTHS, cifar10-net[:WIDTHS] or "
                        f"module:FILE:FUNCTION (default {DEFAULTS['model']})")
    parser.add_argument("--world", type=int, help="ranks (default 2)")
    parser.add_argument("--steps", type=int, help="optimizer steps (default 4)")
    parser.add_argument("--seed", type=int, help="of weights and data (default 1)")
    parser.add_argument("--framework", choices=("deepspeed", "ddp", "fsdp2"))
    parser.add_argument("--collectives", choices=("gloo", "rank"),
                        help="who adds: gloo, or rank after rank, 16-bit types in fp32 and rounded once (default gloo)")
    parser.add_argument("--fused-adam", choices=("cpu", "ieee"), help="DeepSpeed's Adam: its CPU kernel, or its CUDA "
                        "kernel's formula in IEEE fp32 (default cpu)")
    parser.add_argument("--overflow", type=overflow, action="append", metavar="STEP:RANK",
                        help="make that rank's first loss of the step infinite")
    parser.add_argument("--brief", action="store_true", default=None, help="leave out the optimizer's gradients")
    parser.add_argument("--digest", action="store_true", default=None, help="digests in place of the weights")
    return parser.parse_args()


def wanted_runs(options):
    if options.runs:
        runs = json.loads(pathlib.Path(options.runs).read_text(encoding="utf-8"))
        wanted = [run for run in runs if not options.only or options.only in run["name"]]
        return [{**DEFAULTS, **{key: run[key] for key in RUN_KEYS if key in run}, **run.get("capture", {})} for run in wanted]
    if not options.config:
        sys.exit("capture.py: --config or --runs is needed")
    given = {key: value for key, value in vars(options).items() if key in DEFAULTS and value is not None}
    config = json.loads(pathlib.Path(options.config).read_text(encoding="utf-8"))
    return [{**DEFAULTS, "name": options.name or pathlib.Path(options.config).stem, "config": config, **given}]


def work(run, rank, init_file, results):
    import torch.multiprocessing as sharing

    import worker

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # gloo and DeepSpeed's extensions are talkative

    sharing.set_sharing_strategy("file_system")
    results.put((rank, worker.train(run, rank, init_file)))
    results.close()
    results.join_thread()
    os._exit(0)  # without the destructors of process groups whose peers may be gone


def record(run):
    """Every rank in a process of its own, forked from this one, which has loaded the packages."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        init_file = os.path.join(folder, "rendezvous")
        processes = [context.Process(target=work, args=(run, rank, init_file, results)) for rank in range(run["world"])]
        for process in processes:
            process.start()
        ranks = {}
        while len(ranks) < run["world"]:
            try:
                rank, result = results.get(timeout=1)
                ranks[rank] = result
            except queue.Empty:
                if any(p.exitcode not in (None, 0) for p in processes):
                    for process in processes:
                        process.kill()
                    raise RuntimeError(f"{run['name']}: a rank failed") from None
        for process in processes:
            process.join()
    return [ranks[rank] for rank in range(run["world"])]


def main():
    options = arguments()
    if not pathlib.Path(options.out).resolve().parent.is_dir():
        sys.exit(f"capture.py: --out {options.out}: no such folder")
    require_packages()
    enter_environment()
    import logging

    import deepspeed
    import torch

    import runfile

    logging.disable(logging.WARNING)
    prepare_deepspeed()
    versions = f"deepspeed {deepspeed.__version__}, torch {torch.__version__}, tools/capture"
    out = pathlib.Path(options.out)
    tensors = runfile.TensorFile(out.with_suffix(".safetensors").name)
    recorded, failed = [], []
    for run in wanted_runs(options):
        try:
            recorded.append((run, record(run)))
            rank = recorded[-1][1][0]
            print(run["name"], rank["wrapper"], rank["steps"][-1].get("error") or "", flush=True)
        except RuntimeError as failure:
            failed.append(str(failure))
    if failed:
        sys.exit("\n".join(["capture.py: nothing is written", *failed]))
    for run, ranks in recorded:
        runfile.describe(run, ranks, tensors, versions)
    tensors.counting = False
    runfile.save(out, [runfile.describe(run, ranks, tensors, versions) for run, ranks in recorded])
    if tensors.tensors:
        tensors.save(out.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
