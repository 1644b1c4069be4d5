"""No warp waits for a chunk of operands that it has not asked for, in gemm_sm90_finish.cuh's order.

Loads, stores and waits of a tile are all of one thread's program, so that whatever waits for a load
that comes later in it waits for ever. This plays the program through, unit by unit.
"""

from __future__ import annotations

import itertools

import pytest

from fusepass.kernels.plan.configs import _LEAST_LOADED

PARTS = 3


def first_wait_in_vain(
    units: int, slots: int, chunks: int, first_read: int, put: int
) -> tuple[int, int] | None:
    """(tile, chunk) that is waited for before it was asked for, in three tiles; None if none is.

    Args:
        units: of 8 columns in a chunk.
        slots: through which chunks go.
        chunks: of a tile.
        first_read: the part of the epilogue that reads a matrix first.
        put: the part behind which the last output is put on its way.
    """
    lag = 1 if slots > 2 else 0
    loaded = {(0, c) for c in range(slots)}  # before the first tile's products
    total = chunks * units

    def load_again(tile: int, chunk: int) -> None:
        same = chunk + slots < chunks
        loaded.add((tile, chunk + slots) if same else (tile + 1, chunk % slots))

    for tile in range(3):
        for tick in range(-1, total + PARTS):
            asked = tick - first_read + 1
            if 0 <= asked < total and asked % units == 0 and (tile, asked // units) not in loaded:
                return tile, asked // units
            done = tick - 1 - put
            if done >= 0 and done % units == units - 1 and done // units - lag >= 0:
                load_again(tile, done // units - lag)
        if lag:
            load_again(tile, chunks - 1)
    return None


@pytest.mark.parametrize("units", range(_LEAST_LOADED, 14))
def test_what_is_waited_for_has_been_asked_for(units: int) -> None:
    for chunks, first_read, put in itertools.product(range(1, 9), range(PARTS), range(PARTS)):
        for slots in range(2, max(3, chunks + 1)):
            if slots <= chunks or slots == 2:
                assert first_wait_in_vain(units, slots, chunks, first_read, put) is None


def test_chunks_of_three_units_would_be_waited_for_in_vain() -> None:
    assert first_wait_in_vain(3, 2, 8, 0, 2) == (0, 2)
    assert first_wait_in_vain(3, 3, 8, 0, 2) is not None
