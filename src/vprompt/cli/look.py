"""Command line of `vprompt attention`: where the tokens of one image look."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.cli import terminal
from vprompt.cli.options import (
    ArtifactOption,
    BackboneOption,
    DeviceOption,
    ForceOption,
    QuietOption,
)
from vprompt.core.errors import VPromptError

_PROMPT_TOKENS = 8  # shown by themselves


def attention(
    image: Annotated[Path, typer.Argument(help="One image file.")],
    artifact: ArtifactOption,
    output: Annotated[
        Path, typer.Option(help="A .html file with everything, or a .png of the overview.")
    ] = Path("attention.html"),
    report: Annotated[Path | None, typer.Option(help="Add it to this existing report.")] = None,
    model: BackboneOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw where the class token and the prompt tokens look, with the prompt and without."""
    from vprompt.data.decoding import fit, read_rgb
    from vprompt.data.preprocessing import Values
    from vprompt.inference import looking
    from vprompt.opening import open_artifact, open_for
    from vprompt.report import looks

    if output.suffix not in (".html", ".png"):
        raise VPromptError(f"--output is a .html or .png file, but got {str(output)!r}.")
    if report is not None and not report.is_file():
        raise VPromptError(f"No report at {report}. Write one first: `vprompt learn --report`.")
    with terminal.progress(quiet) as progress:
        loaded = open_artifact(artifact, progress=progress)
        backbone = open_for(loaded, model, device=device, force=force, progress=progress)
        prompt = looking.prompt_of(loaded, backbone)
        config = loaded.data_config
        try:
            pixels = fit(read_rgb(image, config.values or Values()), config)
        except VPromptError:
            raise
        except Exception as error:  # broken files make Pillow raise almost anything
            raise VPromptError(f"{image} cannot be read as an image ({error}).") from None
        bare = looking.look(backbone, pixels, None)
        prompted = None if prompt is None else looking.look(backbone, pixels, prompt)
    sheets = _sheets(looks, pixels, bare, prompted)
    facts = _facts(image, loaded.name, prompted)
    if report is not None:
        looks.add_to(report, facts, sheets)
        terminal.say(f"added to {report}")
    elif output.suffix == ".png":
        from vprompt.core.files import atomic_file

        with atomic_file(output) as draft:
            next(iter(sheets.values())).save(draft, "PNG")
        terminal.say(str(output))
    else:
        looks.write_page(f"{image.name}: where {loaded.name} looks", facts, sheets, output)
        terminal.say(str(output))


def _sheets(looks: Any, pixels: Any, bare: Any, prompted: Any) -> dict[str, Any]:
    """Return the overview, and a sheet of heads for each case."""
    depth = len(bare.blocks)
    heads = [*(f"block {index}" for index in range(depth)), "rollout"]
    rows = {}
    if prompted is not None:
        rows["class token, with prompt"] = [
            *(each.token.mean(0).numpy() for each in prompted.blocks),
            prompted.rollout.numpy(),
        ]
    rows["class token, without"] = [
        *(each.token.mean(0).numpy() for each in bare.blocks),
        bare.rollout.numpy(),
    ]
    if prompted is not None:
        rows["prompt tokens, mean"] = [
            each.prompt.mean((0, 1)).numpy() if len(each.prompt) else None
            for each in prompted.blocks
        ]
    found = {
        "Mean over heads. Light is where it looks most, dark where least; each tile has its own "
        "scale": looks.sheet(pixels, rows, heads)
    }
    for name, case in (("with the prompt", prompted), ("without", bare)):
        if case is not None:
            found[f"Class token {name}, head by head"] = looks.sheet(
                pixels,
                {f"block {i}": list(each.token.numpy()) for i, each in enumerate(case.blocks)},
                [f"head {head}" for head in range(len(case.blocks[0].token))],
            )
    shown = [] if prompted is None else [e for e in prompted.blocks if len(e.prompt)]
    if shown:
        found[f"Prompt tokens, the first {_PROMPT_TOKENS} of each block"] = looks.sheet(
            pixels,
            {
                f"block {i}": list(each.prompt[:_PROMPT_TOKENS].mean(1).numpy())
                for i, each in enumerate(prompted.blocks)
                if len(each.prompt)
            },
            [f"token {token}" for token in range(_PROMPT_TOKENS)],
        )
    return found


def _facts(image: Path, name: str, prompted: Any) -> list[str]:
    """Return what the pictures do not show, as sentences."""
    if prompted is None:
        return [f"{image.name} under {name}, which holds no prompt."]
    shares = [float(each.to_prompt.sum(-1).mean()) for each in prompted.blocks]
    most = max(range(len(shares)), key=shares.__getitem__)
    mean = sum(shares) / len(shares)
    return [
        f"{image.name} under {name}.",
        f"Of what the class token looks at, prompt tokens take {100 * shares[most]:.0f} % in block "
        f"{most}, where it is most, and {100 * mean:.0f} % on average. Through all blocks "
        f"(rollout), {100 * prompted.from_prompt:.0f} % of it comes from prompt tokens.",
    ]
