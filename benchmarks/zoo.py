"""The models of models.py: unmodified, of timm, transformers and torch, with random weights.

An entry makes a model and its inputs in float32, on torch's default device; models.py casts them.
Dropout is 0: all peers must compute the same. Decoders are a few layers of the published model,
without the head; decoding.py has them whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        text: how it is described; ``{}`` is the batch.
        make: batch -> (model, args, kwargs).
        batches: (dtype, whether it trains) -> the batch; what is not there is not measured.
    """

    text: str
    make: Callable[[int], Made]
    batches: Mapping[tuple[str, bool], int] = field(default_factory=dict)


def _both(bf16: tuple[int, int] | None = None, f32: tuple[int, int] | None = None) -> Any:
    pairs = (("bfloat16", bf16), ("float32", f32))
    return {(d, bool(t)): b[t] for d, b in pairs if b is not None for t in (0, 1) if b[t]}


def _vit(name: str) -> Callable[[int], Made]:
    def make(batch: int) -> Made:
        import timm

        return timm.create_model(name, pretrained=False), (torch.randn(batch, 3, 224, 224),), {}

    return make


def _hf(model: str, config: str, length: int, **settings: Any) -> Callable[[int], Made]:
    def make(batch: int) -> Made:
        import transformers

        made = getattr(transformers, config)(**settings)
        decoder = "GPT2" in config or "Llama" in config or "Qwen" in config or "Gemma" in config
        kwargs = {"use_cache": False} if decoder else {}
        tokens = torch.randint(0, made.vocab_size, (batch, length))
        return getattr(transformers, model)(made), (tokens,), kwargs

    return make


class PhysicsMlp(nn.Module):
    """64 -> 512 x 6 -> 64 with tanh, as physics-informed networks have it."""

    def __init__(self, second_derivative: bool = False) -> None:
        super().__init__()
        widths = (64, *[512] * 6, 64)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])
        self.second_derivative = second_derivative

    def forward(self, x: Tensor) -> Tensor:
        if not self.second_derivative:
            return self.net(x)

        def first(at: Tensor) -> Tensor:
            return torch.func.grad(lambda a: self.net(a).sum())(at)

        return self.net(x) + torch.func.grad(lambda a: first(a).sum())(x)


class DiT(nn.Module):
    """DiT-XL/2 of 256x256 images, as its paper has it: 28 layers of 1152 over 16x16 patches of
    latents [B, 4, 32, 32], whose norms' shifts, scales and gates are made of timestep and class.

    Initialized as torch initializes Linears: the paper's zeros would leave nothing to compare.
    """

    def __init__(self, width: int = 1152, depth: int = 28, heads: int = 16) -> None:
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(4, width, 2, stride=2)
        self.register_buffer("positions", torch.randn(1, 256, width))
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(1001, width)
        self.blocks = nn.ModuleList(_DiTBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, 2 * 2 * 8)

    def forward(self, latents: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        x = self.patches(latents).flatten(2).transpose(1, 2) + self.positions
        frequencies = torch.exp(torch.arange(128, device=x.device) * (-math.log(10000.0) / 128))
        angles = timestep.float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(x.dtype)
        c = self.time(waves) + self.classes(label)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c).chunk(2, dim=1)
        x = self.out(_modulated(self.norm(x), shift, scale))
        x = x.unflatten(1, (16, 16)).unflatten(3, (2, 2, 8))
        return torch.einsum("nhwpqc->nchpwq", x).flatten(4, 5).flatten(2, 3)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class _DiTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self._attention(_modulated(self.norm1(x), shift1, scale1))
        hidden = self.fc1(_modulated(self.norm2(x), shift2, scale2))
        return x + gate2.unsqueeze(1) * self.fc2(F.gelu(hidden, approximate="tanh"))

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _dit(batch: int) -> Made:
    timestep, label = (torch.randint(0, 1000, (batch,)) for _ in range(2))
    return DiT(), (torch.randn(batch, 4, 32, 32), timestep, label), {}


def _mlp(second: bool) -> Callable[[int], Made]:
    return lambda batch: (PhysicsMlp(second), (torch.randn(batch, 64),), {})


def _demo(batch: int) -> Made:
    from fusepass.examples.gemm_scaling_hardtanh_gelu import Model

    model = Model(8192, 8192, scaling_factor=0.5, hardtanh_min=-2, hardtanh_max=2)
    return model, (torch.randn(batch, 8192),), {}


_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_BERT = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
         "intermediate_size": 4096, **_NO_DROPOUT}  # fmt: skip
GPT2 = {"n_embd": 1024, "n_layer": 24, "n_head": 16, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
         "attn_pdrop": 0.0}  # fmt: skip
_T5 = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "d_kv": 64,
       "dropout_rate": 0.0, "feed_forward_proj": "relu"}  # fmt: skip
_T5_GATED = {**_T5, "d_ff": 2048, "feed_forward_proj": "gated-gelu"}
LLAMA = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
          "num_key_value_heads": 8, "vocab_size": 32000}  # fmt: skip
_QWEN = {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
         "num_key_value_heads": 2, "num_hidden_layers": 8, "vocab_size": 32000}  # fmt: skip
_GEMMA = {"hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8,
          "num_key_value_heads": 1, "head_dim": 256, "num_hidden_layers": 4,
          "vocab_size": 32000}  # fmt: skip

MODELS: dict[str, Entry] = {
    "vit_b": Entry(
        "ViT-B/16, batch {}", _vit("vit_base_patch16_224"), _both((256, 128), (64, 64))
    ),
    "vit_l": Entry(
        "ViT-L/16, batch {}", _vit("vit_large_patch16_224"), _both((256, 128), (32, 32))
    ),
    "gpt2": Entry(
        "GPT-2 medium, {}x1024",
        _hf("GPT2Model", "GPT2Config", 1024, **GPT2),
        _both((16, 16), (4, 4)),
    ),
    "bert": Entry(
        "BERT-large, {}x256", _hf("BertModel", "BertConfig", 256, **_BERT), _both(None, (16, 16))
    ),
    "bert_512": Entry(
        "BERT-large, {}x512", _hf("BertModel", "BertConfig", 512, **_BERT), _both((32, 32))
    ),
    "t5": Entry(
        "T5-base encoder (relu), {}x512",
        _hf("T5EncoderModel", "T5Config", 512, **_T5),
        _both(None, (16, 16)),
    ),
    "t5_gated": Entry(
        "T5 v1.1 base encoder, {}x512",
        _hf("T5EncoderModel", "T5Config", 512, **_T5_GATED),
        _both((32, 0)),
    ),
    "llama": Entry(
        "Llama-3.2-1B's layers (8), {}x2048",
        _hf("LlamaModel", "LlamaConfig", 2048, num_hidden_layers=8, **LLAMA),
        _both((4, 4)),
    ),
    "llama_4": Entry(
        "Llama-3.2-1B's layers (4), {}x1024",
        _hf("LlamaModel", "LlamaConfig", 1024, num_hidden_layers=4, **LLAMA),
        _both(None, (4, 4)),
    ),
    "qwen": Entry(
        "Qwen2.5-1.5B's layers (8), {}x2048",
        _hf("Qwen2Model", "Qwen2Config", 2048, **_QWEN),
        _both((4, 0)),
    ),
    "gemma": Entry(
        "Gemma-2B's layers (4), {}x2048",
        _hf("GemmaModel", "GemmaConfig", 2048, **_GEMMA),
        _both((4, 0)),
    ),
    "dit": Entry("DiT-XL/2, batch {}", _dit, _both((64, 0))),
    "mlp": Entry("MLP 64-512x6-64 with tanh, batch {}", _mlp(False), _both(None, (65536, 65536))),
    "pinn": Entry(
        "the same with its second derivative, batch {}", _mlp(True), _both(None, (65536, 65536))
    ),
    "demo": Entry(
        "the demo's model, {}x8192 -> 8192", _demo, _both((2048, 2048), (2048, 2048))
    ),
}  # fmt: skip
