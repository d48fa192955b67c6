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


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipe_is_read(path: Path) -> None:
    assert read_recipe(path, []).training.output_dir.is_absolute()


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
