"""The example of each public name runs, in the order in which a reader would use them."""

import inspect
import json
import re
import shutil
import subprocess
import sys
import textwrap
from importlib.resources import as_file, files
from pathlib import Path

import pytest

import higgs_trainer

ORDER = (
    "prepare",
    "read_prepared",
    "Recipe",
    "read_recipe",
    "check",
    "train",
    "load_speech_model",
    "load_judges",
    "EvaluationSettings",
    "evaluate_models",
    "write_report",
    "write_model_card",
    "merge_adapter",
    "convert_checkpoint",
    "HiggsAudioTrainer",
    "speak_while_training",
)
GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"
RECIPE = """\
model: {name_or_path: base}
data: {train: prepared/train, tokens_per_pack: 1024}
adapter: {r: 4}
training: {output_dir: runs/voice, max_steps: 2, logging_steps: 1, use_cpu: true, save_strategy: "no"}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with what the examples name: recordings, a base model, a recipe."""
    folder = tmp_path_factory.mktemp("examples")
    with as_file(files("higgs_trainer_demo")) as data:
        shutil.copytree(data / "base", folder / "base")
        voice = data / "new_voice"
        rows = [json.loads(line) for line in (voice / "train.jsonl").read_text().splitlines()[:6]]
        for row in rows:
            (folder / row["audio"]).parent.mkdir(exist_ok=True)
            shutil.copy(voice / row["audio"], folder / row["audio"])
    shutil.copytree(GOLDEN / "native", folder / "higgs_audio_v2")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def read_example(name: str) -> str:
    """Return the code under "Example:" in the docstring of a public name."""
    documentation = inspect.getdoc(getattr(higgs_trainer, name)) or ""
    found = re.search(r"Example:\n    ```python\n(.*?)\n    ```", documentation, re.DOTALL)
    assert found is not None, f"{name} has no example"
    return textwrap.dedent(found.group(1))


def test_every_public_name_has_its_place() -> None:
    assert sorted(ORDER) == sorted(higgs_trainer.__all__)


def test_the_examples_run_one_after_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ORDER:
        example = compile(read_example(name), f"example of {name}", "exec")
        exec(example, {"__name__": "example"})
    assert (folder / "speech.wav").stat().st_size > 44
    assert (folder / "trained.wav").stat().st_size > 44
    assert len(list(folder.glob("runs/spoken/samples/step-*/0000.wav"))) == 2
    assert (folder / "runs/voice/evaluation/figures.json").is_file()
    assert (folder / "merged/model.safetensors").is_file()
    assert (folder / "boson/config.json").is_file()


# What stands on the page for what is in the folder, so that its code runs in seconds.
REPLACED = {
    '"bosonai/higgs-tts-2-3b-base"': '"base"',
    '"bosonai/higgs-audio-v2-tokenizer"': '"base/codec"',
    '"recordings.jsonl", "prepared"': '"data.jsonl", "page"',
    'held_out="5%"': 'held_out="20%"',
    '"prepared/train"': '"page/train"',
    '"prepared/held_out"': '"page/held_out"',
    '"single_speaker.yaml"': '"recipe.yaml"',
    "num_train_epochs=3": "max_steps=2, use_cpu=True",
    "max_seconds=5": "max_seconds=0.4",
    '"tensorboard", "trackio"': '"tensorboard"',
    '"merged"': '"merged_page"',
}


def test_the_page_about_python_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text("utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    for written, small in REPLACED.items():
        assert written in code, f"{written} is not on the page"
        code = code.replace(written, small)
    exec(compile(code, "docs/python.md", "exec"), {"__name__": "page"})
    assert (folder / "runs/my_voice/evaluation/figures.json").is_file()
    assert len(list(folder.glob("runs/logged/samples/step-*/0000.wav"))) > 1
    assert (folder / "merged_page/README.md").is_file()


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, higgs_trainer; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
