"""Every product of a forward is a site or a miss, and a miss names what the author wrote."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import Model, fuse
from torch import Tensor

GATE, VECTOR, ROW = torch.randn(6, 40), torch.randn(40), torch.randn(6, 1)
COS, SIN = torch.randn(6, 10), torch.randn(6, 10)
WIDER = "takes a tensor of float64, wider than what is computed in"
OWN = "takes a tensor that is computed from the result itself"
PART = "takes a part of the Linear's result, a fused op all of it"
LATER = "takes the result of a later product, which may take this one's"
MANY = "reads many elements of the result, an epilogue one at a time"
NOTHING = "nothing to fuse: its result "


def rms_norm(z: Tensor) -> Tensor:
    return VECTOR * (z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate_half(z: Tensor) -> Tensor:
    heads = z.view(6, 2, 20)
    rotated = torch.cat((-heads[..., 10:], heads[..., :10]), -1)
    cos, sin = torch.cat((COS, COS), -1)[:, None], torch.cat((SIN, SIN), -1)[:, None]
    return heads * cos + rotated * sin


def rotate_pairs(z: Tensor) -> Tensor:
    even, odd = z.view(6, 2, 10, 2).unbind(-1)
    cos, sin = COS[:, None], SIN[:, None]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(1)


def rotate_complex(z: Tensor) -> Tensor:
    turned = torch.view_as_complex(z.view(6, 2, 10, 2)) * torch.polar(COS, SIN)[:, None]
    return torch.view_as_real(turned).flatten(1)


# tail -> the reason of the only miss
WORDS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "returned": (lambda z: z, NOTHING + "is returned"),
    "parts returned": (lambda z: z.chunk(2, -1), NOTHING + "is returned"),
    "a part scaled": (
        lambda z: z.view(6, 2, 20)[:, 0] * 0.125, NOTHING + "goes in parts into `mul`"
    ),
    "summed": (lambda z: z.sum(-1), NOTHING + "goes into `sum`"),
    "joined": (lambda z: torch.cat((z, GATE)), NOTHING + "is joined with other tensors"),
    "attention": (
        lambda z: (lambda q: F.scaled_dot_product_attention(q, q, q))(z.view(1, 2, 6, 20)),
        NOTHING + "goes into attention",
    ),
    "a convolution": (
        lambda z: F.conv1d(z[None], torch.ones(2, 6, 3)), NOTHING + "goes into a convolution"
    ),
    "residual": (lambda z: z + GATE.double(), f"a residual added: `add` {WIDER}"),
    "residual of something": (
        lambda z: z + torch.tanh(GATE.double()) * VECTOR, f"a residual added: `add` {WIDER}"
    ),
    "residual in front": (lambda z: GATE.double() - z, f"a residual added: `sub` {WIDER}"),
    "positions": (
        lambda z: z.view(3, 2, 40) + GATE[:2].double(), f"a broadcast tensor added: `add` {WIDER}"
    ),
    "layer scale": (
        lambda z: GATE + VECTOR.double() * z, f"a layer scale (a vector): `mul` {WIDER}"
    ),
    "a factor a row": (lambda z: z * ROW.double(), f"a factor a row: `mul` {WIDER}"),
    "masked": (lambda z: z.masked_fill(z.mean(0) > 0, 0.0), f"a mask: `masked_fill` {OWN}"),
    "elementwise": (lambda z: z * GATE.int(), "`mul` takes a tensor of int32"),
    "elementwise, of a part": (lambda z: z[:, :20] * GATE[:, :20], f"`mul` {PART}"),
    "half a gate": (
        lambda z: z[:, :20] * z[:, 20:],
        "a gate (another part of the Linear's result): `mul` " + PART,
    ),
    "softmax": (lambda z: torch.softmax(z, -1), f"softmax {MANY}"),
    "log_softmax": (lambda z: F.log_softmax(z, -1), f"log_softmax {MANY}"),
    "loss": (lambda z: F.cross_entropy(z, torch.zeros(6, dtype=torch.long)), f"log_softmax {MANY}"),
    "LayerNorm": (lambda z: F.layer_norm(z, (40,)), f"LayerNorm {MANY}"),
    "LayerNorm of a wider dtype": (
        lambda z: F.layer_norm(z.double(), (40,)).float(), f"LayerNorm {MANY}"
    ),
    "LayerNorm by hand": (
        lambda z: (z - z.mean(-1, keepdim=True)) / z.std(-1, keepdim=True),
        f"LayerNorm, spelled out, {MANY}",
    ),
    "GroupNorm": (lambda z: F.group_norm(z, 4), f"GroupNorm {MANY}"),
    "BatchNorm": (lambda z: F.batch_norm(z, None, None, training=True), f"BatchNorm {MANY}"),
    "RMSNorm": (lambda z: F.rms_norm(z, (40,)), f"RMSNorm {MANY}"),
    "RMSNorm by hand": (rms_norm, f"RMSNorm {MANY}"),
    "no operation of the table": (lambda z: z.atan(), "`atan` is not a stage fusepass knows"),
    "an operation beside a norm": (
        lambda z: (rms_norm(z), z.atan()), "`atan` is not a stage fusepass knows"
    ),
    "RMSNorm of a wider dtype": (lambda z: rms_norm(z.double()), f"RMSNorm {MANY}"),
    "a unit row": (lambda z: F.normalize(z, dim=-1), f"a norm of the values {MANY}"),
    "a unit row by hand": (
        lambda z: z / z.pow(2).sum(-1, keepdim=True).sqrt(), f"a norm of the values {MANY}"
    ),
    "RoPE, halves": (rotate_half, "on the CPU RoPE (rotary embedding) is Inductor's"),
    "RoPE, pairs": (rotate_pairs, f"RoPE (rotary embedding) {MANY}"),
    "RoPE, complex": (rotate_complex, f"RoPE (rotary embedding) {MANY}"),
    "times one": (lambda z: z / 1.0, "nothing to fuse: a factor of 1 changes nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_a_miss_names_what_the_author_wrote(name: str) -> None:
    tail, reason = WORDS[name]
    model = Model(tail)
    with torch.no_grad():
        fused = fuse(model)
        fused(torch.randn(6, 24))
    assert fused.epilogues == [] and fused.reasons == [reason]
    (miss,) = fused.report.misses
    assert miss.module == "linear" and miss.source is not None and miss.kind == "linear"
    assert miss.flops == 2 * 6 * 24 * 40 and miss.shape == "float32 [6, 24] x [24, 40]"


# tail -> (epilogue, what follows)
FOLLOWS: dict[str, tuple[Callable[[Tensor], object], str, str | None]] = {
    "nothing": (lambda z: z * 2, "mul(2.0)", None),
    "a factor of one": (lambda z: F.gelu(z * 1.0) / 1, "gelu", None),
    "no operation of the table": (
        lambda z: torch.atan(z * 2), "mul(2.0)", "`atan` is not a stage fusepass knows"
    ),
    "RMSNorm": (lambda z: rms_norm(F.relu(z)), "clamp(0.0, inf)", f"RMSNorm {MANY}"),
    "residual": (
        lambda z: GATE.double() + z * 0.5, "mul(0.5)", f"a residual added: `add` {WIDER}"
    ),
    "the next Linear": (lambda z: F.relu(z) @ torch.ones(40, 5), "clamp(0.0, inf)", None),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWS)
def test_a_site_says_what_follows_and_was_not_taken(name: str) -> None:
    tail, epilogue, follows = FOLLOWS[name]
    with torch.no_grad():
        fused = fuse(Model(tail))
        fused(torch.randn(6, 24))
    site = fused.report.sites[0]
    assert (site.epilogue, site.follows) == (epilogue, follows)
    assert site.flops == 2 * 6 * 24 * 40 and site.kind == "linear"
