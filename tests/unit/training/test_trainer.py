"""HiggsAudioTrainer on tiny models: what it learns, that batching changes nothing, and what stops it."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from transformers import TrainingArguments

from generation import generate_texts
from higgs_trainer.dataset.collator import PaddingCollator
from higgs_trainer.dataset.context import Context, PromptClip
from higgs_trainer.errors import LossError, RecipeError
from higgs_trainer.model.families import family_of
from higgs_trainer.speech.sampling import Sampling
from higgs_trainer.training.callbacks import hiding_alignment
from higgs_trainer.training.losses import LossWeights
from higgs_trainer.training.trainer import HiggsAudioTrainer
from tiny import (
    NUM_CODEBOOKS,
    NUM_CODES,
    draw_codes,
    encode_rows,
    make_row,
    talkative_checkpoint,
    tiny_checkpoint,
)


def collator_of(checkpoint):
    return PaddingCollator(
        pad_token_id=checkpoint.model.config.pad_token_id,
        end_id=checkpoint.stream_ids.end,
        num_codebooks=NUM_CODEBOOKS,
    )


def build_trainer(checkpoint, rows, output_dir, *, eval_rows=None, weights=LossWeights(), **arguments):
    defaults = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    return HiggsAudioTrainer(
        model=checkpoint.model,
        args=TrainingArguments(output_dir=str(output_dir), **(defaults | arguments)),
        train_dataset=encode_rows(rows, checkpoint),
        eval_dataset=encode_rows(eval_rows, checkpoint) if eval_rows else None,
        data_collator=collator_of(checkpoint),
        family=family_of(checkpoint.model),
        weights=weights,
    )


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """A model that has memorized two clips."""
    checkpoint = tiny_checkpoint(hidden_size=64)
    rows = [make_row(1, num_frames=9, text="one two"), make_row(2, num_frames=6, text="nine")]
    trainer = build_trainer(
        checkpoint,
        rows,
        tmp_path_factory.mktemp("overfit"),
        max_steps=150,
        learning_rate=0.01,
        per_device_train_batch_size=2,
        logging_steps=50,
    )
    trainer.train()
    return checkpoint, rows, trainer


def test_greedy_generation_gives_the_overfitted_codes_back_and_stops(overfitted):
    checkpoint, rows, _ = overfitted
    spoken = generate_texts(
        checkpoint, [row["text"] for row in rows], sampling=Sampling(greedy=True, max_seconds=2)
    )
    for row, clip in zip(rows, spoken, strict=True):
        assert clip.stopped
        assert torch.equal(clip.codes_FK, row["codes_FK"])


def test_a_trained_models_loss_gets_worse_when_targets_move_by_a_frame(overfitted):
    checkpoint, _, trainer = overfitted
    batch = trainer.data_collator([trainer.train_dataset[0]])
    split = trainer.family.contract.split(batch)
    with torch.no_grad():
        outputs = checkpoint.model(**split.model_inputs)
    aligned = trainer.family.align(outputs, split.model_inputs, split.targets)

    def loss(targets_NK):
        return torch.nn.functional.cross_entropy(
            aligned.audio_logits_NKC.flatten(0, 1), targets_NK.flatten(), ignore_index=-100
        )

    right = loss(aligned.audio_targets_NK)
    assert right < 0.1
    assert loss(aligned.audio_targets_NK.roll(1, 0)) > right + 1
    assert loss(aligned.audio_targets_NK.roll(-1, 0)) > right + 1


def test_on_random_codes_the_held_out_loss_stays_at_chance(tmp_path):
    """If a target leaked into the inputs, the loss would fall. Ends of stream are predictable and left out."""
    checkpoint = tiny_checkpoint()
    rows = [make_row(seed, num_frames=12, text="one") for seed in range(64)]
    held_out = [make_row(seed, num_frames=12, text="one") for seed in range(500, 540)]
    trainer = build_trainer(checkpoint, rows, tmp_path, max_steps=60, learning_rate=0.003, logging_steps=60)
    trainer.train()
    batch = trainer.data_collator([encode_rows(held_out, checkpoint)[i] for i in range(40)])
    split = trainer.family.contract.split(batch)
    with torch.no_grad():
        outputs = checkpoint.model.eval()(**split.model_inputs)
    aligned = trainer.family.align(outputs, split.model_inputs, split.targets)
    is_code_NK = (aligned.audio_targets_NK >= 0) & (aligned.audio_targets_NK < NUM_CODES)
    loss = torch.nn.functional.cross_entropy(
        aligned.audio_logits_NKC[is_code_NK][:, :NUM_CODES], aligned.audio_targets_NK[is_code_NK]
    )
    assert float(loss) == pytest.approx(math.log(NUM_CODES), rel=0.03)
    assert float(loss) > 0.99 * math.log(NUM_CODES)


def test_training_returns_no_outputs_since_it_overwrites_their_logits(overfitted):
    checkpoint, _, trainer = overfitted
    batch = trainer.data_collator([trainer.train_dataset[0]])
    made = []
    hook = checkpoint.model.audio_lm_head.register_forward_hook(
        lambda *call: made.append((call[-1], call[-1].detach().clone()))
    )
    for is_training in (True, False):
        model = checkpoint.model.train(is_training)
        loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
        logits, before = made.pop()
        assert loss.requires_grad
        assert (outputs is None) is is_training
        assert torch.equal(logits, before) is not is_training
    hook.remove()


def test_a_later_frame_leaves_earlier_logits_unchanged():
    checkpoint = tiny_checkpoint()
    example = encode_rows([make_row(1)], checkpoint)[0]
    inputs = {
        "input_ids": example.input_ids[None],
        "audio_input_ids": example.columns_PK[None],
        "audio_input_ids_mask": torch.ones(1, len(example.columns_PK), dtype=torch.bool),
    }
    changed = {**inputs, "audio_input_ids": inputs["audio_input_ids"].clone()}
    changed["audio_input_ids"][0, 6] = 3
    position = int((example.input_ids == checkpoint.stream_ids.audio_token).nonzero()[6])
    with torch.no_grad():
        before, after = checkpoint.model(**inputs).logits, checkpoint.model(**changed).logits
    assert torch.equal(before[0, :position], after[0, :position])
    assert not torch.equal(before[0, position:], after[0, position:])


def test_the_reference_clip_changes_the_logits():
    checkpoint = tiny_checkpoint()
    rows = [make_row(1, ref_frames=7), make_row(1, ref_frames=7)]
    rows[1]["context_codes"] = [draw_codes(7, seed=99)]
    batches = [collator_of(checkpoint)([encode_rows([row], checkpoint)[0]]) for row in rows]
    contract = family_of(checkpoint.model).contract
    with torch.no_grad():
        first, second = (checkpoint.model(**contract.split(batch).model_inputs).logits for batch in batches)
    assert not torch.allclose(first, second)


def test_generation_reads_the_reference():
    """Another reference leads to other codes, and the same reference to the same codes."""
    checkpoint = talkative_checkpoint()
    sampling = Sampling(greedy=True, max_seconds=0.4)
    contexts = [Context(references=(PromptClip("nine", draw_codes(7, seed)),)) for seed in (1, 2)]
    same = [
        generate_texts(checkpoint, ["one", "two"], context=contexts[0], sampling=sampling) for _ in range(2)
    ]
    other = generate_texts(checkpoint, ["one", "two"], context=contexts[1], sampling=sampling)
    assert all(torch.equal(a.codes_FK, b.codes_FK) for a, b in zip(*same, strict=True))
    assert not all(torch.equal(a.codes_FK, b.codes_FK) for a, b in zip(same[0], other, strict=True))


def gradients(tmp_path, rows, *, batch_size, accumulation):
    """Return every gradient of one optimizer step without clipping, and the log."""
    checkpoint = tiny_checkpoint()
    trainer = build_trainer(
        checkpoint,
        rows,
        tmp_path,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
    )
    seen = {}
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.update(
            {n: p.grad.clone() for n, p in checkpoint.model.named_parameters() if p.grad is not None}
        )
    )
    trainer.train()
    return seen, trainer.state.log_history[0]


def test_one_by_four_is_four_by_one(tmp_path):
    rows = [make_row(seed, num_frames=frames) for seed, frames in enumerate((3, 31, 7, 14))]
    whole, whole_log = gradients(tmp_path, rows, batch_size=4, accumulation=1)
    parts, parts_log = gradients(tmp_path, rows, batch_size=1, accumulation=4)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        assert torch.linalg.norm(parts[name] - gradient) <= 1e-5 * torch.linalg.norm(gradient), name
    for key in ("loss", "audio_loss", "codebook_0_loss", "codebook_7_loss"):
        assert parts_log[key] == pytest.approx(whole_log[key], rel=1e-5)


def test_evaluation_is_over_cells_not_batches(tmp_path):
    rows = [make_row(seed, num_frames=frames) for seed, frames in enumerate((3, 31, 7, 14, 5))]
    trainers = [
        build_trainer(tiny_checkpoint(), rows, tmp_path, eval_rows=rows, per_device_eval_batch_size=size)
        for size in (2, 5)
    ]
    first, second = (trainer.evaluate() for trainer in trainers)
    assert first["eval_loss"] == pytest.approx(second["eval_loss"], rel=1e-6)
    assert first["eval_loss"] == pytest.approx(first["eval_audio_loss"])


def test_a_step_without_a_supervised_cell_raises(tmp_path):
    trainer = build_trainer(tiny_checkpoint(), [make_row(1)], tmp_path)
    example = trainer.train_dataset[0]
    silent = {
        "targets_PK": torch.full_like(example.targets_PK, -100),
        "keep_T": torch.zeros_like(example.keep_T),
    }
    trainer.train_dataset = [replace(example, **silent)]
    before = trainer.model.model.embed_tokens.weight.clone()
    with pytest.raises(LossError, match=r"no supervised audio cell in this step.*clip-1"):
        trainer.train()
    assert torch.equal(before, trainer.model.model.embed_tokens.weight)


@pytest.mark.parametrize("training", [True, False])
def test_labels_that_are_added_after_the_collator_are_not_left_out_in_silence(tmp_path, training):
    trainer = build_trainer(tiny_checkpoint(), [make_row(1, ref_frames=3)], tmp_path)
    collate = trainer.data_collator

    def supervise_all(examples):
        batch = collate(examples)
        return batch | {"audio_labels": batch["audio_input_ids"].clone()}

    trainer.data_collator = supervise_all
    with pytest.raises(
        LossError, match=r"has \d+ supervised cells more than the layout of its batch.*clip-1"
    ):
        trainer.train() if training else trainer.evaluate(trainer.train_dataset)


def test_a_loss_that_is_not_finite_raises_before_the_optimizer_step(tmp_path):
    checkpoint = tiny_checkpoint()
    trainer = build_trainer(checkpoint, [make_row(1)], tmp_path)
    with torch.no_grad():
        checkpoint.model.audio_lm_head.weight[0, 0] = float("nan")
    before = checkpoint.model.model.embed_tokens.weight.clone()
    with pytest.raises(LossError, match=r"nan.*step 0.*clip-1"):
        trainer.train()
    assert torch.equal(before, checkpoint.model.model.embed_tokens.weight)


def test_labels_that_other_code_adds_to_a_batch_reach_neither_model_nor_loss(tmp_path):
    trainer = build_trainer(tiny_checkpoint(), [make_row(1)], tmp_path)
    calls = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(set(kwargs)), with_kwargs=True
    )
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert "labels" not in batch
    expected = trainer.compute_loss(trainer.model, dict(batch))
    batch["labels"] = batch["input_ids"].clone()
    assert torch.equal(trainer.compute_loss(trainer.model, batch), expected)
    assert calls[0] == calls[1]
    assert not any("label" in key for key in calls[1])


def test_a_text_loss_without_text_logits_is_refused(tmp_path):
    with pytest.raises(LossError, match="weight of the text loss"):
        build_trainer(tiny_checkpoint(), [make_row(1)], tmp_path, weights=LossWeights(text=0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optim_args": "x"}, r"the optimizer cannot be built .* Correct training\.optim and"),
        (
            {"lr_scheduler_kwargs": {"x": 1}},
            r"the schedule cannot be built .* Correct training\.lr_scheduler",
        ),
    ],
)
def test_settings_that_the_optimizer_or_the_schedule_refuses_are_named(tmp_path, arguments, message):
    trainer = build_trainer(tiny_checkpoint(), [make_row(0)], tmp_path, **arguments)
    with pytest.raises(RecipeError, match=message):
        trainer.train()


def test_the_message_about_aligned_special_tokens_is_hidden_and_no_other():
    """Trainer says that it changed the model's special tokens; `KeepSpecialTokens` changes them back."""
    of_trainer, shown = logging.getLogger("transformers.trainer_utils"), []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())
    of_trainer.addHandler(handler)
    try:
        with hiding_alignment():
            of_trainer.warning("The tokenizer has new PAD/BOS/EOS tokens that differ")
            of_trainer.warning("something else")
        of_trainer.warning("The tokenizer has new PAD/BOS/EOS tokens again")
    finally:
        of_trainer.removeHandler(handler)
    assert shown == ["something else", "The tokenizer has new PAD/BOS/EOS tokens again"]
