"""Sampling: transformers' distribution and, for one clip, its codes; independence of the batch; stream tokens."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from generation import generate_texts
from higgs_trainer.errors import CheckpointError
from higgs_trainer.model.stream_rule import StreamTokensInPlace
from higgs_trainer.speech.generate import Request, generate_codes
from higgs_trainer.speech.sampling import (
    RepetitionRule,
    SampleByClip,
    Sampling,
    SamplingRule,
    build_generation_config,
    check_generation_config,
    choose_sampling_rule,
)
from tiny import NUM_CODEBOOKS, NUM_CODES, talkative_checkpoint, tiny_checkpoint

BEGIN, END, DONE = NUM_CODES, NUM_CODES + 1, 4
ANY = SamplingRule(temperature=1.0, top_k=0, top_p=1.0, repetition=None)


def make_sampler(rule: SamplingRule, seeds: list[int], columns_BWK: Tensor | None = None) -> SampleByClip:
    return SampleByClip(
        rule,
        [torch.Generator().manual_seed(seed) for seed in seeds],
        stream_ids=(BEGIN, END),
        done_token=DONE,
        last_columns_BWK=torch.zeros(len(seeds), 0, 3) if columns_BWK is None else columns_BWK,
    )


def test_one_clip_has_exactly_the_codes_of_transformers_own_sampling() -> None:
    checkpoint = talkative_checkpoint()
    sampling = Sampling(temperature=5.0, top_k=7, top_p=0.9, max_seconds=0.8, seed=11)
    ours = generate_texts(checkpoint, ["one two three"], sampling=sampling)[0]

    prompt = checkpoint.tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "Generate audio following instruction."},
            {"role": "user", "content": "one two three"},
        ],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    torch.manual_seed(11)
    columns_1PK = checkpoint.model.generate(
        **prompt,
        do_sample=True,
        temperature=5.0,
        top_k=7,
        top_p=0.9,
        max_new_tokens=20 + NUM_CODEBOOKS + 1,
        logits_processor=LogitsProcessorList(
            [
                StreamTokensInPlace(
                    num_codebooks=NUM_CODEBOOKS,
                    begin_id=BEGIN,
                    end_id=END,
                    delay_token=checkpoint.stream_ids.delay_token,
                    done_token=checkpoint.model.config.eos_token_id,
                )
            ]
        ),
    )
    theirs_PK = columns_1PK[0]
    assert len(ours.codes_FK) >= 5
    for k in range(NUM_CODEBOOKS):  # frame f of codebook k is in column f + k + 1
        F = len(ours.codes_FK)
        assert torch.equal(ours.codes_FK[:, k], theirs_PK[1 + k : 1 + k + F, k])


def test_codes_are_sampled_as_often_as_their_probability_says() -> None:
    torch.manual_seed(3)
    scores = torch.randn(1, 5)
    sampler = make_sampler(SamplingRule(0.7, 4, 0.95, None), [5])
    counts = torch.zeros(5)
    for _ in range(4000):
        counts[sampler(torch.tensor([[1]]), scores).argmax()] += 1
    expected = scores[0] / 0.7
    expected[expected.argmin()] = -torch.inf
    kept = (
        expected.softmax(0).sort(descending=True).values.cumsum(0)
        - expected.softmax(0).sort(descending=True).values
    )
    assert (kept < 0.95).sum() == 4, "the case should not depend on top_p"
    assert torch.allclose(counts / 4000, expected.softmax(0), atol=0.03)


def test_a_clip_does_not_depend_on_its_batch_and_a_finished_clip_draws_no_random_numbers() -> None:
    scores = torch.randn(3 * 3, 11)
    alone = make_sampler(ANY, [9])
    together = make_sampler(ANY, [4, 9, 6])
    speaking, others_done = torch.tensor([[1], [1], [1]]), torch.tensor([[DONE], [1], [DONE]])
    for tokens in (speaking, others_done, speaking, others_done):
        batch = together(tokens, scores)
        assert torch.equal(batch[3:6], alone(torch.tensor([[1]]), scores[3:6]))
    first = make_sampler(ANY, [4])
    before = [first(torch.tensor([[1]]), scores[:3]) for _ in range(2)]
    again = make_sampler(ANY, [4, 9, 6])
    assert torch.equal(again(speaking, scores)[:3], before[0])
    again(others_done, scores)
    assert torch.equal(again(speaking, scores)[:3], before[1])


def test_a_repeated_code_is_sampled_again_and_a_stream_id_is_not() -> None:
    # With top_k 1, the most probable code is always sampled.
    rule = SamplingRule(1.0, 1, 1.0, RepetitionRule(window_columns=4, max_repeats=2))
    scores = torch.zeros(3, NUM_CODES + 2)
    scores[0, 5] = scores[1, END] = scores[2, 7] = 0.1
    heard = torch.tensor([[[5, END, 7], [1, END, 7], [5, END, 2], [1, END, 3]]])
    drawn = [
        make_sampler(rule, [seed], heard)(torch.tensor([[1]]), scores).argmax(dim=-1) for seed in range(30)
    ]
    codes_NK = torch.stack(drawn)
    assert (codes_NK[:, 0] == 5).float().mean() < 0.5, "5 occurs twice in the last four columns"
    assert (codes_NK[:, 1] == END).all(), "end of stream occurs four times, and is not a repetition"
    assert (codes_NK[:, 2] == 7).float().mean() < 0.5
    longer = torch.cat([heard, torch.tensor([[[0, 0, 0]]])], dim=1)  # the first 7 leaves the window
    sampler = make_sampler(rule, [1], longer)
    assert (sampler(torch.tensor([[1]]), scores).argmax(dim=-1)[2] == 7).all()
    assert sampler.last_columns_BWK[0, -1].tolist()[1:] == [END, 7]


def test_repetitions_are_counted_over_generated_columns() -> None:
    checkpoint = talkative_checkpoint()
    checkpoint.model.generation_config.ras_win_len = 3
    checkpoint.model.generation_config.ras_win_max_num_repeat = 1
    sampling = Sampling(temperature=0.01, max_seconds=0.6)
    codes_FK = generate_texts(checkpoint, ["one"], sampling=sampling)[0].codes_FK
    checkpoint.model.generation_config.ras_win_len = None
    stuck_FK = generate_texts(checkpoint, ["one"], sampling=sampling)[0].codes_FK
    assert (stuck_FK[1:] == stuck_FK[:-1]).float().mean() > (codes_FK[1:] == codes_FK[:-1]).float().mean()


DELAY_TOKEN = 7
STREAM_RULE = StreamTokensInPlace(
    num_codebooks=NUM_CODEBOOKS, begin_id=BEGIN, end_id=END, delay_token=DELAY_TOKEN, done_token=DONE
)


def test_only_the_first_codebook_ends_a_clip() -> None:
    scores = torch.randn(2 * NUM_CODEBOOKS, NUM_CODES + 2)
    speaking_then_ending = torch.tensor([[1, 2], [1, DELAY_TOKEN]])
    out = STREAM_RULE(speaking_then_ending, scores.clone()).reshape(2, NUM_CODEBOOKS, -1)
    before = scores.reshape(2, NUM_CODEBOOKS, -1)
    assert torch.isinf(out[0, 1:, END]).all()
    assert torch.equal(out[0, 0, END], before[0, 0, END])
    assert torch.equal(out[1, :, END], before[1, :, END])
    assert torch.equal(out[:, :, :NUM_CODES], before[:, :, :NUM_CODES])


def test_begin_of_stream_is_where_the_delay_pattern_has_it_and_nowhere_else() -> None:
    scores = torch.randn(NUM_CODEBOOKS, NUM_CODES + 2)
    must_begin = torch.full((NUM_CODES + 2,), -torch.inf)
    must_begin[BEGIN] = 0.0
    scores[-1] = must_begin
    out = STREAM_RULE(torch.tensor([[1, 2]]), scores.clone())
    assert torch.isinf(out[:-1, BEGIN]).all()
    assert torch.equal(out[-1], must_begin)


def test_a_clip_is_whole_although_the_model_likes_begin_of_stream_best() -> None:
    checkpoint = talkative_checkpoint()
    head = checkpoint.model.audio_lm_head
    bias_C = torch.zeros(NUM_CODES + 2)
    bias_C[BEGIN] = 1e6
    head.register_forward_hook(lambda _, __, logits: logits + bias_C.repeat(NUM_CODEBOOKS))
    clip = generate_texts(checkpoint, ["one two three"], sampling=Sampling(greedy=True, max_seconds=0.8))[0]
    assert len(clip.codes_FK) >= 20
    assert clip.codes_FK.max() < NUM_CODES


def test_the_rule_of_stream_tokens_does_not_change_a_finished_clip() -> None:
    scores = torch.full((NUM_CODEBOOKS, NUM_CODES + 2), -torch.inf)
    scores[:, END] = 0.0
    assert torch.equal(STREAM_RULE(torch.tensor([[1, DONE]]), scores.clone()), scores)


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        ({}, Sampling(), (0.3, 50, 0.95)),
        ({"do_sample": False}, Sampling(), None),
        ({"do_sample": False}, Sampling(temperature=0.7), (0.7, 50, 0.95)),
        ({"do_sample": True, "temperature": 0.3}, Sampling(top_k=5), (0.3, 5, 0.95)),
        ({"do_sample": True, "temperature": 0.3}, Sampling(top_k=0, top_p=1.0), (0.3, 0, 1.0)),
        ({"do_sample": True, "temperature": 0.3}, Sampling(greedy=True), None),
    ],
)
def test_settings_that_the_user_leaves_out_are_those_of_the_model(own, asked, expected) -> None:
    rule = choose_sampling_rule(GenerationConfig(**own), asked)
    assert (rule and (rule.temperature, rule.top_k, rule.top_p)) == expected


def test_settings_that_higgs_audio_does_not_support_are_rejected() -> None:
    with pytest.raises(CheckpointError, match="min_p"):
        choose_sampling_rule(GenerationConfig(do_sample=True, min_p=0.1), Sampling())


def test_the_generation_config_of_the_model_is_not_changed() -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.model.generation_config = GenerationConfig(do_sample=True, temperature=0.3)
    checkpoint.model.generation_config.ras_win_len = 7
    plain = build_generation_config(checkpoint, max_columns=17)
    assert (plain.do_sample, plain.max_new_tokens, plain.ras_win_len) == (False, 17, None)
    own = checkpoint.model.generation_config
    assert (own.do_sample, own.max_new_tokens, own.ras_win_len) == (True, None, 7)


def test_generation_does_not_change_the_random_state_or_the_training_mode() -> None:
    checkpoint = tiny_checkpoint()
    before = torch.get_rng_state()
    checkpoint.model.train()
    generate_texts(checkpoint, ["one"], sampling=Sampling(temperature=1.0, max_seconds=0.2))
    assert torch.equal(torch.get_rng_state(), before)
    assert checkpoint.model.training


def test_the_seed_of_a_request_overrides_that_of_the_sampling() -> None:
    checkpoint = tiny_checkpoint()
    sampling = Sampling(temperature=1.0, max_seconds=0.3, seed=3)
    by_number = dict(
        generate_codes(checkpoint, [Request("one"), Request("one", seed=8)], sampling=sampling, batch_size=2)
    )
    assert torch.equal(
        by_number[0].codes_FK, generate_texts(checkpoint, ["one"], sampling=sampling)[0].codes_FK
    )
    eight = dataclasses.replace(sampling, seed=8)
    assert torch.equal(by_number[1].codes_FK, generate_texts(checkpoint, ["one"], sampling=eight)[0].codes_FK)
    assert not torch.equal(by_number[0].codes_FK, by_number[1].codes_FK)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": "hot"},
        {"temperature": 0},
        {"temperature": float("nan")},
        {"top_k": 2.5},
        {"top_k": [1]},
        {"top_p": -1},
        {"ras_win_len": 10**13, "ras_win_max_num_repeat": 1},
        {"ras_win_len": True, "ras_win_max_num_repeat": 1},
    ],
)
def test_a_damaged_value_of_sampling_in_the_generation_config_is_named(values: dict[str, Any]) -> None:
    config = GenerationConfig(do_sample=True)
    for name, value in values.items():
        setattr(config, name, value)
    with pytest.raises(CheckpointError, match=f"generation_config.json: {next(iter(values))} is"):
        choose_sampling_rule(config, Sampling())


@pytest.mark.parametrize(
    "values",
    [
        {"num_beams": 4},
        {"repetition_penalty": 1.2},
        {"min_new_tokens": "x"},
        {"suppress_tokens": [3]},
        {"stop_strings": ["a"]},
    ],
)
def test_a_generation_config_that_asks_for_what_higgs_audio_does_not_do_is_refused(
    values: dict[str, Any],
) -> None:
    config = GenerationConfig()
    for name, value in values.items():
        setattr(config, name, value)
    with pytest.raises(CheckpointError, match=f"sets {next(iter(values))}, which is not supported"):
        check_generation_config(config)


def test_a_generation_config_with_settings_without_effect_is_accepted() -> None:
    check_generation_config(GenerationConfig(num_beams=1, repetition_penalty=1.0, do_sample=True, top_k=9))
