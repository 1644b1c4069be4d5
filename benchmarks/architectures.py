"""The architectures of coverage.py: of transformers, timm, torchvision and diffusers, unmodified.

Each is of the sizes that its configuration has by default, which are those of a published model,
but for the number of its layers. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Inputs = Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]  # of a model's configuration


@dataclass(frozen=True)
class Architecture:
    """One model with inputs for it.

    Attributes:
        name: as its authors call it.
        family: ``decoder``, ``encoder``, ``vision``, ``diffusion``, or ``speech``.
        library: the module that must be importable.
        make: number of layers -> (model, args, kwargs). Where layers differ in size, as in a
            pyramid, the model is whole whatever the number.
    """

    name: str
    family: str
    library: str
    make: Callable[[int], Made]


_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers",
           "decoder_layers", "num_decoder_layers")  # fmt: skip


def _of_layers(config: Any, settings: Mapping[str, Any], layers: int) -> Any:
    """A configuration of so many layers; what lists something for each layer is made anew."""
    made = config(**settings)
    counts = {c: layers for c in _COUNTS if isinstance(getattr(made, c, None), int)}
    return config(**{**counts, **settings})


def _tokens(batch: int, length: int, **more: Any) -> Inputs:
    return lambda config: ((torch.randint(0, 1000, (batch, length)),), more)


def _hf(model: str, config: str, inputs: Inputs, **settings: Any) -> Callable[[int], Made]:
    def make(layers: int) -> Made:
        import transformers

        made = _of_layers(getattr(transformers, config), settings, layers)
        args, kwargs = inputs(made)
        return getattr(transformers, model)(made), args, kwargs

    return make


def _pixels(batch: int, size: int) -> Inputs:
    return lambda config: ((torch.randn(batch, 3, size, size),), {})


def _text(name: str, family: str, model: str, config: str = "", **settings: Any) -> Architecture:
    decoder = family == "decoder"
    inputs = _tokens(4, 2048, use_cache=False) if decoder else _tokens(32, 512)
    make = _hf(f"{model}Model", f"{config or model}Config", inputs, **settings)
    return Architecture(name, family, "transformers", make)


def _seq2seq(name: str, model: str, **settings: Any) -> Architecture:
    def inputs(config: Any) -> Any:
        tokens = torch.randint(0, 1000, (16, 512))
        return (), {"input_ids": tokens, "decoder_input_ids": tokens, "use_cache": False}

    make = _hf(f"{model}Model", f"{model}Config", inputs, **settings)
    return Architecture(name, "encoder", "transformers", make)


def _image(name: str, model: str, size: int = 224) -> Architecture:
    make = _hf(f"{model}Model", f"{model}Config", _pixels(64, size))
    return Architecture(name, "vision", "transformers", make)


def _timm(name: str, model: str, size: int = 224, depth: str | None = None) -> Architecture:
    """``depth`` is the setting for a number of layers, where all are alike."""

    def make(layers: int) -> Made:
        import timm

        settings = {} if depth is None else {depth: layers}
        return timm.create_model(model, **settings), (torch.randn(64, 3, size, size),), {}

    return Architecture(name, "vision", "timm", make)


def _torchvision(name: str, model: str, size: int = 224) -> Architecture:
    def make(layers: int) -> Made:
        import torchvision

        return getattr(torchvision.models, model)(), (torch.randn(64, 3, size, size),), {}

    return Architecture(name, "vision", "torchvision", make)


def _diffusers(
    name: str,
    model: str,
    inputs: Callable[[], dict[str, Any]],
    depths: Sequence[str] = (),
    **settings: Any,
) -> Architecture:
    """``depths`` are the settings for numbers of layers, where all are alike."""

    def make(layers: int) -> Made:
        import diffusers

        made = getattr(diffusers, model)(**settings, **dict.fromkeys(depths, layers))
        return made, (), {**inputs(), "return_dict": False}

    return Architecture(name, "diffusion", "diffusers", make)


def _speech(name: str, model: str, inputs: Inputs) -> Architecture:
    return Architecture(
        name, "speech", "transformers", _hf(f"{model}Model", f"{model}Config", inputs)
    )


_T = torch.randn  # what a diffusion model takes beside its latents: text states, a time, a class

ARCHITECTURES = (
    _text("Llama 2 7B", "decoder", "Llama"),
    _text("Qwen 2.5", "decoder", "Qwen2"),
    _text("Qwen 3", "decoder", "Qwen3"),
    _text("Gemma", "decoder", "Gemma"),
    _text("Gemma 2", "decoder", "Gemma2"),
    _text("Gemma 3", "decoder", "Gemma3Text"),
    _text("Mistral 7B", "decoder", "Mistral"),
    _text("Mixtral", "decoder", "Mixtral"),
    _text("Phi 2", "decoder", "Phi", hidden_size=2560, intermediate_size=10240),
    _text("Phi 3", "decoder", "Phi3"),
    _text("GPT-2", "decoder", "GPT2"),
    _text("GPT-J", "decoder", "GPTJ"),
    _text("GPT-NeoX", "decoder", "GPTNeoX"),
    _text("OPT", "decoder", "OPT"),
    _text("BLOOM 7B", "decoder", "Bloom", hidden_size=4096, n_head=32),
    _text("Falcon 7B", "decoder", "Falcon"),
    _text("StableLM", "decoder", "StableLm"),
    _text("StarCoder 2", "decoder", "Starcoder2"),
    _text("Command R", "decoder", "Cohere"),
    _text("OLMo 2", "decoder", "Olmo2"),
    _text("GLM 4", "decoder", "Glm4"),
    _text("Granite", "decoder", "Granite"),
    _text("Nemotron", "decoder", "Nemotron", head_dim=128, num_key_value_heads=8),
    _text("BERT", "encoder", "Bert"),
    _text("RoBERTa", "encoder", "Roberta"),
    _text("ALBERT", "encoder", "Albert"),
    _text("DistilBERT", "encoder", "DistilBert"),
    _text("ELECTRA", "encoder", "Electra"),
    _text("DeBERTa v2", "encoder", "DebertaV2"),
    _text("MPNet", "encoder", "MPNet"),
    _text("ModernBERT", "encoder", "ModernBert"),
    Architecture(
        "CLIP, text", "encoder", "transformers",
        _hf("CLIPTextModel", "CLIPTextConfig", _tokens(256, 77)),
    ),
    _text("T5, encoder", "encoder", "T5Encoder", "T5"),
    _text("T5 v1.1, encoder", "encoder", "T5Encoder", "T5", feed_forward_proj="gated-gelu"),
    _seq2seq("BART", "Bart"),
    _seq2seq("Pegasus", "Pegasus"),
    _seq2seq("mBART", "MBart"),
    _image("ViT-B/16 (transformers)", "ViT"),
    _image("CLIP, vision", "CLIPVision"),
    _image("SigLIP, vision", "SiglipVision"),
    _image("DINOv2", "Dinov2"),
    _image("BEiT", "Beit"),
    _image("SegFormer", "Segformer", 512),
    _image("Swin (transformers)", "Swin"),
    _timm("ViT-L/16", "vit_large_patch16_224", depth="depth"),
    _timm("DeiT 3", "deit3_base_patch16_224", depth="depth"),
    _timm("EVA-02", "eva02_base_patch14_224", depth="depth"),
    _timm("Swin v1 B", "swin_base_patch4_window7_224"),
    _timm("ConvNeXt B", "convnext_base"),
    _timm("MLP-Mixer", "mixer_b16_224"),
    _timm("CaiT", "cait_s24_224", depth="depth"),
    _timm("XCiT", "xcit_small_12_p16_224", depth="depth"),
    _timm("MaxViT T", "maxvit_tiny_rw_224"),
    _timm("Hiera", "hiera_base_224"),
    _torchvision("ViT-B/16 (torchvision)", "vit_b_16"),
    _torchvision("Swin T (torchvision)", "swin_t"),
    _torchvision("ConvNeXt T", "convnext_tiny"),
    _speech(
        "Whisper", "Whisper",
        lambda c: ((torch.randn(8, c.num_mel_bins, 2 * c.max_source_positions),),
                   {"decoder_input_ids": torch.randint(0, 1000, (8, 256)), "use_cache": False}),
    ),
    _speech("wav2vec 2.0", "Wav2Vec2", lambda c: ((torch.randn(8, 160000),), {})),
    _speech("HuBERT", "Hubert", lambda c: ((torch.randn(8, 160000),), {})),
    _diffusers(
        "DiT-XL/2", "DiTTransformer2DModel",
        lambda: {"hidden_states": _T(64, 4, 32, 32), "timestep": torch.zeros(64, dtype=torch.long),
                 "class_labels": torch.zeros(64, dtype=torch.long)},
        depths=("num_layers",),
    ),
    _diffusers(
        "Stable Diffusion 1.5, UNet", "UNet2DConditionModel",
        lambda: {"sample": _T(8, 4, 64, 64), "timestep": torch.tensor(1),
                 "encoder_hidden_states": _T(8, 77, 768)},
        cross_attention_dim=768,
    ),
    _diffusers(
        "Stable Diffusion 3", "SD3Transformer2DModel",
        lambda: {"hidden_states": _T(4, 16, 128, 128), "timestep": torch.ones(4),
                 "encoder_hidden_states": _T(4, 333, 4096), "pooled_projections": _T(4, 2048)},
        depths=("num_layers",),
    ),
    _diffusers(
        "Flux", "FluxTransformer2DModel",
        lambda: {"hidden_states": _T(1, 4096, 64), "timestep": torch.ones(1),
                 "img_ids": _T(4096, 3), "txt_ids": _T(512, 3), "guidance": torch.ones(1),
                 "encoder_hidden_states": _T(1, 512, 4096), "pooled_projections": _T(1, 768)},
        depths=("num_layers", "num_single_layers"), guidance_embeds=True,
    ),
    _diffusers(
        "PixArt-α", "PixArtTransformer2DModel",
        lambda: {"hidden_states": _T(4, 4, 64, 64), "timestep": torch.ones(4),
                 "encoder_hidden_states": _T(4, 120, 4096),
                 "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
        depths=("num_layers",), sample_size=64,
        caption_channels=4096, use_additional_conditions=False,
    ),
)  # fmt: skip


def available() -> Iterator[Architecture]:
    """Those whose library is installed."""
    import importlib.util

    return (a for a in ARCHITECTURES if importlib.util.find_spec(a.library) is not None)
