"""Scale path: which scale is taken, what it gains, and what is said of it."""

import pytest
import torch


def point(name, scale, losses, alike=1.0, correct=None, problem=None):
    from vprompt.models.heldout import HeldOut
    from vprompt.pooling.scale_path import Point

    held = None
    if losses is not None:
        values = torch.as_tensor(losses, dtype=torch.float64)
        right = torch.ones(len(values)) if correct is None else torch.as_tensor(correct)
        held = HeldOut(values, right.double(), "ridge", 1.0, 1.0)
    return Point(name, scale, None, torch.zeros(2, 3), held, alike, problem)


def test_the_anchor_is_the_largest_scale_that_leaves_features_alike():
    from vprompt.pooling.scale_path import anchor_of

    points = [
        point("no prompt", 0.0, None, 0.9),
        point("start", 0.0, None),
        point("x1", 1.0, None, 0.95),
        point("x2", 2.0, None, 0.6),
        point("x4", 4.0, None, 0.3),
    ]
    assert points[anchor_of(points)].name == "x2"


def test_without_a_scale_that_leaves_them_alike_the_smallest_is_the_anchor():
    from vprompt.pooling.scale_path import anchor_of

    points = [point("no prompt", 0.0, None), point("start", 0.0, None), point("x1", 1.0, None, 0.1)]
    assert points[anchor_of(points)].name == "x1"


def test_another_scale_is_taken_only_if_it_is_clearly_better():
    from vprompt.pooling.scale_path import choose

    def taken(rival):
        points = [
            point("no prompt", 0.0, [2.0, 2.1, 1.9, 2.0], 0.9),
            point("start", 0.0, [2.0, 2.1, 1.9, 2.0]),
            point("x1", 1.0, [1.5, 1.6, 1.4, 1.5], 0.8),
            point("x4", 4.0, rival, 0.2),
        ]
        return points[choose(points)[0]].name

    assert taken([1.0, 1.1, 0.9, 1.0]) == "x4"  # better on every image
    assert taken([0.1, 2.9, 0.2, 2.6]) == "x1"  # better on average, by two lucky images


def test_no_prompt_is_a_candidate_like_any_other():
    from vprompt.pooling.scale_path import choose

    points = [
        point("no prompt", 0.0, [1.0, 1.1, 0.9, 1.0], 0.9),
        point("start", 0.0, [2.0, 2.1, 1.9, 2.0]),
        point("x1", 1.0, [2.5, 2.6, 2.4, 2.5], 0.8),
    ]
    assert choose(points)[0] == 0


def test_a_scale_of_features_that_are_not_finite_is_dropped_and_named(tiny):
    from vprompt.pooling import scale_path
    from vprompt.prompts.prompt import Prompt

    labels = torch.arange(12) % 3
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn(12, 6, generator=generator)

    def at(scale):
        return Prompt(torch.full((1, 4), scale), torch.zeros(1, dtype=torch.long))

    def look(prompt):
        bad = prompt is not None and float(prompt.tokens[0, 0]) > 3
        return sound * torch.nan if bad else sound

    path = scale_path.walk_scales(at, look, labels, 3)
    dropped = [p.name for p in path.points if p.problem]
    assert dropped == ["x4", "x8"]
    assert any("x4 (features are not finite)" in each for each in scale_path.remarks(path))
    assert path.choice.scale < 4


def test_a_start_whose_features_are_not_finite_is_an_error(refused):
    from vprompt.pooling import scale_path
    from vprompt.prompts.prompt import Prompt

    prompt = Prompt(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))
    with refused("start are not finite"):
        scale_path.walk_scales(
            lambda scale: prompt,
            lambda given: torch.full((4, 3), torch.nan),
            torch.tensor([0, 0, 1, 1]),
            2,
        )


@pytest.mark.parametrize(
    ("length", "least"), [(0.1, 1), (2.5, 0.5), (5, 0.25), (1e9, 0.0625), (float("nan"), 0.0625)]
)
def test_long_moves_are_shortened_until_their_features_are_alike(length, least):
    from vprompt.pooling.scale_path import walk_scales
    from vprompt.prompts.prompt import Prompt

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 3
    start, move = torch.randn(2, 12, 6, generator=generator).double()

    def look(prompt):
        scale = 0.0 if prompt is None else float(prompt.tokens[0, 0])
        return start + scale * length * move if scale else start

    def at(scale):
        return Prompt(torch.full((1, 4), scale), torch.zeros(1, dtype=torch.long))

    asked = walk_scales(at, look, labels, 3, scales=(1.0,), descend=False)
    assert [point.scale for point in asked.points] == [0, 0, 1]
    path = walk_scales(at, look, labels, 3, refine=False)
    assert min(point.scale for point in path.points if point.scale) == least
    assert max(point.scale for point in path.points) == 8


def test_with_one_image_a_class_the_anchor_is_taken_without_a_judgement():
    from vprompt.pooling import scale_path
    from vprompt.prompts.prompt import Prompt

    generator = torch.Generator().manual_seed(0)
    base, other = torch.randn(2, 5, 8, generator=generator)

    def at(scale):
        return Prompt(torch.full((1, 4), scale), torch.zeros(1, dtype=torch.long))

    def look(prompt):
        scale = 0.0 if prompt is None else float(prompt.tokens[0, 0])
        return base + 0.4 * scale * other

    path = scale_path.walk_scales(at, look, torch.arange(5), 5)
    assert path.dealt is None and path.choice.scale > 0
    assert path.choice.alike >= scale_path.ALIKE
    assert scale_path.gain_of_choice(path) is None
    assert "cannot be judged" in scale_path.verdict(None, [])


def test_the_gain_of_a_lucky_choice_is_not_counted():
    """Scales that are all alike by chance: the best of them promises more than it is worth."""
    from vprompt.pooling.scale_path import ScalePath, choose, gain_of_choice

    generator = torch.Generator().manual_seed(1)
    apparent, honest = [], []
    for _ in range(20):
        points = []
        for number in range(13):
            correct = (torch.rand(40, generator=generator) < 0.5).double()
            losses = 1.5 - correct + 0.1 * torch.rand(40, generator=generator)
            name = f"x{number}" if number else "no prompt"
            points.append(point(name, float(number), losses.tolist(), 0.6, correct.tolist()))
        row, why = choose(points)
        path = ScalePath(tuple(points), row, why, torch.zeros(1, 40, dtype=torch.long))
        apparent.append(float((points[row].held.correct - points[0].held.correct).mean()))
        honest.append(gain_of_choice(path).mean)
    assert sum(apparent) / 20 > 0.05
    assert abs(sum(honest) / 20) < 0.04


def test_words_follow_the_interval():
    from vprompt.pooling.scale_path import Gain, verdict

    seen = [25, 25]
    assert verdict(Gain(0.09, 0.05, 0.13), seen) == (
        "this pool helps: +9.0 points, +5.0 to +13.0 over no prompt, cross-validated on 50 images, "
        "25 of each class"
    )
    assert "does not help" in verdict(Gain(-0.09, -0.13, -0.05), seen)
    assert "does not help" in verdict(Gain(-0.01, -0.05, 0.03), seen, unused=True)
    assert "may help" in verdict(Gain(0.02, -0.02, 0.06), seen)
    uneven = verdict(Gain(-0.01, -0.03, 0.01), [40, 10])
    assert "hardly helps" in uneven and "on 50 images, classes as frequent there" in uneven


def test_the_largest_scale_is_said_to_be_the_largest():
    from vprompt.pooling.scale_path import ScalePath, remarks

    points = (point("no prompt", 0.0, [1.0]), point("start", 0.0, [1.0]), point("x12", 12.0, [0.1]))
    said = remarks(ScalePath(points, 2, "", None))
    assert any("the largest scale, x12, was taken" in each for each in said)


def test_likeness_does_not_depend_on_the_number_of_images(generator):
    """Why it is this cosine: an alignment of kernels calls any two features of few images alike."""
    from vprompt.core.linalg import centred_cosine, centred_kernel_alignment

    one, two = torch.randn(2, 600, 300, generator=generator)
    few = slice(0, 12)
    assert abs(centred_cosine(one, two)) < 0.05
    assert abs(centred_cosine(one[few], two[few])) < 0.05
    assert centred_kernel_alignment(one[few], two[few]) > 0.5
    assert centred_cosine(one, 3 * one + 5) == pytest.approx(1.0)
