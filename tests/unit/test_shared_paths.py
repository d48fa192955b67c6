"""Files that are shared name paths relatively, and tell nothing else about the machine."""

import getpass
import os
from pathlib import Path

import pytest

from higgs_trainer.errors import CheckpointError
from higgs_trainer.model.adapters import read_base_name
from higgs_trainer.recipe.reading import read_recipe, write_recipe
from higgs_trainer.shared_paths import find_shared, hide_paths, share_name, share_path, write_local_paths


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")


@pytest.mark.parametrize(
    ("path", "folder", "shared"),
    [
        ("/work/p/base", "/work/p/runs/a", "../../base"),
        ("/work/p/runs/a/base", "/work/p/runs/a", "./base"),
        ("/work/p/runs/a", "/work/p/runs/a", "."),
        ("/home/alice/base", "/home/alice/runs/a", "../../base"),
    ],
)
def test_a_path_is_relative_to_the_folder(path: str, folder: str, shared: str) -> None:
    assert share_path(path, folder) == shared


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("/data/base", "/home/alice/runs/a"),
        ("/home/alice/base", "/scratch/run"),
        ("/home/bob/base", "/home/alice/run"),
        ("/scratch/alice/base", "/scratch/run"),
    ],
)
def test_a_path_that_tells_about_the_machine_is_only_a_name(path: str, folder: str) -> None:
    shared = share_path(path, folder)
    assert shared.startswith("_local/base-")
    assert share_path(f"/x{path}", folder) != shared


def test_a_name_on_the_hub_is_kept(tmp_path: Path) -> None:
    assert share_name("bosonai/higgs-tts-2-3b-base", tmp_path) == "bosonai/higgs-tts-2-3b-base"
    assert find_shared("bosonai/higgs-tts-2-3b-base", tmp_path) is None


def test_a_shared_path_is_found_also_from_a_checkpoint_and_after_a_move(tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "runs" / "a"
    (run / "checkpoint-3").mkdir(parents=True)
    base.mkdir()
    shared = share_path(base, run)
    write_local_paths(run, [base, run])
    assert find_shared(shared, run) == find_shared(shared, run / "checkpoint-3") == base
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    moved = run.rename(tmp_path / "elsewhere" / "deep" / "b")
    assert find_shared(shared, moved) == find_shared(shared, moved / "checkpoint-3") == base
    (moved / "_local_paths.json").write_text("[")
    assert find_shared(shared, moved) is None


def test_an_adapter_whose_base_is_not_there_says_what_to_correct(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "../gone"}')
    with pytest.raises(CheckpointError, match=r"names the base model \.\./gone, which is not there"):
        read_base_name(tmp_path, needs_weights=False)


@pytest.mark.parametrize("is_far", [False, True])
def test_a_recipe_that_was_written_names_no_absolute_path_and_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_far: bool
) -> None:
    for name in ("model", "train", "codec"):
        (tmp_path / name).mkdir()
    (tmp_path / "r.yaml").write_text(
        "{model: {name_or_path: ./model, codec: ./codec}, data: {train: train, eval: train}, "
        "samples: {texts: [one], ref_audio: a.wav, ref_text: one}, training: {output_dir: out}}"
    )
    recipe = read_recipe(tmp_path / "r.yaml")
    if is_far:
        monkeypatch.setenv("HOME", str(tmp_path / "someone"))
    written = tmp_path / "out" / "recipe.yaml"
    write_recipe(recipe, written)
    assert str(tmp_path) not in written.read_text()
    assert ("_local/" in written.read_text()) == is_far
    assert read_recipe(written) == recipe


def test_the_paths_in_a_report_of_the_guard_become_names() -> None:
    report = {
        "leaks": [{"source": "add (/home/alice/src/train.py:12) and x (../../up/y.py:3)", "count": 1}],
        "verdict": "clean: 1/2 or a/b.py",
    }
    assert hide_paths(report) == {
        "leaks": [{"source": "add (train.py:12) and x (y.py:3)", "count": 1}],
        "verdict": "clean: 1/2 or a/b.py",
    }
    assert os.sep not in str(hide_paths("/a/b c/d"))[:1]
