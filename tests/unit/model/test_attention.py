"""Attention stays within the examples of a pack, costs the sum of their squares, and is "sdpa" without packs."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import HiggsAudioV2ForConditionalGeneration, TrainingArguments

from generation import generate_texts
from higgs_trainer.dataset.collator import PackingCollator, PaddingCollator
from higgs_trainer.dataset.context import Context, PromptClip
from higgs_trainer.errors import VersionError
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.attention import PACKED_SDPA, attend_by_example, mark_example_starts
from higgs_trainer.model.families import HIGGS_AUDIO_V2
from higgs_trainer.model.loading import Checkpoint
from higgs_trainer.speech.sampling import Sampling
from higgs_trainer.tensors import check_pack
from higgs_trainer.training.trainer import HiggsAudioTrainer
from label_guard import LabelLeakError
from tiny import NUM_CODEBOOKS, draw_codes, encode_rows, make_row, tiny_checkpoint

FRAMES = (5, 23, 2)
FINDING_PACKS = (PACKED_SDPA, "sdpa", "eager")


def build(attn_implementation=PACKED_SDPA, *, lora=False, gradient_checkpointing=False):
    """Build a checkpoint with two query heads per key head, and with adapters that are not zero."""
    tiny = tiny_checkpoint()
    tiny.model.config.num_key_value_heads = 1
    torch.manual_seed(0)
    model = HiggsAudioV2ForConditionalGeneration(tiny.model.config)
    model.set_attn_implementation(attn_implementation)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpoint = Checkpoint("tiny", model, tiny.tokenizer)
    if lora:
        checkpoint = Checkpoint(
            "tiny",
            add_lora(model, HIGGS_AUDIO_V2, r=3, lora_alpha=5, target_modules="all_linear"),
            tiny.tokenizer,
        )
        torch.manual_seed(1)
        for name, parameter in checkpoint.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return checkpoint


def encode(checkpoint, *, changed=None, ref_frames=0):
    """Encode examples of ``FRAMES``; the one at ``changed`` has other codes."""
    rows = [make_row(seed, num_frames=frames, ref_frames=ref_frames) for seed, frames in enumerate(FRAMES)]
    if changed is not None:
        rows[changed]["codes_FK"] = draw_codes(FRAMES[changed], seed=77)
    dataset = encode_rows(rows, checkpoint)
    return [dataset[i] for i in range(len(rows))]


def model_inputs(examples):
    return HIGGS_AUDIO_V2.contract.split(PackingCollator(NUM_CODEBOOKS)(examples)).model_inputs


def logits_of_examples(checkpoint, examples):
    """Compute the kept logits of a pack, split by example."""
    logits = checkpoint.model(**model_inputs(examples)).logits
    return logits.split([int(example.keep_T.sum()) for example in examples])


VARIANTS = [
    {"attn_implementation": name, "lora": lora, "gradient_checkpointing": checkpointing}
    for name in FINDING_PACKS
    for lora, checkpointing in [(False, False), (True, True)]
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_each_example_has_the_logits_that_it_has_alone(variant):
    checkpoint = build(**variant)
    checkpoint.model.train()
    examples = encode(checkpoint, ref_frames=4)
    for example, packed in zip(examples, logits_of_examples(checkpoint, examples), strict=True):
        (alone,) = logits_of_examples(checkpoint, [example])
        assert (packed - alone).abs().max() <= 1e-6


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_changing_one_example_changes_no_others_logits_and_no_gradient_crosses(variant):
    checkpoint = build(**variant)
    checkpoint.model.train()
    before = logits_of_examples(checkpoint, encode(checkpoint))
    after = logits_of_examples(checkpoint, encode(checkpoint, changed=1))
    assert (before[0] - after[0]).abs().max() <= 1e-6
    assert (before[2] - after[2]).abs().max() <= 1e-6
    assert (before[1] - after[1]).abs().max() > 1e-3

    entering = []
    first_layer = next(m for name, m in checkpoint.model.named_modules() if name.endswith("layers.0"))

    def keep_gradient(_, args):
        entering.append(args[0].requires_grad_())
        entering[0].retain_grad()

    first_layer.register_forward_pre_hook(keep_gradient)
    examples = encode(checkpoint)
    logits_of_examples(checkpoint, examples)[1].sum().backward()
    gradients = entering[0].grad[0].split([len(example.input_ids) for example in examples])
    assert not gradients[0].any()
    assert not gradients[2].any()
    assert gradients[1].any()


@pytest.mark.parametrize("extra", [{"attention_mask": 1}, {"use_cache": True}])
def test_what_would_hide_a_pack_raises_in_the_attention_function(extra):
    checkpoint = build()
    inputs = model_inputs(encode(checkpoint))
    if "attention_mask" in extra:
        extra = {"attention_mask": torch.ones_like(inputs["input_ids"])}
    with pytest.raises(ValueError, match="would attend to each other"):
        checkpoint.model(**inputs, **extra)


@pytest.mark.parametrize("attn_implementation", FINDING_PACKS)
def test_what_would_hide_a_pack_raises_in_the_trainer(attn_implementation, tmp_path):
    """Also where transformers' own attention would silently let the examples attend to each other."""
    checkpoint = build(attn_implementation)
    trainer = HiggsAudioTrainer(
        model=checkpoint.model,
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
        data_collator=PackingCollator(NUM_CODEBOOKS),
        family=HIGGS_AUDIO_V2,
    )
    batch = trainer.data_collator(encode(checkpoint))
    with pytest.raises(ValueError, match="attention_mask is given with position_ids"):
        trainer.training_step(trainer.model, {**batch, "attention_mask": torch.ones_like(batch["input_ids"])})
    with pytest.raises(LabelLeakError, match="use_cache"):
        trainer.training_step(trainer.model, {**batch, "use_cache": True})


def test_the_batch_check_distinguishes_a_pack_from_left_padding():
    packed = {"position_ids": torch.tensor([[0, 1, 2, 0, 1]])}
    check_pack(packed)
    for extra in ({"attention_mask": torch.ones(1, 5)}, {"use_cache": True}):
        with pytest.raises(ValueError, match="Leave"):
            check_pack(packed | extra)
    left_padded = {
        "position_ids": torch.tensor([[1, 1, 0, 1, 2]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1]]),
    }
    check_pack(left_padded)


def pad(checkpoint, examples, *, left):
    """Build a padded batch for the bare model, with logits at every position, and the mask of real positions (B, T)."""
    collate = PaddingCollator(checkpoint.model.config.pad_token_id, checkpoint.stream_ids.end, NUM_CODEBOOKS)
    inputs = HIGGS_AUDIO_V2.contract.split(collate(examples)).model_inputs
    del inputs["logits_to_keep"]
    lengths = [len(example.input_ids) for example in examples]
    T = max(lengths)
    real_BT = torch.stack([torch.arange(T) < length for length in lengths])
    if left:
        real_BT = real_BT.flip(1)
        shifts = [T - length for length in lengths]
        inputs["input_ids"] = torch.stack(
            [row.roll(by) for row, by in zip(inputs["input_ids"], shifts, strict=True)]
        )
    return inputs, real_BT


@pytest.mark.parametrize(("left", "with_positions"), [(False, False), (True, False), (True, True)])
def test_padded_batches_are_as_with_sdpa(left, with_positions):
    logits = []
    for attn_implementation in (PACKED_SDPA, "sdpa"):
        checkpoint = build(attn_implementation)
        inputs, real_BT = pad(checkpoint, encode(checkpoint), left=left)
        inputs["attention_mask"] = real_BT.long()
        # As `generate` of transformers does.
        if with_positions:
            inputs["position_ids"] = (real_BT.long().cumsum(1) - 1).masked_fill(~real_BT, 1)
        logits.append(checkpoint.model(**inputs).logits[real_BT])
    assert torch.equal(*logits)
    if with_positions or not left:
        checkpoint = build()
        alone = [
            checkpoint.model(**pad(checkpoint, [e], left=False)[0]).logits[0] for e in encode(checkpoint)
        ]
        assert (logits[0] - torch.cat(alone)).abs().max() <= 1e-6


def test_generation_is_as_with_sdpa():
    """The prompts have different lengths, so they are left-padded; they have a reference and a cache."""
    clips = [
        generate_texts(
            build(attn_implementation),
            ["one two three", "nine"],
            context=Context(references=(PromptClip("nine", draw_codes(7, seed=1)),)),
            sampling=Sampling(greedy=True, max_seconds=0.5),
        )
        for attn_implementation in (PACKED_SDPA, "sdpa")
    ]
    for packed, plain in zip(*clips, strict=True):
        assert torch.equal(packed.codes_FK, plain.codes_FK)


def test_an_argument_that_the_attention_function_does_not_know_raises_and_names_the_option():
    checkpoint = build()
    inputs = model_inputs(encode(checkpoint))
    with pytest.raises(
        VersionError, match=r"packed_sdpa was called with kv_store.*attn_implementation: sdpa"
    ):
        checkpoint.model(**inputs, kv_store=1)
    # transformers' own function looks at the cache of paged generation.
    states_BHTE = torch.randn(1, 2, 3, 4)
    attention = checkpoint.model.model.layers[0].self_attn
    attend_by_example(attention, *[states_BHTE] * 3, None, cache=object(), kv_store=1)


def test_an_argument_that_the_mask_function_does_not_know_raises_for_a_pack():
    """A window, for example: only where examples start would be kept of such a mask."""
    given = {
        "batch_size": 1,
        "q_length": 5,
        "kv_length": 5,
        "mask_function": lambda row, head, query, key: query // 2 == key // 2,
        "attention_mask": None,
        "device": torch.device("cpu"),
    }
    starts_BT = mark_example_starts(**given, allow_is_causal_skip=False, q_offset=0, local_size=None)
    assert starts_BT.tolist() == [[True, False, True, False, True]]
    with pytest.raises(VersionError, match="mask function of packed_sdpa was called with local_size"):
        mark_example_starts(**given, allow_is_causal_skip=False, local_size=4)
    # Without a pack, transformers makes the mask, whatever the arguments.
    assert mark_example_starts(**given, allow_is_causal_skip=True, local_size=4).dim() == 4


class WatchSizes(TorchDispatchMode):
    """Records the queries of each attention call, and the largest tensor."""

    def __init__(self):
        super().__init__()
        self.query_lengths = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "attention" in func.__name__ and "backward" not in func.__name__:
            self.query_lengths.append(args[0].shape[2])
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.largest = max(self.largest, made.numel())
        return made


def test_the_cost_is_the_sum_of_squares_and_no_dense_mask_is_made():
    checkpoint = build()
    dataset = encode_rows([make_row(seed, num_frames=3) for seed in range(60)], checkpoint)
    examples = [dataset[i] for i in range(60)]
    lengths = [len(example.input_ids) for example in examples]
    inputs = model_inputs(examples)
    largest = {}
    for attn_implementation in (PACKED_SDPA, "sdpa"):
        checkpoint.model.set_attn_implementation(attn_implementation)
        with WatchSizes() as watch:
            checkpoint.model(**inputs)
        largest[attn_implementation] = watch.largest
        if attn_implementation == PACKED_SDPA:
            assert watch.query_lengths == lengths * checkpoint.model.config.num_hidden_layers
    assert largest["sdpa"] >= sum(lengths) ** 2 > largest[PACKED_SDPA]


@pytest.mark.parametrize("collator", ["packed", "padded"])
def test_logits_are_computed_at_targets_only(collator, tmp_path):
    checkpoint = build(lora=True)
    collate = {
        "packed": PackingCollator(NUM_CODEBOOKS),
        "padded": PaddingCollator(
            checkpoint.model.config.pad_token_id, checkpoint.stream_ids.end, NUM_CODEBOOKS
        ),
    }[collator]
    trainer = HiggsAudioTrainer(
        model=checkpoint.model,
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
        data_collator=collate,
        family=HIGGS_AUDIO_V2,
    )
    head = checkpoint.model.get_base_model().audio_lm_head
    shapes = []
    head.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape)))
    examples = encode(checkpoint, ref_frames=6)
    trainer.training_step(trainer.model, collate(examples))
    supervised_columns = sum(frames + NUM_CODEBOOKS for frames in FRAMES)
    assert shapes == [(supervised_columns, checkpoint.model.config.hidden_size)]
