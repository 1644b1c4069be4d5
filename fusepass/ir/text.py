"""An epilogue's text form, both ways.

::

    text   = [ { name "=" chain ";" } output { "," output } ]      the empty text stores z
    output = chain [ "store" ":" dtype | "col_sum" [ ":" dtype ] ]
    chain  = [ value ] { step }                                    begins with z where no value is
    step   = operation [ "(" argument { "," argument } ")" ] [ "~" dtype ]
    value  = "z" | "z1" | "rot64" | "first64of128" | "$0" | "col0" | "row0" | "mat0:bool" | name

Each step is applied to what stands before it, as its first argument, or where ``_`` says:
``rsub(1.0)``, ``where(mat0:bool, _, 0.0)``. ``~bf16`` is the dtype eager rounds to. Names are
``v0``, ``v1``, …: ``v0 = mul(0.5); v0 gelu mul(v0)``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Union

from .epilogue import Builder, Epilogue, Node, Output, Value
from .table import ROWS
from .types import Arg, DType, Input, Number, Ref, Z

_NAME = re.compile(r"v(?:0|[1-9]\d*)")
_WORD = re.compile(r"([a-z$][\w$]*)(?:\(([^()]*)\))?(?::(\w+))?(?:~(\w+))?")
_HOLE = "_"
_OUTPUT_KINDS = ("store", "col_sum")


# --- writing --------------------------------------------------------------------------------------


def write(epilogue: Epilogue, numbers: bool = True) -> str:
    """The one text of ``epilogue``; with ``#`` for each number if not ``numbers``."""
    return _Writer(epilogue, numbers).text()


class _Writer:
    def __init__(self, epilogue: Epilogue, numbers: bool) -> None:
        self.nodes, self.outputs, self.numbers = epilogue.nodes, epilogue.outputs, numbers
        read = Counter(r.index for node in self.nodes for r in node.refs)
        read.update(o.value.index for o in self.outputs if isinstance(o.value, Ref))
        self.once = {index for index, count in read.items() if count == 1}
        inline = {f.index for f in map(self._flow, self.nodes) if isinstance(f, Ref)}
        ends = {o.value.index for o in self.outputs if isinstance(o.value, Ref)}
        chained = self.once & (inline | ends)
        named = [i for i in range(len(self.nodes)) if i not in chained]
        self.names = {index: f"v{i}" for i, index in enumerate(named)}

    def text(self) -> str:
        bindings = (f"{name} = {self._chain(Ref(i), define=True)}; " for i, name in self._named())
        return "".join((*bindings, ", ".join(map(self._output, self.outputs))))

    def _named(self) -> list[tuple[int, str]]:
        return list(self.names.items())

    def _flow(self, node: Node) -> Arg:
        """The argument whose chain ``node`` goes on: one read by it alone if there is one."""
        refs = list(node.refs)
        alone = [r for r in refs if r.index in self.once]
        inputs = [a for a in node.args if isinstance(a, Input)]
        candidates: Sequence[Arg] = alone or refs or [i for i in inputs if i == Z] or inputs
        return candidates[0]

    def _output(self, output: Output) -> str:
        suffix = f":{output.dtype.value}" if output.dtype is not None else ""
        plain = output.kind == "store" and output.dtype is None
        chain = self._chain(output.value)
        alone = plain and len(self.outputs) == 1 and not self.names
        if chain == "z" and (not plain or alone):
            chain = ""
        return chain if plain else f"{chain} {output.kind}{suffix}".lstrip()

    def _chain(self, value: Arg, define: bool = False) -> str:
        steps: list[str] = []
        while isinstance(value, Ref) and (define or value.index not in self.names):
            node, define = self.nodes[value.index], False
            value = self._flow(node)
            steps.append(self._step(node, value))
        if value != Z or not steps:
            steps.append(self._arg(value))
        return " ".join(reversed(steps))

    def _step(self, node: Node, flow: Arg) -> str:
        place = node.args.index(flow)
        args = [_HOLE if i == place else self._arg(a) for i, a in enumerate(node.args)]
        if place == 0:
            args = args[1:]
        inside = f"({', '.join(args)})" if args else ""
        return f"{node.op}{inside}" + (f"~{node.rounded.value}" if node.rounded else "")

    def _arg(self, arg: Arg) -> str:
        if isinstance(arg, Number):
            return str(arg) if self.numbers else "#"
        return self.names[arg.index] if isinstance(arg, Ref) else str(arg)


# --- reading --------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def read(text: str) -> Epilogue:
    """The epilogue of ``text``.

    Raises:
        ValueError: naming the part of ``text`` that is not an epilogue.
    """
    return _Reader(text).epilogue()


_Item = Union[Value, str]


class _Reader:
    def __init__(self, text: str) -> None:
        self.all, self.builder = text, Builder()
        self.names: dict[str, Value] = {}
        self.unread: set[str] = set()

    def epilogue(self) -> Epilogue:
        *bindings, last = self.all.split("; ")
        for binding in bindings:
            self._bind(binding)
        outputs = [self._output(part) for part in re.split(r", (?![^()]*\))", last)]
        if self.unread:
            raise self._error(f"{min(self.unread)} is never read")
        return self.builder.finish(*outputs)

    def _bind(self, binding: str) -> None:
        name, equals, chain = binding.partition(" = ")
        if not equals or not _NAME.fullmatch(name):
            raise self._error(f"expected `v0 = ...` for {binding!r}")
        if name in self.names:
            raise self._error(f"{name} is named twice")
        value = self._output(chain)
        if value.kind != "store" or value.dtype is not None or not chain:
            raise self._error(f"expected a value for {name}")
        self.names[name] = value.value
        self.unread.add(name)

    def _output(self, chain: str) -> Output:
        value: Value = Z
        first, ended = True, None
        for word, args, dtype, rounded in self._words(chain):
            if ended is not None:
                raise self._error(f"nothing follows {ended.kind}")
            known = self._value(word + (f":{dtype}" if dtype else ""))
            if known is not None:
                if not first or args is not None or rounded:
                    raise self._error(f"expected an operation, not {word!r}")
                value = known
            elif word in _OUTPUT_KINDS and args is None and not rounded:
                ended = Output(value, word, self._dtype(dtype))
            elif dtype:
                raise self._error(f"cannot read {word}:{dtype}")
            else:
                value = self._apply(value, word, args, rounded)
            first = False
        return ended or Output(value)

    def _words(self, chain: str) -> Iterator[tuple[str, str | None, str | None, str | None]]:
        position = 0
        while position < len(chain):
            found = _WORD.match(chain, position)
            if found is None:
                raise self._error(f"cannot read {chain[position:]!r}")
            position = found.end()
            if position < len(chain) and chain[position] != " ":
                raise self._error(f"expected a space before {chain[position:]!r}")
            position += 1
            if position == len(chain):
                raise self._error("a space at the end")
            word, args, dtype, rounded = found.groups()
            yield word, args, dtype, rounded

    def _apply(self, value: Value, op: str, args: str | None, rounded: str | None) -> Value:
        if op not in ROWS or ROWS[op].lowered:
            known = ", ".join(name for name, row in ROWS.items() if not row.lowered)
            raise self._error(f"unknown operation {op!r}; they are {known}")
        given = [] if args is None else [self._arg(a) for a in args.split(",")]
        if _HOLE not in given:
            given = [_HOLE, *given]
        if given.count(_HOLE) > 1 or len(given) != ROWS[op].arity:
            wanted, got = ROWS[op].arity - 1, args or "none"
            raise self._error(f"{op} takes {wanted} argument(s) beside its own, got {got}")
        exact = (value if isinstance(a, str) else a for a in given)
        return self.builder.apply(op, *exact, rounded=self._dtype(rounded))

    def _arg(self, text: str) -> Union[Arg, str]:
        text = text.strip()
        value = self._value(text)
        if text == _HOLE or value is not None:
            return _HOLE if value is None else value
        try:
            return Number(float(text.replace("_", "?")))
        except ValueError as error:
            if "NaN" in str(error):
                raise self._error("a NaN scalar, which has no text form,") from None
            raise self._error(f"{text!r} is neither a number nor an operand like $0") from None

    def _value(self, text: str) -> Value | None:
        if text in self.names:
            self.unread.discard(text)
            return self.names[text]
        if _NAME.fullmatch(text):
            raise self._error(f"{text} has no value yet")
        return Input.parse(text)

    def _dtype(self, name: str | None) -> DType | None:
        if name is None:
            return None
        try:
            return DType(name)
        except ValueError:
            raise self._error(f"no dtype {name!r}") from None

    def _error(self, message: str) -> ValueError:
        return ValueError(f"epilogue: {message} in {self.all!r}")
