"""The pass inside Inductor: where it runs, what is worth fusing, its identity in caches."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor_config
import torch.nn.functional as F
from graphs import fuse
from small_models import block
from torch import nn

from fusepass.report import collect
from fusepass.rewrite import decision, graph_pass
from fusepass.rewrite.decision import worthwhile
from fusepass.rewrite.graph_pass import FusePass


@pytest.mark.parametrize("numerics", ["accurate", "bitwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_through_inductor(numerics: str, dtype: torch.dtype) -> None:
    model, x = block(24, 40).to(dtype), torch.randn(2, 3, 24, dtype=dtype)
    state = copy.deepcopy(model.state_dict())
    patches = {"joint_custom_pre_pass": FusePass(numerics), "force_disable_caches": True}
    with torch.no_grad(), collect() as gathered, inductor_config.patch(patches):
        found, eager = torch.compile(model)(x), model(x)
    assert [s.epilogue for s in gathered.report().sites] == ["mul(0.5) clamp(-2.0, 2.0) gelu"]
    if numerics == "bitwise":
        assert torch.equal(found, eager)
    torch.testing.assert_close(found, eager)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [n for n, _ in model.named_parameters()] == ["gemm.weight", "gemm.bias"]


def test_hooks_still_run() -> None:
    model, x, seen = block(24, 40), torch.randn(6, 24), []
    model.gemm.register_forward_hook(lambda module, args, out: seen.append(1) or out * 3)
    with torch.no_grad():
        fused = fuse(model)
        torch.testing.assert_close(fused(x), model(x))
    assert fused.epilogues == ["mul(3.0) mul(0.5) clamp(-2.0, 2.0) gelu"] and seen


# --- worth it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuda", "one_kernel", "tail_is_free", "saves_nothing", "fuses"),
    [
        (False, False, True, True, True),
        (True, True, True, False, True),
        (True, True, True, True, False),
        (True, False, False, False, True),
        (True, False, True, False, False),
    ],
)
def test_worthwhile(
    cuda: bool, one_kernel: bool, tail_is_free: bool, saves_nothing: bool, fuses: bool
) -> None:
    reason = worthwhile(
        cuda=cuda, one_kernel=one_kernel, tail_is_free=tail_is_free, saves_nothing=saves_nothing
    )
    assert (reason is None) == fuses and (fuses or "Inductor fuses" in (reason or ""))


@pytest.mark.parametrize(
    ("tail", "free"),
    [
        (lambda z: F.relu(z), False),
        (lambda z: F.relu(z) @ torch.randn(40, 8), False),
        (lambda z: F.relu(z) + torch.randn(3, 6, 40), True),
        (lambda z: F.relu(z).view(3, 80).sum(-1), True),
        (lambda z: F.relu(z).double(), True),
    ],
)
def test_what_inductor_would_fuse_for_free(tail, free, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        decision, "worthwhile", lambda **facts: seen.append(facts) or "left to Inductor"
    )
    linear = nn.Linear(24, 40)
    with torch.no_grad():
        fused = fuse(lambda x: tail(linear(x)))
        fused(torch.randn(6, 24))
    expected = {"cuda": False, "one_kernel": False, "tail_is_free": free, "saves_nothing": False}
    assert seen == [expected]
    assert fused.reasons[0] == "left to Inductor" and fused.before == fused.after


# --- identity in caches -------------------------------------------------------------------------


def test_it_can_be_copied_and_pickled() -> None:
    original = FusePass("bitwise")
    for other in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert other.numerics == "bitwise" and other.uuid() == original.uuid()


def test_unknown_numerics() -> None:
    with pytest.raises(ValueError, match="numerics is 'fast'"):
        FusePass("fast")


def test_uuid_depends_on_every_source_and_on_the_options(tmp_path: Path) -> None:
    assert FusePass().uuid() == FusePass().uuid() != FusePass("bitwise").uuid()
    (tmp_path / "graph_pass.py").write_text("a")
    (tmp_path / "kernels").mkdir()
    seen = {graph_pass._fingerprint(tmp_path)}
    for name in ("b.py", "kernels/c.cu", "kernels/d.cuh", "kernels/e.h", "kernels/f.cpp"):
        (tmp_path / name).write_text("1")
        seen.add(graph_pass._fingerprint(tmp_path))
        (tmp_path / name).write_text("2")
        seen.add(graph_pass._fingerprint(tmp_path))
    assert len(seen) == 11


def test_uuid_fails_closed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is cached"):
        graph_pass._fingerprint(tmp_path)
    (tmp_path / "graph_pass.py").write_text("a")
    (tmp_path / "gone.cu").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError):
        graph_pass._fingerprint(tmp_path)
