"""Many rows with one mistake are one line of a message, with a count and three examples."""

from collections.abc import Iterator
from pathlib import Path

from higgs_trainer.errors import ManifestError, Problem, count_noun

ROWS = Path("rows.jsonl")


def repeat(count: int, what: str = '"text" is missing', what_to_do: str = "Add it.") -> Iterator[Problem]:
    return (Problem(ROWS, line, what, what_to_do) for line in range(1, count + 1))


def list_lines(error: ManifestError) -> list[str]:
    return str(error).split("\n")


def test_few_problems_are_listed_one_by_one_in_their_order() -> None:
    problems = [*repeat(2), Problem(ROWS, 3, "the line is not JSON", "Correct it."), *repeat(1)]
    assert list_lines(ManifestError(problems)) == [
        "4 problems in the data. Nothing was written.",
        '  rows.jsonl:1: "text" is missing. Add it.',
        '  rows.jsonl:2: "text" is missing. Add it.',
        "  rows.jsonl:3: the line is not JSON. Correct it.",
        '  rows.jsonl:1: "text" is missing. Add it.',
    ]


def test_five_thousand_rows_with_one_mistake_are_one_line() -> None:
    error = ManifestError(repeat(5000))
    assert list_lines(error) == [
        "5,000 problems in the data. Nothing was written.",
        '  5,000 rows: "text" is missing. Add it. For example rows.jsonl:1, rows.jsonl:2, rows.jsonl:3.',
    ]
    assert len(error.problems) == 1000


def test_each_kind_has_a_line_and_rare_ones_are_not_lost_among_many() -> None:
    rare = Problem(ROWS, 7000, "the line is not JSON", "Correct it.")
    lines = list_lines(ManifestError([*repeat(5000), rare, *repeat(20, 'unknown field "tekst"')]))
    assert lines == [
        "5,021 problems in the data. Nothing was written.",
        '  5,000 rows: "text" is missing. Add it. For example rows.jsonl:1, rows.jsonl:2, rows.jsonl:3.',
        "  rows.jsonl:7000: the line is not JSON. Correct it.",
        '  20 rows: unknown field "tekst". Add it. For example rows.jsonl:1, rows.jsonl:2, rows.jsonl:3.',
    ]


def test_problems_that_differ_in_names_and_numbers_are_one_kind_with_examples() -> None:
    missing = '"audio" does not exist'
    problems = [
        Problem(ROWS, line, f"{missing}: {line}.wav", "Correct the path.", missing) for line in range(1, 21)
    ]
    assert list_lines(ManifestError(problems))[1:] == [
        '  20 rows: "audio" does not exist. Correct the path. For example:',
        '   - rows.jsonl:1: "audio" does not exist: 1.wav',
        '   - rows.jsonl:2: "audio" does not exist: 2.wav',
        '   - rows.jsonl:3: "audio" does not exist: 3.wav',
    ]
    columns = [Problem(ROWS, line, f"the line has {line} columns, not 2", "Remove.") for line in range(3, 30)]
    assert "27 rows: the line has N columns, not N. Remove." in str(ManifestError(columns))


def test_remedies_that_differ_are_kept() -> None:
    problems = [
        Problem(Path(f"{name}.wav"), 0, "the recording has no text file", f"Write its words to {name}.txt.")
        for name in "abcdefghijklmnop"
    ]
    assert list_lines(ManifestError(problems))[1:3] == [
        "  16 rows: the recording has no text file. For example:",
        "   - a.wav: the recording has no text file. Write its words to a.txt.",
    ]


def test_hundreds_of_kinds_are_cut_and_counted() -> None:
    kinds = "".join(chr(ord("a") + i) for i in range(26))
    problems = [Problem(ROWS, 1, f'unknown field "{a}{b}"', "Leave it out.") for a in kinds for b in kinds]
    lines = list_lines(ManifestError(problems))
    assert len(lines) == 62
    assert lines[-1] == "  ... and 616 more"


def test_a_page_that_was_written_is_named() -> None:
    message = str(ManifestError(repeat(1), page=Path("page.html")))
    assert "No dataset was written. The page about the data is page.html." in message
    assert "Nothing was written" not in message


def test_a_count_has_its_noun() -> None:
    assert [count_noun(1, "word"), count_noun(2, "word"), count_noun(5000, "entry", "entries")] == [
        "1 word",
        "2 words",
        "5,000 entries",
    ]
