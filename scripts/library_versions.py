"""Run tests with other versions of the dependencies than those in constraints.txt.

    python scripts/library_versions.py guard               label-guard's fast tests with each row of its table
    python scripts/library_versions.py guard 4.46 newest   only with these rows
    python scripts/library_versions.py newest              tests of both packages with the newest versions allowed
    python scripts/library_versions.py pins                only list what is newer than the pins and the bounds

The table is packages/label-guard/tests/versions.toml. Prints one line for each set of versions. If the newest versions
fail, each library is set back alone to its version in constraints.txt, to name the one whose bound must be lowered. The
exit code is 1 if a test fails. `newest` also lists which pins are behind, which bounds exclude a released version, and
what to do about each. Environments and logs are in build/versions.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build/versions"
TABLE = ROOT / "packages/label-guard/tests/versions.toml"
LIBRARIES = ("transformers", "peft", "accelerate")
TORCH = "torch==2.13.0"
# Libraries whose internals this project calls or replaces. Each minor version may change them.
CLOSE_LIBRARIES = ("accelerate", "peft", "torch", "transformers")
# The newest version that was tested, where constraints.txt has an older one; docs/decisions/dependencies.md says how.
TESTED = {"pillow": "13.0.0", "torch": "2.15.0", "transformers": "5.24.0"}
# Pins that are older than the newest version that was tested, and until when.
KEPT_PINS = {
    "pillow": "until trackio, which developers install, allows pillow 13",
    "torch": "as long as its CPU build is small and at hand (docs/decisions/dependencies.md)",
    "transformers": "until peft 0.22 is released (docs/decisions/versions.md)",
}
OWN_PACKAGES = ("higgs-trainer", "label-guard", "higgs-trainer-demo")
USER_EXTRAS = ("demo", "evaluate", "evaluate-multilingual", "loudness", "numbers", "tensorboard")
GUARD_TESTS = ["packages/label-guard/tests"]
# What calls transformers, peft or accelerate, or takes the place of their code; and what reads and writes files with
# the other libraries.
NEWEST_TESTS = [
    *GUARD_TESTS,
    "tests/parity",
    *(
        f"tests/unit/{name}"
        for name in ("audio", "corpus", "dataset", "manifest", "model", "recipe", "sharing")
    ),
    *(f"tests/unit/{name}" for name in ("speech", "training")),
    "tests/end_to_end/test_train_cli.py",
    "tests/end_to_end/test_watching.py",
]
SOURCES = [ROOT / source for source in ("src", "packages/label-guard/src", "packages/higgs-trainer-demo/src")]
TWO_WORKERS = ["-n", "2", "-q", "-m", "not slow"]


class Environment:
    """A virtual environment that sees the packages of another one below it; what it holds itself comes first."""

    def __init__(self, folder: Path, below: Path | None = None) -> None:
        self.folder, self.below = folder, below
        self.python = folder / "bin/python"

    def install(self, requirements: Sequence[str]) -> None:
        """Make the environment hold the newest versions that fulfil the requirements. Keep it if it does already."""
        stamp = self.folder / "installed.txt"
        wanted = "\n".join([str(self.below), *requirements])
        if stamp.exists() and stamp.read_text() == wanted:
            if all("==" in requirement for requirement in requirements):
                return
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            venv.create(self.folder, with_pip=True)
            if self.below:
                (find_site_packages(self.folder) / "below.pth").write_text(
                    f"{find_site_packages(self.below)}\n"
                )
        self.pip_install(requirements)
        stamp.write_text(wanted)

    def pip_install(self, requirements: Sequence[str]) -> None:
        # torch is named each time, so that no requirement moves it.
        call = [self.python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--upgrade"]
        subprocess.run([*call, TORCH, *requirements], check=True)

    def list_versions(self, names: Sequence[str] = LIBRARIES) -> dict[str, str]:
        """Return the version of each library."""
        code = f"from importlib.metadata import version; print(*map(version, {list(names)}))"
        found = subprocess.run([self.python, "-c", code], check=True, capture_output=True, text=True)
        # Torch adds its build to its version: 2.13.0+cpu.
        return dict(zip(names, (version.partition("+")[0] for version in found.stdout.split()), strict=True))

    def run_tests(self, arguments: Sequence[str]) -> bool:
        """Run pytest, write its output to the log, print its last line, and the failures if there are any."""
        start = time.monotonic()
        # pytest prints its summary as the last line.
        cache = f"cache_dir={self.folder / 'pytest_cache'}"
        variables = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, SOURCES)), "HF_HUB_OFFLINE": "1"}
        run = subprocess.run(
            [self.python, "-m", "pytest", "-o", cache, *arguments],
            cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        log = self.folder.parent / f"{self.folder.name}.log"
        log.write_text(run.stdout)
        names = ", ".join(f"{name} {version}" for name, version in self.list_versions().items())
        summary = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else "no output"
        print(f"{names}: {summary.strip('= ')} ({time.monotonic() - start:.0f} s in all)", flush=True)
        if run.returncode:
            failures = re.findall(r"^(?:FAILED|ERROR).*", run.stdout, re.MULTILINE)
            print("\n".join(failures) or run.stdout[-3000:], f"\nThe whole output is in {log}", flush=True)
        return run.returncode == 0


def find_site_packages(environment: Path) -> Path:
    """Find the folder of a virtual environment's packages."""
    (found,) = environment.glob("lib/python*/site-packages")
    return found.resolve()


def read_pins() -> dict[str, str]:
    """Read the version of each package in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pinned}


def read_ranges() -> dict[str, Requirement]:
    """Read the ranges that pyproject.toml has for others' packages, with the extras that users install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in USER_EXTRAS for line in extras[extra])]
    ranges = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    exact = {name for name, found in ranges.items() if "==" in str(found.specifier)}
    return {name: found for name, found in ranges.items() if name not in {*OWN_PACKAGES, *exact}}


def find_bound(name: str, tested: Version) -> str:
    """Return the first version that a range excludes, if ``tested`` is the newest version that was tested.

    That is the next version that may break its users: the next major version, and before 1.0 the next minor one. For
    `CLOSE_LIBRARIES` it is always the next minor version.
    """
    by_minor = name in CLOSE_LIBRARIES or tested.major == 0
    return f"{tested.major}.{tested.minor + 1}" if by_minor else f"{tested.major + 1}"


def check_guard(rows: Sequence[str]) -> bool:
    """Run label-guard's fast tests with the rows of the table; with all rows if none is named."""
    table: dict[str, list[str]] = tomllib.loads(TABLE.read_text())
    if unknown := set(rows) - set(table):
        sys.exit(
            f"{TABLE.relative_to(ROOT)} has no row {', '.join(sorted(unknown))}, only {', '.join(table)}."
        )
    pins = read_pins()
    base = Environment(FOLDER / "base")
    base.install([TORCH, *(f"{name}=={pins[name]}" for name in ("hypothesis", "pytest", "pytest-xdist"))])
    passed = True
    for row in rows or table:
        environment = Environment(FOLDER / row, base.folder)
        environment.install(table[row])
        passed &= environment.run_tests([*TWO_WORKERS, *GUARD_TESTS])
    return passed


def check_newest() -> bool:
    """Run tests of both packages with the newest versions that pyproject.toml allows; torch stays as it is pinned."""
    ranges, pins = read_ranges(), read_pins()
    environment = Environment(FOLDER / "newest-allowed", ROOT / ".venv")
    environment.install([str(wanted) for name, wanted in ranges.items() if name != "torch"])
    newest = environment.list_versions(list(ranges))
    changed = {name: version for name, version in newest.items() if version != pins[name]}
    print("\n".join(list_newer(ranges, pins, newest, find_released(list(ranges)))), flush=True)
    if environment.run_tests([*TWO_WORKERS, *NEWEST_TESTS]):
        return True
    guilty = [name for name in changed if passes_with(environment, name, pins[name], newest[name])]
    print(describe_failure(changed, guilty, pins))
    return False


def find_released(names: Sequence[str]) -> dict[str, str]:
    """Return the newest version of each package that can be installed, allowed or not. Install nothing."""
    call = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--dry-run"]
    found = subprocess.run(
        [*call, "--no-deps", "--ignore-installed", "--report", "-", *names], check=True, capture_output=True
    )
    packages = [item["metadata"] for item in json.loads(found.stdout)["install"]]
    return {canonicalize_name(package["name"]): package["version"] for package in packages}


def list_newer(
    ranges: dict[str, Requirement], pins: dict[str, str], allowed: dict[str, str], released: dict[str, str]
) -> list[str]:
    """Say for each library whether its pin or its bound is behind, and what to do about it.

    Args:
        ranges: what pyproject.toml requires.
        pins: the versions in constraints.txt.
        allowed: the newest versions within the ranges.
        released: the newest versions of all.
    """
    lines = []
    for name, wanted in ranges.items():
        if Version(allowed[name]) > Version(pins[name]):
            remedy = "If `make test-newest` passes, run make constraints and make test."
            if name in KEPT_PINS:
                remedy = f"The pin stays {KEPT_PINS[name]}."
            lines.append(f"{name} {allowed[name]} is newer than the pin {pins[name]}. {remedy}")
        newest = Version(released[name])
        if newest > Version(allowed[name]) and not wanted.specifier.contains(newest):
            lines.append(
                f"{name} {newest} is outside {wanted}. To allow it, set the bound <{find_bound(name, newest)} in "
                f"pyproject.toml, run make constraints and make test, and keep it if they pass."
            )
    return lines or ["Every pin and every bound is at the newest release."]


def passes_with(environment: Environment, name: str, pinned: str, newest: str) -> bool:
    """Run the tests that failed again, with one library set back to the pinned version."""
    environment.pip_install([f"{name}=={pinned}"])
    try:
        return environment.run_tests([*TWO_WORKERS, "--last-failed", *NEWEST_TESTS])
    finally:
        environment.pip_install([f"{name}=={newest}"])


def describe_failure(changed: dict[str, str], guilty: Sequence[str], pins: dict[str, str]) -> str:
    """Say which bound to lower.

    Args:
        changed: the versions that differ from the pinned ones.
        guilty: the libraries with whose pinned version the failed tests pass.
        pins: the pinned versions.
    """
    if not changed:
        return "These are the pinned versions, so `make test` must fail too: no bound is to blame."
    if not guilty:
        listed = ", ".join(f"{name} {version}" for name, version in changed.items())
        return f"The tests fail even if one of {listed} is set back to its version in constraints.txt. Try two of them."
    return "\n".join(
        f"The failed tests pass with {name} {pins[name]}. Support {name} {changed[name]}, or lower its bound in "
        f'pyproject.toml to "{name}<{changed[name]}" (docs/decisions/dependencies.md).'
        for name in guilty
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tests = parser.add_subparsers(dest="tests", required=True)
    tests.add_parser("guard").add_argument("rows", nargs="*")
    tests.add_parser("newest")
    tests.add_parser("pins")
    arguments = parser.parse_args()
    if arguments.tests == "pins":
        ranges, pins = read_ranges(), read_pins()
        released = find_released(list(ranges))
        allowed = {
            name: released[name] if wanted.specifier.contains(released[name]) else pins[name]
            for name, wanted in ranges.items()
        }
        print("\n".join(list_newer(ranges, pins, allowed, released)))
        return 0
    passed = check_guard(arguments.rows) if arguments.tests == "guard" else check_newest()
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
