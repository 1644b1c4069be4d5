"""The configurations of the 16-bit GEMM on Hopper that the plan chooses among."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

SHARED_LIMIT = 232448  # bytes of a block on Hopper
# Of transposed chunks, each of which is a barrier: as many units as a line has, or less, or more.
_CHUNKS = (8, 7, 6, 5, 4, 3, 13, 12, 11, 10, 9, 2)


@dataclass(frozen=True)
class Config:
    """One build of gemm_sm90.cu; ``str()`` is the text form of gemm_sm90_launch.h."""

    tile_m: int  # of the output; of its transpose if `swapped`
    tile_n: int
    stages: int
    cluster: int  # CTAs below one another, or `beside`, that share an operand
    pingpong: bool
    group: int
    swapped: bool = False
    beside: bool = False
    split: int = 1
    turns: int = 2  # consumers that take turns (ping-pong)

    def __str__(self) -> str:
        schedule = "pingpong" if self.pingpong else "cooperative"
        options = [
            *["swapped"] * self.swapped,
            *["beside"] * self.beside,
            *[f"split{self.split}"] * (self.split > 1),
            *[f"consumers{self.turns}"] * (self.turns != 2),
        ]
        return " ".join(
            [
                f"{self.tile_m}x{self.tile_n} {schedule} cluster{self.cluster}",
                f"stages{self.stages} group{self.group}",
                *options,
            ]
        )

    @property
    def consumers(self) -> int:
        """Warpgroups that multiply, as gemm_sm90_geometry.h says."""
        if self.pingpong:
            return self.turns
        return 3 if self.tile_m == 192 else 2

    @property
    def blocks(self) -> int:
        """Blocks of 64 rows of a tile that one consumer has."""
        return self.tile_m // 64 // (1 if self.pingpong else self.consumers)

    @lru_cache(maxsize=1024)  # noqa: B019 (a frozen value, of which there are some dozens)
    def chunk_units(self, with_preact: bool) -> int:
        """Units of 8 columns of the tile that are staged at a time; 0 if there is no such kernel.

        As gemm_sm90_geometry.h says.
        """
        units = self.tile_n // self.split // 8
        if self.swapped:
            fitting = (d for d in _CHUNKS if units % d == 0 and self._holds(d, with_preact))
            return next(fitting, 0)
        odd = [d for d in range(3, 14, 2) if units % d == 0]
        return 8 if units % 8 == 0 else max(odd, default=4 if units % 4 == 0 else 1)

    def _holds(self, units: int, with_preact: bool) -> bool:
        """Whether shared memory holds as many buffers of such chunks as swapped operands need."""
        ring = self.stages * (128 * (self.tile_m + self.tile_n) + 16)
        buffers = self.consumers * 1024 * units * (3 if with_preact else 2)
        return ring + buffers + self.consumers * self.blocks * 128 <= SHARED_LIMIT

    @staticmethod
    def parse(text: str) -> Config:
        """Reads the text form; ``Config.parse(str(c)) == c``."""
        tile, schedule, *words = text.split()
        numbers = {w.rstrip("0123456789"): int(re.sub(r"\D", "", w) or 1) for w in words}
        m, n = map(int, tile.split("x"))
        return Config(
            m,
            n,
            numbers["stages"],
            numbers["cluster"],
            schedule == "pingpong",
            numbers["group"],
            "swapped" in numbers,
            "beside" in numbers,
            numbers.get("split", 1),
            numbers.get("consumers", 2),
        )


# Shared memory holds the ring of stages and the staged output; ping-pong tiles are small enough
# that two epilogues' registers fit, or three's.
CONFIGS = (
    Config(128, 192, 4, 1, True, 14),
    Config(128, 192, 4, 2, True, 14),
    Config(128, 192, 4, 2, True, 12, swapped=True),
    Config(128, 192, 5, 1, True, 12, swapped=True),
    Config(128, 192, 5, 2, True, 12, swapped=True),
    Config(192, 128, 4, 2, True, 12, swapped=True, beside=True),
    Config(128, 208, 4, 1, True, 12, swapped=True),
    Config(128, 208, 4, 2, True, 12, swapped=True),
    Config(128, 168, 5, 1, True, 12),
    Config(128, 160, 5, 1, True, 12, swapped=True),
    Config(128, 160, 5, 2, True, 12, swapped=True),
    Config(128, 160, 5, 2, True, 12, swapped=True, beside=True),
    Config(128, 144, 6, 1, True, 12, swapped=True),
    Config(128, 144, 6, 2, True, 12, swapped=True),
    Config(128, 128, 6, 1, True, 12),
    Config(128, 128, 6, 2, True, 12),
    Config(128, 112, 6, 1, True, 12, swapped=True),
    Config(64, 160, 7, 1, True, 12, swapped=True),
    Config(64, 128, 8, 1, True, 8),
    Config(64, 128, 8, 2, True, 8),
    Config(64, 128, 8, 1, True, 12, swapped=True),
    Config(64, 96, 8, 1, True, 8),
    Config(64, 80, 8, 1, True, 8),
    Config(64, 64, 8, 1, True, 8),
    Config(64, 64, 8, 1, True, 12, swapped=True),
    Config(64, 48, 8, 1, True, 8),
    Config(64, 40, 8, 1, True, 8),
    # A third consumer fills what an epilogue longer than the products leaves idle.
    Config(128, 128, 5, 1, True, 12, turns=3),
    Config(128, 128, 5, 2, True, 12, turns=3),
    Config(128, 128, 6, 2, True, 12, swapped=True, turns=3),
    Config(128, 256, 4, 1, False, 16),
    Config(128, 256, 4, 2, False, 16),
    # For one round of tiles, which both consumers finish.
    Config(256, 200, 3, 2, False, 12, swapped=True, beside=True),
    Config(256, 144, 4, 1, False, 12, swapped=True),
    Config(256, 96, 4, 1, False, 12, swapped=True),
    Config(128, 224, 4, 1, False, 12),
    Config(128, 224, 4, 2, False, 12, swapped=True),
    Config(128, 192, 5, 1, False, 12, swapped=True),
    Config(128, 192, 5, 2, False, 12, swapped=True),
    Config(128, 128, 6, 1, False, 10),
    Config(128, 128, 6, 2, False, 10),
    Config(128, 104, 6, 1, False, 12),
    Config(128, 64, 8, 1, False, 8),
    # K split over a cluster, for weight gradients.
    Config(192, 192, 4, 1, False, 12, split=2),
    Config(128, 192, 5, 1, False, 12, split=2),
    Config(128, 192, 5, 1, False, 12, split=4),
    Config(128, 128, 6, 1, False, 12, split=2),
)
