"""Generation: who may end a clip, what a folder of clips holds, and that a batch says what single calls say."""

import json

import pytest
import torch
from transformers import GenerationConfig

from higgs_trainer.data.audio import read_audio
from higgs_trainer.errors import UserError
from higgs_trainer.speech.generate import (
    FirstCodebookEnds,
    Sampling,
    Spoken,
    build_generation_config,
    generate_files,
    speak,
    write_spoken,
)
from tiny import NUM_CODEBOOKS, NUM_CODES, draw_codes, tiny_checkpoint


class ToneCodec:
    """As long as its codes say, and silent."""

    sample_rate_hz, frames_per_second = 24_000, 25

    def decode(self, codes_FK):
        return torch.zeros(len(codes_FK) * 960)


def test_only_the_first_codebook_ends_a_clip():
    end_id, delay_token = NUM_CODES + 1, 7
    processor = FirstCodebookEnds(num_codebooks=NUM_CODEBOOKS, end_id=end_id, delay_token=delay_token)
    scores = torch.randn(2 * NUM_CODEBOOKS, NUM_CODES + 2)
    speaking_then_ending = torch.tensor([[1, 2], [1, delay_token]])
    out = processor(speaking_then_ending, scores).reshape(2, NUM_CODEBOOKS, -1)
    before = scores.reshape(2, NUM_CODEBOOKS, -1)
    assert torch.isinf(out[0, 1:, end_id]).all()
    assert torch.equal(out[0, 0], before[0, 0])
    assert torch.equal(out[1], before[1])
    assert torch.equal(out[0, :, :end_id], before[0, :, :end_id])


def test_a_finished_clip_that_waits_for_its_batch_keeps_its_only_choice():
    end_id = NUM_CODES + 1
    processor = FirstCodebookEnds(num_codebooks=NUM_CODEBOOKS, end_id=end_id, delay_token=7)
    scores = torch.full((NUM_CODEBOOKS, NUM_CODES + 2), -torch.inf)
    scores[:, end_id] = 0.0
    assert torch.equal(processor(torch.tensor([[1, 4]]), scores), scores)


def test_a_fine_codebook_that_wants_to_end_does_not_cut_the_clip():
    checkpoint = tiny_checkpoint()
    head = checkpoint.model.audio_lm_head.weight
    norm = checkpoint.model.model.norm
    with torch.no_grad():  # every hidden state is the same, and codebook 5 wants nothing but to end
        norm.weight.zero_()
        norm.register_forward_hook(lambda module, args, output: torch.ones_like(output))
        head.zero_()
        head.reshape(NUM_CODEBOOKS, NUM_CODES + 2, -1)[5, NUM_CODES + 1] = 1.0
    clip = speak(checkpoint, ["one"], sampling=Sampling(greedy=True, max_seconds=0.4))[0]
    assert len(clip.codes_FK) >= 10
    assert not clip.stopped


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        ({}, Sampling(), (True, 1.0, 50, 0.95)),
        ({"do_sample": False}, Sampling(), (False, None, None, None)),
        ({"do_sample": False}, Sampling(temperature=0.7), (True, 0.7, 50, 0.95)),
        ({"do_sample": True, "temperature": 0.3}, Sampling(top_k=5), (True, 0.3, 5, 0.95)),
        ({"do_sample": True, "temperature": 0.3}, Sampling(greedy=True), (False, None, None, None)),
    ],
)
def test_what_is_not_asked_for_is_the_models_own_choice(own, asked, expected):
    checkpoint = tiny_checkpoint()
    checkpoint.model.generation_config = GenerationConfig(**own)
    chosen = build_generation_config(checkpoint, asked)
    assert (chosen.do_sample, chosen.temperature, chosen.top_k, chosen.top_p) == expected
    assert checkpoint.model.generation_config.max_new_tokens is None


def test_a_batch_says_what_single_calls_say():
    checkpoint = tiny_checkpoint()
    with torch.no_grad():
        checkpoint.model.audio_lm_head.weight.mul_(30)
    texts = ["one two", "three", "four five", "six"]
    sampling = Sampling(greedy=True, max_seconds=0.6)
    together = speak(checkpoint, texts, sampling=sampling, batch_size=4)
    assert [clip.text for clip in together] == texts
    for clip in together:
        alone = speak(checkpoint, [clip.text], sampling=sampling)[0]
        assert torch.equal(alone.codes_FK, clip.codes_FK)


def test_a_folder_of_clips_has_an_index_in_order(tmp_path):
    spoken = [Spoken("one", draw_codes(5, 1), True), Spoken("two", draw_codes(0, 2), False)]
    waveforms = write_spoken(spoken, ToneCodec(), tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()]
    assert [(row["text"], row["seconds"], row["stopped"]) for row in rows] == [
        ("one", 0.2, True),
        ("two", 0.0, False),
    ]
    for row, waveform_S in zip(rows, waveforms, strict=True):
        assert len(read_audio(tmp_path / "out" / row["audio"])) == len(waveform_S)


def test_clips_are_not_written_among_other_files(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        generate_files("anything", ["one"], tmp_path)
