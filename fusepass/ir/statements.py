"""A lowered program as statements: one assignment to each value, sorted into three parts.

A kernel runs the parts of successive elements side by side, because one warp alone must keep its
scheduler busy. A long operation says itself where it is cut; operations behind one another are
spread over the parts by how deep they lie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from .epilogue import Epilogue, Node
from .row import Row
from .table import ROWS
from .types import COMPUTED, Arg, DType, Input, Number, Ref

PARTS = 3
NAME = re.compile(r"\b(?:v\d+(?:_\d+)?|z1?|rot|first|(?:col|row|mat)\d+)\b")
_IDENTIFIER = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?!\w*\()")
_ASSIGNMENT = re.compile(r"(\w+) = (.*)")


@dataclass(frozen=True)
class Style:
    """How a program is computed.

    Attributes:
        dtype: the site's.
        fast: by the texts for results of the site's dtype, where it has such.
    """

    dtype: DType
    fast: bool

    @property
    def type(self) -> str:
        """The C++ type that is computed in."""
        return "double" if self.dtype is DType.F64 else "float"

    def lines(self, row: Row) -> list[str]:
        """The device text of ``row``."""
        texts = {
            DType.BF16: row.fast_bf16 or row.fast,
            DType.F16: row.fast,
            DType.F32: row.fast_f32,
        }
        text = texts.get(self.dtype, "") if self.fast else ""
        return (text or row.exact).strip().split("\n")

    def rounded(self, node: Node, expression: str) -> str:
        """``expression`` rounded to the dtype that ``node`` is."""
        if node.rounded is None or node.rounded is self.dtype is DType.F64:
            return expression
        if self.type == "float" and node.rounded in (DType.F32, DType.F64):
            return expression
        return f"T(round_{node.rounded.value}({expression}))"


@dataclass
class Statement:
    """``target = expression`` for one element.

    Attributes:
        condition: whether the value is a bool.
        part: in which of the three parts it is computed.
    """

    target: str
    expression: str
    condition: bool
    part: int

    @property
    def reads(self) -> set[str]:
        """The values in the expression."""
        return set(NAME.findall(self.expression))


@dataclass
class Body:
    """All statements of a program.

    Attributes:
        scalars: expressions of what is the same for every element, computed once a thread; each may
            read those before it.
        statements: in the order of the program.
        outputs: an expression for each output.
    """

    scalars: list[str] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def made_in(self, name: str) -> int:
        """The part in which ``name`` is computed; an input's is 0."""
        return next((s.part for s in self.statements if s.target == name), 0)

    def read_in(self, name: str) -> list[int]:
        """The parts in which ``name`` is read, by statements or outputs; -1 if in none."""
        parts = [s.part for s in self.statements if name in s.reads]
        written = (i for i, text in enumerate(self.outputs) if name in NAME.findall(text))
        parts += map(self.output_part, written)
        return parts or [-1]

    def output_part(self, index: int) -> int:
        """The part in which output ``index`` is complete."""
        return max((self.made_in(name) for name in NAME.findall(self.outputs[index])), default=0)


@dataclass(frozen=True)
class _Known:
    """A value: its expression, whether it is a condition, how deep it lies."""

    text: str
    condition: bool = False
    depth: int = 0
    uniform: bool = False

    def as_(self, parameter: str) -> str:
        """The expression where a value (``v``) or a condition (``b``) is wanted."""
        if self.condition == (parameter == "b"):
            return self.text
        return f"({self.text} != T(0))" if parameter == "b" else f"T({self.text})"


def body_of(program: Epilogue, style: Style) -> Body:
    """The statements of ``program``, which has been lowered for ``style``."""
    return _Writer(style).write(program)


class _Writer:
    def __init__(self, style: Style) -> None:
        self.style, self.body = style, Body()
        self.values: list[_Known] = []
        self.slots: dict[str, int] = {}
        self.numbers = 0

    def write(self, program: Epilogue) -> Body:
        for index, node in enumerate(program.nodes):
            args = [self._known(a) for a in node.args]
            plain = ROWS[node.op].parameters.strip("v") == "" and ROWS[node.op].result == "v"
            uniform = plain and all(a.uniform for a in args)
            known = self._scalar(node, args) if uniform else self._node(index, node, args)
            self.values.append(known)
        self.body.outputs = [self._known(o.value).as_("v") for o in program.outputs]
        deepest = max((s.part for s in self.body.statements), default=0)
        for statement in self.body.statements:  # until here, `part` is the depth
            statement.part = statement.part * PARTS // (deepest + 1)
        return self.body

    def _known(self, arg: Arg) -> _Known:
        if isinstance(arg, Ref):
            return self.values[arg.index]
        if isinstance(arg, Number):
            self.numbers += 1
            return self._slot(f"from.number({self.numbers - 1})")
        if arg.kind == "$":
            return self._slot(f"from.operand({arg.index})")
        return _Known(name_of(arg))

    def _slot(self, expression: str) -> _Known:
        if expression not in self.slots:
            self.slots[expression] = len(self.body.scalars)
            self.body.scalars.append(expression)
        return _Known(f"s[{self.slots[expression]}]", uniform=True)

    def _scalar(self, node: Node, args: Sequence[_Known]) -> _Known:
        """A node that no element changes, exactly."""
        names = {p: a.text for p, a in zip("abc", args, strict=False)}
        *before, last = ROWS[node.op].exact.strip().split("\n")
        for line in before:
            target, expression = _assignment(line)
            names[target] = self._slot(_substituted(expression, names)).text
        return self._slot(self.style.rounded(node, _substituted(last, names)))

    def _node(self, index: int, node: Node, args: Sequence[_Known]) -> _Known:
        row, depth = ROWS[node.op], max(a.depth for a in args)
        kinds = zip("abc", args, row.parameters, strict=False)
        names = {letter: known.as_(kind) for letter, known, kind in kinds}
        *before, last = self.style.lines(row)
        for count, line in enumerate(before):
            if line == "cut":
                depth += 1
                continue
            target, expression = _assignment(line)
            name = f"v{index}_{count}"
            self.body.statements.append(
                Statement(name, _substituted(expression, names), False, depth)
            )
            names[target] = name
        condition = row.result == "b"
        expression = self.style.rounded(node, _substituted(last, names))
        self.body.statements.append(Statement(f"v{index}", expression, condition, depth))
        return _Known(f"v{index}", condition, depth)


def name_of(value: Input) -> str:
    """The name of an input's element."""
    return value.kind if value.kind in COMPUTED else f"{value.kind}{value.index}"


def _assignment(line: str) -> tuple[str, str]:
    found = _ASSIGNMENT.fullmatch(line)
    assert found is not None, f"no assignment: {line}"
    return found[1], found[2]


def _substituted(text: str, names: dict[str, str]) -> str:
    return _IDENTIFIER.sub(lambda found: names.get(found[0], found[0]), text)
