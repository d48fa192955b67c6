"""Each format is detected by its content, and gives the rows that our own format would give."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Audio, Dataset, DatasetDict, Features, Value

from higgs_trainer.errors import ManifestError, UserError
from higgs_trainer.manifest.formats import FORMATS, open_source
from higgs_trainer.manifest.rows import check_rows, read_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create `data/` with files in place of recordings; each contains its own name."""
    for name in ("a.wav", "b.wav", "ref.wav", "wavs/LJ-1.wav", "wavs/LJ-2.wav"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "data"


def write_json_lines(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> tuple[str, list[dict[str, object]]]:
    """Return the name of the format and the fields of all rows, after checking that no row has a problem."""
    source = open_source(path)
    rows = list(source)
    assert [row.problems for row in rows] == [()] * len(rows)
    return source.format_name, [row.fields for row in rows if row.fields is not None]


def find_problems(path: Path) -> list[tuple[str, int, str]]:
    """(file, line, what) of every problem."""
    with pytest.raises(ManifestError) as caught:
        read_rows(path)
    return [(problem.file.name, problem.line, problem.what) for problem in caught.value.problems]


AB = [{"audio": "a.wav", "text": "one"}, {"audio": "b.wav", "text": 'say "two"'}]


def test_json_lines(folder: Path) -> None:
    write_json_lines(folder / "m.jsonl", *AB)
    assert read(folder / "m.jsonl") == ("JSON lines", AB)


TABLES = {
    "CSV": 'audio,text\na.wav,one\nb.wav,"say ""two"""\n',
    "CSV with semicolons": 'audio;text\na.wav;one\nb.wav;"say ""two"""\n',
    "CSV without names": 'a.wav,one\nb.wav,"say ""two"""\n',
    "CSV of Windows": '\ufeffAudio,Text\r\na.wav,one\r\n\r\nb.wav,"say ""two"""\r\n',
    "TSV": 'path\tsentence\na.wav\tone\nb.wav\tsay "two"\n',
    "TSV without names": 'a.wav\tone\nb.wav\tsay "two"\n',
    "bars": 'text|audio\none|a.wav\nsay "two"|b.wav\n',
    "bars without names": 'a.wav|one\nb.wav|say "two"\n',
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("table", TABLES)
def test_tables(folder: Path, table: str, encoding: str) -> None:
    text = TABLES[table] if encoding == "utf-8" else TABLES[table].removeprefix("\ufeff")
    (folder / "anything").write_text(text, encoding=encoding, newline="")
    assert read(folder / "anything") == ("table", AB)


def test_a_table_with_absolute_paths_and_more_columns(folder: Path) -> None:
    text = f"audio_file|text|speaker|age\n{folder}/a.wav|one|s|30\n{folder}/b.wav|two||31\n"
    (folder / "m.txt").write_text(text)
    source = open_source(folder / "m.txt")
    first, second = (row.fields for row in source)
    assert first == {"audio": f"{folder}/a.wav", "text": "one", "speaker": "s"}
    assert second == {"audio": f"{folder}/b.wav", "text": "two"}
    assert source.unused == {"age": 2}
    assert [row.audio for row in read_rows(folder / "m.txt")] == [folder / "a.wav", folder / "b.wav"]


def test_a_text_on_two_lines_of_a_csv(folder: Path) -> None:
    (folder / "m.csv").write_text('audio,text\na.wav,"[SPEAKER0] one\n[SPEAKER1] two"\nb.wav,\n')
    assert find_problems(folder / "m.csv") == [("m.csv", 4, '"text" is empty')]
    (row, _) = open_source(folder / "m.csv")
    assert (row.line, row.fields["text"]) == (2, "[SPEAKER0] one\n[SPEAKER1] two")


BAD_TABLES = {
    "a comma in a text": ("a.wav,one, two\n", 1, "the line has 3 columns, not 2"),
    "a bar in a text": ("audio|text\na.wav|one|two\n", 2, "the line has 3 columns, not 2"),
    "an open quote": ('audio,text\na.wav,one\nb.wav,"two\n', 3, "not CSV (unexpected end of data)"),
    "a reward in words": ("audio,text,reward\na.wav,one,good\n", 2, '"reward" is of type str, not a number'),
}


@pytest.mark.parametrize(("text", "line", "what"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_bad_line_of_a_table(folder: Path, text: str, line: int, what: str) -> None:
    (folder / "m.csv").write_text(text)
    assert find_problems(folder / "m.csv") == [("m.csv", line, what)]


def test_lines_that_are_not_utf_8(folder: Path) -> None:
    for first_line in (b"audio,text", b"audio|text"):
        (folder / "m.csv").write_bytes(first_line + b"\n" + first_line.replace(b"text", b"\xe9") + b"\n")
        ((_, line, what),) = find_problems(folder / "m.csv")
        assert line == 2
        assert what.startswith("the line is not UTF-8 (byte 0xE9 after ")


def test_a_table_of_windows_is_told_how_to_convert_it(folder: Path) -> None:
    (folder / "m.csv").write_bytes("audio;text\na.wav;dobrý večer\nb.wav;děkuji\n".encode("cp1250"))
    with pytest.raises(ManifestError) as raised:
        read_rows(folder / "m.csv")
    assert 'm.csv:2: the line is not UTF-8 (byte 0xFD after "a.wav;dobr")' in str(raised.value)
    assert "iconv -f WINDOWS-1250 -t UTF-8" in str(raised.value)


def test_two_columns_of_one_field_are_an_error(folder: Path) -> None:
    (folder / "m.csv").write_text("path,audio,text\na.wav,b.wav,one\n")
    with pytest.raises(UserError, match=r'm.csv:1: the columns path and audio both mean "audio"'):
        read_rows(folder / "m.csv")


@pytest.mark.parametrize("place", ["metadata.csv", "."])
def test_ljspeech(folder: Path, place: str) -> None:
    (folder / "metadata.csv").write_text('LJ-1|Dr. 1|Doctor "one"\nLJ-2|two\n')
    assert read(folder / place) == (
        "LJSpeech",
        [
            {"audio": "wavs/LJ-1.wav", "text": 'Doctor "one"'},
            {"audio": "wavs/LJ-2.wav", "text": "two"},
        ],
    )
    assert len(read_rows(folder / place)) == 2
    (folder / "metadata.csv").write_text("LJ-1|one\nLJ-2|two|a|b\nLJ-3|three\n")
    assert [(line, what[:20]) for _, line, what in find_problems(folder / place)] == [
        (2, "the line has 4 colum"),
        (3, '"audio" does not exi'),
    ]


def test_a_folder_of_texts(tmp_path: Path) -> None:
    for name, words in {"s/b.FLAC": None, "s/b.txt": "two\n", "a.wav": None, "a.txt": "\ufeffone"}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(words or name, encoding="utf-8")
    (tmp_path / "._a.wav").touch()
    assert read(tmp_path) == (
        "folder of texts",
        [{"audio": "a.wav", "text": "one"}, {"audio": "s/b.FLAC", "text": "two"}],
    )
    assert [row.utterance_id for row in read_rows(tmp_path)] == ["a-00001", "b-00002"]
    (tmp_path / "c.wav").touch()
    (tmp_path / "README.txt").touch()
    assert find_problems(tmp_path) == [
        ("c.wav", 0, "the recording has no text file"),
        ("README.txt", 0, "the text file has no recording"),
    ]


@pytest.mark.parametrize("kind", ["folder", "transcript", "metadata"])
def test_what_cannot_be_read_is_named_and_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Root may read everything, so the system's refusal is simulated."""
    (tmp_path / "locked").mkdir()
    for name in ("a", "locked/b"):
        (tmp_path / f"{name}.wav").touch()
        (tmp_path / f"{name}.txt").write_text("one")
    locked = {"folder": "locked", "transcript": "locked/b.txt", "metadata": "metadata.csv"}[kind]
    scandir, stat, open_file = os.scandir, os.stat, Path.open

    def refuse(path: Any) -> None:
        if str(path) == str(tmp_path / locked):
            raise PermissionError(13, "Permission denied", str(path))

    def guard(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda path, *args, **kwargs: refuse(path) or call(path, *args, **kwargs)

    if kind == "folder":
        monkeypatch.setattr(os, "scandir", guard(scandir))
    elif kind == "transcript":
        monkeypatch.setattr(Path, "open", guard(open_file))
    else:
        monkeypatch.setattr(os, "stat", guard(stat))
    with pytest.raises(UserError, match=rf"{tmp_path}/{locked} cannot be read \(Permission denied\)"):
        read_rows(tmp_path)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    """A linked folder outside the data is a problem of its rows, and is not left out."""
    data, other = tmp_path / "data", tmp_path / "other"
    for folder in (data, other):
        folder.mkdir()
        (folder / "a.wav").touch()
        (folder / "a.txt").write_text("one")
    (data / "again").symlink_to(data)
    assert read(data) == ("folder of texts", [{"audio": "a.wav", "text": "one"}])
    (data / "linked").symlink_to(other)
    assert [(name, "outside" in what) for name, _, what in find_problems(data)] == [("a.txt", True)]


def sample(name: str, **fields: object) -> dict[str, object]:
    return {"id": name, "audio_file": f"{name}.wav", "transcript_file": f"{name}.txt", **fields}


SPEAKERS = [
    {"speaker_tag": "[SPEAKER1]", "speaker_id": "t", "ref_audio_file": "ref.wav", "ref_transcript": "three"},
    {"speaker_tag": "[SPEAKER0]", "speaker_id": "s", "ref_audio_file": "b.wav", "ref_transcript": "two"},
]


def write_samples(folder: Path, *samples: dict[str, object]) -> None:
    (folder / "a.txt").write_text("one\n")
    text = json.dumps({"dataset_info": {"total_samples": 9}, "samples": list(samples)}, indent=2)
    (folder / "metadata.json").write_text(text)


@pytest.mark.parametrize("place", ["metadata.json", "."])
def test_train_higgs_audio(folder: Path, place: str) -> None:
    zero_shot = {
        "ref_audio_file": "ref.wav",
        "ref_transcript": "three",
        "task_type": "zero_shot_voice_cloning",
    }
    write_samples(
        folder,
        sample("a", speaker_id="s", scene="quiet_room", task_type="audio_generation", emotion="neutral"),
        sample("a", language="zh", scene="Rain falls.", **zero_shot),
        sample("a", ref_speakers=SPEAKERS, task_type="multi_speaker_voice_cloning"),
    )
    name, rows = read(folder / place)
    assert name == "train-higgs-audio"
    assert rows == [
        {"audio": "a.wav", "text": "one", "speaker": "s", "scene": "Audio is recorded from quiet room."},
        {
            "audio": "a.wav",
            "text": "one",
            "language": "zh",
            "scene": "Rain falls.",
            "task": "zero_shot_cloning",
            "ref_audio": "ref.wav",
            "ref_text": "three",
        },
        {
            "audio": "a.wav",
            "text": "one",
            "task": "multi_speaker_cloning",
            "references": [
                {"speaker": "s", "audio": "b.wav", "text": "two"},
                {"speaker": "t", "audio": "ref.wav", "text": "three"},
            ],
        },
    ]
    tasks = [row.task for row in read_rows(folder / place)]
    assert tasks == ["single_speaker", "zero_shot_cloning", "multi_speaker_cloning"]
    source = open_source(folder / place)
    list(source)
    assert source.unused == {"id": 3, "emotion": 1}


def test_bad_samples_of_train_higgs_audio(folder: Path) -> None:
    stand_in = {"ref_audio_file": "ref.wav", "ref_transcript": "This is a voice sample for cloning."}
    write_samples(
        folder,
        sample("a", **stand_in),
        sample("a", task_type="zero_shot_voice_cloning"),
        sample("a", task_type="singing"),
        sample("b"),
        sample("a", ref_speakers=SPEAKERS[:1]),
        sample("a") | {"transcript_file": "../outside.txt"},
        sample("a") | {"transcript_file": "x" * 5000},
    )
    (folder.parent / "outside.txt").write_text("secret")
    found = find_problems(folder)
    text = (folder / "metadata.json").read_text().splitlines()
    begins = [number for number, line in enumerate(text, start=1) if line == "    {"]
    assert [line for _, line, _ in found] == begins
    for (_, _, what), expected in zip(
        found,
        (
            "the placeholder of a tool",
            '"ref',
            "unknown task_type 'singing'",
            '"transcript_file" does not exist',
            "['[SPEAKER1]']",
            "outside the folder",
            "does not exist",
        ),
        strict=True,
    ):
        assert expected in what or 'the fields of the row make it "single_speaker"' in what


def test_json_is_read_strictly(folder: Path) -> None:
    write_samples(folder, sample("a"), sample("a", duration=float("nan")))
    metadata = folder / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"id": "a",', '"id": "a", "id": "b",', 1))
    assert [what for _, _, what in find_problems(folder)] == ['"id" is given 2 times', "NaN is not JSON"]
    metadata.write_text(metadata.read_text()[:-20])
    with pytest.raises(UserError, match=r"metadata.json:11: the file is not JSON"):
        read_rows(folder)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CONVERSATIONS = {
    "the words with the recording": ([message("assistant", "<audio>one")], ["a.wav"]),
    "a transcription": (
        [message("user", "<audio>What is said?"), message("assistant", "one")],
        ["a.wav"],
    ),
    "speech to be learned": ([message("user", "one"), message("assistant", "<audio>")], ["a.wav"]),
    "no marks": (
        [message("system", "Speak."), message("user", "Read."), message("assistant", "one")],
        ["a.wav"],
    ),
}


@pytest.mark.parametrize(("messages", "audios"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_ms_swift(folder: Path, messages: object, audios: object) -> None:
    write_json_lines(folder / "m.jsonl", {"messages": messages, "audios": audios, "speaker": "s"})
    assert read(folder / "m.jsonl") == ("ms-swift", [{"audio": "a.wav", "text": "one", "speaker": "s"}])


def test_a_conversation_of_ms_swift(folder: Path) -> None:
    messages = [message("user", "one"), message("assistant", "<audio>")] * 2
    write_json_lines(folder / "m.jsonl", {"messages": messages, "audios": ["b.wav", "a.wav"], "tools": []})
    source = open_source(folder / "m.jsonl")
    (row,) = source
    assert row.fields == {"audio": "a.wav", "text": "one", "turns": [{"audio": "b.wav", "text": "one"}]}
    assert source.unused == {"tools": 1}
    assert read_rows(folder / "m.jsonl")[0].task == "several_turns"


BAD_CONVERSATIONS = {
    "no recording": ([message("assistant", "<audio>one")], [], '"audios" is not a list of paths'),
    "a recording too many": (
        [message("assistant", "<audio>x")],
        ["a.wav", "b.wav"],
        "the messages have 1 <audio>",
    ),
    "from the network": ([message("assistant", "<audio>x")], ["https://x.org/a.wav"], "is not a file"),
    "another kind of message": ([message("tool", "x")], ["a.wav"], "not a list of messages"),
    "two in a turn": ([message("assistant", "<audio><audio>x")], ["a.wav", "b.wav"], "two recordings"),
    "an answer in writing": (
        [message("user", "hi"), message("assistant", "ho"), message("assistant", "<audio>x")],
        ["a.wav"],
        "an answer has no recording",
    ),
    "no answer": ([message("user", "<audio>hi")], ["a.wav"], "a recording has no answer"),
}


@pytest.mark.parametrize(("messages", "audios", "what"), BAD_CONVERSATIONS.values(), ids=BAD_CONVERSATIONS)
def test_a_conversation_that_cannot_be_read(
    folder: Path, messages: object, audios: object, what: str
) -> None:
    good = {"messages": [message("assistant", "<audio>fine")], "audios": ["b.wav"]}
    write_json_lines(folder / "m.jsonl", good, {"messages": messages, "audios": audios})
    ((_, line, found),) = find_problems(folder / "m.jsonl")
    assert line == 2
    assert what in found


def test_qwen3_tts(folder: Path) -> None:
    write_json_lines(
        folder / "m.jsonl",
        {"audio": "./a.wav", "text": "one", "ref_audio": "./b.wav", "audio_codes": [[1]]},
        {"audio": "b.wav", "text": "two", "ref_audio": "./ref.wav"},
    )
    ((_, line, what),) = find_problems(folder / "m.jsonl")
    assert (line, what) == (2, '"ref_audio" is given without "ref_text": ./ref.wav')
    (folder / "ref.txt").write_text("three")
    name, rows = read(folder / "m.jsonl")
    assert name == "Qwen3-TTS"
    assert [row["ref_text"] for row in rows] == ["two", "three"]
    assert [row.task for row in read_rows(folder / "m.jsonl")] == ["zero_shot_cloning"] * 2


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    """Build a dataset of two recordings, stored as bytes, with column names of other tools."""
    cells = [{"path": name, "bytes": (folder / name).read_bytes()} for name in ("a.wav", "b.wav")]
    columns = {"audio": cells, "sentence": ["one", "two"], "locale": ["en", None], "age": [30, 31]}
    stored = {"path": Value("string"), "bytes": Value("binary")}
    features = Features(audio=stored, sentence=Value("string"), locale=Value("string"), age=Value("int32"))
    return Dataset.from_dict(columns, features=features).cast_column("audio", Audio())


def save_splits(dataset: Dataset, path: Path) -> None:
    DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(path)


@pytest.mark.parametrize("kind", ["saved", "splits:train", "files.parquet", "folder"])
def test_hugging_face_datasets(folder: Path, dataset: Dataset, kind: str) -> None:
    dataset.save_to_disk(folder / "saved")
    save_splits(dataset, folder / "splits")
    dataset.to_parquet(folder / "files.parquet")
    dataset.to_parquet(folder / "folder" / "data" / "train-00000.parquet")
    source = open_source(folder / kind, audio_folder=folder.parent / "stored")
    rows = list(source)
    assert source.format_name == "Hugging Face dataset"
    assert [(row.number, row.fields["text"], row.fields.get("language")) for row in rows] == [
        (1, "one", "en"),
        (2, "two", None),
    ]
    assert source.unused == {"age": 2}
    for row, name in zip(rows, ("a", "b"), strict=True):
        path = Path(row.fields["audio"])
        assert (path.parent, path.suffix) == (folder.parent / "stored", ".wav")
        assert path.stem.startswith(f"{name}-")
        assert path.read_bytes() == (folder / f"{name}.wav").read_bytes()
    checked = check_rows(source)  # what lies in the dataset lies within its folder, wherever it is written
    assert [row.problems for row in checked] == [(), ()]


def test_a_hugging_face_dataset_that_cannot_be_read(folder: Path, dataset: Dataset) -> None:
    save_splits(dataset, folder / "splits")
    with pytest.raises(
        UserError, match=r"has the splits train, test. Name one of them, as in .*splits:train"
    ):
        list(open_source(folder / "splits"))
    dataset.remove_columns("sentence").save_to_disk(folder / "wordless")
    with pytest.raises(UserError, match=r"columns audio, locale, age. One must contain recordings"):
        list(open_source(folder / "wordless"))
    cells = {"audio": [{"path": None, "bytes": None}], "text": ["one"]}
    Dataset.from_dict(cells).save_to_disk(folder / "silent")
    (first,) = open_source(folder / "silent")
    assert "neither bytes nor a path" in first.problems[0].what
    dataset.rename_column("audio", "speech").save_to_disk(folder / "renamed")
    rows = list(open_source(folder / "renamed", audio_folder=folder / "stored"))
    assert [Path(row.fields["audio"]).read_text() for row in rows] == ["a.wav", "b.wav"]
    with pytest.raises(UserError, match="not a local file or folder, and cannot be opened as a dataset"):
        list(open_source("no-owner/nothing"))  # a hub name; the hub is not reached in tests


@pytest.mark.parametrize("place", [".", "metadata"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_audio_folders(folder: Path, place: str, ending: str) -> None:
    if ending == "csv":
        (folder / "metadata.csv").write_text("file_name,transcription,age\na.wav,one,30\nb.wav,two,31\n")
    else:
        rows = [
            {"file_name": f"{n}.wav", "transcription": t, "age": 3} for n, t in (("a", "one"), ("b", "two"))
        ]
        write_json_lines(folder / "metadata.jsonl", *rows)
    source = open_source(folder if place == "." else folder / f"metadata.{ending}")
    assert source.format_name == "audio folder"
    assert [row.fields for row in source] == [
        {"audio": "a.wav", "text": "one"},
        {"audio": "b.wav", "text": "two"},
    ]
    assert source.unused == {"age": 2}
    assert len(read_rows(source.path)) == 2


GIVEN_TWICE = {
    "two keys of one field": (
        "metadata.jsonl",
        [{"file_name": "a.wav", "text": "one", "transcription": "two"}],
        [("metadata.jsonl", 1, 'the keys text and transcription both mean "text"')],
    ),
    "two spellings of a key": (
        "metadata.jsonl",
        [{"file_name": "a.wav", "text": "one", "Text": "two"}],
        [("metadata.jsonl", 1, 'the keys text and Text both mean "text"')],
    ),
    "words and messages": (
        "m.jsonl",
        [
            {
                "messages": [{"role": "assistant", "content": "<audio>one"}],
                "audios": ["a.wav"],
                "text": "two",
            }
        ],
        [("m.jsonl", 1, '"text" is given together with "messages"')],
    ),
    "a reference with the words of two rows": (
        "m.jsonl",
        [
            {"audio": "a.wav", "text": "one"},
            {"audio": "a.wav", "text": "two"},
            {"audio": "b.wav", "text": "three", "ref_audio": "a.wav"},
        ],
        [("m.jsonl", 3, "lines 1 and 2 have other words for the reference a.wav")],
    ),
}


@pytest.mark.parametrize(("name", "rows", "problems"), GIVEN_TWICE.values(), ids=GIVEN_TWICE)
def test_a_value_that_is_given_twice_is_an_error(
    folder: Path, name: str, rows: list[dict[str, object]], problems: list[tuple[str, int, str]]
) -> None:
    write_json_lines(folder / name, *rows)
    assert find_problems(folder / name) == problems


@pytest.mark.parametrize("header", ["audio,text,text", "audio,text,Text ", "audio,path,text", "wav|text|wav"])
def test_a_column_that_is_given_twice_is_an_error(folder: Path, header: str) -> None:
    (folder / "m.csv").write_text(f"{header}\na.wav,one,two\n")
    with pytest.raises(UserError, match=r"m\.csv:1: the columns .* both mean"):
        read_rows(folder / "m.csv")


def test_a_table_with_the_line_ends_of_old_macs_is_an_error(folder: Path) -> None:
    (folder / "m.csv").write_bytes(b"audio,text\ra.wav,one\r")
    with pytest.raises(UserError, match=r"m\.csv:1: the line contains a carriage return"):
        read_rows(folder / "m.csv")


@pytest.mark.parametrize("content", ['"' + "x" * 200_000, "a.wav," + "x" * 200_000, "{" * 200_000])
def test_a_long_first_line_is_no_traceback(folder: Path, content: str) -> None:
    (folder / "m.csv").write_text(content)
    with pytest.raises(UserError):
        read_rows(folder / "m.csv")


def test_unknown_formats_are_errors(folder: Path) -> None:
    (folder / "notes").write_text("Dear diary")
    with pytest.raises(UserError, match=r"the format of .* is unknown"):
        open_source(folder / "notes")
    with pytest.raises(UserError, match="No such file"):
        open_source(folder / "nothing.csv")


def test_every_format_has_a_sample_in_the_docs() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "data_formats.md").read_text()
    assert [known.name for known in FORMATS if f"## {known.name}" not in docs] == []
