"""Logged: what a run says where nobody sees a bar move."""

import pytest


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    from vprompt.cli import logged

    now = [0.0]
    monkeypatch.setattr(logged.time, "monotonic", lambda: now[0])
    return now


def test_a_long_step_writes_a_line_every_half_minute_and_one_at_its_end(clock, capsys):
    from vprompt.cli.logged import Lines

    with Lines(str).step("evidence", 100) as step:
        for moment in range(0, 100, 10):
            clock[0] = float(moment)
            step.advance(10, "gtsrb")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "evidence: 40 of 100, gtsrb, about 45 s left",
        "evidence: 70 of 100, gtsrb, about 26 s left",
        "evidence: 100 of 100, gtsrb, about 0 s left",
        "evidence: 100 of 100 in 90 s",
    ]


def test_a_short_step_writes_nothing(clock, capsys):
    from vprompt.cli.logged import Lines

    with Lines(str).step("images", 3) as step:
        step.advance(3)
    assert capsys.readouterr().err == ""


def test_a_command_whose_output_is_kept_in_a_file_says_what_it_says(vprompt, tmp_path):
    _, _, err = vprompt("learn", "digits", "--model", "tiny", "--epochs", 1, "--shots", 2)
    assert "train 20" in err and "\x1b" not in err and "━" not in err
