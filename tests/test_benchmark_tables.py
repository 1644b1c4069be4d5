"""From what benchmarks print to the documentation's tables: nothing is lost, nothing made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import few_rows
import kernel_tables
import linears
import merge
import models_tables
import targets


def _row(model: str, gain: float, **more: Any) -> dict[str, Any]:
    row = {"model": model, "dtype": "bfloat16", "pass": "inference", "speedup": gain}
    spreads = {"inductor_spread": 0.01, "fusepass_spread": 0.02}
    return row | {"inductor_ms": gain, "fusepass_ms": 1.0} | spreads | more


def _result(*rows: dict[str, Any], commit: str = "1111111") -> dict[str, Any]:
    return {"commit": commit, "rows": list(rows)}


def _lines(table: str, head: str) -> list[str]:
    return [line for line in table.splitlines() if line.startswith(f"| {head}")]


def test_rows_measured_anew_replace_their_model_and_name_their_commit(tmp_path: Path) -> None:
    old = _result(_row("A, 1x2", 1.1, fused=3), _row("B, 1x2", 1.2))
    for name in merge.FILES.values():
        (tmp_path / f"{name}.json").write_text(json.dumps(old))
    profile = {peer: {"kinds": {}} for peer in ("inductor", "fusepass", "eager")}
    times = {"inductor_compile_s": 1.0, "took_s": 2.0, "profile": profile}
    counted = {"dtype": "bfloat16", "pass": "inference", "fused": 5, "gemms": 6}
    printed = [
        _row("A, 1x2", 1.3, **times),
        {"model": "A, 1x2", **counted},
        {"model": "B, 1x2", **counted},  # of another commit than the row
        {"model": "never timed", **counted},
        {"model": "{}", "dtype": "bfloat16", "failed": "out of memory"},
    ]
    text = "a warning\n" + "".join(f"{json.dumps(row)}\n" for row in printed)
    written = merge.put(merge.read(text), "2222222", tmp_path)
    assert written == [tmp_path / "models.json"]
    result = json.loads(written[0].read_text())
    a, b = result["rows"]
    assert (a["commit"], a["speedup"], a["fused"], a["gemms"]) == ("2222222", 1.3, 5, 6)
    assert set(a["profile"]) == {"inductor", "fusepass"} and not {*times} - {"profile"} & {*a}
    assert b == {"commit": "1111111", **_row("B, 1x2", 1.2)}
    table = models_tables.milliseconds("bfloat16", result, _result())
    assert _lines(table, "A")[0].endswith("| 2222222 |")
    assert _lines(table, "B")[0].endswith("| 1111111 |")
    gains = models_tables.gains([result, _result(), _result(), _result()])
    assert "bf16 inference (2222222, 1111111)" in gains


def test_a_model_is_one_line_however_many_layers_and_rows_it_has() -> None:
    results = [_result(_row(f"L's layers ({n}), {n}x9", n)) for n in (2, 3, 4, 5)]
    assert _lines(models_tables.gains(results), "L") == [
        "| L's layers | 2.00× | 3.00× | 4.00× | 5.00× |"
    ]


def test_shares_are_of_the_kernels_time() -> None:
    kinds = {"torch's products": 6.0, "attention": 3.0, "other": 0.996, "pointwise": 0.004}
    profile = {"inductor": {"kinds": kinds}, "fusepass": {"kinds": {"fusepass: products": 5.0}}}
    result = _result(_row("BERT-large, 32x512", 1.0, profile=profile), _row("no profile", 1.0))
    before, after = models_tables.where_the_time_goes([result]).splitlines()[2:]
    name = "BERT-large, 32×512, bfloat16, inference (1111111)"
    assert before == f"| {name} | Inductor | 10.0 | 6.0, 60% |  |  | 3.0, 30% |  |  |  | 1.0, 10% |"
    assert after == "|  | fusepass | 5.0 |  | 5.0, 100% |  |  |  |  |  |  |"


def test_products_and_what_is_left() -> None:
    shapes = ("forward 8x2->4", "input gradient 8x4->2", "weight gradient 4x8->2")
    ratios = (0.5, 2.0, 1.0)
    rows = [
        {"group": "alone", "case": f"M, {shape}", "taken": ratio != 1.0, "ratio": ratio}
        for shape, ratio in zip(shapes, ratios, strict=True)
    ]
    rows.append({"group": "operands", "case": "8x2->4 add(mat0)", "ratio": 1.5})
    rows.append({"group": "float32", "case": "8x2->4 add(mat0)", "ratio": 1.25})
    lines = kernel_tables.products(_result(*rows)).splitlines()
    assert lines[2] == "| M, 8×2→4 | 0.500 | 2.000 | cuBLAS's |"
    assert lines[3].endswith("| 1.000, worst 2.000 |  |  |")
    assert kernel_tables.operands(_result(*rows)).splitlines()[2:] == [
        "| 8×2→4 | 1.500 |  |  |  | 1.250 |"
    ]


def test_few_rows_are_named_or_refused() -> None:
    name = kernel_tables.few_name
    assert name("16x1024->4096 [K, N] bfloat16 gelu_tanh") == "16×1024→4096 [K, N], GELU by tanh"
    assert name("1x2048->2x8192 bfloat16 silu mul(z1)") == "1×2048→2·8192, SwiGLU"
    assert name("behind 1x8->8 bfloat16 bare") == "1×8→8, bare behind a small kernel"
    assert name("1x8->8 float32 bare") == "float32, 1×8→8, bare"
    for unknown in ("1x8->8 bfloat16 sin", "1x8->8 float16 bare"):
        with pytest.raises(KeyError):
            name(unknown)
    assert all(name(str(case)) for case in few_rows.CASES)
    cases = ("1x8->8 bfloat16 bare", "1x8->8 bfloat16 add(mat0)", "2x8->8 bfloat16 bare")
    result = _result(*({"case": case, "ratio": i} for i, case in enumerate(cases)))
    assert kernel_tables.few_rows(result).splitlines()[2:] == [
        "| 1×8→8 + residual | 1.000 | 2×8→8, bare | 2.000 |",
        "| 1×8→8, bare | 0.000 |  |  |",
    ]


def test_several_linears() -> None:
    us = {"fusepass": 147.68, "apart": 158.1, "torch": 181.25}
    row = {"us": us, "best": 158.1, "ratio": 0.9341, "ratio_to_torch": 0.8148, "spread": 0.5}
    row["case"] = str(linears.Case("SDXL, of the text", 616, 2048, (1280, 640)))
    lines = kernel_tables.linears(_result(row, {**row, "spread": 0.51})).splitlines()[2:]
    times = "| SDXL, of the text 616×2048→1280+640 | 147.7 | 158.1 "
    assert lines == [
        f"{times}| 0.934 | 0.815 | 50.0% |",
        f"{times}| unclear | unclear | 51.0% |",
    ]
    told = {f"{who} {n}": float(n + i) for i, who in enumerate(("apart", "torch")) for n in (3, 4)}
    best = {"apart": 20.0, "torch": 12.0, **told, "torch 4": 3.5}
    assert linears.best(best, (3, 4, 4)) == 3 + 3.5 + 3.5
    assert linears.best({**best, "torch": 9.0}, (3, 4, 4)) == 9.0


def test_gated_pairs_and_decoding_steps() -> None:
    ratio = {"fusepass": 0.9, "fusepass with z": 0.95, "inductor": 1.3}
    pair = {"m": 16384, "k": 768, "n": 2048, "ratio": ratio, "ms": {"F.linear": 1.0, **ratio}}
    rows = [{**pair, "activation": name, "plan": "128x192"} for name in ("swiglu", "geglu")]
    lines = kernel_tables.gated(_result(*rows)).splitlines()
    assert lines[2] == "| 16384×768→2·2048 | 0.900 | 0.900 |  | 0.950 | 1.300 |"
    missed, met, *_ = targets._gated(_result(*rows, {**rows[0], "activation": "geglu-tanh"}))
    assert (missed.text, missed.met, met.met) == ("SwiGLU 16384×768→2·2048", False, True)
    flop = 4 * 16384 * 768 * 2048
    rates = [f"{flop / seconds / 1e12:.0f} TFLOP/s" for seconds in (0.9e-3, 1e-3)]
    assert missed.limit == (
        f"{rates[0]} in 0.900 ms, the bare product {rates[1]} in 1.000 ms, which writes twice as "
        "much: 128x192"
    )
    step = _row("M", 2.0, batch=1, floor_ms=0.5)
    kinds = {"fusepass: products": 1.0, "torch's products": 0.25, "attention": 3.0}
    step |= {"inductor_host_ms": 0.75, "fusepass_host_ms": 0.8}
    told = {**step, "profile": {"inductor": {"kinds": {}}, "fusepass": {"kinds": kinds}}}
    lines = kernel_tables.decoding(_result(step, told, {"failed": "no"})).splitlines()
    assert lines[2].startswith(
        "| M, batch 1 | 2.000 | 1.000 | **2.000** | 1.0%, 2.0% |  |  | 0.750"
    )
    assert lines[2].endswith("| 1111111 |")
    assert "| 0.000, 1.250 | 0.000, 4.250 | 0.750, 0.800 | 0.500 |" in lines[3]
    assert len(lines) == 4


@pytest.mark.parametrize(("least", "measured", "met"), [
    (True, 1.1, True), (True, 1.099, False), (False, 1.1, True), (False, 1.101, False),
])  # fmt: skip
def test_a_target_is_met_at_its_figure(least: bool, measured: float, met: bool) -> None:
    assert targets.Target("t", 1.1, measured, "1111111", least=least).met is met


def test_every_target_has_its_figure_in_the_results_and_each_miss_says_why() -> None:
    """But for pairs, whose file may not be there yet."""
    import summary

    found = targets.targets(summary.read())
    asked = (len(targets._MODELS) + 1, len(targets._GRADIENTS) + 1, len(targets._FEW))
    assert (len(found["whole models"]), len(found["products"]), len(found["few rows"])) == asked
    assert len(found["decoding"]) == 4 and len(found["coverage"]) == 2
    missed = [t for group in found.values() for t in group if not t.met]
    assert [t.text for t in missed if not t.limit] == []


def test_rows_of_a_mode_have_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text(json.dumps({**_result(_row("A", 1.1)), "machine": "m"}))
    told = {"dtype": "bfloat16", "pass": "inference"}
    some = [_row("A", gain, mode=mode, **told) for gain, mode in ((1.2, "x"), (1.3, "y"))]
    path = tmp_path / f"{merge.MODES}.json"
    assert merge.put(some, "2222222", tmp_path) == [path]
    merge.put([_row("A", 1.4, mode="y", **told)], "3333333", tmp_path)
    result = json.loads(path.read_text())
    found = [(row["mode"], row["speedup"], row["commit"]) for row in result["rows"]]
    assert found == [("x", 1.2, "2222222"), ("y", 1.4, "3333333")] and result["machine"] == "m"
    assert [t.met for t in targets._modes(result)] == [True, True]
    slower = {**result, "rows": [{**result["rows"][0], "speedup": 0.99}]}
    assert [t.met for t in targets._modes(slower)] == [False]


def test_beside_quack_and_what_is_aimed_at() -> None:
    shape, plan = {"m": 8192, "k": 768, "n": 3072}, {"plan": "128x192", "dtype": "bfloat16"}

    def row(epilogue: str, **ratios: float) -> dict[str, Any]:
        ms = {"bare": 1.0, **ratios}
        return {**shape, **plan, "epilogue": epilogue, "ms": ms, "ratio_to_bare": ratios}

    rows = [row("none", quack=0.8, fusepass=0.84), row("gelu_tanh", quack=0.9, fusepass=0.9)]
    rows += [row("chain", fusepass=0.85), {**shape, **plan, "epilogue": "none", "error": "no"}]
    result = {**_result(*rows), "quack": "0.6.5"}
    told = kernel_tables.quack(result).splitlines()
    assert told[0].startswith("| beside QuACK 0.6.5 (1111111) |")
    numbers = "0.800 | 0.840 | **1.050** | 0.900 | 0.900 | **1.000** | 0.850"
    assert told[2:] == [f"| 8192×768→3072 | {numbers} |"]
    bare, gelu, chain = targets._quack(result)
    assert (bare.met, gelu.met, chain.met) == (False, True, True)
    assert bare.measured == pytest.approx(1.05) and "128x192" in bare.limit


def test_problems_and_two_trees(tmp_path: Path) -> None:
    def row(number: int, dtype: str, gain: float) -> dict[str, Any]:
        times = {"inductor_ms": gain, "fusepass_ms": 1.0, "speedup": gain}
        return {"problem": number, "text": "mish", "dtype": dtype, "m": 1, "k": 2, "n": 3, **times}

    some = [row(29, "bfloat16", 2.0), row(29, "float32", 4.0), row(9, "bfloat16", 0.5)]
    lines = kernel_tables.kernelbench(_result(*some, {"failed": "no"})).splitlines()[2:]
    assert lines[0] == "| 9: mish | 1×2→3 | 0.500 | 1.000 | **0.50** |  |  |  | 1111111 |"
    assert lines[1].endswith("| 2.000 | 1.000 | **2.00** | 4.000 | 1.000 | **4.00** | 1111111 |")
    assert lines[2].startswith("| all 2, bfloat16: geometric mean | 1.00, least 0.50 |")
    path = tmp_path / "kernelbench.json"
    path.write_text(json.dumps(_result(*some)))
    printed = "\n".join(
        json.dumps(row(*case)) for case in ((29, "bfloat16", 3.0), (7, "float32", 1.0))
    )
    assert merge.put(merge.read(printed), "2222222", tmp_path) == [path]
    lines = kernel_tables.kernelbench(json.loads(path.read_text())).splitlines()[2:]
    assert [line.split(":")[0] for line in lines[:3]] == ["| 7", "| 9", "| 29"]
    assert lines[2].endswith(
        "| 3.000 | 1.000 | **3.00** | 4.000 | 1.000 | **4.00** | 2222222, 1111111 |"
    )
    pair = {"before": [0.9, 0.9], "after": [0.918, 0.918], "over": 1.02}
    case = {"m": 1, "k": 2, "n": 3, "kind": "bfloat16", "plan": {"before": "a", "after": "b"}}
    result = {**_result({**case, **pair}, {"failed": []}), "before": "0000000"}
    lines = kernel_tables.before_after(result).splitlines()
    assert lines[0] == "| before and after (0000000 and 1111111) | bfloat16 |"
    assert lines[2] == "| 1×2→3 | 0.900, 0.918: **1.020** |"
    (slower,) = targets._since(result)
    assert not slower.met and slower.limit == "a before, b now"
