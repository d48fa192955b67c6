"""A recipe that is damaged, hostile or could be read in two ways gives one message at once, and YAML is YAML 1.2."""

import os
import string
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_trainer.errors import RecipeError
from higgs_trainer.limits import RECIPE_BYTES, RECIPE_PROBLEMS_SHOWN
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.recipe.schema import AdapterRecipe
from higgs_trainer.recipe.yaml_file import WrongYAML, parse_yaml, read_yaml, write_yaml

SHORTEST = """model: {name_or_path: a/b}
data: {train: prepared}
training: {output_dir: runs/a}
"""


def refuse(folder: Path, text: str | bytes, *overrides: str) -> str:
    """Read a recipe that must be refused. Return the message."""
    path = folder / "r.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, overrides)
    message = str(caught.value)
    assert len(message) < 20_000
    return message.replace(str(path), "r.yaml")


READ_AS = {
    "010": 10,
    "0o10": 8,
    "0x1f": 31,
    "-7": -7,
    "+1e3": 1000.0,
    ".5": 0.5,
    "1_000": "1_000",
    "1_000.5": "1_000.5",
    "1:30": "1:30",
    "0b11": "0b11",
    "yes": "yes",
    "on": "on",
    "Y": "Y",
    "NO": "NO",
    "True": True,
    "~": None,
    "null": None,
    "=": "=",
    "2026-01-01": "2026-01-01",
    "2026-13-45": "2026-13-45",
    "2026-01-01 25:61:61": "2026-01-01 25:61:61",
    "!!str 010": "010",
    "'010'": "010",
    "١٢": "١٢",
}


@pytest.mark.parametrize(("written", "value"), READ_AS.items(), ids=READ_AS)
def test_scalars_are_read_by_the_core_schema_of_yaml_1_2(written: str, value: Any) -> None:
    read = parse_yaml(f"a: {written}")["a"]
    assert (read, type(read)) == (value, type(value))


def make_bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


def make_doubling_lists(levels: int) -> str:
    return "a: [&a0 [x], " + ", ".join(f"&a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, levels)) + "]"


HOSTILE = {
    "billion laughs": (make_bomb(12), "more than 10,000 values"),
    "billion laughs in a list": (make_doubling_lists(40), "more than 10,000 values"),
    "an alias in itself": ("a: &a [*a]", "r.yaml:1: the alias *a stands for nothing before it"),
    "an alias of nothing": ("a: *b", "r.yaml:1: the alias *b stands for nothing before it"),
    "30,000 unknown keys": ("".join(f"key{i}: 1\n" for i in range(30_000)), "more than 10,000 values"),
    "5,000 unknown keys": ("".join(f"key{i}: 1\n" for i in range(5_000)), "more problems"),
    "5,000 unknown arguments": (
        SHORTEST.replace("runs/a", "runs/a, " + ", ".join(f"key{i}: 1" for i in range(5_000))),
        "more problems",
    ),
    "deep brackets": ("a: " + "[" * 100_000, "nested more than"),
    "deep braces": ("{a: " * 20_000, "nested more than"),
    "deep indents": ("\n".join(" " * i + "a:" for i in range(1000)), "nested more than"),
    "a tall block of dashes": ("- " * 20_000, "nested more than"),
    "an integer of 5,000 digits": ("a: 1\nb: " + "9" * 5_000, "r.yaml:2: a number has 5000 characters"),
    "a long hexadecimal integer": ("a: 0x" + "f" * 5_000, "r.yaml:1: a number has 5002 characters"),
    "a long float": ("a: 0." + "3" * 5_000, "r.yaml:1: a number has 5002 characters"),
    "a long key": ("? " + "k" * 200_000 + "\n: 1", "(200000 characters)"),
    "a key twice": ("a: 1\nb: 2\na: 1", 'r.yaml:3: "a" is given twice'),
    "a key twice in quotes": ("a: 1\n'a': 2", 'r.yaml:2: "a" is given twice'),
    "a nested key twice": ("a: {b: [{c: 1, c: 2}]}", 'r.yaml:1: "c" is given twice'),
    "a key twice in an alias": ("a: &a {b: 1, b: 2}\nc: *a", 'r.yaml:1: "b" is given twice'),
    "a merge key": ("a: &a {b: 1}\nc: {<<: *a, b: 2}", "r.yaml:2: the merge key <<"),
    "a tag": ("a: !!timestamp 2026-13-45", "r.yaml:1: the tag tag:yaml.org,2002:timestamp is refused"),
    "an integer tag": ("a: !!int x", "is refused"),
    "a set": ("a: !!set {b}", "is refused"),
    "two documents": ("a: 1\n---\na: 2", "r.yaml:2: a second document begins"),
    "a list as a key": ("? [a]\n: 1", "r.yaml:1: a key is not text"),
    "a directive of YAML 3": ("%YAML 3.0\n---\na: 1", "Correct"),
    "too many bytes": ("#" * (RECIPE_BYTES + 1), "r.yaml has more than 1,000,000 bytes"),
    "NUL bytes": (SHORTEST + "\0", "contains NUL bytes"),
    "UTF-16": (SHORTEST.encode("utf-16"), "is not UTF-8"),
    "UTF-16 without a mark": (SHORTEST.encode("utf-16-le"), "contains NUL bytes"),
    "Latin-1": (b"a: \xe9", "is not UTF-8"),
    "a control character": ("a: \x07", "r.yaml"),
    "half a surrogate pair": (b"a: \xed\xa0\xbd", "is not UTF-8"),
    "a tab as an indent": ("a:\n\tb: 1", "r.yaml:2"),
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_recipe_is_refused_with_its_place(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in refuse(tmp_path, text)


@pytest.mark.parametrize("text", ["model: [", make_bomb(12), "9" * 5_000, "!!int x", "<<: 1", "\0"])
def test_a_hostile_override_is_text_for_its_field(tmp_path: Path, text: str) -> None:
    assert refuse(tmp_path, SHORTEST, "--seed", text).startswith("command line: training.seed: is '")


@pytest.mark.parametrize("line_end", ["\r\n", "\r", "\n"])
def test_a_byte_order_mark_and_line_ends_of_any_kind_are_read(tmp_path: Path, line_end: str) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + SHORTEST.replace("\n", line_end).encode())
    assert read_recipe(tmp_path / "r.yaml").model.name_or_path == "a/b"


def make_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 * 2**30)


NOT_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (Path.mkdir, "is a folder, not a file"),
    "a pipe": (os.mkfifo, "is a pipe, not a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
    "5 GB": (make_large, "has more than 1,000,000 bytes"),
    "nothing": (lambda path: None, "No such file or directory"),
    "a loop of links": (lambda path: path.symlink_to(path.name), "cannot be read"),
}


@pytest.mark.parametrize(("make", "message"), NOT_FILES.values(), ids=NOT_FILES)
def test_only_a_small_regular_file_is_opened(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match=message):
        read_recipe(tmp_path / "r.yaml")


def test_an_alias_is_a_copy_with_the_lines_of_what_it_stands_for(tmp_path: Path) -> None:
    text = SHORTEST + "samples:\n  texts: &t\n    - one\n    - 2\nadapter: {modules_to_save: *t}\n"
    assert refuse(tmp_path, text).split("\n  ") == [
        "r.yaml:7: adapter.modules_to_save.1: is 2. Write text (put it in quotes).",
        "r.yaml:7: samples.texts.1: is 2. Write text (put it in quotes).",
    ]
    shared = parse_yaml("{a: &a {b: 1}, c: *a}")
    shared["a"]["b"] = 2
    assert shared["c"] == {"b": 1}


OUT_OF_RANGE = {
    "training.seed": ("4294967296", "Write a number of at most 4294967295."),
    "training.data_seed": ("-1", "Write a number of at least 0."),
    "training.max_steps": ("99999999999", "Write a number of at most 2147483647."),
    "training.num_train_epochs": ("1e300", "Write a number of at most 1e+06."),
    "training.dataloader_num_workers": ("100000", "Write a number of at most 1024."),
    "training.adam_beta2": ("1", "Write a number below 1."),
    "training.learning_rate": ("1e999", "is inf. Write a number."),
    "training.dataloader_prefetch_factor": ("99999999999", "has the number 99999999999."),
    "training.lr_scheduler_kwargs": ("{min_lr: .nan}", "has the number nan."),
    "adapter.r": ("99999", "Write a number of at most 16384."),
    "adapter.rank_pattern": ("{q_proj: 0}", "Write a number of at least 1."),
    "data.tokens_per_pack": ("1e30", "Write a number of at most 2147483647."),
    "data.code_noise": ("1.5", "Write a number of at most 1."),
    "samples.max_seconds": ("1e300", "Write a number of at most 3600."),
}


@pytest.mark.parametrize(("field", "value", "message"), [(f, *v) for f, v in OUT_OF_RANGE.items()])
def test_a_number_out_of_range_is_refused(tmp_path: Path, field: str, value: str, message: str) -> None:
    found = refuse(tmp_path, SHORTEST, f"--{field}", value)
    assert found.startswith(f"command line: {field}")
    assert found.endswith(message) or message in found


TWICE = {
    "the same value": ["--seed", "1", "--seed", "1"],
    "another value": ["--learning_rate", "1", "--learning_rate=2"],
    "two spellings": ["--learning-rate", "1", "--learning_rate", "2"],
    "name and path": ["--seed", "1", "--training.seed", "2"],
    "a section and its field": ["--adapter", "{r: 4, lora_alpha: 9}", "--adapter.r", "5"],
    "a field and its section": ["--adapter.r", "5", "--adapter", "{lora_alpha: 9}"],
    "a switch": ["--bf16", "--bf16", "false"],
}


@pytest.mark.parametrize("overrides", TWICE.values(), ids=TWICE)
def test_a_field_is_overridden_once(tmp_path: Path, overrides: list[str]) -> None:
    found = refuse(tmp_path, SHORTEST, *overrides)
    assert "is given twice" in found or "set the same section" in found


def test_fields_of_a_dropped_section_are_all_kept(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(SHORTEST + "adapter: {use_dora: true}")
    overrides = ["--adapter", "null", "--adapter.r", "5", "--adapter.lora_alpha", "9"]
    assert read_recipe(tmp_path / "r.yaml", overrides).adapter == AdapterRecipe(r=5, lora_alpha=9)


def test_a_folder_under_two_names_is_given_twice(tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    (tmp_path / "link").symlink_to("prepared")
    found = refuse(tmp_path, SHORTEST.replace("train: prepared", "train: [prepared, link]"))
    assert "2 times. Name it once, with a weight." in found


def test_an_argument_is_given_once_under_either_name(tmp_path: Path) -> None:
    text = SHORTEST.replace("runs/a", "runs/a, torch_compile: false, extra_arguments: {torch_compile: true}")
    assert "torch_compile: is given under extra_arguments too. Keep one of them." in refuse(tmp_path, text)


def test_a_message_lists_the_first_problems(tmp_path: Path) -> None:
    found = refuse(tmp_path, SHORTEST + "".join(f"key{i}: 1\n" for i in range(50))).split("\n  ")
    assert len(found) == RECIPE_PROBLEMS_SHOWN + 1
    assert found[0].startswith("r.yaml:4: key0: no such section.")
    assert found[-1] == f"... and {50 - RECIPE_PROBLEMS_SHOWN} more problems"


texts = st.text("0123456789.-+_:eExXoObnaNifIF~<=!&*#'\"{}[] yYtT\n\t\\é", max_size=8) | st.text(
    string.printable, max_size=8
)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)


@given(st.dictionaries(texts, values, max_size=4))
@settings(deadline=None, max_examples=200)
def test_whatever_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, sections: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    write_yaml(sections, path)
    assert read_yaml(path) == sections


@given(st.text("abk:&*!<>{}[]-?|,#'\"%@` \n\t0~", max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_text_is_yaml_or_refused(text: str) -> None:
    with suppress(WrongYAML):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ('{texts: [good, "a <|eot_id|> b"]}', 'samples.texts.1: contains the special token "<|eot_id|>"'),
        ('{texts: ["[speaker 1] hello"]}', 'samples.texts.0: contains "[speaker 1]"'),
        (f"{{texts: [{'a' * 20_001}]}}", "samples.texts.0: has 20001 characters"),
        ('{texts: ["..."]}', "samples.texts.0: contains no word. Write what is said"),
        ('{ref_audio: a.wav, ref_text: "<|x|>"}', 'samples.ref_text: contains the special token "<|x|>"'),
    ],
)
def test_a_text_that_cannot_be_spoken_is_named_when_the_recipe_is_read(tmp_path, samples, message):
    path = tmp_path / "r.yaml"
    path.write_text(SHORTEST + f"samples: {samples}\n")
    with pytest.raises(RecipeError) as raised:
        read_recipe(path)
    assert message in str(raised.value)
