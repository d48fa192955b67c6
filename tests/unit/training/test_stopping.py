"""What stops a run, with the utterances it names; and that the metrics file has each step once."""

import json
import os
import signal

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from higgs_trainer.dataset.collator import PaddingCollator
from higgs_trainer.errors import Interrupted, LossError, Terminated
from higgs_trainer.model.families import family_of
from higgs_trainer.training.callbacks import MetricsFile
from higgs_trainer.training.stopping import StopOnRequest
from higgs_trainer.training.trainer import HiggsAudioTrainer
from tiny import NUM_CODEBOOKS, encode_rows, make_row, tiny_checkpoint


class PoisonedTrainer(HiggsAudioTrainer):
    """The loss of one clip has a finite value and a gradient that is not a number."""

    def compute_guarded_loss(self, model, model_inputs, targets, metadata, num_items_in_batch):
        loss, outputs = super().compute_guarded_loss(
            model, model_inputs, targets, metadata, num_items_in_batch
        )
        if "clip-4" in metadata["utterance_ids"]:
            loss = loss + (0.0 * next(model.parameters())).sum().sqrt()
        return loss, outputs


def build_trainer(output_dir, *, trainer_class=HiggsAudioTrainer, **arguments):
    checkpoint = tiny_checkpoint()
    defaults = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    defaults |= {
        "per_device_train_batch_size": 1,
        "logging_steps": 1,
        "train_sampling_strategy": "sequential",
    }
    return trainer_class(
        model=checkpoint.model,
        args=TrainingArguments(output_dir=str(output_dir), **(defaults | arguments)),
        train_dataset=encode_rows([make_row(seed) for seed in range(6)], checkpoint),
        data_collator=PaddingCollator(
            checkpoint.model.config.pad_token_id, checkpoint.stream_ids.end, NUM_CODEBOOKS
        ),
        family=family_of(checkpoint.model),
    )


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_optimizer_step(tmp_path, max_grad_norm):
    trainer = build_trainer(
        tmp_path, trainer_class=PoisonedTrainer, gradient_accumulation_steps=2, max_grad_norm=max_grad_norm
    )
    at_step_end = []
    trainer.create_optimizer()
    trainer.optimizer.register_step_post_hook(
        lambda *_: at_step_end.append([p.detach().clone() for p in trainer.model.parameters()])
    )
    # The steps are (0, 1), (2, 3), (4, 5).
    with pytest.raises(LossError, match=r"norm is nan at step 2, .* utterances clip-4, clip-5\. "):
        trainer.train()
    assert len(at_step_end) == 2
    for now, then in zip(trainer.model.parameters(), at_step_end[-1], strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("logging_steps", [1, 9])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_a_step_that_is_read_late_is_not_applied_either(tmp_path, optim, logging_steps):
    """As on a GPU: before the next update, log or save, and before its own with an optimizer that is not fused."""
    trainer = build_trainer(tmp_path, trainer_class=PoisonedTrainer, optim=optim, logging_steps=logging_steps)
    trainer.finite_steps.reads_late = True
    trainer.create_optimizer()
    after_steps = []
    trainer.optimizer.register_step_post_hook(
        lambda *_: after_steps.append([p.detach().clone() for p in trainer.model.parameters()])
    )
    # Batch 4 of 0 to 5 is bad.
    with pytest.raises(LossError, match=r"norm is nan at step 4, .* utterances clip-4\. "):
        trainer.train()
    assert len(after_steps) == {"adamw_torch_fused": 5, "adamw_torch": 4}[optim]
    for now, then in zip(trainer.model.parameters(), after_steps[3], strict=True):
        assert torch.equal(now, then)


def test_the_norm_that_clipping_computes_is_not_computed_again(tmp_path, monkeypatch):
    asked = []
    total_norm = torch.nn.utils.get_total_norm
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda *args: asked.append(1) or total_norm(*args))
    for max_grad_norm, times in ((1.0, 0), (0.0, 2)):
        trainer = build_trainer(tmp_path, max_grad_norm=max_grad_norm, max_steps=2)
        trainer.train()
        assert len(asked) == times
        # The norm of one step is not used for the next one.
        assert trainer.finite_steps.norm is None


def callback_state(step, *, epoch=0.5):
    state = TrainerState(max_steps=10)
    state.global_step, state.epoch = step, epoch
    return None, state, TrainerControl()


def test_a_resumed_runs_metrics_have_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    first.on_train_begin(*callback_state(0))
    for step in (1, 2, 3):
        first.on_log(*callback_state(step), logs={"loss": float(step)})
    with path.open("a") as file:
        # Killed in the middle of a line.
        file.write('{"step": 4, "lo')
    resumed = MetricsFile(path)
    resumed.on_train_begin(*callback_state(2))
    resumed.on_log(*callback_state(3), logs={"loss": 3.5})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 3.5}]


@pytest.mark.parametrize("damage", [b"\xff", b"[", b'{"step": "1"}\n', b"1\n", None])
def test_damaged_metrics_are_written_again_from_the_checkpoint(tmp_path, capsys, damage):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    for step in (1, 2, 3):
        metrics.on_log(*callback_state(step), logs={"loss": float(step), "epoch": 0.5})
    whole = path.read_text()
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage + path.read_bytes()[1:])
    _, state, _ = resumed = callback_state(2)
    state.log_history = [{"loss": 1.0, "epoch": 0.5, "step": 1}, {"loss": 2.0, "epoch": 0.5, "step": 2}]
    MetricsFile(path).on_train_begin(*resumed)
    assert path.read_text().splitlines() == whole.splitlines()[:2]
    assert (
        "metrics.jsonl is missing or damaged, and is written again from the checkpoint"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("older", [b'{"step": 1, "loss": 1.0}\n', b"\xff"])
def test_a_run_from_the_beginning_removes_older_metrics(tmp_path, capsys, older):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(older)
    MetricsFile(path).on_train_begin(*callback_state(0))
    assert path.read_text() == ""
    assert not capsys.readouterr().err


def test_a_run_that_is_asked_to_stop_finishes_the_step_or_the_epoch(tmp_path):
    stopping = StopOnRequest(build_trainer(tmp_path).accelerator, "go on")
    middle = callback_state(3)
    stopping.on_step_end(*middle)
    stopping.on_save(*middle)
    assert not middle[2].should_save
    stopping.request(signal.SIGTERM)
    stopping.on_step_end(*middle)
    assert middle[2].should_save
    with pytest.raises(Terminated, match=r"after step 3; saved\. go on"):
        stopping.on_save(*middle)

    stopping.on_epoch_begin(*middle)
    last = callback_state(4, epoch=1.0)
    stopping.on_step_end(*last)
    # This save was due anyway; the evaluation of the epoch is still to come.
    stopping.on_save(*last)
    assert not last[2].should_save
    stopping.on_epoch_end(*last)
    assert last[2].should_save
    with pytest.raises(Terminated, match="after step 4"):
        stopping.on_save(*last)


@pytest.fixture
def obey_ctrl_c():
    """A shell that starts the tests in the background lets them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("obey_ctrl_c")
@pytest.mark.parametrize(
    ("number", "error", "code", "message"),
    [
        (signal.SIGTERM, Terminated, 143, r"^ended by SIGTERM after step 3; saved\. go on$"),
        (signal.SIGINT, Interrupted, 130, r"^interrupted after step 3; saved\. go on$"),
    ],
)
def test_a_signal_is_a_request_and_a_second_one_ends_the_run_at_once(
    tmp_path, capfd, number, error, code, message
):
    stopping = StopOnRequest(build_trainer(tmp_path).accelerator, "go on")
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    middle = callback_state(3)
    with stopping.listen():
        os.kill(os.getpid(), number)
        stopping.on_step_end(*middle)
        assert middle[2].should_save
        with pytest.raises(error, match=message) as stopped:
            stopping.on_save(*middle)
        assert stopped.value.exit_code == code
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Terminated):
            os.kill(os.getpid(), number)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert ("Press Ctrl-C again to stop at once." in capfd.readouterr().err) == (number == signal.SIGINT)


@pytest.mark.usefixtures("obey_ctrl_c")
def test_a_ctrl_c_that_the_launcher_passes_on_is_not_a_second_one(tmp_path, monkeypatch):
    """The terminal sends it to all processes, and torchrun sends it to its processes once more."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    stopping = StopOnRequest(build_trainer(tmp_path).accelerator, "go on")
    with stopping.listen():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr("higgs_trainer.training.stopping.LAUNCHER_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    """As in a command that nohup or a script started in the background."""
    stopping = StopOnRequest(build_trainer(tmp_path).accelerator, "go on")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.listen():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_all_ranks_stop_for_the_signal_that_one_of_them_received(tmp_path):
    class TwoRanks:
        num_processes, is_main_process, device = 2, True, "cpu"

        def reduce(self, received_2, reduction):
            assert reduction == "sum"
            return received_2 + torch.tensor([0.0, 1.0])

    stopping = StopOnRequest(TwoRanks(), "go on")
    middle, next_one = callback_state(3), callback_state(4)
    # The sum over the ranks is read one step later, when it has been computed.
    stopping.on_step_end(*middle)
    assert not middle[2].should_save
    stopping.on_step_end(*next_one)
    assert next_one[2].should_save
    with pytest.raises(Interrupted, match="after step 4"):
        stopping.on_save(*next_one)


def test_time_before_the_first_step_does_not_count_for_the_speed(tmp_path):
    trainer = build_trainer(tmp_path, max_steps=1)
    # As if the clock had run for 1000 seconds.
    trainer.training_totals.leave_out(-1000.0)
    trainer.train()
    # A few dozen tokens in less than a second.
    assert trainer.state.log_history[0]["tokens_per_second"] > 1.0
