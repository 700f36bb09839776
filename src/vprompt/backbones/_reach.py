"""Reach: what a model hub that does not answer means, before a library tries it for a minute.

Without a network a model that was fetched before is read from the disk at once, and any other is
refused with what to type instead.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from vprompt.backbones._asking import problem as _problem
from vprompt.backbones._names import advice
from vprompt.core.errors import VPromptError


@contextlib.contextmanager
def hub(model: str, repository: str | None) -> Iterator[None]:
    """Let what is done inside fetch a repository, or find it on this disk without a network.

    Raises VPromptError where it is on neither. None stands for a model that needs no hub.
    """
    from huggingface_hub import constants

    if repository is None or constants.HF_HUB_OFFLINE:
        yield
        return
    silent = _problem(constants.ENDPOINT)
    if not silent:
        yield
        return
    if not _is_on_disk(repository):
        raise _refusal(model, constants.ENDPOINT, silent)
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def check_url(model: str, url: str, folder: Path) -> None:
    """Raise VPromptError where weights at a plain address are neither in `folder` nor to be had.

    Libraries keep such a file in `folder` under its own name, and try for a minute to fetch it.
    """
    from huggingface_hub import constants

    parts = urlsplit(url)
    if (folder / Path(parts.path).name).is_file():
        return
    host = f"{parts.scheme}://{parts.netloc}"
    offline = "HF_HUB_OFFLINE is set, so nobody is asked" if constants.HF_HUB_OFFLINE else ""
    if silent := offline or _problem(host):
        raise _refusal(model, host, silent)


def _refusal(model: str, address: str, problem: str) -> VPromptError:
    return VPromptError(
        f"The weights of {model!r} are not on this disk, and {address} does not answer "
        f"({problem}). Run the same command again with a network, or use what needs none: `demo`, "
        "`local-dir:/path`, or a weight file as `timm_vit(model=NAME, checkpoint='/path')`. "
        f"{advice(model)}".rstrip()
    )


def _is_on_disk(repository: str) -> bool:
    """Say whether the hub's library holds a copy of a repository."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    return place.is_dir() and any(place.glob("*/*"))
