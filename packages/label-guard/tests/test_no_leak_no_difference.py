"""First law: without a leak, a guarded run is the unguarded run, bit for bit, for any shape of model and trainer.

Each case is a trainer as people write it. It is run as it is and under the guard. Compared are: losses, gradient norms,
weights, metrics, predictions, the types that each method receives, calls of the model, accesses to the dataset, the
state of the random numbers, and the exception, if there is one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import GPT2LMHeadModel, Trainer

from label_guard import LabelGuard, LabelGuardMixin
from tiny_guarded import (
    HIDDEN,
    VOCABULARY,
    RemoteCausalLM,
    collate_plain,
    collate_with_labels,
    gpt2_config,
    make_model,
    make_rows,
    make_trainer,
    next_token_loss,
)


class RandomRows(Dataset[Any]):
    """A dataset that counts its accesses and draws a random number at each, as one that augments does."""

    def __init__(self, count: int) -> None:
        self.rows = [row | {"weight": 1.5} for row in make_rows(count)]
        self.accesses: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.accesses.append(index)
        return self.rows[index] | {"noise": float(torch.rand(()))}


class RecordingTrainer(Trainer):
    """Records the type of what its methods receive and return."""

    def record(self, name: str, value: Any) -> None:
        self.__dict__.setdefault("received", []).append((name, type(value)))

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.record("training_step", inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def _prepare_inputs(self, inputs: Any) -> Any:
        self.record("_prepare_inputs", inputs)
        return super()._prepare_inputs(inputs)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        self.record(f"compute_loss, {return_outputs}, {sorted(kwargs)}", inputs)
        return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.record("prediction_step", inputs)
        return super().prediction_step(model, inputs, *args, **kwargs)


class BatchObject:
    """A batch with attributes, as in trainers that do not use dicts."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __contains__(self, key: str) -> bool:
        return key in vars(self)


class TakesObjects(RecordingTrainer):
    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        self.record("compute_loss", inputs)
        outputs = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
        return next_token_loss(outputs, inputs.labels)


class TakesLists(RecordingTrainer):
    def _prepare_inputs(self, inputs: Any) -> Any:
        self.record("_prepare_inputs", inputs)
        return Trainer._prepare_inputs(self, collate_with_labels(list(map(only_ids, inputs))))


class RefusesOutputs(RecordingTrainer):
    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        if return_outputs:
            raise ValueError("this trainer does not return outputs")
        return super().compute_loss(model, inputs, **kwargs)


class OwnBatchSamples(RecordingTrainer):
    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self.record(f"get_batch_samples, {len(args)}, {sorted(kwargs)}", args[0])
        return Trainer.get_batch_samples(self, *args, **kwargs)


class ConsumesKeys(RecordingTrainer):
    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        weight = inputs.pop("weight").mean()
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        return (loss * weight, outputs) if return_outputs else loss * weight


class OwnColumns(RecordingTrainer):
    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "attention_mask", "weight"]


class OwnPrediction(RecordingTrainer):
    def prediction_step(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Any:
        self.record("prediction_step", inputs)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            return torch.tensor(7.0), model(**inputs)["logits"], inputs["labels"]


class PatchedByWraps(RecordingTrainer):
    @functools.wraps(Trainer.compute_loss)
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.record("patched", args[1])
        return Trainer.compute_loss(self, *args, **kwargs)


def compute_scaled(self: Any, model: nn.Module, inputs: Any, *args: Any, scale: float, **kwargs: Any) -> Any:
    self.record("partial", inputs)
    loss = Trainer.compute_loss(self, model, inputs, **{**kwargs, "return_outputs": True})
    return (loss[0] * scale, loss[1]) if kwargs.get("return_outputs") else loss[0] * scale


class PatchedByPartialMethod(RecordingTrainer):
    compute_loss = functools.partialmethod(compute_scaled, scale=0.5)  # type: ignore[assignment]


class SwallowsErrors(RecordingTrainer):
    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        try:
            return next_token_loss(model(**inputs), inputs["labels"])
        except TypeError:
            return sum(parameter.sum() for parameter in model.parameters()) * 0.001


class WrapperWithLoss(nn.Module):
    """A wrapper that names ``labels`` and computes the loss itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        loss = None if labels is None else next_token_loss((logits,), labels)
        return {"loss": loss, "logits": logits}


class Contrastive(nn.Module):
    """A model that computes its loss without labels, if ``return_loss`` asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, HIDDEN)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, return_loss: bool = True) -> Any:
        embedded = self.table(input_ids).mean(dim=1)
        logits = embedded @ embedded.T
        outputs = {"logits": logits}
        if return_loss:
            outputs = {"loss": nn.functional.cross_entropy(logits, torch.arange(len(logits)))} | outputs
        return outputs


class TakesAnyKey(WrapperWithLoss):
    """A model that takes labels from its ``**kwargs``."""

    def forward(self, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().forward(kwargs["input_ids"], kwargs["attention_mask"], kwargs.get("labels"))


def only_ids(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("input_ids", "attention_mask")}


def collate(rows: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
    return collate_with_labels(list(map(only_ids, rows))) | extra


def causal_lm() -> nn.Module:
    return make_model(GPT2LMHeadModel)


@dataclass(frozen=True)
class Case:
    """A trainer, its model and its options."""

    kind: type[Trainer] = RecordingTrainer
    model: Callable[[], nn.Module] = causal_lm
    collate: Callable[[Any], Any] = collate
    options: dict[str, Any] = field(default_factory=dict)
    patch: Callable[[Any], None] = lambda trainer: None


def patch_instance(trainer: Any) -> None:
    stock = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: stock(*args, **kwargs)


CASES = {
    "stock": Case(),
    "gradient accumulation": Case(options={"gradient_accumulation_steps": 2}),
    "label smoothing": Case(options={"label_smoothing_factor": 0.1}),
    "compute_loss_func": Case(options={"compute_loss_func": next_token_loss}),
    "batches with attributes": Case(TakesObjects, collate=lambda rows: BatchObject(**collate(rows))),
    "batches are lists": Case(TakesLists, collate=list),
    "compute_loss refuses return_outputs": Case(RefusesOutputs),
    "get_batch_samples(*args, **kwargs)": Case(OwnBatchSamples),
    "keys that the trainer consumes": Case(
        ConsumesKeys, collate=lambda rows: collate(rows, weight=torch.tensor([row["weight"] for row in rows]))
    ),
    "own signature columns": Case(OwnColumns, options={"remove_unused_columns": True}),
    "own prediction_step": Case(OwnPrediction),
    "compute_loss patched by wraps": Case(PatchedByWraps),
    "compute_loss patched by partialmethod": Case(PatchedByPartialMethod),
    "compute_loss patched on the instance": Case(patch=patch_instance),
    "errors are swallowed": Case(SwallowsErrors, collate=lambda rows: collate(rows, unknown=1)),
    "wrapper that computes the loss": Case(model=lambda: WrapperWithLoss(causal_lm())),
    "causal LM of the hub": Case(model=RemoteCausalLM),
    "model that takes any key": Case(model=lambda: TakesAnyKey(causal_lm())),
    "return_loss by default": Case(
        model=Contrastive, collate=lambda rows: collate_plain(list(map(only_ids, rows)))
    ),
    "return_loss in the batch": Case(
        model=Contrastive,
        collate=lambda rows: collate_plain(list(map(only_ids, rows))) | {"return_loss": True},
    ),
    "label_names is empty": Case(options={"label_names": []}),
    "label_names has a missing key": Case(options={"label_names": ["labels", "missing"]}),
    "a key that nothing takes": Case(
        model=Contrastive, collate=lambda rows: collate_plain(list(map(only_ids, rows))) | {"speed": 1}
    ),
    "batch holds None": Case(collate=lambda rows: collate(rows, position_ids=None)),
}  # fmt: skip


def observe(case: Case, kind: type[Trainer], folder: Path) -> dict[str, Any]:
    """Train, evaluate and predict. Returns all that must be the same with and without the guard."""
    torch.manual_seed(5)
    model = case.model()
    calls: list[Any] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append([(key, type(kwargs[key])) for key in kwargs]),
        with_kwargs=True,
    )
    rows, evaluated = RandomRows(8), RandomRows(4)
    options = {"compute_loss_func": None, "data_collator": case.collate, "max_grad_norm": 1.0} | case.options
    trainer = make_trainer(folder, model, kind=kind, train_dataset=rows, eval_dataset=evaluated, **options)
    case.patch(trainer)
    seen: dict[str, Any] = {"errors": []}
    for stage in ("train", "evaluate", "predict"):
        try:
            result = trainer.predict(evaluated) if stage == "predict" else getattr(trainer, stage)()
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            seen["errors"].append((stage, type(error), str(error)))
            continue
        metrics = result if isinstance(result, dict) else result.metrics
        seen[stage] = {
            key: value for key, value in metrics.items() if "runtime" not in key and "second" not in key
        }
        if stage == "predict":
            seen["predictions"] = flatten(result.predictions)
            seen["label_ids"] = flatten(result.label_ids)
    seen |= {
        "logged": [(entry.get("loss"), entry.get("grad_norm")) for entry in trainer.state.log_history],
        "received": trainer.__dict__.get("received"),
        "calls": calls,
        "accesses": (rows.accesses, evaluated.accesses),
        "columns": trainer._signature_columns,
        "scaling": trainer.model_accepts_loss_kwargs,
        "random": torch.get_rng_state().tolist(),
        "weights": [parameter.tolist() for parameter in model.parameters()],
    }
    return seen


def flatten(value: Any) -> Any:
    return (
        [flatten(item) for item in value]
        if isinstance(value, (tuple, list))
        else getattr(value, "tolist", list)()
    )


@pytest.mark.parametrize("name", CASES)
def test_a_guarded_run_without_a_leak_is_the_unguarded_run(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    expected = observe(case, case.kind, tmp_path)
    guarded = type("Guarded", (LabelGuardMixin, case.kind), {})
    got = observe(case, guarded, tmp_path)
    for what in expected:
        ours = (
            [str(error).replace("Guarded", case.kind.__name__) for error in got[what]]
            if what == "errors"
            else got[what]
        )
        theirs = list(map(str, expected[what])) if what == "errors" else expected[what]
        assert ours == theirs, what


# A trainer in the shape of a published one for Higgs Audio


class Speech(nn.Module):
    """A model that takes neither ``labels`` nor ``**kwargs``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.q_proj = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY)
        self.config = gpt2_config()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        label_ids: Any = None,
        inputs_embeds: Any = None,
        output_attentions: Any = None,
        output_hidden_states: Any = None,
        return_dict: Any = None,
    ) -> Any:
        return {"logits": self.head(self.q_proj(self.embed(input_ids)))}

    def prepare_inputs_for_generation(self, *_: Any, **__: Any) -> None:
        """Do nothing; PEFT's task classes expect the method."""


class PatchedSpeech(Speech):
    """The model after a patch of its class that drops labels: it takes any key."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("labels", None)
        return super().forward(*args, **kwargs)


class SpeechWrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, **kwargs: Any) -> Any:
        kwargs.pop("labels", None)
        return self.model(**kwargs)


class SpeechTrainer(Trainer):
    """Its loss reads attributes of the batch, and turns any error into a constant."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        try:
            if isinstance(inputs, dict):
                # Audio codes are taken for text labels here, which fails.
                return next_token_loss(model(**inputs), inputs["label_audio_ids"])
            outputs = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
            return next_token_loss(outputs, inputs.label_ids)
        except (TypeError, KeyError, AttributeError):
            return torch.tensor(0.001, requires_grad=True)


def train_speech(folder: Path, model: nn.Module, kind: type[Trainer], guard_alone: bool = False) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    wrapper = SpeechWrapper(model)
    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    wrapper.model = get_peft_model(wrapper.model, adapter)
    weights = {name: value.clone() for name, value in wrapper.named_parameters() if "lora_" in name}
    guard = LabelGuard(wrapper) if guard_alone else None

    def make_batch(rows: Any) -> BatchObject:
        batch = collate(rows)
        return BatchObject(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], label_ids=batch["labels"]
        )

    options = {"compute_loss_func": None, "data_collator": make_batch}
    trainer = make_trainer(folder, wrapper, kind=kind, **options)
    trainer.train()
    moved = {
        name: not torch.equal(value, weights[name])
        for name, value in wrapper.named_parameters()
        if name in weights
    }
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, moved, guard or getattr(trainer, "guard", None)


def make_speech(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


@pytest.mark.parametrize("way", ["mixin", "LabelGuard alone"])
def test_a_trainer_that_swallows_errors_trains_under_the_guard_and_the_source_is_named(
    way: str, tmp_path: Path
) -> None:
    broken, moved, _ = train_speech(tmp_path, make_speech(Speech), SpeechTrainer)
    assert broken == [pytest.approx(0.001)] * 2
    assert not any(moved.values())
    expected, _, _ = train_speech(tmp_path, make_speech(PatchedSpeech), SpeechTrainer)
    kind = type("Guarded", (LabelGuardMixin, SpeechTrainer), {}) if way == "mixin" else SpeechTrainer
    losses, moved, guard = train_speech(tmp_path, make_speech(Speech), kind, guard_alone=way != "mixin")
    assert losses == expected
    assert len(moved) == 2
    assert all(moved.values())
    assert guard.leaks[0].source.name.startswith("PeftModelForCausalLM.forward (peft/peft_model.py:")


def test_such_a_trainer_with_its_patch_left_in_trains_as_before(tmp_path: Path) -> None:
    expected, _, _ = train_speech(tmp_path, make_speech(PatchedSpeech), SpeechTrainer)
    kind = type("Guarded", (LabelGuardMixin, SpeechTrainer), {})
    losses, moved, guard = train_speech(tmp_path, make_speech(PatchedSpeech), kind)
    assert losses == expected
    assert all(moved.values())
    assert "not watched: PatchedSpeech.forward, which takes any key" in guard.ledger.verdict()
