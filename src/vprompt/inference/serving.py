"""Serving: one frozen backbone for many tasks, an artefact of its own for every image of a batch.

Prompts of different lengths and placements share a forward pass; heads may have different classes.
Nothing here opens a network port.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from vprompt.artifacts.artifact import Artifact, check_fits
from vprompt.core.errors import VPromptError
from vprompt.core.precision import autocast
from vprompt.core.progress import SILENT, Progress
from vprompt.core.types import Features, Images
from vprompt.data import inputs
from vprompt.learning.adapter import Adapter
from vprompt.models.backbone import Backbone, extract
from vprompt.opening import open_adapter, open_artifact, open_for
from vprompt.prompts.prompt import Prompt, PromptBatch


@dataclass(frozen=True, eq=False)
class PromptServer:
    """Artefacts by name, and the frozen backbone that all of them were learned on.

    Raises VPromptError if one does not fit the backbone, unless `force`. Float images that cannot
    be normalised are refused, unless `check` is False.
    """

    backbone: Backbone
    artifacts: Mapping[str, Artifact]
    force: bool = False
    check: bool = True
    _prompts: dict[str, Prompt] = field(init=False, default_factory=dict)
    _adapters: dict[str, Adapter] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Check every artefact, and open what it adapts the backbone with."""
        device = self.backbone.device
        for name, each in self.artifacts.items():
            if not self.force:
                check_fits(each.config, self.backbone, what=f"The artefact {name!r}")
            adapted = open_adapter(each, self.backbone)
            if isinstance(adapted, Adapter):
                self._adapters[name] = adapted
                continue
            nothing = Prompt(torch.zeros(0, self.backbone.dim), torch.zeros(0, dtype=torch.long))
            self._prompts[name] = (adapted or nothing).to(device)

    def layout(self, name: str) -> str:
        """Return what artefacts have in common whose prompts stand in the same places.

        Images of one layout have the same bits alone and together; where layouts are mixed, rows
        are filled up and masked, which is exact but for rounding.
        """
        prompt = self._prompts.get(name)
        if prompt is None:
            return f"the method of {name}"
        return f"{prompt.counts(self.backbone.depth)}, {prompt.persist}"

    def features(
        self, images: Images, adapter_names: Sequence[str], *, precision: str = "auto"
    ) -> Features:
        """Return the features of image i under the artefact `adapter_names[i]`, fp32, on the CPU.

        All prompts share one forward pass; an artefact of a method without a prompt has one of its
        own. Raises VPromptError where their features are not equally wide, as an ensemble's.
        """
        found = self._each(images, adapter_names, precision)
        widths = sorted({len(each) for each in found})
        if len(widths) > 1:
            raise VPromptError(
                f"The features of these artefacts are {widths} wide, so they fit in no one tensor. "
                "Ask for those of an ensemble by themselves, or for `logits`."
            )
        return torch.stack(found) if found else torch.empty(0, self.backbone.feature_dim)

    def _each(self, images: Images, adapter_names: Sequence[str], precision: str) -> list[Tensor]:
        """Return the features of every image, each as wide as its artefact makes them."""
        self._check_names(len(images), adapter_names)
        if self.check and images.is_floating_point():
            inputs.check_normalised(images, self.backbone.data_config)
        found: dict[int, Tensor] = {}
        with torch.no_grad(), autocast(precision, self.backbone.device):
            for name in {*adapter_names} & self._adapters.keys():
                rows = _rows(adapter_names, {name})
                features = self._adapters[name].features(images[rows]).float().cpu()
                found |= dict(zip(rows.tolist(), features, strict=True))
            rows = _rows(adapter_names, self._prompts)
            if len(rows):
                names = [adapter_names[row] for row in rows.tolist()]
                mine = images if len(rows) == len(images) else images[rows]
                features = self._prompted(mine, names).float().cpu()
                found |= dict(zip(rows.tolist(), features, strict=True))
        return [found[row] for row in range(len(images))]

    def logits(
        self, images: Images, adapter_names: Sequence[str], *, precision: str = "auto"
    ) -> list[Tensor]:
        """Return the logits `[classes]` of every image over the classes of its own artefact."""
        features = self._each(images, adapter_names, precision)
        found: dict[int, Tensor] = {}
        for name in dict.fromkeys(adapter_names):
            rows = _rows(adapter_names, {name})
            seen = torch.stack([features[row] for row in rows.tolist()])
            logits = self.artifacts[name].head.logits(seen)
            found |= dict(zip(rows.tolist(), logits, strict=True))
        return [found[row] for row in range(len(features))]

    def _prompted(self, images: Images, names: Sequence[str]) -> Features:
        chosen = list(dict.fromkeys(names))
        if len(chosen) == 1:
            return extract(self.backbone, images, self._prompts[chosen[0]])
        place = {name: index for index, name in enumerate(chosen)}
        which = torch.tensor([place[name] for name in names])
        batch = PromptBatch([self._prompts[name] for name in chosen], which)
        return extract(self.backbone, images, batch)

    def _check_names(self, count: int, names: Sequence[str]) -> None:
        unknown = next((name for name in names if name not in self.artifacts), None)
        if unknown is not None:
            known = ", ".join(self.artifacts)
            raise VPromptError(f"No artefact {unknown!r} is served. There are: {known}.")
        if len(names) != count:
            raise VPromptError(
                f"Every image names one artefact, but got {count} images and {len(names)} names."
            )


def serve(
    places: Sequence[Path | str],
    *,
    model: str | Backbone | None = None,
    device: str = "auto",
    force: bool = False,
    check: bool = True,
    progress: Progress = SILENT,
) -> PromptServer:
    """Return a server of artefact folders (or `hf-hub:user/name`), named as they were given.

    The backbone is the one that they name, unless `model` gives another. All have to share it, with
    its image size and preprocessing; others raise a VPromptError. `check=False` takes images as
    they are, whatever the range of their floats.
    """
    if not places:
        raise VPromptError("There are no artefacts to serve. Name at least one folder.")
    loaded = {
        str(place): open_artifact(place, progress=progress)
        for place in dict.fromkeys(map(str, places))
    }
    if not force:
        _check_shared(loaded)
    first = next(iter(loaded.values()))
    backbone = open_for(first, model, device=device, force=force, progress=progress)
    return PromptServer(backbone, loaded, force, check)


def _check_shared(loaded: Mapping[str, Artifact]) -> None:
    """Refuse artefacts of several backbones, naming one of each kind."""
    kinds: dict[tuple[str, str], str] = {}
    for name, each in loaded.items():
        seen = str(replace(each.data_config, values=None))  # a range is of images, not of a model
        kinds.setdefault((each.config["base_model_fingerprint"], seen), name)
    if len(kinds) == 1:
        return
    said = "; ".join(
        f"{name!r} on {loaded[name].config['base_model_name_or_path']!r} at "
        f"{loaded[name].data_config.shown_size} px"
        for name in kinds.values()
    )
    raise VPromptError(
        f"Artefacts that share a batch share the backbone's weights and preprocessing, but these "
        f"were learned apart: {said}. Predict those of each backbone by themselves."
    )


def _rows(names: Sequence[str], wanted: Container[str]) -> Tensor:
    return torch.tensor([row for row, name in enumerate(names) if name in wanted], dtype=torch.long)
