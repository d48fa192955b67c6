"""Any row of any format is read, or refused with a message; it never causes a traceback."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_trainer.errors import UserError
from higgs_trainer.manifest.formats import open_source
from higgs_trainer.manifest.rows import check_rows

ODD_TEXTS = (
    "",
    " ",
    "a.wav",
    "../a.wav",
    "/",
    "\0",
    "x" * 5000,
    "[SPEAKER0]",
    "<audio>",
    "<|eot_id|>",
    "\ud800",
)
odd_texts = st.sampled_from(ODD_TEXTS)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-2, 9), st.floats(), odd_texts, st.text(max_size=5))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=2)
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": odd_texts}
)
clips = st.fixed_dictionaries({}, optional=dict.fromkeys(("audio", "text", "language"), scalars))
speakers = st.fixed_dictionaries({}, optional=dict.fromkeys(("speaker_tag", "ref_audio_file", "x"), scalars))
PARTS = {"messages": messages, "references": clips, "turns": clips, "ref_speakers": speakers}

KEYS = {
    "m.jsonl": "audio text speaker language scene task ref_audio ref_text references turns reward",
    "swift.jsonl": "messages audios speaker scene",
    "metadata.json": "audio_file transcript_file ref_audio_file ref_transcript ref_speakers scene task_type",
    "metadata.jsonl": "file_name text speaker",
}


def draw_rows(name: str) -> st.SearchStrategy[list[dict[str, object]]]:
    fields = {
        key: values | st.lists(PARTS[key], max_size=3) if key in PARTS else values
        for key in KEYS[name].split()
    }
    return st.lists(st.fixed_dictionaries({}, optional=fields), min_size=1, max_size=3)


@pytest.mark.parametrize("name", KEYS)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_no_row_causes_a_traceback(name: str, data: st.DataObject) -> None:
    rows = data.draw(draw_rows(name))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.wav").touch()
        path = Path(folder, name)
        lines = [json.dumps(row) for row in rows]
        path.write_text(json.dumps({"samples": rows}) if name == "metadata.json" else "\n".join(lines))
        check(path)


def check(path: Path) -> None:
    try:
        checked = list(check_rows(open_source(path)))
    except UserError:
        # In no known format, or without text.
        return
    for row in checked:
        assert (row.utterance is None) == bool(row.problems)
        assert all(problem.what and problem.what_to_do for problem in row.problems)


FIRST_LINES = ("audio,text", "audio|text", "audio\ttext", "a.wav,x", "a.wav|x", "id|text")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), st.sampled_from(FIRST_LINES))
@settings(deadline=None, max_examples=100)
def test_no_line_of_a_table_causes_a_traceback(text: str, first_line: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.wav").touch()
        Path(folder, "wavs").mkdir()
        path = Path(folder, "metadata.csv")
        path.write_text(f"{first_line}\n{text}\n", encoding="utf-8", newline="")
        check(path)
