"""Cleaning of transcripts: what changes, what stays, what is reported, and the rules of each language."""

import json
import sys
from pathlib import Path

import pytest

from higgs_trainer.cli import main
from higgs_trainer.errors import ManifestError, UserError
from higgs_trainer.manifest.numbers import LARGEST, Language, expand_numbers, find_language
from higgs_trainer.manifest.row_checker import RowRules
from higgs_trainer.manifest.rows import read_rows
from higgs_trainer.manifest.text import TextRules, clean_text, read_tags

PLAIN = TextRules()
WITH_NUMBERS = TextRules(expand_numbers=True)

CHANGED = {
    "composed": ("e\u0301t\u00e9", "\u00e9t\u00e9", ("unicode",)),
    "Hangul": ("\u1112\u1161\u11ab", "\ud55c", ("unicode",)),
    "spaces": (" a\t b\u00a0\u3000c ", "a b c", ("white space",)),
    "lines": (
        "[SPEAKER0] a\r\n\r\n [SPEAKER1]  b\u2028c\n",
        "[SPEAKER0] a\n[SPEAKER1] b\nc",
        ("white space",),
    ),
    "both": ("e\u0301  x", "\u00e9 x", ("unicode", "white space")),
}
UNCHANGED = (
    "Dr. Who paid $5 at 10:30, didn't he? “Yes” — 3½…",
    "你好，世界。“好”！（笑）",  # full-width signs stay full-width
    "<SE>[Laughter]</SE> [laugh] [music  start] [e\u0301] <SE_s>[Singing]</SE_s>",
    "ﬁne ① 😀 👨\u200d👩\u200d👧 مرحبا",  # no compatibility forms, joiners kept
    "a < b and b > c",
)


@pytest.mark.parametrize(("text", "expected", "changes"), CHANGED.values(), ids=CHANGED)
def test_changes_are_reported(text: str, expected: str, changes: tuple[str, ...]) -> None:
    clean = clean_text(text, PLAIN)
    assert (clean.text, clean.changes) == (expected, changes)
    assert clean_text(clean.text, PLAIN).changes == ()


@pytest.mark.parametrize("text", UNCHANGED)
def test_nothing_else_is_changed(text: str) -> None:
    clean = clean_text(text, PLAIN)
    assert (clean.text, clean.changes) == (text, ())


def test_tags_are_replaced_by_the_table() -> None:
    rules = TextRules(tags={"[laugh]": "<SE>[Laughter]</SE>", "[sing]": ""})
    clean = clean_text("[laugh] ha [laugher] [Laugh]", rules)
    assert (clean.text, clean.changes) == ("<SE>[Laughter]</SE> ha [laugher] [Laugh]", ("tags",))
    assert clean_text("ha", rules).changes == ()


NUMBERS = {
    "en": (
        "In 12 of 1,984 cases (7).",
        "In twelve of one thousand, nine hundred and eighty-four cases (seven).",
    ),
    "de": ("1.984 und 0", "eintausendneunhundertvierundachtzig und null"),
    "de-CH": ("1\u2019984", "eintausendneunhundertvierundachtzig"),
    "fr": ("1 984, 5", "mille neuf cent quatre-vingt-quatre, cinq"),
    "fr_BE": ("70", "septante"),
    "pt-br": ("16", "dezesseis"),
    "pt": ("16", "dezasseis"),
    "en_IN": ("1,00,000", "one lakh"),
    "ja": ("12", "\u5341\u4e8c"),
}


@pytest.mark.parametrize("language", NUMBERS)
def test_numbers_are_read_by_the_rules_of_their_language(language: str) -> None:
    text, expected = NUMBERS[language]
    clean = clean_text(text, WITH_NUMBERS, find_language(language))
    assert (clean.text, clean.changes) == (expected, ("numbers",))


LEFT = {
    "en": "1.984 3.5 -5 3rd 5% $5 10:30 2026-11-23 A4 1/2 007 1 2 12,34 1 984 \u0661\u0662 " + str(LARGEST),
    "de": "1,984 3,5 1.98",
    "it": "3,5",  # num2words says "tre"
    "vi": "-5",  # num2words says "fifteen"
    "am": "1984",  # num2words fails
    "de_CH": "1.984",
}


@pytest.mark.parametrize("language", LEFT)
def test_ambiguous_digits_stay_and_are_counted(language: str) -> None:
    text = LEFT[language]
    clean = clean_text(text, WITH_NUMBERS, find_language(language))
    assert (clean.text, clean.changes) == (text, ("digits left",))


def test_digits_in_tags_are_not_numbers() -> None:
    english = Language("en", "en")
    clean = clean_text("[SPEAKER0] 2 <pause 300> [3]", WITH_NUMBERS, english)
    assert (clean.text, clean.changes) == ("[SPEAKER0] two <pause 300> [3]", ("numbers",))
    assert expand_numbers("5, 6 and 7.", english) == "five, six and seven."


@pytest.mark.parametrize("name", [None, "", "xx", "English", "zh"])
def test_no_language_is_guessed(name: str | None) -> None:
    assert find_language(name) is None
    with pytest.raises(ValueError, match="without a language"):
        clean_text("5", WITH_NUMBERS, None)


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "num2words", None)
    find_language.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'higgs-trainer\[numbers\]'"):
        find_language("en")


def test_each_text_of_a_manifest_has_its_own_language(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.wav").write_text(name)
    clips = [{"audio": "b.wav", "text": "7"}, {"audio": "c.wav", "text": "7", "language": "fr"}]
    row = {"audio": "a.wav", "text": "7", "language": "de", "turns": clips}
    write(tmp_path, row)
    (utterance,) = read_rows(tmp_path / "m.jsonl", RowRules(text_rules=WITH_NUMBERS))
    assert [utterance.text, *(clip.text for clip in utterance.turns)] == ["sieben", "sieben", "sept"]
    assert utterance.text_changes == ("numbers",)
    (utterance,) = read_rows(tmp_path / "m.jsonl")
    assert (utterance.text, utterance.text_changes) == ("7", ())
    nowhere, unknown = {"audio": "a.wav", "text": "7"}, {"audio": "a.wav", "text": "x", "language": "tlh"}
    write(tmp_path, row, nowhere, unknown)
    with pytest.raises(ManifestError) as caught:
        read_rows(tmp_path / "m.jsonl", RowRules(text_rules=WITH_NUMBERS))
    assert [(problem.line, problem.what) for problem in caught.value.problems] == [
        (2, '"text" has no "language", which --expand-numbers needs'),
        (3, '--expand-numbers does not support the language "tlh" of "text"'),
    ]


def write(folder: Path, *rows: dict[str, object]) -> None:
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))


BAD_TABLES = {
    "no file": (None, "tags.json cannot be read"),
    "no JSON": ("[laugh]", "cannot be read as a table of tags"),
    "a list": ("[]", "is not a table of tags"),
    "no tag": ('{"laugh": "x"}', '"laugh" is not a tag'),
    "no text": ('{"[laugh]": 1}', "Write a string without special tokens"),
    "a special token": ('{"[laugh]": "<|eot_id|>"}', "Write a string without special tokens"),
    "a tag twice": ('{"[laugh]": "x", "[laugh]": "y"}', "is given 2 times"),
    "deep brackets": ("[" * 100_000, "cannot be read as a table of tags"),
    "2 MB": (" " * 2_000_000, "has more than 1,000,000 bytes"),
}


JOINED = {
    "a special token": ("two [x]eot_id|>", {"[x]": "<|"}, 'contains the special token "<|eot_id|>"'),
    "a speaker": ("[x] two", {"[x]": "[SPEAKER200]"}, 'contains "[SPEAKER200]"'),
    "too long a text": ("two [x]", {"[x]": "y" * 30_000}, "has 30004 characters, more than 20000"),
    "no words": ("[x]", {"[x]": "..."}, "contains no word"),
}


@pytest.mark.parametrize(("text", "tags", "problem"), JOINED.values(), ids=JOINED)
def test_what_the_tags_make_of_a_text_is_checked(
    tmp_path: Path, text: str, tags: dict[str, str], problem: str
) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"text": text}))
    with pytest.raises(ManifestError) as caught:
        read_rows(tmp_path / "m.jsonl", RowRules(audio_required=False, text_rules=TextRules(tags=tags)))
    (found,) = caught.value.problems
    assert (found.line, found.what) == (1, f'"text" {problem} after it was cleaned')


@pytest.mark.parametrize(("text", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_table_of_tags_with_a_mistake_is_an_error(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "tags.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_tags(tmp_path / "tags.json")
    command = ["prepare", "m.jsonl", "-o", str(tmp_path / "out"), "--codec", "embedded"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--tags", str(tmp_path / "tags.json")])
    assert stopped.value.code == 2


def test_the_table_in_the_docs_is_valid(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[3] / "docs" / "texts.md").read_text(encoding="utf-8")
    table = docs[docs.index("    {") : docs.index("}\n", docs.index("    {")) + 1]
    (tmp_path / "tags.json").write_text(table)
    assert (
        clean_text("[laugh]", TextRules(tags=read_tags(tmp_path / "tags.json"))).text == "<SE>[Laughter]</SE>"
    )
