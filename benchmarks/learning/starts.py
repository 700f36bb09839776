"""Compare starts of a prompt before any training: what do they do to the frozen features?

    python -m benchmarks learning.starts --data DIR

For every set and start, a closed-form head is fitted on the training features and its
cross-validated log-loss and accuracy on train800 are written; no test split is opened.
"""

from pathlib import Path

from benchmarks import RESULTS, new_parser
from vprompt.adapters import vpt
from vprompt.cli import terminal
from vprompt.core.files import read_json, write_json
from vprompt.models.heads import closed_form
from vprompt.opening import open_backbone, open_task
from vprompt.prompts.prompt import Prompt
from vprompt.results.measure import features_of

SETS = ("gtsrb", "coil20", "dtd10", "rsscn7")
STARTS = {
    "no prompt": None,
    "vpt_uniform, shallow": {"prompt_init": "vpt_uniform", "deep": False},
    "vpt_uniform, deep": {"prompt_init": "vpt_uniform", "deep": True},
    "blank, shallow": {"prompt_init": "blank", "deep": False},
    "blank, deep": {"prompt_init": "blank", "deep": True},
}
RESULT = RESULTS / "prompt_start.json"


def main() -> None:
    """Measure every start on every set and write one JSON file."""
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of image sets")
    options = parser.parse_args()
    backbone = open_backbone("demo")
    found: dict[str, dict[str, dict[str, float]]] = {}
    with terminal.progress(quiet=False) as progress:
        for name in SETS:
            task = open_task(str(options.data / name))
            examples = task.examples(task.train, backbone.data_config)
            found[name] = {}
            for start, settings in STARTS.items():
                prompt: Prompt | None = None
                if settings is not None:
                    prompt = vpt.build(backbone, **settings).prompt()
                features = features_of(backbone, prompt, examples)
                head = closed_form(features, examples.labels, len(task.classes))
                found[name][start] = {"cv_loss": head.cv_loss, "cv_accuracy": head.cv_accuracy}
                progress.say(f"{name}, {start}: {found[name][start]}")
    write_json(
        RESULT,
        {
            "backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint},
            "data_config": backbone.data_config.to_json(),
            "num_virtual_tokens": 10,
            "split": "train800, 5 folds",
            "starts": found,
        },
    )


def table() -> str:
    """Return the cross-validated log-loss of every start on every set."""
    if not RESULT.is_file():
        return ""
    found = read_json(RESULT)
    starts = list(next(iter(found["starts"].values())))
    rows = [
        "## Starts of a prompt, before any training",
        "",
        "Cross-validated log-loss (accuracy in %) of the closed-form head on train800; "
        f"{found['num_virtual_tokens']} tokens, or {found['num_virtual_tokens']} at every block.",
        "",
        "| set | " + " | ".join(starts) + " |",
        "|---" * (len(starts) + 1) + "|",
    ]
    for name, values in found["starts"].items():
        cells = [f"{v['cv_loss']:.3f} ({100 * v['cv_accuracy']:.1f})" for v in values.values()]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
