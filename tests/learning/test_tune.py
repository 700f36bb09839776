"""Tune: what one training loop promises, from the first head to a run that was stopped."""

import contextlib
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

torch.set_num_threads(1)  # steps this small only wait for a second thread
CLASSES = 3


def draw(count, seed):
    """Return examples in which every class has a tint under much noise, and some labels lie."""
    from vprompt.data.task import Examples

    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    noise = rng.integers(0, 256, (count, 32, 32, 3))
    tint = np.zeros((count, 1, 1, 3))
    tint[np.arange(count), 0, 0, labels] = 40
    pixels = (0.8 * noise + tint).clip(0, 255).astype(np.uint8)
    labels[::5] = (labels[::5] + 1) % CLASSES
    return Examples(pixels, torch.tensor(labels), f"{count} examples of seed {seed}")


@pytest.fixture
def train():
    return draw(22, seed=1)


@pytest.fixture
def val():
    return draw(12, seed=2)


@pytest.fixture
def settings():
    """Return a function that makes training settings, small and in fp32 unless told."""
    from vprompt.learning.train_config import TrainConfig

    small = {"epochs": 3, "batch_size": 8, "precision": "fp32", "lr": 0.05, "head_lr": 0.01}
    return lambda **changes: TrainConfig(**{**small, **changes})


@pytest.fixture
def vpt(tiny):
    """Return a function that builds a prompt of two tokens on the tiny backbone."""
    from vprompt.core import registry

    def build(**changes):
        given = {"num_virtual_tokens": 2, "deep": False, "prompt_init": "vpt_uniform", **changes}
        return registry.find("adapters", "vpt")(tiny, **given)

    return build


@pytest.fixture
def run(train, val):
    """Return a function that tunes on the examples of this file."""
    from vprompt.learning.tune import tune

    def call(adapter, config, *, val=val, **options):
        return tune(adapter, train, val, CLASSES, config, **options)

    return call


def accuracy_of(tuned, tiny, examples):
    from vprompt.results.measure import features_of

    features = features_of(tiny, tuned.adapter.prompt(), examples, precision="fp32")
    return (tuned.head.logits(features).argmax(1) == examples.labels).double().mean().item()


def bits(tuned):
    """Return everything that a run delivers, in a form that compares exactly."""
    prompt = tuned.adapter.prompt()
    tensors = [tuned.head.weight, tuned.head.bias, tuned.start_head.weight]
    tensors += [prompt.tokens, prompt.blocks] if prompt is not None else []
    return [t.tolist() for t in tensors], tuned.history, tuned.kept_epoch


@pytest.fixture
def embedded(tiny, monkeypatch):
    """The number of images that were embedded so far, as the only entry of a list."""
    count, embed = [0], type(tiny).embed

    def counted(self, images):
        count[0] += len(images)
        return embed(self, images)

    monkeypatch.setattr(type(tiny), "embed", counted)
    return count


def test_a_start_whose_features_are_kept_is_not_looked_at_again(
    run, vpt, settings, tiny, train, val, embedded
):
    from vprompt.results.measure import features_of

    cold = run(vpt(), settings())
    assert embedded[0] == 22 + 12 + 3 * (22 + 12)  # a head, a judgement, three epochs
    for examples in (train, val):
        features_of(tiny, vpt().prompt(), examples, precision="fp32")
    before = embedded[0]
    warm = run(vpt(), settings())
    assert embedded[0] - before == 3 * (22 + 12)
    assert bits(warm) == bits(cold)


def test_an_adapter_that_trained_in_vain_is_not_looked_at_again(
    run, vpt, settings, tiny, val, embedded
):
    from vprompt.results.measure import features_of

    adapter = run(vpt(), settings(epochs=0)).adapter
    alone = features_of(tiny, adapter, val, precision="fp32")
    features_of(tiny, vpt().prompt(), val, precision="fp32")
    before = embedded[0]
    assert torch.equal(features_of(tiny, adapter, val, precision="fp32"), alone)
    assert embedded[0] == before
    with torch.no_grad():
        adapter.tokens += 1
    assert not torch.equal(features_of(tiny, adapter, val, precision="fp32"), alone)


class StopAfter:
    """A Progress that raises KeyboardInterrupt once so many batches are done, as Ctrl-C would."""

    def __init__(self, batches, total):
        self.left, self.total, self.began_at = batches, total, None

    @contextlib.contextmanager
    def step(self, description, total):
        self.counting = total == self.total
        yield self

    def advance(self, amount=1, note=""):
        if not self.counting:
            return
        if self.began_at is None:
            self.began_at = amount
        self.left -= amount
        if self.left < 0:
            raise KeyboardInterrupt

    def say(self, text):
        pass


# How long it trains, and what it keeps


def test_it_trains_for_the_number_of_epochs_it_was_given(run, vpt, settings):
    tuned = run(vpt(), settings(epochs=3))
    assert [record.epoch for record in tuned.history] == [0, 1, 2, 3]
    assert tuned.history[0].train_loss is None and tuned.history[1].train_loss > 0


def test_no_epochs_return_the_start(run, vpt, settings):
    adapter = vpt()
    before = adapter.prompt().tokens
    tuned = run(adapter, settings(epochs=0))
    assert tuned.kept_epoch == 0 and torch.equal(tuned.adapter.prompt().tokens, before)


def test_training_lowers_the_loss(run, vpt, settings):
    tuned = run(vpt(), settings(epochs=6, head="zero", keep="last"))
    assert tuned.history[-1].train_loss < 0.8 * math.log(CLASSES)


@pytest.mark.parametrize("lr", [1e-4, 0.05, 50.0])
def test_keeping_the_best_never_ends_below_the_start(run, vpt, settings, tiny, val, lr):
    tuned = run(vpt(), settings(lr=lr, head_lr=lr))
    kept = tuned.record(tuned.kept_epoch)
    assert kept.val_accuracy == max(record.val_accuracy for record in tuned.history)
    assert accuracy_of(tuned, tiny, val) == pytest.approx(kept.val_accuracy)
    assert kept.val_accuracy >= tuned.record(0).val_accuracy


def test_keeping_the_last_keeps_it_even_when_it_is_worse(run, vpt, settings, tiny, val):
    tuned = run(vpt(), settings(lr=50.0, head_lr=5.0, keep="last"))
    assert tuned.kept_epoch == 3
    last = tuned.history[-1].val_accuracy
    assert last < tuned.record(0).val_accuracy  # or this test proves nothing
    assert accuracy_of(tuned, tiny, val) == pytest.approx(last)


def test_without_validation_the_last_epoch_is_kept_and_said_so(run, vpt, settings):
    tuned = run(vpt(), settings(), val=None)
    assert tuned.kept_epoch == 3 and "no validation images" in tuned.sentence


def test_a_tie_on_accuracy_goes_to_the_smaller_validation_loss(run, vpt, settings):
    tuned = run(vpt(), settings(epochs=4, lr=1e-3))
    kept = tuned.record(tuned.kept_epoch)
    for record in tuned.history:
        if record.val_accuracy == kept.val_accuracy:
            assert kept.val_loss <= record.val_loss


# When it ends


# From such a head the validation loss falls for some epochs, then rises and falls by turns.
UNSTEADY = {"head": "zero", "epochs": 12, "sched": "constant"}


_unsteady = []


@pytest.fixture
def whole(run, vpt, settings):
    """The training that nothing ends early: the same for all tests, and learned once."""
    if not _unsteady:
        _unsteady.append(run(vpt(), settings(**UNSTEADY)))
    return _unsteady[0]


@pytest.mark.parametrize("keep", ["best", "least_loss", "last"])
@pytest.mark.parametrize("patience", [1, 3])
def test_it_ends_once_the_least_validation_loss_is_old(run, vpt, settings, whole, patience, keep):
    tuned = run(vpt(), settings(**UNSTEADY, keep=keep, patience=patience))
    last, losses = tuned.history[-1].epoch, [r.val_loss for r in whole.history]
    expected = next(
        epoch
        for epoch in range(len(losses))
        if epoch - losses[: epoch + 1].index(min(losses[: epoch + 1])) == patience
    )
    assert last == expected < 12 and tuned.ended == "patience"
    assert tuned.history == whole.history[: last + 1]  # until then it is the same training
    assert f"ended with epoch {last}, because its least" in tuned.sentence
    assert f"{patience} epoch{'s' * (patience > 1)} old" in tuned.sentence
    assert tuned.kept_epoch == last if keep == "last" else tuned.kept_epoch <= last


def test_a_loss_that_keeps_falling_ends_with_its_epochs(run, vpt, settings):
    tuned = run(vpt(), settings(head="zero", lr=1e-3, head_lr=1e-3, patience=1))
    losses = [record.val_loss for record in tuned.history]
    assert losses == sorted(losses, reverse=True) and len(losses) == 4
    assert tuned.ended == "all epochs"
    assert "ended" not in tuned.sentence


def test_the_start_counts_as_an_epoch_that_grows_old(run, vpt, settings):
    tuned = run(vpt(), settings(lr=50.0, head_lr=5.0, epochs=9, patience=2))
    assert tuned.history[-1].epoch == 2 and tuned.kept_epoch == 0
    assert tuned.history[0].val_loss < min(tuned.history[1].val_loss, tuned.history[2].val_loss)


def test_patience_without_validation_images_is_refused(run, vpt, settings, refused):
    with refused("patience=2", "no images are left to validate on", "--patience"):
        run(vpt(), settings(patience=2), val=None)


@pytest.mark.parametrize(
    "losses, age",
    [
        ([2.0, 1.0, 1.0, 3.0], 2),  # of equal losses the first
        ([math.nan, 1.0, math.nan], 1),
        ([math.nan, math.nan], 1),
        ([None, None, 1.0], 0),  # only the ends are looked at when the last epoch is kept
        ([1.0], 0),
    ],
)
def test_the_age_of_the_least_loss_is_counted_in_epochs(losses, age):
    from vprompt.learning.checkpoint import EpochRecord
    from vprompt.learning.ending import age_of_least_loss

    history = [EpochRecord(i, 0.1, None, 0.5, loss) for i, loss in enumerate(losses)]
    assert age_of_least_loss(history) == age


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("batches", [4, 10, 14])
def test_a_stopped_run_ends_where_it_would_have_ended(run, vpt, settings, tmp_path, keep, batches):
    config = settings(**UNSTEADY, keep=keep, patience=2)
    whole = run(vpt(prompt_dropout=0.3), config)
    assert whole.ended == "patience" and 3 * whole.history[-1].epoch > batches
    with pytest.raises(KeyboardInterrupt):
        stop = StopAfter(batches, total=36)
        run(vpt(prompt_dropout=0.3), config, checkpoint=tmp_path, progress=stop)
    continued = run(vpt(prompt_dropout=0.3), config, checkpoint=tmp_path)
    assert bits(continued) == bits(whole) and continued.ended == whole.ended


def test_a_run_that_ended_and_was_not_saved_trains_no_further(run, vpt, settings, tmp_path):
    config = settings(**UNSTEADY, patience=2)
    whole = run(vpt(), config, checkpoint=tmp_path)
    again = StopAfter(0, total=36)  # one more step would raise
    again.left = 3 * whole.history[-1].epoch
    continued = run(vpt(), config, checkpoint=tmp_path, progress=again)
    assert bits(continued) == bits(whole) and continued.ended == "patience"


# The same bits


def test_the_same_seed_gives_the_same_bits(run, vpt, settings):
    first, second = (run(vpt(prompt_dropout=0.3), settings(seed=7, keep="last")) for _ in range(2))
    assert bits(first) == bits(second)


def test_another_seed_gives_other_bits(run, vpt, settings):
    first, second = (run(vpt(), settings(seed=seed, keep="last")) for seed in (1, 2))
    assert bits(first)[0] != bits(second)[0]


def test_global_randomness_neither_matters_nor_changes(run, vpt, settings):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = run(vpt(prompt_dropout=0.3), settings(keep="last"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert bits(run(vpt(prompt_dropout=0.3), settings(keep="last"))) == bits(first)


# A run that was stopped


@pytest.mark.parametrize("opt", ["adamw", "sgd"])
@pytest.mark.parametrize("batches", [3, 7])
def test_a_stopped_run_continues_with_the_same_bits(run, vpt, settings, tmp_path, opt, batches):
    config = settings(epochs=4, opt=opt, keep="last")
    whole = run(vpt(prompt_dropout=0.3), config)
    stop = StopAfter(batches, total=12)
    with pytest.raises(KeyboardInterrupt):
        run(vpt(prompt_dropout=0.3), config, checkpoint=tmp_path, progress=stop)
    again = StopAfter(1000, total=12)
    continued = run(vpt(prompt_dropout=0.3), config, checkpoint=tmp_path, progress=again)
    assert again.began_at == 3 * (batches // 3)  # it did not start afresh
    assert bits(continued) == bits(whole)


def test_a_stopped_run_remembers_its_best_epoch(run, vpt, settings, tmp_path):
    config = settings(epochs=4, lr=5.0, head_lr=1.0)
    whole = run(vpt(), config)
    with pytest.raises(KeyboardInterrupt):
        run(vpt(), config, checkpoint=tmp_path, progress=StopAfter(10, total=12))
    assert bits(run(vpt(), config, checkpoint=tmp_path)) == bits(whole)


def test_a_stopped_linear_run_continues_with_the_same_bits(run, tiny, settings, tmp_path):
    from vprompt.core import registry

    build, config = registry.find("adapters", "linear"), settings(epochs=4, keep="last")
    whole = run(build(tiny), config)
    with pytest.raises(KeyboardInterrupt):
        run(build(tiny), config, checkpoint=tmp_path, progress=StopAfter(7, total=12))
    assert bits(run(build(tiny), config, checkpoint=tmp_path)) == bits(whole)


def test_a_finished_run_leaves_no_checkpoint(run, vpt, settings, tmp_path):
    tuned = run(vpt(), settings(epochs=2), checkpoint=tmp_path)
    assert len(list(tmp_path.rglob("*"))) == 1  # until the result is saved elsewhere
    tuned.checkpoint.remove()
    assert list(tmp_path.rglob("*")) == []


def test_a_checkpoint_is_safetensors_and_no_pickle(run, vpt, settings, tmp_path):
    from safetensors import safe_open

    with pytest.raises(KeyboardInterrupt):
        run(vpt(), settings(), checkpoint=tmp_path, progress=StopAfter(4, total=9))
    [path] = tmp_path.iterdir()
    with safe_open(path, framework="pt") as file:
        assert file.keys()
    assert b"torch" not in path.read_bytes()[:4000] and path.suffix == ".safetensors"


def test_a_damaged_checkpoint_is_told_of_and_not_used(run, vpt, settings, tmp_path, damage_told):
    expected = run(vpt(), settings())
    with pytest.raises(KeyboardInterrupt):
        run(vpt(), settings(), checkpoint=tmp_path, progress=StopAfter(4, total=9))
    [path] = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-3] ^= 2
    path.write_bytes(bytes(data))
    with damage_told():
        again = run(vpt(), settings(), checkpoint=tmp_path)
    assert torch.equal(again.adapter.tokens, expected.adapter.tokens)


@pytest.mark.parametrize(
    "change",
    [{"lr": 0.06}, {"seed": 1}, {"opt": "sgd"}, {"epochs": 5}, {"weight_decay": 0.5}],
    ids=str,
)
def test_other_settings_do_not_continue_another_run(run, vpt, settings, tmp_path, change):
    with pytest.raises(KeyboardInterrupt):
        run(vpt(), settings(), checkpoint=tmp_path, progress=StopAfter(4, total=9))
    found = run(vpt(), settings(**change), checkpoint=tmp_path)
    assert bits(found) == bits(run(vpt(), settings(**change)))


@pytest.mark.parametrize(
    "one, other",
    [
        ({"prompt_dropout": 0.3}, {"prompt_dropout": 0.0}),
        ({"num_virtual_tokens": 2}, {"num_virtual_tokens": [1, 0, 0, 1, 0, 0]}),
        ({"num_virtual_tokens": 6}, {"num_virtual_tokens": 1, "deep": True}),
    ],
    ids=["dropout", "placement", "deep"],
)
def test_another_prompt_does_not_continue_another_run(run, vpt, settings, tmp_path, one, other):
    config = settings(head="zero", keep="last")
    with pytest.raises(KeyboardInterrupt):
        run(vpt(**one), config, checkpoint=tmp_path, progress=StopAfter(4, total=9))
    found = run(vpt(**other), config, checkpoint=tmp_path)
    assert bits(found) == bits(run(vpt(**other), config))


def test_other_images_do_not_continue_another_run(run, vpt, settings, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(vpt(), settings(), checkpoint=tmp_path, progress=StopAfter(4, total=9))
    found = run(vpt(), settings(), val=draw(9, seed=3), checkpoint=tmp_path)
    assert bits(found) == bits(run(vpt(), settings(), val=draw(9, seed=3)))


# What is frozen and what is not


def test_the_backbone_is_bit_identical_and_in_evaluation_mode(run, vpt, settings, tiny):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    adapter = vpt(prompt_dropout=0.3)
    run(adapter.train(), settings(lr=1.0, opt="sgd", weight_decay=0.5))
    assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())
    assert not any(module.training for module in tiny.modules())


def test_only_the_prompt_and_the_head_have_gradients(run, vpt, settings, tiny):
    adapter = vpt()
    run(adapter, settings(epochs=1))
    trained = [name for name, p in adapter.named_parameters() if p.requires_grad]
    assert trained == ["tokens"] and adapter.tokens.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in tiny.parameters())


def test_two_epochs_see_the_same_pixels(run, vpt, settings, tiny, train):
    before = train.pixels.copy()
    first = [tiny.normalise(pixels) for pixels, _ in train.batches(8)]
    run(vpt(), settings(epochs=2))
    second = [tiny.normalise(pixels) for pixels, _ in train.batches(8)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert np.array_equal(train.pixels, before)


def test_pixels_that_cannot_be_written_to_are_enough(run, vpt, settings, train):
    train.pixels.flags.writeable = False
    run(vpt(), settings(epochs=1))


# A loss that is no number


def test_a_loss_that_is_not_finite_names_the_step(tiny, vpt, train, val, settings, refused):
    from vprompt.learning.adapter import PromptAdapter
    from vprompt.learning.tune import tune

    class Poisoned(PromptAdapter):
        steps = 0

        def features(self, images, *, generator=None):
            found = super().features(images, generator=generator)
            self.steps += generator is not None
            return found * math.nan if self.steps == 5 else found

    adapter = Poisoned(tiny, vpt().prompt())
    with refused("loss became nan at step 4 ", "epoch 2", "--lr"):
        tune(adapter, train, val, CLASSES, settings())


def test_a_rate_that_is_far_too_high_stops_the_run(run, vpt, settings, refused):
    with refused("loss became", "at step", "smaller --lr"):
        run(vpt(), settings(head="zero", lr=1e30, head_lr=1e36, weight_decay=1e-3))


def test_a_last_step_that_explodes_is_not_delivered(run, vpt, settings, refused):
    steps = {"epochs": 1, "batch_size": 64, "warmup": 0.0, "keep": "last"}
    with refused("(finite|became)"):
        run(vpt(), settings(**steps, opt="sgd", head="kaiming", head_lr=3e38, weight_decay=10))


# The schedule


def test_the_rate_rises_to_its_peak_and_falls_to_its_floor():
    from vprompt.learning.schedule import learning_rate_factor

    found = [learning_rate_factor(step, 10, 0.2, 0.1) for step in (0, 1, 2, 6, 10)]
    # Two steps of warm-up on the way to 1, then half a cosine over the other eight.
    assert found == pytest.approx([1 / 3, 2 / 3, 1.0, 0.55, 0.1])


def test_the_first_step_already_trains():
    from vprompt.learning.schedule import learning_rate_factor

    assert learning_rate_factor(0, 100, 0.1, 0.0) == pytest.approx(1 / 11)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    from vprompt.learning.schedule import learning_rate_factor

    found = [learning_rate_factor(step, 4, 0.0, 0.0) for step in range(5)]
    half = math.sqrt(0.5) / 2
    assert found == pytest.approx([1.0, 0.5 + half, 0.5, 0.5 - half, 0.0])


def test_warm_up_alone_rises_to_the_end():
    from vprompt.learning.schedule import learning_rate_factor

    found = [learning_rate_factor(step, 4, 1.0, 0.0) for step in range(4)]
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_a_run_of_one_step_has_a_rate():
    from vprompt.learning.schedule import learning_rate_factor

    assert learning_rate_factor(0, 1, 0.1, 0.0) == 1.0


@pytest.mark.parametrize("epochs", [1, 2, 5, 80])
def test_by_epoch_the_rate_is_that_of_torch_behind_a_constant_first_epoch(epochs):
    """As the toolbox of CoOp joins them: a constant epoch, then a cosine over all epochs."""
    from vprompt.learning.schedule import rate
    from vprompt.learning.train_config import TrainConfig

    given = {"sched": "cosine_by_epoch", "min_lr": 0.0, "epochs": epochs}
    late = TrainConfig(**given, first_epoch_lr=1e-5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0035)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(epochs))
    wanted = []
    for _ in range(epochs):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    found = [rate(TrainConfig(**given), 0.0035, 7 * epoch, 7) for epoch in range(epochs)]
    assert found == pytest.approx(wanted, rel=1e-6)
    found = [rate(late, 0.0035, step, 7) for step in range(7 * epochs)]
    assert found == pytest.approx([r for r in [1e-5, *wanted[:-1]] for _ in range(7)], rel=1e-6)


def test_a_run_by_epoch_records_its_rates_and_gives_the_head_the_same_first_one(run, vpt, settings):
    few = {"epochs": 3, "sched": "cosine_by_epoch", "min_lr": 0.0, "keep": "last"}
    tuned = run(vpt(), settings(**few, first_epoch_lr=1e-12, opt="sgd"))
    rates = [record.lr for record in tuned.history[1:]]
    assert rates == pytest.approx([1e-12, 0.05, 0.05 * (1 + math.cos(math.pi / 3)) / 2])
    still = run(vpt(), settings(**{**few, "epochs": 1}, first_epoch_lr=1e-12, opt="sgd"))
    torch.testing.assert_close(still.head.weight, still.start_head.weight, rtol=0, atol=1e-6)


def test_without_a_rate_of_its_own_the_head_takes_that_of_the_adapter(run, vpt, settings):
    few = {"epochs": 2, "lr": 0.02, "head": "kaiming", "keep": "last"}
    shared = run(vpt(), settings(**few, head_lr=None))
    typed = run(vpt(), settings(**few, head_lr=0.02))
    assert torch.equal(shared.head.weight, typed.head.weight)
    assert shared.history == typed.history


# The optimiser


@pytest.mark.parametrize("opt", ["adamw", "sgd"])
def test_weight_decay_acts_on_tokens_and_head_but_not_on_its_bias(run, vpt, settings, opt):
    one_step = {"epochs": 1, "batch_size": 64, "warmup": 0.0, "keep": "last", "head": "kaiming"}
    rates = {"lr": 0.1, "head_lr": 0.02, "opt": opt}
    start = run(vpt(), settings(**one_step, **rates).model_copy(update={"epochs": 0}))
    plain = run(vpt(), settings(**one_step, **rates, weight_decay=0.0))
    decayed = run(vpt(), settings(**one_step, **rates, weight_decay=0.5))
    # In both optimisers one step differs by exactly rate * decay * parameter.
    for rate, of in (
        (0.1, lambda tuned: tuned.adapter.prompt().tokens),
        (0.02, lambda tuned: tuned.head.weight),
    ):
        torch.testing.assert_close(
            of(decayed) - of(plain), -rate * 0.5 * of(start), rtol=1e-3, atol=1e-6
        )
    assert torch.equal(decayed.head.bias, plain.head.bias)
    assert not torch.equal(plain.head.bias, start.head.bias)


@pytest.mark.parametrize("opt", ["adamw", "sgd"])
def test_a_rate_in_units_of_the_start_is_a_rate_for_every_block(run, vpt, settings, tiny, opt):
    from vprompt.learning.adapter import PromptAdapter, block_sizes

    start = vpt(deep=True).prompt()
    factors = 2.0 + torch.arange(tiny.depth)[start.blocks][:, None]
    start = start.with_tokens(start.tokens * factors)
    sizes = block_sizes(start, tiny)
    for block in range(tiny.depth):
        own = start.tokens[start.blocks == block]
        assert sizes[block].item() == pytest.approx(own.square().mean().sqrt().item(), rel=1e-5)

    def step(**changes):
        config = {"epochs": 1, "batch_size": 64, "warmup": 0.0, "keep": "last", "opt": opt}
        adapter = PromptAdapter(tiny, start)
        tuned = run(adapter, settings(**config, **changes, weight_decay=0.1))
        return tuned.adapter.prompt().tokens - start.tokens

    plain, own = step(lr=0.01), step(lr=0.01, lr_unit="start")
    assert plain.abs().max() > 0
    torch.testing.assert_close(own, plain * sizes[start.blocks][:, None], rtol=1e-3, atol=1e-6)


def test_tokens_near_zero_are_moved_as_random_ones(tiny, vpt):
    from vprompt.learning.adapter import block_sizes

    zeros, drawn = (
        vpt(deep=True, prompt_init=init, num_virtual_tokens=100).prompt()
        for init in ("zeros", "vpt_uniform")
    )
    wanted = block_sizes(drawn, tiny)
    torch.testing.assert_close(block_sizes(zeros, tiny), wanted, rtol=0.1, atol=0)
    some = vpt(deep=True, num_virtual_tokens=[3] + [0] * (tiny.depth - 1)).prompt()
    assert block_sizes(some, tiny).unique().numel() == 1  # no token, no size of its own


def test_a_rate_in_units_of_a_start_is_refused_without_tokens(run, settings, tiny, refused):
    from vprompt.core import registry

    with refused("HiddenLayers has no tokens", "--lr-unit none"):
        run(registry.find("adapters", "mlp")(tiny), settings(lr_unit="start"))


def test_a_run_with_rates_of_its_start_continues_with_the_same_bits(run, vpt, settings, tmp_path):
    config = settings(lr=0.2, lr_unit="start", epochs=4)
    whole = run(vpt(), config)

    class Stop(Exception):
        pass

    def stop(history):
        if history[-1].epoch == 2:
            raise Stop

    with contextlib.suppress(Stop):
        run(vpt(), config, checkpoint=tmp_path / "state", after_epoch=stop)
    assert bits(run(vpt(), config, checkpoint=tmp_path / "state")) == bits(whole)


def test_plain_rates_are_not_in_the_record(settings):
    assert "lr_unit" not in settings().model_dump()
    assert settings(lr_unit="start").model_dump()["lr_unit"] == "start"


# The head at the start


def test_a_zero_head_starts_at_zero(run, vpt, settings):
    tuned = run(vpt(), settings(epochs=0, head="zero"))
    assert not tuned.start_head.weight.any() and not tuned.start_head.bias.any()
    assert tuned.history[0].val_loss == pytest.approx(math.log(CLASSES))


def test_a_kaiming_head_gives_every_class_a_prior_of_one_per_cent(run, vpt, settings, tiny):
    head = run(vpt(), settings(epochs=0, head="kaiming")).start_head
    assert head.bias.tolist() == pytest.approx([-math.log(99)] * CLASSES)
    # Fan-out of a linear layer is its number of outputs.
    assert head.weight.std().item() == pytest.approx(math.sqrt(2 / CLASSES), rel=0.2)


def test_a_closed_form_head_is_fitted_under_the_starting_prompt(run, vpt, settings, tiny, train):
    from vprompt.models.heads import closed_form
    from vprompt.results.measure import features_of

    adapter = vpt()
    features = features_of(tiny, adapter.prompt(), train, precision="fp32")
    wanted = closed_form(features, train.labels, CLASSES)
    head = run(adapter, settings(epochs=0, head="closed_form")).start_head
    torch.testing.assert_close(head.weight, wanted.weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(head.bias, wanted.bias, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head_lr", [3.0, 0.03])
def test_a_head_may_be_fitted_anew_after_training(run, vpt, settings, tiny, train, val, head_lr):
    from vprompt.models.heads import closed_form
    from vprompt.results.measure import features_of

    config = {"keep": "last", "head_lr": head_lr}
    trained = run(vpt(), settings(**config))
    prompt = trained.adapter.prompt()
    fitted = closed_form(features_of(tiny, prompt, train, precision="fp32"), train.labels, CLASSES)
    seen = features_of(tiny, prompt, val, precision="fp32")

    def rank(head):
        logits = head.logits(seen).float()
        right = (logits.argmax(1) == val.labels).double().mean().item()
        return right, -functional.cross_entropy(logits, val.labels).item()

    better = rank(fitted) > rank(trained.head)
    assert better or head_lr < 1, "such a rate spoils the trained head"
    for judged, new in ((val, better), (None, True)):
        tuned = run(vpt(), settings(**config, head="refitted"), val=judged)
        assert torch.equal(tuned.adapter.prompt().tokens, prompt.tokens)
        assert tuned.refitted == new and not trained.refitted
        assert ("the head was fitted anew" in tuned.sentence) == new
        wanted = fitted if new else trained.head
        torch.testing.assert_close(tuned.head.weight, wanted.weight, rtol=1e-3, atol=1e-3)
    assert not run(vpt(), settings(epochs=0, head="refitted")).refitted


def test_whitening_leaves_the_closed_form_logits_as_they_are(run, vpt, settings, tiny, val):
    from vprompt.results.measure import features_of

    tuned = run(vpt(), settings(epochs=0, head="closed_form"))
    features = features_of(tiny, tuned.adapter.prompt(), val, precision="fp32")
    wanted = tuned.start_head.logits(features)
    torch.testing.assert_close(tuned.head.logits(features), wanted, rtol=1e-3, atol=1e-3)


def test_a_classifier_in_other_coordinates_folds_back_into_a_plain_head(vpt, tiny, generator):
    from vprompt.learning.tune import Classifier
    from vprompt.models.heads import Head

    width = tiny.feature_dim
    features = torch.randn(9, width, generator=generator)
    head = Head(
        torch.randn(CLASSES, width, generator=generator), torch.randn(CLASSES, generator=generator)
    )
    square = torch.randn(width, width, generator=generator)
    whitening = (torch.randn(width, generator=generator), square @ square.T + torch.eye(width))
    classifier = Classifier(vpt(), head, whitening)
    wanted = functional.linear(features, head.weight, head.bias)
    torch.testing.assert_close(classifier.logits(features), wanted, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(classifier.head().logits(features), wanted, rtol=1e-3, atol=1e-2)


# Training the head alone


def test_the_linear_method_runs_the_backbone_once_however_many_epochs(
    run, settings, tiny, train, val, monkeypatch
):
    from vprompt.core import registry

    seen, embed = [], type(tiny).embed

    def counted(self, images):
        seen.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(type(tiny), "embed", counted)
    tuned = run(registry.find("adapters", "linear")(tiny), settings(epochs=6))
    assert sum(seen) == len(train) + len(val)
    assert tuned.adapter.prompt() is None and len(tuned.history) == 7


# Settings


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": -1}, {"patience": -1}, {"lr": 0}, {"opt": "adam"}, {"epoch": 3}, {"warmup": 2}],
    ids=str,
)
def test_a_wrong_setting_is_refused_by_name(settings, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings(**wrong)


def test_the_literature_recipe_keeps_the_last_epoch_of_a_zero_head():
    from vprompt.learning.train_config import TrainConfig

    recipe = TrainConfig(head="zero", keep="last", epochs=4)
    assert (recipe.head, recipe.keep, recipe.epochs) == ("zero", "last", 4)


# What an adapter may do in the loop


def recorder(tiny):
    """A prompt that writes down its hooks, adds a penalty and moves its block in mid-training."""
    from vprompt.learning.adapter import PromptAdapter
    from vprompt.prompts.prompt import Prompt

    class Recorder(PromptAdapter):
        def begin_epoch(self, training):
            self.memory.setdefault("seen", []).append(["epoch", training.epoch, training.step])

        def begin_step(self, training):
            self.memory["seen"].append(["step", training.epoch, training.step])
            if training.val is not None:
                rows = torch.arange(4)
                self.val_losses.append(training.loss(training.val, rows, None).item())

        def after_backward(self, training):
            self.norms.append(self.tokens.grad.norm().item())

        def end_epoch(self, training):
            self.blocks[-1] = training.epoch  # a token moves

        def extra_loss(self, logits, rows):
            self.rows += rows.tolist()
            return 0.1 * self.tokens.square().sum()

        def groups(self):
            return [([self.tokens], 0.5)]

    tokens = torch.randn(2, tiny.dim, generator=torch.Generator().manual_seed(4))
    made = Recorder(tiny, Prompt(tokens, torch.zeros(2, dtype=torch.long), False))
    made.norms, made.rows, made.val_losses = [], [], []
    return made


def test_hooks_see_every_epoch_and_step_and_the_penalty_sees_every_image(run, tiny, settings):
    adapter = recorder(tiny)
    tuned = run(adapter, settings(epochs=2, keep="last"))
    steps = math.ceil(22 / 8)
    expected = []
    for epoch in (1, 2):
        first = (epoch - 1) * steps
        expected.append(["epoch", epoch, first])
        expected += [["step", epoch, first + i] for i in range(steps)]
    assert adapter.memory["seen"] == expected
    assert sorted(adapter.rows) == sorted([*range(22)] * 2)
    assert len(adapter.norms) == len(adapter.val_losses) == 2 * steps
    assert min(adapter.norms) > 0 and np.isfinite(adapter.val_losses).all()
    assert tuned.adapter.prompt().blocks.tolist() == [0, 2]


def test_what_hooks_change_survives_a_stop(run, tiny, settings, tmp_path):
    config = settings(epochs=3, keep="last")
    whole = run(recorder(tiny), config)
    with pytest.raises(KeyboardInterrupt):
        run(recorder(tiny), config, checkpoint=tmp_path, progress=StopAfter(7, 9))
    resumed = recorder(tiny)
    again = run(resumed, config, checkpoint=tmp_path)
    assert bits(again) == bits(whole)
    assert resumed.memory == whole.adapter.memory and len(resumed.memory["seen"]) == 3 + 9


def test_the_best_epoch_brings_back_its_placement(run, tiny, settings, train):
    adapter = recorder(tiny)
    tuned = run(adapter, settings(epochs=3, lr=0.0001), val=train)
    assert tuned.adapter.prompt().blocks[-1] == tuned.kept_epoch


def test_a_step_is_clipped_after_its_gradient_was_read(run, tiny, settings):
    from vprompt.learning.adapter import PromptAdapter

    def moved(clip):
        adapter = recorder(tiny)
        before = adapter.tokens.detach().clone()
        config = settings(epochs=1, batch_size=22, opt="sgd", weight_decay=0, clip_grad=clip)
        run(adapter, config.model_copy(update={"keep": "last", "sched": "constant"}))
        assert isinstance(adapter, PromptAdapter)
        return adapter.norms[0], (adapter.tokens - before).norm().item()

    free_norm, free = moved(0.0)
    clipped_norm, clipped = moved(free_norm / 100)
    assert clipped_norm == free_norm  # the hook saw it unclipped
    assert 0 < clipped < free / 50
    assert free == pytest.approx(0.5 * 0.05 * free_norm, rel=1e-4)  # half the rate, as asked


def test_a_constant_schedule_stays_at_the_peak(run, vpt, settings):
    tuned = run(vpt(), settings(epochs=2, sched="constant"))
    assert [record.lr for record in tuned.history[1:]] == [0.05, 0.05]


def test_an_adapter_may_bring_its_own_head(run, tiny, settings, val):
    from vprompt.learning.adapter import NoAdapter

    class Prototypes(NoAdapter):
        def __init__(self, backbone):
            super().__init__(backbone)
            self.means = torch.nn.Parameter(torch.zeros(CLASSES, backbone.feature_dim))

        def own_head(self, *, generator=None):
            return 2 * self.means, torch.zeros(CLASSES)

    tuned = run(Prototypes(tiny), settings(epochs=3))
    assert tuned.head.family == "own" and tuned.start_head.weight.abs().sum() == 0
    assert torch.equal(tuned.head.weight, 2 * tuned.adapter.means.detach())
    assert tuned.kept_epoch > 0 and tuned.head.weight.abs().sum() > 0
    assert tuned.record(tuned.kept_epoch).val_accuracy == accuracy_of(tuned, tiny, val)
