"""Which part of float32's output is computed when, where all pieces would take much memory."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from host_program import build

from fusepass.kernels.build import toolchain
from fusepass.kernels.plan import f32 as plan_f32

pytestmark = pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs CUDA's headers")

SMS = 132
MIB = 2**20
# Reads m, n, k, what is stored [k, rows], what is split before, whether columns are summed, whether
# x dies, and the configuration. Writes bytes of the own memory and of K's parts or 0; of each
# part of the output rows and columns, where they begin, and where pieces of x and of w begin, how
# many bytes (of x: columns) they take and whether they are made for it; and, in elements, where its
# x, w, bias, both outputs, and a col, row and mat begin.
_PROGRAM = r"""
#include "sm90_f32/gemm_sm90_f32_parts.h"
#include <cstdio>
#include <iostream>
#include <sstream>
using namespace fusepass;

int main() {
  alignas(16) static float memory[4];
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream in(line);
    GemmProblem p{};
    bool x_is_split, w_is_split, sums, x_dies;
    in >> p.m >> p.n >> p.k >> p.x_is_km >> p.w_is_kn >> x_is_split >> w_is_split >> sums >> x_dies;
    p.x = p.w[0] = p.bias[0] = memory;
    p.ldx = p.x_is_km ? p.m + 4 : p.k + 4;
    p.ldw[0] = p.w_is_kn ? p.n + 4 : p.k + 4;
    p.out[0] = {memory, DType::kFloat32, false};
    p.out[1] = {memory, DType::kFloat16, sums};
    p.col[0] = {memory, DType::kFloat32, p.m, 0, 0, 2};
    p.row[0] = {memory, DType::kFloat32, p.m, 0, 3, 0};
    p.mat[0] = {memory, DType::kFloat32, p.m, 0, p.n + 5, 1};
    std::string config;
    std::getline(in >> std::ws, config);
    Split90Kernels kernels{};
    if (!split90_parse_config(config.c_str(), &kernels)) return 1;
    const Split90Given given{x_is_split ? memory : nullptr, w_is_split ? memory : nullptr, x_dies};
    const Split90Steps all = split90_steps(p, given, kernels, 132);
    const bool parts = split90_has_parts(p, kernels);
    std::printf("%ld %ld", all.bytes, parts ? split90_parts_bytes(p, kernels) : 0);
    for (const Split90Step& step : all.steps) {
      const GemmProblem part = split90_part(p, step);
      const auto at = [&](const void* v, int bytes) {
        return long(static_cast<const char*>(v) - reinterpret_cast<char*>(memory)) / bytes;
      };
      const auto takes = [](const split90::Matrix& m, const Split90Place& place) {
        return place.in == Split90In::kX ? split90::columns_among(m) : split90::pieces_bytes(m);
      };
      std::printf(" | %ld %ld %ld %ld", part.m, part.n, step.row, step.column);
      std::printf(" %d %ld %ld %d", int(step.x.in), step.x.at, takes(split90::x_of(part), step.x),
                  step.splits_x);
      std::printf(" %d %ld %ld %d", int(step.w.in), step.w.at, takes(split90::w_of(part), step.w),
                  step.splits_w);
      std::printf(" %ld %ld %ld %ld %ld %ld %ld %ld", at(part.x, 4), at(part.w[0], 4),
                  at(part.bias[0], 4), at(part.out[0].data, 4), at(part.out[1].data, 2),
                  at(part.col[0].data, 4), at(part.row[0].data, 4), at(part.mat[0].data, 4));
    }
    std::puts("");
  }
}
"""
_FILES = ("sm90/gemm_sm90_launch.cpp", "sm90_f32/gemm_sm90_f32_launch.cpp")


@pytest.fixture(scope="module")
def program(host_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(host_compiler, tmp_path_factory.mktemp("cut"), _PROGRAM, _FILES)


OWN, OUTPUT, X = range(3)


@dataclass(frozen=True)
class Pieces:
    """Where an operand's begin in which memory, what they take, and whether they are made anew."""

    memory: int
    at: int
    takes: int
    made: bool

    @property
    def end(self) -> int:
        return self.at + self.takes

    def meets(self, memory: int, begin: int, end: int) -> bool:
        return self.memory == memory and self.at < end and begin < self.end


@dataclass(frozen=True)
class Step:
    """A part of the output, the pieces it is made of, and where what it reads and writes begins."""

    rows: int
    columns: int
    row: int
    column: int
    x: Pieces
    w: Pieces
    begins: tuple[int, ...]


def ask(
    program: Path, m: int, n: int, k: int, config: str, orders: tuple[bool, bool] = (False, False),
    split: tuple[bool, bool] = (False, False), sums: bool = False, dies: bool = False,
) -> tuple[int, int, list[Step]]:  # fmt: skip
    """Bytes of the call's own memory and of K's parts; what each part of the output has."""
    words = [m, n, k, *map(int, (*orders, *split, sums, dies)), config]
    line = " ".join(map(str, words))
    answer = subprocess.run([program], input=line, capture_output=True, text=True, check=True)
    head, *parts = answer.stdout.split("|")
    steps = []
    for part in parts:
        *place, a, b, c, d, e, f, g, h = [*map(int, part.split())][:12]
        begins = tuple(map(int, part.split()[12:]))
        steps.append(Step(*place, Pieces(a, b, c, bool(d)), Pieces(e, f, g, bool(h)), begins))
    own, in_parts = map(int, head.split())
    return own, in_parts, steps


WIDE, NARROW = plan_f32.TILES
FACTS = 84  # bytes, of a row at most


def rounds(m: int, n: int) -> int:
    return -(-(-(-m // 256) * -(-n // 128)) // (SMS // 2))


# m, n, k and the MiB that the pieces may take: the smaller operand's, and of the other 48 or what
# takes no round of tiles more, and little longer.
MUCH = [
    (2048, 28672, 8192, 64 + 160), (65536, 512, 2048, 4 + 80),
    (32768, 50257, 1024, 197 + 16), (8192, 50257, 4096, 786 + 16), (6304, 1024, 4096, 16 + 52),
    (65536, 8192, 8192, 256 + 264), (16383, 50255, 2052, 394 + 16), (65536, 512, 512, 1 + 16),
    (65236, 512, 512, 1 + 16),
]  # fmt: skip


@pytest.mark.parametrize("orders", [(False, False), (True, True), (False, True)])
@pytest.mark.parametrize(("m", "n", "k", "most"), MUCH)
def test_parts_are_whole_rounds_of_tiles_and_take_little_memory(
    program: Path, m: int, n: int, k: int, most: int, orders: tuple[bool, bool]
) -> None:
    own, in_parts, steps = ask(program, m, n, k, WIDE.config(m), orders)
    assert in_parts == 0 and len(steps) > 1
    assert own <= most * MIB + FACTS * (m + n) and most * MIB < 4 * k * (m + n)
    for step in steps[:-1]:
        assert step.rows == m or step.rows % 256 == 0
        assert step.columns == n or step.columns % 128 == 0
    least = rounds(m, n)
    assert least <= sum(rounds(s.rows, s.columns) for s in steps) <= least + least // 8
    follow(steps, m, n, orders)


@pytest.mark.parametrize("orders", [(False, False), (True, True)])
@pytest.mark.parametrize(
    ("m", "n", "k", "sums"),
    [(70000, 514, 512, False), (70000, 514, 512, True), (4098, 70000, 2048, True)],
)
def test_each_part_has_its_rows_and_columns(
    program: Path, m: int, n: int, k: int, sums: bool, orders: tuple[bool, bool]
) -> None:
    _, _, steps = ask(program, m, n, k, WIDE.config(m), orders, sums=sums)
    assert len(steps) > 1
    for step in steps:
        row, column = step.row, step.column
        assert step.begins == (
            row * (1 if orders[0] else k + 4), column * (1 if orders[1] else k + 4),
            column, row * n + column, column if sums else row * n + column,
            2 * column, 3 * row, row * (n + 5) + column,
        )  # fmt: skip
    follow(steps, m, n, orders)


def follow(steps: list[Step], m: int, n: int, orders: tuple[bool, bool]) -> None:
    """Every element of the output is written once; pieces lie where nothing is that is still read.

    Nor do they lie where their own part is written, or where x's rows are that are yet to be read.
    """
    done = 0  # rows of the output of which all columns are there
    written = set[tuple[int, int]]()
    there: dict[str, tuple[Pieces, int, int]] = {}  # pieces as they were made, and of what
    for step in steps:
        of = {"x": (step.x, step.row, step.rows), "w": (step.w, step.column, step.columns)}
        for name, (pieces, first, count) in of.items():
            other = of["w" if name == "x" else "x"][0]
            if pieces.memory == OUTPUT:
                assert done * n * 4 <= pieces.at and pieces.end <= m * n * 4
                assert not pieces.meets(OUTPUT, step.row * n * 4, (step.row + step.rows) * n * 4)
            if pieces.memory == X:
                assert orders == (True, True) and pieces.end <= done
            assert not other.meets(pieces.memory, pieces.at, pieces.end)
            if pieces.made:
                there = {k: v for k, v in there.items()
                         if not v[0].meets(pieces.memory, pieces.at, pieces.end)}  # fmt: skip
                there[name] = replace(pieces, made=False), first, count
        for name, (pieces, first, count) in of.items():
            assert there[name] == (replace(pieces, made=False), first, count)
        begin, end = step.row * n * 4, (step.row + step.rows) * n * 4
        there = {k: v for k, v in there.items() if not v[0].meets(OUTPUT, begin, end)}
        written |= {(step.row, step.column)}
        if step.column + step.columns == n:
            assert step.row <= done
            done = max(done, step.row + step.rows)
    areas = sum(s.rows * s.columns for s in steps)
    assert done == m and areas == m * n and len(written) == len(steps)


# An output that holds the pieces of both operands, and an x that dies: of a few tokens, odd sizes.
OVER_X = [
    (8192, 8192, 2048), (8192, 10240, 2048), (8192, 8190, 2047), (16384, 4096, 1536),
    (9000, 5001, 1000), (5100, 9001, 900),
]  # fmt: skip


@pytest.mark.parametrize(("m", "n", "k"), OVER_X)
def test_over_an_x_that_dies_no_pieces_take_memory(program: Path, m: int, n: int, k: int) -> None:
    orders = (True, True)
    own, _, steps = ask(program, m, n, k, WIDE.config(m), orders, dies=True)
    assert own <= FACTS * (m + n) + 512 < 4 * k * (m + n) / 40
    assert {s.x.memory for s in steps} == {OUTPUT, X}
    follow(steps, m, n, orders)
    assert sum(rounds(s.rows, s.columns) for s in steps) <= rounds(m, n) + 3


def test_an_x_that_lives_or_lies_by_rows_is_not_written(program: Path) -> None:
    size = (8192, 8192, 2048)
    config = WIDE.config(8192)
    for given in (
        {"orders": (True, True)}, {"orders": (True, False), "dies": True},
        {"orders": (False, True), "dies": True},
        {"orders": (True, True), "dies": True, "sums": True},
        {"orders": (True, True), "dies": True, "split": (True, False)},
        {"orders": (True, True), "dies": True, "split": (False, True)},
    ):  # fmt: skip
        _, _, steps = ask(program, *size, config, **given)  # type: ignore[arg-type]
        assert all(p.memory == OWN for s in steps for p in (s.x, s.w)), given
    # Or where the output has not the room for w's pieces, and as much above them.
    for size in ((2048, 8192, 4096), (4096, 28672, 1024)):  # of the second in 16 parts alone
        _, _, steps = ask(program, *size, config, (True, True), dies=True)
        assert all(p.memory == OWN for s in steps for p in (s.x, s.w))


def test_what_is_split_before_or_short_is_not_cut(program: Path) -> None:
    def whole(m: int, n: int, k: int, config: str, **given: Any) -> bool:
        steps = ask(program, m, n, k, config, **given)[2]
        return [(s.rows, s.columns) for s in steps] == [(m, n)]

    config, many, few = WIDE.config(70000), 70000, 512
    assert whole(1024, 1024, 1024, config)
    for split in ((True, False), (True, True)):
        assert whole(many, few, few, config, split=split)
    assert not whole(many, few, few, config, split=(False, True))
    assert whole(2048, 8192, 8192, config, split=(False, True))
    assert whole(6304, 1024, 4096, config, sums=True)
    for product in ((2048, 8192, 8192), (4096, 14336, 4096), (16384, 50257, 768)):
        assert whole(*product, config)  # less than 512 MiB
    assert whole(few, 70000, 2048, config)  # a part takes too long
    assert whole(many, few, few, WIDE.config(many, 2))


@pytest.mark.parametrize("orders", [(True, True), (False, False)])
@pytest.mark.parametrize("k", [65536, 65537, 70000, 131072])
def test_parts_of_k_take_little_memory(program: Path, k: int, orders: tuple[bool, bool]) -> None:
    """Of their pieces, and of what is known of the rows of each."""
    for segments, parts in ((16, 4), (60, 15)):
        config = NARROW.config(512, segments, parts)
        pieces = 4 * 1024 * (-(-k // 64 // segments) * 64 * (segments // parts))
        _, taken, _ = ask(program, 512, 512, k, config, orders)
        assert pieces <= taken <= pieces + (parts + 1) * 84 * 1024
    _, taken, steps = ask(program, 512, 512, k, NARROW.config(512, 8), orders)
    assert taken == 0 and [(s.rows, s.columns) for s in steps] == [(512, 512)]
