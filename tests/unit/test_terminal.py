"""What is printed fits the terminal, and files receive each line as it is."""

import shlex
import warnings
from pathlib import Path

import pytest

from higgs_trainer.terminal import echo, echo_next, format_command, protect_terminal, quiet_libraries
from screen import open_screen

SENTENCE = (
    "The figures of all of the models are in the file figures.json, in the order in which they were given."
)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_prose_is_wrapped_between_words(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    screen = open_screen(monkeypatch, width=width)
    echo(f"note: {SENTENCE}\n  an item of a list: {SENTENCE}")
    lines = screen.list_lines()
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()) == f"note: {SENTENCE} an item of a list: {SENTENCE}"
    first, second = lines.index(next(line for line in lines if "an item" in line)), len(lines)
    assert all(line.startswith("  ") for line in lines[1:first])
    assert all(line.startswith("    ") for line in lines[first + 1 : second])


def test_a_command_and_a_long_word_are_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = open_screen(monkeypatch, width=40)
    words = ["higgs-trainer", "generate", "--text", "What a voice, it's mine!", "-o", "a folder/clips"]
    echo_next("Listen to it", words)
    path = "/".join(["folder"] * 12)
    echo(f"written to {path} at last")
    assert screen.list_lines()[:2] == ["Listen to it:", "    " + shlex.join(words)]
    assert f"  {path}" in screen.list_lines()


def test_a_path_in_the_working_directory_is_shortened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert format_command("ls", tmp_path / "a b", tmp_path.parent, Path("c")) == (
        f"    ls 'a b' {shlex.quote(str(tmp_path.parent))} c"
    )


def test_a_pipe_receives_each_line_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    echo(f"warning: {SENTENCE}\n{SENTENCE}")
    assert capsys.readouterr().out == f"warning: {SENTENCE}\n{SENTENCE}\n"


@pytest.mark.parametrize(("label", "colour"), [("error:", "31"), ("warning:", "33"), ("note:", None)])
@pytest.mark.parametrize("has_colours", [True, False])
def test_labels_have_colours_by_meaning_unless_no_color_is_set(
    monkeypatch: pytest.MonkeyPatch, label: str, colour: str | None, has_colours: bool
) -> None:
    screen = open_screen(monkeypatch, width=80, colours=has_colours)
    echo(f"{label} the disk is full (28)")
    written = screen.getvalue()
    assert screen.read_text() == f"{label} the disk is full (28)\n"
    if colour is None or not has_colours:
        assert written.replace("\x1b[1m", "").replace("\x1b[0m", "") == f"{label} the disk is full (28)\n"
    else:
        assert written == f"\x1b[1;{colour}m{label}\x1b[0m the disk is full (28)\n"


def test_json_is_never_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = open_screen(monkeypatch, width=40)
    echo(SENTENCE, is_prose=False)
    assert screen.getvalue() == SENTENCE + "\n"


def warn(category: type[Warning], message: str, module: str) -> None:
    warnings.warn_explicit(message, category, f"{module.replace('.', '/')}.py", 1, module=module)


def test_only_warnings_between_libraries_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.warnoptions", [])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        protect_terminal()
        warn(FutureWarning, "old name", "transformers.modeling_utils")
        warn(UserWarning, "Could not find a config file in ../base", "peft.utils.save_and_load")
        warn(UserWarning, "the numbers are wrong", "transformers.modeling_utils")
        warn(FutureWarning, "old name of ours", "my_script")
    assert [str(one.message) for one in shown] == ["the numbers are wrong", "old name of ours"]


@pytest.mark.parametrize("wanted", [True, False])
def test_bars_of_files_are_off_and_bars_of_downloads_are_shown_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    enable_progress_bars()
    if wanted:
        open_screen(monkeypatch, width=80)
    try:
        quiet_libraries()
        assert not logging.is_progress_bar_enabled()
        assert are_progress_bars_disabled() is not wanted
    finally:
        logging.enable_progress_bar()
