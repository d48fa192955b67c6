"""A language may be given by its code or by its English name."""

import json
from pathlib import Path

import pytest

from higgs_trainer.manifest.languages import find_code, find_plain_code
from higgs_trainer.manifest.row_checker import RowRules
from higgs_trainer.manifest.rows import read_rows
from higgs_trainer.manifest.text import TextRules


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nl", "nl"),
        ("pt_BR", "pt_BR"),
        ("zh-Hant-TW", "zh-Hant-TW"),
        ("Dutch", "nl"),
        (" czech ", "cs"),
        ("ENGLISH", "en"),
        ("Klingonese", "Klingonese"),
    ],
)
def test_names_become_codes_and_codes_stay(name: str, code: str) -> None:
    assert find_code(name) == code


def test_a_plain_code_has_no_region() -> None:
    assert [
        find_plain_code(name) for name in ("nl-BE", "PT_br", " English ", "zh-Hant-TW")
    ] == "nl pt en zh".split()


def test_a_row_with_the_name_of_a_language_is_accepted(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        (tmp_path / name).write_text(name)
    clip = {"audio": "b.wav", "text": "Dat zijn 2 vissen.", "language": "dutch"}
    row = {"audio": "a.wav", "text": "Ten eerste, 3 vissen.", "language": "Dutch", "references": [clip]}
    other = {"audio": "c.wav", "text": "Een", "language": "nl"}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")
    first, second = read_rows(tmp_path / "rows.jsonl", RowRules(text_rules=TextRules(expand_numbers=True)))
    assert (first.language, first.text) == ("nl", "Ten eerste, drie vissen.")
    assert first.references[0].text == "Dat zijn twee vissen."
    assert first.text_changes == ("language", "numbers")
    assert second.text_changes == ()
