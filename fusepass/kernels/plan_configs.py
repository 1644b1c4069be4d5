"""The configurations of the 16-bit GEMM on Hopper that the plan chooses among."""

from __future__ import annotations

import re
from dataclasses import dataclass


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

    def __str__(self) -> str:
        schedule = "pingpong" if self.pingpong else "cooperative"
        options = [
            *["swapped"] * self.swapped,
            *["beside"] * self.beside,
            *[f"split{self.split}"] * (self.split > 1),
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
        return 3 if not self.pingpong and self.tile_m == 192 else 2

    @property
    def chunk_units(self) -> int:
        """Units of 8 columns of the tile that are staged at a time: gemm_sm90_geometry.h."""
        units = self.tile_n // self.split // 8
        if units % 8 == 0:
            return 8
        some = range(3, 8) if self.swapped else range(3, 14, 2)
        whole = [d for d in some if units % d == 0]
        return max(whole, default=2 if self.swapped else 4 if units % 4 == 0 else 1)

    @property
    def chunks(self) -> int:
        """Chunks of a consumer's share of a tile."""
        blocks = self.tile_m // 64 // (1 if self.pingpong else self.consumers)
        return blocks * (self.tile_n // self.split // 8) // self.chunk_units

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
        )


# Shared memory holds the ring of stages and the staged output; ping-pong tiles are small enough
# that two epilogues' registers fit.
CONFIGS = (
    Config(128, 192, 4, 1, True, 14),
    Config(128, 192, 4, 2, True, 14),
    Config(128, 192, 4, 2, True, 12, swapped=True),
    Config(128, 208, 5, 2, True, 12, swapped=True),
    Config(128, 168, 5, 1, True, 12),
    Config(128, 160, 5, 1, True, 12),
    Config(128, 160, 5, 2, True, 12),
    Config(128, 160, 5, 1, True, 12, swapped=True),
    Config(128, 160, 5, 2, True, 12, swapped=True),
    Config(128, 160, 5, 2, True, 12, swapped=True, beside=True),
    Config(192, 128, 4, 2, True, 12, beside=True),
    Config(192, 128, 4, 2, True, 12, swapped=True, beside=True),
    Config(128, 144, 5, 1, True, 12),
    Config(128, 128, 6, 1, True, 12),
    Config(128, 128, 6, 2, True, 12),
    Config(128, 112, 6, 1, True, 12),
    Config(64, 256, 4, 1, True, 8),
    Config(64, 128, 8, 1, True, 8),
    Config(64, 128, 8, 2, True, 8),
    Config(64, 96, 8, 1, True, 8),
    Config(64, 80, 8, 1, True, 8),
    Config(64, 64, 8, 1, True, 8),
    Config(64, 48, 8, 1, True, 8),
    Config(64, 40, 8, 1, True, 8),
    Config(256, 128, 4, 1, False, 16),
    Config(256, 128, 4, 2, False, 16),
    Config(192, 128, 4, 2, False, 12),
    Config(128, 256, 4, 1, False, 16),
    Config(128, 256, 4, 2, False, 16),
    Config(128, 224, 4, 1, False, 12),
    Config(128, 192, 4, 1, False, 12),
    Config(128, 128, 6, 1, False, 10),
    Config(128, 128, 6, 2, False, 10),
    Config(128, 104, 6, 1, False, 12),
    Config(128, 64, 8, 1, False, 8),
    # K split over a cluster, for weight gradients.
    Config(192, 192, 4, 1, False, 12, split=2),
    Config(128, 128, 6, 1, False, 12, split=2),
    Config(128, 192, 5, 1, False, 12, split=4),
)
