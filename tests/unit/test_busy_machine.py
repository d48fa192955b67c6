"""The note on a machine that is busy with other programs."""

import os

import pytest
import torch

from higgs_trainer.busy_machine import describe_busy_machine, note_if_busy


@pytest.mark.parametrize(
    ("load", "cores", "threads", "free"),
    [
        (0.4, 2, 2, None),
        (0.6, 2, 2, 1),
        (7.9, 2, 2, 1),
        (7.9, 2, 1, None),
        (6.0, 16, 16, 10),
        (6.0, 16, 8, None),
    ],
)
def test_the_note_says_how_many_threads_are_free(
    load: float, cores: int, threads: int, free: int | None
) -> None:
    note = describe_busy_machine(load, cores, threads)
    assert (f"OMP_NUM_THREADS={free}" in note) if free else not note


def test_there_is_a_note_unless_the_user_chose_the_threads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    note_if_busy()
    assert not capsys.readouterr().err
    monkeypatch.delenv("OMP_NUM_THREADS")
    note_if_busy()
    assert capsys.readouterr().err.startswith("note: other programs keep 9.0 of 2 cores busy")
