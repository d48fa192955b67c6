"""Generation: a batch gives the codes of single calls, whatever its prompts; long texts are generated in parts."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from generation import generate_texts
from higgs_trainer.dataset.context import Context, PromptClip
from higgs_trainer.model.families import FAMILIES
from higgs_trainer.model.loading import Checkpoint
from higgs_trainer.speech.generate import Request, generate_codes
from higgs_trainer.speech.sampling import Sampling
from tiny import NUM_CODEBOOKS, NUM_CODES, draw_codes, talkative_checkpoint, tiny_checkpoint

REFERENCE = PromptClip("nine", draw_codes(6, 1))
# Seven prompts of different lengths: without clips, with one and two clips, with a scene, in several parts.
REQUESTS = [
    Request("one two three four"),
    Request("three", seed=5),
    Request("four five", Context(references=(REFERENCE,)), seed=2),
    Request("[SPEAKER0] six\n[SPEAKER1] one", Context(references=(REFERENCE, PromptClip("two", draw_codes(9, 2))))),
    Request("six", Context(scene="A quiet room.")),
    Request("one one", Context("A room.", (REFERENCE,), references_in_system=True)),
    Request("one two three. four five six seven. eight nine zero zero. one.", seed=4),
]  # fmt: skip


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_batch_gives_the_codes_of_single_calls(greedy: bool, adapted: bool) -> None:
    checkpoint = talkative_checkpoint()
    if adapted:
        lora = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        model = get_peft_model(checkpoint.model, lora)
        checkpoint = Checkpoint(checkpoint.name_or_path, model, checkpoint.tokenizer)
    drawing = {"greedy": True} if greedy else {"temperature": 0.9, "top_k": 9, "top_p": 0.97}
    sampling = Sampling(max_seconds=0.9, part_seconds=2.0, seed=7, **drawing)
    alone = [dict(generate_codes(checkpoint, [request], sampling=sampling))[0] for request in REQUESTS]
    assert alone[-1].num_parts == 3
    assert len({tuple(clip.codes_FK.flatten().tolist()) for clip in alone}) >= len(REQUESTS) - 1
    for batch_size in (3, 7):
        together = dict(generate_codes(checkpoint, REQUESTS, sampling=sampling, batch_size=batch_size))
        assert sorted(together) == list(range(len(REQUESTS)))
        for number, clip in together.items():
            assert torch.equal(clip.codes_FK, alone[number].codes_FK), f"request {number}"
            assert clip.stopped == alone[number].stopped


def test_clips_of_different_lengths_in_a_batch_do_not_change_each_other() -> None:
    checkpoint = talkative_checkpoint()
    sampling = Sampling(temperature=1.5, top_k=0, top_p=1.0, max_seconds=2.0)
    requests = [Request("one", seed=seed) for seed in range(8)]
    together = dict(generate_codes(checkpoint, requests, sampling=sampling, batch_size=8))
    lengths = {len(clip.codes_FK) for clip in together.values()}
    assert len(lengths) > 3, "the case should have clips of several lengths"
    assert any(clip.stopped for clip in together.values())
    for number, request in enumerate(requests):
        alone = dict(generate_codes(checkpoint, [request], sampling=sampling))[0]
        assert torch.equal(alone.codes_FK, together[number].codes_FK)


def test_end_of_stream_in_a_fine_codebook_does_not_end_the_clip() -> None:
    checkpoint = tiny_checkpoint()
    head = checkpoint.model.audio_lm_head.weight
    norm = checkpoint.model.model.norm
    # Every hidden state is the same, and codebook 5 always prefers end of stream.
    with torch.no_grad():
        norm.weight.zero_()
        norm.register_forward_hook(lambda module, args, output: torch.ones_like(output))
        head.zero_()
        head.reshape(NUM_CODEBOOKS, NUM_CODES + 2, -1)[5, NUM_CODES + 1] = 1.0
    clip = generate_texts(checkpoint, ["one"], sampling=Sampling(greedy=True, max_seconds=0.4))[0]
    assert len(clip.codes_FK) >= 10
    assert not clip.stopped


def test_the_prompt_of_each_part_has_the_part_before_it_and_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = talkative_checkpoint()
    family, sequence = checkpoint.family, checkpoint.sequence
    prompts: list[tuple[str, list[str | None]]] = []

    def note(tokenizer, text, context, **sizes):
        prompts.append((text, [clip.text for clip in context.clips]))
        return sequence.encode_prompt(tokenizer, text, context, **sizes)

    noting = replace(family, sequence=replace(sequence, encode_prompt=note))
    monkeypatch.setitem(FAMILIES, family.model_type, noting)
    request = Request("one two three. four five six. seven eight nine.", Context(references=(REFERENCE,)))
    sampling = Sampling(greedy=True, max_seconds=0.4, part_seconds=1.0)
    ((_, clip),) = generate_codes(checkpoint, [request], sampling=sampling)
    assert prompts == [
        ("one two three.", ["nine"]),
        ("four five six.", ["nine", "one two three."]),
        ("seven eight nine.", ["nine", "four five six."]),
    ]
    assert (clip.num_parts, clip.text) == (3, request.text)
    assert len(clip.codes_FK) > 20


def test_a_part_without_codes_is_not_in_the_next_prompt() -> None:
    checkpoint = tiny_checkpoint()
    norm, head = checkpoint.model.model.norm, checkpoint.model.audio_lm_head.weight
    # The first codebook always prefers end of stream.
    with torch.no_grad():
        norm.weight.zero_()
        norm.register_forward_hook(lambda module, args, output: torch.ones_like(output))
        head.zero_()
        head.reshape(NUM_CODEBOOKS, NUM_CODES + 2, -1)[0, NUM_CODES + 1] = 1.0
    clip = generate_texts(checkpoint, ["one. two."], sampling=Sampling(greedy=True, part_seconds=0.3))[0]
    assert (len(clip.codes_FK), clip.num_parts, clip.stopped) == (0, 2, True)
