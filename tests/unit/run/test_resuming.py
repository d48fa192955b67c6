"""A resumed run is the run that wrote the checkpoint, or says what differs; an allowed change is really applied."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState
from transformers.optimization import get_scheduler

from higgs_trainer.errors import RecipeError
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.recipe.schema import Recipe, TrainingRecipe
from higgs_trainer.recipe.training_fields import list_extra_names
from higgs_trainer.run.resume_fields import EVALUATION, FIXED, HARMLESS, LENGTH, ORDER
from higgs_trainer.run.resuming import (
    FACTS,
    PLACES,
    check_allowed,
    compare_recipe,
    compare_run,
    describe_recipe,
    list_fields,
    write_history,
)
from higgs_trainer.run.train import train
from higgs_trainer.training.changed_arguments import apply_changes, plan_optimizer, restore_patience

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "kill_and_resume.py"
script = runpy.run_path(str(SCRIPT))
FACTS_OF_A_RUN = {
    "data": {"train_content": ["a"], "eval_content": ["b"], "groups_per_epoch": 6},
    "base_model": {"family": "higgs_audio_v2", "fingerprint": "f"},
    "optimizer": None,
    "world_size": 1,
    "versions": {"torch": "1", "datasets": "1"},
}


def build_recipe(**sections: Any) -> Recipe:
    plain = {
        "model": {"name_or_path": "base"},
        "data": {"train": "prepared"},
        "adapter": {"r": 4},
        "training": {"output_dir": "out", "max_steps": 10},
    }
    return Recipe(**{name: plain.get(name, {}) | sections.get(name, {}) for name in {**plain, **sections}})


def describe(recipe: Recipe, **facts: Any) -> dict[str, Any]:
    record = {"schema": "higgs-trainer/resume/1", "recipe": describe_recipe(recipe), **FACTS_OF_A_RUN}
    for name, value in facts.items():
        record[name] = record[name] | value if isinstance(value, dict) else value
    return record


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint that has nothing but the record of a run."""
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "resume.json").write_text(json.dumps(describe(build_recipe())))
    return folder


def test_the_same_run_has_no_differences(checkpoint: Path) -> None:
    compare_recipe(checkpoint, build_recipe(), ())
    assert compare_run(checkpoint, describe(build_recipe()), ()) == []


MATTERS = {
    "training.learning_rate": {"training": {"learning_rate": 1e-2}},
    "training.weight_decay": {"training": {"weight_decay": 0.1}},
    "training.adam_beta2": {"training": {"adam_beta2": 0.9}},
    "training.seed": {"training": {"seed": 1}},
    "training.gradient_accumulation_steps": {"training": {"gradient_accumulation_steps": 3}},
    "training.warmup_steps": {"training": {"warmup_steps": 2}},
    "training.neftune_noise_alpha": {"training": {"neftune_noise_alpha": 0.1}},
    "training.bf16": {"training": {"bf16": True}},
    "training.max_grad_norm": {"training": {"max_grad_norm": 0.5}},
    "training.label_smoothing_factor": {"training": {"label_smoothing_factor": 0.1}},
    "loss.audio_weight": {"loss": {"audio_weight": 2.0}},
    "loss.codebook_weights": {"loss": {"codebook_weights": [1.0, 2.0]}},
    "data.code_noise": {"data": {"code_noise": 0.1}},
    "data.tokens_per_pack": {"data": {"tokens_per_pack": 100}},
    "data.packing": {"data": {"packing": False}},
    "adapter.lora_alpha": {"adapter": {"lora_alpha": 7}},
    "adapter.lora_dropout": {"adapter": {"lora_dropout": 0.1}},
    "model.dtype": {"model": {"dtype": "bfloat16"}},
    "model.attn_implementation": {"model": {"attn_implementation": "sdpa"}},
}


@pytest.mark.parametrize("field", MATTERS)
def test_a_setting_that_matters_is_refused_unless_it_is_allowed(checkpoint: Path, field: str) -> None:
    recipe = build_recipe(**MATTERS[field])
    was, now = describe_recipe(build_recipe()).get(field), describe_recipe(recipe)[field]
    with pytest.raises(RecipeError) as refused:
        compare_recipe(checkpoint, recipe, ())
    assert f"{field}: {json.dumps(was)} -> {json.dumps(now)}\n" in str(refused.value)
    assert str(refused.value).endswith(f"name its field: --allow-changed {field}")
    compare_recipe(checkpoint, recipe, [field])
    assert compare_run(checkpoint, describe(recipe), [field]) == [{"field": field, "was": was, "now": now}]


IS_FIXED = {
    "adapter": {"adapter": None},
    "adapter.r": {"adapter": {"r": 8}},
    "adapter.target_modules": {"adapter": {"target_modules": "attention"}},
    "adapter.use_dora": {"adapter": {"use_dora": True}},
    "training.optim": {"training": {"optim": "sgd"}},
    "training.fp16": {"training": {"fp16": True}},
    "training.fsdp": {"training": {"fsdp": "full_shard"}},
    "training.optim_args": {"training": {"optim_args": "a=1"}},
}


@pytest.mark.parametrize("field", IS_FIXED)
def test_a_setting_that_cannot_be_applied_is_refused_even_if_it_is_allowed(
    checkpoint: Path, field: str
) -> None:
    change = IS_FIXED[field]
    recipe = build_recipe(**{k: v for k, v in change.items() if v})
    if change == {"adapter": None}:
        recipe = recipe.model_copy(update={"adapter": None})
    with pytest.raises(
        RecipeError, match=rf"{field}: .* This cannot be changed in a resumed run: [A-Z]"
    ) as refused:
        compare_recipe(checkpoint, recipe, [field])
    assert str(refused.value).count(" -> ") == 1
    assert "--allow-changed" not in str(refused.value)


def test_a_harmless_setting_is_no_difference(checkpoint: Path) -> None:
    recipe = build_recipe(
        training={
            "output_dir": "elsewhere",
            "logging_steps": 3,
            "save_steps": 2,
            "eval_strategy": "steps",
            "dataloader_num_workers": 2,
            "run_name": "other",
            "hub_token": "secret",
        },
        data={"train": "moved", "eval": "also"},
        samples={"texts": ["one"]},
        guard={"policy": "raise"},
    )
    compare_recipe(checkpoint, recipe, ())
    assert compare_run(checkpoint, describe(recipe, data={"eval_content": ["c"]}), ()) == []


def test_the_evaluation_matters_where_it_decides_the_result(checkpoint: Path) -> None:
    decisive = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    recipe = build_recipe(training=decisive, data={"eval": "held_out"})
    (checkpoint / "resume.json").write_text(json.dumps(describe(recipe)))
    other = build_recipe(training=decisive | {"eval_steps": 2}, data={"eval": "held_out"})
    with pytest.raises(RecipeError, match=r"training.eval_steps: null -> 2"):
        compare_recipe(checkpoint, other, ())
    with pytest.raises(RecipeError, match=r"data.eval_content: \[\"b\"\] -> \[\"c\"\]"):
        compare_run(checkpoint, describe(recipe, data={"eval_content": ["c"]}), ())


def test_early_stopping_that_is_added_is_one_difference(checkpoint: Path) -> None:
    fields = describe_recipe(build_recipe()) | {
        "early_stopping": "on",
        "early_stopping.patience": 2,
        "early_stopping.threshold": 0.0,
    }
    record = describe(build_recipe()) | {"recipe": fields}
    with pytest.raises(RecipeError) as refused:
        compare_run(checkpoint, record, ())
    assert str(refused.value).count(" -> ") == 1


@pytest.mark.parametrize(
    ("facts", "line", "is_fixed"),
    [
        ({"data": {"train_content": ["c"]}}, 'data.train_content: ["a"] -> ["c"]', False),
        ({"data": {"train_content": ["a x 2"]}}, 'data.train_content: ["a"] -> ["a x 2"]', False),
        ({"data": {"groups_per_epoch": 7}}, "data.groups_per_epoch: 6 -> 7", False),
        ({"base_model": {"fingerprint": "g"}}, 'base_model.fingerprint: "f" -> "g"', False),
        ({"versions": {"torch": "2"}}, 'versions.torch: "1" -> "2"', False),
        ({"base_model": {"family": "boson"}}, 'base_model.family: "higgs_audio_v2" -> "boson"', True),
        ({"world_size": 2}, "world_size: 1 -> 2", True),
        ({"optimizer": "Muon"}, 'optimizer: null -> "Muon"', True),
    ],
)
def test_the_facts_of_the_run_are_compared(
    checkpoint: Path, facts: dict[str, Any], line: str, is_fixed: bool
) -> None:
    record = describe(build_recipe(), **facts)
    with pytest.raises(RecipeError) as refused:
        compare_run(checkpoint, record, ())
    assert f"  {line}" in str(refused.value)
    field = line.partition(":")[0]
    if is_fixed:
        with pytest.raises(RecipeError, match="cannot be changed in a resumed run"):
            compare_run(checkpoint, record, [field])
    else:
        assert [change["field"] for change in compare_run(checkpoint, record, [field])] == [field]


def test_another_number_of_packs_that_follows_from_an_allowed_change_is_no_second_difference(
    checkpoint: Path,
) -> None:
    record = describe(build_recipe(), data={"train_content": ["c"], "groups_per_epoch": 9})
    (change,) = compare_run(checkpoint, record, ["data.train_content"])
    assert change["now"] == ["c"]


@pytest.mark.parametrize(
    ("was", "now", "is_extension"),
    [
        ({"max_steps": 10}, {"max_steps": 20}, True),
        ({"max_steps": 10}, {"max_steps": 5}, False),
        ({"max_steps": 10}, {"max_steps": -1}, False),
        ({"max_steps": -1}, {"max_steps": 20}, False),
        ({"max_steps": -1, "num_train_epochs": 2}, {"max_steps": -1, "num_train_epochs": 3.5}, True),
        ({"max_steps": -1, "num_train_epochs": 2}, {"max_steps": -1, "num_train_epochs": 1}, False),
    ],
)
def test_a_run_may_be_extended_and_only_on_request_shortened(
    checkpoint: Path, was: dict[str, Any], now: dict[str, Any], is_extension: bool
) -> None:
    (checkpoint / "resume.json").write_text(json.dumps(describe(build_recipe(training=was))))
    recipe = build_recipe(training=now)
    if not is_extension:
        with pytest.raises(RecipeError, match="would be another run"):
            compare_recipe(checkpoint, recipe, ())
    assert len(compare_run(checkpoint, describe(recipe), () if is_extension else LENGTH)) == 1


def test_the_learning_rate_of_a_schedule_with_a_state_cannot_be_changed(checkpoint: Path) -> None:
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"}
    recipe = build_recipe(training=plateau, data={"eval": "held_out"})
    (checkpoint / "resume.json").write_text(json.dumps(describe(recipe)))
    other = build_recipe(training=plateau | {"learning_rate": 1.0}, data={"eval": "held_out"})
    with pytest.raises(RecipeError, match="is a result of the run so far"):
        compare_recipe(checkpoint, other, ["training.learning_rate"])


def test_a_checkpoint_without_a_record_is_refused(checkpoint: Path) -> None:
    for content in ("{}", "[]", "{", '{"schema": "higgs-trainer/resume/1", "recipe": 3}'):
        (checkpoint / "resume.json").write_text(content)
        with pytest.raises(Exception, match=r"resume\.json") as refused:
            compare_recipe(checkpoint, build_recipe(), ())
        assert refused.value.exit_code == 2
    (checkpoint / "resume.json").unlink()
    with pytest.raises(RecipeError, match=r"has no resume\.json.*start a new run"):
        compare_recipe(checkpoint, build_recipe(), ())


def test_a_field_may_be_named_by_its_last_part_and_must_exist() -> None:
    resumed = build_recipe(training={"resume_from_checkpoint": True})
    assert check_allowed(["seed", "training.learning_rate", "fingerprint"], resumed) == {
        "training.seed",
        "training.learning_rate",
        "base_model.fingerprint",
    }
    with pytest.raises(RecipeError, match=r"--allow-changed training.lerning_rate: .*training.learning_rate"):
        check_allowed(["training.lerning_rate"], resumed)
    for name in ("all", "training", "*", ""):
        with pytest.raises(RecipeError, match="no such field"):
            check_allowed([name], resumed)


def test_a_permission_without_a_resume_is_refused() -> None:
    assert check_allowed([], build_recipe()) == frozenset()
    with pytest.raises(
        RecipeError, match=r"--allow-changed seed: this run resumes nothing.*resume_from_checkpoint"
    ):
        check_allowed(["seed"], build_recipe())


def test_every_field_of_the_tables_exists() -> None:
    """A field that was renamed would silently matter, or silently become possible."""
    known = {*describe_recipe(build_recipe()), *PLACES, *FACTS}
    known |= {f"training.{name}" for name in list_extra_names(TrainingRecipe.list_own_fields())}
    tables = {*HARMLESS, *EVALUATION, *FIXED, *ORDER, *LENGTH}
    assert tables - known == set()


def test_no_path_and_no_secret_is_stored() -> None:
    recipe = build_recipe(
        model={"name_or_path": "/home/me/base", "codec": "/home/me/codec"},
        data={"train": "/home/me/train", "eval": ["/home/me/a", "/home/me/b"]},
        samples={"texts": ["one"], "ref_audio": "/home/me/a.wav", "ref_text": "one"},
        training={
            "output_dir": "/home/me/out",
            "hub_token": "secret",
            "resume_from_checkpoint": "/home/me/c",
        },
    )
    stored = json.dumps(describe_recipe(recipe))
    assert "/home" not in stored
    assert "secret" not in stored


def test_the_history_has_the_changes_and_forgets_those_after_the_step(tmp_path: Path) -> None:
    def change(field: str) -> Any:
        return [{"field": field, "was": 1, "now": 2}]

    def start_at(step: int) -> Path:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir(exist_ok=True)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        return folder

    def read() -> list[tuple[int, str]]:
        lines = (tmp_path / "history.jsonl").read_text().splitlines()
        return [(line["step"], line["changes"][0]["field"]) for line in map(json.loads, lines)]

    write_history(tmp_path, start_at(3), [])
    assert not (tmp_path / "history.jsonl").exists()
    write_history(tmp_path, start_at(3), change("a"))
    write_history(tmp_path, start_at(6), change("b"))
    write_history(tmp_path, start_at(6), change("c"))
    assert read() == [(3, "a"), (6, "c")]
    write_history(tmp_path, start_at(5), [])
    assert read() == [(3, "a")]
    write_history(tmp_path, None, [])
    assert not (tmp_path / "history.jsonl").exists()


@pytest.mark.parametrize("content", ['{"step": 3, "chan', "[]\n", '{"changes": []}\n', '{"step": "3"}\n'])
def test_a_damaged_history_is_named(tmp_path, content):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3}')
    (tmp_path / "history.jsonl").write_text(content)
    with pytest.raises(RecipeError, match=r"history.jsonl is damaged .* rename it"):
        write_history(tmp_path, tmp_path / "checkpoint-3", [])


# The changed arguments reach the optimizer and the schedule.


def build_optimizer(rate: float, decay: float, beta: float, num_steps: int) -> tuple[Any, Any]:
    torch.manual_seed(0)
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(3))], "weight_decay": decay},
        {"params": [torch.nn.Parameter(torch.ones(2))], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, beta))
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=num_steps)
    return optimizer, scheduler


def advance(optimizer: Any, scheduler: Any, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.ones_like(group["params"][0])
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_changed_arguments_replace_those_of_the_checkpoint_and_no_others() -> None:
    old = build_optimizer(1e-3, 0.1, 0.99, 10)
    advance(*old, 4)
    optimizer, scheduler = build_optimizer(1e-2, 0.3, 0.9, 20)
    planned = plan_optimizer(optimizer, scheduler)
    optimizer.load_state_dict(old[0].state_dict())
    scheduler.load_state_dict(old[1].state_dict())
    apply_changes(optimizer, scheduler, planned, ["learning_rate", "weight_decay"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.99)}
    calm = build_optimizer(1e-2, 0.3, 0.9, 20)
    assert advance(optimizer, scheduler, 6) == advance(*calm, 10)[4:]
    assert scheduler.get_last_lr() == calm[1].get_last_lr()


def test_without_a_change_the_next_learning_rate_is_that_of_the_checkpoint() -> None:
    old = build_optimizer(1e-3, 0.1, 0.99, 10)
    advance(*old, 4)
    optimizer, scheduler = build_optimizer(1e-3, 0.1, 0.99, 10)
    planned = plan_optimizer(optimizer, scheduler)
    optimizer.load_state_dict(old[0].state_dict())
    scheduler.load_state_dict(old[1].state_dict())
    apply_changes(optimizer, scheduler, planned, ())
    assert advance(optimizer, scheduler, 6) == advance(*old, 6)


def test_early_stopping_continues_to_count() -> None:
    counted = EarlyStoppingCallback(3)
    counted.early_stopping_patience_counter = 2
    for stored in (counted.state(), [counted.state()]):
        resumed = EarlyStoppingCallback(5)
        state = TrainerState(stateful_callbacks=[])
        state.stateful_callbacks = {"EarlyStoppingCallback": stored}
        restore_patience(state, [resumed])
        assert (resumed.early_stopping_patience_counter, resumed.early_stopping_patience) == (2, 5)


# Whole runs.


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return script["write_inputs"](tmp_path_factory.mktemp("inputs"), max_steps=3)


def run(recipe: Path, out: Path, *overrides: str, allow: tuple[str, ...] = (), **options: Any) -> None:
    changes = ["--output_dir", str(out), "--eval_strategy", "no", *overrides]
    train(read_recipe(recipe, changes), allow_changed=allow, **options)


def read_steps(out: Path) -> list[dict[str, float]]:
    return [line for line in script["read_metrics"](out) if "loss" in line]


@pytest.fixture(scope="module")
def short(recipe: Path) -> Path:
    """A run of three steps with a constant learning rate, and its checkpoint."""
    out = recipe.parent / "short"
    run(recipe, out, "--lr_scheduler_type", "constant")
    return out


@pytest.fixture
def copied(short: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(short, tmp_path / "out"))


CONSTANT = ("--lr_scheduler_type", "constant")


def test_an_extended_run_with_a_constant_learning_rate_is_the_longer_run(
    recipe: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe, copied, *CONSTANT, "--max_steps", "5")
    assert "training.max_steps: 3 -> 5" in capsys.readouterr().out
    run(recipe, tmp_path / "calm", *CONSTANT, "--max_steps", "5")
    assert script["read_losses"](copied) == script["read_losses"](tmp_path / "calm")
    weights, expected = (load_file(out / "adapter_model.safetensors") for out in (copied, tmp_path / "calm"))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not (tmp_path / "calm" / "history.jsonl").exists()
    (line,) = (copied / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["changes"] == [{"field": "training.max_steps", "was": 3, "now": 5}]


def test_the_learning_rates_of_an_extended_run_are_those_of_the_longer_schedule(
    recipe: Path, tmp_path: Path
) -> None:
    linear = ("--lr_scheduler_type", "linear", "--learning_rate", "1e-3")
    run(recipe, tmp_path, *linear, "--max_steps", "2", "--save_steps", "2")
    run(recipe, tmp_path, *linear, "--max_steps", "4", "--save_steps", "2")
    rates = [line["learning_rate"] for line in read_steps(tmp_path)]
    assert rates == pytest.approx([1e-3, 0.5e-3, 0.5e-3, 0.25e-3])


class Recorder(TrainerCallback):
    """Record what the run really uses at its first step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        if hasattr(self, "rates"):
            return
        self.rates = {group["lr"] for group in objects["optimizer"].param_groups}
        self.scalings = {
            module.scaling["default"] for module in objects["model"].modules() if hasattr(module, "scaling")
            and isinstance(module.scaling, dict)
        }  # fmt: skip


def test_allowed_changes_are_applied_and_recorded(recipe: Path, copied: Path) -> None:
    changes = ("--max_steps", "4", "--learning_rate", "5e-3", "--lora_alpha", "6", "--logging_steps", "1")
    with pytest.raises(RecipeError) as refused:
        run(recipe, copied, *CONSTANT, *changes)
    assert str(refused.value).count(" -> ") == 2, refused.value
    recorder = Recorder()
    allow = ("learning_rate", "adapter.lora_alpha")
    run(recipe, copied, *CONSTANT, *changes, allow=allow, callbacks=[recorder])
    assert recorder.rates == {5e-3}
    assert recorder.scalings == {6 / 4}
    assert json.loads((copied / "adapter_config.json").read_text())["lora_alpha"] == 6
    assert [change["field"] for change in json.loads((copied / "history.jsonl").read_text())["changes"]] == [
        "training.learning_rate",
        "training.max_steps",
        "adapter.lora_alpha",
    ]
    # The new checkpoint has the new settings, so the same command finds no difference.
    run(recipe, copied, *CONSTANT, *changes)


def test_data_and_model_may_move_but_not_change(recipe: Path, copied: Path, tmp_path: Path) -> None:
    model, data = (shutil.copytree(recipe.parent / name, tmp_path / name) for name in ("model", "prepared"))
    moved = ("--model.name_or_path", str(model), "--data.train", str(data), "--max_steps", "4")
    run(recipe, copied, *CONSTANT, *moved)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"more": 1}))
    (model / "checksums.json").unlink(missing_ok=True)
    with pytest.raises(RecipeError, match=r"base_model\.fingerprint"):
        run(recipe, copied, *CONSTANT, *moved)


def test_other_settings_of_logs_take_effect(recipe: Path, copied: Path) -> None:
    """Trainer would take them from the checkpoint."""
    run(recipe, copied, *CONSTANT, "--max_steps", "6", "--logging_steps", "2", "--save_steps", "5")
    assert [line["step"] for line in read_steps(copied)] == [1, 2, 3, 4, 6]
    assert list_fields(json.loads((copied / "checkpoint-6" / "resume.json").read_text()))["world_size"] == 1
