"""Data of other tools: columns with other names, one recording, recordings without words."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from datasets import Dataset

from higgs_trainer.errors import UserError
from higgs_trainer.manifest.conversion import convert_manifest
from higgs_trainer.manifest.formats import open_source
from higgs_trainer.manifest.formats.columns import guess_columns, parse_columns

ROWS = [
    {"filename": "a.wav", "words": "Goedemorgen, allemaal.", "who": "ann", "text": "no words"},
    {"filename": "b.wav", "words": "Tot ziens.", "who": "ben", "text": "none"},
]
CHOSEN = {"audio": "filename", "text": "words"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_text(name)
    return tmp_path


def write(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    """Write the rows as what the suffix says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        separator = {".csv": ",", ".tsv": "\t", ".psv": "|"}[path.suffix]
        quote = '"' if separator == "," else ""
        lines = [list(rows[0]), *([f"{quote}{cell}{quote}" for cell in row.values()] for row in rows)]
        path.write_text("".join(separator.join(line) + "\n" for line in lines))
    return path


def read(path: Path, columns: Mapping[str, str]) -> list[dict[str, Any] | None]:
    rows = list(open_source(path, columns=columns))
    assert [row.problems for row in rows] == [(), ()]
    return [row.fields for row in rows]


KINDS = (".csv", ".tsv", ".psv", ".jsonl", ".parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_that_the_user_names_are_read(folder: Path, kind: str) -> None:
    path = write(folder / f"rows{kind}")
    assert read(path, CHOSEN) == [{"audio": row["filename"], "text": row["words"]} for row in ROWS]
    assert [row and row["speaker"] for row in read(path, CHOSEN | {"speaker": " WHO"})] == ["ann", "ben"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_is_not_there_is_named(folder: Path, kind: str) -> None:
    path = write(folder / f"rows{kind}")
    with pytest.raises(
        UserError, match=r'no column "filenam", which --columns names\. Did you mean "filename"'
    ):
        list(open_source(path, columns=CHOSEN | {"audio": "filenam"}))


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".psv", ".jsonl"])
def test_columns_with_other_names_are_listed_with_the_option_that_reads_them(folder: Path, kind: str) -> None:
    rows = [{name: value for name, value in row.items() if name != "text"} for row in ROWS]
    path = write(folder / f"rows{kind}", rows)
    with pytest.raises(UserError, match=r"filename.*words") as caught:
        open_source(path)
    option = str(caught.value).split("--columns ")[1].split(".")[0]
    assert parse_columns([option]) == CHOSEN
    assert read(path, parse_columns([option]))


def test_a_misspelt_field_of_json_lines_stays_a_problem_of_its_row(folder: Path) -> None:
    path = write(
        folder / "rows.jsonl", [{"audio": "a.wav", "tekst": "one"}, {"audio": "b.wav", "text": "two"}]
    )
    assert len(list(open_source(path))) == 2


def test_json_lines_with_named_columns_keep_the_fields_that_no_table_has(folder: Path) -> None:
    row = {"file": "a.wav", "text": "one", "seed": 7, "turns": [], "length": 3}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    source = open_source(folder / "rows.jsonl", columns={"audio": "file"})
    (read_row,) = source
    assert read_row.fields == {"audio": "a.wav", "text": "one", "seed": 7, "turns": []}
    assert source.unused == {"length": 1}


def test_convert_manifest_reads_named_columns(folder: Path) -> None:
    convert_manifest(write(folder / "rows.csv"), folder / "out.jsonl", columns=CHOSEN)
    first = json.loads((folder / "out.jsonl").read_text().splitlines()[0])
    assert first == {"audio": "a.wav", "text": "Goedemorgen, allemaal."}


def test_columns_of_a_format_without_columns_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="--columns needs a table"):
        open_source(folder, columns=CHOSEN)


@pytest.mark.parametrize(
    ("given", "columns"),
    [
        (["audio=file,text=words"], {"audio": "file", "text": "words"}),
        (["audio=file", "text=words"], {"audio": "file", "text": "words"}),
        (["audio = the file , text= a, b "], {"audio": "the file", "text": "a, b"}),
        ([], {}),
    ],
)
def test_the_option_is_parsed(given: list[str], columns: dict[str, str]) -> None:
    assert parse_columns(given) == columns


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["audio"], "write FIELD=COLUMN"),
        (["tekst=words"], 'Did you mean "text"'),
        (["audio=a", "audio=b"], '"audio" is given twice'),
        (["audio="], "write FIELD=COLUMN"),
        (["=a"], "write FIELD=COLUMN"),
        (["x,audio=a"], "write FIELD=COLUMN"),
    ],
)
def test_a_wrong_option_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_columns(given)


def test_a_guess_needs_values_that_look_right() -> None:
    assert guess_columns([{"id": "1", "n": 3}]) == {}
    assert guess_columns([{"id": "abc", "clip": "x/y.flac", "said": "three little words"}]) == {
        "audio": "clip",
        "text": "said",
    }


def write_recording(path: Path, seconds: float) -> Path:
    soundfile.write(path, np.zeros(round(8000 * seconds)), 8000)
    return path


def test_one_recording_is_called_that_and_never_taken_for_text(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"interview\.flac is one recording \(2\.0 minutes\).*Cut it at pauses"
    ):
        open_source(write_recording(tmp_path / "interview.flac", 120))
    with pytest.raises(UserError, match=r"is one recording \(3\.0 s\).*Write its words to hello\.txt"):
        open_source(write_recording(tmp_path / "hello.wav", 3))
    (tmp_path / "broken.mp3").write_bytes(b"\0\0")
    with pytest.raises(UserError, match=r"broken\.mp3 is one recording, but rows are needed"):
        open_source(tmp_path / "broken.mp3")


def test_recordings_without_words_are_counted(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_recording(tmp_path / f"{name}.wav", 1)
    with pytest.raises(
        UserError, match=r"has 3 recordings, but no words of any\. Each recording needs its words"
    ):
        open_source(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.lab").write_text("one")
    with pytest.raises(UserError, match=r"the 2 \.lab files of the same names cannot be"):
        open_source(tmp_path)


def test_a_folder_with_a_table_says_to_give_the_table(tmp_path: Path) -> None:
    write_recording(tmp_path / "a.wav", 1)
    (tmp_path / "rows.csv").write_text("audio,text\na.wav,one\n")
    with pytest.raises(UserError, match=r"contains rows\.csv\. Give the path of that file"):
        open_source(tmp_path)


def test_an_empty_folder_is_said_to_have_no_recordings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no recordings"):
        open_source(tmp_path)
