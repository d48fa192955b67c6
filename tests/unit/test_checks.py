"""Each check of `higgs-trainer check` fails on a seeded fault, and says what to do."""

from dataclasses import replace

import pytest
import torch
from transformers import TrainingArguments

from higgs_trainer.data.collator import PaddingCollator
from higgs_trainer.data.examples import ExampleDataset
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import family_of
from higgs_trainer.training.checks import check_examples, check_model
from higgs_trainer.training.trainer import HiggsAudioTrainer
from tiny import NUM_CODEBOOKS, make_row, tiny_checkpoint

CHECKPOINT = tiny_checkpoint()
END = CHECKPOINT.stream_ids.end


def encode(checkpoint=CHECKPOINT):
    return ExampleDataset([make_row(3, ref_frames=4)], checkpoint.tokenizer, checkpoint.stream_ids)[0]


def failed(results):
    return [result.name for result in results if not result.passed]


def test_a_sound_example_passes():
    assert failed(check_examples([encode()], end_id=END)) == []


def without_end(example):
    return replace(example, targets_PK=example.targets_PK.masked_fill(example.targets_PK == END, -100))


def with_supervised_reference(example):
    targets_PK = example.targets_PK.clone()
    targets_PK[2, 0] = 1
    return replace(example, targets_PK=targets_PK)


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
        (with_moved_positions, "logits are kept exactly where a target follows"),
    ],
)
def test_a_faulty_example_fails_its_check_and_is_named(fault, name):
    results = check_examples([encode(), fault(encode())], end_id=END)
    assert name in failed(results)
    result = next(result for result in results if result.name == name)
    assert "1 of 2 clips do not: clip-3" in result.found
    assert result.remedy


def test_no_example_at_all_is_no_pass():
    assert len(failed(check_examples([], end_id=END))) == 3


def build_trainer(model, tmp_path):
    return HiggsAudioTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
        data_collator=PaddingCollator(pad_token_id=1, end_id=END, num_codebooks=NUM_CODEBOOKS),
        family=family_of(model),
    )


def test_lora_that_does_not_reach_the_audio_ffn_fails(tmp_path):
    model = tiny_checkpoint().model
    adapted = add_lora(model, family_of(model), r=2, lora_alpha=4, target_modules="attention")
    assert failed(check_model(build_trainer(adapted, tmp_path), [encode()])) == ["LoRA reaches the audio FFN"]


def test_a_model_that_looks_ahead_fails(tmp_path):
    model = tiny_checkpoint().model
    model.model.norm.register_forward_hook(
        lambda module, args, output: output + output.mean(dim=1, keepdim=True)
    )
    assert "a later frame leaves earlier predictions unchanged" in failed(
        check_model(build_trainer(model, tmp_path), [encode()])
    )
