"""Each test of `higgs-trainer check` fails on a fault that is put in, and says what to do."""

from dataclasses import replace

import pytest
import torch
from transformers import AttentionInterface, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from higgs_trainer.dataset.collator import PackingCollator, PaddingCollator
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import HIGGS_AUDIO_V2, family_of
from higgs_trainer.training.example_checks import EXAMPLE_CHECKS, inspect_examples
from higgs_trainer.training.losses import compute_cross_entropy_sums
from higgs_trainer.training.model_checks import inspect_model
from higgs_trainer.training.trainer import HiggsAudioTrainer
from tiny import NUM_CODEBOOKS, encode_rows, make_row, tiny_checkpoint

CHECKPOINT = tiny_checkpoint()
IDS = CHECKPOINT.stream_ids
END = IDS.end


def encode(checkpoint=CHECKPOINT):
    return encode_rows([make_row(3, ref_frames=4)], checkpoint)[0]


def failed(results):
    return [result.name for result in results if not result.passed]


def test_a_sound_example_passes():
    assert failed(inspect_examples([encode()], IDS)) == []


def without_end(example):
    return replace(example, targets_PK=example.targets_PK.masked_fill(example.targets_PK == END, -100))


def with_supervised_reference(example):
    targets_PK = example.targets_PK.clone()
    targets_PK[2, 0] = 1
    return replace(example, targets_PK=targets_PK)


def with_a_placeholder_too_many(example):
    input_ids = example.input_ids.clone()
    input_ids[0] = IDS.audio_token
    return replace(example, input_ids=input_ids)


def with_moved_positions(example):
    return replace(
        example,
        keep_T=example.keep_T & (torch.arange(len(example.keep_T)) != int(example.keep_T.nonzero()[0])),
    )


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (without_end, "end of stream is supervised once a codebook"),
        (with_supervised_reference, "only the last clip is supervised"),
        (with_a_placeholder_too_many, "each clip has its placeholders"),
        (with_moved_positions, "logits are kept exactly where a target follows"),
    ],
)
def test_a_faulty_example_fails_its_check_and_is_named(fault, name):
    results = inspect_examples([encode(), fault(encode())], IDS)
    assert name in failed(results)
    result = next(result for result in results if result.name == name)
    assert "1 of 2 clips fail: clip-3" in result.found
    assert result.remedy


def test_no_check_passes_without_examples():
    assert len(failed(inspect_examples([], IDS))) == len(EXAMPLE_CHECKS)


def build_trainer(model, tmp_path, *, packing=False):
    padding = PaddingCollator(pad_token_id=1, end_id=END, num_codebooks=NUM_CODEBOOKS)
    return HiggsAudioTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
        data_collator=PackingCollator(NUM_CODEBOOKS) if packing else padding,
        family=family_of(model),
    )


def test_lora_that_does_not_reach_the_audio_ffn_fails(tmp_path):
    model = tiny_checkpoint().model
    adapted = add_lora(model, family_of(model), r=2, lora_alpha=4, target_modules="attention")
    assert failed(inspect_model(build_trainer(adapted, tmp_path), [encode()])) == [
        "LoRA reaches the audio FFN"
    ]


def test_a_model_that_looks_ahead_fails(tmp_path):
    model = tiny_checkpoint().model
    model.model.norm.register_forward_hook(
        lambda module, args, output: output + output.mean(dim=1, keepdim=True)
    )
    assert "a later frame leaves earlier predictions unchanged" in failed(
        inspect_model(build_trainer(model, tmp_path), [encode()])
    )


@pytest.fixture(scope="module")
def trained():
    """A model that has memorized one clip, and that clip."""
    checkpoint = tiny_checkpoint()
    example = encode(checkpoint)
    collate = PaddingCollator(pad_token_id=1, end_id=END, num_codebooks=NUM_CODEBOOKS)
    family, model = family_of(checkpoint.model), checkpoint.model
    split = family.contract.split(collate([example]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        aligned = family.align(model(**split.model_inputs), split.model_inputs, split.targets)
        loss = compute_cross_entropy_sums(aligned.audio_logits_NKC, aligned.audio_targets_NK).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, example


SHIFT = "targets moved by one frame make the loss worse"


def test_a_trained_model_passes_the_shift_and_a_moved_alignment_fails_it(trained, tmp_path):
    model, example = trained
    trainer = build_trainer(model, tmp_path)
    result = next(result for result in inspect_model(trainer, [example]) if result.name == SHIFT)
    assert result.passed
    assert "not judged" not in result.found

    def align_one_late(outputs, model_inputs, targets):
        aligned = HIGGS_AUDIO_V2.align(outputs, model_inputs, targets)
        return replace(aligned, audio_targets_NK=aligned.audio_targets_NK.roll(1, dims=0))

    trainer.family = replace(HIGGS_AUDIO_V2, align=align_one_late)
    assert SHIFT in failed(inspect_model(trainer, [example]))


def test_an_untrained_model_is_not_judged_by_the_shift(tmp_path):
    results = inspect_model(build_trainer(tiny_checkpoint().model, tmp_path), [encode()])
    result = next(result for result in results if result.name == SHIFT)
    assert result.passed
    assert "not judged" in result.found


@pytest.mark.parametrize("attn_implementation", ["packed_sdpa", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_isolates_the_examples_of_a_pack_passes(attn_implementation, dtype, tmp_path):
    model = tiny_checkpoint().model.to(dtype)
    model.set_attn_implementation(attn_implementation)
    assert failed(inspect_model(build_trainer(model, tmp_path, packing=True), [encode()])) == []


def sum_long_rows_in_halves(linear, args, output):
    """Compute like a GPU that takes another kernel for longer rows: it adds in another order, so roundings differ."""
    (hidden,) = args
    if hidden.shape[-2] <= len(encode().input_ids):
        return output
    half = hidden.shape[-1] // 2
    weight = linear.weight
    return hidden[..., :half] @ weight[:, :half].T + hidden[..., half:] @ weight[:, half:].T


def test_a_kernel_that_rounds_a_pack_differently_in_bfloat16_passes(tmp_path):
    # The frozen weights of a run with an adapter: trained ones would be float32.
    model = tiny_checkpoint().model.bfloat16().requires_grad_(False)
    model.set_attn_implementation("packed_sdpa")
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(sum_long_rows_in_halves)
    trainer = build_trainer(model, tmp_path, packing=True)
    assert failed(inspect_model(trainer, [encode()])) == []
    alone, packed = (trainer.build_batch([encode()] * count) for count in (1, 2))
    with torch.no_grad():
        moved = (model(**alone).logits - model(**packed).logits[-len(model(**alone).logits) :]).abs().max()
    assert moved > 1e-3, "the hook changes nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_that_finds_no_packs_fails(dtype, tmp_path):
    """transformers makes no mask for an attention function without a registered one: it is causal over the row."""
    AttentionInterface.register("finds_no_packs", sdpa_attention_forward)
    model = tiny_checkpoint().model.to(dtype)
    model.set_attn_implementation("finds_no_packs")
    found = failed(inspect_model(build_trainer(model, tmp_path, packing=True), [encode()]))
    assert found == ["an example in a pack is predicted as if it were alone"]
