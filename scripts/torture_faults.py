"""The faults of `torture.py`. Each disturbs one run of a command, and says which exit codes that allows."""

import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torture_world import VERBS, Process, Verb, start

UNPRIVILEGED = 65534


@dataclass
class Case:
    """One command and one fault.

    Attributes:
        note: what the fault was, for the log.
        harms_inputs: the fault changed an input, or what an earlier run left, so that the command may refuse it.
        changes_result: the fault changed a recording or a text, of which there is no checksum.
        cleanup: what takes the fault away.
    """

    verb: Verb
    name: str
    folder: Path
    seconds: float
    rng: random.Random
    note: str = ""
    harms_inputs: bool = False
    changes_result: bool = False
    cleanup: list[Callable[[], None]] = field(default_factory=list)
    others: list[Process] = field(default_factory=list)

    def start(self, disturb: Callable[[], None] = lambda: None) -> Process:
        return start(self.verb.arguments, self.folder, disturb)

    def draw_moment(self) -> float:
        """Draw a moment of the run, in seconds after its start."""
        return self.rng.uniform(0, 1.1 * self.seconds)


@dataclass(frozen=True)
class Fault:
    """``apply`` starts the command of a case with the fault, and returns the process."""

    apply: Callable[[Case], Process]
    codes: tuple[int, ...]
    verbs: tuple[str, ...] = tuple(VERBS)
    weight: float = 1.0


def kill(case: Case) -> Process:
    return _send(case, signal.SIGKILL)


def terminate(case: Case) -> Process:
    return _send(case, signal.SIGTERM)


def terminate_twice(case: Case) -> Process:
    return _send(case, signal.SIGTERM, signal.SIGTERM)


def interrupt(case: Case) -> Process:
    return _send(case, signal.SIGINT)


def _send(case: Case, *signals: int) -> Process:
    process, moment = case.start(), case.draw_moment()
    case.note = f"after {moment:.3f} s"
    for number in signals:
        ends = time.monotonic() + moment
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(0.0005)
        process.send(number)
        moment = case.rng.choice([0.0, 0.01, 0.2])
    return process


def limit_file_size(case: Case) -> Process:
    most = int(10 ** case.rng.uniform(0, 5.5))
    case.note = f"files of at most {most} bytes"
    return case.start(disturb=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))


def limit_open_files(case: Case) -> Process:
    more = case.rng.randint(0, 12)
    case.note = f"{more} more open files"

    def disturb() -> None:
        most = max(map(int, os.listdir("/proc/self/fd"))) + more
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    return case.start(disturb=disturb)


def limit_memory(case: Case) -> Process:
    more_mb = int(10 ** case.rng.uniform(0, 2.7))
    case.note = f"{more_mb} MB more of memory"

    def disturb() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + more_mb * 1_000_000
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    return case.start(disturb=disturb)


def fill_disk(case: Case) -> Process:
    """The output is on a small file system."""
    size_kb = int(10 ** case.rng.uniform(0.7, 3.2))
    case.note = f"a disk of {size_kb} KB"
    out = case.folder / "out"
    kept = case.folder / "kept"
    shutil.copytree(out, kept)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k,mode=777", "tmpfs", str(out)]
    subprocess.run(mount, check=True)
    try:
        shutil.copytree(kept, out, dirs_exist_ok=True)
    except (OSError, shutil.Error):
        subprocess.run(["mount", "-o", "remount,size=1m", str(out)], check=True)
        shutil.copytree(kept, out, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", f"remount,size={_measure_kb(out)}k", str(out)], check=True)

    def make_room() -> None:
        subprocess.run(["mount", "-o", "remount,size=100m", str(out)], check=True)

    case.cleanup.append(make_room)
    return case.start()


def _measure_kb(folder: Path) -> int:
    usage = shutil.disk_usage(folder)
    return usage.used // 1024 + 8


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a file system."""
    probe = folder / "probe"
    probe.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(probe)]
    try:
        works = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        works = False
    if works:
        subprocess.run(["umount", str(probe)], check=True)
    probe.rmdir()
    return works


def forbid_writing(case: Case) -> Process:
    """The folder of the output, or what is in it, may only be read."""
    out = case.folder / "out"
    places = [out, *(path for path in out.rglob("*") if path.is_dir())]
    place = case.rng.choice(places)
    place.chmod(0o555)
    case.note = f"{place.name} may only be read"
    case.cleanup.append(lambda: place.chmod(0o777))
    case.cleanup.append(lambda: _own_all(case.folder))
    return case.start(disturb=lambda: _drop_privileges(case))


def forbid_reading(case: Case) -> Process:
    """A file or folder of the inputs may not be read."""
    place = case.rng.choice(sorted((case.folder / "in").rglob("*")))
    mode = place.stat().st_mode & 0o7777
    place.chmod(0)
    case.note = f"{place.relative_to(case.folder)} may not be read"
    case.cleanup.append(lambda: place.chmod(mode))
    case.cleanup.append(lambda: _own_all(case.folder))
    return case.start(disturb=lambda: _drop_privileges(case))


def _drop_privileges(case: Case) -> None:
    os.environ["HOME"] = "/nonexistent"
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(UNPRIVILEGED)
        os.setuid(UNPRIVILEGED)


def _own_all(folder: Path) -> None:
    if os.geteuid() == 0:
        for path in folder.rglob("*"):
            os.lchown(path, 0, 0)


def flip_bit(case: Case) -> Process:
    path = _draw_file(case)
    content = bytearray(path.read_bytes())
    if content:
        place = case.rng.randrange(len(content))
        content[place] ^= 1 << case.rng.randrange(8)
        path.write_bytes(content)
        case.note += f", one bit of byte {place} of {len(content)}"
    return case.start()


def cut_file(case: Case) -> Process:
    path = _draw_file(case)
    size = path.stat().st_size
    left = case.rng.choice([0, size // 2, max(0, size - 1)])
    os.truncate(path, left)
    case.note += f", cut to {left} of {size} bytes"
    return case.start()


def remove_file(case: Case) -> Process:
    path = _draw_file(case)
    path.unlink()
    case.note += " removed"
    return case.start()


def remove_during_run(case: Case) -> Process:
    path = _draw_file(case)
    process, moment = case.start(), case.draw_moment()
    while process.poll() is None and time.monotonic() < process.started + moment:
        time.sleep(0.0005)
    path.unlink(missing_ok=True)
    case.note += f" removed after {moment:.3f} s"
    return process


# What each command reads, and for which a checksum was written.
READ = {
    "prepare": ("in/*.wav", "in/data.jsonl", "in/model/codec/*"),
    "train": ("in/prepared/*",),
    "resume": ("in/prepared/*", "out/run/*", "out/run/checkpoint-4/*"),
    "generate": ("in/run/*", "in/run/codec/*"),
    "merge": ("in/run/*", "in/run/codec/*"),
    "report": ("in/run/*", "in/run/samples/*/*", "in/run/_recordings/*"),
}


def _draw_file(case: Case) -> Path:
    """Draw a file that the command reads."""
    found = [
        path for pattern in READ[case.name] for path in sorted(case.folder.glob(pattern)) if path.is_file()
    ]
    chosen = case.rng.choice(found)
    case.harms_inputs = True
    # Nothing can tell whether these were meant to be so.
    case.changes_result = chosen.suffix in (".wav", ".jsonl") and case.name == "prepare"
    case.note = str(chosen.relative_to(case.folder))
    return chosen


def damage_work_folder(case: Case) -> Process:
    """Kill the command, and damage a file that it left."""
    process, moment = case.start(), case.rng.uniform(0.2, 0.9) * case.seconds
    while process.poll() is None and time.monotonic() < process.started + moment:
        time.sleep(0.0005)
    process.send(signal.SIGKILL)
    case.note = f"killed after {moment:.3f} s"
    if process.wait() == 0:
        case.note += ", too late"
        return process
    files = [path for path in sorted((case.folder / "out").rglob("*")) if path.is_file()]
    if files:
        path = case.rng.choice(files)
        content = bytearray(path.read_bytes())
        for _ in range(1 + len(content) // 100):
            if content:
                content[case.rng.randrange(len(content))] ^= 1 << case.rng.randrange(8)
        path.write_bytes(content)
        case.note += f", {path.relative_to(case.folder)} damaged"
        case.harms_inputs = True
    return case.start()


def run_twice(case: Case) -> Process:
    """Start the same command twice, at almost the same time."""
    process = case.start()
    delay = case.rng.choice([0.0, case.rng.uniform(0, case.seconds)])
    time.sleep(delay)
    case.note = f"a second one after {delay:.3f} s"
    case.others.append(case.start())
    return process


def close_output(case: Case) -> Process:
    """The program that reads the output has ended, or there is none."""
    which = case.rng.choice(["pipe", "closed", "full"])
    case.note = which

    def disturb() -> None:
        if which == "closed":
            os.close(1)
            return
        if which == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
            return
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)

    return case.start(disturb=disturb)


ODD_NAMES = (
    b"\xff\xfe",
    b"a\nb",
    b"\x1b]8;;x\x07",
    b"x" * 300,
    b"a b",
    "\u202eabc".encode(),
    b"-x",
    b"[red]",
    b"a" * 240,
)


def give_odd_name(case: Case) -> Process:
    """The output has a name that is not UTF-8, has control characters or is too long."""
    name = os.fsdecode(case.rng.choice(ODD_NAMES))
    case.note = repr(name)
    old, new = case.verb.output, str(Path(case.verb.output).with_name(name))
    arguments = tuple(new if one == old else one for one in case.verb.arguments)
    if "train" in arguments:
        arguments = (*arguments, "--output_dir", os.path.join(case.folder, new))
    return start(arguments, case.folder)


def change_environment(case: Case) -> Process:
    """There is no home folder, no folder for temporary files, or a cache that cannot be written."""
    changes = case.rng.choice(
        [
            {"HOME": None},
            {"HOME": "/nonexistent"},
            {"TMPDIR": "/nonexistent"},
            {"HF_HOME": "/proc/x"},
            {"PATH": ""},
        ]
    )
    case.note = str(changes)

    def disturb() -> None:
        tempfile.tempdir = None
        for key, value in changes.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value

    return case.start(disturb=disturb)


MACHINE = (0, 1)
FAULTS = {
    "SIGKILL": Fault(kill, (0, -signal.SIGKILL), weight=2),
    "SIGTERM": Fault(terminate, (0, 143)),
    "SIGTERM twice": Fault(terminate_twice, (0, 143)),
    "SIGINT": Fault(interrupt, (0, 130)),
    "limit of file size": Fault(limit_file_size, MACHINE, weight=2),
    "limit of open files": Fault(limit_open_files, MACHINE),
    # Without memory, a library in Rust or the C library ends the process. Python cannot catch that.
    "limit of memory": Fault(limit_memory, (*MACHINE, 127, -signal.SIGABRT)),
    "full disk": Fault(fill_disk, MACHINE, weight=2),
    "read-only folder": Fault(forbid_writing, (0, 1, 2)),
    "unreadable input": Fault(forbid_reading, (0, 1, 2)),
    "flipped bit": Fault(flip_bit, (0, 1, 2), weight=2),
    "cut file": Fault(cut_file, (0, 1, 2)),
    "removed file": Fault(remove_file, (0, 1, 2)),
    "file removed meanwhile": Fault(remove_during_run, (0, 1, 2)),
    "damaged leftovers": Fault(damage_work_folder, (0, 1, 2), ("prepare", "train", "generate", "merge")),
    "two at once": Fault(run_twice, (0, 1, 2)),
    "closed stdout": Fault(close_output, MACHINE),
    "odd name": Fault(give_odd_name, (0, 1, 2)),
    "odd environment": Fault(change_environment, MACHINE),
}
