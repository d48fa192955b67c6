"""The note on a machine that is busy with other programs."""

from pathlib import Path

import pytest
import torch

from higgs_trainer import busy_machine
from higgs_trainer.busy_machine import describe_busy_machine, note_if_busy


@pytest.mark.parametrize(
    ("others", "cores", "threads", "free"),
    [(0, 2, 2, None), (1, 2, 2, 1), (8, 2, 2, 1), (8, 2, 1, None), (6, 16, 16, 10), (6, 16, 8, None)],
)
def test_the_note_says_how_many_threads_are_free(
    others: int, cores: int, threads: int, free: int | None
) -> None:
    note = describe_busy_machine(others, cores, threads)
    assert (f"OMP_NUM_THREADS={free}." in note) if free else not note


@pytest.mark.parametrize(("running", "is_noted"), [("5/300", True), ("1/300", False)])
def test_there_is_a_note_unless_the_user_chose_the_threads(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    running: str,
    is_noted: bool,
) -> None:
    """Past commands are in the averages, and do not count."""
    (tmp_path / "loadavg").write_text(f"9.00 9.00 9.00 {running} 1234\n")
    monkeypatch.setattr(busy_machine, "LOAD_FILE", tmp_path / "loadavg")
    monkeypatch.setattr(busy_machine.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    note_if_busy()
    assert not capsys.readouterr().err
    monkeypatch.delenv("OMP_NUM_THREADS")
    note_if_busy()
    assert ("note: other programs keep 2 of 2 cores busy" in capsys.readouterr().err) == is_noted
