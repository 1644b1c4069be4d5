"""Random programs of a few Linears with pointwise tails, as source text.

A program is a function ``f(x, w, v, b, g, s)`` of plain torch: x is ``[2, 3, 8]``, w and v are
weights ``[8, 8]``, b and g vectors ``[8]``, s a learnable scalar. Every value has one of a few
shapes, so that any value can meet any other.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

DIM = 8
FLOATS = ("float32", "bfloat16", "float16", "float64")
_NUMBERS = (
    "0.5", "2", "-1.0", "1.0", "1", "0", "0.1", "-0.0", "3", "1e-3", "-0.7", "1.702", "6.0", "1e4",
    "float('inf')", "True", "2**40", "torch.tensor(0.3)", "torch.tensor(2)", "s", "-s", "s * s",
    "torch.tensor(0.25, dtype=torch.float64)", "torch.full((), 1.5, dtype=x.dtype)",
)  # fmt: skip
_UNARY = (
    "F.gelu({})", "F.gelu({}, approximate='tanh')", "F.relu({})", "F.silu({})", "torch.tanh({})",
    "torch.sigmoid({})", "-{}", "{}.abs()", "F.relu6({})", "F.hardtanh({}, -2, 2)",
    "F.leaky_relu({})", "F.softplus({})", "F.mish({})", "F.elu({})", "F.hardswish({})",
    "{}.square()", "torch.erf({})", "torch.exp(-{}.abs())", "{} * torch.sigmoid(1.702 * {})",
    "0.5 * {} * (1 + torch.erf({} * 0.7071067811865476))", "{} * torch.special.ndtr({})",
    "0.5 * {} * (1 + torch.tanh(0.7978845608028654 * ({} + 0.044715 * {} ** 3)))",
    "{} * 0.5 * (1 + torch.erf({} / 2 ** 0.5))", "F.relu({}) ** 2",
    "torch.where({} > 0, {}, 0.1 * {})",
    "{}.sign()", "{}.clone()", "{}.detach()", "F.gelu(({} + 1000) - 1000)",
    "(1 + {}.abs()).reciprocal()",
)  # fmt: skip
_STAGES = ("{} * {n}", "{} / {n}", "{}.clamp({a}, {b})", "torch.clamp({}, min={a})", "{n} * {}",
           "torch.minimum({}, torch.tensor({b}))", "F.hardtanh({}, {a}, {b})",
           "torch.maximum({}, torch.tensor({a}))", "F.gelu({})")  # fmt: skip
_SCALAR = (
    "{} + {n}",
    "{n} - {}",
    "{} - {n}",
    "{} * {n}",
    "{} / {n}",
    "torch.add({}, {n}, alpha=2)",
)
_CASTS = (
    "{}.float()", "{}.to(x.dtype)", "{}.double()", "{}.half()", "{}.bfloat16()",
    "{}.bool().to(x.dtype)", "{}.bool().float()", "{}.bool() * 0.5", "{}.int().to(x.dtype)",
    "({} > 0).to(x.dtype)",
)  # fmt: skip
_VIEWS = (
    "{}.reshape(-1, 8)", "{}.reshape(2, 3, 8)", "{}.unsqueeze(0).squeeze(0)",
    "{}.transpose(-1, -2).transpose(-1, -2)", "{}.transpose(-1, -2).contiguous().transpose(-1, -2)",
    "{}.flatten().reshape(2, 3, 8)", "{}.view_as({})",
)  # fmt: skip
_BINARY = ("{} + {o}", "{} * {o}", "{} - {o}", "torch.maximum({}, {o})", "{} / (1 + {o}.abs())")
_REDUCED = ("{}.mean()", "{}.amax()", "{}.softmax(-1).amax()")
# Over the rows, as gradients of biases and of a layer scale are.
_SUMS = (
    "{}.reshape(-1, 8).sum(0)", "{}.reshape(-1, 8).sum(0, keepdim=True)",
    "{}.reshape(-1, 8).float().sum(0)", "({} * {o}).reshape(-1, 8).sum(0)",
)  # fmt: skip
_WRITES = (
    "{t} = {}.clone(); {t}.mul_({n})", "{t} = {} + 0; {t}.clamp_({a}, {b})",
    "{t} = {}.clone(); {t}.add_({o})", "{t} = {}.clone(); {t}[..., :3] *= 2",
    "{t} = {} * 1; {t}[..., 0] = 0.5",
    "{t} = {} + {o}; {o2} = {o} * 1; {o2}.zero_(); {t} = {t} + {o2}",
)  # fmt: skip
_LINEAR = (
    "F.linear({}, w, b)", "F.linear({}, v)", "{} @ w.t() + b", "{} @ v", "F.linear({}, v, g)",
    "torch.addmm(b, {}.reshape(-1, 8), w.t()).reshape(2, 3, 8)", "F.linear({}, w)",
    "torch.addmm(b, {}.reshape(-1, 8), v, beta=0.5).reshape(2, 3, 8)",
)  # fmt: skip
_OPERANDS = (
    "{} * {o}[..., :1]", "{} + {o}[..., -1:]", "{} * {o}.amax(0, keepdim=True)",
    "{} + {o}.mean(0, keepdim=True)", "torch.where({o} > 0, {}, 0)", "F.silu({}) * {o}",
    "{} * F.gelu({o})", "{}.masked_fill({o} > 0.5, {a})", "{o} + {} * g", "F.gelu({} + {o})",
    "{} * ({o} > 0)", "torch.where({} > {o}, {}, {o})", "F.relu({}) - {o} * s",
    "{} * F.softplus({o}[:, :1])",
)  # fmt: skip
_VECTORS = ("{} * g", "{} + b", "{} * g + x", "{} / (1 + g.abs())")


@dataclass
class Program:
    """Source text with what is needed to run it.

    Attributes:
        lines: assignments, one value each.
        results: the names that are returned.
    """

    lines: list[str]
    results: list[str]
    args: str = "x, w, v, b, g, s"

    @property
    def source(self) -> str:
        body = "".join(f"    {line}\n" for line in self.lines)
        return f"def f({self.args}):\n{body}    return {', '.join(self.results)},\n"

    def function(self) -> Callable[..., tuple[object, ...]]:
        import torch

        space: dict[str, object] = {"torch": torch, "F": torch.nn.functional}
        exec(self.source, space)
        return space["f"]  # type: ignore[return-value]


@dataclass
class _Writer:
    rng: random.Random
    lines: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=lambda: ["x"])  # of x's shape, or [6, 8]
    scalars: list[str] = field(default_factory=list)  # computed numbers

    def number(self) -> str:
        if self.scalars and self.rng.random() < 0.15:
            return self.rng.choice(self.scalars)
        return self.rng.choice(_NUMBERS)

    def emit(self, text: str) -> str:
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name

    def fill(self, template: str, value: str) -> str:
        low, high = self.rng.choice((("-2.0", "2.0"), ("0", "6"), ("-1", "0.5"), ("1.0", "-1.0")))
        other = f"{self.rng.choice(self.values)}.reshape({value}.shape)"
        text = template.replace("{n}", self.number()).replace("{a}", low).replace("{b}", high)
        return text.replace("{o}", other).replace("{}", value)

    def step(self, value: str) -> str:
        """One more value made of ``value``."""
        kinds = (_STAGES, _UNARY, _SCALAR, _CASTS, _VIEWS, _BINARY, _VECTORS, _OPERANDS)
        table = self.rng.choices(kinds, weights=(8, 6, 2, 2, 2, 2, 1, 4))[0]
        template = self.rng.choice(table)
        if template in _VECTORS and "x" in template:
            template = template.replace("+ x", "+ x.reshape({}.shape)")
        if template in _VIEWS and "view_as" in template:
            template = "{}.contiguous()"
        return self.emit(self.fill(template, value))

    def write(self, value: str) -> str:
        template = self.rng.choice(_WRITES)
        name = f"t{len(self.lines)}"
        text = self.fill(template.replace("{t}", name).replace("{o2}", f"u{name}"), value)
        self.lines.append(text)
        return name

    def linear(self, value: str) -> str:
        text = self.rng.choice(_LINEAR)
        source = f"{value}.to(x.dtype)"
        if "addmm" not in text and self.rng.random() < 0.2:
            source = f"{source}.reshape(-1, 8)"
        return self.emit(text.replace("{}", source))


def random_program(seed: int) -> Program:
    """One to three Linears, each with a tail that may branch, read others and be written to."""
    rng = random.Random(seed)
    writer = _Writer(rng)
    ends = []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        value = writer.linear(rng.choice(writer.values))
        writer.values.append(value)
        for _ in range(rng.randint(1, 4)):
            source = value if rng.random() < 0.8 else rng.choice(writer.values)
            value = writer.write(source) if rng.random() < 0.07 else writer.step(source)
            writer.values.append(value)
            if rng.random() < 0.1:
                reduced = rng.choice(_REDUCED).replace("{}", f"{value}.to(x.dtype)")
                writer.scalars.append(writer.emit(reduced))
        ends.append(value)
    while rng.random() < 0.4:  # further results
        ends.append(rng.choice(writer.values[1:]))
    if rng.random() < 0.3:
        ends.append(writer.emit(writer.fill(rng.choice(_SUMS), rng.choice(writer.values[1:]))))
    return Program(writer.lines, list(dict.fromkeys(ends)))
