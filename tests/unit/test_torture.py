"""The script that draws faults: what it expects of a merge whose inputs were damaged."""

import json
import random
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
LOG = "".join(json.dumps({"step": step, "loss": 1.0 / step}) + "\n" for step in (1, 2))


@pytest.fixture
def torture(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    return runpy.run_path(str(SCRIPTS / "torture.py"))


@pytest.mark.parametrize(
    ("log", "is_other"),
    [(LOG, False), (LOG.replace("0.5", "0.7"), True), (LOG.replace("{", "["), True), (None, True)],
    ids=["whole", "another loss", "no JSON", "removed"],
)
def test_a_merge_of_a_damaged_log_is_done_again(
    torture: dict[str, Any], tmp_path: Path, log: str | None, is_other: bool
) -> None:
    """A merge copies the log as it is, so its output is as expected, but not that of an undisturbed run."""
    verb, summarize = torture["VERBS"]["merge"], torture["summarize"]
    for folder in ("calm/in/run", "calm/out/merged", "case/in/run", "case/out/merged"):
        (tmp_path / folder).mkdir(parents=True)
        if log is not None or folder.startswith("calm"):
            text = log if log is not None and folder.startswith("case") else LOG
            (tmp_path / folder / "metrics.jsonl").write_text(text)
    (tmp_path / "case/in/.complete").touch()
    world = SimpleNamespace(folder=tmp_path, results={"merge": summarize(tmp_path / "calm/out/merged", verb)})
    case = torture["Case"](verb, "merge", tmp_path / "case", 1.0, random.Random(0))
    output = tmp_path / "case" / verb.output
    assert summarize(output, verb) == torture["list_expected"](case, world)
    torture["restore"](case, world)
    assert (tmp_path / "case/in/run/metrics.jsonl").read_text() == LOG
    assert output.exists() != is_other


@pytest.mark.parametrize(
    ("message", "arguments", "moved"),
    [
        (
            "x has changed. Move checkpoint-4 and checkpoint-6 out of {run}, and continue from checkpoint-2, which is "
            "whole: --resume_from_checkpoint {run}/checkpoint-2",
            ("--resume_from_checkpoint", "{run}/checkpoint-2"),
            ["checkpoint-4", "checkpoint-6"],
        ),
        ("Or start a new run with --overwrite in place of it.", ("--overwrite",), []),
        ("{run} is damaged: remove it", ("--resume_from_checkpoint", "true"), []),
    ],
    ids=["moved", "overwritten", "removed"],
)
def test_the_advice_of_a_message_is_followed(
    torture: dict[str, Any], tmp_path: Path, message: str, arguments: tuple[str, ...], moved: list[str]
) -> None:
    run = tmp_path / "out/run"
    for step in (2, 4, 6):
        (run / f"checkpoint-{step}").mkdir(parents=True)
    case = torture["Case"](torture["VERBS"]["train"], "train", tmp_path, 1.0, random.Random(0))
    found = torture["follow_advice"](case, message.format(run=run))
    assert found == tuple(argument.format(run=run) for argument in arguments)
    assert sorted(path.name for path in tmp_path.glob("moved/*")) == moved
    assert run.exists() == ("remove" not in message)
