"""LoRA adapts the modules that the recipe names, a name that matches nothing is an error, and saved adapters load."""

import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from peft import LoraConfig, PeftModel

from higgs_trainer.errors import RecipeError
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import family_of
from higgs_trainer.model.parameters import count_trainable
from higgs_trainer.recipe.schema import AdapterRecipe
from tiny import tiny_checkpoint


def adapted(**options):
    model = tiny_checkpoint().model
    return add_lora(model, family_of(model), **({"r": 3, "lora_alpha": 5} | options))


@pytest.mark.parametrize(
    ("preset", "trained"),
    [
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("attention+audio_ffn", {"q_proj", "audio_mlp.gate_proj", "audio_mlp.down_proj"}),
        ("all_linear", {"q_proj", "mlp.up_proj", "audio_mlp.up_proj"}),
    ],
)
def test_a_preset_trains_these_kinds_and_not_the_heads(preset, trained):
    table = count_trainable(adapted(target_modules=preset))
    for kind in trained:
        assert table[kind][0] > 0, kind
    assert table["audio_lm_head"][0] == table["embed_tokens"][0] == 0
    assert (table["mlp.up_proj"][0] > 0) == (preset == "all_linear")


def test_adapters_have_no_task_type():
    assert adapted().peft_config["default"].task_type is None


def test_an_unknown_preset_or_module_is_named():
    with pytest.raises(RecipeError, match="attention"):
        adapted(target_modules="attn")
    with pytest.raises(RecipeError, match="q_proj"):
        adapted(target_modules=["q_prj"])
    with pytest.raises(RecipeError, match="audio_lm_head"):
        adapted(modules_to_save=["audio_head"])


def test_a_module_to_save_inside_another_is_refused_with_the_name_to_write():
    with pytest.raises(RecipeError, match=r"'embed_audio_tokens\.embed_audio_tokens'"):
        adapted(modules_to_save=["embed_audio_tokens"])


def test_saved_modules_and_adapters_load_again(tmp_path):
    model = adapted(modules_to_save=["audio_lm_head", "embed_audio_tokens.embed_audio_tokens"])
    disturb(model)
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(tiny_checkpoint().model, str(tmp_path))
    inputs = {"input_ids": torch.tensor([[3, 5, 7]])}
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, opened.eval()(**inputs).logits)


def disturb(model):
    """Give every trained parameter another value, as training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def test_the_recipe_has_pefts_own_fields_and_its_defaults_are_accepted():
    assert set(AdapterRecipe.model_fields) <= {item.name for item in fields(LoraConfig)}
    model = tiny_checkpoint().model
    assert add_lora(model, family_of(model), **AdapterRecipe().model_dump()).peft_config["default"].r == 16


def test_ranks_and_layers_are_pefts():
    model = adapted(
        target_modules="attention",
        exclude_modules=["o_proj"],
        layers_to_transform=[1],
        rank_pattern={"q_proj": 7},
        alpha_pattern={r"layers\.1\..*k_proj": 11},
    )
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad and "lora_A" in name}
    assert {
        name.split(".")[-4] + name.split("layers.")[1][0]: shape[0] for name, shape in shapes.items()
    } == {
        "q_proj1": 7,
        "k_proj1": 3,
        "v_proj1": 3,
    }
    k_proj = model.base_model.model.model.layers[1].self_attn.k_proj
    assert k_proj.scaling["default"] == 11 / 3


WRONG = {
    "exclude": ({"exclude_modules": ["q_porj"]}, "exclude_modules: 'q_porj'.*q_proj"),
    "rank": ({"rank_pattern": {"gat_proj": 3}}, "rank_pattern: 'gat_proj'.*gate_proj"),
    "alpha of what is not adapted": (
        {"alpha_pattern": {"audio_lm_head": 3}},
        "alpha_pattern: 'audio_lm_head'",
    ),
    "layer": ({"layers_to_transform": [0, 2]}, "layers_to_transform: no layer 2.*0 to 1"),
    "target that is excluded": (
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]},
        "target_modules: 'k_proj'",
    ),
    "nothing left": ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "adapter"),
    "no regular expression": ({"rank_pattern": {"(": 3}}, "adapter"),
    "rank of 0": ({"r": 0}, "adapter"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_what_matches_nothing_is_an_error_that_lists_near_names(options, message):
    with pytest.raises(RecipeError, match=message):
        adapted(**options)


OPEN_WITH_PEFT_ALONE = """
import sys, torch
from pathlib import Path
from peft import PeftModel
from transformers import HiggsAudioV2ForConditionalGeneration
folder = Path(sys.argv[1])
for adapter in folder.glob("adapter-*"):
    base = HiggsAudioV2ForConditionalGeneration.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.no_grad():
        torch.save(model(input_ids=torch.tensor([[3, 5, 7]])).logits, adapter / "logits")
assert not any(name.startswith("higgs_trainer") for name in sys.modules)
"""


def test_adapters_load_with_peft_alone(tmp_path):
    """Also adapters whose initialization changes the base weights, which PEFT must repeat when it loads them."""
    base = tiny_checkpoint().model
    base.save_pretrained(tmp_path / "base")
    kinds = [
        {"use_dora": True, "use_rslora": True, "modules_to_save": ["audio_lm_head"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora", "rank_pattern": {"q_proj": 5}},
    ]
    expected = []
    for number, options in enumerate(kinds):
        model = adapted(**options)
        disturb(model)
        model.save_pretrained(tmp_path / f"adapter-{number}")
        with torch.no_grad():
            expected.append(model.eval()(input_ids=torch.tensor([[3, 5, 7]])).logits)
    subprocess.run([sys.executable, "-c", OPEN_WITH_PEFT_ALONE, str(tmp_path)], check=True)
    for number, logits in enumerate(expected):
        opened = torch.load(tmp_path / f"adapter-{number}" / "logits", weights_only=True)
        assert torch.linalg.norm(opened - logits) <= 1e-5 * torch.linalg.norm(logits), kinds[number]
