"""What scripts that time one kernel, or one model's step, measured, as tables."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]

_WIDEST = 0.5  # spread of rounds of which a ratio is told, as in `python -m fusepass bench`

_OPERANDS = {
    "add(mat0)": "`+ mat`",
    "mul(col0) add(mat0)": "`* col + mat`",
    "add(mat0) gelu": "`gelu(z + mat)`",
    "v0 = mat0 gelu_derivative mul(z); v0, v0 col_sum": "`gelu'(mat) * z`, and its column sums",
}
# The few rows' epilogues, as the table names them.
_TAILS = {
    "mul(0.5) clamp(-2.0, 2.0) gelu": "",
    "silu mul(z1)": ", SwiGLU",
    "add(mat0)": " + residual",
    "gelu_tanh": ", GELU by tanh",
    "bare": ", bare",
}
_FEW = re.compile(
    r"(?P<behind>behind )?(?P<shape>\S+)(?P<kn> \[K, N\])? (?P<dtype>bfloat16|float32) (?P<tail>.+)"
)
_GATED = {
    ("swiglu", "fusepass"): "SwiGLU",
    ("geglu", "fusepass"): "GeGLU",
    ("geglu-tanh", "fusepass"): "GeGLU, tanh",
    ("swiglu", "fusepass with z"): "SwiGLU, z and z1 kept",
    ("swiglu", "inductor"): "Inductor, SwiGLU",
}


def _table(head: str, heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [(head, *heads), *lines]
    told = [f"| {' | '.join(row)} |" for row in rows]
    told.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(told) + "\n"


def _commit(result: Result) -> str:
    return str(result["commit"])[:7]


def _shape(text: str) -> str:
    return re.sub(r"(?<=\d)x(?=\d)", "×", text).replace("->", "→").replace("→2×", "→2·")


def _mean(ratios: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


def products(result: Result) -> str:
    """A line a Linear: its product and its two gradients over cuBLAS's; what is left to it, named.

    Args:
        result: of products.py, whose rows of one Linear follow each other.
    """
    rows = [row for row in result["rows"] if row["group"] == "alone"]
    lines = []
    for linear in (rows[i : i + 3] for i in range(0, len(rows), 3)):
        model, _, shape = linear[0]["case"].partition(", forward ")
        cells = (f"{row['ratio']:.3f}" if row["taken"] else "cuBLAS's" for row in linear)
        lines.append((f"{model}, {_shape(shape)}", *cells))
    ratios = [row["ratio"] for row in rows]
    whole = f"{_mean(ratios):.3f}, worst {max(ratios):.3f}"
    lines.append((f"all {len(rows)}, cuBLAS's own as 1: geometric mean", whole, "", ""))
    heads = ("forward", "input gradient", "weight gradient")
    return _table(f"product alone ({_commit(result)})", heads, lines)


def operands(result: Result) -> str:
    """A line a shape, a column an epilogue that reads tensors; the last one is float32's."""
    found: dict[str, dict[str, float]] = {}
    for row in result["rows"]:
        shape, _, epilogue = row["case"].partition(" ")
        if row["group"] in ("operands", "gradient"):
            found.setdefault(shape, {})[_OPERANDS[epilogue]] = row["ratio"]
        elif row["group"] == "float32":
            found.setdefault(shape, {})["float32, `+ mat`"] = row["ratio"]
    heads = (*_OPERANDS.values(), "float32, `+ mat`")
    lines = [(_shape(shape), *_numbers(heads, ratios)) for shape, ratios in found.items()]
    return _table(f"product with tensors ({_commit(result)})", heads, lines)


def _numbers(heads: Iterable[str], ratios: Mapping[str, float]) -> list[str]:
    return [f"{ratios[head]:.3f}" if head in ratios else "" for head in heads]


def gated(result: Result) -> str:
    """A line a shape, a column a gate, over the bare GEMM of both weights."""
    found: dict[str, dict[str, float]] = {}
    for row in result["rows"]:
        ratios = found.setdefault(f"{row['m']}×{row['k']}→2·{row['n']}", {})
        for (activation, peer), head in _GATED.items():
            if row["activation"] == activation:
                ratios[head] = row["ratio"][peer]
    heads = tuple(_GATED.values())
    lines = [(shape, *_numbers(heads, ratios)) for shape, ratios in found.items()]
    return _table(f"two weights ({_commit(result)})", heads, lines)


def linears(result: Result) -> str:
    """A line a problem: what one launch takes, and its share of what several do, if the rounds'
    middle half is no wider than half of the median: else a ratio means nothing."""
    heads = ("one launch, µs", "apart at best, µs", "ratio", "over torch's", "spread")
    lines = []
    for row in result["rows"]:
        model, _, shape = row["case"].rpartition(" ")
        times = (f"{row['us']['fusepass']:.1f}", f"{row['best']:.1f}")
        ratios = (f"{row['ratio']:.3f}", f"{row['ratio_to_torch']:.3f}")
        told = ratios if row["spread"] <= _WIDEST else ("unclear",) * 2
        lines.append((f"{model} {_shape(shape)}", *times, *told, f"{row['spread']:.1%}"))
    return _table(f"several Linears ({_commit(result)})", heads, lines)


def few_name(case: str) -> str:
    """``1x4096->16384 bfloat16 add(mat0)`` as the table has it.

    Raises:
        KeyError: of an epilogue that has no name here.
    """
    found = _FEW.fullmatch(case)
    if found is None:
        raise KeyError(case)
    float32 = "float32, " if found["dtype"] == "float32" else ""
    behind = " behind a small kernel" if found["behind"] else ""
    return f"{float32}{_shape(found['shape'])}{found['kn'] or ''}{_TAILS[found['tail']]}{behind}"


def few_rows(result: Result) -> str:
    """Ratios to the bare F.linear, two problems a line; those with an epilogue first."""
    rows = sorted(result["rows"], key=lambda row: row["case"].endswith(" bare"))
    cells = [(few_name(row["case"]), f"{row['ratio']:.3f}") for row in rows]
    half = (len(cells) + 1) // 2
    right = cells[half:] + [("", "")] * (2 * half - len(cells))
    lines = [(*a, *b) for a, b in zip(cells[:half], right, strict=True)]
    return _table(f"few rows ({_commit(result)})", ("ratio", "", "ratio"), lines)


def decoding(result: Result) -> str:
    """A line a model and batch: milliseconds a step, and what the profile says of its products."""
    lines = []
    for row in (row for row in result["rows"] if "speedup" in row):
        times = [f"{row[f'{peer}_ms']:.3f}" for peer in ("inductor", "fusepass")]
        kinds = [of["kinds"] for of in row.get("profile", {}).values()]
        products = [sum(v for k, v in of.items() if "product" in k) for of in kinds]
        hosts = [row.get(f"{peer}_host_ms") for peer in ("inductor", "fusepass")]
        lines.append((
            f"{row['model']}, batch {row['batch']}", *times, f"**{row['speedup']:.3f}**",
            ", ".join(f"{row[f'{peer}_spread']:.1%}" for peer in ("inductor", "fusepass")),
            ", ".join(f"{took:.3f}" for took in products),
            ", ".join(f"{sum(of.values()):.3f}" for of in kinds),
            ", ".join(f"{took:.3f}" for took in hosts if took is not None),
            f"{row['floor_ms']:.3f}", row.get("commit", result["commit"]),
        ))  # fmt: skip
    heads = ("Inductor", "fusepass", "gain", "spread", "products of both", "kernels of both",
             "host of both", "floor", "commit")  # fmt: skip
    return _table("decoding step", heads, lines)


# Whose kernels counters were read of.
_COUNTED = {"bare": "cuBLAS, bare", "fusepass": "fusepass", "sum": "a plain read, `torch.sum`",
            "copy": "a copy, `torch.neg`"}  # fmt: skip


def counters(result: Result) -> str:
    """A line a problem with an epilogue: time, what the memory moved a second, its busy share."""
    found: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        if not row["case"].endswith(" bare") and not row["case"].startswith("behind "):
            told = f"{row['us']:.1f} µs, {row['tb_per_s']:.2f}, {row['memory_busy_percent']:.0f}%"
            found.setdefault(few_name(row["case"]), {})[row["peer"]] = told
    lines = [(name, *(by_peer[peer] for peer in _COUNTED)) for name, by_peer in found.items()]
    return _table(f"by counters ({_commit(result)})", tuple(_COUNTED.values()), lines)


def quack(result: Result) -> str:
    """A line a shape: QuACK and fusepass over the bare F.linear, each epilogue by itself."""
    found: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in result["rows"]:
        if "ratio_to_bare" in row:
            shape = f"{row['m']}×{row['k']}→{row['n']}"
            found.setdefault((row["dtype"], shape), {})[row["epilogue"]] = row
    lines = []
    for (dtype, shape), rows in found.items():
        cells = [*_beside(rows.get("none")), *_beside(rows.get("gelu_tanh"))]
        chain = rows.get("chain", {}).get("ratio_to_bare", {}).get("fusepass")
        cells.append("" if chain is None else f"{chain:.3f}")
        lines.append((shape if dtype == "bfloat16" else f"{shape}, {dtype}", *cells))
    three = ("QuACK", "fusepass", "over QuACK")
    heads = (*(f"bare: {three[0]}", *three[1:]), *(f"`gelu_tanh`: {three[0]}", *three[1:]), "chain")
    at = ", ".join(dict.fromkeys(row.get("commit", result["commit"])[:7] for row in result["rows"]))
    return _table(f"beside QuACK {result['quack']} ({at})", heads, lines)


def _beside(row: Mapping[str, Any] | None) -> list[str]:
    ratios = (row or {}).get("ratio_to_bare", {})
    if "quack" not in ratios or "fusepass" not in ratios:
        return [f"{ratios[p]:.3f}" if p in ratios else "" for p in ("quack", "fusepass")] + [""]
    theirs, ours = ratios["quack"], ratios["fusepass"]
    return [f"{theirs:.3f}", f"{ours:.3f}", f"**{ours / theirs:.3f}**"]


def kernelbench(result: Result) -> str:
    """A line a problem: Inductor's and fusepass's milliseconds in bfloat16 and in float32."""
    found: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in result["rows"]:
        if "speedup" in row:
            found.setdefault(row["problem"], {})[row["dtype"]] = row
    lines = []
    for number, rows in sorted(found.items()):
        first = next(iter(rows.values()))
        text = f"{number}: {first['text']}"
        cells = [f"{first['m']}×{first['k']}→{first['n']}"]
        commits = dict.fromkeys(row.get("commit", result["commit"])[:7] for row in rows.values())
        for dtype in ("bfloat16", "float32"):
            row = rows.get(dtype)
            times = [f"{row[f'{peer}_ms']:.3f}" for peer in ("inductor", "fusepass")] if row else []
            cells += [*times, f"**{row['speedup']:.2f}**"] if row else [""] * 3
        lines.append((text, *cells, ", ".join(commits)))
    for dtype in ("bfloat16", "float32"):
        gains = [rows[dtype]["speedup"] for rows in found.values() if dtype in rows]
        told = f"{_mean(gains):.2f}, least {min(gains):.2f}" if gains else ""
        lines.append((f"all {len(gains)}, {dtype}: geometric mean", told, *[""] * 7))
    three = ("Inductor", "fusepass", "gain")
    pair = (f"bf16: {three[0]}", *three[1:], f"float32: {three[0]}", *three[1:])
    return _table("KernelBench, level 2", ("sizes", *pair, "commit"), lines)


def before_after(result: Result) -> str:
    """A line a shape: two trees' ratios to the bare F.linear, and the later's over the other's."""
    kinds = dict.fromkeys(row["kind"] for row in result["rows"] if "over" in row)
    found: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        if "over" in row:
            before, after = (statistics.median(row[tree]) for tree in ("before", "after"))
            cell = f"{before:.3f}, {after:.3f}: **{row['over']:.3f}**"
            found.setdefault(f"{row['m']}×{row['k']}→{row['n']}", {})[row["kind"]] = cell
    lines = [(shape, *(cells.get(kind, "") for kind in kinds)) for shape, cells in found.items()]
    trees = f"{str(result['before'])[:7]} and {_commit(result)}"
    return _table(f"before and after ({trees})", tuple(kinds), lines)
