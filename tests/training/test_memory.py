"""What the backward keeps alive: no more than Inductor's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch._functorch.config
from small_models import QUICK, EncoderLayer, Mlp, Recorder, block, compiled, fused
from torch import Tensor, nn

from fusepass.kernels import has_fused_gemm

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "block": (lambda: block(64, 256), (128, 64)),
    "mlp": (lambda: Mlp(64, 256), (128, 64)),
    "encoder layer": (lambda: EncoderLayer(64, 2), (4, 32, 64)),
}


def _saved_bytes(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes saved for the backward, each storage once, parameters and the input included."""
    storages = {}

    def pack(saved: Tensor) -> Tensor:
        storages[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        run(x).sum().backward()
    return sum(storages.values())


def _both(name: str, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes saved by Inductor, and by fusepass."""
    make, shape = MODELS[name]
    model, x = make().to(dtype), torch.randn(shape, dtype=dtype)
    saved = []
    for backend in ("inductor", "fusepass"):
        torch._dynamo.reset()
        saved.append(_saved_bytes(compiled(model, backend=backend, options=QUICK), x))
    assert fused() > 0
    return saved[0], saved[1]


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_saved_for_the_backward(name: str, dtype: torch.dtype) -> None:
    theirs, ours = _both(name, dtype)
    # Hardly less either: what is not saved is computed again. A vector of a norm's may be.
    assert theirs - 1024 <= ours <= theirs


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["block", "mlp"])
def test_the_forward_is_the_products_alone(name: str, dtype: torch.dtype) -> None:
    """Saving a stage's result instead of the pre-activation takes no more memory, but a kernel."""
    make, shape = MODELS[name]
    recorder = Recorder()
    options = {**QUICK, "post_grad_custom_pre_pass": recorder}
    compiled(make().to(dtype), options=options)(torch.randn(shape, dtype=dtype)).sum().backward()
    free = ("<built-in function getitem", "aten.detach", "aten.permute")
    computed = [t for t in recorder.graphs[0] if not t.startswith(free)]
    product = ["aten.addmm.default"] if name == "mlp" else []
    assert computed == ["fusepass.linear_with_preact.default", *product]


@pytest.mark.usefixtures("one_thread")
def test_saved_under_a_memory_budget() -> None:
    full, _ = _both("mlp", torch.float32)
    with torch._functorch.config.patch(activation_memory_budget=0.5):
        theirs, ours = _both("mlp", torch.float32)
    assert ours <= theirs < full


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_peak_of_a_training_step(name: str) -> None:
    make, shape = MODELS[name]
    model = make().to("cuda", torch.bfloat16)
    # Large enough that activations dwarf the allocator's rounding and any workspace.
    x = torch.randn((64 * shape[0], *shape[1:]), device="cuda", dtype=torch.bfloat16)
    peaks = {}
    for backend in ("inductor", "fusepass"):
        torch._dynamo.reset()
        run = compiled(model, backend=backend)
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run(x).sum().backward()
            peaks[backend] = torch.cuda.max_memory_allocated() - before
    # GELU's derivative, and an encoder's two residuals, read matrices beside their products: a
    # kernel of ours does.
    more = {"mlp": 1, "encoder layer": 3}.get(name, 0)
    assert fused() == 1 + more * has_fused_gemm(x.device, x.dtype)
    assert peaks["fusepass"] <= peaks["inductor"]
