"""timm ViT: any timm vision transformer whose blocks take and return a plain token sequence.

Reference: Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models.
"""

from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.layers.attention import Attention
from timm.models import vision_transformer
from torch import nn

from vprompt.backbones._timm_models import create, patch_size_of
from vprompt.core.errors import VPromptError
from vprompt.core.precision import steady
from vprompt.core.registry import Spec
from vprompt.core.types import Features, Images, Present, PromptRows, ReadTokens, Tokens, Which
from vprompt.data.preprocessing import DataConfig, ImageSize
from vprompt.models.attention import (
    SHORT_SEQUENCE,
    Attend,
    KeyValue,
    assigned,
    hide,
    joint,
    keys_and_values,
    project,
)
from vprompt.models.backbone import Backbone


class TimmViT(Backbone):
    """A timm ViT, cut at its blocks; its own code is used as it is."""

    vit: Any

    def __init__(self, vit: nn.Module, name: str, data_config: DataConfig) -> None:
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        model: Any = vit  # its attributes are timm's, which no type checker knows
        self.name, self.data_config = name, data_config
        self.dim, self.depth = int(model.embed_dim), len(model.blocks)
        self.feature_dim, self.prefix = int(model.num_features), int(model.num_prefix_tokens)
        self.patch_size = patch_size_of(model)
        self.centres_tokens = _centres_tokens(model.blocks[0])
        self.pooled = 1 if _pools_class_token(model) else None
        embed = model.patch_embed
        if embed.img_size is None or not getattr(embed, "strict_img_size", True):
            padded = getattr(embed, "dynamic_img_pad", False)
            self.size_step = (1, 1) if padded else self.patch_size
        self._prefer_plain_attention()
        self.eval()

    def _prefer_plain_attention(self) -> None:
        """Use timm's unfused attention on short sequences.

        On a CPU the backward pass of fused attention is slow there, and unfused steps were clearly
        faster. On long sequences the attention maps would need too much memory.
        """
        if self.vit.patch_embed.num_patches > SHORT_SEQUENCE:
            return
        for module in self.vit.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False

    def embed(self, images: Images) -> Tokens:
        """Cut the image into patches; class and register tokens come first."""
        tokens = self.vit._pos_embed(self.vit.patch_embed(images))
        return self.vit.norm_pre(self.vit.patch_drop(tokens))

    def block(self, index: int, tokens: Tokens) -> Tokens:
        """Run one block."""
        return self.vit.blocks[index](tokens)

    def prompted_block(
        self,
        index: int,
        tokens: Tokens,
        prompt: PromptRows,
        attend: Attend | None = None,
        *,
        reads: int | None = None,
    ) -> ReadTokens:
        """Run one block with the prompt in its keys and values alone, where timm's block is plain.

        This spells out timm's own block (pre-norm, layer scale, query and key norms included).
        The prompt passes the first norm and the key and value rows of `qkv`, once for all images
        that share it. Tokens that are not read afterwards are keys and values only, too.
        """
        block: Any = self.vit.blocks[index]
        if not _is_plain(block):
            return super().prompted_block(index, tokens, prompt, attend)
        attention = block.attn
        joined = (attention.qkv.weight, attention.qkv.bias, attention.num_heads)
        query, own = project(block.norm1(tokens), *joined, reads)
        inside = keys_and_values(block.norm1(prompt), *joined)
        own = KeyValue(attention.k_norm(own.key), own.value)
        inside = KeyValue(attention.k_norm(inside.key), inside.value)
        attend = attend or joint(fused=attention.fused_attn)
        mixed = attend(attention.q_norm(query), own, inside, attention.scale, None)
        mixed, count = attention.norm(mixed.transpose(1, 2).flatten(2)), tokens.shape[0]
        if reads is not None:
            tokens, mixed = steady(tokens[:, :reads]), steady(mixed)
        tokens = tokens + block.ls1(attention.proj(mixed))
        return (tokens + block.ls2(block.mlp(block.norm2(tokens))))[:count]

    def attend_each(self, index: int, which: Which, present: Present) -> Attend | None:
        """Return the attention in which every image sees its own prompt's keys, in plain blocks."""
        block: Any = self.vit.blocks[index]
        if not _is_plain(block):
            return None
        return assigned(which, present, fused=block.attn.fused_attn)

    def masked_block(self, index: int, tokens: Tokens, present: Present) -> Tokens:
        """Run one block in which absent tokens are hidden by its own mask, where it is plain."""
        block: Any = self.vit.blocks[index]
        if not _is_plain(block):
            return super().masked_block(index, tokens, present)
        return block(tokens, attn_mask=hide(present, tokens.dtype).to(tokens.device))

    def feed_forward(self, index: int) -> nn.Module:
        """Return the layer scale after the MLP of a plain block; an identity where it has none."""
        block = self.vit.blocks[index]
        return block.ls2 if _is_plain(block) else super().feed_forward(index)

    def pool(self, tokens: Tokens) -> Features:
        """Pool as the model was built to: class token, average or attention."""
        return self.vit.forward_head(self.vit.norm(tokens), pre_logits=True)


def _is_plain(block: Any) -> bool:
    """Say whether a block is timm's ordinary one, which `prompted_block` spells out."""
    attention = getattr(block, "attn", None)
    return (
        type(block) is vision_transformer.Block
        and type(attention) is Attention
        and getattr(attention, "gate", None) is None
    )


def _centres_tokens(block: Any) -> bool:
    """Say whether a block takes the mean off every token before it makes a key of it."""
    if isinstance(block, vision_transformer.ParallelThingsBlock):
        return all(isinstance(branch.norm, nn.LayerNorm) for branch in block.attns)
    if "Post" in type(block).__name__:  # there the norms stand behind attention and MLP
        return False
    return isinstance(getattr(block, "in_norm", getattr(block, "norm1", None)), nn.LayerNorm)


def _pools_class_token(vit: Any) -> bool:
    """Say whether nothing but the class token reaches the feature, in timm's own class alone."""
    plain = type(vit) is vision_transformer.VisionTransformer
    return plain and vit.global_pool == "token" and vit.attn_pool is None and vit.has_class_token


def load(
    *,
    model: str = "vit_base_patch16_224.orig_in21k",
    pretrained: bool = True,
    checkpoint: str | None = None,
    image_size: ImageSize | None = None,
    seed: int = 0,
) -> Backbone:
    """Return a frozen timm model.

    `model` is a timm name (`architecture.tag`), `hf-hub:org/name@revision` or `local-dir:/path`.
    `checkpoint` loads a local weight file instead (safetensors, or a plain state dict read without
    unpickling code). `image_size` resamples the position embedding. `pretrained=False` draws
    random weights from `seed`, for tests and timings.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit, remark = create(
            model, pretrained=pretrained, checkpoint=checkpoint, image_size=image_size
        )
    given = {"checkpoint": checkpoint, "pretrained": pretrained, "seed": seed}
    plain = {"checkpoint": None, "pretrained": True, "seed": 0}
    changed = {key: value for key, value in given.items() if value != plain[key]}
    name = str(Spec("timm_vit", {"model": model, **changed})) if changed else model
    backbone = TimmViT(vit, name, data_config_of(vit))
    backbone.remark = remark
    if pretrained and checkpoint is None and not model.startswith("local-dir:"):
        backbone.repository = str(vit.pretrained_cfg.get("hf_hub_id") or "").partition("@")[0]
    _check_same_features(backbone, model)
    return backbone


def data_config_of(vit: nn.Module) -> DataConfig:
    """Return the model's own preprocessing, with both sides resized directly as VTAB does."""
    config = resolve_model_data_config(vit)
    size = getattr(vit, "patch_embed").img_size or config["input_size"][1:]  # noqa: B009
    return DataConfig(
        input_size=(3, int(size[0]), int(size[1])),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _check_same_features(backbone: TimmViT, name: str) -> None:
    """Refuse models whose own forward pass does more than embed, blocks, norm and pool."""
    images = torch.zeros(1, *backbone.data_config.input_size)
    images[:, :, ::7, ::5] = 1.0
    with torch.no_grad():
        tokens = backbone.embed(images)
        for index in range(backbone.depth):
            tokens = backbone.block(index, tokens)
        own = backbone.vit.forward_head(backbone.vit.forward_features(images), pre_logits=True)
        if not torch.equal(backbone.pool(tokens), own):
            raise VPromptError(
                f"{name!r} ({type(backbone.vit).__name__}) does more between its blocks than a "
                "plain vision transformer, so prompts cannot be inserted faithfully."
            )
        try:
            longer = torch.cat([tokens, tokens[:, :1]], dim=1)
            backbone.block(0, longer)
        except RuntimeError as error:
            raise VPromptError(
                f"{name!r} ({type(backbone.vit).__name__}) only takes sequences of its own length "
                "(relative position bias), so prompts cannot be inserted."
            ) from error
