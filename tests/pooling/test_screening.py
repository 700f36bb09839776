"""Screening: a large pool becomes a few sources, a small one is left as it is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

CLASSES = 3
SMALL = "auto(above=20, images=40, candidates=30, keep=8, support=4)"
PLANTED = ("s05", "s17", "s31")


def features_of_pool(count, images, width=12, seed=0):
    """Features that share most of what they show; labels depend on those of three sources."""
    randomness = torch.Generator().manual_seed(seed)
    features = torch.randn(count, images, width, generator=randomness)
    rows = [int(name[1:]) for name in PLANTED]
    directions = torch.randn(width, CLASSES, generator=randomness)
    labels = (features[rows].sum(0) @ directions).argmax(1)
    return features + 0.5 * torch.randn(images, width, generator=randomness), labels


@pytest.fixture
def task():
    """Sixty random images, labelled by the planted sources' features."""
    from vprompt.data.task import Split, Task

    pixels = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    labels = tuple(features_of_pool(40, 60)[1].tolist())
    return Task("target", ("a", "b", "c"), Split("train", pixels, labels), allow_absent=True)


def write_artifact(backbone, folder, *, seed, deep=False, prompt=None, classes=("a", "b"), **keys):
    """Write two shallow tokens, or a deep one for every block; `keys` change the config."""
    from vprompt import save_artifact
    from vprompt.artifacts.artifact import Artifact, make_config
    from vprompt.models.heads import Head
    from vprompt.prompts.prompt import Prompt, place

    blocks = place(1 if deep else 2, backbone.depth, deep=deep)
    randomness = torch.Generator().manual_seed(1000 + seed)
    drawn = torch.randn(len(blocks), backbone.dim, generator=randomness)
    prompt = Prompt(drawn, blocks, not deep) if prompt is None else prompt
    facts = {"prompt_init": {"kind": "vpt_uniform", "seed": 0}, **keys}
    config = make_config(backbone, prompt, classes, **facts)
    head = Head(torch.zeros(len(classes), backbone.feature_dim), torch.zeros(len(classes)))
    save_artifact(Artifact(prompt, head, torch.zeros(backbone.feature_dim), config), folder)


@pytest.fixture
def write(tiny, tmp_path):
    """Return a function that writes one artefact of the pool."""

    def one(name, **settings):
        write_artifact(tiny, tmp_path / "pool" / name, **{"seed": int(name[1:]), **settings})

    return one


@pytest.fixture(scope="module")
def forty(tiny, tmp_path_factory):
    """A pool of forty shallow prompts, written once."""
    folder = tmp_path_factory.mktemp("forty")
    for index in range(40):
        write_artifact(tiny, folder / f"s{index:02d}", seed=index)
    return folder


@pytest.fixture
def large(forty, tmp_path):
    """A pool of forty shallow prompts that a test may change."""
    return Path(shutil.copytree(forty, tmp_path / "pool"))


@pytest.fixture
def made_up(monkeypatch, large, tiny):
    """Let the sources have the features of `features_of_pool`, whatever the network says."""
    from vprompt import load_artifact
    from vprompt.pooling import shortlist

    known = {
        load_artifact(large / f"s{index:02d}").digest: features
        for index, features in enumerate(features_of_pool(40, 60)[0])
    }

    def features_of(backbone, prompt, examples, *, precision):
        from vprompt.prompts.prompt import prompt_digest

        padded = torch.zeros(len(examples), backbone.feature_dim)
        padded[:, :12] = known[prompt_digest(prompt)][: len(examples)]
        return padded

    monkeypatch.setattr(shortlist, "features_of", features_of)
    return known


@pytest.fixture
def screened(tiny, task, tmp_path):
    """Return a function that screens the pool: names that go on, facts, what was said."""
    from vprompt.core.progress import Silent
    from vprompt.pooling import screening
    from vprompt.stages import prepare

    class Listening(Silent):
        def __init__(self):
            self.said = []

        def say(self, text):
            self.said.append(text)

    def run(screen=SMALL, adds_up=True, target=task, align="auto", **settings):
        progress = Listening()
        selection = screening.select(
            tmp_path / "pool",
            tiny,
            target,
            screen,
            align=align if adds_up else None,
            progress=progress,
            **settings,
        )
        # What was read is said by `prepare`; here is heard what screening says.
        setting = prepare(tiny, task, None, None, 0, skip_bad=False, progress=Silent())
        setting = replace(setting, progress=progress)
        sources, facts = screening.finish(selection, setting, adds_up=adds_up)
        return [source.name for source in sources], facts, progress.said

    return run


def reasons(facts):
    return {name: why for stage in facts["stages"] for name, why in stage["left_out"].items()}


# Settings


def test_a_screen_is_read_as_a_spec():
    from vprompt.pooling.screening import Screen

    assert Screen.read("off") is None
    assert Screen.read("auto") == Screen()
    assert Screen.read("auto(keep=16, duplicate=1)") == Screen(keep=16, duplicate=1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("always", "reads `off`"),
        ("off(keep=3)", "reads `off`"),
        ("auto(kepe=3)", "Did you mean .*keep"),
        ("auto(keep=2.5)", "is a number"),
        ("auto(keep=true)", "is a number"),
        ("auto(keep=200)", "keep <= candidates"),
        ("auto(support=50)", "support <= keep"),
        ("auto(images=1)", "at least 2 images"),
        ("auto(duplicate=0.0)", "cosine"),
    ],
)
def test_a_screen_that_makes_no_sense_is_refused(text, words, refused):
    from vprompt.pooling.screening import Screen

    with refused(words):
        Screen.read(text)


# Mathematics


def random_ratio(sources=7, images=40, width=5, seed=3):
    from vprompt.pooling.scores import TraceRatio

    features, labels = features_of_pool(40, images, width, seed)
    return features[-sources:], labels, TraceRatio.of(features[-sources:], labels)


@pytest.mark.parametrize("most_bytes", [1, 2**11, 2**26])
def test_features_in_a_file_give_the_trace_ratio_of_those_in_memory(most_bytes, tmp_path):
    from vprompt.pooling.statistics import mapped_trace_ratio

    features, labels, expected = random_ratio()
    features = features + 100 * torch.arange(7)[:, None, None]  # what is centred away
    (tmp_path / "features").write_bytes(features.numpy().tobytes())
    mapped = np.memmap(tmp_path / "features", np.float32, "r", shape=tuple(features.shape))
    found = mapped_trace_ratio(mapped, labels, most_bytes=most_bytes)
    torch.testing.assert_close(found.between, expected.between, rtol=1e-4, atol=1e-5)
    exact = type(expected).of(features, labels)
    torch.testing.assert_close(found.between, exact.between, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.total, exact.total, rtol=1e-10, atol=1e-10)


def test_the_trace_ratio_of_one_class_is_refused(refused):
    from vprompt.pooling.statistics import mapped_trace_ratio

    with refused("two classes"):
        mapped_trace_ratio(np.ones((2, 3, 4), np.float32), torch.zeros(3, dtype=torch.long))


def test_the_best_share_is_that_of_a_fine_grid():
    _, _, ratio = random_ratio()
    randomness = torch.Generator().manual_seed(0)
    for _ in range(20):
        alpha = torch.rand(7, generator=randomness, dtype=torch.float64)
        alpha /= alpha.sum()
        to, away = torch.randperm(7, generator=randomness)[:2].tolist()

        def moved(share, alpha=alpha, to=to, away=away):
            trial = alpha.clone()
            trial[to] += share
            trial[away] -= share
            return ratio(trial)[0]

        grid = torch.linspace(0, float(alpha[away]), 400).tolist()
        share = ratio.best_share(alpha, to, away)
        assert 0 < share <= float(alpha[away])
        inside = max(map(moved, grid[1:]))
        assert moved(share) >= inside - 1e-9 or moved(0.0) >= inside - 1e-9


def test_a_single_source_that_is_a_local_optimum_does_not_hide_a_better_sum():
    from vprompt.pooling.scores import TraceRatio
    from vprompt.pooling.shortlist import by_marginal_gain

    # The first is best by itself and unrelated to the others, whose noise averages out.
    between = torch.ones(4, 4, dtype=torch.float64)
    between[0, 1:] = between[1:, 0] = 0.0
    between[0, 0] = 1.1
    total = torch.diag(torch.full((4,), 4.0, dtype=torch.float64))
    order, _, optimum = by_marginal_gain(TraceRatio(between, total), 3)
    assert order[3] == 0 and optimum.value == pytest.approx(0.75, abs=1e-5)
    assert (optimum.weights - torch.tensor([0, 1 / 3, 1 / 3, 1 / 3])).abs().max() < 1e-3


@pytest.mark.parametrize("support", [1, 2, 3])
def test_the_sparse_solution_keeps_to_its_support(support):
    from vprompt.pooling.solvers import pairwise_frank_wolfe

    _, _, ratio = random_ratio()
    singles = ratio.between.diagonal() / ratio.total.diagonal()
    start = torch.nn.functional.one_hot(singles.argmax(), 7).double()
    found = pairwise_frank_wolfe(ratio, start, support=support)
    held = found.weights > 0
    assert int(held.sum()) <= support and float(found.weights.sum()) == pytest.approx(1)
    assert found.value >= float(singles.max()) - 1e-12
    slopes = ratio(found.weights)[1]
    assert float(slopes[held].max() - slopes[held].min()) < 1e-4  # nothing to move within
    free = pairwise_frank_wolfe(ratio, start)
    assert free.gap < 1e-6 and free.value >= found.value - 1e-9


def test_near_duplicates_are_those_of_a_loop_over_cosines():
    from vprompt.pooling.scores import TraceRatio
    from vprompt.pooling.shortlist import near_duplicates

    features, labels, _ = random_ratio(sources=5)
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    pool = torch.cat([features, 3 * features[[0, 1]] + 7, features[[1]] + 0.02 * noise[[1]]])
    found = near_duplicates(TraceRatio.of(pool, labels), 0.999)
    centred = (pool - pool.mean(1, keepdim=True)).double().flatten(1)
    expected = {}
    for row in range(len(pool)):
        for other in range(row):
            cosine = torch.cosine_similarity(centred[row], centred[other], dim=0)
            if other not in expected and cosine >= 0.999:
                expected[row] = other
                break
    assert found == expected == {5: 0, 6: 1, 7: 1}


def test_the_slope_is_what_a_little_of_a_source_adds():
    from vprompt.pooling.shortlist import by_marginal_gain

    _, _, ratio = random_ratio()
    order, gains, optimum = by_marginal_gain(ratio, 2)
    assert sorted(order) == list(range(7))
    for row in range(7):
        step = 1e-6 * (torch.eye(7, dtype=torch.float64)[row] - optimum.weights)
        added = (ratio(optimum.weights + step)[0] - ratio(optimum.weights - step)[0]) / 2e-6
        assert gains[row] == pytest.approx(added, abs=1e-6)
    outside = [gains[row] for row in order if optimum.weights[row] == 0]
    assert outside == sorted(outside, reverse=True)


def test_few_images_show_every_class_in_proportion():
    from vprompt.data.task import Examples
    from vprompt.pooling.shortlist import few_images

    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    train = Examples(np.arange(300, dtype=np.uint8).reshape(100, 1, 1, 3), labels, "d")
    found = few_images(train, 20)
    assert found.labels.bincount().tolist() == [12, 6, 2]
    again = few_images(train, 20)
    assert found.digest == again.digest != train.digest
    assert (found.pixels == again.pixels).all()
    assert few_images(train, 100) is train


# The stages


def test_planted_sources_pass_the_screen(large, made_up, screened):
    kept, facts, said = screened("auto(above=20, images=60, candidates=30, keep=8, support=4)")
    assert set(PLANTED) <= set(kept) and len(kept) == 8 and kept == sorted(kept)
    assert facts["kept"] == kept
    assert {*kept, *reasons(facts)} == {f"s{index:02d}" for index in range(40)}
    assert [stage["kept"] for stage in facts["stages"]] == [40, 30, 30, 8]
    assert len(said) == 4 and "left out" in said[-1] and "29 more" not in said[0]
    heaviest = sorted(facts["solution"]["weights"].items(), key=lambda pair: -pair[1])[:3]
    assert {name for name, _ in heaviest} == set(PLANTED)
    json.dumps(facts)


def test_a_pool_that_is_not_large_is_not_screened(large, screened, tiny):
    from vprompt.artifacts import pool

    for screen in ("auto", "off", "auto(above=40)"):
        kept, facts, said = screened(screen)
        assert facts is None and said == []
        assert kept == [source.name for source in pool.load(large, tiny)]


def test_every_source_that_cannot_be_used_is_named_with_its_reason(large, write, screened, task):
    classes = tuple(task.classes)
    write("t00", base_model_fingerprint="sha256:other", base_model_name_or_path="vit")
    write("t01", classes=classes, task={"name": "target"})
    write("t02", deep=True)
    write("t03", seed=7)  # the tokens of s07
    write("t04")
    (large / "t04" / "adapter_config.json").write_text("{")
    write("t05")
    path = large / "t05" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    kept, facts, said = screened()
    found = reasons(facts)
    assert "'vit'" in found["t00"] and "base_model_fingerprint" in found["t00"]
    assert found["t01"] == "learned on 'target', the target itself"
    assert "other blocks" in found["t02"]
    assert found["t03"] == "has the tokens of s07"
    assert "not valid JSON" in found["t04"]
    assert "truncated" in found["t05"]
    assert not {f"t0{index}" for index in range(6)} & set(kept)
    assert "t00" in said[0] and "'vit'" in said[0]


def test_what_is_kept_may_be_forced_and_excluded(large, write, screened, refused):
    write("t00", base_model_fingerprint="sha256:other")
    _, facts, _ = screened(adds_up=False, force=True, exclude=("s00",))
    assert "t00" not in facts["stages"][0]["left_out"]
    assert "s00" not in {*facts["kept"], *reasons(facts)}
    with refused("holds no 'nobody'"):
        screened(exclude=("nobody",))


def test_a_pool_of_another_backbone_is_an_error(write, tmp_path, screened, refused):
    for index in range(25):
        write(f"s{index:02d}", base_model_fingerprint="sha256:other")
    with refused("None of the 25 sources", "s00", "base_model_fingerprint"):
        screened()


def test_the_backbone_of_a_pool_is_that_of_most_of_its_prompts(write, tmp_path):
    from vprompt.opening import open_pool_backbone

    write("s00", base_model_name_or_path="no_such_model")
    for name in ("s01", "s02"):
        write(name)
    assert open_pool_backbone(tmp_path / "pool", None).name == "tiny"


def test_lengths_may_differ_unless_tokens_are_added_up_as_they_stand(large, write, screened, tiny):
    from vprompt.prompts.prompt import Prompt

    blocks = torch.zeros(5, dtype=torch.long)
    write("t00", prompt=Prompt(torch.ones(5, tiny.dim), blocks))
    write("t01", deep=True)
    assert set(screened()[1]["stages"][0]["left_out"]) == {"t01"}
    assert set(screened(align="none")[1]["stages"][0]["left_out"]) == {"t00", "t01"}
    few = "auto(above=41, candidates=41, keep=8, support=4)"  # too few are left to pass images
    kept, facts, _ = screened(few, align="placement")
    assert kept == ["t01"] and len(facts["stages"]) == 1


def test_near_duplicates_by_features_are_passed_once(large, made_up, screened):
    digests = list(made_up)
    made_up[digests[9]] = made_up[digests[17]] + 1e-3 * torch.randn(
        60, 12, generator=torch.Generator().manual_seed(0)
    )
    kept, facts, _ = screened("auto(above=20, images=60, candidates=39, keep=8, support=4)")
    assert {"s05", "s31"} < set(kept) and len({"s09", "s17"} & set(kept)) == 1
    [(name, why)] = facts["stages"][2]["left_out"].items()
    assert {name, why.removeprefix("has the features of ")} == {"s09", "s17"}


def test_features_that_are_not_finite_leave_their_source_out(large, made_up, screened):
    broken = list(made_up)[3]
    made_up[broken] = torch.full((60, 12), torch.nan)
    _, facts, _ = screened()
    assert reasons(facts)["s03"] == "its features are not finite numbers"


def test_ranking_keeps_the_best_by_their_own_ratio(large, made_up, screened):
    from vprompt.metrics.trace_ratio import score

    kept, facts, _ = screened(
        "auto(above=20, images=60, candidates=30, keep=8, support=4)", adds_up=False
    )
    labels = features_of_pool(40, 60)[1]
    own = {f"s{i:02d}": score(each, labels) for i, each in enumerate(made_up.values())}
    assert set(kept) == set(sorted(own, key=lambda name: -own[name])[:8])
    assert [stage["name"] for stage in facts["stages"]] == ["metadata", "few images"]


def test_no_file_is_left_and_the_features_come_from_the_cache(large, screened, cache, monkeypatch):
    from vprompt.models import features

    first = screened()
    passed = []
    monkeypatch.setattr(features, "extract", lambda *given: passed.append(given))
    assert screened()[0] == first[0] and not passed
    assert not [path for path in cache.iterdir() if path.name.startswith(".scratch")]


# In the verbs


def quick():
    from vprompt import TrainConfig

    return TrainConfig(epochs=1, precision="fp32", keep="last")


def test_combine_records_the_screening_and_can_be_replayed(large, task, tiny, tmp_path):
    from vprompt import combine, load_artifact
    from vprompt.report.facts import groups

    call = {"model": tiny, "config": quick(), "method": "uniform"}
    found = combine(task, pool=large, screen=SMALL, output=tmp_path / "it", **call)
    kept = found.run["screening"]["kept"]
    assert len(kept) == 8 and kept == [s["name"] for s in found.run["transfer"]["sources"]]
    assert [m["model"] for m in found.run["replay"]["models"]] == [str(large / n) for n in kept]
    assert "screen" in found.run["seconds"]
    card = load_artifact(tmp_path / "it").card
    assert "## Screening" in card and "| marginal gain |" in card
    [group] = [g for g in groups(found.run) if g.title == "Screening of the pool"]
    text = {fact.name: fact for fact in group.facts}
    assert text["marginal gain"].text.startswith("8 sources kept")
    assert text["few images, left out"].summary == "10 sources"
    again = combine(task, pool=[large / name for name in kept], **call)
    assert "screening" not in again.run and "screen" not in again.run["seconds"]
    assert again.run["transfer"]["start_digest"] == found.run["transfer"]["start_digest"]


def test_a_small_pool_is_combined_as_without_any_screen(large, task, tiny):
    from vprompt import combine

    call = {"pool": [large / name for name in PLANTED], "model": tiny, "config": quick()}
    found = [combine(task, screen=screen, **call).run for screen in ("auto", "off")]
    assert "screening" not in found[0]
    assert found[0]["transfer"] == found[1]["transfer"]
    assert found[0]["replay"] == found[1]["replay"]


def test_score_ranks_what_the_screen_kept(large, task, tiny):
    from vprompt import score

    found = dict(score(task, pool=large, model=tiny, screen=SMALL))
    assert len(found) == 9 and "(no prompt)" in found
