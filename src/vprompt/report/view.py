"""View: what the template shows, worked out from a run record; numbers in, words and rows out."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from vprompt.artifacts import final, measured
from vprompt.report import placement, plots, scales, searched
from vprompt.report.facts import groups
from vprompt.report.wording import Number, count, moment, percent, plural, signed, unbroken

Run = Mapping[str, Any]

_ORDER = ("no prompt", "start", "best single", "uniform", "combined")


def build(run: Run) -> dict[str, Any]:
    """Return every variable of the template."""
    recorded = final.name_in(run)
    own = final.name(run["command"], run["train"]["epochs"])  # older records call all tuned
    tests = [(own if n == recorded else n, found) for n, found in ordered_tests(run["test"])]
    return {
        "run": run,
        "title": f"{run['task']['name']}: {run['command']} with {run['method']}",
        "created": moment(run["machine"]["created_at"]),
        "headline": headline(run),
        "tests": tests,
        "final": own,
        "with_best": any(name.startswith("best single") for name, _ in tests),
        **_measured(tests, own),
        "transfer": transfer(run) if run.get("transfer") else None,
        "moves": moved(run) if run.get("moves") else None,
        "training": training(run["tuning"]),
        "placement": placed(run),
        "search": found(run),
        "cost": cost(run),
        "groups": groups(run),
        "paired": paired,
        "percent": percent,
        "signed": signed,
        "count": count,
        "plural": plural,
    }


def _measured(tests: list[tuple[str, Run]], own: str) -> dict[str, Any]:
    """Return the picture and the columns of the test split, by the kind of measurement."""
    kind = measured.of(tests[0][1]) if tests else measured.ACCURACY
    if kind is measured.ACCURACY:
        return {
            "with_top5": any(found["acc5"] is not None for _, found in tests),
            "test_plot": Markup(plots.accuracies(tests, own)) if tests else None,
            "others": None,
        }
    kept = dict(tests).get(own) or tests[-1][1]
    each = kept.get("average_precision", {}).items()
    return {
        "with_top5": False,
        "test_plot": None,
        "others": {
            "name": kind.name,
            "number": kind is measured.EXPLAINED,
            "rows": [
                {
                    "name": name,
                    "value": kind.text(measured.value(found)),
                    "interval": measured.interval(found),
                    "gain": measured.gain(found),
                    "beside": _beside(kind, found),
                }
                for name, found in tests
            ],
            "classes": [(name, "" if v is None else kind.text(v)) for name, v in each],
        },
    }


def _beside(kind: measured.Measure, found: Run) -> str:
    """Return the second figure of a candidate: the mean absolute error, or F1."""
    if kind is measured.EXPLAINED:
        return f"{found['mae']:.4g}"
    return "" if found["f1"] is None else percent(found["f1"])


def ordered_tests(test: Run) -> list[tuple[str, Run]]:
    """Put the candidates from the plainest to the final one; a record read back is alphabetical."""

    def rank(name: str) -> tuple[int, str]:
        if name in final.NAMES:
            return (len(_ORDER) + 1, name)
        known = [index for index, start in enumerate(_ORDER) if name.startswith(start)]
        return (known[0] if known else len(_ORDER), name)

    return [(name, test[name]) for name in sorted(test, key=rank)]


def headline(run: Run) -> dict[str, str]:
    """Return the result in one sentence, cut where the typography changes."""
    found = final.of(run)
    if found is None:
        return {"number": "", "text": _untested(run)}
    kind = measured.of(found)
    if kind is not measured.ACCURACY:
        span = measured.interval(found)
        over = f" (95 % interval {span})" if span else ""
        off = f", and off by {found['mae']:.4g} on average" if kind is measured.EXPLAINED else ""
        where = f"on {plural(found['images'], 'test image')}{over}{off}."
        return {"number": measured.short(found), "text": where}
    text = f"of {plural(found['images'], 'test image')} classified correctly"
    interval = f"95 % interval {percent(found['low'])} to {percent(found['high'])}"
    return {
        "number": percent(found["acc1"]),
        "text": f"{text} ({interval}){_against(found, run['test'].get('no prompt'))}.",
    }


def _against(found: Run, plain: Run | None) -> str:
    if plain is None:
        return ""
    points = round(100 * (found["acc1"] - plain["acc1"]), 1)
    if points == 0:
        return f", level with the same backbone without a prompt ({percent(plain['acc1'])})"
    word = "above" if points > 0 else "below"
    size = f"{abs(points):.1f} percentage points"
    text = f", {size} {word} the same backbone without a prompt ({percent(plain['acc1'])})"
    gain = found.get("gain")
    if gain is None:
        return text
    return f"{text}; on the same images, the difference is {paired(gain)} points"


def paired(gain: Run) -> str:
    """Return a paired difference in percentage points with its interval."""
    return f"{signed(100 * gain['low'], 1)} to {signed(100 * gain['high'], 1)}"


def _untested(run: Run) -> str:
    why = "The test split was left closed"
    if "test" not in run["task"]["splits"]:
        why = "The task has no test split"
    kept = _kept(run["tuning"])
    if kept.get("val_measure") and kept["val_score"] is not None:
        images = plural(run["task"]["splits"]["val"]["images"], "validation image")
        return f"{why}. On the {images}: {kept['val_measure']} {kept['val_score']:.3f}."
    accuracy = kept["val_accuracy"]
    if accuracy is None:
        return f"{why}, and there were no validation images: nothing was measured."
    return (
        f"{why}. On the {plural(run['task']['splits']['val']['images'], 'validation image')}, "
        f"{percent(accuracy)} were classified correctly."
    )


def _kept(tuning: Run) -> Run:
    return next(r for r in tuning["history"] if r["epoch"] == tuning["kept_epoch"])


def transfer(run: Run) -> dict[str, Any]:
    """Return the sources, heaviest first, with their figures."""
    facts = run["transfer"]
    order = sorted(
        range(len(facts["sources"])), key=lambda row: -float(facts["sources"][row]["weight"])
    )
    sources = [facts["sources"][row] for row in order]
    cosines = facts["gradient_cosines"] or []
    matrix = [[cosines[row][column] for column in order] for row in order] if cosines else []
    names, references = [source["name"] for source in sources], _references(run)
    return {
        "sources": sources,
        "total": sum(source["weight"] for source in sources),
        "weights_plot": Markup(plots.weights(sources, references)) if _scored(sources) else None,
        "cosines_plot": Markup(plots.cosines(names, matrix)) if len(matrix) > 1 else None,
        "left_out": max(0, len(sources) - plots.MOST_SOURCES),
        "annotated": len(sources) <= plots.MOST_ANNOTATED,
        "agreement": _agreement(matrix),
        "silent": any(not row[index] for index, row in enumerate(matrix)),
        "with_intervals": any(source.get("interval") for source in sources),
        "optima": _optima(facts),
        "surrogate": _surrogate(run),
    }


def _scored(sources: Sequence[Run]) -> bool:
    """Say whether any source was looked at by itself."""
    return any(source["hscore"] is not None for source in sources)


def moved(run: Run) -> dict[str, Any]:
    """Return the picture of the scales, what the pool is worth in words, and the coefficients."""
    found = run["moves"]
    verdict = str(found["verdict"])
    return {
        "plot": Markup(scales.drawing(run).svg()),
        "verdict": verdict[:1].upper() + verdict[1:],
        "why": found["why"],
        "form": found["form"],
        "rows": [
            {"name": name, "size": size, "coefficient": found["coefficients"].get(name)}
            for name, size in found["sizes"].items()
        ],
        "cosine": found["mean_cosine"],
        "centred": found["centred"],
        "members": found.get("members"),
    }


def _optima(facts: Run) -> list[dict[str, Any]]:
    """Return every optimum that was found, best first, with its heaviest sources in words."""
    found = []
    names = [s["name"] for s in facts["sources"] if not s.get("same_as")]
    for optimum in facts.get("solution", {}).get("optima", []):
        pairs = zip(optimum["weights"], names, strict=False)
        heavy = sorted(pairs, reverse=True)[:3]
        text = ", ".join(f"{name} {signed(weight, 2)}" for weight, name in heavy if weight > 0.01)
        found.append({**optimum, "heaviest": text})
    return found


def _surrogate(run: Run) -> dict[str, str] | None:
    """Return what adding up prompts lost of what adding up features promised, in words."""
    mixed = (run.get("starts") or {}).get("combined, untuned", {})
    if mixed.get("gap") is None:
        return None
    return {"gap": signed(mixed["gap"], 3), "alignment": signed(mixed["alignment"], 2)}


def _references(run: Run) -> list[tuple[str, Number]]:
    """Return the H-scores that sources are compared with; one that is not a number is left out."""
    starts = run.get("starts") or {}
    named = [
        ("frozen features", run["transfer"]["hscore_plain"]),
        ("fused features", run["transfer"]["hscore_fused"]),
        ("uniform sum", starts.get("uniform, untuned", {}).get("hscore")),
        ("weighted sum", starts.get("combined, untuned", {}).get("hscore")),
        ("noise floor", run["transfer"].get("solution", {}).get("noise_floor")),
    ]
    return [(name, value) for name, value in named if value is not None]


def _agreement(matrix: Sequence[Sequence[Number]]) -> str:
    """Say in words how far the gradients agree."""
    pairs = [row[column] for index, row in enumerate(matrix) for column in range(index)]
    if not pairs:
        return ""
    against = sum(value < 0 for value in pairs)
    mean = signed(sum(pairs) / len(pairs), 2)
    return f"Mean over the {plural(len(pairs), 'pair')}: {mean}; {count(against)} below 0."


def training(tuning: Run) -> dict[str, Any]:
    """Return the curve, unless there is nothing to draw, and its numbers."""
    history = tuning["history"]
    scored = next((r["val_measure"] for r in history if r.get("val_measure")), "")
    judged = [r for r in history if r.get("val_score" if scored else "val_accuracy") is not None]
    drawable = len(history) > 1 and (judged or any(r["train_loss"] is not None for r in history))
    return {
        "history": history,
        "plot": Markup(plots.curve(history, tuning["kept_epoch"])) if drawable else None,
        "kept": unbroken(tuning["kept"][:1].upper() + tuning["kept"][1:]),
        "validated": bool(judged),
        "scored": scored,
    }


def placed(run: Run) -> dict[str, Any] | None:
    """Return the picture of where tokens stood and moved, and its numbers, if any may move."""
    if not (run["tuning"].get("memory") or {}).get("placement"):
        return None
    return {
        "plot": Markup(placement.drawing(run).svg()),
        "summary": placement.summary(run),
        "flows": placement.flows(run),
        "decisions": placement.history(run)["decisions"],
    }


def found(run: Run) -> dict[str, Any] | None:
    """Return the picture of a search for lengths and its numbers, if there was one."""
    memory = run.get("search", run).get("tuning", {}).get("memory") or {}
    if "candidates" not in memory:
        return None
    rows = searched.rows(run)
    return {
        "plot": Markup(searched.drawing(run).svg()),
        "summary": searched.summary(run),
        "rows": rows,
        "candidates": [*rows[0]["weights"]],
        "priced": any(any(price.values()) for price in memory.get("prices") or []),
    }


_STAGES = (
    *("images", "screen", "moves", "evidence", "head", "weigh", "refine", "scales", "starts"),
    *("tune", "test"),
)


def cost(run: Run) -> dict[str, Any]:
    """Return the stages in the order in which they happen, and the sizes of what was trained."""
    spent = run["seconds"]
    known = [name for name in _STAGES if name in spent]
    stages = [(name, spent[name]) for name in [*known, *sorted(set(spent) - set(known))]]
    sizes = run["tuning"]["parameters"]
    frozen = run["backbone"]["parameters"]
    trained = sum(sizes.values())
    return {
        "plot": Markup(plots.seconds(stages)) if stages else None,
        "parameters": [*sorted(sizes.items(), reverse=True), ("frozen backbone", frozen)],
        "trained": percent(trained / (trained + frozen), 2),
    }
