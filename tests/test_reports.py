"""Where a report goes: counters, log, trace, collectors; and how it reads."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
import torch
import torch._inductor.config as inductor_config
import torch.nn.functional as F
from expecttest import assert_expected_inline
from small_models import QUICK
from torch import nn

from fusepass.report import Collector, Miss, Report, Site, collect
from fusepass.report.summary import amount, rows
from fusepass.rewrite.graph_pass import FusePass


def compiled_with_reports() -> Collector:
    good, bad = nn.Linear(24, 40), nn.Linear(24, 40)
    patches = {"joint_custom_pre_pass": FusePass(), "force_disable_caches": True, **QUICK}
    with torch.no_grad(), collect() as gathered, inductor_config.patch(patches):
        torch.compile(lambda x: F.relu(good(x)) + torch.atan(bad(x)))(torch.randn(6, 24))
    return gathered


def test_counters_log_and_collector(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fusepass"):
        report = compiled_with_reports().report()
    assert dict(torch._dynamo.utils.counters["fusepass"]) == {"fused": 1, "gemms": 0, "missed": 1}
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


def _site(epilogue: str, module: str, flops: int | None, **changes: object) -> Site:
    source = "model.py:12, in forward: x = self.up(x)"
    site = Site(epilogue, "bfloat16", "s0", "40", "24", "one kernel", source, module, "addmm",
                flops=flops)  # fmt: skip
    return dataclasses.replace(site, **changes)  # type: ignore[arg-type]


def _miss(reason: str, module: str | None, flops: int | None) -> Miss:
    source = "model.py:14, in forward: y"
    return Miss(reason, "div", source, module, shape="bfloat16 [s0, 9] x [9, 8]", flops=flops)


def test_report_reads_well() -> None:
    unknown = "`silu` is not a stage fusepass knows"
    sites = [_site("mul(0.5) gelu", f"layers.{i}.up", 10**9, follows=unknown) for i in range(12)]
    misses = (_miss(unknown, "head", 10**6), _miss("nothing to fuse", None, 6 * 10**9))
    bare = _site("", "layers.3.down", 2 * 10**9, why="it is faster")
    assert_expected_inline(
        str(Report((*sites, bare), (*misses, _miss("no sizes", "odd", None)))),
        """\
fusepass: 12 fused, 1 without an epilogue, 3 missed
  20 GFLOP in products: 60.0% fused, 10.0% without an epilogue, 30.0% left (1 of unknown size not counted)
  fused  layers.0-11.up × 12: linear mul(0.5) gelu
          bfloat16 [s0, 24] x [24, 40], 60.0% of the FLOPs
          one kernel
          not taken: `silu` is not a stage fusepass knows
          model.py:12, in forward: x = self.up(x)
  gemm  layers.3.down: linear
          bfloat16 [s0, 24] x [24, 40], 10.0% of the FLOPs
          one kernel, because it is faster
          model.py:12, in forward: x = self.up(x)
  missed  div: nothing to fuse
          bfloat16 [s0, 9] x [9, 8], 30.0% of the FLOPs
          model.py:14, in forward: y
  missed  head: `silu` is not a stage fusepass knows
          bfloat16 [s0, 9] x [9, 8], 0.0% of the FLOPs
          model.py:14, in forward: y
  missed  odd: no sizes
          bfloat16 [s0, 9] x [9, 8]
          model.py:14, in forward: y""",  # noqa: E501
    )
    assert_expected_inline(
        str(Report(notes=("torch.compile made no graph of it",))),
        """\
fusepass: no matrix product in the graphs
  note  torch.compile made no graph of it""",
    )


def test_only_what_is_alike_shares_a_row() -> None:
    alike = [_site("gelu", f"layers.{i}.up", 8) for i in (0, 1, 2, 5)]
    others = [
        _site("gelu", "layers.3.up", 8, n="41"),
        _site("gelu", "layers.4.down", 8),
        _site("clamp(0.0, inf)", "layers.6.up", 8),
        _site("gelu", "layers.7.up", 9),
        _site("gelu", "layers.8.up", 8, source="model.py:13, in forward: x = self.up(x)"),
        _site("gelu", "layers.9.up", 8, follows="dropout"),
    ]
    found = rows((*others[:2], *alike, *others[2:]))
    assert [(row.title, row.flops) for row in found] == [
        ("layers.*.up × 4", 32),
        ("layers.7.up", 9),
        *((site.module, 8) for site in (*others[:3], *others[4:])),
    ]


def test_the_products_of_a_layers_backward_share_a_row() -> None:
    backward = [
        dataclasses.replace(
            _miss("left", f"layers.{i}.up", 5 + n),
            backward=True,
            shape=f"bfloat16 [{n}, 1] x [1, 1]",
        )
        for i in range(3)
        for n in (1, 2)
    ]
    (forward, row) = sorted(
        rows([_miss("left", "layers.0.up", 5), *backward]), key=lambda r: r.flops
    )
    assert (forward.title, row.title, row.flops) == ("layers.0.up", "layers.0-2.up × 6", 39)
    assert row.shape == "bfloat16 [1, 1] x [1, 1] and bfloat16 [2, 1] x [1, 1]"


def test_the_json_says_the_flops() -> None:
    report = Report((_site("gelu", "a", 3), _site("", "b", 5)), (_miss("no", "c", 7),))
    told = json.loads(report.to_json())
    assert told["flops"] == {"fused": 3, "gemms": 5, "left": 7, "unknown": 0}
    assert [s["flops"] for s in told["sites"]] == [3, 5] and told["misses"][0]["flops"] == 7


@pytest.mark.parametrize(
    ("flops", "text"), [(0, "0 FLOP"), (1536, "1.54 kFLOP"), (2 * 10**18, "2e+03 PFLOP")]
)
def test_amounts(flops: int, text: str) -> None:
    assert amount(flops) == text
