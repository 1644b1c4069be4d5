"""The emitter: one include for every kernel, made of a program.

The include defines ``fusepass::Epilogue``. A kernel fills ``Batch``, kWidth elements of z and of
what else is read, and calls the parts in order::

    T s[Epilogue::kScalars + 1];
    Epilogue::load(s, from);     // once a thread; from.number(i), from.operand(i) give scalars
    Epilogue::begin(b, s);       // then middle(b, s), end(b, s)

Column, row and matrix elements must be there before the part that reads them first
(``kFirstRead``), and an output is there after the part that ``kOutputPart`` names. Heads are
of kHead columns, 0: they are not told apart; ``rot`` has the halves of the first kExchanged of one
exchanged (2: neighbours), ``first`` is 1 in the first kFirst and 0 in the others; of 0 columns they
are not read. What a part only needs itself is local to it; the rest lies in the Batch, registers.
"""

from __future__ import annotations

from functools import lru_cache

from .epilogue import Epilogue
from .lower import lower
from .statements import NAME, PARTS, Statement, Style, body_of, name_of
from .types import COMPUTED, Z1, DType, Input

_PART_NAMES = ("begin", "middle", "end")
_OPERAND_KINDS = ("col", "row", "mat")


@lru_cache(maxsize=1024)
def emit(epilogue: Epilogue, dtype: DType) -> str:
    """The include for a site of ``dtype`` (bf16, f16, f32, f64); it needs epilogue_math.cuh.

    Equal for programs that differ in numbers only, unless a number is such that another program is
    cheaper. Its numbers are ``lower(epilogue, dtype).numbers``, in that order.
    """
    program = lower(epilogue, dtype)
    return _Emitter(program, style_of(program, dtype)).text()


def style_of(program: Epilogue, dtype: DType) -> Style:
    """How ``program`` is computed at a site: fast where it does not say what eager rounds."""
    return Style(dtype, fast=all(node.rounded is None for node in program.nodes))


def build_key(epilogue: Epilogue, dtype: DType) -> str:
    """What the include depends on, besides fusepass itself: a program without numbers, a dtype."""
    return f"{dtype.value}: {lower(epilogue, dtype).key}"


class _Emitter:
    def __init__(self, program: Epilogue, style: Style) -> None:
        self.program, self.style, self.body = program, style, body_of(program, style)
        self.inputs = {name_of(i): i for i in program.inputs if i.kind != "$"}
        self.crossing = [s for s in self.body.statements if self._crosses(s)]
        self.kept = {s.target for s in self.crossing} | set(self.inputs)

    def _crosses(self, statement: Statement) -> bool:
        return any(part > statement.part for part in self.body.read_in(statement.target))

    def text(self) -> str:
        dtype = f"{self.style.dtype.value}, computed in {self.style.type}"
        lines = [
            f"// {self.program.key or 'z'}: {dtype}",
            "#pragma once",
            '#include "common/epilogue_math.cuh"',
            "",
            "namespace fusepass {",
            "",
            "struct Epilogue {",
            f"  using T = {self.style.type};",
            *self._constants(),
            "",
            *self._batch(),
            "",
            *self._load(),
            *(line for part in range(PARTS) for line in ("", *self._part(part))),
            "};",
            "",
            "}  // namespace fusepass",
            "",
        ]
        return "\n".join(lines)

    # --- what the kernel asks -----------------------------------------------------------------

    def _constants(self) -> list[str]:
        count = self.program.count
        numbers, outputs = len(self.program.numbers), self.program.outputs
        sums = [str(o.kind == "col_sum").lower() for o in outputs]
        dtypes = [(o.dtype or self.style.dtype).device for o in outputs]
        parts = [str(self.body.output_part(i)) for i in range(len(outputs))]
        heads = self.program.heads
        lines = [
            f"  static constexpr int kNumbers = {numbers}, kOperands = {count('$')}, "
            f"kScalars = {len(self.body.scalars)};",
            f"  static constexpr int kCols = {count('col')}, kRows = {count('row')}, "
            f"kMats = {count('mat')}, kOutputs = {len(outputs)};",
            f"  static constexpr bool kIsEmpty = {str(not self.program.nodes).lower()};",
            f"  static constexpr bool kReadsZ1 = {str(Z1 in self.program.inputs).lower()};",
            f"  static constexpr int kHead = {heads.columns}, kExchanged = {heads.exchanged}, "
            f"kFirst = {heads.first};",
            f"  static constexpr int kOutputPart[] = {{{', '.join(parts)}}};",
            f"  static constexpr bool kIsColumnSum[] = {{{', '.join(sums)}}};",
            f"  static constexpr DType kOutputDType[] = {{{', '.join(dtypes)}}};",
        ]
        for kind in _OPERAND_KINDS:
            if count(kind):
                lines += self._operands(kind)
        return lines

    def _operands(self, kind: str) -> list[str]:
        """Dtype and first part of each operand of a kind; one that is not read has part -1."""
        known = {i.index: i for i in self.program.operands if i.kind == kind}
        given = [known.get(i, Input(kind, i)) for i in range(self.program.count(kind))]
        dtypes = [(i.dtype or self.style.dtype).device for i in given]
        parts = [str(min(self.body.read_in(name_of(i)))) for i in given]
        title = kind.title()
        return [
            f"  static constexpr DType k{title}DType[] = {{{', '.join(dtypes)}}};",
            f"  static constexpr int k{title}FirstRead[] = {{{', '.join(parts)}}};",
        ]

    # --- storage ------------------------------------------------------------------------------

    def _batch(self) -> list[str]:
        members = ["z", *["z1"] * (Z1 in self.program.inputs), *self._of_heads()]
        lines = [f"    T {', '.join(f'{m}[kWidth]' for m in members)};"]
        for kind in _OPERAND_KINDS:
            if self.program.count(kind):
                lines.append(f"    T {kind}[{self.program.count(kind)}][kWidth];")
        lines.append(f"    T out[{len(self.program.outputs)}][kWidth];")
        lines += [f"    {self._declared(s)}" for s in self.crossing]
        return ["  template <int kWidth>", "  struct Batch {", *lines, "  };"]

    def _of_heads(self) -> list[str]:
        heads = self.program.heads
        return ["rot"] * (heads.exchanged > 0) + ["first"] * (heads.first > 0)

    def _declared(self, statement: Statement) -> str:
        return f"{'bool' if statement.condition else 'T'} {statement.target}[kWidth];"

    def _stored(self, name: str) -> str:
        value = self.inputs.get(name)
        if value is not None and value.kind not in COMPUTED:
            return f"b.{value.kind}[{value.index}][i]"
        return f"b.{name}[i]" if name in self.kept else f"{name}[i]"

    # --- code ---------------------------------------------------------------------------------

    def _load(self) -> list[str]:
        lines = [f"    s[{i}] = {text};" for i, text in enumerate(self.body.scalars)]
        return [
            "  template <class From>",
            "  __device__ static void load(T* s, const From& from) {",
            *lines,
            "  }",
        ]

    def _part(self, part: int) -> list[str]:
        lines: list[str] = []
        for statement in self.body.statements:
            if statement.part == part:
                if statement.target not in self.kept:
                    lines.append(self._declared(statement))
                lines.append(self._each(statement.target, statement.expression))
        for index, expression in enumerate(self.body.outputs):
            if self.body.output_part(index) == part:
                target = f"b.out[{index}][i]"
                lines.append(f"FUSEPASS_EACH {target} = {self._with_places(expression)};")
        return [
            "  template <int kWidth>",
            f"  __device__ static void {_PART_NAMES[part]}(Batch<kWidth>& b, const T* s) {{",
            *(f"    {line}" for line in lines),
            "  }",
        ]

    def _each(self, target: str, expression: str) -> str:
        return f"FUSEPASS_EACH {self._stored(target)} = {self._with_places(expression)};"

    def _with_places(self, expression: str) -> str:
        return NAME.sub(lambda found: self._stored(found[0]), expression)
