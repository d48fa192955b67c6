"""Each verb refuses an output that overlaps an input with exit code 2, before it loads or writes anything."""

import json
from pathlib import Path

import pytest

from higgs_trainer.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Inputs that cannot be loaded, so that a verb which loads one before the check fails with another message."""
    for name in ("base", "codec", "run", "prepared", "clips", "boson"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text("precious")
    (tmp_path / "run" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base")})
    )
    (tmp_path / "run" / "environment.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text('{"audio": "clips/a.wav", "text": "one"}\n')
    (tmp_path / "texts.txt").write_text("one\n")
    (tmp_path / "recipe.yaml").write_text(
        "model: {name_or_path: base}\ndata: {train: prepared}\ntraining: {output_dir: out}\n"
    )
    (tmp_path / "link").symlink_to("base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_all(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


GENERATE = ("generate", "--model", "run", "--text", "one")
EVALUATE = ("evaluate", "run", "base", "--data", "prepared", "--no-quality")
PREPARE = ("prepare", "rows.jsonl", "--overwrite")
PREPARE_CLIPS = ("prepare", "clips", "--overwrite", "--codec", "codec")
BY_OUTPUT = [
    (("train", "recipe.yaml", "--output_dir"), ["base", "link", "link/new", "prepared", "prepared/new", "."]),
    (("train", "recipe.yaml", "--overwrite", "--output_dir"), ["base", "prepared"]),
    ((*GENERATE, "-o"), ["run", "run/spoken", "base", "link/spoken", "."]),
    ((*GENERATE, "--codec", "codec", "-o"), ["codec", "codec/new"]),
    ((*GENERATE, "--ref-audio", "clips/content", "--ref-text", "one", "-o"), ["clips"]),
    ((*EVALUATE, "-o"), ["run", "run/clips", "base", "base/evaluation/deep", "prepared", "prepared/new"]),
    (("merge", "run", "-o"), ["run", "run/merged", "base", "link", "base/merged", "."]),
    (("merge", "run", "--base", "boson", "-o"), ["boson", "boson/merged"]),
    (("convert", "boson", "-o"), ["boson", "boson/new", "."]),
    ((*PREPARE, "--codec", "codec", "-o"), [".", "codec", "codec/prepared", "rows.jsonl"]),
    ((*PREPARE, "--model", "base", "-o"), ["base", "link/prepared"]),
    ((*PREPARE_CLIPS, "-o"), ["clips", "clips/prepared"]),
    ((*PREPARE, "--codec", "codec", "-o", "new", "--report"), ["rows.jsonl", "clips/content", "recipe.yaml"]),
    (("report", "run", "-o"), ["run/adapter_config.json", "recipe.yaml", "base/content", "clips"]),
    (("convert-manifest", "rows.jsonl", "-o"), ["rows.jsonl", "clips/content"]),
    (("init", "--model", "base", "--codec", "codec"), ["recipe.yaml", "base", "base/new", "codec"]),
]


@pytest.mark.parametrize(
    ("command", "output"),
    [(command, output) for command, outputs in BY_OUTPUT for output in outputs],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_an_output_that_overlaps_an_input_is_refused(folder, command, output, capsys):
    before = read_all(folder)
    with pytest.raises(SystemExit) as ended:
        main([*command, output])
    message = capsys.readouterr().err
    assert ended.value.code == 2, message
    assert any(
        word in message for word in ("Nothing was written", "give a", "Give another", "Choose another")
    )
    assert "cannot be loaded" not in message
    assert read_all(folder) == before


def test_the_evaluation_of_a_run_belongs_into_its_folder(folder, capsys):
    """The check passes: what fails is loading the model."""
    with pytest.raises(SystemExit):
        main(["evaluate", "run", "--text-file", "texts.txt", "--no-quality", "--asr", "none"])
    assert "overwritten" not in capsys.readouterr().err
