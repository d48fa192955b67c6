"""A recipe is read whole or refused with every place that is wrong; what is written is read back equal."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from higgs_trainer.errors import RecipeError
from higgs_trainer.recipe import overrides as command_line
from higgs_trainer.recipe.arguments import build_training_arguments
from higgs_trainer.recipe.reading import read_recipe, write_recipe
from higgs_trainer.recipe.schema import (
    AdapterRecipe,
    DataRecipe,
    ModelRecipe,
    Recipe,
    SamplesRecipe,
    WeightedFolder,
)
from higgs_trainer.recipe.training_fields import REFUSED, list_argument_names, list_extra_names
from higgs_trainer.recipe.training_section import TrainingRecipe
from higgs_trainer.recipe.values import Scheduler
from higgs_trainer.recipe.yaml_file import read_yaml

SHORTEST = """
model: {name_or_path: bosonai/higgs-tts-2-3b-base}
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
    return str(caught.value).replace(f"{folder / 'r.yaml'}:", "").split("\n  ")


def test_the_shortest_recipe(folder: Path) -> None:
    assert read(folder, SHORTEST) == Recipe(
        model=ModelRecipe(name_or_path="bosonai/higgs-tts-2-3b-base"),
        data=DataRecipe(train=(WeightedFolder(path=folder / "prepared"),)),
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
    assert [item.path for item in recipe.data.eval] == [folder / "held_out"]
    assert recipe.data.code_noise == 0.1
    assert recipe.adapter == AdapterRecipe(r=3, target_modules=("q_proj", "v_proj"), use_rslora=True)
    assert recipe.loss.codebook_weights == (3.0, 2.0, 1.5)
    assert recipe.guard.policy == "raise"
    assert (recipe.training.learning_rate, recipe.training.warmup_steps) == (2e-6, 0.03)
    assert recipe.samples == SamplesRecipe(
        texts=("hello there",), ref_audio=folder / "ref.wav", ref_text="words"
    )


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
    assert recipe.model.name_or_path == "bosonai/higgs-tts-2-3b-base"


WRONG = {
    "misspelt field": (
        "training.learning_rat",
        "learning_rat: 1",
        'no such field. Did you mean "learning_rate"?',
    ),
    "text for a number": ("training.learning_rate", "learning_rate: fast", "is 'fast'. Write a number."),
    "null for a number": ("training.learning_rate", "learning_rate:", "is null. Write a number."),
    "infinity": ("training.learning_rate", "learning_rate: .inf", "is inf. Write a number."),
    "negative": (
        "training.learning_rate",
        "learning_rate: -1e-3",
        "is -0.001. Write a number of at least 0.",
    ),
    "fraction": ("training.seed", "seed: 1.5", "is 1.5. Write a whole number."),
    "true for a number": ("training.seed", "seed: true", "is true. Write a whole number."),
    "number for a switch": ("training.bf16", "bf16: 1", "is 1. Write true or false."),
    "word for a switch": ("training.bf16", "bf16: yes", "is 'yes'. Write true or false."),
    "number for a text": (
        "training.run_name",
        "run_name: 7",
        "is 7. Write text (put it in quotes).",
    ),
    "number for a path": ("training.output_dir", "output_dir: 7", "is 7. Write a path."),
    "unknown choice": (
        "training.eval_strategy",
        "eval_strategy: step",
        "is 'step'. Write 'no', 'steps' or 'epoch'.",
    ),
    "text for a list": (
        "training.report_to",
        "report_to: {}",
        "is {}. Write text (put it in quotes) or a list.",
    ),
}


@pytest.mark.parametrize(("place", "entry", "problem"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_named(folder: Path, place: str, entry: str, problem: str) -> None:
    text = SHORTEST.replace("training: {output_dir: runs/a}", f"training:\n  {entry}\n")
    if "output_dir" not in entry:
        text += "  output_dir: runs/a\n"
    line = text.split("\n").index(f"  {entry}") + 1
    assert find_problems(folder, text) == [f"{line}: {place}: {problem}"]


ADD_IT = "Add it: it has no default."


def test_all_problems_come_together(folder: Path) -> None:
    text = """
modle: {name_or_path: x}
data: [prepared]
adapter: {r: 0}
training: {per_device_train_batch_size: 0, sed: 1, dataloader_drop_last: true}
"""
    overrides = ("--lerning_rate", "1", "--seed", "x")
    assert find_problems(folder, text, *overrides) == [
        f" model.name_or_path: is missing. {ADD_IT}",
        '2: modle: no such section. Did you mean "model"?',
        "3: data: is ['prepared']. Write a section with fields.",
        "4: adapter.r: is 0. Write a number of at least 1.",
        f"5: training.output_dir: is missing. {ADD_IT}",
        "5: training.per_device_train_batch_size: is 0. Write a number of at least 1.",
        '5: training.sed: no such field. Did you mean "seed"?',
        "5: training.dataloader_drop_last: is refused: examples would be dropped silently. Leave it out.",
        "command line: training.seed: is 'x'. Write a whole number.",
        'command line: --lerning_rate is not a field of a recipe. Did you mean "learning_rate"?',
    ]


TOGETHER = {
    "evaluation without data": ("eval_strategy: steps", "", "data.eval"),
    "no steps": ("max_steps: 0", "", "Write the number of steps, or -1"),
    "two precisions": ("bf16: true, fp16: true", "", "excludes training.bf16"),
    "metric without evaluation": ("metric_for_best_model: loss", "", "eval_strategy"),
    "held-out sentences without data": ("seed: 1", "samples: {held_out: 2}", "data.eval"),
    "early stopping without a metric": ("seed: 1", "early_stopping: {patience: 2}", "metric_for_best_model"),
    "best without a metric": ("save_strategy: best", "", "metric_for_best_model"),
    "best without evaluation": ("load_best_model_at_end: true", "", "eval_strategy"),
    "a batch of packs": ("per_device_train_batch_size: 4", "", "a batch is one pack"),
    "reference without words": ("seed: 1", "samples: {ref_audio: a.wav}", "Give both or neither"),
}


@pytest.mark.parametrize(("training", "more", "problem"), TOGETHER.values(), ids=TOGETHER)
def test_fields_that_do_not_go_together(folder: Path, training: str, more: str, problem: str) -> None:
    (found,) = find_problems(folder, SHORTEST.replace("runs/a", f"runs/a, {training}") + more)
    assert problem in found


def test_freezing_and_an_adapter_do_not_go_together(folder: Path) -> None:
    (found,) = find_problems(folder, SHORTEST + "adapter: {r: 2}", "--model.freeze", "[norms]")
    assert "Leave out model.freeze or adapter." in found


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
    arguments = build_training_arguments(read(folder, text))
    assert arguments["per_device_train_batch_size"] == expected
    assert arguments["train_sampling_strategy"] == "sequential"


def test_files_that_are_no_recipe(folder: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        read_recipe(folder / "none.yaml")
    for text, message in [
        ("", "has no sections"),
        ("- 1", "has no sections"),
        ("model: {name_or_path: x\ndata: [", r"r\.yaml:\d+: "),
        ("model: 1\nmodel: 2", r'r\.yaml:2: "model" is given twice'),
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
    assert [item.path for item in recipe.data.train] == [folder / "prepared"]
    assert [item.path for item in recipe.data.eval] == [Path.cwd() / "held_out"]
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
    "list for a mapping": (["--adapter.rank_pattern", "[3]"], "Write names with values."),
    "text in a mapping": (
        ["--adapter.rank_pattern", "{q_proj: a}"],
        "adapter.rank_pattern.q_proj: is 'a'. Write a whole number.",
    ),
    "misspelt": (
        ["--learning_rte", "1"],
        '--learning_rte is not a field of a recipe. Did you mean "learning_rate"?',
    ),
    "misspelt path": (["--training.sed", "1"], 'Did you mean "training.seed"?'),
    "no option": (["1e-4"], "'1e-4' does not name a field"),
    "wrong type": (["--seed", "x"], "training.seed: is 'x'. Write a whole number."),
    "no value": (["--learning_rate"], "training.learning_rate: is true. Write a number."),
    "section": (["--data", "prepared"], "data: is 'prepared'. Write a section with fields."),
    "broken list": (["--texts", "[a"], "samples.texts: is '[a'. Write a list."),
}


@pytest.mark.parametrize(("overrides", "message"), WRONG_OVERRIDES.values(), ids=WRONG_OVERRIDES)
def test_wrong_overrides(folder: Path, overrides: list[str], message: str) -> None:
    (found,) = find_problems(folder, SHORTEST, *overrides)
    assert message in found


def test_an_ambiguous_name_lists_the_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [("samples",), ("samples", "seed"), ("training",), ("training", "seed")]
    monkeypatch.setattr(command_line, "list_places", lambda: iter(places))
    assert find_problems(folder, SHORTEST, "--seed", "1") == [
        "command line: --seed may be --samples.seed or --training.seed. Write one of them."
    ]
    assert read(folder, SHORTEST, "--training.seed", "1").training.seed == 1


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
    assert read_recipe(written, ["--seed", "3"]) == recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"seed": 3})}
    )
    sections = read_yaml(written)
    assert list(sections["training"]) == TrainingRecipe.list_own_fields()


def test_training_fields_are_transformers_own(folder: Path) -> None:
    from transformers import TrainingArguments
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    overrides = ["--optim=adafactor", "--warmup_steps=0.1", "--report_to=[]", "--use_cpu"]
    recipe = read(folder, SHORTEST, *overrides)
    arguments = build_training_arguments(recipe)
    names = {item.name for item in fields(TrainingArguments)}
    assert set(TrainingRecipe.list_own_fields()) <= names
    assert set(get_args(Scheduler)) == {scheduler.value for scheduler in SchedulerType}
    assert arguments["optim"] in {name.value for name in OptimizerNames}
    assert "resume_from_checkpoint" not in arguments
    built = TrainingArguments(**arguments)
    assert built.output_dir == str(folder / "runs" / "a")
    assert built.get_warmup_steps(200) == 20
    assert built.report_to == []
    for name in set(arguments) - {"report_to", "disable_tqdm", "dataloader_pin_memory"}:
        assert getattr(built, name) == arguments[name], name


def test_a_recipe_is_read_without_torch() -> None:
    code = "import higgs_trainer.recipe.reading, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PASSED_ON = """
  fsdp_config: fsdp.json
  fsdp: true
  lr_scheduler_kwargs: {min_lr: 1e-6}
  optim_args: beta3=0.9
  neftune_noise_alpha: 5
  torch_compile_mode: reduce-overhead
  debug: [underflow_overflow]
  accelerator_config: {non_blocking: true, gradient_accumulation_kwargs: {sync_each_batch: true}}
  eval_on_start: false
  ddp_backend: gloo
  include_num_input_tokens_seen: all
  dataloader_drop_last: false
"""
LONGEST = SHORTEST.replace("training: {output_dir: runs/a}", "training:\n  output_dir: runs/a" + PASSED_ON)


def test_further_training_arguments_are_passed_on(folder: Path) -> None:
    """dataloader_drop_last cannot be set, but is accepted with the value that every run has."""
    arguments = build_training_arguments(read(folder, LONGEST))
    expected: dict[str, Any] = {
        "fsdp_config": str(folder / "fsdp.json"),
        "fsdp": True,
        "lr_scheduler_kwargs": {"min_lr": 1e-6},
        "optim_args": "beta3=0.9",
        "neftune_noise_alpha": 5,
        "torch_compile_mode": "reduce-overhead",
        "debug": ["underflow_overflow"],
        "ddp_backend": "gloo",
        "eval_on_start": False,
        "include_num_input_tokens_seen": "all",
    }
    assert {name: arguments[name] for name in expected} == expected
    assert "dataloader_drop_last" not in arguments


def test_further_training_arguments_are_written_and_read_back(folder: Path) -> None:
    recipe = read(folder, LONGEST)
    written = folder.parent / "elsewhere" / "recipe.yaml"
    write_recipe(recipe, written)
    assert read_recipe(written) == recipe
    assert read_yaml(written)["training"]["optim_args"] == "beta3=0.9"


def test_further_training_arguments_on_the_command_line(folder: Path) -> None:
    overrides = ["--torch_compile", "--fsdp_config=fsdp.json", "--lr_scheduler_kwargs", "{min_lr: 1e-6}"]
    overrides += ["--optim_args", "3", "--training.neftune_noise_alpha", "5"]
    overrides += ["--accelerator_config", "{non_blocking: true}", "--run_name", "words"]
    recipe = read(folder, SHORTEST, *overrides)
    write_recipe(recipe, folder.parent / "elsewhere" / "written.yaml")
    assert read_recipe(folder.parent / "elsewhere" / "written.yaml") == recipe
    assert recipe.training.extra_arguments == {
        "fsdp_config": str(Path.cwd() / "fsdp.json"),
        "torch_compile": True,
        "accelerator_config": {"non_blocking": True},
        "lr_scheduler_kwargs": {"min_lr": 1e-6},
        "optim_args": "3",
        "neftune_noise_alpha": 5,
    }


def test_the_training_arguments_of_transformers_are_all_decided() -> None:
    """Each is listed in the schema, refused, or passed on; the names are read from source without an import."""
    from transformers import TrainingArguments

    names = {item.name for item in fields(TrainingArguments)}
    assert set(list_argument_names()) == names
    own = set(TrainingRecipe.list_own_fields())
    assert not own & set(REFUSED)
    assert names == own | (names & set(REFUSED)) | set(list_extra_names(own))


def test_what_a_run_has_anyway_is_what_the_table_says(folder: Path) -> None:
    """A refused field is accepted with one value; this must be the value in the arguments that are built."""
    from transformers import TrainingArguments

    built = TrainingArguments(**build_training_arguments(read(folder, SHORTEST, "--use_cpu")))
    for name, refusal in REFUSED.items():
        if hasattr(built, name) and name != "local_rank":
            assert getattr(built, name) == refusal.fixed_value, name


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_training_argument_is_an_error_with_its_reason(folder: Path, name: str) -> None:
    (found,) = find_problems(folder, SHORTEST, f"--{name}", "{some: value}")
    refusal = REFUSED[name]
    assert found == f"command line: training.{name}: is refused: {refusal.why}. {refusal.what_to_do}"


WRONG_ARGUMENTS = {
    "type": ("torch_compile: 3", "torch_compile: is 3. Write true or false."),
    "choice": (
        "debug: [overflow]",
        "Write text (put it in quotes) or 'underflow_overflow' or 'tpu_metrics_debug'",
    ),
    "infinity": ("eval_delay: .inf", "eval_delay: is inf. Write a number."),
    "misspelt": ("torch_compille: true", 'torch_compille: no such field. Did you mean "torch_compile"?'),
    "accelerate's batches": ("accelerator_config: {split_batches: true}", "sets split_batches"),
    "accelerate's steps": (
        "accelerator_config: {gradient_accumulation_kwargs: {num_steps: 2}}",
        "sets num_steps",
    ),
    "accelerate's file": (
        "accelerator_config: a.json",
        "Write non_blocking and gradient_accumulation_kwargs",
    ),
    "evaluation at the start": ("eval_on_start: true", "eval_on_start: needs data.eval"),
}


@pytest.mark.parametrize(("entry", "message"), WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_wrong_further_training_arguments(folder: Path, entry: str, message: str) -> None:
    text = SHORTEST.replace("training: {output_dir: runs/a}", f"training:\n  {entry}\n  output_dir: runs/a")
    (found,) = find_problems(folder, text)
    assert found.startswith("5: training.")
    assert message in found


def test_a_token_is_passed_on_but_never_written(folder: Path) -> None:
    recipe = read(folder, SHORTEST, "--hub_token", "hf_secret")
    assert build_training_arguments(recipe)["hub_token"] == "hf_secret"
    write_recipe(recipe, folder / "written.yaml")
    assert "hub_token" not in (folder / "written.yaml").read_text()


def test_a_misspelt_training_argument_is_reported_without_torch(folder: Path) -> None:
    path = write(folder, SHORTEST.replace("runs/a", "runs/a, torch_compille: true"))
    code = f"""
import sys
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.errors import RecipeError
try:
    read_recipe({str(path)!r}, ["--learning_rte", "1"])
except RecipeError as error:
    assert '"torch_compile"' in str(error) and '"learning_rate"' in str(error), error
    sys.exit("torch" in sys.modules or "transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_several_prepared_folders_have_weights(folder: Path) -> None:
    text = SHORTEST.replace("train: prepared", "train: [{path: a, weight: 2}, ../b], eval: [c, d]")
    recipe = read(folder, text)
    assert [(item.path, item.weight) for item in recipe.data.train] == [
        (folder / "a", 2.0),
        (folder.parent / "b", 1.0),
    ]
    assert [item.path for item in recipe.data.eval] == [folder / "c", folder / "d"]
    write_recipe(recipe, folder.parent / "elsewhere" / "written.yaml")
    assert read_recipe(folder.parent / "elsewhere" / "written.yaml") == recipe
    overridden = read(folder, text, "--data.train", "[{path: e, weight: 0.5}, f]")
    assert [item.path for item in overridden.data.train] == [Path.cwd() / "e", Path.cwd() / "f"]


WRONG_FOLDERS = {
    "no folder": ("train: []", "data.train: is empty. Name a prepared folder."),
    "number": ("train: 7", "data.train: is 7. Write a path."),
    "number in a list": ("train: [a, 7]", "data.train.1: is 7. Write a path."),
    "misspelt": (
        "train: [{path: a, wieght: 2}]",
        'data.train.0.wieght: no such field. Did you mean "weight"?',
    ),
    "no path": ("train: [{weight: 2}]", f"data.train.0.path: is missing. {ADD_IT}"),
    "weight of nothing": (
        "train: [{path: a, weight: 0}]",
        "data.train.0.weight: is 0. Write a number above 0.",
    ),
    "twice": ("train: [a, ./a]", "2 times. Name it once, with a weight."),
    "weighted evaluation": (
        "train: a, eval: [{path: b, weight: 2}]",
        "data.eval: has a weight, but the validation loss is computed over all cells of all folders. "
        "Leave the weights out.",
    ),
}


@pytest.mark.parametrize(("data", "message"), WRONG_FOLDERS.values(), ids=WRONG_FOLDERS)
def test_wrong_prepared_folders(folder: Path, data: str, message: str) -> None:
    (found,) = find_problems(folder, SHORTEST.replace("train: prepared", data))
    assert found.startswith("3: ")
    assert found.endswith(message)


def test_a_recipe_built_in_python_is_checked(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"model": {"name_or_path": "a/b"}, "data": {"train": "p"}}
    recipe = Recipe(**sections, training=TrainingRecipe(output_dir=tmp_path, torch_compile=True))
    assert recipe.training.extra_arguments == {"torch_compile": True}
    with pytest.raises(ValidationError, match=r"needs data\.eval"):
        Recipe(**sections, training=TrainingRecipe(output_dir=tmp_path, eval_strategy="steps"))
    with pytest.raises(ValidationError, match="no such field"):
        TrainingRecipe(output_dir=tmp_path, learning_rat=1)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.training.seed = 1
