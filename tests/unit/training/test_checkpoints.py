"""Checkpoints: which one is the last, and from which one a run may start."""

import json

import pytest

from higgs_trainer.checksums import write_checksums
from higgs_trainer.errors import RecipeError
from higgs_trainer.run_folder import list_checkpoints
from higgs_trainer.training.checkpoints import find_start


def make_checkpoint(folder, step, *, optimizer="optimizer.pt"):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if optimizer:
        (checkpoint / optimizer).write_text("")
    write_checksums(checkpoint)
    return checkpoint


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for step in (20, 100, 3):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "checkpoint-3",
        "checkpoint-20",
        "checkpoint-100",
    ]


def test_a_run_starts_from_the_last_or_from_the_beginning(tmp_path):
    assert find_start(tmp_path, True) is None
    assert find_start(tmp_path / "not there yet", None) is None
    make_checkpoint(tmp_path, 3)
    last = make_checkpoint(tmp_path, 20)
    assert find_start(tmp_path, True) == find_start(tmp_path, last) == last


def test_a_folder_that_cannot_be_resumed_is_named(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(RecipeError, match="checkpoint-5 is not a checkpoint"):
        find_start(tmp_path, tmp_path / "checkpoint-5")
    make_checkpoint(tmp_path, 6, optimizer=None)
    with pytest.raises(RecipeError, match="checkpoint-6 has no optimizer state"):
        find_start(tmp_path, True)


@pytest.mark.parametrize("resume", [None, False, "checkpoint-3", "../other/checkpoint-9"])
def test_later_checkpoints_of_an_earlier_run_are_refused(tmp_path, resume):
    out, other = tmp_path / "out", tmp_path / "other"
    for step in (3, 7):
        make_checkpoint(out, step)
    make_checkpoint(other, 9)
    with pytest.raises(RecipeError, match="has checkpoint-7 of an earlier run"):
        find_start(out, out / resume if resume else resume)


def test_a_checkpoint_that_does_not_exist_is_named_with_those_that_do(tmp_path, caplog):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-10").mkdir()
    with pytest.raises(
        RecipeError, match=r"there is no folder .*checkpoint-5; .* has checkpoint-4, checkpoint-10"
    ):
        find_start(tmp_path, tmp_path / "checkpoint-5")
    with pytest.raises(RecipeError, match=r"there is no folder .*; .*elsewhere has no checkpoint"):
        find_start(tmp_path, tmp_path / "elsewhere" / "checkpoint-5")
    with pytest.raises(RecipeError, match="is not a checkpoint of a training run"):
        find_start(tmp_path, tmp_path / "checkpoint-10")
    assert not caplog.records
