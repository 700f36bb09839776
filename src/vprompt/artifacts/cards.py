"""Cards: the README.md of an artefact, with the head that model hubs read."""

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

from vprompt.artifacts import final, publishing
from vprompt.core.plain import in_code, in_markdown

_LISTED = 100  # classes named on a card


def write(config: dict[str, Any], run: dict[str, Any]) -> str:
    """Return the card of a run, without the places of its author's disk."""
    clean, record = publishing.published(config, run)
    assert record is not None
    return render(clean, record)


def render(config: dict[str, Any], run: dict[str, Any], *, place: str = "FOLDER") -> str:
    """Return the card: what it is, what for, how well it does, how to use it and how it was made.

    `place` is where it can be had.
    """
    task, backbone = run["task"], run["backbone"]
    head = yaml.safe_dump(_head(config, run), sort_keys=False, allow_unicode=True).strip()
    lines = [
        f"---\n{head}\n---",
        f"# {_kind(config)} for {in_markdown(task['name'])}",
        f"{_what(config)} for the frozen backbone `{in_code(backbone['name'])}` "
        f"(`{backbone['fingerprint'][:19]}`), with its head for "
        f"{task['num_classes']} classes: {_classes(config['label_names'])}. Made by vprompt "
        f"{run['machine']['versions']['vprompt']} with `{run['command']}` and the method "
        f"`{in_code(run['method'])}`.",
        "## Use",
        f"```bash\nvprompt predict IMAGES --artifact {place}\n```",
        f'```python\nimport vprompt\n\nclassifier = vprompt.load("{place}")\n'
        'found = classifier.predict("photo.jpg")[0]  # or a Pillow image, an array, a tensor, a '
        "list\nprint(found.label, found.probabilities)\n```",
        "## Intended use and limits",
        _limits(run),
        "## Results",
        _results(run),
        f"Rule for the epoch: {run['tuning']['selection']}. Result: {run['tuning']['kept']}. This "
        f"is one run with seed {run['train']['seed']}. The test split was opened once, at the end. "
        "Intervals are Wilson's 95 % for the test images. They say nothing about other seeds.",
    ]
    if run.get("screening"):
        lines += ["## Screening", _screening(run["screening"])]
    if "transfer" in run:
        lines += ["## Sources", _sources(run["transfer"]["sources"])]
    lines += [
        "## Preprocessing",
        "A prompt is valid only for the preprocessing it was learned with:",
        f"```json\n{json.dumps(config['data_config'], sort_keys=True)}\n```",
        "## Recipe",
        _recipe(config["recipe"]),
        f"Task: {json.dumps(_without_draws(task['facts']), sort_keys=True)}; "
        f"{task['splits']['train']['images']} training images, content "
        f"`{task['splits']['train']['digest'][:19]}`.",
    ]
    return "\n\n".join(lines) + "\n"


def _classes(names: list[str]) -> str:
    """Return the labels as they are predicted."""
    more = len(names) - _LISTED
    listing = ", ".join(f"`{name}`" for name in names[:_LISTED])
    return listing + (f", and {more} more in `adapter_config.json`" if more > 0 else "")


def _limits(run: dict[str, Any]) -> str:
    """Return what it is for and where it ends, as far as its record tells."""
    task, counts = run["task"], run["task"]["train_images_per_class"]
    seen = [count for count in counts if count]
    span = f"{min(seen)}" if min(seen) == max(seen) else f"{min(seen)} to {max(seen)}"
    lines = [
        f"- For images like those it was learned from: {sum(counts)} training images, {span} of "
        "each class.",
        "- Every image gets one of the classes above, even an image that shows none of them. Its "
        "probability does not warn you.",
    ]
    tested = next(iter(run["test"].values()), None)
    if tested is None:
        lines.append("- How often it is right was not measured.")
    else:
        last = _ordered(run["test"])[-1][1]
        low, high = 100 * last["low"], 100 * last["high"]
        lines.append(
            f"- It was measured on {tested['images']} images of the same source. Of such images, "
            f"{low:.0f} to {high:.0f} % get the right class (95 % interval). It may do worse on "
            "images of another camera, place or time. Measure it on your own: `vprompt evaluate`."
        )
    absent = len(counts) - len(seen)
    if absent:
        lines.append(f"- {absent} of its {task['num_classes']} classes had no training image.")
    lines.append("- It was not examined for fairness, and is not meant for decisions about people.")
    return "\n".join(lines)


def tagged(card: str, config: dict[str, Any]) -> str:
    """Return a card whose head has the tags by which a hub's search finds it.

    Cards of older artefacts lack some, and one of another origin may have no head at all.
    """
    found = re.match(r"---\n(.*?)\n---\n?", card, re.S)
    try:
        head = yaml.safe_load(found[1]) if found else {}
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date such as 2020-99-99
        head = {}
    head = head if isinstance(head, dict) else {}
    given = head.get("tags")
    given = [str(tag) for tag in given] if isinstance(given, list) else []
    name = config["base_model_name_or_path"]
    head |= {"library_name": "vprompt", **_base(config)}
    head["tags"] = list(dict.fromkeys(["vprompt", "visual-prompt", backbone_tag(name), *given]))
    body = card[found.end() :] if found else card
    return f"---\n{yaml.safe_dump(head, sort_keys=False).strip()}\n---\n{body}"


def backbone_tag(name: str) -> str:
    """Return the tag for one backbone: a hub knows only those that it holds itself."""
    return f"backbone:{name}"


def backbone_of(tags: Iterable[str]) -> str:
    """Return the backbone that a repository's tags name, or nothing."""
    start = backbone_tag("")
    return next((tag.removeprefix(start) for tag in tags if tag.startswith(start)), "")


def _base(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a hub's head says of the base model, where that is a repository of the hub."""
    name = config["base_model_name_or_path"]
    found = re.fullmatch(r"hf-hub:([\w.-]+/[\w.-]+)(@.*)?", name)
    place = config.get("base_model_repository") or (found[1] if found else "")
    if not place and re.fullmatch(r"\w+\.\w+", name):
        place = f"timm/{name}"
    return {"base_model": place, "base_model_relation": "adapter"} if place else {}


def _head(config: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    head: dict[str, Any] = {
        "library_name": "vprompt",
        **_base(config),
        "pipeline_tag": "image-classification",
        "license": run["task"]["facts"].get("licence", "other"),
        "tags": [
            "vprompt",
            "visual-prompt",
            backbone_tag(config["base_model_name_or_path"]),
            str(run["method"]).partition("(")[0],
            run["command"],
        ],
        "datasets": [run["task"]["name"]],
    }
    metrics = config.get("metrics")
    if metrics:
        head["model-index"] = [
            {
                "name": f"{_kind(config)} for {run['task']['name']}",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {
                            "type": run["task"]["name"],
                            "name": run["task"]["name"],
                            "split": "test",
                        },
                        "metrics": [
                            {
                                "type": "accuracy",
                                "value": round(metrics["acc1"], 4),
                                "name": _measured(metrics),
                            }
                        ],
                    }
                ],
            }
        ]
    return head


def _measured(metrics: dict[str, Any]) -> str:
    """Return what stands beside an accuracy, so that nobody takes 20 images for 20,000."""
    return (
        f"accuracy on {metrics['images']} images, 95 % interval {metrics['low']:.3f} to "
        f"{metrics['high']:.3f}"
    )


def _kind(config: dict[str, Any]) -> str:
    return "Visual prompt" if _tokens(config) else "Adapter"


def _what(config: dict[str, Any]) -> str:
    tokens = _tokens(config)
    return f"A visual prompt of {tokens} tokens" if tokens else "What was learned without a prompt"


def _tokens(config: dict[str, Any]) -> int:
    """Return how many tokens a prompt has, in the text tower, too."""
    text = config.get("text") or {}
    return sum(config["num_virtual_tokens"]) + sum(text.get("num_virtual_tokens", ()))


def _ordered(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return measurements, what others are compared with first, and the artefact's own last.

    A record that was read from a file has its keys in another order than when it was made.
    """
    names = final.NAMES
    return sorted(found.items(), key=lambda e: (e[0] in names, e[1]["gain"] is not None, e[0]))


def _results(run: dict[str, Any]) -> str:
    if not run["test"]:
        return "Not measured: the test split was left closed."
    rows = [
        "| on the test split | accuracy | 95 % interval | gain, paired | images |",
        "|---|---|---|---|---|",
    ]
    for name, found in _ordered(run["test"]):
        gain = found["gain"]
        paired = (
            ""
            if gain is None
            else (
                f"{100 * gain['difference']:+.1f} ({100 * gain['low']:+.1f} to "
                f"{100 * gain['high']:+.1f}) over {in_markdown(gain['over'])}"
            )
        )
        rows.append(
            f"| {in_markdown(name)} | {100 * found['acc1']:.1f} % | {100 * found['low']:.1f} to "
            f"{100 * found['high']:.1f} % | {paired} | {found['images']} |"
        )
    return "\n".join(rows)


def _screening(found: dict[str, Any]) -> str:
    """Return what each stage kept and left out; the names and reasons stand in run.json."""
    rows = [
        "The pool was too large to be passed whole. `run.json` says of every source why it was "
        "left out.",
        "| stage | rule | kept | left out |\n|---|---|---|---|",
    ]
    rows[1] += "".join(
        f"\n| {stage['name']} | {stage['rule']} | {stage['kept']} | {len(stage['left_out'])} |"
        for stage in found["stages"]
    )
    return "\n\n".join(rows)


def _sources(sources: list[dict[str, Any]]) -> str:
    scored = any(source["hscore"] is not None for source in sources)
    rows = ["| source | weight |", "|---|---|"]
    if scored:
        rows = ["| source | weight | H-score on the target |", "|---|---|---|"]
    for source in sorted(sources, key=lambda source: -source["weight"]):
        score = f" {source['hscore']:.3f} |" if scored else ""
        rows.append(f"| {in_markdown(source['name'])} | {source['weight']:.3f} |{score}")
    return "\n".join(rows)


def _recipe(recipe: dict[str, Any]) -> str:
    """Return the recipe; that of a combination can be saved and run again."""
    replay = recipe.get("replay")
    if replay is None:
        return f"```json\n{json.dumps(recipe, indent=2, sort_keys=True)}\n```"
    text = yaml.safe_dump(replay, sort_keys=False).strip()
    return (
        "Run it again with `vprompt combine --recipe FOLDER`, or save this as a file, with the "
        "places of the sources and of the images put in:\n\n"
        f"```yaml\n{text.replace('```', chr(39) * 3)}\n```"
    )


def _without_draws(facts: dict[str, Any]) -> dict[str, Any]:
    """Leave out the long lists of drawn rows; they stand in run.json."""
    short = dict(facts)
    if "few_shot" in short:
        draw = short["few_shot"]
        short["few_shot"] = {key: draw[key] for key in ("shots", "seed", "fewer") if key in draw}
    return short
