"""What was aimed at on an H200, beside what is in the files of results, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import coverage_picture
from kernel_tables import few_name
from models_tables import commit

Results = Mapping[str, Mapping[str, Any]]

_SPELLED = "attention, which torch spells out as float32 products and a softmax, the same for both"
_LEFT = "weight gradients, which stay cuBLAS's, attention and the optimizer, the same for both"
_SPLITS = "splitting operands, and attention's own products, which are torch's"
_SAME = "attention, the same for both"
_POWER = ("the power limit, at which the device alone is {alone_speedup:.2f} times as fast "
          "({fusepass_alone_mhz} MHz where Inductor has {inductor_alone_mhz}); the weight's "
          "gradient is cuBLAS's")  # fmt: skip
# File, how a row's model begins, the gain wanted, what limits it where that is missed.
_MODELS = (
    ("models", "ViT-B/16", 1.27, ""),
    ("models", "ViT-L/16", 1.20, ""),
    ("models", "GPT-2 medium", 1.15, ""),
    ("models", "BERT-large", 1.15, _SPELLED),
    ("models", "Qwen2.5-1.5B", 1.06, ""),
    ("models", "Llama-3.2-1B", 1.06, ""),
    ("models", "Gemma-2B", 1.05, ""),
    ("models", "T5 v1.1 base", 0.995, ""),
    ("models", "DiT-XL/2", 1.12, ""),
    ("models-training", "ViT-B/16", 1.12, _LEFT),
    ("models-training", "ViT-L/16", 1.10, _LEFT),
    ("models-training", "GPT-2 medium", 1.08, _LEFT),
    ("models-training", "BERT-large", 1.10, _SPELLED),
    ("models-training", "Llama-3.2-1B", 1.05, _LEFT),
    ("models-float32", "ViT-L/16", 2.7, _SPLITS),
    ("models-float32", "BERT-large", 2.8, _SPLITS),
    ("models-float32", "GPT-2 medium", 2.3, _SAME),
    ("models-float32", "T5-base", 2.3, _SPLITS),
    ("models-float32", "MLP", 2.2, "splitting operands"),
    ("models-float32", "the demo's model", 4.2, "the product itself, and splitting x and w"),
    ("models-float32", "Llama-3.2-1B", 2.5, _SAME),
    ("models-float32-training", "ViT-L/16", 2.3, _SPLITS),
    ("models-float32-training", "BERT-large", 2.5, _SPLITS),
    ("models-float32-training", "GPT-2 medium", 2.0, _SAME),
    ("models-float32-training", "T5-base", 2.0, _SPLITS),
    ("models-float32-training", "MLP", 2.0, "splitting both operands of the weight gradients"),
    ("models-float32-training", "the demo's model", 3.5,
     "optimizer and loss, the same for both, and splitting"),
)  # fmt: skip
_TAIL = ("derivative and sums, instructions beside the products, of which each takes four cycles "
         "([notes](../benchmarks/NOTES-training.md))")  # fmt: skip
# Cases of products.py and few_rows.py, and the most that their ratios should be.
_GRADIENTS = (("8192x768->3072", 1.12), ("16384x1024->4096", 1.05), ("2048x8192->8192", 1.02))
_CHAIN = "mul(0.5) clamp(-2.0, 2.0) gelu"
_FEW = (
    (f"1x4096->16384 bfloat16 {_CHAIN}", 0.97),
    (f"4x4096->16384 bfloat16 {_CHAIN}", 0.97),
    (f"16x4096->16384 bfloat16 {_CHAIN}", 0.98),
    (f"64x4096->16384 bfloat16 {_CHAIN}", 1.00),
    (f"8x8192->8192 bfloat16 {_CHAIN}", 0.98),
    (f"32x5120->20480 bfloat16 {_CHAIN}", 0.99),
    ("1x2048->2x8192 bfloat16 silu mul(z1)", 0.97),
    ("1x4096->4096 bfloat16 add(mat0)", 0.98),
    (f"1x4096->16384 float32 {_CHAIN}", 1.00),
    (f"16x4096->16384 float32 {_CHAIN}", 1.00),
)  # fmt: skip
_GATED = {(8192, 896, 4864): 0.86, (8192, 4096, 14336): 0.94, (16384, 768, 2048): 0.82,
          (4096, 2048, 8192): 0.92}  # fmt: skip
_GATES = {"swiglu": "SwiGLU", "geglu": "GeGLU"}
_KEPT = 1.05  # with z and z1 kept
_DECODING = 1.06
# Beside QuACK: the bare product and GELU by tanh over its own, the chain over the bare product.
_QUACK = {
    (8192, 768, 3072): (0.99, 1.00, 0.86), (16384, 1024, 4096): (0.99, 1.00, 0.88),
    (2048, 8192, 8192): (0.99, 0.99, 1.00), (50432, 768, 3072): (0.99, 1.00, 0.83),
    (1576, 768, 3072): (0.99, 1.00, 1.04), (65536, 256, 1024): (0.99, 1.00, 1.10),
    (4096, 5120, 20480): (0.96, 0.96, 0.93), (3000, 1000, 1000): (1.00, 1.00, 1.00),
    (65536, 384, 1536): (0.98, 1.00, 0.95), (777, 2048, 8192): (1.00, 1.00, 1.05),
}  # fmt: skip
_BESIDE = {"none": "bare, over QuACK", "gelu_tanh": "GELU by tanh, over QuACK",
           "chain": "chain, over the bare product"}  # fmt: skip
_TAKEN = {"all": 0.85, "decoder": 0.80}


@dataclass(frozen=True)
class Target:
    """A figure and what it should be.

    Attributes:
        text: of what.
        wanted: the figure that was aimed at.
        measured: the figure of the results.
        commit: of which.
        limit: what is in the way, where it is missed.
        least: whether ``wanted`` is the least, else the most.
    """

    text: str
    wanted: float
    measured: float
    commit: str
    limit: str = ""
    least: bool = True

    @property
    def met(self) -> bool:
        return self.measured >= self.wanted if self.least else self.measured <= self.wanted

    @property
    def figure(self) -> str:
        return f"{self.measured:.2f}" if self.least else f"{self.measured:.3f}"


def targets(results: Results) -> dict[str, list[Target]]:
    """Those whose figures are in ``results``, the contents of the files by their names; by kind."""
    none: Mapping[str, Any] = {"rows": ()}
    return {
        "whole models": list(_models(results)),
        "products": list(_products(results["products"])),
        "gated pairs": list(_gated(results.get("gated", none))),
        "few rows": list(_few(results["few-rows"])),
        "decoding": list(_decoding(results["decoding"])),
        "coverage": list(_coverage(results["coverage"])),
        "Linears beside QuACK": list(_quack(results.get("quack", none))),
        "modes": list(_modes(results.get("models-modes", none))),
        "since 0.1.0": list(_since(results.get("before-after", none))),
    }


def table(results: Results) -> str:
    """A Markdown table: a line a target that is missed, and one a kind for those that are met."""
    lines = ["| aimed at | wanted | measured | commit | what limits it |", "|---" * 5 + "|"]
    found = targets(results)
    for target in (t for group in found.values() for t in group if not t.met):
        wanted = f"{'≥' if target.least else '≤'} {target.wanted:g}"
        cells = (target.text, wanted, target.figure, target.commit, target.limit)
        lines.append(f"| {' | '.join(cells)} |")
    for kind, group in found.items():
        met = [t for t in group if t.met]
        if met:
            told = "; ".join(f"{t.text} {t.figure} ({t.wanted:g})" for t in met)
            at = ", ".join(dict.fromkeys(t.commit for t in met))
            lines.append(f"| met: {kind}, {len(met)} of {len(group)} |  | {told} | {at} |  |")
    return "\n".join(lines) + "\n"


def _models(results: Results) -> Iterator[Target]:
    for file, model, wanted, limit in _MODELS:
        kind = "float32" if "float32" in file else "bfloat16"
        part = "training step" if "training" in file else "inference"
        for row in results[file]["rows"]:
            if row["model"].startswith(model) and "speedup" in row:
                named, at = f"{model}, {kind} {part}", commit(row, results[file])
                yield Target(named, wanted, row["speedup"], at, limit)
    for row in results["training"]["rows"]:
        if row["case"] == "Linear-scale-clamp-GELU, 16384x1024->4096":
            at = commit(row, results["training"])
            limit = _POWER.format_map(row)
            yield Target("block, bfloat16 training step", 1.28, row["speedup"], at, limit)


def _products(result: Mapping[str, Any]) -> Iterator[Target]:
    at = commit({}, result)
    for shape, wanted in _GRADIENTS:
        for row in result["rows"]:
            if row["group"] == "gradient" and row["case"].startswith(shape):
                text = f"`gelu'(mat) * z` and sums, {few_name(f'{shape} bfloat16 bare')}"
                yield Target(text.removesuffix(", bare"), wanted, row["ratio"], at, _TAIL, False)
    alone = [row for row in result["rows"] if row["group"] == "alone"]
    if alone:
        worst = max(alone, key=lambda row: row["ratio"])
        spread = max(worst.get("spread", {"": 0.0}).values())
        limit = f"{worst['case']}, at a spread of {spread:.0%}"
        yield Target("worst product alone", 1.01, worst["ratio"], at, limit, False)


def _gated(result: Mapping[str, Any]) -> Iterator[Target]:
    for row in result["rows"]:
        wanted = _GATED.get((row["m"], row["k"], row["n"]))
        if wanted is None or row["activation"] not in _GATES:
            continue
        ms = row["ms"]
        text = f"{_GATES[row['activation']]} {row['m']}×{row['k']}→2·{row['n']}"
        kept = f"{text}, z and z1 kept"
        for named, peer, most in ((text, "fusepass", wanted), (kept, "fusepass with z", _KEPT)):
            limit = f"{_rate(row, ms[peer])}, the bare product {_rate(row, ms['F.linear'])}"
            limit += f", which writes twice as much: {row['plan']}"
            yield Target(named, most, row["ratio"][peer], commit({}, result), limit, False)


def _rate(row: Mapping[str, Any], ms: float) -> str:
    """What both products come to, TFLOP/s."""
    return f"{4e-9 * row['m'] * row['k'] * row['n'] / ms:.0f} TFLOP/s in {ms:.3f} ms"


def _few(result: Mapping[str, Any]) -> Iterator[Target]:
    for case, wanted in _FEW:
        for row in result["rows"]:
            if row["case"] == case:
                named, us = few_name(case), row["us"]
                floor = f"µs, where a copy would read the weight in {row['floor_us']:.1f}"
                limit = f"{us['fusepass']:.1f}, cuBLAS's {us['bare']:.1f} {floor}"
                yield Target(named, wanted, row["ratio"], commit({}, result), limit, False)


def _decoding(result: Mapping[str, Any]) -> Iterator[Target]:
    for row in result["rows"]:
        if "speedup" in row:
            text = f"{row['model']}, batch {row['batch']}, decoding step"
            yield Target(text, _DECODING, row["speedup"], commit(row, result), _step_limit(row))


def _step_limit(row: Mapping[str, Any]) -> str:
    """What is the same for both peers in a step, and what the kernels alone would gain."""
    theirs, ours = (row["profile"][peer]["kinds"] for peer in ("inductor", "fusepass"))
    total, attention = sum(ours.values()), ours["attention"]
    return (
        f"the host, which takes {row['fusepass_host_ms']:.2f} of {row['fusepass_ms']:.2f} ms until "
        f"the graph is launched, and attention, {attention:.2f} of {total:.2f} ms of kernels: the "
        f"same for both; the kernels alone take {sum(theirs.values()) / total:.2f} times as long "
        "with Inductor"
    )


def _coverage(result: Mapping[str, Any]) -> Iterator[Target]:
    means = coverage_picture.means(result["rows"])
    for family, wanted in _TAKEN.items():
        text = f"share of Linears run whole, {family}"
        limit = "experts' products and what a norm reads where cuBLAS is as fast are left"
        yield Target(text, wanted, means[family]["taken"], commit({}, result), limit)


def _quack(result: Mapping[str, Any]) -> Iterator[Target]:
    for row in result["rows"]:
        ratios, shape = row.get("ratio_to_bare", {}), (row["m"], row["k"], row["n"])
        theirs = 1.0 if row["epilogue"] == "chain" else ratios.get("quack")
        if shape in _QUACK and "fusepass" in ratios and theirs:
            wanted = _QUACK[shape][list(_BESIDE).index(row["epilogue"])]
            dtype = ", fp16" if row["dtype"] == "float16" else ""
            text = f"{shape[0]}×{shape[1]}→{shape[2]} {_BESIDE[row['epilogue']]}{dtype}"
            ms = f"{row['ms']['fusepass']:.4f} ms, the bare product's {row['ms']['bare']:.4f}"
            limit = f"{ms}: {row['plan']}"
            yield Target(
                text, wanted, ratios["fusepass"] / theirs, commit({}, result), limit, False
            )


def _modes(result: Mapping[str, Any]) -> Iterator[Target]:
    for row in result["rows"]:
        if "speedup" in row:
            spread = f"at a spread of {row['fusepass_spread']:.1%}"
            text = f"{row['model']}, {row['mode']}"
            yield Target(text, 1.0, row["speedup"], commit(row, result), spread)


def _since(result: Mapping[str, Any]) -> Iterator[Target]:
    for row in result["rows"]:
        if "over" in row:
            text = f"{row['m']}×{row['k']}→{row['n']}, {row['kind']}, over 0.1.0's"
            limit = f"{row['plan']['before']} before, {row['plan']['after']} now"
            yield Target(text, 1.01, row["over"], commit({}, result), limit, False)
