"""Every shipped recipe can be read, listed and printed."""

from pathlib import Path

import pytest

from higgs_trainer.cli import main
from higgs_trainer.recipe import shipped
from higgs_trainer.recipe.reading import read_recipe

ROOT = Path(__file__).resolve().parents[3]
RECIPES = [
    *ROOT.glob("recipes/*.yaml"),
    *ROOT.glob("packages/higgs-trainer-demo/src/higgs_trainer_demo/recipe*.yaml"),
]


TOKENS_PER_SECOND = 34
"""Of speech, with its text."""
HOURS = {"10 minutes": 1 / 6, "1 hour": 1, "3 hours": 3, "10 hours": 10}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipe_is_read(path: Path) -> None:
    assert read_recipe(path, []).training.output_dir.is_absolute()


SITUATIONS = {
    "single_speaker",
    "several_speakers",
    "new_language",
    "zero_shot_cloning",
    "full_fine_tuning",
    "full_fine_tuning_sharded",
}


def test_every_recipe_for_the_released_checkpoint_says_what_it_needs_and_that_it_was_not_run() -> None:
    for name in SITUATIONS:
        text = (ROOT / "recipes" / f"{name}.yaml").read_text()
        title = text.splitlines()[0]
        assert "GPU with" in title or "GPUs with" in title, name
        assert "GB are predicted" in title, name
        assert "NOT RUN AT FULL SIZE" in text, name
        assert f"init my_voice --recipe {name} " in text, name


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the table in the comments of a recipe: a row for each amount of speech."""
    rows = [
        line.strip("#| \n").split("|") for line in path.read_text().splitlines() if line.startswith("#   |")
    ]
    names, *values = [[cell.strip() for cell in row] for row in rows]
    return [dict(zip(names, row, strict=True)) for row in values]


def test_the_values_for_other_amounts_of_speech_can_be_set() -> None:
    path = ROOT / "recipes" / "single_speaker.yaml"
    table = read_table(path)
    assert [row["speech"] for row in table] == list(HOURS)
    fields = ("num_train_epochs", "tokens_per_pack", "r", "learning_rate")
    shipped = read_recipe(path, [])
    for row in table:
        recipe = read_recipe(path, [text for name in fields for text in (f"--{name}", row[name])])
        assert (recipe == shipped) == (row["speech"] == "3 hours")
        hours = HOURS[row["speech"]]
        steps = (
            hours * 3600 * TOKENS_PER_SECOND * recipe.training.num_train_epochs / recipe.data.tokens_per_pack
        )
        assert abs(steps / int(row["steps"]) - 1) < 0.05


def test_the_recipes_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("single_speaker", "zero_shot_cloning", "launch/ddp"):
        title = (ROOT / "recipes" / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ")
        assert any(line.split()[:1] == [name] and title in line for line in lines), name
    assert len(lines) == 1 + len(list(ROOT.glob("recipes/**/*.yaml")))


def test_a_recipe_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes", "launch/ddp.yaml") == 0
    assert capsys.readouterr().out == (ROOT / "recipes" / "launch" / "ddp.yaml").read_text()
    assert run("recipes", "single_speker") == 2
    assert 'Did you mean "single_speaker"?' in capsys.readouterr().err


def test_an_installed_package_has_its_recipes_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "own.yaml").write_text("# A title.\nmodel: {}\n")
    monkeypatch.setattr(shipped, "PLACES", (tmp_path / "recipes", ROOT / "recipes"))
    assert {name: shipped.read_title(path) for name, path in shipped.find_recipes().items()} == {
        "own": "A title."
    }
