"""Flow: learn, pool, score, combine and predict end to end on digits, small enough to run often."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # steps this small only wait for a second thread


def few(rows=(0, 60), shown=range(10)):
    """Return digits with 60 training images, 40 to validate on and 50 to test on.

    `rows` and `shown` choose the training images, so that sources learn different tasks.
    """
    from vprompt import open_task
    from vprompt.data.task import SealedSplit

    whole = open_task("digits")
    train = [row for row in range(700) if whole.train.labels[row] in shown][slice(*rows)]
    plain = rows == (0, 60) and shown == range(10)
    return replace(
        whole,
        name=whole.name if plain else f"{whole.name} {list(shown)} {rows}",
        train=whole.train.subset(train, "train"),
        val=whole.val.subset(range(40), "val"),
        test=SealedSplit(whole.train.subset(range(750, 800), "test")),
        allow_absent=True,
    )


def quick(**changes):
    from vprompt import TrainConfig

    return TrainConfig(**{"epochs": 1, "precision": "fp32", "lr": 0.02, **changes})


METHODS = {
    "shallow": "vpt(num_virtual_tokens=3, deep=False)",
    "deep": "vpt(num_virtual_tokens=1, deep=True)",
}
SOURCES = {"even": range(0, 10, 2), "odd": range(1, 10, 2), "small": range(5)}


@pytest.fixture(scope="module")
def learned(tiny, tmp_path_factory):
    """A pool of three prompts learned from different digits, shallow and deep: folder, outcomes."""
    from vprompt import learn

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPROMPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        for kind, method in METHODS.items():
            folder = tmp_path_factory.mktemp(f"{kind}_pool")
            call = {"model": tiny, "method": method, "test": False}
            call["config"] = quick(epochs=2, keep="last")
            found[kind] = (
                folder,
                {
                    name: learn(few(shown=shown), output=folder / name, **call)
                    for name, shown in SOURCES.items()
                },
            )
    return found


@pytest.fixture
def folder(learned):
    """The pool of shallow prompts."""
    return learned["shallow"][0]


@pytest.fixture
def write_pool(tiny, tmp_path):
    """Return a function that writes prompts as artefacts of a pool, without training."""
    from vprompt import save_artifact
    from vprompt.artifacts.artifact import Artifact, make_config
    from vprompt.models.heads import Head

    def write(prompts, inits=None):
        for index, (name, prompt) in enumerate(prompts.items()):
            init = inits[index] if inits else {"kind": "vpt_uniform", "seed": 0}
            config = make_config(tiny, prompt, ("a", "b"), prompt_init=init)
            head = Head(torch.zeros(2, tiny.feature_dim), torch.zeros(2))
            made = Artifact(prompt, head, torch.zeros(tiny.feature_dim), config)
            save_artifact(made, tmp_path / "pool" / name)
        return tmp_path / "pool"

    return write


@pytest.fixture
def count_images(tiny, monkeypatch):
    """Return a list that receives the size of every batch that enters the backbone."""
    seen, embed = [], type(tiny).embed

    def counted(self, images):
        seen.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(type(tiny), "embed", counted)
    return seen


# The main line, end to end


@pytest.mark.parametrize("kind", METHODS)
def test_a_prompt_is_learned_pooled_scored_combined_and_used(learned, kind, tiny, tmp_path):
    from vprompt import combine, load_artifact, predict, score
    from vprompt.artifacts.pool import check

    folder, _ = learned[kind]
    assert [entry.problem for entry in check(folder, tiny)] == [None] * 3
    task = few(rows=(100, 140))
    ranked = score(task, pool=folder, model=tiny)
    assert {name for name, _ in ranked} == {*SOURCES, "(no prompt)"}
    assert [value for _, value in ranked] == sorted((v for _, v in ranked), reverse=True)
    assert task.test.opened == 0
    outcome = combine(
        task,
        pool=folder,
        model=tiny,
        form="sum",
        config=quick(),
        output=tmp_path / "combined",
    )
    assert task.test.opened == 1
    weights = {source["name"]: source["weight"] for source in outcome.run["transfer"]["sources"]}
    assert set(weights) == set(SOURCES) and sum(weights.values()) == pytest.approx(1)
    assert min(weights.values()) >= 0
    assert {"no prompt", "start, untuned", "combined, untuned", "tuned"} <= set(outcome.test)
    made = load_artifact(tmp_path / "combined")
    assert torch.equal(made.prompt.tokens, outcome.artifact.prompt.tokens)
    picture = draw_digit(tmp_path / "digit.png")
    [found] = predict([picture], artifact=tmp_path / "combined", model=tiny)
    assert found.label in task.classes


def draw_digit(path):
    from PIL import Image

    from vprompt import open_task

    Image.fromarray(open_task("digits").train.images[0]).save(path)
    return path


def test_the_outcome_of_learn_is_the_artefact_its_measurements_and_its_record(learned, tiny):
    for name, outcome in learned["deep"][1].items():
        assert outcome.artifact.name == name and outcome.test == {}
        assert outcome.artifact.classes == [str(digit) for digit in range(10)]
        assert outcome.artifact.prompt.dim == tiny.dim
        assert outcome.run["tuning"]["kept_epoch"] == 2


def test_learning_compares_with_the_frozen_features(tiny):
    from vprompt import learn

    task = few()
    outcome = learn(task, model=tiny, config=quick())
    assert list(outcome.test) == ["no prompt", "learned"] and task.test.opened == 1
    for found in outcome.test.values():
        assert found.images == 50 and 0 <= found.low <= found.acc1 <= found.high <= 1


def test_the_record_is_json_and_says_how_the_run_was_made(tiny, tmp_path):
    from vprompt import learn

    outcome = learn(
        few(), model=tiny, config=quick(seed=4), shots=3, draw=5, output=tmp_path / "it"
    )
    run = json.loads((tmp_path / "it" / "run.json").read_text())
    assert run == json.loads(json.dumps(outcome.run, allow_nan=False))
    assert run["command"] == "learn" and run["method"] == "vpt"
    assert run["train"] == quick(seed=4).model_dump()
    task = run["task"]
    assert all(task["splits"][name]["digest"].startswith("sha256:") for name in ("train", "val"))
    assert task["splits"]["test"] == {"images": 50}  # its content is nobody's business
    draw = task["facts"]["few_shot"]
    assert (draw["shots"], draw["seed"], len(draw["train"])) == (3, 5, 30)
    assert run["backbone"]["fingerprint"] == tiny.fingerprint
    assert {"vprompt", "torch", "timm", "numpy"} <= set(run["machine"]["versions"])
    assert {"images", "tune", "test"} <= set(run["seconds"])
    assert len(run["tuning"]["history"]) == 2


@pytest.mark.parametrize("form", ["sum", "ensemble"])
def test_the_same_call_gives_the_same_artefact(folder, tiny, form):
    from vprompt import combine

    def call():
        task, config = few(rows=(100, 140)), quick()
        outcome = combine(task, pool=folder, model=tiny, form=form, config=config)
        artifact, sources = outcome.artifact, outcome.run["transfer"]["sources"]
        own = artifact.state["tokens"] if artifact.prompt is None else artifact.prompt.tokens
        tensors = (own, artifact.head.weight, artifact.head.bias)
        return [t.tolist() for t in tensors], [source["weight"] for source in sources]

    assert call() == call()


def test_the_same_call_gives_the_same_learned_prompt(tiny):
    from vprompt import learn

    def call(**changes):
        config = quick(keep="last", **changes)
        artifact = learn(few(), model=tiny, config=config, test=False).artifact
        return artifact.prompt.tokens.tolist(), artifact.head.weight.tolist()

    assert call() == call() != call(seed=1)


# Combining


def test_other_settings_of_a_method_need_no_new_evidence(folder, tiny, count_images, cache):
    from vprompt import combine

    task = few(rows=(100, 140))
    call = {"pool": folder, "model": tiny, "config": quick(epochs=0), "test": False}
    combine(task, method="hgprompt", move_scale="published", **call)
    first, files = sum(count_images), set((cache / "evidence").glob("*.safetensors"))
    count_images.clear()
    combine(task, method="hgprompt(score=trace_ratio)", move_scale="published", **call)
    # Three sources, their average and the plain features of forty images are not computed again.
    assert sum(count_images) == first - 5 * 40
    # The other sum's features are new; the evidence is not.
    assert len(set((cache / "evidence").glob("*.safetensors")) - files) == 1


@pytest.fixture
def no_trials(monkeypatch):
    """Announce times without a trial of the machine, whose images are no part of the work."""
    monkeypatch.setattr("vprompt.results.cost._timed", lambda *given: 100.0)


def test_a_score_after_a_combination_runs_no_image(folder, tiny, count_images, no_trials):
    from vprompt import combine, score

    task = few(rows=(100, 140))
    config = quick(epochs=0, precision="auto")  # evidence is kept apart by precision
    combine(task, pool=folder, model=tiny, method="hgprompt", config=config, test=False)
    count_images.clear()
    score(task, pool=folder, model=tiny)
    assert sum(count_images) == 0


def test_a_larger_pool_computes_only_what_is_new(folder, tiny, count_images, no_trials):
    from vprompt import score

    task = few(rows=(100, 140))
    score(task, pool=folder, model=tiny, exclude=("odd",))
    count_images.clear()
    score(task, pool=folder, model=tiny)
    assert sum(count_images) == 40


def test_damaged_evidence_is_computed_again_and_named(folder, tiny, cache):
    from vprompt import score
    from vprompt.core.errors import CacheWarning

    task = few(rows=(100, 140))
    before = score(task, pool=folder, model=tiny)
    for path in (cache / "evidence").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    with pytest.warns(CacheWarning, match="evidence"):
        assert score(task, pool=folder, model=tiny) == before


def test_a_source_can_be_left_out(folder, tiny):
    from vprompt import combine, score

    task = few(rows=(100, 140))
    ranked = score(task, pool=folder, model=tiny, exclude=("odd", "small"))
    assert {name for name, _ in ranked} == {"even", "(no prompt)"}
    outcome = combine(
        task,
        pool=folder,
        model=tiny,
        exclude=("odd",),
        config=quick(epochs=0),
        test=False,
    )
    assert [s["name"] for s in outcome.run["transfer"]["sources"]] == ["even", "small"]


def test_leaving_out_an_unknown_source_lists_the_known(folder, tiny, refused):
    from vprompt import combine

    with refused("holds no 'ood'", "even, odd, small"):
        combine(few(), pool=folder, model=tiny, exclude=("ood",))


def test_uniform_weights_average_and_the_best_takes_one(folder, tiny):
    from vprompt import combine, score

    task, config = few(rows=(100, 140)), quick(epochs=0, precision="auto")  # as `score` has it
    call = {"pool": folder, "model": tiny, "config": config, "test": False}

    def weights(method):
        sources = combine(task, method=method, **call).run["transfer"]["sources"]
        return {source["name"]: source["weight"] for source in sources}

    assert list(weights("uniform").values()) == pytest.approx([1 / 3] * 3)
    ranked = [name for name, _ in score(task, pool=folder, model=tiny) if "(" not in name]
    assert weights("best") == {name: float(name == ranked[0]) for name in SOURCES}


def test_without_tuning_the_combined_prompt_is_the_weighted_sum(write_pool, pool, tiny):
    from vprompt import combine

    outcome = combine(
        few(),
        pool=write_pool(pool),
        model=tiny,
        method="uniform",
        align="none",
        scale="none",
        config=quick(epochs=0),
        test=False,
    )
    wanted = torch.stack([prompt.tokens for prompt in pool.values()]).mean(0)
    torch.testing.assert_close(outcome.artifact.prompt.tokens, wanted)


def test_an_equal_run_knows_what_the_first_left_in_the_cache(write_pool, pool, tiny, tmp_path):
    from vprompt import combine, evaluate, score
    from vprompt.core.progress import Silent

    class Told(Silent):
        def say(self, text):
            told.append(text)

    def announced(verb, **changes):
        told.clear()
        verb(few(), progress=Told(), **changes)
        return next(text for text in told if text.startswith("about "))

    told, folder = [], write_pool(pool)
    options = {"model": tiny, "pool": folder}
    assert f"{len(pool) + 1} passes" in announced(score, **options)
    assert "0 passes" in announced(score, **options)
    gradients = {"method": "hgprompt(preset=paper, score=trace_ratio)", "config": quick(epochs=0)}
    assert f"{len(pool) + 1} evidence passes" in announced(combine, **options, **gradients)
    combining = {**options, "config": quick(epochs=0), "overwrite": True}
    for method in ("hgprompt", "uniform"):
        said = [
            announced(combine, **combining, method=method, output=tmp_path / "one")
            for _ in range(2)
        ]
        assert "evidence passes" in said[0] and "an earlier run left the rest" in said[1]
    known = {"artifact": tmp_path / "one", "model": tiny}
    assert "looks at images" in announced(evaluate, **known)
    assert "an earlier run has looked" in announced(evaluate, **known)


@pytest.fixture
def shuffled(pool):
    """One prompt twice, the second time with its tokens in another order."""
    first = pool["apples"]
    return {"a": first, "b": first.with_tokens(first.tokens[[2, 0, 1]])}


OTHER_INITS = [{"kind": "vpt_uniform", "seed": 0}, {"kind": "vpt_uniform", "seed": 1}]


@pytest.mark.parametrize(
    "align, inits, matched",
    [
        ("none", OTHER_INITS, False),
        ("hungarian", None, True),
        ("auto", None, False),
        ("auto", OTHER_INITS, True),
        ("auto", [None, None], True),
    ],
    ids=["none", "hungarian", "one start", "two starts", "unknown starts"],
)
def test_tokens_are_matched_unless_all_grew_from_one_start(
    write_pool, shuffled, tiny, align, inits, matched
):
    from vprompt import combine

    outcome = combine(
        few(),
        pool=write_pool(shuffled, inits),
        model=tiny,
        method="linear",  # others weigh two orders of one prompt once
        align=align,
        scale="none",
        config=quick(epochs=0),
        test=False,
    )
    tokens = outcome.artifact.prompt.tokens
    # Averaged token by matching token, the two are one prompt again, in either order.
    distance = torch.cdist(tokens, shuffled["a"].tokens).min(1).values.max()
    assert (distance < 1e-4) == matched


def test_gradients_follow_their_tokens(write_pool, shuffled, tiny):
    from vprompt import combine

    folder = write_pool(shuffled)

    def cosine(align):
        config = quick(epochs=0)
        outcome = combine(
            few(),
            pool=folder,
            model=tiny,
            method="hgprompt(gradient_head=base)",
            align=align,
            config=config,
            test=False,
        )
        return outcome.run["transfer"]["gradient_cosines"][0][1]

    # The same prompt in another order has the same gradients, once tokens correspond.
    assert cosine("none") < 0.999 and cosine("hungarian") == pytest.approx(1, abs=1e-3)


def test_prompts_of_different_places_are_refused(write_pool, pool, deep_pool, tiny, refused):
    from vprompt import combine

    mixed = {"deep": deep_pool["birds"], "shallow": pool["birds"]}
    with refused("same placement", "'shallow'", "'deep'", "--exclude"):
        combine(few(), pool=write_pool(mixed), model=tiny)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"align": "hungary"}, "No align called 'hungary'"),
        ({"scale": "big"}, "No scale called 'big'"),
        ({"method": "hgpromt"}, "No transfer method called 'hgpromt'. Did you mean 'hgprompt'"),
        ({"method": "hgprompt(scor=x)"}, "no setting 'scor'. Did you mean 'score'"),
    ],
    ids=str,
)
def test_a_wrong_word_is_answered_with_the_right_ones(
    write_pool, pool, tiny, refused, wrong, words
):
    from vprompt import combine

    with refused(words.replace("(", r"\(")):
        combine(few(), pool=write_pool(pool), model=tiny, **wrong)


def test_a_pool_of_another_backbone_is_refused_unless_forced(write_pool, pool, refused):
    from vprompt import score
    from vprompt.backbones import tiny as plugin

    folder, other = write_pool(pool), plugin.load(seed=1)
    with refused("source 'apples'", "base_model_fingerprint", "--force"):
        score(few(), pool=folder, model=other)
    assert len(score(few(), pool=folder, model=other, force=True)) == 5


def test_the_pool_names_its_backbone(write_pool, pool):
    from vprompt import score

    assert len(score(few(), pool=write_pool(pool))) == 5


def test_a_combined_prompt_can_be_a_source_again(folder, tiny, tmp_path):
    import shutil

    from vprompt import combine

    shutil.copytree(folder, tmp_path / "pool")
    call = {"pool": tmp_path / "pool", "model": tiny, "config": quick(), "test": False}
    moved = {"form": "sum", "move_scale": 2.0, "output": tmp_path / "pool" / "mix"}
    combine(few(rows=(100, 140)), **moved, **call)
    again = combine(few(rows=(200, 240)), **call)
    assert "mix" in [source["name"] for source in again.run["transfer"]["sources"]]


def test_a_source_learned_on_the_target_itself_is_left_out_unless_wanted(
    folder, tiny, tmp_path, refused
):
    import shutil

    from vprompt import combine, learn

    shutil.copytree(folder, tmp_path / "pool")
    call = {"model": tiny, "config": quick(), "test": False}
    learn(few(), method=METHODS["shallow"], output=tmp_path / "pool" / "mine", **call)
    call |= {"pool": tmp_path / "pool", "method": "uniform"}

    def names(**settings):
        sources = combine(few(), **call, **settings).run["transfer"]["sources"]
        return {source["name"] for source in sources}

    assert names() == set(SOURCES)
    assert names(include_self=True) == {*SOURCES, "mine"}
    with refused("learned on 'digits'", "--include-self"):
        combine(few(), **call, exclude=tuple(SOURCES))


# Choosing


def test_a_grid_is_chosen_from_on_validation(tiny):
    from vprompt import learn

    rates = [1e-6, 0.02, 100.0]
    call = {"model": tiny, "test": False}
    alone = {lr: learn(few(), config=quick(lr=lr), **call).run["tuning"] for lr in rates}
    chosen = learn(few(), config=quick(), grid={"lr": rates}, **call).run

    def accuracy(tuning):
        kept = next(r for r in tuning["history"] if r["epoch"] == tuning["kept_epoch"])
        return kept["val_accuracy"]

    best = max(rates, key=lambda lr: (accuracy(alone[lr]), -lr))
    assert chosen["train"]["lr"] == best and chosen["grid"] == {"lr": rates}
    for mine, theirs in zip(chosen["tuning"]["history"], alone[best]["history"], strict=True):
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-3)
    one_by_one = learn(few(), config=quick(), grid={"lr": rates}, fleet="off", **call).run
    assert one_by_one["tuning"]["history"] == alone[best]["history"]


@pytest.mark.parametrize("fleet", ["auto", "off"])
def test_a_point_of_a_grid_that_diverges_is_recorded_and_costs_the_others_nothing(
    tiny, refused, fleet
):
    from vprompt import learn

    config = quick(opt="sgd", head_lr=None, batch_size=16, epochs=2)
    call = {"model": tiny, "test": False, "config": config, "fleet": fleet}
    run = learn(few(), grid={"lr": [0.02, 1e30]}, **call).run
    fine, failed = run["grid_reached"]
    assert run["train"]["lr"] == 0.02 and fine["val_accuracy"] is not None
    assert "Use a smaller --lr" in failed["failed"] and failed["val_accuracy"] is None
    with refused("Use a smaller --lr"):
        learn(few(), grid={"lr": [1e29, 1e30]}, **call)


def test_a_halved_grid_says_what_was_dropped(tiny, refused):
    from vprompt import learn

    call = {"model": tiny, "test": False, "halving": True}
    rates = [1e-5, 1e-3, 0.02, 50.0]
    run = learn(few(), config=quick(epochs=2), grid={"lr": rates}, **call).run
    dropped = [each["dropped"] for each in run["grid_reached"] if "dropped" in each]
    assert len(dropped) == 2 and run["halving"]
    assert all(d["epoch"] == 1 and d["rank"] > d["kept"] == 2 for d in dropped)
    with refused("--halving needs a grid", "--grid lr="):
        learn(few(), config=quick(), **call)


@pytest.mark.parametrize("rates", [[0.3, 0.1, 0.2], [0.1, 0.3]])
def test_ties_in_a_grid_go_to_the_smaller_rate(tiny, rates):
    from vprompt import learn

    # No epochs: all points are the same, so all tie.
    call = {"model": tiny, "config": quick(epochs=0), "test": False}
    assert learn(few(), grid={"lr": rates}, **call).run["train"]["lr"] == 0.1


def test_a_grid_opens_the_test_split_once(tiny):
    from vprompt import learn

    task = few()
    learn(task, model=tiny, config=quick(), grid={"lr": [0.01, 0.1]})
    assert task.test.opened == 1


def test_a_grid_without_validation_images_is_refused(tiny, refused):
    from vprompt import learn

    with refused("A grid is chosen from on validation images", "none"):
        learn(few(), model=tiny, grid={"lr": [0.01, 0.1]}, train_on="trainval")


@pytest.mark.parametrize("grid", [{"lrr": [0.1]}, {"lr": [-1.0]}, {"epochs": [1.5]}], ids=str)
def test_a_wrong_grid_is_refused_in_one_sentence(tiny, refused, grid):
    from vprompt import learn

    with refused(next(iter(grid))):
        learn(few(), model=tiny, config=quick(epochs=0), grid=grid, test=False)


def test_an_empty_list_in_a_grid_is_refused(tiny, refused):
    from vprompt import learn

    with refused("lr"):
        learn(few(), model=tiny, config=quick(epochs=0), grid={"lr": []}, test=False)


def test_training_on_trainval_leaves_nothing_to_choose_by(tiny):
    from vprompt import learn

    outcome = learn(few(), model=tiny, config=quick(epochs=2), train_on="trainval", test=False)
    task, tuning = outcome.run["task"], outcome.run["tuning"]
    assert task["splits"]["train"]["images"] == 100 and "val" not in task["splits"]
    assert tuning["kept_epoch"] == 2 and tuning["selection"] == "last epoch"


def test_training_on_the_test_split_is_refused(tiny, refused):
    from vprompt import learn

    with refused("train_on is `train` or `trainval`, but got 'test'"):
        learn(few(), model=tiny, train_on="test")


def test_few_shots_are_drawn_per_class_for_training_and_for_validation(tiny):
    from vprompt import learn

    call = {"model": tiny, "config": quick(epochs=0), "test": False}

    def drawn(**options):
        return learn(few(rows=(0, 300)), **options, **call).run["task"]

    task = drawn(shots=2)
    assert task["train_images_per_class"] == [2] * 10
    assert task["splits"]["val"]["images"] <= 20
    assert drawn(shots=2) == task
    assert drawn(shots=2, draw=1)["splits"]["train"] != task["splits"]["train"]


def test_one_shot_is_enough(tiny):
    from vprompt import learn

    outcome = learn(few(), model=tiny, config=quick(), shots=1)
    assert outcome.run["task"]["splits"]["train"]["images"] == 10


def test_a_linear_probe_is_an_artefact_without_a_prompt(tiny, tmp_path, refused):
    from vprompt import combine, learn, load_artifact

    folder = tmp_path / "pool"
    learn(few(), model=tiny, method="linear", config=quick(), output=folder / "probe", test=False)
    assert load_artifact(folder / "probe").prompt is None
    with refused("holds no prompt to combine"):
        combine(few(), pool=folder, model=tiny)


# Leaving nothing behind


@pytest.mark.parametrize("verb", ["learn", "combine"])
def test_an_existing_output_is_refused_before_any_work(
    tiny, tmp_path, write_pool, pool, refused, count_images, verb
):
    import vprompt

    call = {"pool": write_pool(pool)} if verb == "combine" else {}
    with refused("exists already", "--overwrite"):
        getattr(vprompt, verb)(few(), model=tiny, output=tmp_path, **call)
    assert not count_images


def test_an_output_can_be_replaced(tiny, tmp_path):
    from vprompt import learn, load_artifact

    call = {"model": tiny, "config": quick(epochs=0), "output": tmp_path / "it", "test": False}
    learn(few(), method="vpt(num_virtual_tokens=1, deep=False)", **call)
    learn(few(), method="vpt(num_virtual_tokens=2, deep=False)", overwrite=True, **call)
    assert len(load_artifact(tmp_path / "it").prompt.tokens) == 2


def test_a_run_that_fails_leaves_no_output(tiny, tmp_path, monkeypatch):
    from vprompt import learn
    from vprompt.artifacts import cards

    def fail(*_):
        raise RuntimeError("no card today")

    monkeypatch.setattr(cards, "render", fail)
    with pytest.raises(RuntimeError, match="no card today"):
        learn(few(), model=tiny, config=quick(epochs=0), output=tmp_path / "it", test=False)
    assert not (tmp_path / "it").exists()


def test_a_stopped_run_continues_when_it_is_called_again(tiny, cache):
    from vprompt import learn
    from vprompt.core.progress import Silent

    class Stop(Silent):
        left = 3  # batches of the second epoch

        def advance(self, amount=1, note=""):
            if "val" in note or self.left < 3:
                self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    config = quick(epochs=5, batch_size=16, keep="last")
    call = {"model": tiny, "config": config, "test": False}
    whole = learn(few(), **call).artifact
    with pytest.raises(KeyboardInterrupt):
        learn(few(), progress=Stop(), **call)
    assert len(list((cache / "checkpoints").iterdir())) <= 1
    found = learn(few(), **call).artifact
    assert torch.equal(found.prompt.tokens, whole.prompt.tokens)
    assert not list((cache / "checkpoints").iterdir())


def test_the_caller_s_task_and_backbone_are_left_as_they_were(tiny, folder):
    from vprompt import combine

    task = few(rows=(100, 140))
    images, state = task.train.images.copy(), tiny.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    combine(task, pool=folder, model=tiny, config=quick(), test=False)
    assert np.array_equal(task.train.images, images)
    assert all(torch.equal(before[name], value) for name, value in state.items())
    assert not any(p.requires_grad for p in tiny.parameters())


def test_a_run_that_is_saved_leaves_no_checkpoint_and_one_that_is_not_keeps_it(
    tiny, cache, tmp_path, monkeypatch
):
    from vprompt import learn
    from vprompt.artifacts import artifact

    def crash(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(artifact, "save", crash)
        with pytest.raises(KeyboardInterrupt):
            learn(few(), model=tiny, config=quick(), test=False, output=tmp_path / "it")
    assert len(list((cache / "checkpoints").glob("*.safetensors"))) == 1
    learn(few(), model=tiny, config=quick(), test=False, output=tmp_path / "it")
    assert list((cache / "checkpoints").iterdir()) == []


def test_overwriting_replaces_an_artefact_and_nothing_else(tiny, tmp_path, refused):
    from vprompt import learn

    call = {"model": tiny, "config": quick(epochs=0), "test": False, "overwrite": True}
    (tmp_path / "pool" / "mine").mkdir(parents=True)
    with refused("not an artefact", "will not be replaced", "pool/mine"):
        learn(few(), output=tmp_path / "pool", **call)
    learn(few(), output=tmp_path / "pool" / "mine", **call)
    learn(few(), output=tmp_path / "pool" / "mine", **call)


def test_weights_of_a_method_are_checked(refused):
    from vprompt.pooling.mix import Mix

    Mix(torch.ones(1)).check("x", 1)
    Mix(torch.tensor([1.5, -0.5]), simplex=False).check("x", 2)
    for wrong in ([0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0], [1.0]):
        with refused("x returned the weights", "one for each of 2 sources"):
            Mix(torch.tensor(wrong)).check("x", 2)


def test_more_blank_tokens_than_patches_still_differ(tiny):
    from vprompt.adapters import vpt

    tokens = vpt.build(tiny, num_virtual_tokens=10, prompt_init="blank").prompt().tokens
    assert len(tokens.unique(dim=0)) == len(tokens)


def test_a_name_from_a_strangers_file_opens_no_place_on_disk_or_hub(refused):
    from vprompt.opening import open_named_backbone

    for name in (
        "local-dir:/etc",
        "hf-hub:evil/x",
        "timm_vit(checkpoint='/etc/passwd')",
        "timm_vit(model='hf-hub:evil/x', seed=1)",
        "open_clip(model='local-dir:/etc')",
    ):
        config = {
            "base_model_name_or_path": name,
            "data_config": {"input_size": [3, 32, 32]},
        }
        with refused("asks for the backbone", "--model"):
            open_named_backbone(config)


def test_an_equal_training_finds_itself_done_where_states_are_kept(tiny, count_images, cache):
    from vprompt import learn

    def call():
        count_images.clear()
        outcome = learn(few(), model=tiny, config=quick(), test=False, keep_states=True)
        return outcome.artifact.prompt.tokens.tolist(), outcome.run["tuning"]["history"]

    first, images = call(), sum(count_images)
    assert len(list((cache / "checkpoints").glob("*.safetensors"))) == 1
    assert call() == first and sum(count_images) < images
