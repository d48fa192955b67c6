"""A recipe is read whole or refused with every place that is wrong; what is written is read back equal."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
import yaml

from higgs_trainer.errors import RecipeError
from higgs_trainer.recipe import reading as recipe_file
from higgs_trainer.recipe.schema import (
    AdapterRecipe,
    DataRecipe,
    ModelRecipe,
    Recipe,
    SamplesRecipe,
    Scheduler,
    TrainingRecipe,
    read_recipe,
    training_arguments,
    write_recipe,
)

SHORTEST = """
model: {name_or_path: bosonai/higgs-audio-v2-generation-3B-base}
data: {train: prepared}
training: {output_dir: runs/a}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the recipe lies, with another working directory."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    return recipes


def write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str, *overrides: str) -> Recipe:
    return read_recipe(write(folder, text), overrides)


def find_problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read(folder, text, *overrides)
    return str(caught.value).replace(f"{folder / 'r.yaml'}: ", "").split("\n")


def test_the_shortest_recipe(folder: Path) -> None:
    assert read(folder, SHORTEST) == Recipe(
        model=ModelRecipe(name_or_path="bosonai/higgs-audio-v2-generation-3B-base"),
        data=DataRecipe(train=folder / "prepared"),
        training=TrainingRecipe(output_dir=folder / "runs" / "a"),
    )


def test_every_section(folder: Path) -> None:
    text = """
model: {name_or_path: ../base, dtype: bfloat16, codec: embedded}
data: {train: prepared, eval: held_out, code_noise: 0.1}
adapter: {r: 3, target_modules: [q_proj, v_proj], use_rslora: true}
loss: {codebook_weights: [3, 2, 1.5]}
guard: {policy: raise}
training: {output_dir: runs/a, learning_rate: 2e-6, warmup_steps: 0.03, eval_strategy: steps, report_to: [wandb]}
samples: {texts: [hello there], ref_audio: ref.wav, ref_text: words}
"""
    recipe = read(folder, text)
    assert recipe.model.name_or_path == str(folder.parent / "base")
    assert recipe.model.codec == "embedded"
    assert (recipe.data.eval, recipe.data.code_noise) == (folder / "held_out", 0.1)
    assert recipe.adapter == AdapterRecipe(r=3, target_modules=("q_proj", "v_proj"), use_rslora=True)
    assert recipe.loss.codebook_weights == (3.0, 2.0, 1.5)
    assert recipe.guard.policy == "raise"
    assert (recipe.training.learning_rate, recipe.training.warmup_steps) == (2e-6, 0.03)
    assert recipe.samples == SamplesRecipe(("hello there",), folder / "ref.wav", "words")


@pytest.mark.parametrize("number", ["2e-6", "2E-6", "2.e-6", "+2e-6", "0.2e-5", ".2e-5", "0.000002"])
def test_numbers_as_people_write_them(folder: Path, number: str) -> None:
    text = SHORTEST.replace("runs/a", f"runs/a, learning_rate: {number}")
    assert read(folder, text).training.learning_rate == pytest.approx(2e-6)
    assert read(folder, SHORTEST, "--learning_rate", number).training.learning_rate == pytest.approx(2e-6)


def test_no_is_a_word(folder: Path) -> None:
    text = SHORTEST.replace("runs/a", "runs/a, save_strategy: no")
    assert read(folder, text).training.save_strategy == "no"


@pytest.mark.parametrize("adapter", ["adapter:", "adapter: null", ""])
def test_no_adapter_is_full_fine_tuning(folder: Path, adapter: str) -> None:
    assert read(folder, SHORTEST + adapter).adapter is None
    assert read(folder, SHORTEST + "adapter: {}").adapter == AdapterRecipe()


def test_a_folder_that_exists_is_no_name(folder: Path) -> None:
    (folder / "codec").mkdir()
    recipe = read(folder, SHORTEST.replace("base}", "base, codec: codec}"))
    assert recipe.model.codec == str(folder / "codec")
    assert recipe.model.name_or_path == "bosonai/higgs-audio-v2-generation-3B-base"


WRONG = {
    "misspelt field": (
        "training.learning_rat",
        "learning_rat: 1",
        'no such field. Did you mean "learning_rate"?',
    ),
    "text for a number": ("training.learning_rate", "learning_rate: fast", "is 'fast'; expected a number"),
    "null for a number": ("training.learning_rate", "learning_rate:", "is None; expected a number"),
    "infinity": ("training.learning_rate", "learning_rate: .inf", "is inf; expected a number"),
    "negative": ("training.learning_rate", "learning_rate: -1e-3", "is -0.001; it is at least 0"),
    "fraction": ("training.seed", "seed: 1.5", "is 1.5; expected a whole number"),
    "true for a number": ("training.seed", "seed: true", "is True; expected a whole number"),
    "number for a switch": ("training.bf16", "bf16: 1", "is 1; expected true or false"),
    "word for a switch": ("training.bf16", "bf16: yes", "is 'yes'; expected true or false"),
    "number for a text": (
        "training.run_name",
        "run_name: 7",
        "is 7; expected text (put it in quotes) or null",
    ),
    "number for a path": ("training.output_dir", "output_dir: 7", "is 7; expected a path"),
    "unknown choice": (
        "training.eval_strategy",
        "eval_strategy: step",
        "is 'step'; expected 'no' or 'steps' or 'epoch'",
    ),
    "text for a list": (
        "training.report_to",
        "report_to: {}",
        "is {}; expected text (put it in quotes) or a list",
    ),
}


@pytest.mark.parametrize(("place", "entry", "problem"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_named(folder: Path, place: str, entry: str, problem: str) -> None:
    text = SHORTEST.replace("training: {output_dir: runs/a}", f"training:\n  {entry}\n")
    if "output_dir" not in entry:
        text += "  output_dir: runs/a\n"
    assert find_problems(folder, text) == [f"{place}: {problem}"]


def test_all_problems_come_together(folder: Path) -> None:
    text = """
modle: {name_or_path: x}
data: [prepared]
adapter: {r: 0}
training: {per_device_train_batch_size: 0}
"""
    assert find_problems(folder, text) == [
        'modle: no such section. Did you mean "model"?',
        "model.name_or_path: is missing; it has no default",
        "data: is ['prepared']; expected a section with fields",
        "training.output_dir: is missing; it has no default",
        "training.per_device_train_batch_size: is 0; it is at least 1",
        "adapter.r: is 0; it is at least 1",
    ]


TOGETHER = {
    "evaluation without data": ("eval_strategy: steps", "", "data.eval"),
    "two precisions": ("bf16: true, fp16: true", "", "exclude each other"),
    "metric without evaluation": ("metric_for_best_model: loss", "", "eval_strategy"),
    "held-out sentences without data": ("seed: 1", "samples: {held_out: 2}", "data.eval"),
    "early stopping without a metric": ("seed: 1", "early_stopping: {patience: 2}", "metric_for_best_model"),
    "best without a metric": ("save_strategy: best", "", "metric_for_best_model"),
    "best without evaluation": ("load_best_model_at_end: true", "", "eval_strategy"),
    "a batch of packs": ("per_device_train_batch_size: 4", "", "a batch is one pack"),
    "reference without words": ("seed: 1", "samples: {ref_audio: a.wav}", "give both or neither"),
}


@pytest.mark.parametrize(("training", "more", "problem"), TOGETHER.values(), ids=TOGETHER)
def test_fields_that_do_not_go_together(folder: Path, training: str, more: str, problem: str) -> None:
    (found,) = find_problems(folder, SHORTEST.replace("runs/a", f"runs/a, {training}") + more)
    assert problem in found


def test_freezing_and_an_adapter_do_not_go_together(folder: Path) -> None:
    (found,) = find_problems(folder, SHORTEST + "adapter: {r: 2}", "--model.freeze", "[norms]")
    assert "leave one out" in found


@pytest.mark.parametrize(
    ("data", "training", "expected"),
    [
        ("", "", 1),
        ("", ", per_device_train_batch_size: 1", 1),
        (", packing: false", "", 8),
        (", packing: false", ", per_device_train_batch_size: 5", 5),
    ],
)
def test_a_batch_is_a_pack_or_so_many_examples(folder: Path, data: str, training: str, expected: int) -> None:
    text = SHORTEST.replace("prepared}", f"prepared{data}}}").replace("runs/a", f"runs/a{training}")
    arguments = training_arguments(read(folder, text))
    assert arguments["per_device_train_batch_size"] == expected
    assert arguments["train_sampling_strategy"] == "sequential"


def test_files_that_are_no_recipe(folder: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        read_recipe(folder / "none.yaml")
    for text, message in [
        ("", "holds no sections"),
        ("- 1", "holds no sections"),
        ("model: {name_or_path: x\ndata: [", r"r\.yaml:\d+: "),
        ("model: 1\nmodel: 2", r"r\.yaml:2: 'model' is given twice"),
        ("? [a]\n: 1", r"r\.yaml:1: .*key"),
        ("model: !!python/object:os.system {}", r"r\.yaml:1: .*python"),
    ]:
        with pytest.raises(RecipeError, match=message):
            read(folder, text)


def test_overrides(folder: Path) -> None:
    arguments = [
        "--training.seed",
        "7",
        "--max-steps=-1",
        "--bf16",
        "--run_name",
        "a #1",
        "--data.eval",
        "held_out",
    ]
    recipe = read(folder, SHORTEST + "adapter: {r: 4}", *arguments, "--lora_alpha", "5", "--r=6")
    assert (recipe.training.seed, recipe.training.max_steps, recipe.training.bf16) == (7, -1, True)
    assert recipe.training.run_name == "a #1"
    assert recipe.data.train == folder / "prepared"
    assert recipe.data.eval == Path.cwd() / "held_out"
    assert recipe.adapter == AdapterRecipe(r=6, lora_alpha=5)


def test_an_override_may_drop_or_make_a_section(folder: Path) -> None:
    assert read(folder, SHORTEST + "adapter: {r: 4}", "--adapter", "null").adapter is None
    assert read(folder, SHORTEST, "--adapter.r", "5").adapter == AdapterRecipe(r=5)
    assert read(folder, SHORTEST, "--adapter", "null", "--adapter.r", "5").adapter == AdapterRecipe(r=5)
    assert read(folder, SHORTEST, "--run_name", "7").training.run_name == "7"
    assert read(folder, SHORTEST, "--texts", "[a, b c]").samples.texts == ("a", "b c")
    assert read(folder, SHORTEST, "--target_modules", "attention", "--r", "2").adapter == AdapterRecipe(
        r=2, target_modules="attention"
    )


WRONG_OVERRIDES = {
    "list for a mapping": (["--adapter.rank_pattern", "[3]"], "expected names with values"),
    "text in a mapping": (["--adapter.rank_pattern", "{q_proj: a}"], "expected names with values"),
    "misspelt": (
        ["--learning_rte", "1"],
        '--learning_rte is no field of a recipe. Did you mean "learning_rate"?',
    ),
    "misspelt path": (["--training.sed", "1"], 'Did you mean "training.seed"?'),
    "no option": (["1e-4"], "'1e-4' is no override"),
    "wrong type": (["--seed", "x"], "training.seed: is 'x'; expected a whole number"),
    "no value": (["--learning_rate"], "training.learning_rate: is True; expected a number"),
    "section": (["--data", "prepared"], "data: is 'prepared'; expected a section with fields"),
    "broken list": (["--texts", "[a"], "samples.texts: is '[a'; expected a list"),
}


@pytest.mark.parametrize(("overrides", "message"), WRONG_OVERRIDES.values(), ids=WRONG_OVERRIDES)
def test_wrong_overrides(folder: Path, overrides: list[str], message: str) -> None:
    (found,) = find_problems(folder, SHORTEST, *overrides)
    assert message in found


def test_an_ambiguous_name_lists_the_paths() -> None:
    paths = ["samples", "samples.seed", "training", "training.seed"]
    with pytest.raises(RecipeError, match=r"--samples\.seed or --training\.seed"):
        recipe_file._find_path("seed", paths)
    assert recipe_file._find_path("training.seed", paths) == "training.seed"


def test_what_is_written_is_read_back(folder: Path) -> None:
    text = """
model: {name_or_path: ./base, codec: embedded}
data: {train: prepared}
adapter: {lora_dropout: 1e-5, modules_to_save: [audio_lm_head], rank_pattern: {q_proj: 4}, init_lora_weights: pissa}
loss: {codebook_weights: [1, 2e-9]}
training: {output_dir: a, run_name: "1e5", hub_model_id: "no", warmup_steps: 0.1, resume_from_checkpoint: true}
samples: {texts: ["null", "true", "3", "é: #"], ref_audio: a.wav, ref_text: "2e-6"}
"""
    recipe = read(folder, text)
    written = folder.parent / "elsewhere" / "recipe.yaml"
    write_recipe(recipe, written)
    assert read_recipe(written) == recipe
    assert read_recipe(written, ["--seed", "3"]) == replace(recipe, training=replace(recipe.training, seed=3))
    sections = yaml.safe_load(written.read_text())
    assert list(sections["training"]) == [item.name for item in fields(TrainingRecipe)]


def test_training_fields_are_transformers_own(folder: Path) -> None:
    from transformers import TrainingArguments
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    overrides = ["--optim=adafactor", "--warmup_steps=0.1", "--report_to=[]", "--use_cpu"]
    recipe = read(folder, SHORTEST, *overrides)
    arguments = training_arguments(recipe)
    names = {item.name for item in fields(TrainingArguments)}
    assert {item.name for item in fields(TrainingRecipe)} <= names
    assert set(get_args(Scheduler)) <= {scheduler.value for scheduler in SchedulerType}
    assert arguments["optim"] in {name.value for name in OptimizerNames}
    assert "resume_from_checkpoint" not in arguments
    built = TrainingArguments(**arguments)
    assert built.output_dir == str(folder / "runs" / "a")
    assert built.get_warmup_steps(200) == 20
    assert built.report_to == []
    for name in set(arguments) - {"report_to", "disable_tqdm", "dataloader_pin_memory"}:
        assert getattr(built, name) == arguments[name], name


def test_a_recipe_is_read_without_torch() -> None:
    code = "import higgs_trainer.recipe.schema, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
