"""benchmarks/linear.py and its like, as far as they run without a GPU: all but the timing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import accuracy  # noqa: E402
import beside_bare  # noqa: E402
import beside_quack  # noqa: E402
import few_rows  # noqa: E402
import host  # noqa: E402
import linear  # noqa: E402
import linear_cases  # noqa: E402
import linear_peers  # noqa: E402
import picture  # noqa: E402
import products  # noqa: E402

MS = {"bare": 0.20, "eager": 0.40, "inductor": 0.30, "hybrid": 0.29, "fusepass": 0.19}


def _row(shape: tuple[int, int, int], **more: Any) -> dict[str, Any]:
    m, k, n = shape
    row = {"m": m, "k": k, "n": n, "plan": "hybrid", "ms": dict(MS), "failed": {}, **more}
    return linear_cases.derive(row, "bfloat16")


def _result(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"machine": "a GPU", "kind": "bfloat16", "epilogue": "gelu", "rows": list(rows)}


def test_shapes() -> None:
    assert linear_cases.parse_shape("2048x8192->4096") == (2048, 8192, 4096)
    assert linear.parse(["--shapes", "1x2x3", "40x50x60"]).shapes == [(1, 2, 3), (40, 50, 60)]
    with pytest.raises(SystemExit, match="MxKxN"):
        linear.parse(["--shapes", "1x2"])
    assert linear.parse(["--dtype", "float32", "--precision", "high"]).kind == "float32 high"


def test_peers_that_compute_something_else_are_left_out() -> None:
    assert linear.parse(["--grid"]).peers == ["bare", "fusepass"]
    usual = ["bare", "eager", "inductor", "hybrid", "fusepass"]
    assert linear.parse([]).peers == usual
    assert "cublaslt" in linear.parse(["--epilogue", "gelu_tanh"]).peers
    assert linear.parse(["--autotune"]).peers == [*usual[:3], "max-autotune", *usual[3:]]
    assert linear.parse(["--grid", "--quack"]).peers == ["bare", "quack", "fusepass"]


def test_quack_is_named_as_missing_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "quack", None)
    with pytest.raises(ImportError, match="quack"):
        linear_peers.make_peer("quack", "gelu_tanh", grid=True)


def test_the_grid_spans_what_it_says() -> None:
    assert len(set(linear_cases.GRID)) == len(linear_cases.GRID) >= 40
    spans = [(min(axis), max(axis)) for axis in zip(*linear_cases.GRID, strict=True)]
    assert spans == [(128, 65536), (256, 16384), (256, 28672)]


def test_ratios_and_floor() -> None:
    row = _row((16384, 1024, 4096))
    assert row["ratio_to_bare"]["fusepass"] == pytest.approx(0.95)
    assert (row["best_peer"], row["speedup"]) == ("inductor", pytest.approx(0.30 / 0.19, abs=1e-4))
    assert row["floor_ms"] == pytest.approx(2 * 16384 * 1024 * 4096 / 989e12 * 1e3, rel=1e-3)
    few_rows = linear_cases.floor_seconds((1, 4096, 16384), "bfloat16")
    assert few_rows == pytest.approx(2 * 4096 * 16384 / 4.8e12, rel=1e-2)


def test_table_names_what_failed() -> None:
    good = _row((8192, 768, 3072), failed={"inductor": "no compiler"})
    text = picture.table(_result(good, {"m": 1, "k": 2, "n": 3, "error": "out of memory"}))
    line = next(line for line in text.splitlines() if "8192x768->3072" in line)
    assert "0.950" in line and "1.58x" in line and "inductor failed: no compiler" in line
    assert "1x2->3  failed: out of memory" in text
    assert text.endswith("worst 0.950 at 8192x768->3072, 1 shapes, 1 failed")


def test_table_of_nothing() -> None:
    assert "no shape has both" in picture.table(_result())


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_picture_from_the_file(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib for the picture")
    results, target = tmp_path / "results.json", tmp_path / f"picture.{ending}"
    rows = [_row(shape) for shape in linear_cases.TARGETS_16]
    results.write_text(json.dumps(_result(*rows, {"m": 1, "k": 2, "n": 3, "error": "no"})))
    picture.main([str(results), str(target)])
    assert target.stat().st_size > 5000


def test_sweep_survives_a_shape_and_stops_in_time() -> None:
    shapes = [(1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4)]
    kept: list[int] = []

    def measure(shape: tuple[int, int, int]) -> dict[str, Any]:
        if shape[0] == 2:
            raise RuntimeError("out of memory\nand a long trace")
        if shape[0] == 3:
            time.sleep(1.0)
        return _row(shape)

    result: dict[str, Any] = {}
    deadline = time.perf_counter() + 0.9
    linear.sweep(shapes, measure, result, deadline, lambda r: kept.append(len(r["rows"])))
    assert [row["m"] for row in result["rows"]] == [1, 2, 3]
    assert result["rows"][1]["error"] == "out of memory"
    assert "3 of 4" in result["stopped"] and kept == [1, 2, 3, 3]


@pytest.mark.parametrize("epilogue", linear_peers.EPILOGUES)
def test_peers_compute_the_same(epilogue: str) -> None:
    (inputs, *_) = linear_peers.make_inputs((48, 64, 32), torch.float32, "cpu")
    eager = linear_peers.make_peer("eager", epilogue, True)(*inputs)
    for name in ("hybrid", "fusepass", "fusepass-preact"):
        out = linear_peers.make_peer(name, epilogue, True)(*inputs)
        assert linear_peers.check(out, eager, 1e-6) <= 1e-6
    if epilogue == "none":
        return
    with pytest.raises(RuntimeError, match="differs from eager"):
        linear_peers.check(linear_peers.make_peer("bare", epilogue, True)(*inputs), eager, 1e-2)


def test_compiled_peer_fuses() -> None:
    (inputs, *_) = linear_peers.make_inputs((48, 64, 32), torch.float32, "cpu")
    with torch.no_grad():
        eager = linear_peers.make_peer("eager", "chain", False)(*inputs)
        fused = linear_peers.make_peer("fusepass", "chain", False)
        for _ in range(2):  # the first call compiles
            assert linear_peers.check(fused(*inputs), eager, 1e-6) <= 1e-6


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize("script", [("linear.py", "--grid"), ("host.py",)], ids=" ".join)
def test_without_a_gpu_it_says_so(script: tuple[str, ...]) -> None:
    command = [sys.executable, str(BENCHMARKS / script[0]), *script[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip().endswith("there is no CUDA device")


def test_the_calls_whose_host_time_is_measured_agree() -> None:
    x, w, b = torch.randn(4, 8), torch.randn(16, 8), torch.randn(16)
    with torch.no_grad():
        peers = host.make_peers(x, w, b)
        wanted = host.chain(x, w, b)
        for name, call in peers.items():
            if "chain" in name or ("fusepass" in name and "residual" not in name):
                out = call()
                first = out[0] if isinstance(out, (tuple, list)) else out
                torch.testing.assert_close(first, wanted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize("script", [few_rows, products, beside_quack], ids=lambda m: m.__name__)
def test_what_times_kernels_says_that_there_is_no_gpu(script: Any) -> None:
    with pytest.raises(SystemExit, match=rf"{script.__name__}.py .* no CUDA device"):
        script.main([])


def test_cases_beside_the_bare_product_are_chosen_told_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    monkeypatch.setattr(torch.cuda, "Stream", object)
    out, given = tmp_path / "r.json", ["--only", "alone", "--commit", "1234567", "--seconds", "2"]

    def measure(case: products.Case, seconds: float, stream: Any) -> dict[str, Any]:
        assert seconds == 2.0 and not torch.is_grad_enabled()
        return {"case": str(case), "ratio": 0.5}

    cases = [products.Case(group, 8, 16, 24) for group in ("alone", "operands", "alone")]
    found = beside_bare.sweep(
        "x.py", "", [*given, "--out", str(out)], cases, measure, lambda row: f"{row['ratio']} told"
    )
    assert found == [{"case": "8x16->24", "ratio": 0.5}] * 2
    assert capsys.readouterr().out == "0.5 told\n" * 2
    result = json.loads(out.read_text())
    assert result["rows"] == found
    assert (result["machine"], result["commit"]) == ("H200", "1234567")


def _beside(dtype: str, epilogue: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    return {"dtype": dtype, "epilogue": epilogue, **dict(zip("mkn", shape, strict=True))}


def test_parts_beside_quack_have_every_case_once_and_are_put_together(tmp_path: Path) -> None:
    whole = beside_quack.cases(beside_quack.DTYPES)
    parts = [beside_quack.cases(beside_quack.DTYPES, f"{i}/4") for i in range(4)]
    assert sorted(c for part in parts for c in part) == sorted(whole)
    assert len(whole) == 2 * 3 * 10
    bare, chain = (case.options(0.2) for case in (whole[0], whole[20]))
    assert (bare.peers, bare.epilogue) == (["bare", "quack", "fusepass"], "none")
    assert (chain.peers, chain.grid, chain.seconds) == (["bare", "fusepass"], True, 0.2)
    files = [tmp_path / f"{i}.json" for i in range(4)]
    for file, part in zip(files, parts, strict=True):
        file.write_text(json.dumps({"commit": "1", "rows": [_beside(*case) for case in part]}))
    out = tmp_path / "quack.json"
    beside_quack.main(["--join", *map(str, reversed(files)), "--out", str(out)])
    assert json.loads(out.read_text())["rows"] == [_beside(*case) for case in whole]
    anew = {"commit": "2", "rows": [{**_beside(*whole[3]), "ms": 1}], "stopped": "time limit"}
    files[3].write_text(json.dumps(anew))
    beside_quack.main(["--join", *map(str, (out, files[3])), "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert rows[3] == {"commit": "2", **_beside(*whole[3]), "ms": 1}
    assert rows[:3] == [_beside(*case) for case in whole[:3]] and len(rows) == len(whole)
    files[0].write_text(json.dumps({"commit": "1", "quack": "0.7", "rows": []}))
    with pytest.raises(SystemExit, match="different machines or versions"):
        beside_quack.main(["--join", *map(str, files), "--out", str(out)])


def test_a_shape_that_fails_beside_quack_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    case = beside_quack.Case("bfloat16", "none", (1, 2, 3))
    monkeypatch.setattr(linear, "measure", lambda *given: 1 / 0)
    row = beside_quack.measure(case, 0.2, None)
    assert beside_quack.told(row) == "bfloat16 none 1x2->3 failed: division by zero"
    measured = _row((1, 2, 3), first_call_seconds={"quack": 9.0}, failed={"quack": "no"})
    monkeypatch.setattr(linear, "measure", lambda *given: measured)
    told = beside_quack.told(beside_quack.measure(case, 0.2, None))
    assert "fusepass 0.950; tuned in 9 s; hybrid; quack failed: no" in told


@pytest.mark.parametrize("product", accuracy.PRODUCTS)
def test_a_products_error_is_measured(product: str, one_thread: None) -> None:
    row = accuracy.measure((24, 16, 40), "normal", product, "cpu")
    assert row["kept"] and 0 < row["fusepass"][0] < 1e-6
    pattern = accuracy.measure((24, 16, 40), "NaN and inf in all", product, "cpu")
    assert pattern["same_pattern"] and accuracy.is_kept(pattern)
    rows = [row, {**row, "data": "one-hot rows"}, pattern]
    products = () if product == accuracy.FORWARD else (product,)
    lines = accuracy.table({"rows": rows}, (40,), products).splitlines()
    head = "K = 40" if not products else f"{product}, K = 40"
    assert lines[0].endswith(f" | {head} |") and len(lines) == 4


@pytest.mark.parametrize("product", accuracy.GRADIENTS)
def test_a_gradient_is_the_product(product: str) -> None:
    x, w = torch.randn(6, 5), torch.randn(4, 5)
    found = accuracy.gradient(torch.nn.functional.linear, x, w, product)
    torch.testing.assert_close(found, x @ w.t())
