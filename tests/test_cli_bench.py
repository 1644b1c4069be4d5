"""``python -m fusepass bench``: times, errors and ratios, as a table, as JSON and as a picture."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._C._autograd import DeviceType

from fusepass.__main__ import main
from fusepass.cli import bench
from fusepass.cli.measured import Result, Row
from fusepass.cli.spent import _of_kernels, kind_of, spent
from fusepass.cli.timing import Timing, compare
from fusepass.match.followers import ATTENTION
from fusepass.report import Miss, Report, Site
from fusepass.rewrite.decision import ALONE

MODEL = """
import torch
import torch.nn.functional as F
from torch import nn
from torch._C._autograd import DeviceType


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(16, 32)

    def forward(self, x):
        return nn.functional.gelu(self.up(x) * 0.5)


def get_inputs():
    return [torch.randn(8, 16)]
"""


def test_bench(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, drawn = tmp_path / "out.json", tmp_path / "out.png"
    arguments = ["bench", model, "--device", "cpu", "--peers", "eager", "fusepass"]
    arguments += ["--seconds", "0.1", "--json", str(written)]
    pytest.importorskip("matplotlib", reason="needs matplotlib for the picture")
    assert main([*arguments, "--picture", str(drawn)]) == 0
    out = capsys.readouterr().out
    result = json.loads(written.read_text())
    assert result["fused"] == 1 and list(result["rows"]) == ["eager", "fusepass"]
    for name, row in result["rows"].items():
        assert row["median_ms"] > 0 and len(row["rounds_ms"]) >= 5 and row["error"] < 1e-5
        assert f"\n{name} " in out
    assert result["next"] is None and sum(result["spent"].values()) == pytest.approx(1)
    assert out.splitlines()[-1] == result["summary"] + "."
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_fails_is_a_row(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(gm: object, inputs: object) -> object:
        raise RuntimeError("this peer is broken")

    peers = {"eager": None, "broken": {"backend": broken}}
    monkeypatch.setattr(bench, "PEERS", peers)
    assert main(["bench", model, "--device", "cpu", "--seconds", "0.1"]) == 1
    assert "broken          failed: " in capsys.readouterr().out


def test_bench_names_its_peers(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", model, "--peers", "tensorrt"]) == 2
    assert "no peer 'tensorrt'; the peers are eager, inductor" in capsys.readouterr().err


def _result(rounds: dict[str, tuple[float, ...]], **changes: object) -> Result:
    rows = {name: Row(rounds_ms=ms) for name, ms in rounds.items()}
    return Result("m", "d", "float32", "2", "highest", 1, rows=rows, **changes)  # type: ignore[arg-type]


STEADY = {"eager": (5.0,) * 9, "inductor": (3.0,) * 9, "fusepass": (2.0,) * 9}


def test_speedups_are_over_eager_and_over_inductor() -> None:
    lines = {line.split()[0]: line.split() for line in str(_result(STEADY)).splitlines()[3:6]}
    assert {name: cells[3:5] for name, cells in lines.items()} == {
        "eager": ["1.00x", "0.60x"],
        "inductor": ["1.67x", "1.00x"],
        "fusepass": ["2.50x", "1.50x"],
    }


def test_no_speedup_over_a_peer_without_a_time() -> None:
    result = _result({"fusepass": (2.0,)})
    result.rows["inductor"] = Row(failed="no compiler")
    assert result.speedup("fusepass", "inductor") is result.speedup("fusepass", "eager") is None
    assert result.summary == "" and str(result).endswith("float64.")


def test_the_last_sentence() -> None:
    spending = {"fused products": 0.6, "everything else": 0.396, "attention": 0.004}
    result = _result(STEADY, spent=spending, next="up, 31.0% of the products' FLOPs: `silu`")
    assert str(result).splitlines()[-1] == (
        "fusepass is 1.50 times as fast as Inductor; of its time it spends 60% in fused products, "
        "40% in everything else; next would be up, 31.0% of the products' FLOPs: `silu`."
    )


def test_a_ratio_that_means_nothing_is_not_printed() -> None:
    """A busy machine: the medians are known, but half of the rounds lie far apart."""
    wild = {"inductor": (3.0, 3.0, 40.0) * 30, "fusepass": (2.0, 30.0, 2.0) * 30}
    table = str(_result(wild))
    row = next(line for line in table.splitlines() if line.startswith("fusepass"))
    assert "unclear" in row and "1.50x" not in row
    assert "A ratio is unclear where" in table
    assert table.endswith("how fast fusepass is next to Inductor is unclear here.")


@pytest.mark.parametrize(
    ("noise", "count", "clear"),
    [(0.01, 9, True), (0.1, 9, False), (0.1, 400, True), (0.6, 4000, False)],
)
def test_a_ratio_is_clear_if_the_rounds_agree(noise: float, count: int, clear: bool) -> None:
    rng = random.Random(7)
    own, base = (
        Timing(tuple(ms * (1 + noise * rng.uniform(-1, 1)) for _ in range(count)))
        for ms in (2.0, 3.0)
    )
    assert compare(own, base).clear == clear


def test_the_interval_holds_the_ratio() -> None:
    """Of 400 runs of 25 rounds each, about 95% hold the true ratio of 1.5 in their interval."""
    rng = random.Random(3)
    held = 0
    for _ in range(400):
        own, base = (
            Timing(tuple(ms * rng.lognormvariate(0, 0.1) for _ in range(25))) for ms in (2.0, 3.0)
        )
        ratio = compare(own, base)
        assert ratio.low <= ratio.value <= ratio.high
        held += ratio.low <= 1.5 <= ratio.high
    assert 0.92 <= held / 400 <= 0.99


def test_rounds_that_were_taken_together_are_compared() -> None:
    """Both slow down and recover together: the ratio is as clear as their rounds' ratios are."""
    drift = [1 + 0.3 * (i % 20) / 20 for i in range(60)]
    ratio = compare(Timing(tuple(2 * d for d in drift)), Timing(tuple(3 * d for d in drift)))
    assert ratio.low == pytest.approx(1.5) and ratio.high == pytest.approx(1.5) and ratio.clear
    with pytest.raises(ValueError, match="argument 2 is"):
        compare(Timing((1.0,)), Timing((1.0, 2.0)))


# --- where the time goes, and what would be next ------------------------------------------------


def test_the_time_of_products_and_of_the_rest(capfd: pytest.CaptureFixture[str]) -> None:
    products = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
    x, y = torch.randn(512, 512), torch.randn(1 << 20)
    with torch.no_grad():
        mostly = spent(lambda: products(x), "cpu")
        hardly = spent(lambda: torch.erfinv(torch.sin(y)), "cpu")
        half = spent(
            lambda: torch.nn.functional.scaled_dot_product_attention(*[x[None]] * 3), "cpu"
        )
    assert next(iter(mostly)) == "torch's products"
    assert hardly == {"everything else": 1.0}
    assert next(iter(half)) == "attention"
    sys.stderr.write("as before")
    assert capfd.readouterr().err == "as before"  # and nothing of the profiler's
    assert all(sum(shares.values()) == pytest.approx(1) for shares in (mostly, hardly, half))


def test_the_time_of_kernels_is_counted_once() -> None:
    """What a GPU ran; not the host's calls, nor the spans that hold several kernels."""

    def event(name: str, kind: DeviceType, span: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, device_type=kind, is_user_annotation=span, device_time_total=10.0
        )

    events = [
        event("fusepass_gemm", DeviceType.CUDA),
        event("nvjet_hsh_64x8", DeviceType.CUDA),
        event("fusepass_sum", DeviceType.CUDA),
        event("triton_red_fused_0", DeviceType.CUDA),
        event("## Call CompiledFxGraph ##", DeviceType.CUDA, span=True),
        event("fusepass::linear", DeviceType.CPU),
    ]
    assert _of_kernels(events) == {
        "fused products": 20.0, "torch's products": 10.0, "everything else": 10.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fusepass::linear", "fused products"),
        ("fusepass_gemm", "fused products"),
        ("aten::addmm", "torch's products"),
        ("mkldnn::_linear_pointwise", "torch's products"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTN", "torch's products"),
        ("sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x128x32", "torch's products"),
        ("aten::_scaled_dot_product_flash_attention", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits>", "attention"),
        ("triton_poi_fused_add_0", None),
        ("aten::mul", None),
        ("Memcpy DtoD (Device -> Device)", None),
    ],
)
def test_what_an_operator_is_by_its_name(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_what_would_be_next_is_the_largest_that_might_fuse() -> None:
    def miss(reason: str, module: str, flops: int | None) -> Miss:
        return Miss(reason, "mm", None, module, flops=flops)

    gate = "a gate (another Linear's result): `mul` takes another tensor, which differs by element"
    silu = "`silu` is not a stage fusepass knows"
    misses = [
        miss("nothing to fuse: its result is returned", "head", 900),
        miss(silu, "b", 40),
        miss(ATTENTION, "attn", 500),
        miss("dropout", "c", None),
        miss(f"{ALONE}, and torch's GEMM is as fast at 1x2x3", "d", 700),
    ]
    misses += [miss(gate, f"layers.{i}.up", 20) for i in range(3)]
    assert bench._next(Report(misses=tuple(misses))) == (
        "layers.0-2.up × 3, 2.7% of the products' FLOPs: a gate (another Linear's result)"
    )
    assert bench._next(Report(misses=tuple(misses[:1]))) is None
    site = Site("", "float32", "1", "2", "3", "one kernel", None, "e", "mm", flops=100)
    gated = dataclasses.replace(site, follows=gate)
    assert bench._next(Report(sites=(site,))) is None
    assert bench._next(Report(sites=(site, gated), misses=tuple(misses))) == (
        "e, 4.2% of the products' FLOPs: a gate (another Linear's result)"
    )


def test_quick_leaves_max_autotune_out(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], float]] = []

    def run(name: str, model: object, inputs: object, peers: list[str], seconds: float) -> Result:
        seen.append((peers, seconds))
        return _result(STEADY)

    monkeypatch.setattr(bench, "run", run)
    assert main(["bench", model, "--quick"]) == main(["bench", model]) == 0
    assert main(["bench", model, "--quick", "--seconds", "9"]) == 0
    quick = ["eager", "inductor", "fusepass"]
    assert seen == [(quick, 2.0), ([*quick[:2], "max-autotune", "fusepass"], 5.0), (quick, 9.0)]
