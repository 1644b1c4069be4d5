"""No rewrite changes what a random program computes.

``--fuzz N`` runs N programs instead of a few hundred, ``--fuzz-seed`` others.
"""

from __future__ import annotations

import pytest

from .__main__ import case, outcome, shortened

_GROUP = 25  # programs of one test: to be shared among workers, and to name those that failed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    count, first = (metafunc.config.getoption(o) for o in ("--fuzz", "--fuzz-seed"))
    metafunc.parametrize("first", range(first, first + count, _GROUP))


def test_the_rewritten_program_computes_the_same(first: int) -> None:
    sites, failed = 0, []
    for seed in range(first, first + _GROUP):
        found = outcome(seed)
        sites += found.sites
        if found.problem is not None:
            _, dtype, numerics, grads = case(seed)
            failed.append(f"{seed}, {dtype}, {numerics}, {grads=}: {found.problem}")
            failed.append(shortened(seed).source)
    assert not failed, "\n".join(failed)
    assert sites > 0
