"""Deep prompts of a CLIP: in both towers, any length in every block, such as a search has found.

The tokens are keys and values of their block alone. In the text tower they stand beside the words
and are seen from every position, so the sentence around the class name stays whole.

Reference: Huang et al., "Differentiable Prompt Learning for Vision Language Models", IJCAI 2025,
arXiv 2501.00457.
"""

from typing import Any, Literal

from vprompt.adapters._clip_start import start_rows
from vprompt.adapters._coop_family import PUBLISHED
from vprompt.adapters._distill import DistilledText, DistilledTowers, Teacher
from vprompt.artifacts import artifact
from vprompt.core.errors import VPromptError
from vprompt.core.randomness import stream
from vprompt.core.settings import Settings, takes
from vprompt.learning.adapter import Adapter
from vprompt.learning.text_adapter import chosen_templates, two_towers
from vprompt.models.backbone import Backbone
from vprompt.models.two_tower import TwoTower
from vprompt.prompts.prompt import Prompt, place

_PAPER = {**PUBLISHED, "lr": 0.0035, "augment": "crop_flip", "precision": "fp32"}


class ClipDeep(Settings):
    """The settings.

    A list of tokens names every block's count, and 0 leaves a tower as it is. `start` names the
    folder of an artefact whose prompts go on being learned, such as those of a search; counts and
    `prompt_init` are then its own. `templates` is as for `zero_shot`, and `prompt_init` one of
    `unit`, `normal`, `uniform` and `small`.

    With `distill` above 0 the loss gains that weight times KL(teacher || learned) at `temperature`:
    the teacher is the model without prompts, reading the classes in `teacher_templates` (as
    `templates`; by default the same sentences). `batchmean` is the mean over images, `mean` that
    over images and classes, as in DPL's code. At 0 there is no teacher.
    """

    num_image_tokens: int | list[int] = 2
    num_text_tokens: int | list[int] = 2
    start: str | None = None
    templates: str | None = None
    prompt_init: str = "unit"
    prompt_init_seed: int = 0
    distill: float = 0.0
    temperature: float = 1.0
    distill_reduction: Literal["batchmean", "mean"] = "batchmean"
    teacher_templates: str | None = None


@takes(ClipDeep)
def build(backbone: Backbone, settings: ClipDeep) -> Adapter:
    """Start tokens in every block of the towers."""
    clip = two_towers(backbone, "clip_deep")
    if settings.start is None:
        drawn = (settings.prompt_init, settings.prompt_init_seed)
        image = _tokens(clip, "image", settings.num_image_tokens, *drawn)
        text = _tokens(clip, "text", settings.num_text_tokens, *drawn)
    else:
        image, text = _inherited(clip, settings.start)
    if image is None and text is None:
        raise VPromptError(
            "Prompts of no tokens learn nothing. Give some to a tower, or use the method "
            "`zero_shot`."
        )
    teacher = Teacher(
        settings.distill,
        settings.temperature,
        settings.distill_reduction,
        chosen_templates(clip, settings.teacher_templates),
    )
    read = chosen_templates(clip, settings.templates)
    if image is None:
        return DistilledText(clip, text, read, teacher=teacher)
    return DistilledTowers(clip, image, text, read, teacher=teacher)


@takes(ClipDeep)
def training(settings: ClipDeep) -> dict[str, Any]:
    """Return the settings for few shots; as published where the tokens start as published."""
    base = {"batch_size": 4, "epochs": 40, "keep": "last"}
    return {
        **base,
        **(_PAPER if settings.prompt_init == "small" else {"lr": 0.02, "weight_decay": 0.0}),
    }


def _tokens(
    clip: TwoTower, tower: str, counts: int | list[int], kind: str, seed: int
) -> Prompt | None:
    """Return a tower's prompt as it starts, or None where it has no token."""
    part = clip if tower == "image" else clip.text
    if not (counts if isinstance(counts, int) else sum(counts)):
        return None
    blocks = place(counts, part.depth, deep=True)
    rows = start_rows(kind, len(blocks), part.dim, stream(seed, f"prompt_init, {tower}"))
    return Prompt(rows, blocks, persist=False)


def _inherited(clip: TwoTower, folder: str) -> tuple[Prompt | None, Prompt | None]:
    """Return the prompts of an artefact that was made on this model."""
    found = artifact.load(folder)
    artifact.check_fits(found.config, clip, what=f"The prompt in {folder}")
    text = None if found.text is None else found.text.prompt
    if any(prompt is not None and prompt.persist for prompt in (found.prompt, text)):
        raise VPromptError(
            f"The prompt in {folder} travels on from block to block, but `clip_deep` learns "
            "prompts that are keys and values alone. Start from one of `clip_deep` or `clip_dpl`."
        )
    return found.prompt, text
