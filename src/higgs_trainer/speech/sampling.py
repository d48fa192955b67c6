"""How codes are drawn: each clip with a random generator of its own, so that a batch says what single calls say.

transformers draws for a whole batch from one generator, so there a clip depends on its neighbours. Here the same
distribution is drawn from clip by clip, inside a logits processor: transformers then has nothing left to choose. One
clip alone gives, with the same seed, the very codes of transformers' own sampling (tests/unit/test_sampling.py).

transformers admits only four kinds of processors on Higgs Audio, lest one mix the codebooks. Those here do not, and
derive from one of the four.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    InfNanRemoveLogitsProcessor,
)

from higgs_trainer.errors import CheckpointError
from higgs_trainer.model.loading import Checkpoint

WHERE_ALL_ARE_SILENT = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}
"""What Boson's own examples for Higgs Audio v2 draw with."""

NOT_KNOWN_HERE = ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
"""Other ways of narrowing a draw, which transformers does not admit on Higgs Audio either."""


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn. What is None is the model's own choice, in its ``generation_config.json``; where that is
    silent too, `WHERE_ALL_ARE_SILENT`. ``greedy``: always the likeliest code. ``seed``: of each clip that has no seed
    of its own. ``max_seconds``: of a clip or, where a long text is cut, of each part. ``part_seconds``: how long such a
    part is meant to be, for a text in several parts; None: two thirds of ``max_seconds``."""

    greedy: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_seconds: float = 30.0
    part_seconds: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class RepetitionRule:
    """Repetition-aware sampling (Chen et al. 2024, arXiv:2406.05370, section 3.3), as transformers reads it from a
    model's ``ras_win_len`` and ``ras_win_max_num_repeat``: a code that stands ``most`` times among the codebook's last
    ``window_columns`` is drawn again, from the whole distribution, at temperature 1."""

    window_columns: int
    most: int


@dataclass(frozen=True)
class DrawRule:
    """What `Sampling` and the model's own choices come to. ``top_k`` 0: all codes."""

    temperature: float
    top_k: int
    top_p: float
    repetition: RepetitionRule | None

    def narrow(self, scores_NC: Tensor) -> tuple[Tensor, Tensor]:
        """What may be drawn: logits (N, R), likeliest first, and their codes (N, R).

        As transformers' warpers of temperature, top-k and top-p one after the other, but sorted only once, and only
        what top-k has left.
        """
        num_kept = min(self.top_k or scores_NC.shape[1], scores_NC.shape[1])
        logits_NR, codes_NR = (scores_NC / self.temperature).topk(num_kept)
        if self.top_p < 1.0:
            share_NR = logits_NR.softmax(dim=-1)
            share_of_likelier_NR = share_NR.cumsum(dim=-1) - share_NR
            logits_NR = logits_NR.masked_fill(share_of_likelier_NR >= self.top_p, -torch.inf)
        return logits_NR, codes_NR


def choose_draw_rule(own: GenerationConfig, sampling: Sampling) -> DrawRule | None:
    """The rule by which codes are drawn from a model whose generation config is ``own``; None: the likeliest code.

    Raises:
        CheckpointError: the model asks for a way of drawing that is not known here.
    """
    asked = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    asked = {name: value for name, value in asked.items() if value is not None}
    if sampling.greedy or (own.do_sample is False and not asked):
        return None
    if unknown := [name for name in NOT_KNOWN_HERE if getattr(own, name, None)]:
        raise CheckpointError(
            f"generation_config.json asks for {', '.join(unknown)}, which Higgs Audio does not draw by; remove it"
        )
    own_choice = {name: getattr(own, name) for name in WHERE_ALL_ARE_SILENT}
    own_choice = {name: value for name, value in own_choice.items() if value is not None}
    window, most = getattr(own, "ras_win_len", None), getattr(own, "ras_win_max_num_repeat", None)
    repetition = None if window is None or most is None else RepetitionRule(window, most)
    return DrawRule(**(WHERE_ALL_ARE_SILENT | own_choice | asked), repetition=repetition)


def build_generation_config(checkpoint: Checkpoint, *, max_columns: int) -> GenerationConfig:
    """The model's own generation config for ``max_columns`` columns, all choice of codes taken out of it."""
    config = checkpoint.model.config
    plain = copy.deepcopy(checkpoint.model.generation_config)
    plain.update(do_sample=False, temperature=None, top_k=None, top_p=None)
    plain.ras_win_len = plain.ras_win_max_num_repeat = None
    plain.update(
        max_new_tokens=max_columns,
        max_length=None,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        use_cache=True,
    )
    return plain


class DrawByClip(InfNanRemoveLogitsProcessor):
    """Draws the codes of the next column, each clip by its own generator, and leaves only these to choose from.

    A clip that is finished, and waits for its batch, draws nothing: so its generator is where it would be after a
    call of its own.

    Args:
        generators: one a clip, on the CPU, so that a seed gives the same noise on every device.
        stream_ids: of begin and end of stream, which count as no repetition.
        done_token: the text token that follows a finished clip.
        last_heard_BWK: the columns before the first one that is drawn, at least as many as the repetition window has;
            filled up with stream ids where there are fewer.
    """

    def __init__(
        self,
        rule: DrawRule,
        generators: Sequence[torch.Generator],
        *,
        stream_ids: tuple[int, int],
        done_token: int,
        last_heard_BWK: Tensor,
    ) -> None:
        self.rule = rule
        self.generators = generators
        self.stream_ids = stream_ids
        self.done_token = done_token
        self.heard_BWK = last_heard_BWK

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids`` (B, T), the text side; ``scores`` (B * K, C). Returns 0 for the drawn code and -inf for the
        others."""
        B = len(input_ids)
        speaking = [clip for clip, token in enumerate(input_ids[:, -1].tolist()) if token != self.done_token]
        logits_NR, codes_NR = self.rule.narrow(scores)
        noise_NC = self._make_noise(B, scores, speaking)
        places_N1 = (logits_NR.softmax(dim=-1) / noise_NC.gather(1, codes_NR)).argmax(dim=-1, keepdim=True)
        drawn_N1 = codes_NR.gather(1, places_N1)
        if self.rule.repetition is not None:
            drawn_N1 = self._draw_repeated_again(drawn_N1.view(B, -1), scores, speaking).view(-1, 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn_N1, 0.0)

    def _make_noise(self, B: int, scores: Tensor, clips: Sequence[int]) -> Tensor:
        """Exponential noise (B * K, C) for ``clips``, 1 for the others. The largest quotient of a probability and its
        noise is a draw: so torch.multinomial does it, with the same noise."""
        noise_BKC = torch.ones(B, len(scores) // B, scores.shape[1])
        for clip in clips:
            noise_BKC[clip].exponential_(generator=self.generators[clip])
        return noise_BKC.flatten(0, 1).to(scores.device)

    def _draw_repeated_again(self, drawn_BK: Tensor, scores: Tensor, speaking: Sequence[int]) -> Tensor:
        """The column with what `RepetitionRule` says replaced; it is remembered."""
        rule = self.rule.repetition
        assert rule is not None
        window_BWK = self.heard_BWK[:, -rule.window_columns :].to(drawn_BK.device)
        is_code_BWK = (window_BWK != self.stream_ids[0]) & (window_BWK != self.stream_ids[1])
        counts_BK = ((window_BWK == drawn_BK[:, None]) & is_code_BWK).sum(dim=1)
        is_repeated_BK = counts_BK >= rule.most
        clips = [clip for clip in speaking if is_repeated_BK[clip].any()]
        if clips:
            noise_NC = self._make_noise(len(drawn_BK), scores, clips)
            again_BK = (scores.softmax(dim=-1) / noise_NC).argmax(dim=-1).view(drawn_BK.shape)
            drawn_BK = torch.where(is_repeated_BK, again_BK, drawn_BK)
        self.heard_BWK = torch.cat([window_BWK, drawn_BK[:, None]], dim=1)
        return drawn_BK
