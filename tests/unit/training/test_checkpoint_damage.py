"""No run continues from a damaged checkpoint: the file is named, and the newest whole checkpoint."""

import json
import pickle
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from higgs_trainer import checksums
from higgs_trainer.dataset.collator import PaddingCollator
from higgs_trainer.errors import DamageError, RecipeError
from higgs_trainer.model.families import family_of
from higgs_trainer.run_folder import CHECKSUMS_FILE, RESUME_FILE, list_checkpoints
from higgs_trainer.training.checkpoints import find_start
from higgs_trainer.training.trainer import HiggsAudioTrainer
from tiny import NUM_CODEBOOKS, encode_rows, make_row, tiny_checkpoint

FILES = (
    "model.safetensors",
    "config.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)


def build_trainer(folder, **arguments):
    checkpoint = tiny_checkpoint(num_layers=1)
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return HiggsAudioTrainer(
        model=checkpoint.model,
        args=TrainingArguments(str(folder), per_device_train_batch_size=1, **quiet, **arguments),
        train_dataset=encode_rows([make_row(seed) for seed in range(3)], checkpoint),
        data_collator=PaddingCollator(
            checkpoint.model.config.pad_token_id, checkpoint.stream_ids.end, NUM_CODEBOOKS
        ),
        family=family_of(checkpoint.model),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The output folder of a run with the checkpoints 1 to 3."""
    folder = tmp_path_factory.mktemp("run") / "out"
    build_trainer(folder, max_steps=3, save_strategy="steps", save_steps=1).train()
    return folder


@pytest.fixture
def out(run, tmp_path):
    return shutil.copytree(run, tmp_path / "out")


def remove_checksums(out):
    for checkpoint in list_checkpoints(out):
        (checkpoint / CHECKSUMS_FILE).unlink()


def flip(place):
    """Return a change that flips a bit at a share of the length of a file."""

    def change(path):
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return change


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "first bit flipped": flip(0),
    "bit flipped": flip(0.5),
    "last bit flipped": flip(1),
    "renamed": lambda path: path.rename(path.with_name("other")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_the_last_checkpoint_is_named_with_the_checkpoint_before(out, damage):
    last = out / "checkpoint-3"
    whole = shutil.copytree(last, out.parent / "whole")
    for name in FILES:
        DAMAGES[damage](last / name)
        for resume in (True, last):
            with pytest.raises(DamageError) as raised:
                find_start(out, resume)
            assert str(raised.value).startswith(f"{last / name} ")
            assert str(raised.value).endswith(
                f"Move checkpoint-3 out of {out}, and continue from checkpoint-2, which is whole: "
                f"--resume_from_checkpoint {out / 'checkpoint-2'}"
            )
        shutil.rmtree(last)
        shutil.copytree(whole, last)
    assert find_start(out, True) == last


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_file_of_another_checkpoint_is_found(out, name):
    shutil.copy(out / "checkpoint-2" / name, out / "checkpoint-3")
    with pytest.raises(DamageError, match=f"{name} has changed"):
        find_start(out, True)


def test_all_damaged_checkpoints_after_the_newest_whole_one_are_to_be_moved(out):
    for step in (2, 3):
        flip(0.5)(out / f"checkpoint-{step}" / "optimizer.pt")
    with pytest.raises(
        DamageError, match=r"Move checkpoint-2 and checkpoint-3 out .*checkpoint-1, which is whole"
    ):
        find_start(out, True)
    flip(0.5)(out / "checkpoint-1" / "scheduler.pt")
    with pytest.raises(DamageError, match=r"No other checkpoint in .* is whole"):
        find_start(out, True)


def test_a_later_checkpoint_that_is_whole_is_the_advice(out):
    flip(0.5)(out / "checkpoint-2" / "optimizer.pt")
    message = (
        f"optimizer.pt has changed since it was written. Continue from checkpoint-3, .* {out}/checkpoint-3"
    )
    with pytest.raises(DamageError, match=message):
        find_start(out, out / "checkpoint-2")


def test_the_model_card_of_a_checkpoint_may_be_edited(out):
    (out / "checkpoint-3" / "README.md").write_text("mine")
    assert find_start(out, True) == out / "checkpoint-3"


def test_added_and_renamed_checkpoints_are_refused(out):
    (out / "checkpoint-3" / "adapter_model.bin").touch()
    with pytest.raises(DamageError, match=r"adapter_model\.bin was added"):
        find_start(out, True)
    shutil.rmtree(out / "checkpoint-3")
    (out / "checkpoint-2").rename(out / "checkpoint-3")
    with pytest.raises(
        DamageError, match=r"trainer_state\.json is of step 2, but the folder is named checkpoint-3"
    ):
        find_start(out, True)


UNLISTED_DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "bit flipped": flip(0.5),
}


@pytest.mark.parametrize("damage", UNLISTED_DAMAGES)
@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_without_checksums_the_files_of_torch_are_tested_by_their_crc(out, name, damage, caplog):
    remove_checksums(out)
    assert find_start(out, True)
    assert "has no checksums.json, so a changed file could not be found" in caplog.text
    UNLISTED_DAMAGES[damage](out / "checkpoint-3" / name)
    with pytest.raises((DamageError, RecipeError), match="checkpoint-3"):
        find_start(out, True)


def test_checksums_that_were_deleted_are_missed_in_a_checkpoint_that_had_them(out):
    (out / "checkpoint-3" / RESUME_FILE).write_text("{}")
    (out / "checkpoint-3" / CHECKSUMS_FILE).unlink()
    with pytest.raises(DamageError, match=r"checkpoint-3/checksums\.json is missing\. Move checkpoint-3 out"):
        find_start(out, True)


def test_without_checksums_a_pickle_that_would_run_code_is_refused(out):
    remove_checksums(out)
    path = out / "checkpoint-3" / "optimizer.pt"
    torch.save({"state": re.compile("a")}, path)
    with pytest.raises(DamageError, match=r"optimizer\.pt is damaged .*eights.only"):
        find_start(out, True)
    path.write_bytes(pickle.dumps({"state": {}}))
    with pytest.raises(DamageError, match=r"optimizer\.pt is damaged"):
        find_start(out, True)


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "not finite: model.embed_tokens"), (None, "is damaged")]
)
def test_without_checksums_weights_are_read(out, value, message):
    remove_checksums(out)
    path = out / "checkpoint-3" / "model.safetensors"
    weights = load_file(path)
    if value is None:
        path.write_bytes(path.read_bytes()[:-8])
    else:
        weights["model.embed_tokens.weight"][3, 3] = value
        save_file(weights, path)
    with pytest.raises(DamageError, match=message):
        find_start(out, True)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"global_step": "3"}', "\udcff"])
def test_without_checksums_a_damaged_state_is_refused(out, content):
    remove_checksums(out)
    (out / "checkpoint-3" / "trainer_state.json").write_text(content, errors="surrogateescape")
    with pytest.raises(DamageError, match=r"trainer_state\.json is"):
        find_start(out, True)


def test_the_best_checkpoint_is_verified_before_it_is_loaded_at_the_end(out):
    trainer = build_trainer(out.parent / "other", max_steps=1)
    trainer.state.best_model_checkpoint = str(out / "checkpoint-2")
    trainer._load_best_model()
    state = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    flip(0.5)(out / "checkpoint-2" / "model.safetensors")
    with pytest.raises(DamageError, match=r"checkpoint-2/model\.safetensors has changed"):
        trainer._load_best_model()
    shutil.rmtree(out / "checkpoint-2")
    with pytest.raises(DamageError, match="checkpoint-2, the best checkpoint, is missing"):
        trainer._load_best_model()


def test_a_checkpoint_that_was_verified_is_not_read_a_second_time(out, monkeypatch):
    hashed = []
    original = checksums.hash_file
    monkeypatch.setattr(checksums, "hash_file", lambda path: hashed.append(path) or original(path))
    start = find_start(out, True)
    once = len(hashed)
    trainer = build_trainer(out, max_steps=3)
    trainer.verified_start = start
    trainer.train(resume_from_checkpoint=start)
    assert once > 0
    assert [path for path in hashed[once:] if path.parent == start] == []
    (start / "optimizer.pt").write_bytes(b"")
    with pytest.raises(DamageError):
        build_trainer(out, max_steps=3).train(resume_from_checkpoint=start)


def test_a_trainer_alone_tests_a_checkpoint_without_checksums(out):
    remove_checksums(out)
    UNLISTED_DAMAGES["cut"](out / "checkpoint-3" / "optimizer.pt")
    with pytest.raises(DamageError, match=r"optimizer\.pt is damaged"):
        build_trainer(out, max_steps=4).train(resume_from_checkpoint=True)
