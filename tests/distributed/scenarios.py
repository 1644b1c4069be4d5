"""What each of two processes runs: torch's engines around models compiled with fusepass.

Every scenario returns the sites that were fused, and how far its numbers are from one process
that runs the original model on the whole batch.
"""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from small_models import QUICK, UNCACHED, Mlp, Recorder, compiled
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

Result = dict[str, Any]
WORLD = 2


@dataclass(frozen=True)
class Sizes:
    """Of the models and of the whole batch."""

    width: int
    hidden: int
    batch: int


# On a CPU it is the graphs that are tested; a GPU's are large enough for kernels of one launch.
SIZES = {"cpu": Sizes(16, 32, 8), "cuda": Sizes(512, 2048, 4096)}


class Stack(nn.Module):
    """Three residual blocks, of Mlp or Gated."""

    def __init__(self, sizes: Sizes, block: Callable[[int, int], nn.Module] = Mlp) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(sizes.width, sizes.hidden) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class Gated(nn.Module):
    """A gated MLP, as decoders have it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class RowThenGelu(nn.Module):
    """A pair of Linears whose second is followed by an epilogue."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.up = nn.Linear(sizes.width, sizes.hidden)
        self.down = nn.Linear(sizes.hidden, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(F.hardtanh(self.down(F.relu(self.up(x))) * 0.5))


class Reference:
    """Eager, unsharded, on the whole batch: losses and parameters after each step."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = copy.deepcopy(model)
        sizes = SIZES[device.type]
        self.batches = [torch.randn(sizes.batch, sizes.width, device=device) for _ in range(3)]
        self.outs: list[Tensor] = []
        steps = optimizer(self.model)
        for x in self.batches:
            out = self.model(x)
            out.square().mean().backward()
            steps.step()
            steps.zero_grad()
            self.outs.append(out.detach())

    def error(self, model: nn.Module, outs: list[Tensor], rows: slice) -> float:
        """The largest difference of outputs and of trained parameters."""
        pairs = [(a, b[rows]) for a, b in zip(outs, self.outs, strict=True)]
        # Names differ by what the engines and the compiler prefix; the order does not.
        parameters = zip(model.parameters(), self.model.parameters(), strict=True)
        pairs += [(_whole(a), b) for a, b in parameters]
        return max(float((_whole(a) - b).abs().max()) for a, b in pairs)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.5)


def _options(device: torch.device, recorder: Recorder | None = None) -> dict[str, Any]:
    """On the CPU it is the graphs that are tested; on GPUs everything."""
    options: dict[str, Any] = {**QUICK} if device.type == "cpu" else {}
    if recorder is not None:
        options["post_grad_custom_pre_pass"] = recorder
    return options


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _train(
    run: Callable[[Tensor], Tensor], model: nn.Module, batches: list[Tensor]
) -> list[Tensor]:
    outs, steps = [], optimizer(model)
    for x in batches:
        out = run(x)
        out.square().mean().backward()
        steps.step()
        steps.zero_grad()
        outs.append(out.detach())
    return outs


def _data_parallel(model: nn.Module, wrap: Callable[[nn.Module], Any], mesh: DeviceMesh) -> Result:
    """Each process has half of the rows; the engine averages the gradients."""
    device = next(model.parameters()).device
    reference = Reference(model, device)
    half = SIZES[device.type].batch // WORLD
    rows = slice(dist.get_rank() * half, (dist.get_rank() + 1) * half)
    run = wrap(model)
    outs = _train(run, run, [x[rows] for x in reference.batches])
    return {"error": reference.error(model, outs, rows)}


def ddp_of_compiled(mesh: DeviceMesh, device: torch.device, block: type[nn.Module] = Mlp) -> Result:
    model = Stack(SIZES[device.type], block).to(device)

    def wrap(model: nn.Module) -> nn.Module:
        return DistributedDataParallel(compiled(model, options=_options(device)))

    return _data_parallel(model, wrap, mesh)


def compiled_ddp(mesh: DeviceMesh, device: torch.device) -> Result:
    """Dynamo cuts the graph where DDP's buckets end, here behind every block."""
    model, recorder = Stack(SIZES[device.type]).to(device), Recorder()
    bucket = sum(p.nbytes for p in model.blocks[0].parameters())

    def wrap(model: nn.Module) -> nn.Module:
        wrapped = DistributedDataParallel(model, bucket_cap_mb=bucket / 2**20)
        return compiled(wrapped, options=_options(device, recorder))

    # A first bucket may be no larger than the others.
    with mock.patch.object(dist, "_DEFAULT_FIRST_BUCKET_BYTES", bucket):
        result = _data_parallel(model, wrap, mesh)
    return {**result, "graphs": len(recorder.graphs)}


def fsdp2(mesh: DeviceMesh, device: torch.device, block: type[nn.Module] = Mlp) -> Result:
    """Blocks compiled one by one and sharded one by one, as large models are trained."""
    model = Stack(SIZES[device.type], block).to(device)

    def wrap(model: nn.Module) -> nn.Module:
        for block in model.blocks:
            block.compile(backend="fusepass", options={**UNCACHED, **_options(device)})
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    return _data_parallel(model, wrap, mesh)


def tensor_parallel(mesh: DeviceMesh, device: torch.device, block: type[nn.Module] = Mlp) -> Result:
    """Colwise up-projections, and gates beside them, fuse; their epilogue is on the shard."""
    model = Stack(SIZES[device.type], block).to(device)
    reference = Reference(model, device)
    for one in model.blocks:
        plan = {name: ColwiseParallel() for name, _ in one.named_children() if name != "down"}
        parallelize_module(one, mesh, {**plan, "down": RowwiseParallel()})
    run = compiled(model, options=_options(device))
    outs = _train(run, model, reference.batches)
    return {"error": reference.error(model, outs, slice(None))}


def row_parallel(mesh: DeviceMesh, device: torch.device) -> Result:
    """The sum of a row-parallel Linear ends in a collective: its epilogue must follow that."""
    model = RowThenGelu(SIZES[device.type]).to(device)
    reference = Reference(model, device)
    parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    recorder = Recorder()
    run = compiled(model, options=_options(device, recorder))
    outs = _train(run, model, reference.batches)
    forward = [t for t in recorder.graphs[0] if "all_reduce" in t or "erf" in t]
    return {
        "error": reference.error(model, outs, slice(None)),
        "all-reduce, then erf": "all_reduce" in forward[0] and "erf" in forward[-1],
    }


SCENARIOS: dict[str, tuple[Callable[[DeviceMesh, torch.device], Result], int, int]] = {
    # name -> (what is run, sites fused in each process: in the forward at least, in all on a CPU)
    "DDP of a compiled model": (ddp_of_compiled, 3, 11),
    "compiled DDP": (compiled_ddp, 3, 11),
    "FSDP2": (fsdp2, 2, 4),  # blocks alike share a compile; the first one's input wants no gradient
    "tensor parallel": (tensor_parallel, 3, 6),
    "DDP, gated": (partial(ddp_of_compiled, block=Gated), 6, 16),
    "FSDP2, gated": (partial(fsdp2, block=Gated), 2, 7),
    "tensor parallel, gated": (partial(tensor_parallel, block=Gated), 6, 9),
    "row parallel": (row_parallel, 1, 2),  # the up-projection, and its derivative
}


def process(rank: int, folder: str, backend: str) -> None:
    """Runs every scenario in process ``rank`` and leaves the results in ``folder``."""
    device = torch.device("cpu" if backend == "gloo" else f"cuda:{rank}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    store = dist.FileStore(os.path.join(folder, "store"), WORLD)
    dist.init_process_group(backend, store=store, rank=rank, world_size=WORLD)
    mesh = init_device_mesh(device.type, (WORLD,))
    results = {}
    for name, (run, *_) in SCENARIOS.items():
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        try:
            results[name] = run(mesh, device)
        except Exception:
            results[name] = {"failure": traceback.format_exc()}
        results[name]["fused"] = counters["fusepass"]["fused"]
        dist.barrier()
    torch.save(results, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()
