"""Advice: what a combination's record says to do next."""

import pytest


def record(low, high, images=200, data="my photos/"):
    gain = {"over": "no prompt", "difference": (low + high) / 2, "low": low, "high": high}
    return {
        "test": {"no prompt": {"gain": None}, "tuned": {"gain": gain, "images": images}},
        "replay": {"target": {"data": data, "shots": 5}},
        "backbone": {"name": "demo", "data_config": {"input_size": [3, 70, 70]}},
    }


@pytest.mark.parametrize(
    "low, high, images, words",
    [
        (0.02, 0.1, 200, ["the pool helped: +6.0 points over no prompt on 200", "predict IMAGES"]),
        (-0.1, -0.02, 200, ["the pool did harm", "nearer to yours"]),
        (-0.1, 0.2, 200, ["cannot be told", "the interval is wide"]),
        (-0.1, 0.2, 12, ["cannot be told", "12 test images are few"]),
    ],
)
def test_whether_the_pool_helped_and_what_next(low, high, images, words):
    from vprompt.results.advice import after_combining

    said = "\n".join(after_combining(record(low, high, images), "prompt"))
    assert all(word in said for word in words), said
    assert "`vprompt learn 'my photos/' --shots 5 --model demo --image-size 70`" in said
    assert ("--artifact prompt`" in said) == (high > 0)


def test_without_a_place_or_a_test_it_is_said():
    from vprompt.results.advice import after_combining

    closed = {**record(0, 0), "test": {}}
    first, second, *_ = after_combining(closed, None)
    assert "was not measured" in first and "--output FOLDER" in second
