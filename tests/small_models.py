"""Small models, and how the tests of training, inference and composition compile them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.nn import functional as F

from fusepass.examples.gemm_scaling_hardtanh_gelu import Model

# A warm cache does not run the pass, and then there is nothing to count.
UNCACHED = {"fx_graph_cache": False}
# Where only the graphs matter: no code is generated for what is not fused, so compiling is quick.
QUICK = {"fallback_by_default": True}


def compiled(
    model: Callable[..., Any], backend: str = "fusepass", options: Any = None, **kwargs: Any
) -> Any:
    """torch.compile with the graph caches off."""
    return torch.compile(model, backend=backend, options={**UNCACHED, **(options or {})}, **kwargs)


def fused() -> int:
    """Sites rewritten since the test began."""
    return counters["fusepass"]["fused"]


def block(width: int = 32, out: int = 48) -> Model:
    """Linear, scale 0.5, clamp to ±2, GELU."""
    return Model(width, out, 0.5, -2, 2)


class Mlp(nn.Module):
    """Linear -> scale -> clamp -> GELU -> Linear, the scale being whatever it is given."""

    def __init__(self, width: int, hidden: int, scale: Any = 0.5) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(F.hardtanh(self.up(x) * self.scale, -2, 2)))


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer; its Linear -> GELU is the one site."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x: Tensor) -> Tensor:
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2])
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Token classifier: [batch, length] integers to [batch, length, vocabulary] logits."""

    def __init__(self, vocabulary: int = 17, width: int = 16, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(EncoderLayer(width, 2) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class DiTBlock(nn.Module):
    """A block of a diffusion transformer: six vectors a sample shift, scale and gate its tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.ada = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        six = [v.unsqueeze(1) for v in self.ada(F.silu(c)).chunk(6, dim=-1)]
        q, k, v = (
            self.qkv(self._scaled(0, x, *six[:2])).unflatten(-1, (3, self.heads, -1)).unbind(2)
        )
        o = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        x = x + six[2] * self.proj(o.transpose(1, 2).flatten(2))
        hidden = F.gelu(self.fc1(self._scaled(1, x, *six[3:5])), approximate="tanh")
        return x + six[5] * self.fc2(hidden)

    def _scaled(self, which: int, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return self.norms[which](x) * (1 + scale) + shift


class ParallelBranches(nn.Module):
    """GPT-J's, Phi's and Falcon's layer: attention and MLP read the same norm."""

    def __init__(self, width: int, kept: bool) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.out, self.up = nn.Linear(width, width), nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.kept = kept

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.norm(x)
        attention = self.out(F.silu(h))
        x = attention + self.down(F.gelu(self.up(h))) + x
        return (x, self.last(x)) if self.kept else (self.last(x),)


class Masked(nn.Module):
    """What a mask of bool does to a Linear's result: drops of it, or chooses."""

    def __init__(self, k: int, n: int, chosen: bool) -> None:
        super().__init__()
        self.linear, self.chosen = nn.Linear(k, n), chosen

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor]:
        z = self.linear(x)
        return (torch.where(mask, F.gelu(z), 0) if self.chosen else z * mask,)


def tables(rows: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a rotary embedding, [batch, rows, width], float32."""
    angles = torch.arange(rows)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    both = torch.cat([angles, angles], -1).expand(batch, -1, -1)
    return both.cos(), both.sin()


def rotate_half(x: Tensor) -> Tensor:
    """As Hugging Face's transformers spell it."""
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


class RopeAttention(nn.Module):
    """Llama's attention: RoPE of the queries and keys, of which there are fewer heads; of the first
    ``turned`` columns of each head alone, if not of all."""

    def __init__(
        self,
        width: int,
        heads: int,
        groups: int,
        head_width: int,
        bias: bool = False,
        turned: int | None = None,
    ) -> None:
        super().__init__()
        self.head_width, self.turned = head_width, turned
        self.q, self.k, self.v = (
            nn.Linear(width, count * head_width, bias=bias) for count in (heads, groups, groups)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            t.view(*x.shape[:-1], -1, self.head_width).transpose(1, 2) for t in self._projected(x)
        )
        q, k = (self._rotated(t, cos.unsqueeze(1), sin.unsqueeze(1)) for t in (q, k))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).flatten(-2)

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q(x), self.k(x), self.v(x)

    def _rotated(self, t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.turned is None:
            return t * cos + rotate_half(t) * sin
        first, rest = t[..., : self.turned], t[..., self.turned :]
        return torch.cat((first * cos + rotate_half(first) * sin, rest), dim=-1)


class PackedAttention(RopeAttention):
    """The same with one weight for queries, keys and values, as Phi-3 has it."""

    def __init__(self, width: int, heads: int, groups: int, head_width: int, bias: bool) -> None:
        super().__init__(width, heads, groups, head_width, bias)
        self.sizes = [count * head_width for count in (heads, groups, groups)]
        self.qkv = nn.Linear(width, sum(self.sizes), bias=bias)
        del self.q, self.k, self.v

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).split(self.sizes, dim=-1)


class Recorder(CustomGraphPass):
    """As ``post_grad_custom_pre_pass``: keeps the operators of each graph, forward and backward."""

    def __init__(self) -> None:
        self.graphs: list[list[str]] = []

    def __call__(self, graph: torch.fx.Graph) -> None:
        calls = [n for n in graph.nodes if n.op == "call_function"]
        self.graphs.append([str(n.target) for n in calls])

    def uuid(self) -> Any | None:
        return None

    def gemms(self) -> list[int]:
        """Matrix products in each graph, fused ones included."""
        names = (
            "aten.mm",
            "aten.addmm",
            "aten.bmm",
            "aten.baddbmm",
            "fusepass.linear",
            "fusepass.gemm",
        )
        return [sum(t.startswith(names) for t in graph) for graph in self.graphs]
