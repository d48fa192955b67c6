"""Training overwrites nothing: no input, no foreign file, and no earlier run before the new one has a whole output."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from higgs_trainer.checksums import write_checksums
from higgs_trainer.errors import RecipeError, UserError
from higgs_trainer.outputs import hold_folder
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.run import output as run_output
from higgs_trainer.run.output import write_plan
from higgs_trainer.run.output_folder import check_output_folder, replace_earlier_run
from higgs_trainer.run_folder import SIGNS_OF_A_RUN
from higgs_trainer.training import run_record
from higgs_trainer.unfinished_runs import finish_result, restore_run, settle_earlier_run
from tiny import tiny_checkpoint


def build_recipe(folder: Path, output: str | Path = "out", **training) -> Recipe:
    return Recipe(
        model={"name_or_path": str(folder / "base"), "codec": str(folder / "codec")},
        data={"train": [str(folder / "train"), str(folder / "more")], "eval": str(folder / "held_out")},
        samples={"texts": ["one"], "ref_audio": str(folder / "voice" / "a.wav"), "ref_text": "one"},
        training={"output_dir": str(folder / output), **training},
    )


@pytest.fixture
def folder(tmp_path):
    for name in ("base", "codec", "train", "more", "held_out", "voice"):
        (tmp_path / name).mkdir()
    (tmp_path / "voice" / "a.wav").write_text("RIFF")
    return tmp_path


def write_run(folder: Path, content: str, *, finished: bool = True, checkpoint: int | None = None) -> Path:
    """Write the files of a run by which it is recognised."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "environment.json").write_text("{}")
    (folder / "weights").write_text(content)
    if finished:
        (folder / "metrics.json").write_text("{}")
    if checkpoint is not None:
        (folder / f"checkpoint-{checkpoint}").mkdir()
        state = json.dumps({"global_step": checkpoint})
        (folder / f"checkpoint-{checkpoint}" / "trainer_state.json").write_text(state)
        (folder / f"checkpoint-{checkpoint}" / "optimizer.pt").write_text("")
        write_checksums(folder / f"checkpoint-{checkpoint}")
    return folder


def train_until(error: type[BaseException], folder: Path, **written) -> None:
    """Replace the run in a folder by a new one that fails."""
    with replace_earlier_run(folder):
        write_run(folder, "new", finished=False, **written)
        raise error


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("base", "is the model"),
        ("base/adapter", "lies in the model"),
        ("codec", "is the codec"),
        ("more/out", "lies in the training data"),
        ("held_out", "is the evaluation data"),
        ("voice", "contains the recording samples.ref_audio"),
        (".", "contains the model"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_folder_that_overlaps_an_input_is_refused(folder, output, message, overwrite):
    with pytest.raises(UserError, match=f"training.output_dir: .* {message}"):
        check_output_folder(build_recipe(folder, output), overwrite=overwrite)


def test_a_checkpoint_of_another_run_is_an_input(folder):
    write_run(folder / "first", "first", checkpoint=3)
    start = folder / "first" / "checkpoint-3"
    for output, relation in (("first/checkpoint-3/more", "lies in"), ("", "contains")):
        with pytest.raises(UserError, match=f"{relation} the "):
            check_output_folder(build_recipe(folder, output, resume_from_checkpoint=start), overwrite=False)
    second = build_recipe(folder, "second", resume_from_checkpoint=start)
    assert check_output_folder(second, overwrite=False) == start
    own = build_recipe(folder, "first", resume_from_checkpoint=start)
    assert check_output_folder(own, overwrite=False) == start


@pytest.mark.parametrize(
    "name",
    ["recipe.yaml", "README.md", "model.safetensors", "tokenizer.json", "dataset_card.json", "data-0.arrow"],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_no_run_wrote_are_not_overwritten(folder, name, overwrite):
    (folder / "out").mkdir()
    (folder / "out" / name).write_text("mine")
    with pytest.raises(UserError, match=f"is not the folder of a run but contains {name}"):
        check_output_folder(build_recipe(folder), overwrite=overwrite)


def test_a_folder_with_a_log_or_an_unfinished_run_is_accepted(folder):
    (folder / "out").mkdir()
    (folder / "out" / "slurm-17.log").write_text("")
    assert check_output_folder(build_recipe(folder), overwrite=False) is None
    write_run(folder / "out", "", finished=False)
    assert check_output_folder(build_recipe(folder), overwrite=False) is None


@pytest.mark.parametrize("resume", [None, True])
def test_a_finished_run_is_refused_unless_it_is_to_be_overwritten(folder, resume):
    write_run(folder / "out", "old")
    recipe = build_recipe(folder, resume_from_checkpoint=resume)
    with pytest.raises(UserError, match=r"holds a finished run.*--overwrite.*out.replaced-1"):
        check_output_folder(recipe, overwrite=False)
    check_output_folder(build_recipe(folder), overwrite=True)


def test_to_overwrite_and_to_resume_are_not_asked_for_at_once(folder):
    write_run(folder / "out", "old", checkpoint=3)
    recipe = build_recipe(folder, resume_from_checkpoint=True)
    assert check_output_folder(recipe, overwrite=False) == folder / "out" / "checkpoint-3"
    with pytest.raises(UserError, match="Give one of the two"):
        check_output_folder(recipe, overwrite=True)
    with pytest.raises(UserError, match=r"has checkpoint-3 of an earlier run.*--overwrite"):
        check_output_folder(build_recipe(folder), overwrite=False)
    assert check_output_folder(build_recipe(folder), overwrite=True) is None


@pytest.mark.parametrize("first_output", [{"finished": True}, {"finished": False, "checkpoint": 1}])
def test_an_earlier_run_is_kept_under_another_name(folder, first_output, capsys):
    out = write_run(folder / "out", "old", checkpoint=9)
    with replace_earlier_run(out):
        assert not out.exists()
        write_run(out, "new", **first_output)
    assert (out / "weights").read_text() == "new"
    assert (folder / "out.replaced-1" / "weights").read_text() == "old"
    assert (folder / "out.replaced-1" / "checkpoint-9").is_dir()
    assert f"the earlier run is now {folder}/out.replaced-1" in capsys.readouterr().out
    assert not [name for name in list_names(folder) if name.startswith("_")]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_new_run_that_fails_before_its_first_output_restores_the_earlier_one(folder, error):
    out = write_run(folder / "out", "old")
    with pytest.raises(error):
        train_until(error, out)
    assert (out / "weights").read_text() == "old"
    assert [name for name in list_names(folder) if "out" in name] == ["held_out", "out"]


def test_a_new_run_that_fails_after_its_first_checkpoint_keeps_both(folder):
    out = write_run(folder / "out", "old")
    with pytest.raises(RuntimeError):
        train_until(RuntimeError, out, checkpoint=3)
    assert (out / "weights").read_text() == "new"
    assert (folder / "out.replaced-1" / "weights").read_text() == "old"


class Killed(BaseException):
    """The process dies: nothing after this call happens."""


@pytest.mark.parametrize("step", range(1, 8))
def test_a_kill_at_any_rename_loses_no_run(folder, monkeypatch, step):
    """Also while the earlier run is restored, and while it is kept under another name."""
    out = write_run(folder / "out", "old")
    calls = 0
    replace = os.replace

    def count(*arguments):
        nonlocal calls
        calls += 1
        if calls >= step:
            raise Killed
        replace(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", count)
        for is_whole in (False, True):
            try:
                with replace_earlier_run(out):
                    write_run(out, "new", finished=is_whole)
            except Killed:
                break
    contents = {
        path.name: (path / "weights").read_text() for path in folder.iterdir() if (path / "weights").is_file()
    }
    assert "old" in contents.values()
    settle_earlier_run(out)
    found = {path.parent.name: path.read_text() for path in folder.glob("*/weights")}
    assert found in ({"out": "old"}, {"out": "new", "out.replaced-1": "old"})


def test_the_first_file_of_a_run_shows_that_the_folder_is_that_of_a_run(folder, monkeypatch):
    """Otherwise a run that is killed after it would block its own command."""
    written = []
    monkeypatch.setattr(run_record, "write_json", lambda path, value: written.append(path.name))
    monkeypatch.setattr(run_output, "write_json", lambda path, value: written.append(path.name))
    trainer = SimpleNamespace(model=tiny_checkpoint().model, accelerator=Accelerator(cpu=True))
    write_plan(folder / "out", trainer, {"eval_utterances": 1})
    assert len(written) == 3
    assert written[0] in SIGNS_OF_A_RUN


def test_the_next_run_restores_what_a_killed_one_left(folder):
    write_run(folder / "_earlier-out", "old")
    write_run(folder / "out", "new", finished=False)
    with pytest.raises(UserError, match="holds a finished run"):
        check_output_folder(build_recipe(folder), overwrite=False)
    assert (folder / "out" / "weights").read_text() == "old"
    assert json.loads((folder / "out" / "metrics.json").read_text()) == {}


def test_a_reader_restores_what_a_killed_run_left(folder):
    write_run(folder / "_earlier-out", "old")
    write_run(folder / "out", "new", finished=False)
    restore_run(folder / "out")
    assert (folder / "out" / "weights").read_text() == "old"
    assert ".out.lock" not in list_names(folder)


def test_neither_a_reader_nor_another_run_touches_a_run_that_still_trains(folder):
    """A run that has no checkpoint yet looks like one that was killed."""
    write_run(folder / "_earlier-out", "old")
    out = write_run(folder / "out", "new", finished=False)
    with hold_folder(out):
        restore_run(out)
        with pytest.raises(UserError, match="another command is writing to"):
            check_output_folder(build_recipe(folder), overwrite=False)
    assert (out / "weights").read_text() == "new"
    assert (folder / "_earlier-out" / "weights").read_text() == "old"


def overwrite(out: Path) -> None:
    check_output_folder(build_recipe(out.parent), overwrite=True)


@pytest.mark.parametrize("step", range(1, 5))
@pytest.mark.parametrize("reader", [restore_run, overwrite])
def test_a_kill_while_final_files_are_moved_leaves_no_mix(folder, monkeypatch, step, reader):
    """The run was finished before and has been extended."""
    out = write_run(folder / "out", "old")
    result = write_run(out / "_result", "new")
    (result / "metrics.json").write_text('{"new": 1}')
    (out / "codec").mkdir()
    (out / "codec" / "a").write_text("old")
    (result / "codec").mkdir()
    (result / "codec" / "a").write_text("new")
    calls, replace = 0, os.replace

    def count(*arguments):
        nonlocal calls
        calls += 1
        if calls == step:
            raise Killed
        replace(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", count)
        with pytest.raises(Killed):
            finish_result(out)
    assert (out / "metrics.json").read_text() == "{}"
    reader(out)
    assert (out / "weights").read_text() == (out / "codec" / "a").read_text() == "new"
    assert (out / "metrics.json").read_text() == '{"new": 1}'
    assert list_names(out) == ["codec", "environment.json", "metrics.json", "weights"]


@pytest.mark.parametrize("name", ["/", "x" * 250])
def test_a_folder_whose_name_can_have_no_prefix_is_no_unfinished_run(tmp_path, name):
    restore_run(tmp_path / name)


def test_other_processes_of_a_distributed_run_rename_nothing(folder, monkeypatch):
    write_run(folder / "_earlier-out", "old")
    monkeypatch.setenv("RANK", "1")
    restore_run(folder / "out")
    assert not (folder / "out").exists()


def test_other_processes_of_a_distributed_run_leave_the_lock_to_the_first(folder, monkeypatch):
    write_run(folder / "_earlier-out", "old")
    monkeypatch.setenv("RANK", "1")
    with hold_folder(folder / "out"):
        check_output_folder(build_recipe(folder), overwrite=True)
    assert list_names(folder / "_earlier-out")


def test_a_name_that_is_not_utf_8_is_refused_before_training(folder):
    with pytest.raises(RecipeError, match="is not UTF-8"):
        check_output_folder(build_recipe(folder, os.fsdecode(b"out-\xff")), overwrite=False)
