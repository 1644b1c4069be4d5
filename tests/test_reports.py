"""Where a report goes: counters, log, trace, collectors; and how it reads."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import torch._inductor.config as inductor_config
import torch.nn.functional as F
from expecttest import assert_expected_inline
from torch import nn

from fusepass.graph_pass import FusePass
from fusepass.report import Collector, Miss, Report, Site, collect


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
