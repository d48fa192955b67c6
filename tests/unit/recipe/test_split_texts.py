"""A sentence with a comma in a YAML list without quotes is two texts. That is said, not spoken."""

from pathlib import Path

import pytest

from higgs_trainer.errors import RecipeError
from higgs_trainer.recipe.reading import read_recipe

RECIPE = """model: {{name_or_path: ./base}}
data: {{train: prepared}}
training: {{output_dir: out}}
samples:
  max_seconds: 3.0
  texts: {texts}
"""


def read(folder: Path, texts: str, *overrides: str) -> tuple[str, ...]:
    (folder / "recipe.yaml").write_text(RECIPE.format(texts=texts), encoding="utf-8")
    return read_recipe(folder / "recipe.yaml", overrides).samples.texts


SPLIT = "[Goedemorgen, dit is mijn nieuwe stem.]"


@pytest.mark.parametrize(
    "texts",
    [
        SPLIT,
        "[Good morning, how are you]",
        "[if it rains, we stay.]",
        "\n    [One., Two, and three.]",
        "['Quoted.', One, and two.]",
    ],
)
def test_a_sentence_that_was_split_is_an_error_with_its_line(tmp_path: Path, texts: str) -> None:
    with pytest.raises(
        RecipeError, match=r"recipe\.yaml:[67]: samples\.texts\.\d: .* looks like the rest of"
    ):
        read(tmp_path, texts)


@pytest.mark.parametrize(
    "texts",
    [
        "[eight one five, seven two]",
        "[Good morning., How are you?]",
        "[Good morning, How are you]",
        '["Goedemorgen", "dit is mijn nieuwe stem."]',
        "\n    - Goedemorgen\n    - dit is mijn nieuwe stem.",
        '["Goedemorgen, dit is mijn nieuwe stem."]',
        "[]",
    ],
)
def test_other_lists_are_read_as_they_are(tmp_path: Path, texts: str) -> None:
    read(tmp_path, texts)


def test_the_command_line_is_held_to_the_same_and_replaces_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, SPLIT, "--texts", "[Hoi.]") == ("Hoi.",)
    with pytest.raises(
        RecipeError, match=r"command line: samples\.texts\.1: \"dit is.\" looks like the rest"
    ):
        read(tmp_path, "[]", "--texts", "[Goedemorgen, dit is.]")
