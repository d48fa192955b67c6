"""What a terminal and a pipe show of the steps of a run."""

import pytest
from transformers import TrainerControl, TrainerState

from higgs_trainer import progress
from higgs_trainer.training.callbacks import ShowProgress
from screen import open_screen

LOGS = {"loss": 5.1, "codebook_0_loss": 5.05, "codebook_0_accuracy": 0.22, "grad_norm": 0.7, "fill": 0.84}


def state_at(step: int) -> tuple[None, TrainerState, TrainerControl]:
    state = TrainerState(max_steps=100)
    state.global_step = step
    return None, state, TrainerControl()


def run_steps(callback: ShowProgress) -> None:
    """Take two steps, evaluate two batches and log; then end."""
    callback.on_train_begin(*state_at(0))
    for step in (1, 2):
        callback.on_step_end(*state_at(step))
    callback.on_log(*state_at(2), logs=LOGS)
    for _ in range(2):
        callback.on_prediction_step(*state_at(2), eval_dataloader=range(2))
    callback.on_log(*state_at(2), logs={"eval_loss": 4.5})
    callback.on_evaluate(*state_at(2))
    callback.on_train_end(*state_at(2))


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (80, "step 2/100: loss 5.100, codebook 0 5.050, accuracy 22%, gradient 0.7, 84% full"),
        (60, "step 2/100: loss 5.100, codebook 0 5.050, accuracy 22%"),
    ],
)
def test_a_terminal_shows_as_many_metrics_as_fit(
    monkeypatch: pytest.MonkeyPatch, width: int, line: str
) -> None:
    screen = open_screen(monkeypatch, width=width)
    run_steps(ShowProgress())
    lines = screen.list_lines()
    assert line in lines
    assert "step 2/100: held-out loss 4.500" in lines
    assert max(map(len, lines)) <= width
    if width == 80:
        assert any("evaluating" in line for line in lines)
        assert "training" in lines[-1]
        assert "2/100" in lines[-1]


def test_a_pipe_gets_each_log_whole_and_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    run_steps(ShowProgress())
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "step 2/100: loss 5.100, codebook 0 5.050, accuracy 22%, gradient 0.7, 84% full",
        "step 2/100: held-out loss 4.500",
    ]
    assert printed.err == ""


def test_a_pipe_gets_a_line_if_logs_are_rare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    callback = ShowProgress()
    callback.on_train_begin(*state_at(0))
    callback.on_step_end(*state_at(1))
    callback.close()
    assert "training: 1 of 100, " in capsys.readouterr().err


def test_other_processes_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = open_screen(monkeypatch, width=80)
    callback = ShowProgress()
    for call in (callback.on_train_begin, callback.on_step_end, callback.on_prediction_step):
        arguments = state_at(0)
        arguments[1].is_world_process_zero = False
        call(*arguments)
    callback.on_log(*arguments, logs=LOGS)
    callback.on_train_end(*arguments)
    assert screen.getvalue() == ""
