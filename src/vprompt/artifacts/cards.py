"""Cards: the README.md of an artefact, with the head that model hubs read."""

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

from vprompt.artifacts import final, measured, publishing
from vprompt.artifacts.header import ANSWERS
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
        f"(`{backbone['fingerprint'][:19]}`), with its head for {_answers(config)}. "
        f"Made by vprompt {run['machine']['versions']['vprompt']} with `{run['command']}` and the "
        f"method `{in_code(run['method'])}`.",
        "## Use",
        f"```bash\nvprompt predict IMAGES --artifact {place}\n```",
        f'```python\nimport vprompt\n\nclassifier = vprompt.load("{place}")\n'
        'found = classifier.predict("photo.jpg")[0]  # or a Pillow image, an array, a tensor, a '
        f"list\nprint({_READ[_target(config)]})\n```",
        "## Intended use and limits",
        _limits(run),
        "## Results",
        _results(run),
        *_each_class(config, run),
        f"Rule for the epoch: {run['tuning']['selection']}. Result: {run['tuning']['kept']}. This "
        f"is one run with seed {run['train']['seed']}. The test split was opened once, at the end. "
        f"Intervals are {_INTERVALS[_target(config)]} for the test images. They say nothing about "
        "other seeds.",
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


_READ = {
    "class": "found.label, found.probabilities",
    "several": "found.labels, found.probabilities",
    "number": "found.value",
}
_DRAWN = "the middle 95 % of 500 draws"
_INTERVALS = {"class": "Wilson's 95 %", "several": _DRAWN, "number": _DRAWN}


def _target(config: dict[str, Any]) -> str:
    """Return what the head gives an image."""
    kind = config.get("head_type")
    return kind if kind in ANSWERS else "class"


def _answers(config: dict[str, Any]) -> str:
    """Return what an image is given, in words."""
    names, target = config["label_names"], _target(config)
    if target == "number":
        return f"one number, {in_markdown(names[0])}"
    several = ", any of which an image may have" if target == "several" else ""
    return f"{len(names)} classes{several}: {_classes(names)}"


def _each_class(config: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """Return a table of thresholds and average precisions, where there are several classes."""
    if _target(config) != "several":
        return []
    own = _ordered(run["test"])[-1][1] if run["test"] else {}
    rows = ["| class | given from probability | average precision |", "|---|---|---|"]
    for name, limit in list(zip(config["label_names"], config["thresholds"], strict=True))[
        :_LISTED
    ]:
        precision = own.get("average_precision", {}).get(name)
        said = "" if precision is None else f"{100 * precision:.1f} %"
        rows.append(f"| {in_markdown(name)} | {limit:.3f} | {said} |")
    chosen = "val" in run["task"]["splits"] or run.get("folds")
    how = (
        "by the largest F1 on validation images" if chosen else "a half: nothing to choose them by"
    )
    return [f"Thresholds are {how}.", "\n".join(rows)]


def _classes(names: list[str]) -> str:
    """Return the labels as they are predicted."""
    more = len(names) - _LISTED
    listing = ", ".join(f"`{name}`" for name in names[:_LISTED])
    return listing + (f", and {more} more in `adapter_config.json`" if more > 0 else "")


_ALWAYS = {
    "class": "- Every image gets one of the classes above, even an image that shows none of them. "
    "Its probability does not warn you.",
    "several": "- An image of something else may get classes as well. Their probabilities do not "
    "warn you.",
    "number": "- Every image gets a number, even an image of something else. Numbers beyond those "
    "it was learned from are guesses.",
}


def _expected(found: dict[str, Any]) -> str:
    """Say what is to be expected of other images of the same source."""
    kind = measured.of(found)
    if kind is measured.ACCURACY:
        low, high = 100 * found["low"], 100 * found["high"]
        return f"Of such images, {low:.0f} to {high:.0f} % get the right class (95 % interval)"
    if kind is measured.EXPLAINED:
        return f"It is off by {found['mae']:.4g} on average"
    return f"Its mean average precision is {kind.text(measured.value(found))}"


def _limits(run: dict[str, Any]) -> str:
    """Return what it is for and where it ends, as far as its record tells."""
    task, counts = run["task"], run["task"]["train_images_per_class"]
    target = task.get("target", "class")
    seen = [count for count in counts if count]
    images = sum(counts) if target == "class" else task["splits"]["train"]["images"]
    trained = f"- For images like those it was learned from: {images} training images"
    if seen and target != "number":
        span = f"{min(seen)}" if min(seen) == max(seen) else f"{min(seen)} to {max(seen)}"
        trained += f", {span} of each class"
    lines = [f"{trained}.", _ALWAYS[target]]
    tested = next(iter(run["test"].values()), None)
    if tested is None:
        lines.append("- How often it is right was not measured.")
    else:
        last = _ordered(run["test"])[-1][1]
        lines.append(
            f"- It was measured on {tested['images']} images of the same source. "
            f"{_expected(last)}. It may do worse on images of another camera, place or time. "
            "Measure it on your own: `vprompt evaluate`."
        )
    absent = len(counts) - len(seen)
    if absent and target != "number":
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
        **({} if _target(config) == "number" else {"pipeline_tag": "image-classification"}),
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
    if metrics and measured.value(metrics) is not None:
        number = _target(config) == "number"
        task = "image-regression" if number else "image-classification"
        head["model-index"] = [
            {
                "name": f"{_kind(config)} for {run['task']['name']}",
                "results": [
                    {
                        "task": {"type": task},
                        "dataset": {
                            "type": run["task"]["name"],
                            "name": run["task"]["name"],
                            "split": "test",
                        },
                        "metrics": [
                            {
                                "type": _METRICS[measured.of(metrics).name],
                                "value": round(measured.value(metrics) or 0.0, 4),
                                "name": _measured(metrics),
                            }
                        ],
                    }
                ],
            }
        ]
    return head


_METRICS = {"accuracy": "accuracy", "mAP": "mean_average_precision", "R2": "r_squared"}


def _measured(metrics: dict[str, Any]) -> str:
    """Return what stands beside an accuracy, so that nobody takes 20 images for 20,000."""
    said = f"{measured.of(metrics).name} on {metrics['images']} images"
    if metrics["low"] is None:
        return said
    return f"{said}, 95 % interval {metrics['low']:.3f} to {metrics['high']:.3f}"


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
    kind = measured.of(next(iter(run["test"].values())))
    beside = _BESIDE.get(kind.name, "")
    if kind is measured.ACCURACY and run["train"].get("class_weights"):
        beside = "balanced accuracy"
    rows = [
        f"| on the test split | {kind.name} | 95 % interval | gain, paired | images |"
        + f" {beside} |" * bool(beside),
        "|---|---|---|---|---|" + "---|" * bool(beside),
    ]
    for name, found in _ordered(run["test"]):
        gain = found["gain"]
        paired = f"{measured.gain(found)} over {in_markdown(gain['over'])}" if gain else ""
        more = f" {_beside(beside, found)} |" if beside else ""
        rows.append(
            f"| {in_markdown(name)} | {kind.text(measured.value(found))} | "
            f"{measured.interval(found)} | {paired} | {found['images']} |{more}"
        )
    return "\n".join(rows)


_BESIDE = {"mAP": "F1 at the thresholds", "R2": "mean absolute error"}


def _beside(what: str, found: dict[str, Any]) -> str:
    """Return what stands in the last column of the results."""
    if what == "mean absolute error":
        return f"{found['mae']:.4g}"
    share = found["f1" if what in _BESIDE.values() else "mean_per_class_recall"]
    return "" if share is None else f"{100 * share:.1f} %"


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
