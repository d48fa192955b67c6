"""Sample codes with one random generator for each clip, so that a clip does not depend on its batch.

transformers samples a whole batch with one generator, so each clip depends on the others. Here a logits processor
samples from the same distribution, clip by clip, and leaves transformers only the sampled code. For a single clip and
the same seed, the codes are exactly those of transformers' own sampling (tests/unit/speech/test_sampling.py).

transformers accepts only four classes of logits processors for Higgs Audio, to keep out processors that would mix the
codebooks. The processor here does not mix them, and derives from one of these classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, InfNanRemoveLogitsProcessor

from higgs_trainer.errors import CheckpointError
from higgs_trainer.limits import LARGEST_COUNT
from higgs_trainer.model.loading import Checkpoint

DEFAULTS = {"temperature": 0.3, "top_k": 50, "top_p": 0.95}
"""The values in Boson's own examples of one voice, in the README of github.com/boson-ai/higgs-audio.

Those of dialogues have a temperature of 1.0. The released model's own settings have none of the three.
"""

UNSUPPORTED = ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
"""Other fields of a generation config that restrict sampling. transformers does not support them for Higgs Audio."""

UNDERSTOOD = {
    *DEFAULTS,
    *UNSUPPORTED,
    "do_sample",
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "max_length",
    "max_new_tokens",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
    "transformers_version",
    "_from_model_config",
    "_commit_hash",
    "_original_object_hash",
    "compile_config",
    "disable_compile",
}
"""Fields of a generation config that are used, or that change no code of a clip."""
NEUTRAL: tuple[Any, ...] = (None, 0, 1, [], {}, "")
"""Values with which the other fields have no effect: no penalty, one beam, nothing suppressed."""

WHOLE = ("top_k", "ras_win_len", "ras_win_max_num_repeat")
RANGES = {
    "temperature": (1e-3, 1e3),
    "top_k": (0, LARGEST_COUNT),
    "top_p": (1e-6, 1),
    "ras_win_len": (1, 10_000),
    "ras_win_max_num_repeat": (1, LARGEST_COUNT),
}
"""The values that a model's generation config may have."""


@dataclass(frozen=True)
class Sampling:
    """Settings of generation.

    A temperature, top_k or top_p of None is taken from the model's ``generation_config.json``, and from `DEFAULTS` if
    that does not set it.

    Attributes:
        greedy: take the likeliest code instead of sampling.
        top_k: the number of likeliest codes to sample from. 0: all.
        max_seconds: the maximum duration of a clip or, for a long text, of each of its parts.
        part_seconds: the estimated duration of the parts into which a longer text is split. None: two thirds of
            ``max_seconds``.
        seed: the seed of clips whose request has no seed.
    """

    greedy: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_seconds: float = 30.0
    part_seconds: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class RepetitionRule:
    """Repetition-aware sampling (Chen et al. 2024, arXiv:2406.05370, section 3.3).

    If the sampled code occurs ``max_repeats`` times or more in the last ``window_columns`` of its codebook, it is
    sampled again, from all codes at temperature 1. transformers calls the two values ``ras_win_max_num_repeat`` and
    ``ras_win_len``.
    """

    window_columns: int
    max_repeats: int


@dataclass(frozen=True)
class SamplingRule:
    """The settings of `Sampling` and of the model combined. A ``top_k`` of 0 means all codes."""

    temperature: float
    top_k: int
    top_p: float
    repetition: RepetitionRule | None

    def filter_logits(self, scores_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Apply temperature, top-k and top-p.

        The result equals that of transformers' three processors one after the other, but the codes are sorted only
        once, and only those that top-k keeps.

        Returns:
            The logits (N, R), the likeliest first, and their codes (N, R). Logits that top-p removes are -inf.
        """
        num_kept = min(self.top_k or scores_NC.shape[1], scores_NC.shape[1])
        logits_NR, codes_NR = (scores_NC / self.temperature).topk(num_kept)
        if self.top_p < 1.0:
            probabilities_NR = logits_NR.softmax(dim=-1)
            cumulative_before_NR = probabilities_NR.cumsum(dim=-1) - probabilities_NR
            logits_NR = logits_NR.masked_fill(cumulative_before_NR >= self.top_p, -torch.inf)
        return logits_NR, codes_NR


def choose_sampling_rule(config: GenerationConfig, sampling: Sampling) -> SamplingRule | None:
    """Combine the settings of a model and a user. None means greedy decoding.

    Args:
        config: the generation config of the model.

    Raises:
        CheckpointError: the model's config has settings that are not supported (`UNSUPPORTED`).
    """
    asked = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    asked = {name: value for name, value in asked.items() if value is not None}
    if sampling.greedy or (config.do_sample is False and not asked):
        return None
    _refuse([name for name in UNSUPPORTED if getattr(config, name, None)])
    of_model = {name: getattr(config, name) for name in DEFAULTS}
    of_model = {name: value for name, value in of_model.items() if value is not None}
    window, most = getattr(config, "ras_win_len", None), getattr(config, "ras_win_max_num_repeat", None)
    for name, value in (*of_model.items(), ("ras_win_len", window), ("ras_win_max_num_repeat", most)):
        _check_value(name, value)
    repetition = None if window is None or most is None else RepetitionRule(window, most)
    return SamplingRule(**(DEFAULTS | of_model | asked), repetition=repetition)


def _refuse(names: Sequence[str]) -> None:
    if names:
        raise CheckpointError(
            f"generation_config.json sets {', '.join(names)}, which is not supported for Higgs Audio. Remove it."
        )


def _check_value(name: str, value: Any) -> None:
    """Check a value of a model's generation config, which transformers does not check for Higgs Audio."""
    kinds = int if name in WHOLE else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if value is not None and not (is_number and RANGES[name][0] <= value <= RANGES[name][1]):
        least, greatest = RANGES[name]
        kind = "a whole number" if name in WHOLE else "a number"
        raise CheckpointError(
            f"generation_config.json: {name} is {str(value)[:40]}. Write {kind} from {least:g} to {greatest:g}."
        )


def check_generation_config(config: GenerationConfig) -> None:
    """Check that a model's generation config asks for nothing that generation with Higgs Audio does not do.

    Settings that restrict sampling are left to `choose_sampling_rule`, because they do not matter for greedy decoding.

    Raises:
        CheckpointError: it asks for beams, penalties, stop strings or the like.
    """
    known = vars(GenerationConfig())
    given = {name: value for name, value in vars(config).items() if name in known and name not in UNDERSTOOD}
    _refuse([name for name, value in given.items() if value != known[name] and value not in NEUTRAL])


def build_generation_config(checkpoint: Checkpoint, *, max_columns: int) -> GenerationConfig:
    """Build a generation config of ``max_columns`` columns with the ids of the model and without sampling settings."""
    config = checkpoint.model.config
    plain = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_columns,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        use_cache=True,
    )
    # generate of Higgs Audio reads both.
    plain.ras_win_len = plain.ras_win_max_num_repeat = None
    return plain


class SampleByClip(InfNanRemoveLogitsProcessor):
    """Sample the codes of the next column, each clip with its own generator, and mask all other codes.

    A finished clip that waits for the rest of its batch draws no random numbers. So its generator is in the state in
    which a call with this clip alone would have left it.

    Args:
        generators: one for each clip, on the CPU, so that a seed gives the same noise on every device.
        stream_ids: the ids of begin and end of stream, which are not counted as repetitions.
        done_token: the text token that follows a finished clip.
        last_columns_BWK: the last columns of the prompts, as many as the repetition window has. Shorter prompts are
            padded with stream ids.
    """

    def __init__(
        self,
        rule: SamplingRule,
        generators: Sequence[torch.Generator],
        *,
        stream_ids: tuple[int, int],
        done_token: int,
        last_columns_BWK: Tensor,
    ) -> None:
        self.rule = rule
        self.generators = generators
        self.stream_ids = stream_ids
        self.done_token = done_token
        self.last_columns_BWK = last_columns_BWK

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Sample one column.

        Args:
            input_ids: the text tokens so far (B, T).
            scores: logits (B * K, C).

        Returns:
            Logits (B * K, C): 0 for the sampled codes, -inf for all others.
        """
        B = len(input_ids)
        running = [clip for clip, token in enumerate(input_ids[:, -1].tolist()) if token != self.done_token]
        logits_NR, codes_NR = self.rule.filter_logits(scores)
        noise_NC = self._draw_noise(B, scores, running)
        ranks_N1 = (logits_NR.softmax(dim=-1) / noise_NC.gather(1, codes_NR)).argmax(dim=-1, keepdim=True)
        sampled_N1 = codes_NR.gather(1, ranks_N1)
        if self.rule.repetition is not None:
            sampled_N1 = self._resample_repetitions(sampled_N1.view(B, -1), scores, running).view(-1, 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, sampled_N1, 0.0)

    def _draw_noise(self, B: int, scores: Tensor, clips: Sequence[int]) -> Tensor:
        """Draw exponential noise (B * K, C) for ``clips``, and 1 for the others.

        The code with the largest quotient of probability and noise is a sample. torch.multinomial samples in this way
        too, with the same noise.
        """
        noise_BKC = torch.ones(B, len(scores) // B, scores.shape[1])
        for clip in clips:
            noise_BKC[clip].exponential_(generator=self.generators[clip])
        return noise_BKC.flatten(0, 1).to(scores.device)

    def _resample_repetitions(self, sampled_BK: Tensor, scores: Tensor, running: Sequence[int]) -> Tensor:
        """Apply the `RepetitionRule` to the sampled column, and append the column to the window."""
        rule = self.rule.repetition
        assert rule is not None
        window_BWK = self.last_columns_BWK[:, -rule.window_columns :].to(sampled_BK.device)
        is_code_BWK = (window_BWK != self.stream_ids[0]) & (window_BWK != self.stream_ids[1])
        counts_BK = ((window_BWK == sampled_BK[:, None]) & is_code_BWK).sum(dim=1)
        is_repeated_BK = counts_BK >= rule.max_repeats
        clips = [clip for clip in running if is_repeated_BK[clip].any()]
        if clips:
            noise_NC = self._draw_noise(len(sampled_BK), scores, clips)
            resampled_BK = (scores.softmax(dim=-1) / noise_NC).argmax(dim=-1).view(sampled_BK.shape)
            sampled_BK = torch.where(is_repeated_BK, resampled_BK, sampled_BK)
        self.last_columns_BWK = torch.cat([window_BWK, sampled_BK[:, None]], dim=1)
        return sampled_BK
