"""Do what the README says, as a new user would: ``python scripts/follow_readme.py --wheels dist -o build/readme``.

In a new virtual environment that holds nothing but torch, the wheels of this project and the newest dependencies that
they allow, run the commands and the Python code of the README, word for word, on ten real recordings. Only three things
are not as a user has them: the hub's cache holds random weights of a small model under the names of the released ones,
the recipe is shortened (`SHORTER`), and there is no GPU. Prints the seconds of each block.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

from list_recordings import list_recordings

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
SECTION = "Train on your own recordings"
INSTALLED = {"./packages/label-guard": "label_guard-*.whl", "'.[evaluate]'": "higgs_trainer-*.whl"}
# Packs of a few hundred tokens, one epoch on the CPU, samples of a second.
SHORTER = {
    "tokens_per_pack": "400",
    "num_train_epochs": "1\n  use_cpu: true",
    "held_out": "1\n  max_seconds: 1",
}


def list_blocks(markdown: str) -> Iterator[tuple[str, str, str]]:
    """Yield the section, the language (of an indented block: none) and the text of each block of code."""
    section = ""
    pattern = (
        r"^## (?P<section>.+)$|^```(?P<language>\w*)\n(?P<fenced>[\s\S]*?)^```$|(?P<indented>(?:^    .*\n)+)"
    )
    for found in re.finditer(pattern, markdown, re.MULTILINE):
        if found["section"]:
            section = found["section"]
        elif found["indented"]:
            yield section, "", re.sub(r"^    ", "", found["indented"], flags=re.MULTILINE)
        else:
            yield section, found["language"], found["fenced"]


def find_commands(blocks: list[tuple[str, str, str]], section: str) -> str:
    """Return the block of shell commands of a section."""
    (found,) = (
        text for part, language, text in blocks if part == section and not language and text[0] != "{"
    )
    return found


def install(folder: Path, commands: str, wheels: Path) -> None:
    """Create a virtual environment and install into it what the README installs, from wheels."""
    venv.create(folder, with_pip=True, clear=True)
    pip = f"{folder}/bin/pip install --disable-pip-version-check --quiet"
    for line in commands.splitlines():
        command = line.partition("#")[0].strip()
        if command == "pip install torch":
            run(f"{pip} {TORCH}")
        elif command.startswith("pip install "):
            words = command.removeprefix("pip install ")
            for path, pattern in INSTALLED.items():
                (wheel,) = wheels.glob(pattern)
                words = words.replace(path, f"'{wheel}{'[evaluate]' if 'evaluate' in path else ''}'")
            run(f"{pip} {words}")
        else:
            print(f"not run: {command}")


def shorten(recipe: Path) -> None:
    """Let a recipe train for a few steps only."""
    text = recipe.read_text(encoding="utf-8")
    for field, value in SHORTER.items():
        text, count = re.subn(rf"(?m)^  {field}: .*$", f"  {field}: {value}", text)
        assert count == 1, field
    recipe.write_text(text, encoding="utf-8")


def run(command: str, **options: object) -> None:
    """Run a shell command, and print it with the seconds it took. Exit if it fails."""
    print(f"$ {command}", flush=True)
    start = time.monotonic()
    exit_code = subprocess.run(["bash", "-euc", command], check=False, **options).returncode  # type: ignore[call-overload]
    if exit_code:
        sys.exit(f"exit code {exit_code}: {command}")
    print(f"  {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    """Install, and follow the README twice: with commands, and in Python."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheels", type=Path, required=True, metavar="DIR", help="what `make dist` wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="is emptied")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    blocks = list(list_blocks((ROOT / "README.md").read_text(encoding="utf-8")))
    environment = output / "environment"
    install(environment, find_commands(blocks, "Install"), arguments.wheels.resolve())
    checkpoint = [str(ROOT / "scripts/build_random_checkpoint.py"), "--size", "small", "--hub-cache"]
    subprocess.run([sys.executable, *checkpoint, "-o", str(output / "hub")], check=True)
    variables = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "HF_HUB_CACHE": str(output / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    commands = find_commands(blocks, SECTION).splitlines()
    programs = [text for section, language, text in blocks if section == SECTION and language == "python"]
    folders = {"shell": output / "shell", "python": output / "python"}
    for way, folder in folders.items():
        list_recordings(folder)
        options = {"cwd": folder, "env": variables}
        run(commands[0], **options)
        shorten(folder / "my_voice/recipe.yaml")
        for number, program in enumerate(programs if way == "python" else ()):
            (folder / f"readme_{number}.py").write_text(program, encoding="utf-8")
            run(f"python readme_{number}.py", **options)
        for command in commands[1:] if way == "shell" else ():
            run(command, **options)
    for made in (
        "shell/my_voice/spoken/0000.wav",
        "shell/my_voice/runs/my_voice/report.html",
        "python/spoken.wav",
    ):
        assert (output / made).stat().st_size > 1000, made


if __name__ == "__main__":
    main()
