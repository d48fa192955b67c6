"""The planner predicts what a run really builds, keeps and computes. It reads no weights."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from higgs_trainer.errors import UserError
from higgs_trainer.model.loading import load_checkpoint
from higgs_trainer.model.precision import keep_trained_in_float32
from higgs_trainer.planning.changes import list_variants
from higgs_trainer.planning.duration import estimate_seconds
from higgs_trainer.planning.fake_step import count_step, find_layers
from higgs_trainer.planning.forecast import CODEC, CONTEXT, Forecast, vary
from higgs_trainer.planning.gpus import GPU, GPUS, find_gpu
from higgs_trainer.planning.heap import count_most_live, measure_heap
from higgs_trainer.planning.layer_scaling import count_layers
from higgs_trainer.planning.optimizers import count_state_bytes
from higgs_trainer.planning.pack_shape import BatchShape, build_batch
from higgs_trainer.planning.plan import plan_run
from higgs_trainer.planning.quantized_layers import NF4_BYTES
from higgs_trainer.planning.sharding import DDP
from higgs_trainer.planning.step_counter import (
    GRADIENTS,
    KEPT,
    LOGITS,
    OPTIMIZER,
    TRAINED,
    WEIGHTS,
    WORKSPACE,
)
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.run.trainable import choose_trainable, resolve_dtype
from tiny import tiny_checkpoint

NUM_LAYERS = 5
SHAPE = BatchShape(3 * 31, text_tokens=11, columns=20, supervised=20)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of five layers, stored in bfloat16."""
    folder = tmp_path_factory.mktemp("planning") / "base"
    checkpoint = tiny_checkpoint(num_layers=NUM_LAYERS)
    checkpoint.model.bfloat16().save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_recipe(base: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Build a recipe of the tiny model. Its data is not prepared."""

    def make(adapter: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Recipe:
        return Recipe(
            model={"name_or_path": str(base), "codec": "embedded"} | sections.get("model", {}),
            data={"train": tmp_path / "none"} | sections.get("data", {}),
            training={"output_dir": tmp_path / "run", "use_cpu": True} | sections.get("training", {}),
            adapter=adapter,
        )

    return make


def build_real_model(recipe: Recipe) -> nn.Module:
    """Build the model as `train` does, with its weights."""
    recipe = resolve_dtype(recipe)
    loaded = load_checkpoint(
        recipe.model.name_or_path, dtype=recipe.model.dtype, attn_implementation="packed_sdpa"
    )
    model = choose_trainable(loaded, recipe.adapter, recipe.model.freeze).model
    keep_trained_in_float32(model)
    return model.train()


def count_real_bytes(model: nn.Module, *, trained: bool) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad == trained)


@pytest.mark.parametrize(
    ("adapter", "model"),
    [
        ({"r": 3}, {}),
        ({"r": 3, "modules_to_save": ["audio_lm_head"], "use_dora": True}, {}),
        ({"r": 3}, {"dtype": "float32"}),
        (None, {"freeze": ["text_ffn"]}),
        (None, {}),
    ],
    ids=["lora", "dora_and_head", "float32", "frozen_part", "full"],
)
def test_weights_are_those_of_the_model_that_training_builds(
    make_recipe: Callable[..., Recipe], adapter: dict[str, Any] | None, model: dict[str, Any]
) -> None:
    recipe = make_recipe(adapter, model=model)
    real = build_real_model(recipe)
    forecast = Forecast(recipe)
    parts = count_step(forecast._build_run(forecast.recipe), SHAPE, NUM_LAYERS).peaks["forward"]
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in real.buffers())
    assert parts[TRAINED] == count_real_bytes(real, trained=True)
    assert parts[WEIGHTS] == count_real_bytes(real, trained=False) + buffers
    # AdamW keeps two moments, and counts the updates of each parameter.
    counters = sum(4 for parameter in real.parameters() if parameter.requires_grad)
    assert parts[OPTIMIZER] == 2 * count_real_bytes(real, trained=True) + counters


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_kept_for_the_backward_is_what_autograd_saves_of_a_real_forward(
    make_recipe: Callable[..., Recipe], checkpointing: bool
) -> None:
    recipe = make_recipe({"r": 3}, training={"gradient_checkpointing": checkpointing})
    recipe = vary(recipe, "model", indexed_layers=False)
    real = build_real_model(recipe)
    if checkpointing:
        real.gradient_checkpointing_enable()
    forecast = Forecast(recipe)
    inputs, _ = build_batch(SHAPE, forecast.outline.stream_ids)
    own = {parameter.untyped_storage().data_ptr() for parameter in (*real.parameters(), *real.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss = real(**inputs).logits.sum()
    found = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    parts = count_step(forecast._build_run(forecast.recipe), SHAPE, NUM_LAYERS).peaks["backward of the loss"]
    assert loss.requires_grad
    if checkpointing:
        # Checkpointing keeps the inputs of layers without saving them as tensors of autograd.
        hidden = SHAPE.tokens * 32 * 2
        assert NUM_LAYERS * hidden <= parts[KEPT] <= (NUM_LAYERS + 2) * hidden
    else:
        assert parts[KEPT] + parts[LOGITS] == pytest.approx(found, rel=0.06)


def test_checkpointing_keeps_less_and_computes_more(make_recipe: Callable[..., Recipe]) -> None:
    forecast = Forecast(make_recipe({"r": 3}))
    with_it = vary(forecast.recipe, "training", gradient_checkpointing=True)
    kept, computed = {}, {}
    for name, recipe in (("off", forecast.recipe), ("on", with_it)):
        counts = forecast.count(recipe, 4096)
        kept[name] = counts.peaks["backward of the last layer"][KEPT]
        computed[name] = sum(counts.flops.values())
    assert kept["on"] < kept["off"] / 5
    assert 1.3 < computed["on"] / computed["off"] < 1.6


@pytest.mark.parametrize("adapter", [{"r": 3}, None], ids=["lora", "full"])
def test_counts_of_many_layers_follow_from_those_of_two_and_three(
    make_recipe: Callable[..., Recipe], adapter: dict[str, Any] | None
) -> None:
    forecast = Forecast(make_recipe(adapter))
    run = forecast._build_run(forecast.recipe)
    derived = count_layers(run, SHAPE)
    counted = count_step(run, SHAPE, NUM_LAYERS)
    assert derived["number", "launches"] == counted.launches
    assert sum(value for key, value in derived.items() if key[0] == "flops") == sum(counted.flops.values())
    peaks = {region: sum(parts.values()) for region, parts in counted.peaks.items()}
    for region in peaks.keys() & {key[1] for key in derived if key[0] == "peak"}:
        total = sum(value for key, value in derived.items() if key[:2] == ("peak", region))
        assert total == pytest.approx(peaks[region], rel=1e-3), region


def test_counts_of_a_long_pack_follow_from_those_of_a_short_one(make_recipe: Callable[..., Recipe]) -> None:
    forecast = Forecast(make_recipe({"r": 3}, data={"tokens_per_pack": 816}))
    derived = forecast.compute_memory(forecast.recipe, 3264).total
    counted = Forecast(make_recipe({"r": 3}, data={"tokens_per_pack": 3264}))
    assert derived == pytest.approx(counted.compute_memory(counted.recipe, 3264).total, rel=0.01)
    assert derived > forecast.compute_memory(forecast.recipe, 816).total


def test_matrix_products_are_those_of_every_weight_and_every_token(
    make_recipe: Callable[..., Recipe],
) -> None:
    recipe = make_recipe(None)
    forecast = Forecast(recipe)
    counted = sum(count_step(forecast._build_run(forecast.recipe), SHAPE, NUM_LAYERS).flops.values())
    real = build_real_model(recipe)
    layers = find_layers(real, NUM_LAYERS)
    num_examples = 3
    audio = num_examples * SHAPE.columns
    rows = {"self_attn": SHAPE.tokens, "audio_mlp": audio, "mlp": SHAPE.tokens - audio}
    products = sum(
        module.weight.numel() * rows[name.split(".")[1]]
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear)
    )
    products += real.audio_lm_head.weight.numel() * num_examples * SHAPE.supervised
    # Two operations forward, two for the gradient of the inputs, two for that of the weights.
    attention = 14 * SHAPE.example_tokens**2 * 32 * num_examples * NUM_LAYERS
    assert counted == 6 * products + attention


def test_gradients_of_earlier_batches_are_there_in_the_forward(make_recipe: Callable[..., Recipe]) -> None:
    forecast = Forecast(make_recipe({"r": 3}, training={"gradient_accumulation_steps": 2}))
    parts = count_step(forecast._build_run(forecast.recipe), SHAPE, 2).peaks["forward"]
    assert parts[GRADIENTS] == parts[TRAINED] > 0


def test_a_base_in_4_bits_takes_a_quarter_of_bfloat16(make_recipe: Callable[..., Recipe]) -> None:
    forecast = Forecast(make_recipe({"r": 3}))
    in_4_bits = vary(forecast.recipe, "model", quantization="nf4")
    plain = count_step(forecast._build_run(forecast.recipe), SHAPE, 3).peaks["forward"][WEIGHTS]
    packed = count_step(forecast._build_run(in_4_bits), SHAPE, 3).peaks["forward"][WEIGHTS]
    layers = find_layers(build_real_model(make_recipe({"r": 3})), NUM_LAYERS)
    linear = sum(
        module.base_layer.weight.numel() if hasattr(module, "base_layer") else module.weight.numel()
        for name, module in layers[:3].named_modules()
        if name.endswith("_proj")
    )
    assert plain - packed == pytest.approx(linear * (2 - NF4_BYTES), rel=0.01)


def test_an_8_bit_optimizer_has_a_byte_for_each_value_of_a_large_tensor() -> None:
    large, small = torch.empty(100, 100, device="meta"), torch.empty(64, device="meta")
    assert count_state_bytes("adamw_8bit", [large]) == 2 * (10_000 + 4 * 10_000 / 256)
    assert count_state_bytes("adamw_8bit", [small]) == 2 * 4 * 64
    assert count_state_bytes("paged_adamw_8bit", [large]) == 0
    assert count_state_bytes("lion_32bit", [large]) == 40_000


def test_fsdp_shares_weights_and_optimizer_and_ddp_does_not(make_recipe: Callable[..., Recipe]) -> None:
    forecast = Forecast(make_recipe(None))
    one = forecast.compute_memory(forecast.recipe, 204).parts
    four = forecast.compute_memory(forecast.recipe, 204, 4).parts
    each = forecast.compute_memory(forecast.recipe, 204, 4, DDP).parts
    assert four[OPTIMIZER] == one[OPTIMIZER] / 4
    assert four[TRAINED] == one[TRAINED] / 4
    assert four[WORKSPACE] > one[WORKSPACE]
    assert each[TRAINED] == one[TRAINED]
    assert each[GRADIENTS] == 2 * one[TRAINED]


def test_a_recipe_that_does_not_fit_gets_lines_that_make_it_fit(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe({"r": 3}, data={"tokens_per_pack": 4096})
    forecast = Forecast(recipe)
    checkpointed = vary(forecast.recipe, "training", gradient_checkpointing=True)
    half = forecast.compute_memory(forecast.recipe, 2112).total
    first = next(list_variants(forecast, half))
    assert first.lines == ["data:", "  tokens_per_pack: 2048"]
    assert first.total_bytes <= half

    # Less than packs of 1,024 need without checkpointing.
    little = forecast.compute_memory(checkpointed, 1600).total
    assert little < forecast.compute_memory(forecast.recipe, 1024).total
    made = plan_run(recipe, gpu=GPU("card", little / 1e9))
    assert made.fits is False
    assert [variant.name for variant in made.variants] == ["smaller packs", "checkpointing"]
    assert made.variants[0].total_bytes > little >= made.variants[1].total_bytes
    fields = made.as_dict()["changes"][-1]["fields"]
    assert fields == {"data": {"tokens_per_pack": 1536}, "training": {"gradient_checkpointing": True}}


def test_the_largest_pack_fits_and_a_tenth_more_does_not(make_recipe: Callable[..., Recipe]) -> None:
    forecast = Forecast(make_recipe({"r": 3}))
    limit = forecast.compute_memory(forecast.recipe, 9000).total
    largest = forecast.find_largest_batch(forecast.recipe, limit)
    assert largest == 8192
    assert forecast.find_largest_batch(forecast.recipe, 1.0) is None


def test_time_is_the_sum_of_products_moves_and_launches(make_recipe: Callable[..., Recipe]) -> None:
    counts = Forecast(recipe := make_recipe({"r": 3})).count(resolve_dtype(recipe), 816)
    gpu = GPUS["4090"]
    slow = estimate_seconds(counts, replace(gpu, tflops=gpu.tflops / 2))
    seconds = estimate_seconds(counts, gpu)
    assert slow is not None
    assert seconds is not None
    assert slow - seconds == pytest.approx(counts.flops["bfloat16"] / (gpu.tflops * 1e12 * 0.75))
    assert estimate_seconds(counts, find_gpu("24GB")) is None


@pytest.mark.parametrize(
    ("text", "memory_gb"),
    [("24GB", 24), ("24 gib", 24), ("rtx 4090", 24), ("NVIDIA-A100-80GB", 80), ("h200", 141)],
)
def test_a_gpu_is_named_by_its_memory_or_by_its_name(text: str, memory_gb: float) -> None:
    assert find_gpu(text).memory_gb == memory_gb


def test_an_unknown_gpu_is_refused_with_a_remedy() -> None:
    with pytest.raises(UserError, match="such as 24GB"):
        find_gpu("4091")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_a_heap_has_gaps_where_freed_blocks_are_too_small() -> None:
    size = 20_000
    # Every other block is freed, and none of the gaps has room for a block of twice the size.
    blocks = [size] * 400
    freed = [-1 - number for number in range(0, 400, 2)]
    events = [*blocks, *freed, *[2 * size + 4096] * 100]
    taken, whole = measure_heap(events), measure_heap(blocks)
    assert taken is not None
    assert taken > 1.2 * count_most_live(events)
    assert whole == pytest.approx(400 * size, rel=0.1)


def test_codec_and_context_of_a_gpu_are_parts_of_the_plan(make_recipe: Callable[..., Recipe]) -> None:
    made = plan_run(make_recipe({"r": 3}), gpu=find_gpu("16GB"))
    assert made.fits
    assert made.memory.parts[CONTEXT] == 0.6e9
    assert made.memory.parts[CODEC] == 0
    assert sum(made.as_dict()["parts_gb"].values()) == pytest.approx(made.as_dict()["peak_gb"], abs=0.01)
