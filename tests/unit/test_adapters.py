"""LoRA goes where the recipe says, a name that matches nothing is an error, and what is saved can be opened again."""

import pytest
import torch
from peft import PeftModel

from higgs_trainer.errors import RecipeError
from higgs_trainer.model.adapters import add_lora, count_trainable
from higgs_trainer.model.families import family_of
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


def test_saved_modules_and_adapters_open_again(tmp_path):
    model = adapted(modules_to_save=["audio_lm_head", "embed_audio_tokens.embed_audio_tokens"])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(tiny_checkpoint().model, str(tmp_path))
    inputs = {"input_ids": torch.tensor([[3, 5, 7]])}
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, opened.eval()(**inputs).logits)
