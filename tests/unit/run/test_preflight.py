"""Whatever is wrong in a recipe and needs no weights to be found is found before the weights are loaded."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from higgs_trainer.dataset import prepared
from higgs_trainer.errors import UserError
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.run import arguments, assembly, preflight
from higgs_trainer.run.assembly import build_run
from higgs_trainer.run.check import check
from higgs_trainer.run.train import train
from higgs_trainer.terminal import COMMAND_INDENT

script = runpy.run_path(str(Path(__file__).resolve().parents[3] / "scripts" / "kill_and_resume.py"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return script["write_inputs"](tmp_path_factory.mktemp("inputs"), max_steps=3)


class Loaded(Exception):
    """The weights would have been loaded."""


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise Loaded

    monkeypatch.setattr(assembly, "load_checkpoint", load)


JUDGED = ("--held_out", "2", "--judged")
MISTAKES = {
    "training data that is not there": (
        ["--data.train", "prepared/nowhere"],
        "data.train: there is no folder",
    ),
    "data that is not prepared yet, which one command makes": (
        ["--data.train", "new/train", "--data.eval", "new/held_out"],
        "DATA:\n    higgs-trainer prepare DATA -o new --held-out 5% --model",
    ),
    "evaluation data that is not prepared": (["--data.eval", "{inputs}"], "is not a prepared dataset"),
    "a model that is not there": (["--name_or_path", "nowhere"], "has the form owner/name"),
    "a model in a folder that is not there": (["--name_or_path", "./base-model"], "there is no folder"),
    "a folder without a model": (["--name_or_path", "{inputs}"], "Higgs Audio"),
    "an unknown codec": (["--codec", "embeded"], "Did you mean embedded?"),
    "the codec of another model": (["--codec", "embedded"], "codebooks"),
    "an integration that is misspelt": (["--report_to", "wandbb"], 'Did you mean "wandb"?'),
    "integrations that are not installed": (
        ["--report_to", "[comet_ml, wandb]"],
        "comet_ml, wandb is not installed. Run pip install comet-ml wandb,",
    ),
    "an unknown optimizer": (["--optim", "adamw_tourch"], 'Did you mean "adamw_torch"?'),
    "an optimizer without its package": (["--optim", "adamw_bnb_8bit"], "bitsandbytes"),
    "4 bits without bitsandbytes": (
        ["--quantization", "nf4"],
        "model.quantization: nf4 needs bitsandbytes, which is not installed. Run pip install",
    ),
    "4 bits without an adapter": (
        ["--quantization", "nf4", "--adapter", "null"],
        "model.quantization: needs an adapter: weights of 4 bits cannot be trained. Add the section adapter.",
    ),
    "4 bits with initial values from the base": (
        ["--quantization", "nf4", "--init_lora_weights", "pissa"],
        "adapter.init_lora_weights: is pissa, which changes the base and cannot change weights of 4 bits.",
    ),
    "4 bits with sharded weights": (
        ["--quantization", "nf4", "--fsdp", "full_shard"],
        "model.quantization: was never run with sharded weights.",
    ),
    "activations that no GPU could give away": (
        ["--activation_checkpointing", "true", "--activation_checkpointing_kwargs", "{{offload: true}}"],
        "training.activation_checkpointing_kwargs: offload moves activations from a GPU",
    ),
    "an unknown attention function": (
        ["--attn_implementation", "packed_spda"],
        'Did you mean "packed_sdpa"?',
    ),
    "an attention function without its package": (
        ["--attn_implementation", "flash_attention_2"],
        'model.attn_implementation: "flash_attention_2" cannot be used here',
    ),
    "an unknown LoRA preset": (["--adapter.target_modules", "atention"], 'Did you mean "attention"?'),
    "an unknown module": (["--adapter.target_modules", "[q_proj, k_prj]"], "'k_prj' matches no module"),
    "an unknown module to save": (["--adapter.modules_to_save", "[normm]"], "'normm' matches no module"),
    "a layer that the model does not have": (["--layers_to_transform", "[7]"], "no layer 7"),
    "an unknown kind of modules": (
        ["--adapter", "null", "--freeze", "[audio_fnn]"],
        "model.freeze: 'audio_fnn' matches no parameter",
    ),
    "too few weights of codebooks": (["--codebook_weights", "[1, 1]"], "codebook"),
    "a pack that is too small": (["--tokens_per_pack", "9"], "data.tokens_per_pack is 9, less than"),
    "a recogniser that does not know the language": (
        [*JUDGED, "--samples.language", "nl", "--recogniser", "whisper-tiny.en"],
        "2 texts are in Dutch (nl), and it knows English (en) only. Give a multilingual recogniser with samples.",
    ),
    "a recogniser that is not there": (
        [*JUDGED, "--recogniser", "./whisper"],
        "the recogniser: there is no folder",
    ),
    "word errors without words": (
        [*JUDGED, "--words", "false", "--metric_for_best_model", "eval_wer"],
        "'eval_wer' is never logged",
    ),
    "word errors of a language without spaces": (
        [*JUDGED, "--samples.language", "zh", "--metric_for_best_model", "eval_wer"],
        "'eval_wer' is never logged. Did you mean \"eval_cer\"",
    ),
    "a recogniser that judges nothing": (
        ["--held_out", "2", "--recogniser", "whisper-base"],
        "samples.recogniser: has no effect, because no words are judged",
    ),
    "a temperature without sampling": (
        ["--texts", "[one]", "--samples.greedy", "true", "--samples.temperature", "0.5"],
        "samples.temperature: has no effect, because samples.greedy is true",
    ),
    "too many held-out sentences": (["--held_out", "1000"], "samples.held_out is 1000"),
    "a reference that is not there": (
        ["--ref_audio", "a.wav", "--ref_text", "one", "--texts", "[one]"],
        "a.wav",
    ),
    "a metric that is never logged": (["--metric_for_best_model", "los"], "is never logged"),
    "a schedule without its argument": (["--lr_scheduler_type", "cosine_with_min_lr"], "lr_scheduler_kwargs"),
    "an argument that the schedule does not take": (["--lr_scheduler_kwargs", "{{rate: 1}}"], "rate"),
    "float16 on a CPU": (["--fp16"], "training.fp16: mixed precision with float16 needs a GPU"),
    "bfloat16 without a GPU": (["--bf16", "--use_cpu", "false"], "training.bf16: this machine has no GPU"),
    "an unknown compiler": (
        ["--torch_compile", "--torch_compile_backend", "inducter"],
        'Did you mean "inductor"?',
    ),
    "an output folder that is a file": (["--output_dir", "{inputs}/recipe.yaml"], "is not a folder"),
    "an output folder below a file": (["--output_dir", "{inputs}/recipe.yaml/run"], "is not a folder"),
    "an output folder that is an input": (["--output_dir", "{inputs}/prepared"], "is the training data"),
}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No optional package is installed, whatever this machine has."""
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["tensorboard"])


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("command", [train, check], ids=["train", "check"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_before_the_weights_are_loaded(
    recipe: Path, tmp_path: Path, mistake: str, command: Any
) -> None:
    overrides, message = MISTAKES[mistake]
    given = [one.format(inputs=recipe.parent) for one in overrides]
    if "--output_dir" not in given:
        given += ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError) as caught:
        command(read_recipe(recipe, given))
    assert message in str(caught.value)


def test_without_a_mistake_the_weights_are_loaded(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(Loaded):
        train(read_recipe(recipe, ["--output_dir", str(tmp_path / "out")]))


def test_mistakes_that_do_not_depend_on_each_other_are_reported_together(recipe: Path) -> None:
    overrides = [
        "--data.train",
        "[nowhere, elsewhere]",
        "--optim",
        "adamm",
        "--adapter.target_modules",
        "all",
    ]
    with pytest.raises(UserError, match="4 mistakes were found before the model was loaded") as caught:
        build_run(read_recipe(recipe, overrides))
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines if not line.startswith(COMMAND_INDENT)] == [
        "training.optim",
        "data.train",
        "data.train",
        "adapter.target_modules",
    ]


def test_data_of_another_codec_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = preflight.read_prepared

    def open_foreign(folder: Path) -> prepared.PreparedDataset:
        dataset = opened(folder)
        return replace(dataset, card=replace(dataset.card, codec_fingerprint="0123456789abcdef"))

    monkeypatch.setattr(preflight, "read_prepared", open_foreign)
    with pytest.raises(UserError, match="was encoded by the codec"):
        build_run(read_recipe(recipe))


def test_judges_without_their_packages_are_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise UserError("the recogniser needs faster_whisper, which is not installed.")

    monkeypatch.setattr("higgs_trainer.run.samples.load_judges", load)
    with pytest.raises(UserError, match="faster_whisper"):
        build_run(read_recipe(recipe, ["--held_out", "2", "--judged"]))


def test_an_adapter_whose_initial_values_need_the_weights_passes(recipe: Path) -> None:
    for initial in ("pissa", "olora", "gaussian"):
        with pytest.raises(Loaded):
            build_run(read_recipe(recipe, ["--init_lora_weights", initial]))


def test_the_optimizer_of_a_caller_replaces_that_of_the_recipe(recipe: Path) -> None:
    with pytest.raises(Loaded):
        build_run(read_recipe(recipe, ["--optim", "adamw_bnb_8bit"]), build_optimizer=lambda *_: None)
