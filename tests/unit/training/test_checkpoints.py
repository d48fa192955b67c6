"""Checkpoints by name: which is the last, from which a run may start, what stands in the way, what is removed."""

import json

import pytest
from safetensors import SafetensorError

from higgs_trainer.errors import RecipeError, SaveError
from higgs_trainer.training.checkpoints import (
    find_start,
    list_checkpoints,
    move_into_place,
    naming_what_fails,
    remove_whole,
)


def make_checkpoint(folder, step, *, optimizer="optimizer.pt"):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if optimizer:
        (checkpoint / optimizer).write_text("")
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


def test_what_cannot_be_resumed_from_is_named(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(RecipeError, match="checkpoint-5 is no checkpoint"):
        find_start(tmp_path, tmp_path / "checkpoint-5")
    make_checkpoint(tmp_path, 6, optimizer=None)
    with pytest.raises(RecipeError, match="checkpoint-6 holds no optimizer state"):
        find_start(tmp_path, True)


@pytest.mark.parametrize("resume", [None, False, "checkpoint-3", "../other/checkpoint-9"])
def test_later_checkpoints_are_not_mixed_with_another_runs(tmp_path, resume):
    out, other = tmp_path / "out", tmp_path / "other"
    for step in (3, 7):
        make_checkpoint(out, step)
    make_checkpoint(other, 9)
    with pytest.raises(RecipeError, match="holds checkpoint-7 of an earlier run"):
        find_start(out, out / resume if resume else resume)


def test_what_stands_in_the_way_is_replaced(tmp_path):
    old = make_checkpoint(tmp_path, 3)
    (old / "left over").write_text("")
    new = make_checkpoint(tmp_path / "_unfinished", 3)
    move_into_place(new, old)
    assert sorted(path.name for path in old.iterdir()) == ["optimizer.pt", "trainer_state.json"]
    assert not any((tmp_path / "_unfinished").iterdir())


def test_a_folder_loses_its_name_before_its_files(tmp_path, monkeypatch):
    checkpoint = make_checkpoint(tmp_path, 3)

    def killed(folder, **options):
        if folder.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_whole(checkpoint)
    assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
def test_what_a_full_disk_raises_is_named(tmp_path, error):
    expected = r"checkpoint-3 could not be written \(.*(No space|I/O).*; [\d,.]+ MB were free\); do this"
    target = tmp_path / "not made yet" / "checkpoint-3"
    with pytest.raises(SaveError, match=expected), naming_what_fails(target, "do this"):
        raise error
