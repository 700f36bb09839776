"""timm ViT: any timm vision transformer whose blocks take and return a plain token sequence.

Reference: Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models.
"""

from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from vprompt.backbones import _timm_blocks
from vprompt.backbones._timm_models import create, patch_size_of
from vprompt.core.errors import VPromptError
from vprompt.core.registry import Spec
from vprompt.core.types import Features, Images, Present, PromptRows, ReadTokens, Tokens, Which
from vprompt.data.preprocessing import DataConfig, ImageSize, shown
from vprompt.models.attention import (
    SHORT_SEQUENCE,
    Attend,
    assigned,
    hide,
    logits,
    project,
)
from vprompt.models.backbone import Backbone


class TimmViT(Backbone):
    """A timm ViT, cut at its blocks; its own code is used as it is."""

    vit: Any
    _turned: tuple[Any, Tensor] | None = None  # the rotation, and what it was computed for

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
        patches = self.vit.patch_embed(images)
        if isinstance(self.vit, eva.Eva):
            self._check_grid(patches)
            return self.vit.norm_pre(self.vit._pos_embed(patches)[0])
        return self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(patches)))

    def _check_grid(self, patches: Tensor) -> None:
        """Refuse images of another size: a model that takes any would turn patches otherwise."""
        grid = tuple(self.vit.patch_embed.grid_size)
        if patches.ndim == 4 and tuple(patches.shape[1:3]) != grid:
            found = shown(
                *(n * p for n, p in zip(patches.shape[1:3], self.patch_size, strict=True))
            )
            raise VPromptError(
                f"{self.name!r} was opened for images of {self.data_config.shown_size} pixels, but "
                f"got {found}. Open it with image_size={found!r} (--image-size {found})."
            )

    def rotation(self, index: int) -> Tensor | None:
        """Return how block `index` turns patches by their place, `[..., patches, 2 * head_dim]`.

        It is timm's own, computed once and no parameter, even where it was learned. None where the
        model knows places from position embeddings alone.
        """
        rope = getattr(self.vit, "rope", None)
        if rope is None:
            return None
        weight = self.vit.patch_embed.proj.weight
        learned = getattr(rope, "freqs", None)
        key = (weight.device, weight.dtype, None if learned is None else learned._version)
        if self._turned is None or self._turned[0] != key:
            grid = self.vit.patch_embed.grid_size
            shape = grid if self.vit.dynamic_img_size else (grid[0] * grid[1],)
            with torch.no_grad():
                nothing = torch.zeros(1, *shape, self.dim, device=weight.device, dtype=weight.dtype)
                self._turned = key, self.vit._pos_embed(nothing)[1]
        turned = self._turned[1]
        return turned[index] if getattr(self.vit, "rope_mixed", False) else turned

    def block(self, index: int, tokens: Tokens) -> Tokens:
        """Run one block; rows between prefix and patches are not turned."""
        return self.vit.blocks[index](tokens, **self._places(index, tokens))

    def _places(self, index: int, tokens: Tokens) -> dict[str, Tensor]:
        """Return what a block is told of the places of tokens, prompt rows among them."""
        rotation = self.rotation(index)
        if rotation is None:
            return {}
        rows = tokens.shape[1] - self.prefix - rotation.shape[-2]
        return {"rope": _timm_blocks.stretched(rotation, rows)}

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

        The prompt passes the first norm and the key and value rows of the projection, once for all
        images that share it. Tokens that are not read afterwards are keys and values only, too.
        """
        block: Any = self.vit.blocks[index]
        if not _timm_blocks.is_plain(block):
            return super().prompted_block(index, tokens, prompt, attend)
        return _timm_blocks.prompted(
            block,
            tokens,
            prompt,
            attend,
            reads=reads,
            rotation=self.rotation(index),
            prefix=self.prefix,
        )

    def attention_of(self, index: int, tokens: Tokens) -> Tensor:
        """Return the weights of a plain block; registers and class token are among the tokens."""
        block: Any = self.vit.blocks[index]
        turned = not isinstance(block, vision_transformer.Block)  # by where patches lie
        if turned or not _timm_blocks.is_plain(block):
            return super().attention_of(index, tokens)
        attention = block.attn
        joined = (attention.qkv.weight, attention.qkv.bias, attention.num_heads)
        query, own = project(block.norm1(tokens), *joined, None)
        key = attention.k_norm(own.key)
        return logits(attention.q_norm(query), key, attention.scale).softmax(-1)

    def attend_each(self, index: int, which: Which, present: Present) -> Attend | None:
        """Return the attention in which every image sees its own prompt's keys, in plain blocks."""
        block: Any = self.vit.blocks[index]
        if not _timm_blocks.is_plain(block):
            return None
        return assigned(which, present, fused=block.attn.fused_attn)

    def masked_block(self, index: int, tokens: Tokens, present: Present) -> Tokens:
        """Run one block in which absent tokens are hidden by its own mask, where it is plain."""
        block: Any = self.vit.blocks[index]
        if not _timm_blocks.is_plain(block):
            return super().masked_block(index, tokens, present)
        mask = hide(present, tokens.dtype).to(tokens.device)
        return block(tokens, attn_mask=mask, **self._places(index, tokens))

    def feed_forward(self, index: int) -> nn.Module:
        """Return what a plain block adds to its residual last, after the MLP's layer scale."""
        block = self.vit.blocks[index]
        plain = _timm_blocks.is_plain(block)
        return _timm_blocks.last_of(block) if plain else super().feed_forward(index)

    def pool(self, tokens: Tokens) -> Features:
        """Pool as the model was built to: class token, average or attention."""
        return self.vit.forward_head(self.vit.norm(tokens), pre_logits=True)


def _centres_tokens(block: Any) -> bool:
    """Say whether a block takes the mean off every token before it makes a key of it."""
    if isinstance(block, vision_transformer.ParallelThingsBlock):
        return all(isinstance(branch.norm, nn.LayerNorm) for branch in block.attns)
    if "Post" in type(block).__name__:  # there the norms stand behind attention and MLP
        return False
    return isinstance(getattr(block, "in_norm", getattr(block, "norm1", None)), nn.LayerNorm)


def _pools_class_token(vit: Any) -> bool:
    """Say whether nothing but the class token reaches the feature, in timm's own classes alone."""
    plain = type(vit) in (vision_transformer.VisionTransformer, eva.Eva)
    return (
        plain and vit.global_pool == "token" and vit.attn_pool is None and vit.cls_token is not None
    )


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
