"""Which part of float32's output is computed when, where all pieces would take much memory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from host_program import build

from fusepass.kernels.build import toolchain
from fusepass.kernels.plan import f32 as plan_f32

pytestmark = pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs CUDA's headers")

SMS = 132
MIB = 2**20
# Reads m, n, k, what is stored [k, rows], what is split before, whether columns are summed, and the
# configuration. Writes rows and columns at a time, and bytes of K's parts or 0; of each part of the
# output m, n and, in elements, where x, w, bias, both outputs, and a col, row and mat begin.
_PROGRAM = r"""
#include "sm90_f32/gemm_sm90_f32_cut.h"
#include <cstdio>
#include <iostream>
#include <sstream>
using namespace fusepass;

int main() {
  static float memory[1];
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream in(line);
    GemmProblem p{};
    bool x_is_split, w_is_split, sums;
    in >> p.m >> p.n >> p.k >> p.x_is_km >> p.w_is_kn >> x_is_split >> w_is_split >> sums;
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
    const Split90Cut cut = split90_cut(p, x_is_split, w_is_split, kernels, 132);
    const bool parts = split90_has_parts(p, kernels);
    std::printf("%ld %ld %ld", cut.rows, cut.columns, parts ? split90_parts_bytes(p, kernels) : 0);
    for (int64_t row = 0; row < p.m; row += cut.rows) {
      for (int64_t column = 0; column < p.n; column += cut.columns) {
        const GemmProblem part = split90_part(p, row, column, cut);
        const auto at = [&](const void* v, int bytes) {
          return long(static_cast<const char*>(v) - reinterpret_cast<char*>(memory)) / bytes;
        };
        std::printf(" | %ld %ld %ld %ld %ld %ld %ld %ld %ld %ld", part.m, part.n, at(part.x, 4),
                    at(part.w[0], 4), at(part.bias[0], 4), at(part.out[0].data, 4),
                    at(part.out[1].data, 2), at(part.col[0].data, 4), at(part.row[0].data, 4),
                    at(part.mat[0].data, 4));
      }
    }
    std::puts("");
  }
}
"""
_FILES = ("sm90/gemm_sm90_launch.cpp", "sm90_f32/gemm_sm90_f32_launch.cpp")


@pytest.fixture(scope="module")
def program(host_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(host_compiler, tmp_path_factory.mktemp("cut"), _PROGRAM, _FILES)


def ask(
    program: Path, m: int, n: int, k: int, config: str, orders: tuple[bool, bool] = (False, False),
    split: tuple[bool, bool] = (False, False), sums: bool = False,
) -> tuple[list[int], list[list[int]]]:  # fmt: skip
    """Rows and columns at a time and bytes of K's parts; what each part of the output has."""
    words = [m, n, k, *map(int, (*orders, *split, sums)), config]
    line = " ".join(map(str, words))
    answer = subprocess.run([program], input=line, capture_output=True, text=True, check=True)
    head, *parts = answer.stdout.split("|")
    return [*map(int, head.split())], [[*map(int, part.split())] for part in parts]


WIDE, NARROW = plan_f32.TILES
# m, n, k and the MiB that the pieces may take: the smaller operand's, and of the other 48 or what
# takes no round of tiles more, and little longer.
MUCH = [
    (2048, 28672, 8192, 64 + 160), (65536, 512, 512, 1 + 48),
    (32768, 50257, 1024, 197 + 50), (8192, 50257, 4096, 128 + 66),
    (65536, 8192, 8192, 256 + 264), (16383, 50255, 2052, 129 + 66),
]  # fmt: skip


@pytest.mark.parametrize("orders", [(False, False), (True, True), (False, True)])
@pytest.mark.parametrize(("m", "n", "k", "most"), MUCH)
def test_parts_are_whole_rounds_of_tiles_and_take_little_memory(
    program: Path, m: int, n: int, k: int, most: int, orders: tuple[bool, bool]
) -> None:
    (rows, columns, in_parts), parts = ask(program, m, n, k, WIDE.config(m), orders)
    assert in_parts == 0 and (rows == m) is not (columns == n)
    assert 4 * k * (rows + columns) <= most * MIB < 4 * k * (m + n)
    assert rows == m or rows % 256 == 0
    assert columns == n or columns % 128 == 0

    def rounds(m: int, n: int) -> int:
        return -(-(-(-m // 256) * -(-n // 128)) // (SMS // 2))

    assert sum(rounds(*part[:2]) for part in parts) == rounds(m, n)


@pytest.mark.parametrize("orders", [(False, False), (True, True)])
@pytest.mark.parametrize(
    ("m", "n", "k", "sums"),
    [(70000, 514, 512, False), (70000, 2050, 2048, True), (4098, 70000, 2048, True)],
)
def test_each_part_has_its_rows_and_columns(
    program: Path, m: int, n: int, k: int, sums: bool, orders: tuple[bool, bool]
) -> None:
    (rows, columns, _), parts = ask(program, m, n, k, WIDE.config(m), orders, sums=sums)
    row = column = 0
    for part in parts:
        assert part == [
            min(rows, m - row), min(columns, n - column),
            row * (1 if orders[0] else k + 4), column * (1 if orders[1] else k + 4),
            column, row * n + column, column if sums else row * n + column,
            2 * column, 3 * row, row * (n + 5) + column,
        ]  # fmt: skip
        row, column = row + (rows if rows < m else 0), column + (columns if columns < n else 0)
    assert max(row, column) >= 70000 > max(row - rows, column - columns)


def test_what_is_split_before_or_short_is_not_cut(program: Path) -> None:
    config, many, few = WIDE.config(70000), 70000, 512
    whole = ask(program, 1024, 1024, 1024, config)[0]
    assert whole == [1024, 1024, 0]
    for split in ((True, False), (True, True)):
        assert ask(program, many, few, few, config, split=split)[0] == [many, few, 0]
    assert ask(program, many, few, few, config, split=(False, True))[0][0] < many
    assert ask(program, 2048, 8192, 8192, config, split=(False, True))[0] == [2048, 8192, 0]
    assert ask(program, many, few, few, config, sums=True)[0] == [many, few, 0]  # as these do
    for product in ((2048, 8192, 8192), (4096, 14336, 4096), (16384, 50257, 768)):
        assert ask(program, *product, config)[0] == [*product[:2], 0]  # less than 512 MiB
    assert ask(program, few, 70000, 2048, config)[0] == [few, 70000, 0]  # a part takes too long
    segments = WIDE.config(many, 2)
    assert ask(program, many, few, few, segments)[0] == [many, few, 0]


@pytest.mark.parametrize("orders", [(True, True), (False, False)])
@pytest.mark.parametrize("k", [65536, 65537, 70000, 131072])
def test_parts_of_k_take_little_memory(program: Path, k: int, orders: tuple[bool, bool]) -> None:
    """Of their pieces, and of what is known of the rows of each."""
    for segments, parts in ((16, 4), (60, 15)):
        config = NARROW.config(512, segments, parts)
        pieces = 4 * 1024 * (-(-k // 64 // segments) * 64 * (segments // parts))
        (_, _, taken), _ = ask(program, 512, 512, k, config, orders)
        assert pieces <= taken <= pieces + (parts + 1) * 84 * 1024
    assert ask(program, 512, 512, k, NARROW.config(512, 8), orders)[0] == [512, 512, 0]
