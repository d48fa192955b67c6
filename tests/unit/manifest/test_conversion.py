"""`convert-manifest` writes the same rows in our format, with paths from another folder."""

import json
from pathlib import Path

import pytest

from higgs_trainer.cli import main
from higgs_trainer.errors import ManifestError, UserError
from higgs_trainer.manifest.conversion import convert_manifest
from higgs_trainer.manifest.row_checker import RowRules
from higgs_trainer.manifest.rows import read_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for name in ("a.wav", "b.wav"):
        (tmp_path / "data" / name).write_text(name)
    return tmp_path / "data"


def test_the_rows_are_the_same_from_another_folder(folder: Path) -> None:
    rows = [
        {"audio": "a.wav", "text": " one ", "ref_audio": "b.wav", "ref_text": "two", "reward": 0.5},
        {"audio": "b.wav", "text": "é", "turns": [{"audio": "a.wav", "text": "[SPEAKER1]  one"}]},
    ]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    inside, outside = folder.parent / "new.jsonl", folder / "deeper" / "new.jsonl"
    for output in (inside, outside):
        assert convert_manifest(folder / "m.jsonl", output).rows == 2
    written = [json.loads(line) for line in inside.read_text(encoding="utf-8").splitlines()]
    assert written[0] == rows[0] | {"audio": "data/a.wav", "ref_audio": "data/b.wav"}
    assert written[1]["turns"] == [{"audio": "data/a.wav", "text": "[SPEAKER1]  one"}]
    assert json.loads(outside.read_text().splitlines()[0])["audio"] == str(folder / "a.wav")
    told = [
        [(row.audio, row.text, row.clips, row.task) for row in read_rows(path, RowRules(allow_outside=True))]
        for path in (folder / "m.jsonl", inside, outside)
    ]
    assert told[0] == told[1] == told[2]


def test_nothing_is_written_if_a_row_has_a_problem(folder: Path) -> None:
    (folder / "m.csv").write_text("a.wav,one\nc.wav,two\nb.wav,\n")
    before = sorted(folder.iterdir())
    with pytest.raises(ManifestError, match="2 problems"):
        convert_manifest(folder / "m.csv", folder / "new.jsonl")
    assert sorted(folder.iterdir()) == before
    with pytest.raises(UserError, match="already exists"):
        convert_manifest(folder / "m.csv", folder / "m.csv")


def test_the_command_reports_the_format_and_unused_columns(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "m.csv").write_text("path,text,age\na.wav,one,30\n")
    with pytest.raises(SystemExit) as stopped:
        main(["convert-manifest", str(folder / "m.csv"), "-o", str(folder / "new.jsonl")])
    assert not stopped.value.code
    out = capsys.readouterr().out
    assert "new.jsonl: 1 row, read as: table" in out
    assert "note: 1 row with a field 'age', which a manifest does not have" in out
