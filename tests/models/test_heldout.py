"""Held out: repeated folds, and heads judged by images that they have not seen."""

import pytest
import torch


@pytest.fixture
def clouds(generator):
    """Features of four classes around their means, and labels."""
    labels = torch.arange(32) % 4
    means = 3 * torch.randn(4, 24, generator=generator)
    return means[labels] + torch.randn(32, 24, generator=generator), labels


def test_every_deal_has_each_class_in_as_many_folds_as_it_can(clouds):
    from vprompt.models.heldout import deals

    _, labels = clouds
    dealt = deals(labels, repeats=3, folds=4)
    assert dealt.shape == (3, 32)
    for fold_of in dealt:
        for label in labels.unique():
            assert torch.bincount(fold_of[labels == label], minlength=4).tolist() == [2] * 4
    assert not torch.equal(dealt[0], dealt[1])


def test_losses_are_those_of_heads_fitted_without_the_image(clouds):
    """Against a loop over scikit-learn's ridge regression on one-hot labels."""
    from sklearn.linear_model import Ridge

    from vprompt.models import heldout
    from vprompt.models.heads import RIDGE_STRENGTHS, calibrated

    features, labels = clouds
    dealt = heldout.deals(labels, repeats=2, folds=4)
    held = heldout.judge(features, labels, 4, dealt, families=("ridge",))
    hot = torch.eye(4, dtype=torch.float64)[labels]
    found = {}
    for strength in RIDGE_STRENGTHS:
        logits, targets, rows = [], [], []
        for fold_of in dealt:
            for fold in fold_of.unique():
                fit = fold_of != fold
                data = features[fit].double()
                centred = data - data.mean(0)
                penalty = strength * float((centred**2).sum()) / 24
                model = Ridge(alpha=penalty).fit(data.numpy(), hot[fit].numpy())
                logits.append(torch.as_tensor(model.predict(features[~fit].double().numpy())))
                targets.append(labels[~fit])
                rows.append((~fit).nonzero().flatten())
        scores, truth = torch.cat(logits), torch.cat(targets)
        loss, _, scale = calibrated(scores, truth)
        each = torch.nn.functional.cross_entropy(scores * scale, truth, reduction="none")
        mean = torch.zeros(32, dtype=torch.float64).index_add_(0, torch.cat(rows), each) / 2
        found[strength] = (loss, mean)
    best = min(found, key=lambda strength: found[strength][0])
    assert held.strength == best
    torch.testing.assert_close(held.losses, found[best][1], rtol=1e-4, atol=1e-6)


def test_a_class_of_one_image_is_not_held_out():
    from vprompt.models import heldout

    labels = torch.tensor([0, 0, 1, 1, 2])
    features = torch.eye(5)
    held = heldout.judge(features, labels, 3, heldout.deals(labels))
    assert len(held.losses) == 4
    assert heldout.can_hold_out(labels)
    assert not heldout.can_hold_out(torch.arange(5))


def test_meaningless_features_are_no_better_than_chance(generator):
    from vprompt.models import heldout

    labels = torch.arange(80) % 4
    held = heldout.judge(
        torch.randn(80, 200, generator=generator), labels, 4, heldout.deals(labels)
    )
    assert held.accuracy < 0.45
    assert held.loss > 1.3


def test_heads_in_the_span_of_few_images_are_those_of_all_dimensions(generator):
    """Closed-form heads are the same in any rotation, so few images need few dimensions."""
    from vprompt.models.heads import Span, closed_form, head_path

    labels = torch.arange(12) % 3
    features = torch.randn(12, 40, generator=generator).double()
    span = Span.of(features)
    assert span.data.shape == (12, 12)
    for family in ("ridge", "lda"):
        wide = head_path(family, features, labels, 3, 40)
        narrow = head_path(family, span.data, labels, 3, 40)
        seen = torch.randn(5, 40, generator=generator).double()
        for (_, one), (_, two) in zip(wide, narrow, strict=True):
            torch.testing.assert_close(span.lift(two).logits(seen), one.logits(seen))
    head = closed_form(features.float(), labels, 3)
    assert head.weight.shape == (3, 40)
