"""The commands that `torture.py` disturbs: their inputs, how to start them, and what an undisturbed run writes."""

import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kill_and_resume import write_inputs

from higgs_trainer.cli import main
from higgs_trainer.cli.signals import EndedBySignal, raise_on_signals
from higgs_trainer.run_folder import LOG_FILE

RECIPE = """
model: {name_or_path: model}
data: {train: prepared, eval: prepared, code_noise: 0.3, tokens_per_pack: 150}
adapter: {r: 4, lora_dropout: 0.2}
samples: {texts: [one one], max_seconds: 0.2}
training:
  output_dir: ../out/run
  max_steps: 6
  learning_rate: 1e-3
  gradient_accumulation_steps: 2
  logging_steps: 1
  eval_strategy: steps
  eval_steps: 3
  save_strategy: steps
  save_steps: 2
  use_cpu: true
  disable_tqdm: true
"""
RESUME = ("--resume_from_checkpoint", "true")
LONGEST_SECONDS = 120.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)

# What a command leaves while it works. After a success, none of it may be there.
UNFINISHED = ("_unfinished*", "_replaced-*", "_removed-*", ".*.unfinished", ".*.lock")


@dataclass(frozen=True)
class Verb:
    """A command with the place of its output, and how to start it again after a fault.

    Attributes:
        again: further arguments for the second attempt.
        compared: the files of the output that must be those of an undisturbed run, byte for byte.
        start: what must be in ``out`` before the first attempt: a folder of the inputs, and its place.
    """

    arguments: tuple[str, ...]
    output: str
    compared: tuple[str, ...]
    again: tuple[str, ...] = ()
    start: tuple[str, str] | None = None


VERBS = {
    "prepare": Verb(
        ("prepare", "in/data.jsonl", "-o", "out/prepared", "--codec", "in/model/codec"),
        "out/prepared",
        ("*.arrow", "dataset_card.json"),
    ),
    "train": Verb(
        ("train", "in/recipe.yaml"), "out/run", ("adapter_model.safetensors", "codec/*"), again=RESUME
    ),
    "resume": Verb(
        ("train", "in/recipe.yaml", *RESUME),
        "out/run",
        ("adapter_model.safetensors", "codec/*"),
        start=("partial", "out/run"),
    ),
    "generate": Verb(
        (
            "generate",
            "--model",
            "in/run",
            "--text-file",
            "in/texts.txt",
            "-o",
            "out/clips",
            "--max-seconds",
            "0.4",
        ),
        "out/clips",
        ("*.wav", "index.jsonl"),
    ),
    "merge": Verb(("merge", "in/run", "-o", "out/merged"), "out/merged", ("*.safetensors", "codec/*")),
    "report": Verb(("report", "in/run", "-o", "out/report.html"), "out/report.html", ()),
}


@dataclass
class Process:
    """A command in a process of its own. ``code`` is None while it runs.

    What it prints comes through a pipe: a file would be subject to the faults, too.
    """

    pid: int
    pipe: int
    started: float
    code: int | None = None
    printed: bytes = b""

    def poll(self) -> int | None:
        self._drain()
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = LONGEST_SECONDS) -> int | None:
        """Wait for the end. A process that hangs is killed; then the result is None."""
        ends = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > ends:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return None
            time.sleep(0.005)
        return self.code

    def read(self) -> str:
        self._drain()
        return self.printed.decode("utf-8", "backslashreplace")

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while read := os.read(self.pipe, 65536):
                self.printed += read


def start(
    arguments: tuple[str, ...],
    folder: Path,
    disturb: Callable[[], None] = lambda: None,
    *,
    lists_modules: bool = False,
) -> Process:
    """Start a command in ``folder``. The process is forked, because importing torch takes seconds.

    Args:
        disturb: called in the new process before the command.
        lists_modules: write the names of all modules that the command has imported to a file.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    # No signal may arrive before the command listens to it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _run_child(arguments, folder, writer, disturb, lists_modules)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(writer)
    return Process(pid, reader, time.monotonic())


def _run_child(
    arguments: tuple[str, ...], folder: Path, pipe: int, disturb: Callable[[], None], lists_modules: bool
) -> None:  # pragma: no cover
    code = 99
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(pipe, 1)
        os.dup2(pipe, 2)
        os.close(pipe)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.argv = ["higgs-trainer", *arguments]
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        disturb()
        with raise_on_signals(until_exit=True):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            main()
    except EndedBySignal as ended:
        # Before the command, or after it.
        code = 128 + ended.number
        os.write(2, b"error: ended before the command\n")
    except KeyboardInterrupt:
        code = 130
        os.write(2, b"error: ended before the command\n")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 98
    except BaseException as error:  # noqa: BLE001
        os.write(
            2, f"LEFT THE COMMAND: {type(error).__name__}: {error}\n".encode("utf-8", "backslashreplace")
        )
        code = 97
    finally:
        if lists_modules:
            with (folder / "modules.txt").open("a") as file:
                file.writelines(f"{name}\n" for name in sorted(sys.modules))
        os._exit(code)


@dataclass
class World:
    """The inputs of all commands, what undisturbed runs write, and how long they take."""

    folder: Path
    results: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def build(self) -> None:
        """Write the inputs, and run every command undisturbed. The parent process must not use torch: it forks."""
        calm = self.folder / "calm"
        (calm / "in").mkdir(parents=True)
        (calm / "out").mkdir()
        self._run_here(lambda: _write_inputs(calm / "in"))
        for name in ("prepare", "train"):
            self._measure(name, calm)
        shutil.copytree(calm / "out/run", calm / "in/run")
        shutil.copytree(calm / "out/run", calm / "partial")
        make_partial(calm / "partial")
        for name in ("generate", "merge", "report"):
            self._measure(name, calm)
        self._import_all(calm)
        self.results["resume"] = self.results["train"]
        self.seconds["resume"] = self.seconds["train"]

    def _import_all(self, calm: Path) -> None:
        """Import what the undisturbed commands have imported, so that no process has to do it again."""
        for name in (calm / "modules.txt").read_text().split():
            if name not in sys.modules:
                with suppress(ImportError):
                    importlib.import_module(name)

    def new_case(self, name: str, verb: Verb) -> Path:
        """Copy the inputs to the folder of a case."""
        case = self.folder / name
        shutil.copytree(self.folder / "calm/in", case / "in")
        (case / "out").mkdir()
        if verb.start is not None:
            self.restore_start(case, verb)
        for path in (case, case / "in", case / "out"):
            path.chmod(0o777)
        return case

    def restore_start(self, case: Path, verb: Verb) -> None:
        """Put back what must be in ``out`` before the first attempt."""
        assert verb.start is not None
        source, target = verb.start
        shutil.rmtree(case / target, ignore_errors=True)
        shutil.copytree(self.folder / "calm" / source, case / target)

    def _run_here(self, write: Callable[[], None]) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                write()
            except BaseException as error:  # noqa: BLE001
                print(f"the inputs could not be written: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            sys.exit("the inputs could not be written")

    def _measure(self, name: str, calm: Path) -> None:
        verb = VERBS[name]
        process = start(verb.arguments, calm, lists_modules=True)
        if process.wait() != 0:
            sys.exit(f"the undisturbed {name} ended with {process.code}:\n{process.read()}")
        self.seconds[name] = time.monotonic() - process.started
        self.results[name] = summarize(calm / verb.output, verb)


def _write_inputs(folder: Path) -> None:
    write_inputs(folder, max_steps=6)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "texts.txt").write_text("one one\none\none one one\n")


def make_partial(run: Path) -> None:
    """Remove the result and the last checkpoint of a finished run, as if it had been killed."""
    for path in run.iterdir():
        if path.name in ("metrics.json", "adapter_model.safetensors", "adapter_config.json", "report.html"):
            path.unlink()
        if path.name == "checkpoint-6":
            shutil.rmtree(path)


def summarize(output: Path, verb: Verb) -> dict[str, str]:
    """Return the hash of each file of an output that must be the same every time."""
    found: dict[str, str] = {}
    if output.is_file():
        found["whole"] = str(output.read_bytes().rstrip().endswith(b"</html>"))
    for pattern in verb.compared:
        for path in sorted(output.glob(pattern)):
            if path.is_file():
                found[path.relative_to(output).as_posix()] = hash_file(path)
    if (output / LOG_FILE).is_file():
        found["losses"] = _read_losses(output / LOG_FILE)
    return found


def _read_losses(path: Path) -> str:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError:
        # A flipped bit.
        return hash_file(path)
    keys = ("step", "loss", "codebook_7_loss", "grad_norm", "eval_loss")
    # A run that is resumed after its last step logs its duration again.
    logs = [[line.get(key) for key in keys] for line in lines if {"loss", "eval_loss"} & set(line)]
    return hashlib.sha256(str(logs).encode()).hexdigest()


def hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hash_tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def list_unfinished(folder: Path) -> list[str]:
    """List what an unfinished command has left in a folder, at any depth."""
    return sorted({str(path.relative_to(folder)) for name in UNFINISHED for path in folder.rglob(name)})
