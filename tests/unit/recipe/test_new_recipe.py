"""`higgs-trainer init` copies a recipe with its paths filled in, and prints commands that can be run."""

import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from higgs_trainer.cli import app, main
from higgs_trainer.recipe.new_recipe import set_field, start_voice
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.recipe.shipped import find_recipes
from higgs_trainer.terminal import COMMAND_INDENT

SHIPPED = [name for name in find_recipes() if "/" not in name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a manifest."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"audio": "a.wav", "text": "one"}')
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_copied_with_paths_in_the_new_folder(folder: Path, name: str) -> None:
    voice = start_voice(Path("my voice"), shipped=name)
    read, original = read_recipe(voice.recipe), find_recipes()[name].read_text()
    assert [one.path for one in read.data.train] == [folder / "my voice/prepared/train"]
    assert [one.path for one in read.data.eval] == [folder / "my voice/prepared/held_out"]
    assert read.training.output_dir == folder / "my voice/runs/my voice"
    copied, lines = voice.recipe.read_text().splitlines(), original.splitlines()
    assert len(copied) == len(lines)
    changed = {line.split(":")[0].strip() for line in copied if line not in lines}
    assert changed <= {"train", "eval", "output_dir"}


def test_the_printed_commands_are_accepted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["my_voice", "--data", "data.jsonl", "--language", "nl"]
    assert run("init", *arguments) == 0
    printed = capsys.readouterr().out
    commands = [
        shlex.split(line)
        for line in printed.splitlines()
        if line.startswith(f"{COMMAND_INDENT}higgs-trainer ")
    ]
    assert [command[1] for command in commands] == ["prepare", "check", "train", "generate"]
    for _, verb, *rest in commands:
        get_command(app).commands[verb].make_context(verb, list(rest))
    assert commands[0][2:] == [
        *("data.jsonl", "-o", "my_voice/prepared", "--held-out", "5%", "--recipe", "my_voice/recipe.yaml"),
    ]
    assert "First write" not in printed


def test_without_data_it_says_what_to_write(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", "my_voice") == 0
    printed = capsys.readouterr().out
    assert (
        'First write my_voice/data.jsonl, one clip a line, with paths relative to it:\n    {"audio"'
        in printed
    )
    assert "higgs-trainer prepare my_voice/data.jsonl -o my_voice/prepared" in printed
    assert "language" not in printed
    assert run("init", "stem", "--language", "nl") == 0
    assert '"text": "Hello there.", "language": "nl"}' in capsys.readouterr().out


def test_the_model_and_the_codec_are_filled_in_relative_to_the_recipe(folder: Path) -> None:
    for name in ("base", "codecs/mine"):
        (folder / name).mkdir(parents=True)
    read = read_recipe(start_voice(Path("voices/a"), shipped="single_speaker", model="base").recipe)
    assert (read.model.name_or_path, read.model.codec) == (str(folder / "base"), None)
    text = start_voice(
        Path("b"), shipped="single_speaker", model="o/n", codec="codecs/mine"
    ).recipe.read_text()
    assert "  name_or_path: o/n\n" in text
    assert "  codec: ../codecs/mine\n" in text
    read = read_recipe(start_voice(Path("c"), shipped="single_speaker", codec="embedded").recipe)
    assert (read.model.name_or_path, read.model.codec) == ("bosonai/higgs-tts-2-3b-base", "embedded")


@pytest.mark.parametrize(
    ("language", "texts"), [("nl", 0), ("Dutch", 0), ("en-GB", 1), ("English", 1), (None, 1)]
)
def test_english_sentences_are_spoken_only_in_english(folder: Path, language: str | None, texts: int) -> None:
    samples = read_recipe(start_voice(Path("a"), shipped="single_speaker", language=language).recipe).samples
    assert len(samples.texts) == texts
    assert samples.held_out == (2 if texts else 3)
    assert samples.language == (None if texts else "nl")


@pytest.mark.parametrize("name", ["several_speakers", "zero_shot_cloning"])
def test_references_are_drawn_for_cloning(folder: Path, name: str) -> None:
    prepare, *others = start_voice(Path("a"), shipped=name).commands
    assert prepare.endswith(" --pair-references")
    assert [command.split()[1] for command in others] == ["check", "train"]


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "recipe.yaml").write_text("mine")
    (folder / "b").write_text("mine")
    assert run("init", "a") == 2
    assert (
        "a/recipe.yaml exists already, and is not overwritten. Give another folder" in capsys.readouterr().err
    )
    assert run("init", "b") == 2
    assert "b is not a folder" in capsys.readouterr().err
    assert (folder / "a" / "recipe.yaml").read_text() == (folder / "b").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "single_speker"], 'Did you mean "single_speaker"?'),
        (["--recipe", "launch/ddp"], "launch/ddp is not a shipped recipe"),
        (["--data", "none.jsonl"], "--data: none.jsonl does not exist"),
        (["--model", "none"], "there is no folder none"),
        (["--codec", "none.pt"], "none.pt"),
    ],
)
def test_a_mistake_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run("init", "a", *arguments) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["data.jsonl"]


def test_a_field_is_set_added_or_removed_with_its_lines() -> None:
    lines = [
        "model:",
        "  # A comment.",
        "  a: 1",
        "  b:",
        "    - x",
        "  # Another.",
        "  c: 2",
        "data:",
        "  a: 3",
    ]
    set_field(lines, "data", "a", "x/y")
    set_field(lines, "model", "b", None)
    set_field(lines, "data", "d", "a: b")
    assert lines == [
        *("model:", "  # A comment.", "  a: 1", "  # Another.", "  c: 2", "data:"),
        *('  d: "a: b"', "  a: x/y"),
    ]
