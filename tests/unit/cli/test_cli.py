"""The command line: fast help, one function call for each command, one message and an exit code for each error."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from higgs_trainer.cli import app, application, main
from higgs_trainer.cli.interruption import WHAT_IS_KEPT
from higgs_trainer.cli.strict_command import StrictCommand
from higgs_trainer.errors import CheckpointError, LossError
from higgs_trainer.outputs import IN_PROGRESS
from higgs_trainer.training.check_result import CheckResult
from higgs_trainer.version import __version__
from label_guard.leak import LabelLeakError

RECIPE = "{model: {name_or_path: a/b}, data: {train: p}, training: {output_dir: o}}"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the handlers of signals: at its end, the command of a process ignores signals."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("arguments", "of_the_process", "left"),
    [
        (None, ["--version"], 1),
        (None, ["no-such-verb"], 0),  # after a failure, other ranks may still wait for this one
        (["--version"], [], 0),  # a process group belongs to the Python code that calls main
    ],
)
def test_the_process_group_is_destroyed_when_the_command_succeeds(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str] | None, of_the_process: list[str], left: int
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(application, "leave_processes", lambda: calls.append(None))
    monkeypatch.setattr(sys, "argv", ["higgs-trainer", *of_the_process])
    with pytest.raises(SystemExit):
        main(arguments)
    assert len(calls) == left


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path / "r.yaml"


def stub(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Any) -> None:
    monkeypatch.setitem(sys.modules, f"higgs_trainer.{module}", SimpleNamespace(**functions))


def raising(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"higgs-trainer {__version__}\n"


@pytest.mark.parametrize("verb", ["prepare", "check", "train", "generate", "evaluate", "demo"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(capsys: pytest.CaptureFixture[str], verb: str, option: str) -> None:
    assert run(verb, option) == 0
    assert "Usage:" in capsys.readouterr().out


def test_every_command_is_strict() -> None:
    assert all(command.cls is StrictCommand for command in app.registered_commands)


CONTRADICTIONS = {
    "a seed without a choice": (["--seed", "3"], "--seed has an effect only with --pair-references"),
    "no length": (["--min-seconds", "9", "--max-seconds", "3"], "so every recording would be rejected"),
    "a peak of nan": (["--min-peak-dbfs", "nan"], "--min-peak-dbfs is nan. Give a finite number."),
    "a peak of -inf": (["--min-peak-dbfs", "-inf"], "--min-peak-dbfs is -inf. Give a finite number."),
    "a huge rate": (["--min-sample-rate-hz", str(10**30)], "has more than 63 bits"),
    "a loudness of silence": (["--loudness-lufs", "-300"], "--loudness-lufs"),
    "a switch twice": (["--overwrite", "--overwrite"], "--overwrite is given 2 times"),
    "a codec twice": (["--codec", "x"], "--codec is given 2 times"),
}


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_prepare_refuses_options_without_effect_and_options_given_twice(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prepare", "m.jsonl", "-o", tmp_path / "o", "--codec", "embedded", *options) == 2
    assert message in capsys.readouterr().err


def test_two_spellings_of_a_switch_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "a", "--text-file", "t.txt", "--quality", "--no-quality") == 2
    assert "--quality/--no-quality is given 2 times. Keep one of them." in capsys.readouterr().err


def test_every_command_is_in_a_group_and_every_option_has_a_help_sentence() -> None:
    group = get_command(application.app)
    assert isinstance(group, TyperGroup)
    ungrouped = [name for name, command in group.commands.items() if command.rich_help_panel is None]
    options = {
        f"{name} {option.name}": getattr(option, "help", None) or ""
        for name, command in group.commands.items()
        for option in command.params
    }
    incomplete = [
        name for name, text in options.items() if not re.match(r"[A-Z'].*\.$", text, flags=re.DOTALL)
    ]
    assert (ungrouped, incomplete) == ([], [])


def test_importing_the_command_line_imports_no_slow_library() -> None:
    code = (
        "import sys, higgs_trainer.cli\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'peft', 'soundfile', 'pydantic', 'ruamel'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


ENDINGS = {
    "an error of the user": (CheckpointError("no [such] folder; make one"), 2),
    "a leak": (LabelLeakError("labels <- someone"), 1),
    "a failed step": (LossError("step 3 has no supervised cell"), 1),
}


@pytest.mark.parametrize(("error", "code"), ENDINGS.values(), ids=ENDINGS)
def test_an_error_is_printed_as_one_message(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recipe: Path,
    error: Exception,
    code: int,
) -> None:
    stub(monkeypatch, "run.train", train=raising(error))
    assert run("train", recipe) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {error}\n"


def test_a_bug_is_one_sentence_and_its_traceback_is_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    stub(monkeypatch, "run.train", train=raising(KeyError("bug")))
    assert run("train", recipe) == 1
    message = capsys.readouterr().err
    assert message.startswith(
        "error: unexpected KeyError: 'bug'. This is a bug in Higgs Trainer: please report"
    )
    assert message.count("\n") == 1
    file = Path(message.split("the file ")[1].strip())
    assert "Traceback" in file.read_text()
    file.unlink()


def test_an_environment_variable_shows_the_traceback_of_any_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    monkeypatch.setenv("HIGGS_TRAINER_TRACEBACK", "1")
    stub(monkeypatch, "run.train", train=raising(CheckpointError("no such folder")))
    assert run("train", recipe) == 2
    assert "Traceback" in capsys.readouterr().err


def test_train_applies_the_overrides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    seen = []

    def train(settings: Any, *, overwrite: bool, allow_changed: Sequence[str]) -> SimpleNamespace:
        assert (overwrite, allow_changed) == (True, ["seed"])
        seen.append(settings.training)
        spoken = {"sentence": "Good day.", "language": "en"}
        return SimpleNamespace(guard="the verdict", output_dir="o", num_steps=1, is_main=True, **spoken)

    stub(monkeypatch, "run.train", train=train)
    options = ("--overwrite", "--allow-changed", "seed")
    assert (
        run(
            "train",
            recipe,
            *options,
            "--learning_rate",
            "2e-6",
            "--max_steps",
            "-1",
            "--bf16",
            "--training.seed=3",
        )
        == 0
    )
    (training,) = seen
    assert (training.learning_rate, training.max_steps, training.bf16, training.seed) == (2e-6, -1, True, 3)
    assert "the verdict" in capsys.readouterr().out


def test_a_misspelt_override_is_reported_before_slow_imports(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    monkeypatch.setitem(sys.modules, "higgs_trainer.run.train", None)  # importing it raises
    for verb in ("train", "check"):
        assert run(verb, recipe, "--learning_rat", "1") == 2
        assert 'Did you mean "learning_rate"?' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("passed", "severity", "shown"),
    [
        (True, "none", "passed"),
        (True, "warning", "warning"),
        (True, "serious", "WARNING"),
        (False, "none", "failed"),
    ],
)
def test_check_prints_its_results(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recipe: Path,
    passed: bool,
    severity: Any,
    shown: str,
) -> None:
    result = CheckResult("end of stream", passed, "7 of 7 [cells]", "look there", severity)
    report = SimpleNamespace(
        guard="Layer [1]",
        results=(result,),
        trainable="q_proj 1,234 5,678",
        loss=6.5,
        peak="peak memory: 1.5 GB",
        passed=passed,
        is_main=True,
    )
    stub(monkeypatch, "run.check", check=lambda settings: report)
    assert run("check", recipe) == (0 if passed else 1)
    out = capsys.readouterr().out
    for expected in (
        "Layer [1]",
        "end of stream",
        "7 of 7 [cells]",
        "1,234",
        "5,678",
        "6.5",
        "1.5 GB",
        shown,
    ):
        assert expected in out
    assert ("look there" in out) == (shown != "passed")
    report.is_main = False
    assert run("check", recipe) == (0 if passed else 1)
    assert not capsys.readouterr().out


@pytest.fixture
def codecs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The codecs that `prepare` was called with."""
    used: list[str] = []

    def prepare(manifest: Path, output: Path, *, codec: str, **options: Any) -> SimpleNamespace:
        used.append(codec)
        return SimpleNamespace(process_index=1)

    stub(monkeypatch, "corpus.prepare", prepare=prepare)
    return used


@pytest.mark.parametrize(
    "choice",
    [
        [],
        ["--codec", "embedded", "--model", "m"],
        ["--recipe", "r.yaml", "--model", "m"],
        ["--codec", "embedded", "--recipe", "r.yaml", "--model", "m"],
    ],
)
def test_prepare_needs_exactly_one_choice_of_codec(
    codecs: list[str], capsys: pytest.CaptureFixture[str], choice: list[str]
) -> None:
    assert run("prepare", "m.jsonl", "-o", "o", *choice) == 2
    message = capsys.readouterr().err
    assert all(option in message for option in ("--codec", "--recipe", "--model"))
    assert codecs == []


def test_prepare_takes_the_codec_of_a_recipe_or_a_model(codecs: list[str], tmp_path: Path) -> None:
    for folder in ("base/codec", "adapter"):
        (tmp_path / folder).mkdir(parents=True)
    base = str(tmp_path / "base")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (tmp_path / "adapter" / "adapter_model.safetensors").touch()
    recipe = "{model: {name_or_path: %s%s}, data: {train: p}, training: {output_dir: o}}"
    (tmp_path / "of_model.yaml").write_text(recipe % (base, ""))
    (tmp_path / "named.yaml").write_text(recipe % (base, ", codec: owner/codec"))
    own = str(tmp_path / "base" / "codec")
    for choice, expected in [
        (["--codec", "owner/codec"], "owner/codec"),
        (["--model", base], own),
        (["--model", tmp_path / "adapter"], own),
        (["--recipe", tmp_path / "of_model.yaml"], own),
        (["--recipe", tmp_path / "named.yaml"], "owner/codec"),
    ]:
        assert run("prepare", "m.jsonl", "-o", "o", *choice) == 0
        assert codecs.pop() == expected


def test_prepare_says_that_a_model_has_no_codec(
    codecs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prepare", "m.jsonl", "-o", "o", "--model", tmp_path) == 2
    assert f"{tmp_path} has no codec folder; name its codec with --codec" in capsys.readouterr().err
    assert codecs == []


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    calls: list[SimpleNamespace] = []

    def generate_into_folder(model: Any, script: Any, output: Path, *, batch_size: int) -> SimpleNamespace:
        calls.append(SimpleNamespace(**vars(model), script=script, output=output, batch_size=batch_size))
        return SimpleNamespace(num_clips=2, audio_seconds=3.0, seconds=1.5, at_limit=("0001.wav",))

    stub(
        monkeypatch,
        "speech.speech_model",
        load_speech_model=lambda model, **options: SimpleNamespace(
            model=model, build_request=lambda line: line, **options
        ),
        generate_into_folder=generate_into_folder,
    )
    return calls


def test_generate_passes_each_line_of_a_file(
    generated: list[SimpleNamespace], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfone\r\n two \r\n")
    output = tmp_path / "o"
    assert (
        run("generate", "--model", "m", "--output", output, "--text-file", tmp_path / "t.txt", "--top-k", 7)
        == 0
    )
    (call,) = generated
    assert (call.model, [line.text for line in call.script], call.output) == ("m", ["one", "two"], output)
    assert (call.sampling.top_k, call.sampling.greedy, call.sampling.temperature) == (7, False, None)
    assert (call.voice.scene, call.voice.references, call.device, call.batch_size) == (None, (), None, 8)
    printed = capsys.readouterr()
    assert "2 clips, 3.0 s of audio generated in 1.5 s" in printed.out
    assert "did not end 1 of 2 clips, cut at --max-seconds 30: 0001.wav" in printed.err
    assert f"Listen: {output / '0000.wav'}" in printed.out


def test_generate_passes_every_text(generated: list[SimpleNamespace], tmp_path: Path) -> None:
    texts = ["--text", "Goedemorgen.", "--text", " Tot ziens. "]
    assert run("generate", "--model", "m", "--output", tmp_path / "o", *texts, "--language", "Dutch") == 0
    (call,) = generated
    assert [line.text for line in call.script] == ["Goedemorgen.", "Tot ziens."]
    assert call.language == "nl"


def test_generate_passes_the_references_of_two_speakers(
    generated: list[SimpleNamespace], tmp_path: Path
) -> None:
    voices = ["--ref-audio", "a.wav", "--ref-text", "aa", "--ref-audio", "b.wav", "--ref-text", "bb"]
    more = [
        "--scene",
        "A room.",
        "--reference-in-system",
        "--seed",
        "5",
        "--language",
        "de",
        "--device",
        "cpu",
    ]
    assert (
        run("generate", "--model", "m", "-o", tmp_path / "o", "--text", "[SPEAKER0] one", *voices, *more) == 0
    )
    (call,) = generated
    assert [(str(clip.audio), clip.text) for clip in call.voice.references] == [
        ("a.wav", "aa"),
        ("b.wav", "bb"),
    ]
    assert (call.voice.scene, call.voice.references_in_system) == ("A room.", True)
    assert (call.sampling.seed, call.language, call.device) == (5, "de", "cpu")


WRONG_TEXTS = {
    "no text": ([], "either --text TEXT or --text-file FILE"),
    "two sources of text": (
        ["--text", "a", "--text-file", "t.txt"],
        "either --text TEXT or --text-file FILE",
    ),
    "empty": (["--text", " "], "--text is empty"),
    "no file": (["--text-file", "none.txt"], "none.txt cannot be read"),
    "an empty line": (["--text-file", "t.txt"], "t.txt:2: the line is empty"),
    "a reference without a transcript": (
        ["--text", "a", "--ref-audio", "a.wav"],
        "give as many of one as of the other",
    ),
    "more references than transcripts": (
        ["--text", "a", "--ref-audio", "a.wav", "--ref-audio", "b.wav", "--ref-text", "a"],
        "(here 2 and 1)",
    ),
    "references in the system message without a scene": (
        ["--text", "a", "--ref-audio", "a.wav", "--reference-in-system"],
        "give --ref-audio and --scene",
    ),
    "an output folder that is not empty": (["--text", "a", "-o", "."], "not empty"),
    "a special token": (["--text", "a <|eot_id|>"], '--text contains the special token "<|eot_id|>"'),
    "no word": (["--text", "..."], "--text contains no word"),
    "a control character": (["--text", "a\x07"], "--text contains U+0007"),
    "half a surrogate pair": (["--text", "a\udcff"], "--text contains half of a surrogate pair"),
    "1 MB": (["--text", "a" * 1_000_000], "--text has 1000000 characters"),
    "a special token in the scene": (["--text", "a", "--scene", "<|x|>"], "--scene contains the special"),
    "an empty transcript": (
        ["--text", "a", "--ref-audio", "a.wav", "--ref-text", ""],
        "--ref-text is empty",
    ),
    "one reference with two transcripts": (
        ["--text", "a", *["--ref-audio", "a.wav"] * 2, "--ref-text", "a", "--ref-text", "b"],
        "--ref-audio a.wav is given twice, with other words",
    ),
    "a file that is a pipe": (["--text-file", "pipe"], "pipe is a pipe, not a file"),
    "a file that is a device": (["--text-file", "/dev/zero"], "/dev/zero is a device, not a file"),
    "a file that is a folder": (["--text-file", "/"], "/ is a folder, not a file"),
    "a text without a word": (["--text", "a", "--text", "..."], "--text contains no word"),
    "an output twice": (["--text", "a", "--output", "p"], "--output/-o is given 2 times"),
    "an empty output": (["--text", "a", "--ref-audio", ""], "--ref-audio is empty. Give a path."),
    "greedy sampling": (["--text", "a", "--greedy", "--top-k", "3"], "so --top-k has no effect"),
    "parts that are cut": (["--text", "a", "--part-seconds", "31"], "so each part would be cut"),
    "a length of nan": (["--text", "a", "--max-seconds", "nan"], "--max-seconds"),
    "an endless length": (["--text", "a", "--max-seconds", "inf"], "--max-seconds"),
    "a seed of 64 bits": (["--text", "a", "--seed", str(2**64)], "--seed"),
    "a seed of 5,000 digits": (["--text", "a", "--seed", "9" * 5_000], "--seed"),
    "a batch of millions": (["--text", "a", "--batch-size", "9999999"], "--batch-size"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_TEXTS.values(), ids=WRONG_TEXTS)
def test_generate_rejects_texts_and_references_that_it_cannot_use(
    generated: list[SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("one\n\nthree\n")
    os.mkfifo(tmp_path / "pipe")
    output = [] if "-o" in arguments else ["--output", "o"]
    assert run("generate", "--model", "m", *output, *arguments) == 2
    assert message in capsys.readouterr().err
    assert generated == []


IN_ENGLISH = {"list_languages": lambda: ["en", "en"], "count_languages": lambda: {"en": 2}}


def test_evaluate_compares_two_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []

    def evaluate_models(*given: Any, **options: Any) -> dict[str, Any]:
        calls.append((*given, options))
        return {"models": ["figures"]}

    stub(
        monkeypatch,
        "evaluation.comparison",
        EvaluationSettings=lambda *given, **options: SimpleNamespace(given=given, **options, **IN_ENGLISH),
        check_output=lambda *given, **options: None,
        evaluate_models=evaluate_models,
    )
    stub(monkeypatch, "evaluation.tables", build_tables=lambda report: ["a table"])
    stub(monkeypatch, "evaluation.judging", load_judges=lambda *given, **options: (given, options))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "t.txt").write_text("one\ntwo\n")
    assert (
        run(
            "evaluate",
            "m",
            "n",
            "--text-file",
            "t.txt",
            "--json",
            "--no-quality",
            "--greedy",
            "--spell-digits",
            "--seed",
            4,
        )
        == 0
    )
    ((models, evaluation, judges, output, options),) = calls
    assert (models, output, options) == (["m", "n"], Path("evaluation-2"), {"other_voice": (), "seed": 4})
    assert [line.text for line in evaluation.given[0]] == ["one", "two"]
    assert (evaluation.given[1], evaluation.given[3].greedy) == (None, True)
    assert judges[0] == (None,)
    assert judges[1] == {
        "language": {"en": 2},
        "recogniser_languages": (),
        "with_words": True,
        "with_quality": False,
        "digits_spelled": True,
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a table"
    assert lines[-1] == '{"models": ["figures"]}'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m"], "either --text-file or --data"),
        (["m", "--text-file", "t.txt", "--data", "d"], "either --text-file or --data"),
        (["m", "--data", "d", "--scene", "A quiet room."], "Leave out --scene"),
        (["m", "--data", "d", "--ref-audio", "a.wav", "--ref-text", "One."], "Leave out --scene"),
        (["a", "b", "c", "--data", "d"], "3 models were given"),
        (["m", "--data", "d", "--no-words", "--asr", "a/b"], "so --asr has no effect"),
    ],
)
def test_what_cannot_be_evaluated(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run("evaluate", *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_figures_of_one_run_go_into_its_folder_and_are_never_overwritten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    stub(
        monkeypatch,
        "evaluation.comparison",
        EvaluationSettings=lambda *given, **options: SimpleNamespace(**IN_ENGLISH),
        check_output=lambda *given, **options: None,
        evaluate_models=lambda models, settings, judges, output, **options: outputs.append(output),
        find_role=lambda model, output: (
            "before" if (model, output) == ("base", Path("run/evaluation")) else None
        ),
    )
    stub(monkeypatch, "evaluation.tables", build_tables=lambda report: [])
    stub(monkeypatch, "evaluation.judging", load_judges=lambda *given, **options: None)
    monkeypatch.chdir(tmp_path)
    for name in ("run", "base"):
        Path(name).mkdir()
    Path("run/metrics.json").touch()
    Path("t.txt").write_text("one\n")
    for models in (
        ["run"],
        ["run", "recordings"],
        ["base"],
        ["base", "run"],
        ["base", "run", "recordings"],
        ["other", "run"],
        ["run", "-o", "there"],
    ):
        assert run("evaluate", *models, "--text-file", "t.txt") == 0
    here, there, own = Path("evaluation"), Path("there"), Path("run/evaluation")
    assert outputs == [own, own, here, own, own, here, there]
    Path("run/evaluation").mkdir()
    assert run("evaluate", "run", "--text-file", "t.txt") == 2
    assert "run/evaluation exists. Remove or rename it" in capsys.readouterr().err
    assert len(outputs) == 7
    # What an evaluation that failed has left does not block the next one.
    Path("run/evaluation", IN_PROGRESS).touch()
    assert run("evaluate", "run", "--text-file", "t.txt") == 0


def test_demo_passes_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    stub(monkeypatch, "demo", run_demo=lambda output, **options: calls.append((output, options)))
    assert run("demo", "--from-scratch") == 0
    assert calls == [(Path("runs/demo"), {"from_scratch": True})]


@pytest.mark.usefixtures("handlers")
def test_every_command_says_what_is_kept_when_it_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = {"recipes", "recipe-schema"}
    group = get_command(application.app)
    assert isinstance(group, TyperGroup)
    assert set(group.commands) - quick <= set(WHAT_IS_KEPT)
    stub(monkeypatch, "run.check", check=raising(KeyboardInterrupt()))
    assert run("check", recipe) == 130
    assert capsys.readouterr().err == f"error: interrupted. {WHAT_IS_KEPT['check']}\n"
