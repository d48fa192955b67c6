"""The wheels of the three packages contain what they need, and the main wheel stays small."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LARGEST_MAIN_WHEEL_BYTES = 6_000_000


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each package, by the name of the package."""
    folder = tmp_path_factory.mktemp("dist")
    for package in (ROOT, ROOT / "packages" / "label-guard", ROOT / "packages" / "higgs-trainer-demo"):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, cwd=package, check=True, capture_output=True)
    return {path.name.split("-")[0]: path for path in folder.glob("*.whl")}


def list_files(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_main_wheel_is_small_and_has_every_asset(wheels: dict[str, Path]) -> None:
    files = list_files(wheels["higgs_trainer"])
    assert wheels["higgs_trainer"].stat().st_size <= LARGEST_MAIN_WHEEL_BYTES
    source = ROOT / "src" / "higgs_trainer"
    expected = {
        f"higgs_trainer/{path.relative_to(source)}"
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {
        f"higgs_trainer/recipes/{path.relative_to(ROOT / 'recipes')}"
        for path in (ROOT / "recipes").rglob("*.yaml")
    }
    assert {name for name in files if name.startswith("higgs_trainer/")} == expected
    assert [name for name in files if name.endswith("licenses/THIRD_PARTY_NOTICES.md")]


def test_the_demo_wheel_has_the_data_and_its_notices(wheels: dict[str, Path]) -> None:
    files = list_files(wheels["higgs_trainer_demo"])
    assert sum(name.endswith(".flac") for name in files) == 340
    for name in (
        "recipe.yaml",
        "base/model.safetensors",
        "digits/codes.safetensors",
        "codec/codec.safetensors",
    ):
        assert f"higgs_trainer_demo/{name}" in files
    assert {Path(name).name for name in files if "licenses/" in name} == {"LICENSE", "THIRD_PARTY_NOTICES.md"}


def test_the_guard_wheel_has_only_the_guard(wheels: dict[str, Path]) -> None:
    files = list_files(wheels["label_guard"])
    assert "label_guard/__init__.py" in files
    assert {name.split("/")[0].split("-")[0] for name in files} == {"label_guard"}
