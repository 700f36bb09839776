"""Moving: `combine` in move space, from a pool's moves to what is tuned."""

import functools
import shutil
from dataclasses import replace

import pytest
import torch


@pytest.fixture(scope="module")
def sources(tmp_path_factory, tiny):
    """Return a function that learns a source once for all tests, and returns its folder."""
    from vprompt import flow
    from vprompt.learning.train_config import TrainConfig

    @functools.cache
    def learn(method, epochs, seed):
        folder = tmp_path_factory.mktemp("source") / "learned"
        flow.learn(
            f"dsprites(split_seed={seed}, train=64, val=32, test=0)",
            model=tiny,
            method=method.format(seed=seed),
            config=TrainConfig(epochs=epochs, keep="last", precision="fp32"),
            output=folder,
        )
        return folder

    return learn


@pytest.fixture
def pool_of(tmp_path, sources):
    """Return a function that makes a pool of two sources and returns its folder."""

    def make(method="vpt(num_virtual_tokens=2)", epochs=3, names=("one", "two")):
        for seed, name in enumerate(names):
            shutil.copytree(sources(method, epochs, seed), tmp_path / "pool" / name)
        return tmp_path / "pool"

    return make


@pytest.fixture
def combine(tiny, tmp_path):
    """Return a function that combines for digits, four shots, and collects what was said."""
    from vprompt import flow
    from vprompt.core.progress import Silent
    from vprompt.opening import open_task

    class Listening(Silent):
        def __init__(self):
            self.said = []

        def say(self, text):
            self.said.append(text)

    digits = open_task("digits")  # eighty test images tell as much here as eight hundred
    digits = replace(digits, test=digits.test.cut(lambda split: split.subset(range(80), "test")))

    def run(pool, **given):
        heard = Listening()
        given = {"shots": 4, "test": False, **given}
        outcome = flow.combine(digits, pool=pool, model=tiny, progress=heard, **given)
        return outcome, heard.said

    return run


FORMS = ("sum", "side_by_side", "ensemble", "distil")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recorded_with_its_path_and_verdict(pool_of, combine, form):
    from vprompt.learning.train_config import TrainConfig

    config = TrainConfig(epochs=1, precision="fp32", batch_size=16, lr=1e-3)
    outcome, said = combine(pool_of(), form=form, config=config, test=True)
    moves = outcome.run["moves"]
    assert moves["form"] == form
    assert [p["name"] for p in moves["path"]][:2] == ["no prompt", "start"]
    assert moves["verdict"] in said
    assert outcome.run["replay"]["parameters"]["form"] == form
    assert {"no prompt", "start, untuned", "combined, untuned", "tuned"} <= set(outcome.test)
    tokens = 0 if outcome.artifact.prompt is None else len(outcome.artifact.prompt.tokens)
    assert tokens == {"sum": 12, "distil": 12, "ensemble": 0}.get(form, tokens)
    if form == "side_by_side" and moves["chosen"] not in ("no prompt", "start"):
        assert tokens == 24


def test_the_sum_is_the_start_plus_the_coefficients_times_the_moves(pool_of, combine, tiny):
    from vprompt.artifacts import artifact, origin
    from vprompt.learning.train_config import TrainConfig

    pool = pool_of()
    config = TrainConfig(epochs=0, precision="fp32")
    outcome, _ = combine(pool, form="sum", move_scale=3.0, config=config)
    sources = [artifact.load(pool / name) for name in ("one", "two")]
    moves, _ = origin.moves_of(sources, tiny)
    given = outcome.run["moves"]["coefficients"]
    assert sum(given.values()) == pytest.approx(3.0)
    expected = moves.sum(torch.tensor([given["one"], given["two"]], dtype=torch.float64))
    torch.testing.assert_close(outcome.artifact.prompt.tokens, expected.tokens)
    # A combined prompt knows its start as well: that of the pool, not of its own training.
    made = outcome.artifact.config["prompt_init"]
    assert made["kind"] == "blank" and made["move"] > 0


def test_moves_are_summed_without_a_look_at_any_source(pool_of, combine, monkeypatch, tmp_path):
    from vprompt.pooling import evidence

    def refuse(*_, **__):
        raise AssertionError("a source was looked at")

    pool = pool_of()
    monkeypatch.setattr(evidence, "Probe", refuse)
    outcome, _ = combine(pool, test=True)
    found = outcome.run["transfer"]
    assert outcome.run["method"] == "moves"
    assert [source["weight"] for source in found["sources"]] == [0.5, 0.5]
    assert {source["hscore"] for source in found["sources"]} == {found["hscore_fused"]} == {None}
    assert "| one | 0.500 |" in outcome.artifact.card and "H-score" not in outcome.artifact.card
    import vprompt

    vprompt.write_report(outcome.run, tmp_path / "report.html")
    assert "Every source has the same weight" in (tmp_path / "report.html").read_text()


def test_a_convex_sum_looks_at_the_sources_whatever_the_method(pool_of, combine):
    outcome, _ = combine(pool_of(), method="moves", move_scale="published")
    assert outcome.run["transfer"]["hscore_fused"] is not None
    assert "moves" not in outcome.run


def test_of_two_forms_one_sum_is_taken_only_if_it_is_clearly_better(pool_of, combine):
    outcome, _ = combine(pool_of(), shots=6)
    moves = outcome.run["moves"]
    assert set(moves["forms"]) == {"ensemble", "sum"}
    if moves["form"] == "sum":
        assert moves["forms"]["sum"] < moves["forms"]["ensemble"]
    assert moves["held_out"]["loss"] == moves["forms"][moves["form"]]


@pytest.mark.parametrize("apart, expected", [(0.0, False), (0.2, False), (2.0, True)])
def test_clearly_less_is_by_more_than_one_standard_error(generator, apart, expected):
    from vprompt.models.heldout import HeldOut
    from vprompt.pooling.moving import clearly_less

    noise = torch.randn(20, generator=generator, dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()  # its error is 1 / sqrt(20), about 0.22

    def held(losses):
        return HeldOut(losses, torch.ones(20), "ridge", 1.0, 1.0)

    one, other = torch.ones(20).double(), 1 + noise + apart
    assert clearly_less(held(one), held(other)) == expected
    assert not clearly_less(held(one), None)


@pytest.mark.parametrize("form", ["sum", "ensemble"])
def test_a_pool_that_does_not_help_is_left_out_of_what_is_made(
    pool_of, combine, tiny, images, monkeypatch, tmp_path, form
):
    import vprompt
    from vprompt.pooling import moving, scale_path

    monkeypatch.setattr(scale_path, "choose", lambda points: (0, "it was told to"))
    monkeypatch.setattr(moving, "clearly_less", lambda *_: True)
    config = {"epochs": 0, "precision": "fp32"}
    outcome, _ = combine(pool_of(), form=form, config=config, test=True, output=tmp_path / "made")
    assert "tuned" not in outcome.test  # nothing was
    assert outcome.test["result, untuned"].acc1 == outcome.test["no prompt"].acc1
    assert outcome.run["started_from"] == "no prompt, since no sum was better"
    assert outcome.artifact.prompt is None and not outcome.artifact.state
    from vprompt.opening import open_adapter

    assert open_adapter(vprompt.load_artifact(tmp_path / "made"), tiny) is None


def test_what_is_tuned_is_not_what_it_is_compared_with(pool_of, combine):
    """An ensemble is trained in place; its untuned self keeps the features that its head fits."""
    pool = pool_of()
    untuned, _ = combine(pool, form="ensemble", config={"epochs": 0}, test=True)
    config = {"epochs": 3, "lr": 0.05, "keep": "last", "batch_size": 8}
    tuned, _ = combine(pool, form="ensemble", config=config, test=True)
    before = untuned.test["combined, untuned"].to_json()
    assert tuned.test["combined, untuned"].to_json() == before


def test_a_move_that_is_there_twice_counts_once(pool_of, combine):
    pool = pool_of()
    shutil.copytree(pool / "one", pool / "copy")
    outcome, said = combine(pool)
    assert any("left out one (that of copy)" in each for each in said)
    assert set(outcome.run["moves"]["sizes"]) == {"copy", "two"}


def test_robust_asks_for_no_gradient_and_an_alignment_does(pool_of, combine):
    outcome, _ = combine(pool_of())
    assert outcome.run["transfer"]["gradient_cosines"] is None
    from vprompt.pooling.mix import plan_of

    assert plan_of("hgprompt").gradient_head is None
    assert plan_of("hgprompt(alignment=uniform)").gradient_head == "base"
    assert plan_of("hgprompt(preset=paper)").gradient_head == "base"


def test_what_is_published_stays_convex():
    from vprompt.pooling.mix import plan_of

    for method in ("hgprompt(preset=paper)", "uniform", "spot", "panda", "best", "attempt"):
        plan = plan_of(method)
        assert (plan.move_scale, plan.form) == ("published", "sum"), method
    assert plan_of("hgprompt").move_scale == "auto"
    # A scale of tokens belongs to a convex sum, so an older recipe that names one keeps its sum.
    assert plan_of("hgprompt", scale="ln").move_scale == "published"
    assert plan_of("hgprompt(refine=3)").move_scale == "published"
    assert plan_of("uniform", form="ensemble").move_scale == "auto"


@pytest.mark.parametrize(
    "given, words",
    [
        ({"form": "tower"}, "No form called 'tower'"),
        ({"move_scale": "far"}, "move_scale is `published`"),
        ({"move_scale": -1.0}, "a number above 0"),
        ({"move_scale": "published", "form": "ensemble"}, "made of moves"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, words, refused):
    from vprompt.pooling.mix import plan_of

    with refused(words):
        plan_of("hgprompt", **given)


def test_task_prompt_vectors_add_every_move_in_full(pool_of, combine, tiny):
    from vprompt.artifacts import artifact, origin
    from vprompt.learning.train_config import TrainConfig

    pool = pool_of()
    config = TrainConfig(epochs=0, precision="fp32")
    outcome, _ = combine(pool, method="task_vectors", config=config)
    moves, _ = origin.moves_of([artifact.load(pool / n) for n in ("one", "two")], tiny)
    torch.testing.assert_close(
        outcome.artifact.prompt.tokens, moves.sum(torch.ones(2, dtype=torch.float64)).tokens
    )


# Pools as they come


def test_a_prompt_that_is_its_start_is_left_out_aloud(pool_of, combine):
    pool_of(names=("one", "two"))
    outcome, said = combine(pool_of(epochs=0, names=("three",)))
    assert any("left out three: is its start" in each for each in said)
    assert set(outcome.run["moves"]["sizes"]) == {"one", "two"}


def test_a_pool_of_nothing_but_starts_is_said_to_be_one(pool_of, combine):
    outcome, said = combine(pool_of(epochs=0))
    assert any("every prompt of the pool (one, two) is the start" in each for each in said)
    assert "moves" not in outcome.run and outcome.run["move_scale"] == "published"
    assert outcome.artifact.prompt is not None


def test_one_prompt_is_a_pool(pool_of, combine):
    outcome, _ = combine(pool_of(names=("one",)))
    assert list(outcome.run["moves"]["coefficients"]) == ["one"]
    assert outcome.run["moves"]["mean_cosine"] is None


def test_sources_of_different_starts_are_said_to_be(pool_of, combine):
    pool = pool_of("vpt(num_virtual_tokens=2, prompt_init=vpt_uniform, prompt_init_seed={seed})")
    outcome, said = combine(pool)
    assert any("2 different starts" in each for each in said)
    assert outcome.run["moves"]["starts"] == 2


def test_sources_of_unknown_start_are_centred_and_it_is_said(pool_of, combine):
    import json

    pool = pool_of()
    for name in ("one", "two"):
        path = pool / name / "adapter_config.json"
        config = {**json.loads(path.read_text()), "prompt_init": None}
        config.pop("digests")
        path.write_text(json.dumps(config))
    outcome, said = combine(pool)
    assert any("start not known of one, two" in each for each in said)
    assert any("an even sum of all moves is zero" in each for each in said)
    assert outcome.run["moves"]["centred"] == ["one", "two"]


def test_one_image_a_class_is_enough(pool_of, combine):
    outcome, said = combine(pool_of(), shots=1)
    assert outcome.run["moves"]["gain"] is None
    assert any("cannot be judged" in each for each in said)


def test_prompts_of_different_lengths_move_where_they_have_tokens(pool_of, combine):
    pool_of(names=("one", "two"))
    outcome, _ = combine(pool_of("vpt(num_virtual_tokens=3)", names=("three",)))
    assert set(outcome.run["moves"]["sizes"]) == {"one", "two", "three"}


def test_a_climb_is_taken_only_if_it_is_clearly_better(pool_of, combine):
    outcome, _ = combine(pool_of(), method="moves(climb=3)", form="sum", move_scale=2.0)
    climbed = outcome.run["moves"]["climb"]
    assert len(climbed["losses"]) == 3
    assert climbed["taken"] == (climbed["gain"] > climbed["error"])
    assert min(climbed["coefficients"]) > 0
    assert (outcome.run["moves"]["chosen"] == "climbed") == climbed["taken"]


def test_a_cross_fitted_loss_is_that_of_heads_without_the_fold(generator):
    """Against a loop with explicit ridge regressions, and its gradient by finite differences."""
    from vprompt.models.heldout import HeldOut, deals
    from vprompt.pooling.climbing import cross_fitted

    labels = torch.arange(15) % 3
    fixed = torch.randn(15, 6, generator=generator, dtype=torch.float64)
    features = fixed + 0.1 * torch.randn(15, 6, generator=generator, dtype=torch.float64)
    folds = deals(labels, folds=5)[0]
    head = HeldOut(torch.zeros(1), torch.zeros(1), "ridge", 0.5, 3.0)
    total = 0.0
    for fold in range(5):
        fit = folds != fold
        data, hot = fixed[fit], torch.eye(3, dtype=torch.float64)[labels[fit]]
        mean, prior = data.mean(0), hot.mean(0)
        scatter = (data - mean).T @ (data - mean)
        penalty = 0.5 * scatter.trace() / 6
        weight = torch.linalg.solve(
            scatter + penalty * torch.eye(6, dtype=torch.float64), (data - mean).T @ (hot - prior)
        ).T
        logits = ((features[~fit] - mean) @ weight.T + prior) * 3.0
        total += float(torch.nn.functional.cross_entropy(logits, labels[~fit], reduction="sum"))
    given = features.clone().requires_grad_()
    loss = cross_fitted(given, labels, 3, head, folds, fixed)
    assert loss.item() == pytest.approx(total / 15, rel=1e-9)
    assert torch.autograd.gradcheck(
        lambda x: cross_fitted(x, labels, 3, head, folds, fixed), (given,)
    )


def test_a_picture_of_the_scales_is_drawn(pool_of, combine, tmp_path):
    from vprompt.report.scales import summary, write_scale_path

    outcome, _ = combine(pool_of(), form="sum", test=True)
    write_scale_path(outcome.run, tmp_path / "scales.svg")
    text = (tmp_path / "scales.svg").read_text()
    assert "x2" in text and "no prompt" in text and "one" in text
    assert outcome.run["moves"]["verdict"] in summary(outcome.run)


def test_a_report_says_what_the_pool_is_worth(pool_of, combine, tmp_path):
    import vprompt

    outcome, _ = combine(pool_of(), test=True)
    vprompt.write_report(outcome.run, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Is this pool worth it?" in text
    assert outcome.run["moves"]["verdict"][1:] in text


def test_a_record_of_a_convex_sum_has_no_scales_to_draw(pool_of, combine, refused):
    from vprompt.report.scales import drawing

    outcome, _ = combine(pool_of(), method="uniform")
    with refused("--move-scale auto"):
        drawing(outcome.run)
