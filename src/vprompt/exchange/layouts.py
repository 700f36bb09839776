"""Layouts: where other programs' files hold their tokens, and in which blocks these enter.

A reader takes tensors by name and returns what it found, or says what it missed. Whatever stands
before a name it knows (`module.`, `enc.transformer.`) is taken off.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from vprompt.core.errors import VPromptError

Named = Mapping[str, Tensor]


@dataclass(eq=False)
class Found:
    """What a file holds: rows for the image tower by block, for the text tower, and a head.

    `persist` says whether rows travel on. Rows of `early` image prompts stand in front of a CLIP's
    first norm. `words` and `suffix` are the embeddings that a text learner keeps beside its
    context: start tokens, and class names with what follows.
    """

    layout: str
    image: dict[int, Tensor] = field(default_factory=dict)
    text: dict[int, Tensor] = field(default_factory=dict)
    persist: bool = True
    early: bool = False
    head: tuple[Tensor, Tensor] | None = None
    words: Tensor | None = None
    suffix: Tensor | None = None
    used: set[str] = field(default_factory=set)


class Names:
    """Tensors by what their names end in; `used` collects those that were asked for."""

    def __init__(self, tensors: Named) -> None:
        self.tensors, self.used = tensors, set[str]()

    def get(self, *endings: str) -> Tensor | None:
        """Return the only tensor of one of these names, whatever stands before them."""
        for ending in endings:
            found = [key for key in self.tensors if key == ending or key.endswith(f".{ending}")]
            if len(found) > 1:
                raise VPromptError(
                    f"The file holds {ending!r} more than once: {found[0]} and {found[1]}. Save "
                    "the one that you mean in a file of its own."
                )
            if found:
                self.used.add(found[0])
                return self.tensors[found[0]].detach().float()
        return None

    def numbered(self, pattern: str) -> dict[int, Tensor]:
        """Return tensors by the number that `pattern` has in the place of its `#`."""
        written = re.escape(pattern).replace(r"\#", r"(\d{1,4})")
        found: dict[int, Tensor] = {}
        for key, value in self.tensors.items():
            match = re.search(rf"(?:^|\.){written}$", key)
            if match:
                self.used.add(key)
                found[int(match[1])] = value.detach().float()
        return dict(sorted(found.items()))


def vpt(names: Names) -> Found | None:
    """Read VPT: a saved prompt, a whole model, or the one tensor of its forks on timm."""
    shallow = names.get("shallow_prompt", "prompt_embeddings")
    deep = names.get("deep_prompt", "deep_prompt_embeddings")
    if shallow is None:
        stacked = names.get("Prompt_Tokens", "prompt_tokens")
        if stacked is None:
            return None
        shallow, deep = _cut(stacked)
    rows = {0: _rows(shallow, "the shallow prompt")}
    if deep is not None:
        if deep.dim() != 3:
            raise VPromptError(f"Deep prompts are [blocks, tokens, width], not {_shape(deep)}.")
        rows |= {block + 1: each for block, each in enumerate(deep)}
    weight, bias = names.get("prompt_proj.weight"), names.get("prompt_proj.bias")
    if weight is not None:
        rows = {block: functional.linear(each, weight, bias) for block, each in rows.items()}
    return Found("vpt", image=rows, persist=deep is None, head=_head(names))


def pro_vpt(names: Names) -> Found | None:
    """Read PRO-VPT: a token for each place in its lists, each times its gate."""
    rows = _lists(names, "prompts_per_layer")
    if not rows:
        if names.get("init_prompt_embeddings") is not None:
            raise VPromptError(
                "The file holds init_prompt_embeddings, what PRO-VPT starts from and deletes. Its "
                "learned tokens stand in the lists `prompts_per_layer`, which its own code does "
                "not save: save those."
            )
        return None
    gates = _lists(names, "prompt_gates_per_layer")
    for block, tokens in rows.items():
        if block in gates:
            rows[block] = tokens * gates[block].reshape(-1, 1)
    return Found("pro_vpt", image=rows, persist=False, head=_head(names))


def coop(names: Names) -> Found | None:
    """Read CoOp: context words that all classes share."""
    context = names.get("ctx")
    if context is None:
        return None
    if names.get("meta_net.linear1.weight") is not None:
        raise VPromptError(
            "The file is of CoCoOp, whose context is another one for every image (meta_net). Here "
            "all images share one. Train CoOp."
        )
    others = [names.get(name) for name in ("proj.weight", "image_encoder.VPT")]
    if any(each is not None for each in others):
        raise VPromptError(
            "The file holds image prompts beside its context, so it is of MaPLe or IVLP. Read it "
            "with --from maple."
        )
    if context.dim() == 3:
        raise VPromptError(
            f"The file holds a context for each of {len(context)} classes (CSC), and here all "
            "classes share one. Train CoOp with a generic context."
        )
    return _with_words(Found("coop", text={0: context}), names)


def maple(names: Names) -> Found | None:
    """Read MaPLe, whose image tokens are made of its text tokens, or IVLP, which has both."""
    projection = names.get("proj.weight")
    deeper = names.numbered("compound_prompts_text.#")
    context = names.get("ctx")
    if context is None:
        return None
    if projection is None:
        return _ivlp(names, context)
    weights = names.numbered("compound_prompt_projections.#.weight")
    biases = names.numbered("compound_prompt_projections.#.bias")
    if not weights.keys() == biases.keys() == deeper.keys():
        raise VPromptError(
            f"The file holds {len(deeper)} deeper text prompts and {len(weights)} projections."
        )
    text = {0: context} | {block + 1: rows for block, rows in deeper.items()}
    image = {0: functional.linear(context, projection, names.get("proj.bias"))}
    for block, rows in deeper.items():
        image[block + 1] = functional.linear(rows, weights[block], biases[block])
    return _with_words(Found("maple", image=image, text=text, early=True), names)


def _ivlp(names: Names, context: Tensor) -> Found | None:
    image = names.numbered("image_encoder.transformer.resblocks.#.VPT_shallow")
    text = names.numbered("text_encoder.transformer.resblocks.#.VPT_shallow")
    first = names.get("image_encoder.VPT")
    if first is None and not text:
        return None
    rows = image if first is None else {0: first, **image}
    return _with_words(Found("ivlp", image=rows, text={0: context, **text}, early=True), names)


def dpl(names: Names) -> Found | None:
    """Read DPL's second stage: lists of any length for the blocks of both towers."""
    image, text = names.numbered("ctx_img_lst.#"), names.numbered("ctx_txt_lst.#")
    if not image and not text:
        return None
    return _with_words(Found("dpl", image=image, text=text, persist=False), names)


def peft(names: Names) -> Found | None:
    """Read PEFT's prompt tuning: tokens before the first block."""
    rows = names.get("prompt_embeddings", "prompt_encoder.default.embedding.weight")
    if rows is None:
        return None
    return Found("peft", image={0: _rows(rows, "the prompt")}, head=_head(names))


READERS: dict[str, Callable[[Names], Found | None]] = {
    "vpt": vpt,
    "vtab": vpt,
    "coop": coop,
    "maple": maple,
    "pro_vpt": pro_vpt,
    "dpl": dpl,
    "peft": peft,
}


def read(program: str, tensors: Named, where: str) -> Found:
    """Return what a file of a program holds; one that fits no layout is named with its tensors."""
    names = Names(tensors)
    found = READERS[program](names)
    if found is None:
        others = [
            other
            for other, reader in READERS.items()
            if other != program and _fits(reader, tensors)
        ]
        instead = f" It fits --from {others[0]}." if others else ""
        some = ", ".join(f"{key} {_shape(value)}" for key, value in list(tensors.items())[:5])
        raise VPromptError(
            f"{where} has not the layout of {program}: it holds {some or 'no tensors'}"
            f"{' and more' if len(tensors) > 5 else ''}.{instead}"
        )
    found.used = names.used
    for tower, rows in (("image", found.image), ("text", found.text)):
        _check(rows, tower, where)
    return found


def _fits(reader: Callable[[Names], Found | None], tensors: Named) -> bool:
    try:
        return reader(Names(tensors)) is not None
    except VPromptError:
        return False


def _check(rows: dict[int, Tensor], tower: str, where: str) -> None:
    widths = {each.shape[-1] for each in rows.values()}
    if any(each.dim() != 2 for each in rows.values()) or len(widths) > 1:
        shapes = ", ".join(_shape(each) for each in rows.values())
        raise VPromptError(f"{where}: its {tower} prompts are {shapes}, of no one width.")
    if not all(bool(torch.isfinite(each).all()) for each in rows.values()):
        raise VPromptError(f"{where}: its {tower} prompts hold values that are not finite numbers.")


def _cut(stacked: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the first block's rows and the others' of `[blocks, tokens, width]`."""
    if stacked.dim() != 3:
        raise VPromptError(f"Prompt_Tokens are [blocks, tokens, width], not {_shape(stacked)}.")
    return stacked[:1], stacked[1:] if len(stacked) > 1 else None


def _rows(value: Tensor, what: str) -> Tensor:
    if value.dim() == 3 and len(value) == 1:
        value = value[0]
    if value.dim() != 2:
        raise VPromptError(f"{what} is [1, tokens, width], not {_shape(value)}.")
    return value


def _lists(names: Names, name: str) -> dict[int, Tensor]:
    """Return stacked tensors of `name.block.place`."""
    pattern = re.compile(rf"(?:^|\.){name}\.(\d{{1,4}})\.(\d{{1,5}})$")
    parts: dict[int, dict[int, Tensor]] = {}
    for key, value in names.tensors.items():
        match = pattern.search(key)
        if match:
            names.used.add(key)
            parts.setdefault(int(match[1]), {})[int(match[2])] = value.detach().float().reshape(-1)
    return {block: torch.stack([each[i] for i in sorted(each)]) for block, each in parts.items()}


def _head(names: Names) -> tuple[Tensor, Tensor] | None:
    if names.numbered("head.projection.#.weight"):
        raise VPromptError(
            "The head in the file is a network of several layers (MLP_NUM above 0), and a prompt's "
            "head here is linear."
        )
    weight = names.get("head.last_layer.weight", "head.weight")
    bias = names.get("head.last_layer.bias", "head.bias")
    if weight is None:
        return None
    return weight, torch.zeros(len(weight)) if bias is None else bias


def _with_words(found: Found, names: Names) -> Found:
    found.words, found.suffix = names.get("token_prefix"), names.get("token_suffix")
    return found


def _shape(value: Tensor) -> str:
    return str(list(value.shape))
