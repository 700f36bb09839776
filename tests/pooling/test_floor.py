"""Floor: what scores are worth, on features of which one knows what they hold."""

import torch


def candidates(strengths, count=60, width=8):
    """Return inputs of sources whose classes stand apart by these strengths, and of no prompt."""
    labels = torch.arange(count) % 3
    found = {}
    for row, (name, strength) in enumerate(strengths.items()):
        noise = torch.randn(count, width, generator=torch.Generator().manual_seed(10 + row))
        found[name] = {"features": noise + strength * torch.eye(3, width)[labels], "labels": labels}
    return found


def worth(strengths, metric="hscore"):
    from vprompt.pooling import floor, scoring

    given = candidates(strengths)
    return floor.of(metric, given, scoring.rank(metric, given))


def test_noise_does_not_pass_its_floor_and_is_not_told_apart():
    found = worth({"a": 0.0, "b": 0.0, "c": 0.0, "(no prompt)": 0.0})
    assert not found.above and found.shuffled[0] < found.shuffled[1]
    first, second = found.sentences()
    assert "noise floor of hscore" in first and "is noise" in first
    assert "do not separate the sources" in second and "combine" in second


def test_a_source_that_is_better_is_told_apart():
    found = worth({"good": 4.0, "bad": 0.2, "(no prompt)": 0.2})
    assert found.above and found.best == "good" and found.ahead == {"bad": 1.0, "(no prompt)": 1.0}
    assert found.sentences()[1] == "good is told apart from all other sources"


def test_two_alike_are_named_and_so_is_no_prompt_as_good():
    found = worth({"a": 3.0, "b": 3.0, "c": 0.1, "(no prompt)": 3.0})
    assert set(found.alike) <= {"a", "b"} and len(found.alike) == 1
    said = found.sentences()[1]
    assert "is not told apart from" in said and "without a prompt score as well" in said


def test_the_same_images_give_the_same_sentences():
    strengths = {"a": 1.0, "b": 0.9, "(no prompt)": 0.5}
    assert worth(strengths) == worth(strengths)


def test_what_has_no_labels_or_takes_too_long_has_no_floor(monkeypatch):
    from vprompt.pooling import floor, scoring

    tokens = {"a": {"tokens": torch.ones(2, 3), "target_tokens": torch.ones(2, 3)}}
    assert floor.of("prompt_cosine", tokens, scoring.rank("prompt_cosine", tokens)) is None
    monkeypatch.setattr(floor, "SECONDS", 0.0)
    assert worth({"a": 1.0, "b": 0.0}) is None
    given = candidates({"a": 1.0, "b": 0.0})
    scores = scoring.rank("hscore", given)
    assert floor.said("hscore", given, scores) == [
        "noise floor of hscore: not looked for, since that would take too long"
    ]
    assert floor.said("prompt_cosine", tokens, scoring.rank("prompt_cosine", tokens)) == []
