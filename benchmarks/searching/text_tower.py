"""A text tower of CLIP's own architecture that has learned from MiniLM: causal, read at its end.

Four of MiniLM's six layers are where it starts. They normalise behind every sum and CLIP before
every part, so a start is all they can be; the rest is distilled, sentence by sentence.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.searching.minilm import END, MiniLM
from vprompt.core.files import write_tensors
from vprompt.core.randomness import numpy_stream

CONTEXT, LAYERS = 48, (0, 1, 3, 5)
TEXT_CONFIG: dict[str, Any] = {
    "context_length": CONTEXT,
    "vocab_size": 30522,
    "width": 384,
    "heads": 12,
    "layers": len(LAYERS),
    "pool_type": "eos",
    "eos_id": END,
    "proj_bias": True,
}


def blank(width: int) -> Any:
    """Return open_clip's text transformer with features of `width` numbers, at random weights."""
    from open_clip.transformer import TextTransformer

    return TextTransformer(output_dim=width, **TEXT_CONFIG)


def trained(
    place: Path,
    teacher: MiniLM,
    texts: Sequence[str],
    goals: Callable[[], tuple[Tensor, Tensor]],
    facts: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Return the distilled tower and how it went; it is trained once and kept in `place`.

    `goals` are MiniLM's embeddings of the texts and the features that the tower is to have. It
    learns both, as the first say more about what a text means, and keeps the second alone.
    """
    facts = {**facts, "layers": list(LAYERS)}
    if place.exists():
        with safe_open(place, framework="pt") as file:
            known = json.loads(file.metadata()["facts"])
            if {key: known[key] for key in facts} == facts:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                tower = blank(len(state["text_projection.bias"]))
                tower.load_state_dict(state)
                return tower.eval().requires_grad_(False), known
    began = time.process_time()
    embedded, goal = goals()
    taught = time.process_time()
    torch.manual_seed(0)
    tower = blank(goal.shape[1])
    start_from(tower, teacher.bert)
    curve = distil(tower, tokens_of(teacher.tokenizer, texts), embedded, goal, facts["epochs"])
    spent = {"teacher": taught - began, "student": time.process_time() - taught}
    facts |= {"cosines": curve, "cpu_seconds": {key: round(value) for key, value in spent.items()}}
    state = {key: value.contiguous() for key, value in tower.state_dict().items()}
    write_tensors(place, state, {"facts": json.dumps(facts)})
    return tower.eval().requires_grad_(False), facts


@torch.no_grad()
def start_from(tower: Any, bert: Any) -> None:
    """Give the tower the weights of some of BERT's layers, as near as norms before parts allow."""
    words, norm = bert.embeddings, bert.embeddings.LayerNorm
    positions = words.position_embeddings.weight[:CONTEXT]
    kind = words.token_type_embeddings.weight[0]
    summed = words.word_embeddings.weight + positions.mean(0) + kind
    tower.token_embedding.weight.copy_(norm(summed))
    spread = summed.std(1).mean()
    tower.positional_embedding.copy_((positions - positions.mean(0)) / spread * norm.weight)
    size = tower.token_embedding.weight.std()
    before: Any = (torch.full_like(norm.weight, float(size)), torch.zeros_like(norm.bias))
    for block, index in zip(tower.transformer.resblocks, LAYERS, strict=True):
        layer, attention = bert.encoder.layer[index], bert.encoder.layer[index].attention
        parts = (attention.self.query, attention.self.key, attention.self.value)
        _copy(block.ln_1, *before)
        block.attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        block.attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        _copy(block.attn.out_proj, attention.output.dense.weight, attention.output.dense.bias)
        _copy(block.ln_2, attention.output.LayerNorm.weight, attention.output.LayerNorm.bias)
        _copy(block.mlp.c_fc, layer.intermediate.dense.weight, layer.intermediate.dense.bias)
        _copy(block.mlp.c_proj, layer.output.dense.weight, layer.output.dense.bias)
        before = (layer.output.LayerNorm.weight, layer.output.LayerNorm.bias)
    _copy(tower.ln_final, *before)


def _copy(part: Any, weight: Tensor, bias: Tensor) -> None:
    part.weight.copy_(weight)
    part.bias.copy_(bias)


def tokens_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token numbers of texts, their start and end included, cut to the context."""
    return tokenizer(list(texts), truncation=True, max_length=CONTEXT)["input_ids"]


def padded(rows: Sequence[list[int]]) -> Tensor:
    """Return rows of numbers as one table, as long as the longest."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def pooled(tower: Any, ids: Tensor) -> Tensor:
    """Return what the tower projects, for texts that are shorter than its context."""
    length, mask = ids.shape[1], tower.attn_mask
    tokens = tower.token_embedding(ids) + tower.positional_embedding[:length]
    for block in tower.transformer.resblocks:
        tokens = block(tokens, attn_mask=mask[:length, :length])
    ends = torch.eq(ids, END).int().argmax(1)
    return tower.ln_final(tokens[torch.arange(len(ids)), ends])


def distil(
    tower: Any,
    tokens: Sequence[list[int]],
    embedded: Tensor,
    goal: Tensor,
    epochs: int,
    *,
    batch: int = 128,
) -> dict[str, list[float]]:
    """Turn the tower's features towards their goals; return each epoch's mean cosines."""
    beside = nn.Linear(TEXT_CONFIG["width"], embedded.shape[1])
    nn.init.eye_(beside.weight)
    tower.train().requires_grad_(True)
    tower.token_embedding.requires_grad_(False)  # most words are seen too seldom to be moved
    trained = [*beside.parameters(), *(part for part in tower.parameters() if part.requires_grad)]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
    steps = epochs * -(-len(tokens) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    curve: dict[str, list[float]] = {"MiniLM": [], "goal": []}
    for epoch in range(epochs):
        found = []
        for rows in _batches(tokens, batch, epoch):
            ids = padded([tokens[row] for row in rows])
            with torch.autocast("cpu", torch.bfloat16):
                read = pooled(tower, ids)
                both = beside(read), tower.text_projection(read)
            cosines = [
                functional.cosine_similarity(own.float(), other[rows], dim=1).mean()
                for own, other in zip(both, (embedded, goal), strict=True)
            ]
            optimizer.zero_grad(set_to_none=True)
            (2 - cosines[0] - cosines[1]).backward()
            optimizer.step()
            schedule.step()
            found.append([float(each.detach()) for each in cosines])
        for name, value in zip(curve, np.mean(found, axis=0), strict=True):
            curve[name].append(round(float(value), 4))
        last = {name: values[-1] for name, values in curve.items()}
        print(f"text tower, epoch {epoch + 1} of {epochs}: cosines {last}", flush=True)
    return curve


def _batches(tokens: Sequence[list[int]], size: int, epoch: int) -> Iterator[np.ndarray]:
    """Yield rows of texts of about one length, in an order of this epoch's own."""
    rng = numpy_stream(epoch, "distillation")
    near = np.array([len(row) for row in tokens]) + rng.uniform(0, 2, len(tokens))
    parts = np.array_split(np.argsort(near), -(-len(tokens) // size))
    for index in rng.permutation(len(parts)):
        yield parts[index]


@torch.no_grad()
def features_of(tower: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Return the tower's features of texts."""
    tokens = tokens_of(tokenizer, texts)
    parts = [
        tower.text_projection(pooled(tower, padded(tokens[start : start + 256]))).float()
        for start in range(0, len(tokens), 256)
    ]
    return torch.cat(parts)
