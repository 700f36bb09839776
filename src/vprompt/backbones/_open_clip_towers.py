"""The towers of open_clip's models, cut at their blocks; its own code is used as it is."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.backbones._open_clip_models import pooling
from vprompt.backbones.timm_vit import TimmViT
from vprompt.core.precision import steady
from vprompt.core.types import (
    Features,
    PromptRows,
    ReadTokens,
    TextEnds,
    TextIds,
    Tokens,
    WordTokens,
)
from vprompt.data.preprocessing import DataConfig
from vprompt.models.attention import Attend, KeyValue, joint, keys_and_values, project
from vprompt.models.two_tower import TextTower


class OpenClipText(TextTower):
    """The text tower of an open_clip model; its own code is used as it is."""

    def __init__(self, clip: nn.Module, name: str, tokenizer: Callable[..., Tensor]) -> None:
        # In `CLIP` the parts of the tower are the model's own, in `CustomTextCLIP` a submodule's.
        self.part: Any = getattr(clip, "text", clip)
        self.name, self.tokenizer = name, tokenizer
        self.dim, self.depth = self.part.transformer.width, len(self.part.transformer.resblocks)
        self.context_length = int(self.part.context_length)
        self.start = _starts(tokenizer)
        self.added = getattr(self.part, "cls_emb", None) is not None  # CoCa's token, behind all
        ends_alone = pooling(self.part)[0] in ("argmax", "eos") and not self.added
        self.cuts = self.part.attn_mask is not None and ends_alone
        projection = self.part.text_projection
        self.feature_dim = self.dim if projection is None else width_of(projection)

    def tokenise(self, texts: Sequence[str], length: int) -> TextIds:
        """Return token numbers of the model's own tokeniser."""
        return self.tokenizer(list(texts), context_length=length)

    def ends(self, ids: TextIds) -> TextEnds:
        """Return where the feature is: the largest number, the named one, the first or the last."""
        kind, number = pooling(self.part)
        if self.added:
            return torch.full_like(ids[:, 0], ids.shape[1])
        if kind in ("first", "last"):
            return torch.full_like(ids[:, 0], 0 if kind == "first" else ids.shape[1] - 1)
        return ids.argmax(1) if kind == "argmax" else torch.eq(ids, number).int().argmax(1)

    def words(self, ids: TextIds) -> WordTokens:
        """Look the tokens up; CoCa's own token is put behind them."""
        words = self.part.token_embedding(ids)
        if not self.added:
            return words
        return torch.cat([words, self.part.cls_emb.expand(len(words), 1, -1)], dim=1)

    def mask(self, ids: TextIds) -> Tensor | None:
        """Return the causal mask of this length, none where there is none, or CoCa's own."""
        if self.added:  # it hides padding, a place too early, as the weights were trained
            return self.part._embeds(ids)[1]
        length = ids.shape[1]
        return None if self.part.attn_mask is None else self.part.attn_mask[:length, :length]

    def positions(self, length: int) -> Tensor:
        """Return the first rows of the position embedding."""
        return self.part.positional_embedding[:length]

    def block(self, index: int, tokens: Tokens, mask: Tensor | None) -> Tokens:
        """Run one block under the mask."""
        return self.part.transformer.resblocks[index](tokens, attn_mask=mask)

    def prompted_block(
        self,
        index: int,
        tokens: Tokens,
        prompt: PromptRows,
        mask: Tensor | None,
        attend: Attend | None = None,
        *,
        reads: int | None = None,
    ) -> ReadTokens:
        """Run one block with the prompt in its keys and values; the mask hides words alone."""
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (tokens.shape[0], -1))
        if mask is not None and reads is not None:
            mask = mask[..., :reads, :]
        return prompted(self.part.transformer.resblocks[index], tokens, prompt, attend, mask, reads)

    def pool(self, tokens: Tokens, ends: TextEnds) -> Features:
        """Normalise, read one token of every text, project."""
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        if self.added:
            return projected(self.part.ln_final(tokens[rows, ends]), self.part.text_projection)
        return projected(self.part.ln_final(tokens)[rows, ends], self.part.text_projection)


class TimmTower(TimmViT):
    """An image tower that is a model of timm, and what open_clip puts behind it."""

    def __init__(self, vision: Any, name: str, data_config: DataConfig) -> None:
        super().__init__(vision.trunk, name, data_config)
        self.behind = (vision.head,)  # held by the model itself, so it is no part of this view
        with torch.no_grad():
            tokens = self.embed(torch.zeros(1, *data_config.input_size))
            self.feature_dim = int(self.pool(tokens).shape[1])

    def pool(self, tokens: Tokens) -> Features:
        """Pool as timm's model does, its own projection included, and project."""
        return self.behind[0](self.vit.forward_head(self.vit.norm(tokens)))


def prompted(
    block: Any,
    tokens: Tokens,
    prompt: PromptRows,
    attend: Attend | None,
    mask: Tensor | None,
    reads: int | None = None,
) -> ReadTokens:
    """Spell out open_clip's `ResidualAttentionBlock`; prompt rows pass its first norm too."""
    attention = block.attn
    joined = (attention.in_proj_weight, attention.in_proj_bias, attention.num_heads)
    if mask is not None and len(tokens) == len(prompt) == 1:  # a tree of texts
        count = tokens.shape[1]
        query, both = project(block.ln_1(torch.cat([tokens, prompt], 1)), *joined, reads)
        query = query[:, :, :count]
        own = KeyValue(both.key[:, :, :count], both.value[:, :, :count])
        inside = KeyValue(both.key[:, :, count:], both.value[:, :, count:])
    else:
        query, own = project(block.ln_1(tokens), *joined, reads)
        inside = keys_and_values(block.ln_1(prompt), *joined)
    attend = attend or joint()
    hidden = None if mask is None else mask.to(query.dtype)
    mixed = attend(query, own, inside, attention.head_dim**-0.5, hidden)
    mixed = mixed.transpose(1, 2).flatten(2)
    if reads is None:
        return _rest(block, tokens, mixed)
    shape = mixed.shape[:2]
    few, seen = tokens[:, :reads].flatten(0, 1), mixed.flatten(0, 1)
    return _rest(block, steady(few), steady(seen))[: few.shape[0]].unflatten(0, shape)


def _rest(block: Any, tokens: Tensor, mixed: Tensor) -> Tensor:
    """Run what stands behind the heads of a block's attention."""
    tokens = tokens + block.ls_1(block.attn.out_proj(mixed))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def _starts(tokenizer: Callable[..., Tensor]) -> int:
    """Count the tokens that stand before every text: prompts stand behind them."""
    texts = ["a", "photo", "zebra crossing", "of"]
    return int(len(tokenizer(texts, context_length=16)[:, 0].unique()) == 1)


def projected(features: Tensor, projection: Any) -> Tensor:
    """Apply a projection that is a matrix, a layer or nothing."""
    if projection is None:
        return features
    return projection(features) if isinstance(projection, nn.Linear) else features @ projection


def width_of(projection: Any) -> int:
    """Return how wide a projection's features are."""
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]
