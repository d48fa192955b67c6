"""Progress: a bar with counts and the time left on a terminal, and a line every few seconds elsewhere."""

import pytest

from higgs_trainer import progress
from higgs_trainer.progress import ProgressBar, close_bars, track
from higgs_trainer.terminal import echo
from screen import open_screen


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_pipe_gets_a_line_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(range(100), "encoding", 100):
        clock.now += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "encoding: 10 of 100, 0:01:30 left"
    assert lines[1] == "encoding: 20 of 100, 0:01:20 left"
    assert lines[-1] == "encoding: 100 of 100 in 0:01:40"
    assert len(lines) == 11


def test_a_task_that_is_done_at_once_leaves_a_pipe_empty(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(track([3, 4], "encoding", 2)) == [3, 4]
    assert capsys.readouterr().err == ""


def test_the_lines_of_a_task_that_lasts_long_become_rare(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in track(range(3600), "encoding", None):
        clock.now += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "encoding: 10"
    assert lines[-1] == "encoding: 3600 in 1:00:00"
    assert len(lines) == 600 // 10 + 3000 // 60 + 1


def test_the_time_left_of_a_resumed_task_is_that_of_its_new_items(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar("training", 100, done=90) as bar:
        clock.now += 20
        bar.update(92)
    assert capsys.readouterr().err.splitlines()[0] == "training: 92 of 100, 0:01:20 left"


def test_no_line_follows_soon_after_another_one_about_the_same_task(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar("training", 100) as bar:
        clock.now += 9
        bar.rest()
        clock.now += 9
        bar.advance()
        assert capsys.readouterr().err == ""
        clock.now += 1
        bar.advance()
    assert capsys.readouterr().err.startswith("training: 2 of 100")


@pytest.mark.parametrize("width", [60, 80])
def test_a_terminal_gets_a_bar_with_counts(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    screen = open_screen(monkeypatch, width=width)
    assert list(track(range(7), "checking recordings", 7)) == list(range(7))
    lines = screen.list_lines()
    assert max(map(len, lines)) <= width
    assert "checking recordings" in lines[-1]
    assert "7/7" in lines[-1]


def test_a_task_of_unknown_length_ends_with_a_full_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = open_screen(monkeypatch, width=80)
    list(track(range(7), "reading rows", None))
    assert "7/7" in screen.list_lines()[-1]


def test_a_task_without_items_shows_no_empty_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = open_screen(monkeypatch, width=80)
    assert list(track([], "checking recordings", 0)) == []
    assert "checking" not in screen.getvalue()


def test_a_bar_within_a_task_shares_the_display_and_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = open_screen(monkeypatch, width=80)
    with ProgressBar("training", 3) as steps:
        with ProgressBar("evaluating", 5) as evaluation:
            evaluation.advance()
        steps.advance(3)
    last = screen.list_lines()[-1]
    assert "training" in last
    assert "3/3" in last


def test_lines_that_are_printed_during_a_task_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = open_screen(monkeypatch, width=60)
    with ProgressBar("training", 3) as bar:
        bar.advance()
        echo("step 1/3: loss 5.102")
        echo("warning: the disk is nearly full", to_stderr=True)
    lines = screen.list_lines()
    assert "step 1/3: loss 5.102" in lines
    assert "warning: the disk is nearly full" in lines


def test_a_file_receives_what_is_printed_while_a_terminal_shows_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    file = sys.stdout
    screen = open_screen(monkeypatch, width=60)
    monkeypatch.setattr("sys.stdout", file)
    with ProgressBar("training", 3) as bar:
        bar.advance()
        echo("step 1/3: loss 5.102")
    assert capsys.readouterr().out == "step 1/3: loss 5.102\n"
    assert "loss" not in screen.read_text()


def test_the_bars_of_a_task_that_failed_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = open_screen(monkeypatch, width=60)
    bar = ProgressBar("encoding", 3)
    close_bars()
    # The cursor is shown again.
    assert screen.getvalue().rstrip("\n").endswith("\x1b[?25h")
    bar.advance()
    bar.close()
    with ProgressBar("encoding", 3) as again:
        again.advance(3)
    assert "3/3" in screen.list_lines()[-1]
