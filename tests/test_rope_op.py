"""RoPE behind a Linear: where it is one kernel, its program's text, and what the op takes."""

from __future__ import annotations

import math

import pytest
import torch
from epilogues import CHANCE, error
from graphs import fuse
from small_models import rotate_half, tables
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import Epilogue
from fusepass.ir import DType, Input
from fusepass.ir.heads import Heads
from fusepass.ir.reference import rotated
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan.configs import CONFIGS_WITH_HEADS, Config
from fusepass.kernels.plan.demand import Demand


def text(head: int, more: str = "", wide: str = "") -> str:
    return f"v0 = rot{head} mul(mat1{wide}); mul(mat0{wide}) add(v0){more}"


# --- on a GPU -------------------------------------------------------------------------------------


class Queries(nn.Module):
    """What attention takes of ``heads`` of 64 columns; of ``groups`` as many repeated."""

    def __init__(self, heads: int, repeated: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(512, heads * 64, bias=False, dtype=torch.bfloat16)
        self.repeated = repeated

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q = self.linear(x).view(*x.shape[:-1], -1, 64).transpose(1, 2)
        q = q * cos + rotate_half(q) * sin
        if self.repeated > 1:
            q = q[:, :, None].expand(-1, -1, self.repeated, -1, -1).flatten(1, 2)
        return nn.functional.scaled_dot_product_attention(q, q, q)


@pytest.mark.parametrize(
    ("batch", "rows", "heads", "repeated", "taken"),
    [
        (4, 2048, 8, 1, True),
        (1, 8191, 8, 1, True),  # odd rows of one batch
        (4, 2050, 8, 1, False),  # boxes of 16 rows would lie in two batches
        (4, 2048, 8, 2, False),  # Inductor copies it, and may as well compute it
        (1, 16, 8, 1, False),  # few rows
    ],
)
def test_one_kernel(batch: int, rows: int, heads: int, repeated: int, taken: bool) -> None:
    x = torch.randn(batch, rows, 512, dtype=torch.bfloat16)
    cos, sin = (t.unsqueeze(1).bfloat16() for t in tables(rows, 64))
    torch._dynamo.reset()
    fused = fuse(Queries(heads, repeated), hopper=True)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        fused(x, cos, sin)
    assert [e for e in fused.epilogues if e] == [text(64)] * taken, fused.reasons


def demand(head: int, site: DType = DType.BF16, wide: str = "") -> Demand | str:
    return Demand.of(Epilogue.parse(text(head, wide=wide)), site)


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ("128x192 pingpong cluster1 stages4 group14", {2, 64, 96}),
        ("128x128 pingpong cluster2 stages5 group12", {2, 64, 128}),
        ("128x256 cooperative cluster1 stages3 group16", {2, 64, 128, 256}),
        ("128x160 pingpong cluster1 stages4 group12 swapped", set()),
        ("128x192 cooperative cluster1 stages4 group12 split2", set()),
    ],
)
def test_configurations_with_whole_heads_in_a_thread(config: str, heads: set[int]) -> None:
    found = set()
    for head in (2, 6, 12, 64, 80, 96, 128, 256):
        asked = demand(head)
        assert isinstance(asked, Demand) and asked.traffic == 2
        if plan.why_not(Config.parse(config), asked) is None:
            found.add(head)
    assert found == heads


def test_what_the_kernel_has_not_run() -> None:
    assert isinstance(demand(64, wide=":f32"), str)
    for other in ("rot64 mul(z)", "v0 = rot64 mul(mat1); mul(mat0) add(v0) add(col0)"):
        assert isinstance(Demand.of(Epilogue.parse(other), DType.BF16), str)
    known = demand(64)
    assert isinstance(known, Demand)
    assert plan.choose(64, 2048, 2048, False, known) is None


@pytest.mark.parametrize(
    ("n", "k", "head", "config"),
    [
        (2048, 2048, 64, CONFIGS_WITH_HEADS[0]),
        (512, 2048, 64, CONFIGS_WITH_HEADS[1]),
        (4096, 4096, 128, CONFIGS_WITH_HEADS[0]),
        (1024, 4096, 128, CONFIGS_WITH_HEADS[0]),
        (896, 896, 64, CONFIGS_WITH_HEADS[1]),
        (3584, 3584, 128, CONFIGS_WITH_HEADS[0]),
        (4096, 3072, 256, CONFIGS_WITH_HEADS[2]),
    ],
)
def test_what_was_the_fastest_is_chosen(n: int, k: int, head: int, config: Config) -> None:
    """Of 8192 rows, benchmarks/NOTES.md; all were faster than two kernels."""
    known = demand(head)
    assert isinstance(known, Demand)
    assert plan.choose(8192, n, k, False, known) == config


# --- the program and the op -----------------------------------------------------------------------


def test_the_text_and_its_limits() -> None:
    program = Epilogue.parse(text(64))
    assert str(program) == text(64) and program.heads.columns == 64 and program.num_operands == 2
    assert Input("rot", 64) in program.inputs and Input("rot", 64) not in program.operands
    for wrong in (
        *("rot3", "rot0", "rot64:f32", "rot", "rot64 mul(rot32)", "rot64 mul(z1)"),
        *("rot64of32", "rot2of8", "rot3of8", "first8", "first8of8", "first0of8", "first8of9:f32"),
        "rot8of16 where(first8of32, _, z)",  # heads of two sizes
        "rot8of16",
        "rot16 where(first8of16, _, z)",
        "where(first8of16, _, z) where(first4of16, _, z)",
    ):
        with pytest.raises(ValueError, match="epilogue"):
            Epilogue.parse(wrong)


def test_the_text_of_a_part_of_a_head() -> None:
    text = "v0 = rot8of20 mul(mat1); mul(mat0) add(v0) where(first8of20, _, z)"
    program = Epilogue.parse(text)
    assert str(program) == text and program.heads == Heads(20, 8, 8) and program.num_operands == 2
    assert Epilogue.parse("rot2 where(first6of14, _, z)").heads == Heads(14, 2, 6)
    assert Epilogue.parse("neg where(first6of14, _, z)").heads == Heads(14, 0, 6)


@pytest.mark.parametrize(
    ("text", "are"),
    [
        ("rot2", True),
        ("rot64", True),
        ("rot4of8 where(first4of8, _, z)", True),
        ("rot6of8 where(first6of8, _, z)", False),  # of halves of 3
        ("rot4of12 where(first4of12, _, z)", False),
        ("rot2 where(first5of8, _, z)", False),
    ],
)
def test_what_a_thread_and_those_beside_it_exchange(text: str, are: bool) -> None:
    assert Epilogue.parse(text).heads.are_pairs == are


def test_the_reference_exchanges_halves() -> None:
    z = torch.arange(8.0)
    assert rotated(z, 4).tolist() == [-2, -3, 0, 1, -6, -7, 4, 5]
    assert rotated(z, 2).tolist() == [-1, 0, -3, 2, -5, 4, -7, 6]
    assert torch.equal(Epilogue.parse("rot8").reference(z), torch.cat([-z[4:], z[:4]]))
    assert rotated(z, 4, 8).tolist() == [-2, -3, 0, 1, 4, 5, 6, 7]
    told = Epilogue.parse("neg where(first1of4, _, z)").reference(z)
    assert isinstance(told, Tensor) and told.tolist() == [0, 1, 2, 3, -4, 5, 6, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_op(dtype: torch.dtype) -> None:
    """Tables of a head, expanded or not, or of all columns; the second result is z."""
    x, w = torch.randn(2, 5, 24).to(dtype), torch.randn(32, 24).to(dtype)
    cos, sin = torch.randn(1, 5, 8).expand(2, -1, -1).to(dtype), torch.randn(2, 5, 32).to(dtype)
    out, z = torch.ops.fusepass.gemm(x, [w], [None], f"{text(8)}, z", [cos, sin])
    exact = x.double() @ w.double().t()
    wanted = exact * cos.double().repeat(1, 1, 4) + rotated(exact, 8) * sin.double()
    eager = nn.functional.linear(x, w)
    usual = eager * cos.repeat(1, 1, 4) + rotated(eager, 8) * sin
    assert out.is_contiguous() and torch.equal(z, eager)
    assert error(out, wanted) <= error(usual, wanted) + CHANCE[dtype]


@pytest.mark.parametrize("table", [4, 8, 24, 48])
@pytest.mark.parametrize("rot", ["rot4of8", "rot2"])
def test_the_op_of_a_part_of_each_head(rot: str, table: int) -> None:
    """Tables of a part that is repeated in a head, of one head, and of several; the columns behind
    it are the product's, whatever those are that they would be exchanged with."""
    x, w = torch.randn(2, 5, 24, dtype=torch.float64), torch.randn(48, 24, dtype=torch.float64)
    x[0, 3, 2] = math.inf
    cos, sin = torch.randn(2, 2, 5, table, dtype=torch.float64)
    sin[1, 2, 1] = math.nan
    text = f"v0 = {rot} mul(mat1); mul(mat0) add(v0) where(first4of8, _, z)"
    (out,) = torch.ops.fusepass.gemm(x, [w], [None], text, [cos, sin])
    z = (x @ w.t()).unflatten(-1, (6, 8))
    cos, sin = (t.repeat(1, 1, 48 // table).unflatten(-1, (6, 8))[..., :4] for t in (cos, sin))
    part = z[..., :4]
    pairs = torch.stack((-part[..., 1::2], part[..., ::2]), -1).flatten(-2)
    turned = part * cos + (pairs if rot == "rot2" else rotate_half(part)) * sin
    wanted = torch.cat([turned, z[..., 4:]], -1).flatten(-2)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12, equal_nan=True)


def test_arguments_that_do_not_fit() -> None:
    x, w, good = torch.randn(5, 24), torch.randn(32, 24), torch.randn(5, 8)
    for bad, what in ((good[:, :5], r"mat1 must be \[5, 32\]"), (good[:4], "mat1 must be")):
        with pytest.raises(ValueError, match=what):
            torch.ops.fusepass.gemm(x, [w], [None], text(8), [good, bad])
    with pytest.raises(ValueError, match="heads of 12 columns; N is 32"):
        torch.ops.fusepass.gemm(x, [w], [None], text(12), [good, good])
    with pytest.raises(ValueError, match="mat0 must be"):
        torch.ops.fusepass.gemm(x, [w], [None], "mul(mat0)", [good])
    torn = torch.randn(5, 12)  # of heads of 8
    with pytest.raises(ValueError, match="mat0 must be"):
        torch.ops.fusepass.gemm(x, [torch.randn(24, 24)], [None], text(8), [torn, torn])
