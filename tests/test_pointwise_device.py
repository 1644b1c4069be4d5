"""The pointwise kernels, run on the host: strides, tails, every dtype, several outputs, sums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from epilogues import error
from gemm_cases import CASES, LAYOUTS, Case, operands
from pointwise_device import HostPointwise

from fusepass.ir import Z1, DType
from fusepass.ir.outputs import computed

DTYPES = (DType.F32, DType.BF16, DType.F16, DType.F64)
COMPUTED = [c for c in CASES if computed(c.epilogue) is not None]
# Vectors fit, or do not; a part of a warp; more than one, and one that has few columns of the last.
SHAPES = (((2, 3, 3), 131), ((5,), 16), ((3, 4), 264), ((1,), 1), ((9,), 8))


@pytest.mark.sampled(5)  # each is compiled; every dtype is among them
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(c, DTYPES[i % 4]) for i, c in enumerate(COMPUTED)] + [(COMPUTED[-1], d) for d in DTYPES],
    ids=lambda v: v.text if isinstance(v, Case) else v.value,
)
def test_kernels_on_the_host(case: Case, dtype: DType, host_compiler: str, tmp_path: Path) -> None:
    rest = computed(case.epilogue)
    assert rest is not None
    kernel, site = HostPointwise(host_compiler, tmp_path, rest, dtype), dtype.in_torch
    layouts = ("contiguous", "expanded", *LAYOUTS)
    for i, (leading, n) in enumerate(SHAPES):
        for layout in ("contiguous", "expanded", layouts[2 + i % len(LAYOUTS)]):
            z, z1 = (torch.randn(*leading, n).to(site) for _ in range(2))
            given = operands(rest, leading, n, site, layout)
            got = kernel(z, z1, given, rows=(1, 2, 3)[i % 3])
            wide = [t.double() if t.is_floating_point() else t for t in given]
            second = z1.double() if Z1 in rest.inputs else None
            exact = rest.reference(z.double(), *wide, z1=second)
            for g, e in zip(got, exact if isinstance(exact, tuple) else [exact], strict=True):
                what = f"{leading} {n} {layout}"
                if g.dtype == torch.bool:
                    assert torch.equal(g, e.bool()), what
                    continue
                within = torch.finfo(torch.float64 if site == g.dtype == torch.float64 else g.dtype)
                room = max(within.eps, 0.0 if dtype is DType.F64 else 2.0**-22)
                assert error(g, e) <= 2 * room, what
                assert bool(g.isfinite().all()), what
