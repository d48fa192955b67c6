"""Any split of an optimizer step gives the same loss and gradient, to 1e-5 of each tensor's norm in fp32.

Eight clips of very different lengths. One has no target, so that a micro-batch of that clip has no supervised cell, and
another one has no target in one codebook.
"""

from dataclasses import replace

import pytest
import torch
from transformers import TrainingArguments

from higgs_trainer.dataset.collator import PackingCollator, PaddingCollator
from higgs_trainer.errors import LossError
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import HIGGS_AUDIO_V2
from higgs_trainer.tensors import IGNORED
from higgs_trainer.training.losses import LossWeights
from higgs_trainer.training.trainer import HiggsAudioTrainer
from tiny import NUM_CODEBOOKS, encode_rows, make_row, tiny_checkpoint

FRAMES = (2, 61, 3, 40, 7, 5, 33, 4)
SILENT, PARTLY_SILENT = 5, 3
WEIGHTS = LossWeights(codebooks=(3.0, 2.0, 1.5, 1.2, 1.0, 0.8, 0.7, 0.6))


def encode(checkpoint):
    rows = [make_row(seed, num_frames=frames, ref_frames=seed % 3) for seed, frames in enumerate(FRAMES)]
    dataset = encode_rows(rows, checkpoint)
    examples = [dataset[i] for i in range(len(rows))]
    examples[SILENT] = silence(examples[SILENT])
    targets_PK = examples[PARTLY_SILENT].targets_PK.clone()
    targets_PK[:, 6] = IGNORED
    supervised_P = (targets_PK != IGNORED).any(dim=1)
    assert torch.equal(supervised_P, (examples[PARTLY_SILENT].targets_PK != IGNORED).any(dim=1))
    examples[PARTLY_SILENT] = replace(examples[PARTLY_SILENT], targets_PK=targets_PK)
    return examples


def silence(example):
    return replace(
        example,
        targets_PK=torch.full_like(example.targets_PK, IGNORED),
        keep_T=torch.zeros_like(example.keep_T),
    )


def pad_left(batch, lengths):
    """Move the padding of a batch to the left and add an attention mask, as the processor pads."""
    T = batch["input_ids"].shape[1]
    for key in ("input_ids", "logits_to_keep"):
        rows = zip(batch[key], lengths, strict=True)
        batch[key] = torch.stack([row.roll(T - length) for row, length in rows])
    batch["attention_mask"] = torch.stack([(torch.arange(T) >= T - length).long() for length in lengths])
    return batch


def collator_of(checkpoint, layout):
    padding = PaddingCollator(checkpoint.model.config.pad_token_id, checkpoint.stream_ids.end, NUM_CODEBOOKS)
    if layout == "padded left":
        return lambda examples: pad_left(padding(examples), [len(example.input_ids) for example in examples])
    return PackingCollator(NUM_CODEBOOKS) if layout == "packed" else padding


def take_one_step(
    output_dir,
    *,
    lora,
    layout="padded right",
    batch_size=8,
    attention="packed_sdpa",
    checkpointing=False,
    order=range(8),
    change=lambda examples: examples,
):
    """Return every gradient of one optimizer step without clipping, and the logged losses."""
    checkpoint = tiny_checkpoint()
    checkpoint.model.set_attn_implementation(attention)
    examples = change(encode(checkpoint))
    model = checkpoint.model
    if lora:
        torch.manual_seed(1)
        model = add_lora(model, HIGGS_AUDIO_V2, r=3, lora_alpha=5, target_modules="all_linear")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    trainer = HiggsAudioTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output_dir),
            max_steps=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
            train_sampling_strategy="sequential",
            max_grad_norm=0.0,
            label_smoothing_factor=0.1,
            gradient_checkpointing=checkpointing,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=[examples[i] for i in order],
        data_collator=collator_of(checkpoint, layout),
        family=HIGGS_AUDIO_V2,
        weights=WEIGHTS,
    )
    gradients = {}
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.update(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )
    )
    trainer.train()
    return gradients, trainer.state.log_history[0]


@pytest.fixture(scope="module", params=[False, True], ids=["full", "lora"])
def whole(request, tmp_path_factory):
    """The step without a split: a padded batch of eight, with transformers' own attention."""
    return request.param, *take_one_step(
        tmp_path_factory.mktemp("whole"), lora=request.param, attention="sdpa"
    )


CUTS = [
    {"layout": layout, "batch_size": batch_size}
    for layout in ("padded right", "padded left", "packed")
    for batch_size in (1, 2, 8)
]
CUTS += [
    {"layout": "padded right", "batch_size": 8, "checkpointing": True},
    {"layout": "padded left", "batch_size": 4, "checkpointing": True},
    {"layout": "packed", "batch_size": 2, "checkpointing": True},
    {"layout": "packed", "batch_size": 2, "order": (6, 1, 4, 0, 7, 3, 5, 2)},
    {"layout": "padded right", "batch_size": 4, "order": (7, 6, 5, 4, 3, 2, 1, 0)},
    {"layout": "packed", "batch_size": 4, "attention": "sdpa"},
    {"layout": "packed", "batch_size": 4, "attention": "eager"},
]


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: " ".join(map(str, cut.values())))
def test_loss_and_gradients_are_those_of_the_whole_step(whole, cut, tmp_path):
    lora, gradients, log = whole
    cut_gradients, cut_log = take_one_step(tmp_path, lora=lora, **cut)
    assert cut_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        error = torch.linalg.norm(cut_gradients[name] - gradient)
        assert error <= 1e-5 * torch.linalg.norm(gradient), name
    for key in ("loss", "audio_loss", *(f"codebook_{k}_loss" for k in range(NUM_CODEBOOKS))):
        assert cut_log[key] == pytest.approx(log[key], rel=1e-5), key


def test_a_wrong_split_fails(whole, tmp_path):
    """The tolerance is small enough: leaving out the shortest clip changes every tensor by far more."""
    lora, gradients, _ = whole

    def without_the_first(examples):
        return [silence(examples[0]), *examples[1:]]

    other, _ = take_one_step(tmp_path, lora=lora, layout="packed", change=without_the_first)
    errors = [
        float(torch.linalg.norm(other[name] - g) / torch.linalg.norm(g))
        for name, g in gradients.items()
        if g.any()
    ]
    assert min(errors) > 1e-3


def test_a_step_without_any_target_raises(tmp_path):
    with pytest.raises(LossError, match=r"no supervised audio cell in this step.*clip-0"):
        take_one_step(
            tmp_path, lora=False, layout="packed", change=lambda examples: [silence(e) for e in examples]
        )
