"""HiggsAudioTrainer as Hugging Face users build trainers: from names, folders and a LoRA configuration of PEFT."""

import logging
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig
from transformers import TrainerCallback, TrainingArguments

from higgs_trainer.audio.codec import load_codec
from higgs_trainer.dataset.prepared import read_prepared
from higgs_trainer.errors import CheckpointError, RecipeError, UserError
from higgs_trainer.model.indexed_layers import IndexedDecoderLayer
from higgs_trainer.model.loading import load_checkpoint, load_trained
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.report.run_page import write_report
from higgs_trainer.run.train import train
from higgs_trainer.sharing.merging import merge_adapter
from higgs_trainer.speech.speech_model import load_speech_model
from higgs_trainer.training.trainer import HiggsAudioTrainer

script = runpy.run_path(str(Path(__file__).resolve().parents[3] / "scripts" / "kill_and_resume.py"))
ARGUMENTS = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "optim": "adamw_torch_fused",
    "max_steps": 3,
    "logging_steps": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "save_strategy": "no",
}
LORA = {"r": 4, "lora_alpha": 32, "lora_dropout": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with its codec in "model", and a dataset of eleven tones in "prepared"."""
    folder = tmp_path_factory.mktemp("inputs")
    script["write_inputs"](folder, max_steps=3)
    return folder


def build(folder, output_dir, *, arguments=None, **options):
    options = {"model": folder / "model", "train_dataset": folder / "prepared"} | options
    arguments = TrainingArguments(str(output_dir), **(ARGUMENTS | (arguments or {})))
    return HiggsAudioTrainer(args=arguments, **options)


def list_losses(log):
    return [(entry["loss"], entry["codebook_7_loss"], entry["grad_norm"]) for entry in log if "loss" in entry]


@pytest.mark.parametrize(("packing", "adapted"), [(True, True), (False, False)])
def test_the_losses_are_those_of_a_recipe_with_the_same_values(folder, tmp_path, packing, adapted):
    data = {"train": str(folder / "prepared"), "packing": packing} | (
        {"tokens_per_pack": 150} if packing else {}
    )
    batch_size = 1 if packing else 3
    recipe = Recipe(
        model={"name_or_path": str(folder / "model")},
        data=data,
        adapter=LORA if adapted else None,
        training={
            **ARGUMENTS,
            "output_dir": str(tmp_path / "cli"),
            "per_device_train_batch_size": batch_size,
        },
    )
    train(recipe)
    trainer = build(
        folder,
        tmp_path / "python",
        model=str(folder / "model"),
        train_dataset=str(folder / "prepared"),
        arguments={"per_device_train_batch_size": batch_size},
        peft_config=LoraConfig(**LORA) if adapted else None,
        tokens_per_pack=150 if packing else None,
    )
    trainer.train()
    expected = list_losses(script["read_metrics"](tmp_path / "cli"))
    assert len(expected) == 3
    assert list_losses(trainer.state.log_history) == expected


def test_a_module_is_trained_like_the_model_of_its_name(folder, tmp_path):
    losses = []
    for model in (folder / "model", load_checkpoint(folder / "model").model):
        torch.manual_seed(len(losses))
        trainer = build(folder, tmp_path, model=model, peft_config=LoraConfig(**LORA | {"lora_dropout": 0.0}))
        trainer.train()
        losses.append([loss for loss, *_ in list_losses(trainer.state.log_history)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert not any(isinstance(module, IndexedDecoderLayer) for module in trainer.model.modules())


def test_every_form_of_a_prepared_dataset_is_accepted(folder, tmp_path):
    prepared = read_prepared(folder / "prepared")
    opened = {
        "folder": folder / "prepared",
        "text": str(folder / "prepared"),
        "opened": prepared,
        "several": [prepared, folder / "prepared"],
    }
    trainer = build(folder, tmp_path, train_dataset=opened["several"], eval_dataset=opened)
    assert len(trainer.train_dataset) == 22
    metrics = trainer.evaluate()
    assert metrics["eval_folder_loss"] == metrics["eval_text_loss"] == metrics["eval_opened_loss"]
    assert metrics["eval_several_loss"] == pytest.approx(metrics["eval_folder_loss"], rel=1e-5)
    assert trainer.evaluate("text")["eval_loss"] == metrics["eval_text_loss"]
    assert trainer.evaluate(folder / "prepared")["eval_loss"] == metrics["eval_folder_loss"]
    assert trainer.predict(prepared).metrics["test_loss"] == metrics["eval_folder_loss"]


def test_an_epoch_is_in_the_random_order_of_its_plan(folder, tmp_path):
    trainer = build(folder, tmp_path, arguments={"per_device_train_batch_size": 4, "seed": 5})
    groups = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    planned = [example.utterance_id for group in groups for example in group]
    loaded = [name for batch in trainer.get_train_dataloader() for name in batch["utterance_ids"]]
    assert loaded == planned != sorted(planned)


def test_a_task_type_is_left_out_with_the_reason(folder, tmp_path, caplog):
    given = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear")
    with caplog.at_level(logging.WARNING):
        trainer = build(folder, tmp_path, peft_config=given)
    assert type(trainer.model).__name__ == "PeftModel"
    assert trainer.model.peft_config["default"].task_type is None
    assert given.task_type == "CAUSAL_LM"
    assert given.target_modules == "all-linear"
    assert "passes labels=None to the model in every call" in caplog.text
    trainer.train()
    assert trainer.guard.ledger.leaks == []


TARGETS = {
    "nothing": (None, {"q_proj", "audio_mlp.gate_proj"}, {"mlp.up_proj", "audio_lm_head"}),
    "a preset": ("attention", {"q_proj"}, {"audio_mlp.gate_proj", "mlp.up_proj"}),
    "PEFT's preset": ("all-linear", {"q_proj", "mlp.up_proj"}, {"audio_lm_head"}),
    "names": (["k_proj"], {"k_proj"}, {"q_proj"}),
    "a regular expression": (r".*\.1\..*v_proj", {"v_proj"}, {"q_proj"}),
}


@pytest.mark.parametrize(("targets", "trained", "frozen"), TARGETS.values(), ids=TARGETS)
def test_target_modules_may_be_given_as_in_peft_or_as_in_a_recipe(folder, tmp_path, targets, trained, frozen):
    model = build(folder, tmp_path, peft_config=LoraConfig(target_modules=targets)).model
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert all(any(name.endswith(f".{kind}") for name in adapted) for kind in trained)
    assert not any(name.endswith(f".{kind}") for name in adapted for kind in frozen)
    if targets == TARGETS["a regular expression"][0]:
        assert len(adapted) == 1


def test_what_is_saved_can_be_spoken_with_merged_and_reported(folder, tmp_path):
    for name, peft_config in (("adapter", LoraConfig(**LORA)), ("whole", None)):
        trainer = build(folder, tmp_path / name, peft_config=peft_config, eval_dataset=folder / "prepared")
        trainer.train()
        trainer.evaluate()
        trainer.save_model()
        speech = load_speech_model(tmp_path / name).generate("one", max_seconds=0.2)
        assert len(speech.waveform_S)
        write_report([tmp_path / name], tmp_path / f"{name}.html")
        page = (tmp_path / f"{name}.html").read_text()
        assert "trainable_parameters.json" not in page
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert load_checkpoint(tmp_path / "merged")
    changed = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(changed[:-1] + bytes([changed[-1] ^ 1]))
    with pytest.raises(CheckpointError):
        load_trained(tmp_path / "adapter")


def test_the_base_model_of_an_adapter_is_found_wherever_it_is(folder, tmp_path, monkeypatch):
    """A path over the home folder is not shared: only a private file of the run says where the model is."""
    monkeypatch.setattr("higgs_trainer.shared_paths._find_user", lambda: folder.name)
    trainer = build(
        folder, tmp_path / "run", peft_config=LoraConfig(**LORA), arguments={"save_strategy": "epoch"}
    )
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    for saved in (tmp_path / "run", tmp_path / "run" / "checkpoint-3", tmp_path / "elsewhere"):
        assert "_local/model-" in (saved / "adapter_config.json").read_text()
        assert load_trained(saved)


class Count(TrainerCallback):
    """A callback of a user."""

    steps = 0

    def on_step_end(self, *args, **kwargs):
        self.steps += 1


def test_callbacks_and_resuming_work_as_in_trainer(folder, tmp_path):
    save = {"save_strategy": "steps", "save_steps": 1}
    whole, half = Count(), Count()
    straight = build(folder, tmp_path / "straight", arguments=save, callbacks=[whole])
    straight.train()
    build(folder, tmp_path / "twice", arguments=save | {"max_steps": 3}, callbacks=[half, StopAt(2)]).train()
    resumed = build(folder, tmp_path / "twice", arguments=save)
    resumed.train(resume_from_checkpoint=True)
    assert (whole.steps, half.steps) == (3, 2)
    assert list_losses(resumed.state.log_history) == list_losses(straight.state.log_history)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


REFUSED = {
    "a batch of packs": (
        {"tokens_per_pack": 150},
        {"per_device_train_batch_size": 8},
        "a pack is a whole batch",
    ),
    "another adapter": (
        {"peft_config": PromptTuningConfig(num_virtual_tokens=2)},
        {},
        "only LoRA was tested",
    ),
    "inference": ({"peft_config": LoraConfig(inference_mode=True)}, {}, "nothing would be trained"),
    "an unknown layer": ({"peft_config": LoraConfig(target_modules="attn")}, {}, 'Did you mean "attention"'),
    "a loss": ({"compute_loss_func": len}, {}, "Override compute_guarded_loss"),
    "another order": (
        {},
        {"train_sampling_strategy": "group_by_length"},
        r"args\.train_sampling_strategy is",
    ),
    "Liger": ({}, {"use_liger_kernel": True}, "Liger Kernel does not support"),
}


@pytest.mark.parametrize(("options", "arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_silently_do_something_else_is_refused(folder, tmp_path, options, arguments, message):
    with pytest.raises((UserError, RecipeError), match=message):
        build(folder, tmp_path, arguments=arguments, **options)


def test_codes_of_another_codec_and_a_codec_that_is_not_known_are_refused(folder, tmp_path):
    other = load_codec("embedded")
    with pytest.raises(CheckpointError):
        build(folder, tmp_path, codec=other)
    model = load_checkpoint(folder / "model").model
    model.config._name_or_path = model.name_or_path = ""
    tokenizer = load_checkpoint(folder / "model").tokenizer
    with pytest.raises(UserError, match="Pass codec="):
        build(folder, tmp_path, model=model, processing_class=tokenizer)
    assert build(
        folder, tmp_path, model=model, processing_class=tokenizer, codec=folder / "model" / "codec"
    ).train_dataset


def test_a_dataset_without_its_card_is_refused(folder, tmp_path):
    from datasets import load_from_disk

    with pytest.raises(UserError, match="does not say by which codec"):
        build(folder, tmp_path, train_dataset=load_from_disk(folder / "prepared"))


def test_without_arguments_those_of_trainer_are_taken(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = HiggsAudioTrainer(str(folder / "model"), train_dataset=str(folder / "prepared"))
    assert trainer.args.learning_rate == TrainingArguments().learning_rate
    assert trainer.processing_class is not None


def test_the_options_of_loading_are_passed_on(folder, tmp_path):
    trainer = build(
        folder, tmp_path, model_init_kwargs={"dtype": torch.bfloat16}, peft_config=LoraConfig(r=2)
    )
    assert {weight.dtype for weight in trainer.model.parameters() if not weight.requires_grad} == {
        torch.bfloat16
    }
    with pytest.raises(UserError, match="given by name"):
        build(folder, tmp_path, model=trainer.model, model_init_kwargs={"dtype": "float32"})


@pytest.mark.parametrize("adapted", [True, False])
def test_an_update_of_a_millionth_arrives_in_every_trained_weight_of_a_model_in_bfloat16(
    folder, tmp_path, adapted
):
    config = LoraConfig(r=2, modules_to_save=["audio_lm_head", "embed_audio_tokens.embed_audio_tokens"])
    trainer = build(
        folder,
        tmp_path,
        model_init_kwargs={"dtype": "bfloat16"},
        peft_config=config if adapted else None,
        arguments={"learning_rate": 1e-6, "max_steps": 1, "lr_scheduler_type": "constant", "bf16": True},
    )
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    trainer.train()
    moved = {name: (weight.detach() - before[name]).abs() for name, weight in trained.items()}
    # The first step of Adam moves each weight that has a gradient by the learning rate. At first, the lora_B are 0, so
    # that the lora_A have none, and the text side of the last layer never has one.
    assert {
        name: change for name, change in moved.items() if change.max() and not 0.9e-6 < change.max() < 1.3e-6
    } == {}
    still = [name for name, change in moved.items() if not change.max()]
    assert all("lora_A" in name if adapted else "layers.1." in name for name in still)
    assert 0 < len(still) < len(moved)


def count_call(calls, number, *_):
    calls[number] += 1


def test_every_second_layer_can_be_recomputed(folder, tmp_path):
    losses, calls = {}, {}
    for every in (None, 1, 2):
        options = {
            "activation_checkpointing": True,
            "activation_checkpointing_kwargs": {"every_n_layers": every},
        }
        arguments = {"max_steps": 2, "gradient_accumulation_steps": 1} | (options if every else {})
        trainer = build(folder, tmp_path, peft_config=LoraConfig(r=2), arguments=arguments)
        layers = [one for one in trainer.model.modules() if isinstance(one, IndexedDecoderLayer)]
        calls[every] = [0] * len(layers)
        for number, layer in enumerate(layers):
            layer.self_attn.register_forward_pre_hook(partial(count_call, calls[every], number))
        trainer.train()
        losses[every] = list_losses(trainer.state.log_history)
    assert losses[None] == losses[1] == losses[2]
    assert (calls[None], calls[1], sorted(calls[2])) == ([2, 2], [4, 4], [2, 4])


SHORT = {"max_steps": 1, "gradient_accumulation_steps": 1}


def test_a_compiled_model_is_trained_like_another(folder, tmp_path):
    losses = []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        trainer = build(folder, tmp_path, peft_config=LoraConfig(r=2), arguments=SHORT | options)
        assert trainer.args.torch_compile == bool(options)
        trainer.train()
        losses.append(list_losses(trainer.state.log_history))
    assert losses[0] == [pytest.approx(loss, rel=1e-4) for loss in losses[1]]
