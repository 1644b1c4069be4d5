"""The pass as a whole: graphs before and after, its identity in caches, its reports."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import time
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor_config
import torch.nn.functional as F
from expecttest import assert_expected_inline
from graphs import fuse
from torch import nn
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

from fusepass import facts, graph_pass, recognise, validate
from fusepass.graph_pass import FusePass, worthwhile
from fusepass.report import Collector, Miss, Report, Site, collect


class Seed(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.gemm = nn.Linear(24, 40, dtype=dtype)
        self.hardtanh, self.gelu = nn.Hardtanh(-2, 2), nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gelu(self.hardtanh(self.gemm(x) * 0.5))


# --- before and after ---------------------------------------------------------------------------


def test_golden_inference() -> None:
    with torch.no_grad():
        fused = fuse(Seed())
        fused(torch.randn(6, 24))
    assert_expected_inline(
        fused.before[0],
        """\
arg0_1: f32[40, 24]
arg1_1: f32[40]
arg2_1: f32[6, 24]
permute: f32[24, 40] = aten.permute(arg0_1, [1, 0])
addmm: f32[6, 40] = aten.addmm(arg1_1, arg2_1, permute)
mul: f32[6, 40] = aten.mul(addmm, 0.5)
clamp_min: f32[6, 40] = aten.clamp_min(mul, -2)
clamp_max: f32[6, 40] = aten.clamp_max(clamp_min, 2)
mul_1: f32[6, 40] = aten.mul(clamp_max, 0.5)
mul_2: f32[6, 40] = aten.mul(clamp_max, 0.7071067811865476)
erf: f32[6, 40] = aten.erf(mul_2)
add: f32[6, 40] = aten.add(erf, 1)
mul_3: f32[6, 40] = aten.mul(mul_1, add)
return [mul_3]""",
    )
    assert_expected_inline(
        fused.after[0],
        """\
arg0_1: f32[40, 24]
arg1_1: f32[40]
arg2_1: f32[6, 24]
linear_default: f32[6, 40] = fusepass.linear(arg2_1, arg0_1, arg1_1, 'mul(0.5) clamp(-2.0, 2.0) gelu', [])
return [linear_default]""",  # noqa: E501
    )


def test_golden_three_dimensions_and_a_used_intermediate() -> None:
    linear = nn.Linear(24, 40, bias=False)

    def model(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = linear(x) * 2
        return F.relu(y), y

    with torch.no_grad():
        fused = fuse(model)
        found, expected = fused(x := torch.randn(2, 3, 24)), model(x)
    torch.testing.assert_close(found, expected)
    assert_expected_inline(
        fused.after[0],
        """\
arg0_1: f32[40, 24]
arg1_1: f32[2, 3, 24]
view: f32[6, 24] = aten.view(arg1_1, [6, 24])
linear_with_preact_default = fusepass.linear_with_preact(view, arg0_1, None, 'mul(2.0) clamp(0.0, inf)', [])
getitem: f32[6, 40] = getitem(linear_with_preact_default, 0)
getitem_1: f32[6, 40] = getitem(linear_with_preact_default, 1)
view_1: f32[2, 3, 40] = aten.view(getitem_1, [2, 3, 40])
mul: f32[2, 3, 40] = aten.mul(view_1, 2)
view_default: f32[2, 3, 40] = aten.view(getitem, [2, 3, 40])
return [view_default, mul]""",  # noqa: E501
    )


def test_golden_bias_added_and_weight_stored_kn() -> None:
    weight, bias = torch.randn(24, 40), torch.randn(40)
    with torch.no_grad():
        fused = fuse(lambda x: F.relu(x @ weight + bias))
        torch.testing.assert_close(fused(x := torch.randn(6, 24)), F.relu(x @ weight + bias))
    assert_expected_inline(
        fused.after[0],
        """\
arg0_1: f32[6, 24]
arg1_1: f32[24, 40]
arg2_1: f32[40]
permute_default: f32[40, 24] = aten.permute(arg1_1, [1, 0])
linear_default: f32[6, 40] = fusepass.linear(arg0_1, permute_default, arg2_1, 'clamp(0.0, inf)', [])
return [linear_default]""",
    )


def test_golden_transposed_result() -> None:
    linear = nn.Linear(24, 40)
    with torch.no_grad():
        fused = fuse(lambda x: F.relu(linear(x).t()).t().reshape(-1))
        torch.testing.assert_close(fused(x := torch.randn(6, 24)), F.relu(linear(x)).view(-1))
    assert_expected_inline(
        fused.after[0],
        """\
arg0_1: f32[40, 24]
arg1_1: f32[40]
arg2_1: f32[6, 24]
linear_default: f32[6, 40] = fusepass.linear(arg2_1, arg0_1, arg1_1, 'clamp(0.0, inf)', [])
permute_default: f32[40, 6] = aten.permute(linear_default, [1, 0])
permute_2: f32[6, 40] = aten.permute(permute_default, [1, 0])
view: f32[240] = aten.view(permute_2, [-1])
return [view]""",
    )


def test_a_graph_with_nothing_to_fuse_is_untouched() -> None:
    linear = nn.Linear(24, 40)
    with torch.no_grad():
        fused = fuse(lambda x: F.silu(linear(x)))
        fused(torch.randn(6, 24))
    assert fused.before == fused.after and len(fused.reasons) == 1


def test_every_new_node_says_where_it_comes_from() -> None:
    with torch.no_grad():
        fused = fuse(Seed())
        fused(torch.randn(2, 3, 24))
    new = [n for n in fused.graphs[0].nodes if n.op == "call_function"][1:]
    assert len(new) == 2
    for node in new:
        assert node.meta["val"].is_contiguous() and node.meta["stack_trace"]
        assert node.meta["nn_module_stack"]


def test_a_linear_read_by_a_site_that_was_replaced() -> None:
    """The exit of one site is the input of the next: five in a row."""
    model = nn.Sequential(*(m for _ in range(5) for m in (nn.Linear(24, 24), nn.ReLU())))
    x = torch.randn(6, 24)
    with torch.no_grad():
        fused = fuse(model)
        torch.testing.assert_close(fused(x), model(x))
    assert fused.epilogues == ["clamp(0.0, inf)"] * 5
    assert "aten" not in fused.after[0]


def test_a_linear_that_reads_another_ones_pre_activation() -> None:
    first, second = nn.Linear(24, 24), nn.Linear(24, 24)

    def model(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = first(x)
        return F.gelu(z), F.relu(second(z) * z.mean())

    x = torch.randn(6, 24)
    with torch.no_grad():
        fused = fuse(model)
        torch.testing.assert_close(fused(x), model(x))
    assert fused.epilogues == ["gelu", "mul($0) clamp(0.0, inf)"]


# --- through Inductor ---------------------------------------------------------------------------


@pytest.mark.parametrize("numerics", ["accurate", "bitwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_through_inductor(numerics: str, dtype: torch.dtype) -> None:
    model, x = Seed(dtype), torch.randn(2, 3, 24, dtype=dtype)
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
    model, x, seen = Seed(), torch.randn(6, 24), []
    model.gemm.register_forward_hook(lambda module, args, out: seen.append(1) or out * 3)
    with torch.no_grad():
        fused = fuse(model)
        torch.testing.assert_close(fused(x), model(x))
    assert len(fused.epilogues) <= 1 and seen


# --- worth it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuda", "one_kernel", "tail_is_free", "fuses"),
    [
        (False, False, True, True),
        (True, True, True, True),
        (True, False, False, True),
        (True, False, True, False),
    ],
)
def test_worthwhile(cuda: bool, one_kernel: bool, tail_is_free: bool, fuses: bool) -> None:
    reason = worthwhile(cuda=cuda, one_kernel=one_kernel, tail_is_free=tail_is_free)
    assert (reason is None) == fuses and (fuses or "Inductor fuses" in (reason or ""))


@pytest.mark.parametrize(
    ("tail", "free"),
    [
        (lambda z: F.relu(z), False),
        (lambda z: F.relu(z) @ torch.randn(40, 8), False),
        (lambda z: F.relu(z) + torch.randn(6, 40), True),
        (lambda z: F.relu(z).view(3, 80).sum(-1), True),
        (lambda z: F.relu(z).double(), True),
    ],
)
def test_what_inductor_would_fuse_for_free(tail, free, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        graph_pass, "worthwhile", lambda **facts: seen.append(facts) or "left to Inductor"
    )
    linear = nn.Linear(24, 40)
    with torch.no_grad():
        fused = fuse(lambda x: tail(linear(x)))
        fused(torch.randn(6, 24))
    assert seen == [{"cuda": False, "one_kernel": False, "tail_is_free": free}]
    assert fused.reasons == ["left to Inductor"] and fused.before == fused.after


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


# --- reports ------------------------------------------------------------------------------------


def compiled_with_reports() -> Collector:
    good, bad = nn.Linear(24, 40), nn.Linear(24, 40)
    patches = {"joint_custom_pre_pass": FusePass(), "force_disable_caches": True}
    with torch.no_grad(), collect() as gathered, inductor_config.patch(patches):
        torch.compile(lambda x: F.relu(good(x)) + F.silu(bad(x)))(torch.randn(6, 24))
    return gathered


def test_counters_log_and_collector(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fusepass"):
        report = compiled_with_reports().report()
    assert dict(torch._dynamo.utils.counters["fusepass"]) == {"fused": 1, "missed": 1}
    messages = [r.getMessage() for r in caplog.records if r.name == "fusepass"]
    assert [m.split()[0] for m in messages] == ["fused", "missed"]
    assert len(report.sites) == len(report.misses) == 1
    with collect() as later:
        pass
    assert later.report() == Report()  # a collector sees its own block only


def test_the_trace_has_the_report_as_an_artifact() -> None:
    class Trace(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.artifacts: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            metadata = getattr(record, "metadata", {})
            if metadata.get("artifact", {}).get("name") == "fusepass_report":
                self.artifacts.append(record.payload)  # type: ignore[attr-defined]

    logger, handler = logging.getLogger("torch.__trace"), Trace()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        report = compiled_with_reports().report()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    (payload,) = handler.artifacts
    assert json.loads(payload) == json.loads(report.to_json())
    assert json.loads(payload)["sites"][0]["epilogue"] == "clamp(0.0, inf)"


def test_report_reads_well() -> None:
    site = Site("mul(0.5) gelu", "bfloat16", "s0", "40", "24", "one kernel",
                "model.py:12, in forward: x = self.up(x)", "layers.0.up", "addmm")  # fmt: skip
    miss = Miss("`silu` is not a stage fusepass knows", "div", "model.py:14, in forward: y", None)
    assert_expected_inline(
        str(Report((site,), (miss,))),
        """\
fusepass: 1 fused, 1 missed
  fused  layers.0.up: linear mul(0.5) gelu
          bfloat16 [s0, 24] x [24, 40]
          one kernel
          model.py:12, in forward: x = self.up(x)
  missed  div: `silu` is not a stage fusepass knows
          model.py:14, in forward: y""",
    )
    assert str(Report()) == "fusepass: no Linear followed by a scale, clamp or GELU"


# --- cost ---------------------------------------------------------------------------------------


def deep(layers: int) -> torch.fx.GraphModule:
    weights, bias = [torch.randn(16, 16) for _ in range(layers)], torch.randn(16)

    def model(x: torch.Tensor) -> torch.Tensor:
        for weight in weights:
            x = F.gelu(F.hardtanh(F.linear(x, weight, bias) * 0.5, -2, 2))
        return x

    trace = make_fx(model, select_decomp_table(), tracing_mode="fake", _allow_non_fake_inputs=True)
    return trace(torch.randn(4, 16))


def looks_at_nodes(layers: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a pass over ``layers`` equal layers asks what a node is."""
    looks: list[torch.fx.Node] = []
    packet = facts.packet
    with monkeypatch.context() as patch:
        patch.setattr(facts, "packet", lambda node: looks.append(node) or packet(node))
        report = graph_pass.run(deep(layers).graph, "accurate")
    assert len(report.sites) == layers
    return len(looks)


def test_cost_grows_linearly_with_the_number_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: equal layers are recognised and validated once."""
    for cached in (recognise.recognise, validate.validate, validate.validate_arithmetic):
        cached.cache_clear()
    few, many = (looks_at_nodes(layers, monkeypatch) for layers in (50, 200))
    assert many <= 4.1 * few
    assert validate.validate.cache_info().misses == 1
    assert recognise.recognise.cache_info().misses < 15


def test_two_hundred_layers_in_two_seconds() -> None:
    module = deep(200)
    start = time.process_time()
    report = graph_pass.run(module.graph, "accurate")
    assert time.process_time() - start < 2 and len(report.sites) == 200
