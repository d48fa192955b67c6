"""Faults of the machine: one sentence with the place and the remedy, and an exit code. Signals end a command."""

import ast
import errno
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from higgs_trainer.cli import main
from higgs_trainer.cli.faults import describe
from higgs_trainer.cli.signals import EndedBySignal, raise_on_signals
from higgs_trainer.errors import CheckpointError, SaveError, UserError

RECIPE = "{model: {name_or_path: a/b}, data: {train: p}, training: {output_dir: o}}"


def caused_by(error: BaseException, outer: BaseException) -> BaseException:
    outer.__cause__ = error
    return outer


def failed(number: int, path: str | bytes | None = "/data/clips") -> OSError:
    return OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))


FAULTS: dict[str, tuple[BaseException, int, str]] = {
    "a full disk": (failed(errno.ENOSPC), 1, "/data/clips: the disk is full .* Make room"),
    "a full disk, with no name": (failed(errno.ENOSPC, None), 1, "the disk is full .* Make room"),
    "a limit of the size of files": (failed(errno.EFBIG), 1, "ulimit -f"),
    "too many open files": (failed(errno.EMFILE), 1, "ulimit -n"),
    "a read-only place": (failed(errno.EROFS), 1, "read-only"),
    "no permission": (failed(errno.EACCES), 1, "/data/clips: permission is denied"),
    "a file that disappeared": (failed(errno.ENOENT), 1, "/data/clips: .* has been removed"),
    "a broken disk": (failed(errno.EIO), 1, "/data/clips: the disk cannot be read"),
    "a long name": (failed(errno.ENAMETOOLONG), 2, "the name is too long"),
    "a name that is not UTF-8": (failed(errno.EACCES, b"/data/\xff"), 1, r"/data/\\xff: permission"),
    "no memory": (MemoryError(), 1, "the memory is exhausted .*--batch-size"),
    "no memory, in torch": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        1,
        "the memory is exhausted",
    ),
    "no memory, on a GPU": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        1,
        "the memory of the GPU is exhausted .* halve data.tokens_per_pack",
    ),
    "no memory, while a library is imported": (
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        1,
        "ulimit -v",
    ),
    "no threads": (RuntimeError("can't start new thread"), 1, "ulimit -u"),
    "too many open files, in SQLite": (
        sqlite3.OperationalError("unable to open database file"),
        1,
        "a database of the work folder cannot be opened .*ulimit -n",
    ),
    "a full disk, in SQLite": (sqlite3.OperationalError("database or disk is full"), 1, "the disk is full"),
    "a damaged database": (
        sqlite3.DatabaseError("database disk image is malformed"),
        1,
        "work folder is damaged .* Remove that folder",
    ),
    "a full disk, in safetensors": (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        1,
        "the disk is full",
    ),
    "a fault that a library wraps": (
        caused_by(failed(errno.ENOSPC), ValueError("no batch")),
        1,
        "/data/clips",
    ),
    "a mistake that a library wraps": (caused_by(UserError("give one"), ValueError("x")), 2, "^give one$"),
    "a fault that our code took for a mistake": (
        caused_by(
            RuntimeError("can't start new thread"), CheckpointError("m cannot be loaded; give another")
        ),
        1,
        "^this process may not start another thread",
    ),
    "a mistake that a missing file shows": (
        caused_by(failed(errno.ENOENT), UserError("m is not there; give another")),
        2,
        "^m is not there; give another$",
    ),
    "a name that cannot be written": (
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
        2,
        "is not UTF-8 .* Rename",
    ),
    "a full disk, in tokenizers": (Exception("No space left on device (os error 28)"), 1, "the disk is full"),
    "our own message": (
        SaveError("o could not be written; make room"),
        1,
        "^o could not be written; make room$",
    ),
    "Ctrl-C": (KeyboardInterrupt(), 130, r"^interrupted\.$"),
    "Ctrl-C that a library wraps": (
        caused_by(KeyboardInterrupt(), ImportError("numpy")),
        130,
        r"^interrupted\.$",
    ),
    "SIGTERM": (EndedBySignal(signal.SIGTERM), 143, r"^ended by SIGTERM\.$"),
}


@pytest.mark.parametrize(("error", "code", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_sentence_with_place_and_remedy(error: BaseException, code: int, message: str) -> None:
    ending = describe(error)
    assert re.search(message, ending.message), ending.message
    assert (ending.exit_code, "This is a bug" in ending.message, "\n" in ending.message) == (
        code,
        False,
        False,
    )


@pytest.mark.parametrize(
    "error", [KeyError("no space left on device"), AttributeError("x"), RuntimeError("shape mismatch")]
)
def test_everything_else_is_a_bug(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ending = describe(error)
    assert (ending.exit_code, "This is a bug" in ending.message) == (1, True)
    (file,) = tmp_path.iterdir()
    assert str(file) in ending.message
    assert type(error).__name__ in file.read_text()


def test_a_bug_is_reported_without_a_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert "HIGGS_TRAINER_TRACEBACK=1 shows it" in describe(KeyError("x")).message


def test_a_line_break_in_a_name_forges_no_message() -> None:
    forged = describe(UserError("no folder a\nerror: the disk is full")).message
    listed = describe(UserError("2 problems\n  one\n  two")).message
    assert forged == "no folder a\\nerror: the disk is full"
    assert listed == "2 problems\n  one\n  two"


def test_a_signal_raises_and_an_ignored_one_does_not() -> None:
    before = signal.getsignal(signal.SIGTERM)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raise_on_signals():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(EndedBySignal):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert signal.getsignal(signal.SIGTERM) is before


class Closing:
    """An object that is closed when a signal arrives."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_in_a_destructor_is_raised_after_it() -> None:
    with raise_on_signals():
        Closing()
        with pytest.raises(EndedBySignal):
            threading.Event().wait(10)


def test_control_characters_never_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    evil = "\x1b]8;;http://x\x07\x1b[2J\x9b31m\u202e\u2066\udcff[red]\r"
    (tmp_path / "r.yaml").write_text(RECIPE)

    def train(settings: Any, **_: Any) -> SimpleNamespace:
        import logging
        import warnings

        logging.getLogger("somewhere").error("logged %s", evil)
        # pytest sends warnings to another process, for which they must be UTF-8.
        warnings.warn(f"warned {evil}".replace("\udcff", ""), stacklevel=1)
        spoken = {"sentence": evil, "language": evil}
        return SimpleNamespace(guard=f"printed {evil}", output_dir=evil, num_steps=1, is_main=True, **spoken)

    def check(settings: Any) -> SimpleNamespace:
        result = SimpleNamespace(name=evil, passed=False, found=evil, remedy=evil)
        return SimpleNamespace(
            guard=evil, results=(result,), trainable=evil, loss=6.5, passed=False, is_main=True
        )

    monkeypatch.setitem(sys.modules, "higgs_trainer.run.train", SimpleNamespace(train=train))
    monkeypatch.setitem(sys.modules, "higgs_trainer.run.check", SimpleNamespace(check=check))
    outputs = ""
    for arguments in (
        ["train", tmp_path / "r.yaml"],
        ["check", tmp_path / "r.yaml"],
        ["train", evil],
        ["train", tmp_path / "r.yaml", f"--{evil}", "1"],
        [evil],
        ["report", "--output", evil, evil],
        ["generate", f"--{evil}"],
    ):
        with pytest.raises(SystemExit):
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        outputs += captured.out + captured.err
    assert outputs.count("\\x1b]8") >= 7
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", outputs) == []
    assert "[red]" in outputs


PROGRAM = [sys.executable, "-m", "higgs_trainer"]


def test_a_closed_pipe_and_a_full_disk_at_the_last_byte_are_no_success() -> None:
    """`higgs-trainer recipe-schema | head -c 1`, and the same into a full disk and into nothing."""
    pipe = subprocess.Popen([*PROGRAM, "recipe-schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert pipe.stdout is not None
    pipe.stdout.close()
    assert pipe.stderr is not None
    assert (pipe.wait(), b"reads the output has ended" in pipe.stderr.read()) == (1, True)
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PROGRAM, "recipes"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, "the disk is full" in done.stderr) == (1, True)
    closed = subprocess.run(
        ["bash", "-c", '"$@" >&- 2>&-', "bash", *PROGRAM, "recipes"], capture_output=True, text=True
    )
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, "", "")


def test_nothing_else_prints() -> None:
    """All printing goes through one module, which escapes control characters."""
    source = Path(__file__).resolve().parents[3] / "src" / "higgs_trainer"
    printing = {"print", "typer.echo", "Console", "sys.stdout.write", "sys.stderr.write"}
    found = [
        f"{path.name}:{node.lineno}"
        for path in sorted(source.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in printing and path.name != "terminal.py"
    ]
    assert found == []
