"""Disturb commands with faults drawn at random, and check that nothing is lost and nothing is silent.

    python scripts/torture.py --seed 1 --minutes 10
    python scripts/torture.py --seed 1 --case 17            repeat one case

A case is a command (prepare, train, resume, generate, merge, report) on a tiny model, with one fault: a signal at a
random moment, a full disk, a limit of the system, a damaged, removed or unreadable file, a second run of the same
command. After it these things must be true:

- The exit code is 0, 1, 2, 130 or 143 (or the process was killed). There is no traceback and no hang, and a
  failure is explained by one message.
- No input has changed.
- A success has written what an undisturbed run writes, byte for byte.
- Without the fault, the command succeeds (training is resumed) and writes what an undisturbed run writes. Nothing
  unfinished is left.

Every case is printed with its seed. The exit code is 1 if a case failed. Full disks need permission to mount a file
system; unreadable files need root, which the command then gives up.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")

import torch
from torture_faults import FAULTS, Case, Fault, can_mount
from torture_world import VERBS, World, hash_file, hash_tree, list_unfinished, start, summarize

from higgs_trainer.run_folder import LOG_FILE

# The processes are forked from this one, with everything imported.

# 127: the C library ends a process that has no memory for a new thread's variables.
ALLOWED_CODES = (0, 1, 2, 127, 130, 143, -signal.SIGKILL, -signal.SIGABRT)
REPLACED = "run.replaced-1/"
OUT_OF_MEMORY_IN_RUST = "memory allocation of "
OUT_OF_MEMORY_IN_C = "cannot allocate memory for thread-local data"
SHORTEST_MESSAGE = 15


def main() -> None:
    """Draw cases until the time is over, and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--cases", type=int, default=10**9)
    parser.add_argument("--case", type=int, help="run only the case with this number")
    parser.add_argument("--fault", choices=FAULTS, help="draw only this fault")
    parser.add_argument("--verb", choices=VERBS, help="draw only this command")
    parser.add_argument("--keep", type=Path, help="keep the folders of the cases that failed in this folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ends = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        os.chmod(name, 0o755)
        folder = Path(name)
        world = World(folder)
        world.build()
        faults = {name: fault for name, fault in FAULTS.items() if name != "full disk" or can_mount(folder)}
        if arguments.fault:
            faults = {arguments.fault: faults[arguments.fault]}
        print(
            f"undisturbed: {', '.join(f'{verb} {s:.1f} s' for verb, s in world.seconds.items())}", flush=True
        )
        numbers = range(arguments.cases) if arguments.case is None else [arguments.case]
        outcomes = []
        for number in numbers:
            if time.monotonic() > ends:
                break
            outcomes.append(run_case(world, faults, arguments, number))
    failed = summarize_outcomes(outcomes)
    sys.exit(1 if failed else 0)


def run_case(
    world: World, faults: dict[str, Fault], arguments: argparse.Namespace, number: int
) -> tuple[str, str, list[str]]:
    """Draw and run one case. Return its fault, its command and what was wrong."""
    rng = random.Random(f"{arguments.seed} {number}")
    fault_name = rng.choices(list(faults), [fault.weight for fault in faults.values()])[0]
    fault = faults[fault_name]
    verb_name = rng.choice([name for name in fault.verbs if arguments.verb in (None, name)] or fault.verbs)
    verb = VERBS[verb_name]
    folder = world.new_case(f"case-{number}", verb)
    case = Case(verb, verb_name, folder, world.seconds[verb_name], rng)
    wrong: list[str] = []
    try:
        codes = disturb(case, fault, fault_name, world, wrong)
        restore(case, world)
        repeat(case, fault_name, world, wrong)
    finally:
        subprocess.run(["umount", str(folder / "out")], capture_output=True)
    ended = ", ".join(map(str, codes))
    line = f"seed {arguments.seed} case {number}: {verb_name}, {fault_name} ({case.note}): exit code {ended}"
    print(f"{'ok    ' if not wrong else 'FAILED'} {line}", *wrong, sep="\n       ", flush=True)
    if wrong and arguments.keep:
        shutil.copytree(folder, arguments.keep / f"{arguments.seed}-{number}", dirs_exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return fault_name, verb_name, wrong


def disturb(case: Case, fault: Fault, fault_name: str, world: World, wrong: list[str]) -> list[int | None]:
    """Run the command with the fault, and check how it ends. Return the exit codes of its processes."""
    process = fault.apply(case)
    before = hash_tree(case.folder / "in")
    codes = [process.wait()]
    check_ending(process.read(), codes[0], fault.codes, wrong)
    for other in case.others:
        codes.append(other.wait())
        check_ending(other.read(), codes[-1], fault.codes, wrong)
    for clean in case.cleanup:
        clean()
    if fault_name != "file removed meanwhile" and hash_tree(case.folder / "in") != before:
        wrong.append("an input has changed")
    if (
        0 in codes
        and fault_name != "odd name"
        and not case.changes_result
        and summarize(case.folder / case.verb.output, case.verb) != list_expected(case, world)
    ):
        wrong.append("exit code 0, but the output is not that of an undisturbed run")
    return codes


def list_expected(case: Case, world: World) -> dict[str, str]:
    """Return what an undisturbed run writes. A merge copies the log of the run, which it does not need, as it is."""
    expected = dict(world.results[case.name])
    log, calm = case.folder / "in/run" / LOG_FILE, world.folder / "calm/in/run" / LOG_FILE
    if case.name == "merge" and not log.is_file():
        del expected["losses"]
    elif case.name == "merge" and hash_file(log) != hash_file(calm):
        expected |= summarize(log.parent, replace(case.verb, compared=()))
    return expected


def check_ending(log: str, code: int | None, allowed: tuple[int, ...], wrong: list[str]) -> None:
    """Check the exit code and the message of a process."""
    if code is None:
        wrong.append(f"it hangs: {log[-500:]!r}")
        return
    if code not in ALLOWED_CODES or code not in allowed:
        wrong.append(f"exit code {code}: {log[-500:]!r}")
    if (code == -signal.SIGABRT and OUT_OF_MEMORY_IN_RUST not in log) or (
        code == 127 and OUT_OF_MEMORY_IN_C not in log
    ):
        wrong.append(f"an abort that is not for want of memory: {log[-500:]!r}")
    if "Traceback" in log or "This is a bug" in log or "LEFT THE COMMAND" in log:
        wrong.append(f"unexpected exception: {log[-1500:]!r}")
    messages = [line for line in log.splitlines() if line.startswith("error: ")]
    if code in (1, 2, 130, 143) and [len(one) >= SHORTEST_MESSAGE for one in messages] != [True]:
        wrong.append(f"not exactly one message: {log[-500:]!r}")
    if code == 0 and messages:
        wrong.append(f"an error and exit code 0: {messages}")
    if any(ord(letter) < 32 and letter not in "\n\t\r" for letter in log):
        wrong.append("a control character in the log")


def restore(case: Case, world: World) -> None:
    """Put the inputs back as they were, and remove or repair the output of damaged ones."""
    is_other = list_expected(case, world) != world.results[case.name]
    shutil.rmtree(case.folder / "in")
    shutil.copytree(world.folder / "calm/in", case.folder / "in")
    if case.harms_inputs and case.verb.start is not None:
        world.restore_start(case.folder, case.verb)
    if case.changes_result or is_other:
        shutil.rmtree(case.folder / case.verb.output, ignore_errors=True)


def follow_advice(case: Case, message: str) -> tuple[str, ...]:
    """Do what the message about damaged leftovers says. Return the further arguments that it names."""
    if found := re.search(r"Move (.+?) out of (\S+), and continue .*--resume_from_checkpoint (\S+)", message):
        (case.folder / "moved").mkdir()
        for name in found[1].split(" and "):
            shutil.move(Path(found[2]) / name, case.folder / "moved" / name)
        return ("--resume_from_checkpoint", found[3])
    if "with --overwrite in place of" in message:
        return ("--overwrite",)
    if "remove" in message:
        for path in sorted((case.folder / "out").iterdir()):
            if str(path) in message:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return case.verb.again


def repeat(case: Case, fault_name: str, world: World, wrong: list[str]) -> None:
    """Run the command without the fault, and compare the result with that of an undisturbed run."""
    output = case.folder / case.verb.output
    if (
        case.name in ("prepare", "merge", "generate")
        and output.exists()
        and summarize(output, case.verb) == (world.results[case.name])
    ):
        check_leftovers(case, wrong)
        return
    process = start((*case.verb.arguments, *case.verb.again), case.folder)
    code = process.wait()
    if code == 2 and fault_name == "damaged leftovers":
        process = start((*case.verb.arguments, *follow_advice(case, process.read())), case.folder)
        code = process.wait()
    if code != 0:
        wrong.append(f"without the fault: exit code {code}: {process.read()[-700:]!r}")
        return
    if (found := summarize(output, case.verb)) != world.results[case.name]:
        different = {name for name, _ in found.items() ^ world.results[case.name].items()}
        wrong.append(f"without the fault: these differ from an undisturbed run: {sorted(different)}")
    check_leftovers(case, wrong)


def check_leftovers(case: Case, wrong: list[str]) -> None:
    """After a success, nothing unfinished may be left, but in the run that was replaced, which is kept as it was."""
    left = [name for name in list_unfinished(case.folder / "out") if not name.startswith(REPLACED)]
    if left:
        wrong.append(f"left after a success: {left}")


def summarize_outcomes(outcomes: list[tuple[str, str, list[str]]]) -> int:
    """Print how many cases of each fault and command failed, and return how many did."""
    for title, place in (("fault", 0), ("command", 1)):
        total = Counter(outcome[place] for outcome in outcomes)
        failed = Counter(outcome[place] for outcome in outcomes if outcome[2])
        print(f"\n{title:24} cases  failed")
        for name, count in sorted(total.items()):
            print(f"{name:24} {count:5}  {failed[name]:6}")
    number = sum(bool(wrong) for *_, wrong in outcomes)
    print(f"\n{len(outcomes)} cases, {number} failed")
    return number


if __name__ == "__main__":
    main()
