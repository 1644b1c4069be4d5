"""What the backward of a norm is left with, on a GPU: a site moves no more than Inductor would.

Sizes are those of a model, of fake tensors; the decisions are an H200's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from graphs import fuse
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.testing._internal.common_utils import set_default_dtype

WIDTH, HIDDEN, ROWS = 1024, 4096, 16384
GELU = "v0 = mat0 gelu_derivative mul(z); v0, v0 col_sum"


def handwritten_tanh_gelu(z: Tensor) -> Tensor:
    return 0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * torch.pow(z, 3.0))))


class PreNorm(nn.Module):
    """A residual around norm, Linear, ``act``, Linear."""

    def __init__(self, norm: Callable[[int], nn.Module], act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.act = norm(WIDTH), act
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class PostNorm(PreNorm):
    """The norm behind the sum, as BERT has it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(self.act(self.up(x))))


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str)
def dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of all that is made."""
    with set_default_dtype(request.param):
        yield


def backward_sites(make: Callable[[], nn.Module]) -> list[str]:
    """The epilogues of the backward of two models, one after the other."""
    fused = fuse(nn.Sequential(make(), make()), hopper=True)
    fused(torch.randn(ROWS // 512, 512, WIDTH, requires_grad=True)).sum().backward()
    return [site.epilogue for site in fused.report.sites if site.backward]


@pytest.mark.usefixtures("fake", "dtype")
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norms_gradient_is_left_to_the_kernels_that_sum_its_rows(
    norm: Callable[[int], nn.Module],
) -> None:
    """The normalized input would be written for the epilogue alone to read, and z all the same."""
    found = backward_sites(lambda: PreNorm(norm, F.gelu))
    assert set(found) <= {"", GELU}
    assert GELU in found


@pytest.mark.usefixtures("fake", "dtype")
@pytest.mark.parametrize("dtype", [torch.bfloat16], indirect=True)
def test_a_sum_in_front_of_a_norms_gradient_is_written_as_narrow_as_it_is() -> None:
    """The norm computes in float32; what it widens is read, half as many bytes, in bfloat16. One of
    its two column sums spares no kernel that reads for both."""
    found = backward_sites(lambda: PostNorm(nn.LayerNorm, F.gelu))
    assert "add(mat0)" in found and not any("f32" in epilogue for epilogue in found)


@pytest.mark.usefixtures("fake", "dtype")
@pytest.mark.parametrize("dtype", [torch.bfloat16], indirect=True)
def test_tanh_gelu_written_by_hand_is_computed_again_of_its_input() -> None:
    """Its backward reads the tanh under two names; saving that, too, would cost a second matrix."""
    found = backward_sites(lambda: PreNorm(nn.LayerNorm, handwritten_tanh_gelu))
    (site,) = {epilogue for epilogue in found if "tanh" in epilogue}
    assert site == "v0 = gelu_tanh_gradient(mat0, _); v0, v0 col_sum"


@pytest.mark.usefixtures("fake", "dtype")
@pytest.mark.parametrize("dtype", [torch.bfloat16], indirect=True)
def test_a_factor_of_the_gradient_is_the_derivative() -> None:
    """torch's own gradient of tanh GELU sums before it multiplies."""
    found = backward_sites(lambda: PreNorm(nn.LayerNorm, lambda z: F.gelu(z, approximate="tanh")))
    assert "v0 = mat0 gelu_tanh_derivative mul(z); v0, v0 col_sum" in found
