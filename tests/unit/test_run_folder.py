"""The names of a run's files have one owner."""

import ast
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

import higgs_trainer
from higgs_trainer import run_folder

SOURCE = Path(higgs_trainer.__file__).parent


def test_only_run_folder_spells_the_name_of_a_file():
    names = {value for key, value in vars(run_folder).items() if key.endswith("_FILE")}
    assert len(names) >= 15
    spelled = [
        f"{path.relative_to(SOURCE)}:{node.lineno}: {node.value}"
        for path in SOURCE.rglob("*.py")
        if path.name != "run_folder.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert spelled == []


def test_the_trainers_state_is_where_transformers_writes_it():
    assert run_folder.TRAINER_STATE_FILE == TRAINER_STATE_NAME


def test_samples_are_found_by_step_in_the_order_of_numbers(tmp_path):
    for step in (100, 7, 0):
        (tmp_path / run_folder.SAMPLES_FOLDER / run_folder.name_samples(step)).mkdir(parents=True)
    (tmp_path / run_folder.SAMPLES_FOLDER / "step-7b").mkdir()
    found = run_folder.list_samples(tmp_path)
    assert [(step, path.name) for step, path in found.items()] == [
        (0, "step-0"),
        (7, "step-7"),
        (100, "step-100"),
    ]
