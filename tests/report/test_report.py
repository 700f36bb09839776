"""Report: one file that needs nothing else, says what was found, and survives odd records."""

import copy
import html.parser
import json
import subprocess
import sys

import pytest

VOID = {"meta", "path", "use", "rect", "br"}
MINUS = "\N{MINUS SIGN}"


def measurement(share, **changes):
    found = {"acc1": share, "low": share - 0.05, "high": share + 0.05, "acc5": None}
    return {**found, "images": 300, "majority": 0.4, "mean_per_class_recall": 0.5, **changes}


def epoch(number, accuracy, val_loss, train_loss):
    return {
        "epoch": number,
        "lr": 0.01 * (number > 0),
        "train_loss": train_loss,
        "val_accuracy": accuracy,
        "val_loss": val_loss,
    }


LEARN = {
    "command": "learn",
    "method": "vpt(num_virtual_tokens=4)",
    "settings": {"num_virtual_tokens": 4, "deep": False},
    "prompt_init": {"kind": "vpt_uniform", "seed": 0},
    "train": {"epochs": 2, "lr": 0.01, "seed": 7},
    "grid": {"lr": [0.01, 0.1]},
    "train_on": "train",
    "task": {
        "name": "panels",
        "num_classes": 3,
        "classes": ["intact", "cracked", "burnt"],
        "train_images_per_class": [12, 9, 11],
        "splits": {
            "train": {"images": 32, "digest": "sha256:aa"},
            "val": {"images": 20, "digest": "sha256:bb"},
            "test": {"images": 300},
        },
        "facts": {
            "licence": "CC0",
            "few_shot": {"shots": 12, "seed": 3, "train": list(range(5000, 5032))},
        },
    },
    "backbone": {
        "name": "tiny",
        "fingerprint": "sha256:cc",
        "parameters": 300_000,
        "token_dim": 64,
        "num_layers": 6,
        "data_config": {"input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5]},
    },
    "tuning": {
        "history": [
            epoch(0, 0.60, 0.9, None),
            epoch(1, 0.75, 0.6, 0.8),
            epoch(2, 0.70, 0.7, 0.5),
        ],
        "kept_epoch": 1,
        "kept": "kept epoch 1, 75.0 % on validation (last epoch 70.0 %)",
        "selection": "best on validation",
        "start_head": {"family": "lda", "strength": 0.1, "cv_accuracy": None, "cv_loss": 0.8},
        "parameters": {"prompt": 256, "head": 195},
        "prompt_digest": "dd",
    },
    "test": {"no prompt": measurement(0.62), "learned": measurement(0.74)},
    "seconds": {"images": 0.1, "head": 0.5, "tune": 130.0, "test": 2.0},
    "machine": {
        "created_at": "2026-11-22T13:12:40+00:00",
        "versions": {"vprompt": "0.1.0", "torch": "2.9.0"},
        "device": "cpu",
    },
}

COMBINE = {
    **{key: LEARN[key] for key in LEARN if key not in ("grid", "train_on")},
    "command": "combine",
    "method": "hgprompt",
    "pool": "prompts",
    "align": "auto",
    "scale": "auto",
    "prompt_init": None,
    "starts": {
        "no prompt": {"hscore": 0.30, "cv_accuracy": 0.6},
        "best single (birds)": {"hscore": 0.41, "cv_accuracy": 0.6},
        "uniform, untuned": {"hscore": 0.35, "cv_accuracy": None},
        "combined, untuned": {"hscore": 0.44, "cv_accuracy": 0.7},
    },
    "transfer": {
        "sources": [
            {"name": "digits", "weight": 0.1, "hscore": 0.31, "task": "digits", "digest": "e1"},
            {"name": "birds", "weight": 0.7, "hscore": 0.41, "task": "birds", "digest": "e2"},
            {"name": "cars", "weight": 0.2, "hscore": 0.29, "task": None, "digest": "e3"},
        ],
        "hscore_plain": 0.30,
        "hscore_fused": 0.46,
        "gradient_cosines": [[1.0, 0.4, -0.32], [0.4, 1.0, 0.05], [-0.32, 0.05, 1.0]],
        "start_digest": "ff",
    },
    "test": {
        "tuned": measurement(0.71, acc5=0.99),
        "combined, untuned": measurement(0.68, acc5=0.98),
        "uniform, untuned": measurement(0.65, acc5=0.98),
        "best single (birds)": measurement(0.66, acc5=0.98),
        "no prompt": measurement(0.71, acc5=0.97),
    },
}


class Page(html.parser.HTMLParser):
    """What a browser would make of the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.folded = [], [], [], []
        self.open, self.source = [], text
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            (self.folded if "details" in self.open else self.words).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace("\u202f", " ").split())

    @property
    def folded_text(self):
        return " ".join(" ".join(self.folded).replace("\u202f", " ").split())

    def count(self, tag):
        return self.tags.count(tag)


@pytest.fixture
def learned():
    return copy.deepcopy(LEARN)


@pytest.fixture
def combined():
    return copy.deepcopy(COMBINE)


@pytest.fixture(scope="module")
def page():
    """Return a function that reads the report of a run as a browser would."""
    from vprompt.report.html import render

    read = {}  # drawing takes half a second, and many tests look at the same page

    def make(run):
        key = json.dumps(run)
        if key not in read:
            read[key] = Page(render(run))
        return read[key]

    return make


def test_the_page_loads_nothing(page, combined):
    shown = page(combined)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(shown.tags)
    targets = [v for _, name, v in shown.attributes if name in ("src", "href", "xlink:href")]
    assert all(target.startswith("#") for target in targets)
    assert "@import" not in shown.source
    assert "url(" not in shown.source.replace("url(#", "")


def test_a_combination_shows_all_its_figures_with_a_description_each(page, combined):
    shown = page(combined)
    labels = [
        value for tag, name, value in shown.attributes if (tag, name) == ("svg", "aria-label")
    ]
    assert shown.count("svg") == len(labels) == 5
    assert any("birds with 0.700" in label for label in labels)
    for words in ("Sources", "Do the sources pull the same way?", "fused features", MINUS + ".32"):
        assert words in shown.text


def test_a_learned_prompt_has_no_sources(page, learned):
    shown = page(learned)
    assert shown.count("svg") == 3
    assert "Sources" not in shown.text


def test_the_headline_gives_accuracy_interval_images_and_distance_to_no_prompt(page, learned):
    assert (
        "74.0 % of 300 test images classified correctly (95 % interval 69.0 % to 79.0 %), "
        "12.0 percentage points above the same backbone without a prompt (62.0 %)."
        in page(learned).text
    )


def test_a_paired_gain_is_given_with_its_interval(page, learned):
    learned["test"]["learned"]["gain"] = {
        "over": "no prompt",
        "difference": 0.12,
        "low": 0.07,
        "high": 0.17,
        "only_here": 50,
        "only_there": 14,
    }
    text = page(learned).text
    assert "on the same images, the difference is 7.0 to 17.0 points" in text
    assert "12.0 (7.0 to 17.0)" in text


def test_the_headline_does_not_call_equal_accuracies_a_gain(page, combined):
    assert "level with the same backbone without a prompt (71.0 %)" in page(combined).text


def test_candidates_stand_from_the_plainest_to_the_final_one(combined):
    from vprompt.report.view import ordered_tests

    assert [name for name, _ in ordered_tests(combined["test"])] == [
        "no prompt",
        "best single (birds)",
        "uniform, untuned",
        "combined, untuned",
        "tuned",
    ]


def test_top_five_has_a_column_only_where_it_was_measured(page, combined, learned):
    assert "in the top 5" in page(combined).text
    assert "in the top 5" not in page(learned).text


def test_names_are_shown_and_never_run(page, combined):
    name, other = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'
    combined["task"]["name"] = combined["task"]["classes"][0] = combined["method"] = name
    combined["transfer"]["sources"][1]["name"] = combined["backbone"]["name"] = name
    combined["transfer"]["sources"][2]["name"] = combined["task"]["classes"][1] = other
    combined["task"]["facts"][name] = other
    combined["test"][f"best single ({other})"] = combined["test"].pop("best single (birds)")
    combined["seconds"][name] = 1.0
    shown = page(combined)
    assert not {"script", "img"} & set(shown.tags)
    assert not [attribute for attribute in shown.attributes if attribute[1].startswith("on")]
    assert shown.text.count(name) >= 4
    assert name in shown.folded_text
    assert other in shown.text
    assert other in shown.folded_text


def test_names_may_hold_formulas_line_breaks_and_other_scripts(page, combined):
    names = ["$\\frac{1}{2}$", "太陽\n電池", "very " * 20]
    for source, name in zip(combined["transfer"]["sources"], names, strict=True):
        source["name"] = name
    shown = page(combined)
    assert "$\\frac{1}{2}$" in shown.text
    assert "太陽 電池" in shown.text


def test_a_closed_test_split_is_said_and_validation_speaks_instead(page, learned):
    learned["test"] = {}
    shown = page(learned).text
    assert "The test split was left closed. On the 20 validation images, 75.0 % were" in shown
    assert "Accuracy on the test split" not in shown
    assert "opened once" not in shown


def test_a_task_without_test_split_is_said(page, learned):
    learned["test"] = {}
    del learned["task"]["splits"]["test"]
    assert "The task has no test split." in page(learned).text


def test_without_validation_images_the_training_loss_is_drawn_alone(page, combined):
    del combined["task"]["splits"]["val"]
    for record in combined["tuning"]["history"]:
        record["val_accuracy"] = record["val_loss"] = None
    combined["tuning"]["kept_epoch"] = 2
    shown = page(combined)
    assert shown.count("svg") == 5
    assert "There were no validation images." in shown.text
    assert "validation accuracy, %" not in shown.text


def test_nothing_measured_at_all_is_said(page, learned):
    learned["test"] = {}
    del learned["task"]["splits"]["val"]
    learned["tuning"]["history"] = [epoch(0, None, None, None)]
    learned["tuning"]["kept_epoch"] = 0
    shown = page(learned)
    assert "nothing was measured" in shown.text
    assert "there is no curve to draw" in shown.text


def test_no_epoch_trained_leaves_out_the_curve(page, learned):
    learned["tuning"]["history"] = learned["tuning"]["history"][:1]
    learned["tuning"]["kept_epoch"] = 0
    shown = page(learned)
    assert shown.count("svg") == 2
    assert "there is no curve to draw" in shown.text
    assert "which here is its start" in shown.text


def test_validation_at_the_first_and_last_epoch_alone_is_enough_for_a_curve(page, learned):
    learned["tuning"]["history"][1].update(val_accuracy=None, val_loss=None)
    learned["tuning"].update(kept_epoch=2, selection="last epoch")
    shown = page(learned)
    assert shown.count("svg") == 3
    assert "flatters the epoch" not in shown.text


def test_a_single_source_has_no_heat_map(page, combined):
    combined["transfer"]["sources"] = combined["transfer"]["sources"][:1]
    combined["transfer"]["gradient_cosines"] = [[1.0]]
    shown = page(combined)
    assert shown.count("svg") == 4
    assert "pull the same way" not in shown.text


def test_what_a_record_could_not_compute_is_left_out(page, combined):
    combined["starts"]["uniform, untuned"]["hscore"] = None
    combined["transfer"]["sources"][0]["hscore"] = None
    del combined["starts"]["combined, untuned"]
    shown = page(combined).text
    assert "frozen features" in shown
    assert "uniform sum" not in shown


def test_what_the_solver_found_is_shown(page, combined):
    facts = combined["transfer"]
    facts["sources"][0].update(same_as="birds", weight=0.0)
    facts["sources"][1].update(interval=[0.4, 0.95])
    facts["solution"] = {
        "noise_floor": 0.21,
        "optima": [
            {"value": 0.51, "weights": [0.8, 0.2], "steps": 7, "gap": 0.0},
            {"value": 0.48, "weights": [0.0, 1.0], "steps": 3, "gap": 0.0},
        ],
    }
    combined["starts"]["combined, untuned"].update(gap=0.02, alignment=0.97)
    shown = page(combined)
    for words in ("95 % interval", "0.400 to 0.950", "same as birds", "noise floor", "0.020"):
        assert words in shown.text
    assert "2 optima" in " ".join(shown.folded)
    assert "birds 0.80, cars 0.20" in " ".join(shown.folded)


def test_evidence_without_gradients_has_no_heat_map(page, combined):
    combined["transfer"]["gradient_cosines"] = None
    assert "pull the same way" not in page(combined).text


def test_a_negative_weight_is_drawn_and_written_with_a_real_minus(combined):
    from vprompt.report import plots

    combined["transfer"]["sources"][0]["weight"] = -0.1
    assert f"{MINUS}0.100" in plots.weights(combined["transfer"]["sources"], []).svg()


def test_a_large_pool_is_drawn_in_part_and_listed_whole(combined, monkeypatch):
    from vprompt.report import plots
    from vprompt.report.html import render

    monkeypatch.setattr(plots, "MOST_SOURCES", 2)
    text = render(combined)
    assert "the table lists 1 more source." in text
    assert "digits" in Page(text).text  # the lightest of three
    assert not any("digits" in figure for figure in figures(text))


def figures(text):
    return [part.split("</svg>")[0] for part in text.split("<svg ")[1:]]


def test_the_draw_of_images_is_folded_away(page, combined):
    shown = page(combined)
    assert "32 values" in shown.folded_text
    assert "5007, 5008" in shown.folded_text
    assert "5007" not in shown.text


def test_provenance_names_backbone_settings_versions_and_whatever_else_there_is(page, learned):
    learned["weather"] = {"mood": ["mild", "grey"]}
    shown = page(learned).folded_text
    for words in ("sha256:cc", "sha256:aa", "vpt_uniform", "2.9.0", "cracked", "mild, grey", "lda"):
        assert words in shown


def test_limits_are_in_plain_sight(page, learned):
    shown = page(learned).text
    assert "it flatters the epoch that was kept" in shown
    assert "chosen from a grid" in shown
    assert "The test split was opened once" in shown
    assert "n = 1 run with seed 7" in shown.replace("\xa0", " ")


def test_the_same_record_gives_the_same_page(page, combined):
    from vprompt.report.html import render

    assert render(combined) == page(combined).source


def test_a_record_read_back_in_another_order_gives_the_same_page(page, combined):
    read_back = json.loads(json.dumps(combined, sort_keys=True))
    assert page(read_back).source == page(combined).source


def test_figures_do_not_share_identifiers(page, combined):
    found = [value for _, name, value in page(combined).attributes if name == "id"]
    assert len(found) == len(set(found))


def test_a_report_that_cannot_be_rendered_leaves_the_old_one(tmp_path, learned):
    from vprompt.core.errors import VPromptError
    from vprompt.report import write_report

    path = tmp_path / "report.html"
    path.write_text("the old one")
    del learned["tuning"]["kept"]
    with pytest.raises(VPromptError, match="missing: 'kept'"):
        write_report(learned, path)
    assert path.read_text() == "the old one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_drawing_neither_obeys_nor_changes_the_readers_matplotlib(page, learned):
    import matplotlib

    from vprompt.report.html import render

    usual = page(learned).source
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True}):
        chosen = dict(matplotlib.rcParams)
        assert render(learned) == usual
        assert dict(matplotlib.rcParams) == chosen


def test_writing_a_report_needs_no_torch_and_no_pyplot(tmp_path):
    code = (
        "import json, sys, pathlib; from vprompt.report import write_report; "
        "write_report(json.load(sys.stdin), pathlib.Path(sys.argv[1])); "
        "print([name for name in ('torch', 'matplotlib.pyplot') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "report.html")],
        input=json.dumps(LEARN),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_numbers_are_written_for_people():
    from vprompt.report import wording

    assert wording.percent(0.12345) == "12.3\u202f%"
    assert wording.percent(None) == "\N{EN DASH}"
    assert wording.signed(-0.5, 2) == f"{MINUS}0.50"
    assert wording.signed(-0.0001, 2) == "0.00"
    assert wording.count(1234) == "1234"
    assert wording.count(85_798_656) == "85\u202f798\u202f656"
    assert [wording.plural(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert wording.duration(0.0) == "0.00\u202fs"
    assert wording.duration(90.0) == "90.0\u202fs"
    assert wording.duration(150.0) == "2.5\u202fmin"
    assert wording.duration(9000.0) == "2.5\u202fh"
    assert wording.moment("2026-11-22T13:12:40+00:00") == "2026-11-22, 13:12 UTC"
    assert wording.moment("yesterday") == "yesterday"
