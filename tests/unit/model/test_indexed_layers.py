"""The layers for training on a CPU compute transformers' numbers under transformers' names."""

import copy
import inspect
import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import (
    HiggsAudioV2DecoderLayer,
    HiggsAudioV2Model,
)

from generation import generate_texts
from higgs_trainer.dataset.collator import PackingCollator, PaddingCollator
from higgs_trainer.errors import VersionError
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.attention import PACKED_SDPA, attend_by_example
from higgs_trainer.model.families import HIGGS_AUDIO_V2
from higgs_trainer.model.indexed_layers import IndexedDecoderLayer, RotatingAttention, index_layers
from higgs_trainer.model.known_arguments import CACHES, SUPPORTED_TRANSFORMERS
from higgs_trainer.model.loading import Checkpoint
from higgs_trainer.model.row_order import RowOrder
from higgs_trainer.speech.sampling import Sampling
from tiny import NUM_CODEBOOKS, encode_rows, make_row, talkative_checkpoint, tiny_checkpoint

FRAMES = (5, 23, 2)
# The models are in float64, but transformers' norms compute in float32.
EXACT = 1e-6
# The name of the cache in the installed transformers.
(CACHE,) = inspect.signature(HiggsAudioV2Model.forward).parameters.keys() & set(CACHES)


def build_pair(*, dtype=torch.float64, lora=False, **adapter):
    """Build transformers' model, and a copy with our layers; weights and adapters are random."""
    checkpoint = tiny_checkpoint()
    torch.manual_seed(1)
    for parameter in checkpoint.model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = checkpoint.model.to(dtype).train()
    model.set_attn_implementation(PACKED_SDPA)
    if lora:
        model = add_lora(model, HIGGS_AUDIO_V2, r=3, lora_alpha=5, target_modules="all_linear", **adapter)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    indexed = copy.deepcopy(model)
    index_layers(indexed)
    return checkpoint, model, indexed


def count_indexed(model):
    return sum(type(module) is IndexedDecoderLayer for module in model.modules())


def make_batch(checkpoint, kind):
    rows = [make_row(seed, num_frames=frames, ref_frames=3) for seed, frames in enumerate(FRAMES)]
    examples = encode_rows(rows, checkpoint)
    ids = checkpoint.stream_ids
    if kind == "packed":
        collate, given = PackingCollator(NUM_CODEBOOKS), [tuple(examples[i] for i in range(len(rows)))]
    else:
        collate = PaddingCollator(checkpoint.model.config.pad_token_id, ids.end, NUM_CODEBOOKS)
        given = [examples[i] for i in range(len(rows))]
    return HIGGS_AUDIO_V2.contract.split(collate(given)).model_inputs


def run(model, inputs):
    """Compute the logits, and the gradients of a loss that gives each logit another weight."""
    model.zero_grad()
    logits = model(**inputs).logits.flatten(0, -2)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits.dtype)
    (logits * weights).sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def check_same(theirs, ours, tolerance):
    logits, gradients = zip(theirs, ours, strict=True)
    check_near(*logits, tolerance)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradients[1][name] is not None, name
        check_near(gradient, gradients[1][name], tolerance)


def check_near(expected, found, tolerance):
    norm = torch.linalg.vector_norm
    assert norm(found - expected) <= tolerance * norm(expected)


@pytest.mark.parametrize("layout", [True, False])
@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_logits_and_gradients_are_transformers_own(layout, kind, lora, gradient_checkpointing):
    checkpoint, theirs, ours = build_pair(lora=lora)
    assert count_indexed(ours) == 2
    assert sum(type(module) is RotatingAttention for module in ours.modules()) == 2
    if gradient_checkpointing:
        ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inputs = make_batch(checkpoint, kind)
    expected = run(theirs, inputs)
    if not layout:
        del inputs["layout"]
    check_same(expected, run(ours, inputs), EXACT)


def test_in_float32_they_are_the_same_to_rounding():
    checkpoint, theirs, ours = build_pair(dtype=torch.float32)
    inputs = make_batch(checkpoint, "packed")
    check_same(run(theirs, inputs), run(ours, inputs), 1e-5)


def test_in_bfloat16_they_are_as_close_to_float32_as_transformers():
    checkpoint, theirs, ours = build_pair(dtype=torch.bfloat16)
    inputs = make_batch(checkpoint, "packed")
    right, _ = run(copy.deepcopy(theirs).float(), inputs)
    errors = [torch.linalg.vector_norm(run(model, inputs)[0].float() - right) for model in (theirs, ours)]
    assert errors[1] < 1.2 * errors[0]


def test_under_autocast_the_residual_stream_has_the_dtype_of_transformers():
    checkpoint, theirs, ours = build_pair(dtype=torch.float32)
    inputs = make_batch(checkpoint, "packed")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = [model.model(**_without_head(inputs)).last_hidden_state for model in (theirs, ours)]
    assert hidden[0].dtype == hidden[1].dtype == torch.float32
    right = theirs.model(**_without_head(inputs)).last_hidden_state
    errors = [torch.linalg.vector_norm(found - right) for found in hidden]
    assert errors[1] < 1.2 * errors[0]


def test_gradients_under_autocast_are_as_close_to_float32_as_transformers():
    checkpoint, theirs, ours = build_pair(dtype=torch.float32)
    inputs = make_batch(checkpoint, "packed")
    _, right = run(theirs, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [run(model, inputs)[1] for model in (theirs, ours)]
    errors = [
        torch.stack([torch.linalg.vector_norm(gradients[name] - right[name]) for name in right]).norm()
        for gradients in found
    ]
    assert 0 < errors[1] < 1.2 * errors[0]


class CountSorts(TorchDispatchMode):
    """Counts calls of argsort and sort."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in ("aten::argsort", "aten::sort")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_without_a_layout_the_row_order_is_computed_once_in_a_forward_and_its_backward(
    gradient_checkpointing,
):
    checkpoint, _, ours = build_pair()
    # A second time, as benchmarks do.
    index_layers(ours)
    if gradient_checkpointing:
        ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inputs = make_batch(checkpoint, "packed")
    with CountSorts() as sorts:
        run(ours, inputs)
    assert sorts.count == 0
    del inputs["layout"]
    with CountSorts() as sorts:
        run(ours, inputs)
    assert sorts.count == 1
    assert count_indexed(ours) == 2


def test_positional_arguments_of_the_inner_model_are_ordered_too():
    checkpoint, theirs, ours = build_pair()
    inputs = make_batch(checkpoint, "packed")
    given = [inputs[name] for name in ("input_ids", "audio_input_ids")]
    with CountSorts() as sorts:
        found = ours.model(*given).last_hidden_state
    assert sorts.count == 1
    check_near(theirs.model(*given).last_hidden_state, found, EXACT)


@pytest.mark.parametrize("implementation", ["eager", PACKED_SDPA])
def test_attention_drops_out_what_transformers_drops_out(implementation):
    checkpoint, theirs, ours = build_pair()
    inputs = make_batch(checkpoint, "padded")
    logits = []
    for model in (theirs, ours):
        model.set_attn_implementation(implementation)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        torch.manual_seed(5)
        logits.append(model(**inputs).logits)
    check_near(*logits, EXACT)
    assert not torch.equal(logits[1], ours.eval()(**inputs).logits)


def _without_head(inputs):
    """The inputs of the model without its head. Without a layout, it returns every position."""
    return {name: value for name, value in inputs.items() if name not in ("layout", "logits_to_keep")}


def test_an_attention_function_in_transformers_own_table_is_the_one_that_is_called(monkeypatch):
    _, theirs, ours = build_pair()
    calls = []

    def attend(module, *args, **kwargs):
        calls.append(module.layer_idx)
        return attend_by_example(module, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, PACKED_SDPA, attend)
    for model in (theirs, ours):
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert calls == [0, 1, 0, 1]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_sequence_of_text_alone_or_of_columns_alone(share):
    _, theirs, ours = build_pair()
    inputs = {"input_ids": torch.randint(5, 200, (2, 7), generator=torch.Generator().manual_seed(3))}
    layers = [model.model.layers[0] for model in (theirs, ours)]
    hidden_BTD = torch.randn(2, 7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    positions = theirs.model.rotary_emb(hidden_BTD, torch.arange(7)[None])
    mask = torch.full((2, 7), bool(share))
    given = {"position_embeddings": positions, "audio_token_mask": mask}
    expected = layers[0](hidden_BTD.clone(), **given)
    found = layers[1](hidden_BTD.clone(), **given, row_order=RowOrder.of(mask))
    check_near(expected, found, EXACT)
    check_near(*(model(**inputs).logits for model in (theirs, ours)), EXACT)


def test_generated_speech_is_the_same():
    checkpoint = talkative_checkpoint()
    indexed = copy.deepcopy(checkpoint.model)
    index_layers(indexed)
    assert count_indexed(indexed) == 2
    spoken = [
        generate_texts(
            Checkpoint("tiny", model, checkpoint.tokenizer), ["one two"], sampling=Sampling(max_seconds=1)
        )
        for model in (checkpoint.model, indexed)
    ]
    assert torch.equal(spoken[0][0].codes_FK, spoken[1][0].codes_FK)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", PACKED_SDPA])
def test_steps_with_a_cache_give_the_logits_of_the_whole_sequence(implementation):
    """Layers that do not find the cache would see only the newest position."""
    _, _, ours = build_pair()
    ours.eval().set_attn_implementation(implementation)
    ids_BT = torch.randint(5, 200, (2, 7), generator=torch.Generator().manual_seed(3))
    whole = ours(input_ids=ids_BT).logits
    parts, cache = [], {"use_cache": True}
    for step_BT in ids_BT.split([4, 1, 1, 1], dim=1):
        outputs = ours(input_ids=step_BT, **cache)
        cache = {CACHE: outputs[CACHE]}
        parts.append(outputs.logits)
    assert outputs[CACHE].get_seq_length() == 7
    check_near(whole, torch.cat(parts, dim=1), EXACT)


def give(forward, **extra):
    """Replace a module's ``forward`` by one that is called with more arguments, as by another transformers."""
    return lambda *args, **kwargs: forward(*args, **kwargs, **extra)


@pytest.mark.parametrize("callee", ["The indexed decoder layer", "The rotating attention"])
def test_an_argument_that_a_fast_path_does_not_know_raises_and_names_the_option(callee):
    checkpoint, _, ours = build_pair()
    layer = ours.model.layers[1]
    module = layer if "layer" in callee else layer.self_attn
    inputs = make_batch(checkpoint, "packed")
    module.forward = give(type(module).forward.__get__(module), kv_store=None)
    ours(**inputs)
    module.forward = give(type(module).forward.__get__(module), kv_store=DynamicCache())
    with pytest.raises(VersionError, match="was called with kv_store") as caught:
        ours(**inputs)
    assert str(caught.value).startswith(callee)
    assert f'install "transformers{SUPPORTED_TRANSFORMERS}" (this is ' in str(caught.value)
    assert "set model.indexed_layers: false in the recipe" in str(caught.value)


@pytest.mark.parametrize("owner", ["layer", "attention"])
def test_modules_that_a_fast_path_does_not_know_raise_before_a_layer_is_changed(owner):
    model = tiny_checkpoint().model
    layer = model.model.layers[1]
    (layer if owner == "layer" else layer.self_attn).q_norm = torch.nn.Identity()
    with pytest.raises(VersionError, match=r"q_norm.*model\.indexed_layers: false"):
        index_layers(model)
    assert count_indexed(model) == 0


def test_names_hidden_states_and_attention_weights_stay():
    checkpoint, theirs, ours = build_pair()
    layer = ours.model.layers[0]
    assert isinstance(layer, HiggsAudioV2DecoderLayer)
    assert type(layer).__name__ in theirs._no_split_modules
    assert list(theirs.state_dict()) == list(ours.state_dict())
    hidden = [
        model(**make_batch(checkpoint, "packed"), output_hidden_states=True) for model in (theirs, ours)
    ]
    assert len(hidden[0].hidden_states) == len(hidden[1].hidden_states) == 3
    for model in (theirs, ours):
        model.set_attn_implementation("eager")
    weights = [
        model(**make_batch(checkpoint, "padded"), output_attentions=True).attentions
        for model in (theirs, ours)
    ]
    assert len(weights[0]) == 2
    for expected, found in zip(*weights, strict=True):
        check_near(expected, found, EXACT)


def test_layers_whose_norms_peft_wraps_stay_and_a_warning_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        checkpoint, theirs, ours = build_pair(lora=True, modules_to_save=["input_layernorm"])
    assert "2 of 2 layers keep transformers' forward" in caplog.text
    assert count_indexed(ours) == 0
    inputs = make_batch(checkpoint, "packed")
    check_same(run(theirs, inputs), run(ours, inputs), EXACT)
