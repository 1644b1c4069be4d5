"""The configurations of the 16-bit GEMM on Hopper that the plan chooses among."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from .demand import Demand

SHARED_LIMIT = 232448  # bytes of a block on Hopper
# Of transposed chunks, each of which is a barrier: as many units as a line has, or less, or more.
_CHUNKS_SWAPPED = (8, 7, 6, 5, 4, 3, 13, 12, 11, 10, 9, 2)
_CHUNKS = (8, 13, 11, 9, 7, 5, 3, 4)
_LEAST_LOADED = 4  # units of a chunk of operands


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

    def finished(self, demand: Demand) -> tuple[int, int]:
        """Rows of a consumer, and columns of a tile, that are finished; swapped, transposed."""
        halves_m, halves_n = demand.gated and self.swapped, demand.gated and not self.swapped
        return 64 * self.blocks // (1 + halves_m), self.tile_n // self.split // (1 + halves_n)

    @lru_cache(maxsize=4096)  # noqa: B019 (a frozen value, of which there are some dozens)
    def chunk_units(self, demand: Demand) -> int:
        """Units of 8 columns of the tile that are staged at a time; 0 if there is no such kernel.

        As gemm_sm90_geometry.h says.
        """
        units = self.finished(demand)[1] // 8
        order = _CHUNKS_SWAPPED if self.swapped else _CHUNKS
        whole = (d for d in order if units % d == 0 and d >= (_LEAST_LOADED if demand.mats else 2))
        aligned = (d for d in whole if self._is_aligned(demand, d))
        least = 2 if self.swapped or demand.mats else 1
        fits = (d for d in aligned if self._bytes(demand, d, least) <= SHARED_LIMIT)
        return next(fits, 0)

    def _is_aligned(self, demand: Demand, units: int) -> bool:
        """Whether what lies in shared memory behind a matrix of bool begins where it may."""
        if 1 not in demand.mats:
            return True
        return units * demand.slot_bytes % 256 == 0 if self.swapped else units == 8

    @lru_cache(maxsize=4096)  # noqa: B019
    def slots(self, demand: Demand) -> tuple[int, int]:
        """Slots through which a tile's chunks go, and the chunks, as gemm_sm90_geometry.h says."""
        units = self.chunk_units(demand)
        rows, columns = self.finished(demand)
        chunks = rows // 64 * (columns // 8 // units)
        slots = 2 if self.swapped or demand.mats else 1
        enough = chunks if demand.mats else 1024 // demand.slot_bytes
        while slots < enough and self._bytes(demand, units, slots + 1) <= SHARED_LIMIT:
            slots += 1
        return slots, chunks

    def shared_bytes(self, demand: Demand) -> int:
        """Shared memory of a CTA."""
        return self._bytes(demand, self.chunk_units(demand), self.slots(demand)[0])

    def _bytes(self, demand: Demand, units: int, slots: int) -> int:
        """Shared memory of a CTA with so many slots of such chunks."""
        ring = self.stages * (128 * (self.tile_m + self.tile_n) + 16)
        staged = 4 * self.consumers * slots * units * demand.slot_bytes
        across, along = self.finished(demand)
        columns, rows = (across, along) if self.swapped else (along, across)
        bias = 2 * (64 * self.blocks if self.swapped else self.tile_n)
        vectors = demand.col_bytes * columns + demand.row_bytes * rows
        barriers = 8 * self.consumers * (1 if self.swapped else 4) * slots if demand.mats else 0
        return ring + staged + self.consumers * (bias + vectors) + barriers

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
    Config(128, 160, 5, 2, True, 12),
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

# The same for programs that read matrices, which share the room with the ring: those that have been
# run with them, but for three consumers and for 128x208, which have no registers for it, and for
# four stages of 128x256, which three stages and more slots are ahead of.
CONFIGS_WITH_MATRICES = (
    Config(128, 192, 4, 1, True, 14),
    Config(128, 192, 4, 2, True, 14),
    Config(128, 192, 4, 2, True, 12, swapped=True),
    Config(192, 128, 4, 2, True, 12, swapped=True, beside=True),
    Config(128, 168, 4, 1, True, 12),
    Config(128, 160, 4, 1, True, 12, swapped=True),
    Config(128, 160, 5, 2, True, 12, swapped=True),
    Config(128, 160, 5, 2, True, 12, swapped=True, beside=True),
    Config(128, 144, 5, 1, True, 12, swapped=True),
    Config(128, 144, 5, 2, True, 12, swapped=True),
    Config(128, 128, 5, 2, True, 12),
    Config(64, 128, 8, 1, True, 8),
    Config(128, 256, 3, 2, False, 16),
    Config(128, 256, 3, 1, False, 16),
    Config(128, 256, 3, 1, False, 16, swapped=True),
    Config(256, 144, 3, 1, False, 12, swapped=True),
    Config(128, 192, 4, 1, False, 12, split=2),
)

# Of these, those that have been run with two matrices.
CONFIGS_WITH_TWO_MATRICES = (
    Config(128, 192, 4, 1, True, 14),
    Config(128, 192, 4, 2, True, 14),
    Config(128, 192, 4, 2, True, 12, swapped=True),
    Config(128, 160, 4, 1, True, 12, swapped=True),
    Config(128, 160, 5, 2, True, 12, swapped=True),
    Config(128, 144, 5, 2, True, 12, swapped=True),
    Config(128, 128, 5, 2, True, 12),
    Config(128, 256, 3, 2, False, 16),
    Config(128, 256, 3, 1, False, 16),
)

# And those with whole heads of columns in a thread: of tiles of 192, and of 64 rows, none was as
# fast (benchmarks/NOTES.md); of 256 columns only the last two hold a head.
CONFIGS_WITH_HEADS = (
    Config(128, 128, 5, 2, True, 12),
    Config(128, 128, 5, 1, True, 12),
    Config(128, 256, 3, 2, False, 16),
    Config(128, 256, 3, 1, False, 16),
)

# Of heads that these tiles do not hold, of 80 and of 96 columns for two.
CONFIGS_WITH_OTHER_HEADS = (
    Config(128, 192, 4, 1, True, 14),
    Config(128, 192, 4, 2, True, 14),
    Config(128, 160, 4, 1, True, 12),
    Config(128, 160, 4, 2, True, 12),
)


def configs_for(demand: Demand) -> tuple[Config, ...]:
    """The configurations that there are for a program."""
    if demand.head:
        return CONFIGS_WITH_OTHER_HEADS if 256 % demand.head else CONFIGS_WITH_HEADS
    if len(demand.mats) > 1:
        return CONFIGS_WITH_TWO_MATRICES
    return CONFIGS_WITH_MATRICES if demand.mats else CONFIGS
