"""Foreign: what a file or a folder of another program is, for whoever gives it as an artefact.

Nothing is unpickled: names are looked for among the bytes.
"""

import itertools
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

PARTS = ("adapter_config.json", "adapter_model.safetensors", "README.md", "run.json")
_CONFIG = PARTS[0]
_PICKLE = re.compile(r"\.(pth|pt|pkl|pickle|ckpt|bin)(\.tar)?(-\w+)?$|\.tar-\d+$", re.IGNORECASE)
_MOST = 2**22  # bytes of a pickle that are looked through for names
_DEEPEST = 5  # folders within one another that are looked through
_LARGEST = 2000  # files that are looked at
_NAMED = 3
# What stands among the names of a pickle's tensors, whose it is, and the method here.
_PROGRAMS = (
    (b"compound_prompts", "MaPLe", "maple"),
    (b"prompt_learner.meta_net", "CoCoOp", "coop"),
    (b"VPT_shallow", "MaPLe's programs (IVLP, PromptSRC)", "ivlp"),
    (b"prompt_learner", "CoOp", "coop"),
    (b"deep_prompt_embeddings", "VPT", "vpt"),
    (b"prompt_embeddings", "VPT", "vpt"),
    (b"lora_A", "LoRA", "lora"),
)


def describe_file(path: Path) -> str:
    """Return what a file is that was given in place of an artefact's folder, as a sentence."""
    if path.name in PARTS and (path.parent / _CONFIG).is_file():
        return f"{path} is a file of an artefact. Give its folder, {path.parent}."
    if is_pickle(path):
        return f"{path} is {_pickle_of(path)}."
    if zipfile.is_zipfile(path) or path.suffix in (".tar", ".gz", ".tgz"):
        return f"{path} is an archive. Unpack it, and give the folder inside."
    if path.suffix == ".safetensors":
        return (
            f"{path} holds tensors alone, and an artefact is a folder with {_CONFIG} beside them."
        )
    return f"{path} is a file, and an artefact is a folder that `vprompt learn` wrote."


def describe_folder(folder: Path) -> str:
    """Return what a folder that is no artefact holds instead, as sentences with a space before."""
    inside = list(itertools.islice(_walk(folder), _LARGEST))
    artefacts = sorted(path.parent for path in inside if path.name == _CONFIG)
    if artefacts and artefacts[0] != folder:
        return f" It holds artefacts: name one of them, such as {artefacts[0]}."
    pickles = sorted(path for path in inside if is_pickle(path))
    if pickles:
        names = ", ".join(str(path.relative_to(folder)) for path in pickles[:_NAMED])
        return f" It holds {names}, {_pickle_of(pickles[0])}."
    names_inside = {path.name for path in inside if path.parent == folder}
    for config, family in (("open_clip_config.json", "open_clip"), ("config.json", "timm_vit")):
        if config in names_inside:
            return (
                f' It holds {config}, so it is a backbone: "--model '
                f"{family}(model='local-dir:{folder}')\"."
            )
    return ""


def is_pickle(path: Path) -> bool:
    """Say whether a file is a pickle, or PyTorch's archive around one."""
    if _PICKLE.search(path.name):
        return True
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
            return True
        return start == b"PK\x03\x04" and any(
            name.endswith("data.pkl") for name in zipfile.ZipFile(path).namelist()
        )
    except (OSError, zipfile.BadZipFile):
        return False


def _pickle_of(path: Path) -> str:
    """Return what to say of a pickle: whose it is, and how one gets what it holds here."""
    text = _names(path)
    found = next(((who, how) for mark, who, how in _PROGRAMS if mark in text), None)
    whose, how = found or ("another program", "")
    again = f"; learn its prompt here, with `--method {how}`" if how else ""
    return f"a pickle of {whose}, which could run any code and is not read{again}"


def _names(path: Path) -> bytes:
    """Return the bytes among which a pickle's names stand."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inner = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(inner) as file:
                    return file.read(_MOST)
        with path.open("rb") as file:
            return file.read(_MOST)
    except (OSError, StopIteration, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return b""


def _walk(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Yield files, not those behind links, a few folders deep."""
    try:
        with os.scandir(folder) as listing:
            found = sorted(listing, key=lambda each: each.name)
    except OSError:
        return
    for each in found:
        if each.is_dir(follow_symlinks=False) and depth + 1 < _DEEPEST:
            yield from _walk(Path(each.path), depth + 1)
        elif each.is_file(follow_symlinks=False):
            yield Path(each.path)
