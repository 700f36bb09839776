"""Names: what other programs call a model, and what one types here for it."""

import difflib
import importlib.util
import re
from pathlib import Path

import timm

_LETTERS = {"s": "small", "b": "base", "l": "large", "g": "giant"}
_OPENAI = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")
# How other programs spell a model of a family, and the name in timm, `{}` the size in words; the
# architecture alone where timm has not the same weights.
_FAMILIES = (
    (r"dinov2[_-]vit([sblg])14_reg.*", "vit_{}_patch14_reg4_dinov2.lvd142m"),
    (r"dinov2[_-]vit([sblg])14", "vit_{}_patch14_dinov2.lvd142m"),
    (r"(?:facebook/)?dinov2-with-registers-(\w+)", "vit_{}_patch14_reg4_dinov2.lvd142m"),
    (r"(?:facebook/)?dinov2-(\w+)", "vit_{}_patch14_dinov2.lvd142m"),
    (r"dino[_-]vit([sb])(?:16)", "vit_{}_patch16_224.dino"),
    (r"dino[_-]vit([sb])(?:8)", "vit_{}_patch8_224.dino"),
    (r"(?:facebook/)?dino-vit([sb])16", "vit_{}_patch16_224.dino"),
    (r"(?:facebook/)?dino-vit([sb])8", "vit_{}_patch8_224.dino"),
    (r"mae[_-]vit_?([bl])(?:16|ase_patch16|arge_patch16).*", "vit_{}_patch16_224.mae"),
    (r"(?:facebook/)?vit-mae-(base|large)", "vit_{}_patch16_224.mae"),
    (r"(?:facebook/)?deit-(tiny|small|base)-patch16-224", "deit_{}_patch16_224.fb_in1k"),
    (r"(?:google/)?vit-(base|large)-patch16-224-in21k", "vit_{}_patch16_224.orig_in21k"),
    (r"(?:google/)?siglip-(base)-patch16-224", "vit_{}_patch16_siglip_224.webli"),
    (r"sup_vit([bl])16_(?:imagenet21k|in21k)", "vit_{}_patch16_224.orig_in21k"),
    (r"(?:sup_)?vit[_-]?([bl])[_-]?16(?:_224)?", "vit_{}_patch16_224"),
)


def advice(name: str) -> str:
    """Return what a person who typed this name may have meant, as a sentence with a space behind.

    Nothing where nothing is near.
    """
    if re.match("https?://", name):
        return (
            'That is an address: download the file, and write "timm_vit(model=NAME, '
            "checkpoint='/path')\" with the name of its architecture. "
        )
    typed = name.removeprefix("hf-hub:")
    found = _on_disk(name) or (_of_open_clip(typed) if _may_be_clip(typed) else "")
    found = found or _of_timm(typed)
    return f"{found} " if found else ""


def _on_disk(name: str) -> str:
    """Return how to name a folder or a file of weights."""
    plain = name.partition(":")[2] if name.startswith("local-dir:") else name
    if not plain.strip():
        return ""
    path = Path(plain).expanduser()
    if (path / "open_clip_config.json").is_file():
        return f"That is a folder of open_clip: write \"open_clip(model='local-dir:{plain}')\"."
    if (path / "config.json").is_file() and plain != name:
        return (
            "Write \"timm_vit(model=NAME, checkpoint='FILE')\", with the name of its architecture "
            "in timm, where the weights have timm's names."
        )
    if path.is_dir() and plain == name:
        return f"That is a folder: write 'local-dir:{plain}', where it holds timm's config.json."
    if path.is_file():
        return (
            "That is a file: write \"timm_vit(model=NAME, checkpoint='"
            f"{plain}')\", with the name of its architecture."
        )
    return ""


def _may_be_clip(name: str) -> bool:
    """Say whether open_clip, whose import costs a second, may know a name: none like timm's."""
    plain = re.fullmatch(r"[a-z0-9_.]+", name)
    return not plain and ("/" not in name or "clip" in name.lower() or name.startswith("ViT"))


def _of_open_clip(name: str) -> str:
    """Return the name of a CLIP with weights, for spellings of CLIP, open_clip and Transformers."""
    if re.fullmatch(r"RN\d+(x\d+)?(-.*)?", name):
        return (
            f"{name!r} is a CLIP whose image tower is a ResNet, which has no tokens to prompt; "
            "'ViT-B-16,openai' has."
        )
    hub = re.fullmatch(r"((?:laion|apple|timm|UCSC-VLAA)/\S*CLIP\S*)", name)
    if hub:
        return f"A CLIP of a hub is written \"open_clip(model='hf-hub:{hub[1]}')\"."
    shortened = re.sub(r"^(?:openai/)?clip-vit-(base|large)-patch", _short_size, name)
    base, _, tag = re.sub(r"::|,|/(?=[a-z])", ",", shortened).partition(",")
    base = base.replace("/", "-").replace("@", "-").removesuffix("px")
    tags = _tags(base)
    if not tags:
        return ""
    known = [tag] if tag in tags else sorted(tags, key=lambda each: each != "openai")[:3]
    listing = " or ".join(f"'{_cased(base)},{each}'" for each in known)
    return f"A CLIP is named with its weights: write {listing}."


def _short_size(match: re.Match[str]) -> str:
    return f"ViT-{match[1][0].upper()}-"


def _tags(base: str) -> list[str]:
    """Return the weights of a CLIP's architecture, whatever case it is written in."""
    if importlib.util.find_spec("open_clip") is None:
        return ["openai"] if _cased(base) in _OPENAI else []
    import open_clip

    return list(open_clip.list_pretrained_tags_by_model(_cased(base)))


def _cased(base: str) -> str:
    """Return an architecture's name as open_clip writes it; the name itself where it has none."""
    names: tuple[str, ...] = _OPENAI
    if importlib.util.find_spec("open_clip") is not None:
        import open_clip

        names = tuple(open_clip.list_models())
    return next((name for name in names if name.lower() == base.lower()), base)


def _of_timm(name: str) -> str:
    """Return the name in timm of a model that another program spells otherwise."""
    plain = name.partition(":")[2].rpartition("/")[2] or name.rpartition("/")[2]
    plain = plain.lower().replace("-", "_")
    for pattern, there in _FAMILIES:
        found = re.fullmatch(pattern, name, re.IGNORECASE)
        if found:
            plain = there.format(_LETTERS.get(found[1].lower(), found[1].lower()))
            break
    architecture, _, tag = plain.partition(".")
    if timm.models.is_model(architecture):
        tags = timm.list_pretrained(f"{architecture}.*")
        if plain == name and (not tag or plain in tags):
            return ""  # spelled right: something else went wrong
        if tag and plain in tags:
            return f"In timm's spelling that is {plain!r}."
        return f"timm has {', '.join(map(repr, tags[:3]))}." if tags else ""
    names = [each for each in timm.list_models() if each.startswith(("vit_", "deit"))]
    matches = difflib.get_close_matches(architecture, names, n=1)
    return f"Did you mean {matches[0]!r}?" if matches else ""
