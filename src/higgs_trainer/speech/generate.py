"""Text (and a reference voice) -> codes: transformers' own ``generate`` on the prompts that training used.

Samples in training, ``higgs-trainer generate``, ``evaluate`` and the demo all speak through `generate_codes`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from higgs_trainer.dataset.context import Context, PromptClip
from higgs_trainer.model.loading import Checkpoint
from higgs_trainer.speech.chunks import cut_text
from higgs_trainer.speech.clip_folder import GeneratedCodes
from higgs_trainer.speech.sampling import (
    DrawByClip,
    Sampling,
    build_generation_config,
    choose_draw_rule,
)

FRAMES_PER_SECOND = 25
PART_OF_LIMIT = 2 / 3
"""A part of a long text is cut for this share of ``max_seconds``, since a slow voice takes longer than the estimate."""


@dataclass(frozen=True)
class Request:
    """Something to say. ``seed`` None: that of `Sampling`. ``language``: decides where sentences end in a long text."""

    text: str
    context: Context = Context()
    seed: int | None = None
    language: str = "en"


def generate_codes(
    checkpoint: Checkpoint,
    requests: Sequence[Request],
    *,
    sampling: Sampling = Sampling(),
    batch_size: int = 8,
) -> Iterator[tuple[int, GeneratedCodes]]:
    """Speak each request and yield it with its number as soon as it is finished; the longest come first.

    What is said does not depend on the batch: prompts of different lengths are padded on the left, where the model
    does not look, and each clip draws by a generator of its own. (To float rounding: docs/generate.md.)
    The state of torch's global generator is left alone, so samples do not disturb a training run.
    """
    drafts = [_Draft.of(number, request, sampling) for number, request in enumerate(requests)]
    drafts.sort(key=lambda draft: (len(draft.parts), len(draft.request.text.encode())), reverse=True)
    for start in range(0, len(drafts), batch_size):
        batch = drafts[start : start + batch_size]
        unfinished = batch
        while unfinished:
            _generate_next_parts(checkpoint, unfinished, sampling)
            unfinished = [draft for draft in unfinished if draft.next_part is not None]
        for draft in batch:
            yield draft.number, draft.finish()


@dataclass
class _Draft:
    """A request on its way: its parts, what of them is spoken already, and its generator, which goes on through all."""

    number: int
    request: Request
    parts: Sequence[str]
    generator: torch.Generator
    spoken: list[PromptClip] = field(default_factory=list)
    stopped: bool = True

    @classmethod
    def of(cls, number: int, request: Request, sampling: Sampling) -> "_Draft":
        seed = sampling.seed if request.seed is None else request.seed
        part_seconds = sampling.part_seconds or PART_OF_LIMIT * sampling.max_seconds
        parts = cut_text(request.text, max_seconds=part_seconds, language=request.language)
        return cls(number, request, parts, torch.Generator().manual_seed(seed))

    @property
    def next_part(self) -> str | None:
        return self.parts[len(self.spoken)] if len(self.spoken) < len(self.parts) else None

    @property
    def context(self) -> Context:
        """What was asked for and, behind it, the last part in which anything was said."""
        said = [clip for clip in self.spoken if len(clip.codes_FK)]
        return replace(self.request.context, turns=(*self.request.context.turns, *said[-1:]))

    def finish(self) -> GeneratedCodes:
        codes_FK = torch.cat([clip.codes_FK for clip in self.spoken])
        return GeneratedCodes(self.request.text, codes_FK, self.stopped, num_parts=len(self.parts))


def _generate_next_parts(checkpoint: Checkpoint, drafts: Sequence[_Draft], sampling: Sampling) -> None:
    ids, sequence = checkpoint.stream_ids, checkpoint.sequence
    contexts, texts = [draft.context for draft in drafts], [draft.next_part or "" for draft in drafts]
    prompts = [
        sequence.encode_prompt(checkpoint.tokenizer, text, context, num_codebooks=ids.num_codebooks)
        for text, context in zip(texts, contexts, strict=True)
    ]
    heard = [
        [sequence.apply_delay(clip.codes_FK, begin_id=ids.begin, end_id=ids.end) for clip in context.clips]
        for context in contexts
    ]
    columns_BPK = _generate(checkpoint, prompts, heard, [draft.generator for draft in drafts], sampling)
    for draft, text, columns_PK in zip(drafts, texts, columns_BPK, strict=True):
        codes_FK = sequence.revert_delay(columns_PK, codebook_size=checkpoint.num_codes)
        draft.spoken.append(PromptClip(text, codes_FK))
        draft.stopped &= bool((columns_PK[:, 0] == ids.end).any())


def _generate(
    checkpoint: Checkpoint,
    prompts: Sequence[Tensor],
    heard: Sequence[Sequence[Tensor]],
    generators: Sequence[torch.Generator],
    sampling: Sampling,
) -> Tensor:
    """Delayed columns (B, P, K), those of the prompts left out; of a clip that ended sooner the last are end of stream.

    Args:
        prompts: token ids (T,) each.
        heard: the columns (P, K) of each prompt's clips.
    """
    ids, model = checkpoint.stream_ids, checkpoint.model
    config = model.config
    inputs = _pad_prompts(prompts, config.pad_token_id)
    heard_BPK, is_heard_BP = _pad_columns(heard, ids.end, ids.num_codebooks)
    if heard_BPK.shape[1]:
        inputs |= {"audio_input_ids": heard_BPK, "audio_input_ids_mask": is_heard_BP}
    processors = LogitsProcessorList([checkpoint.sequence.build_stop_rule(ids, config.eos_token_id)])
    rule = choose_draw_rule(model.generation_config, sampling)
    if rule is not None:
        window = 0 if rule.repetition is None else rule.repetition.window_columns
        processors.append(
            DrawByClip(
                rule,
                generators,
                stream_ids=(ids.begin, ids.end),
                done_token=config.eos_token_id,
                last_heard_BWK=_take_last_columns(heard, window, ids.end, ids.num_codebooks),
            )
        )
    max_columns = int(sampling.max_seconds * FRAMES_PER_SECOND) + ids.num_codebooks + 1
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():  # a tenth faster than no_grad on a CPU
            columns_BPK = model.generate(
                **{name: tensor.to(model.device) for name, tensor in inputs.items()},
                generation_config=build_generation_config(checkpoint, max_columns=max_columns),
                logits_processor=processors,
            )
    finally:
        model.train(was_training)
    return columns_BPK[:, heard_BPK.shape[1] :].clone().cpu()  # the clone may take part in a gradient again


def _pad_prompts(prompts: Sequence[Tensor], pad_token: int) -> dict[str, Tensor]:
    """On the left, so that every prompt ends where its clip begins."""
    T = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), T), pad_token)
    mask_BT = torch.zeros(len(prompts), T, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_BT[row, T - len(prompt) :] = prompt
        mask_BT[row, T - len(prompt) :] = 1
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


def _pad_columns(heard: Sequence[Sequence[Tensor]], end_id: int, num_codebooks: int) -> tuple[Tensor, Tensor]:
    """Columns (B, P, K) and which of them are real (B, P): on the right, as transformers surmises them."""
    rows = [torch.cat([torch.zeros(0, num_codebooks, dtype=torch.long), *columns]) for columns in heard]
    P = max(map(len, rows))
    columns_BPK = torch.full((len(rows), P, num_codebooks), end_id)
    for row, columns_PK in enumerate(rows):
        columns_BPK[row, : len(columns_PK)] = columns_PK
    return columns_BPK, torch.arange(P) < torch.tensor([len(row) for row in rows])[:, None]


def _take_last_columns(
    heard: Sequence[Sequence[Tensor]], count: int, end_id: int, num_codebooks: int
) -> Tensor:
    """The last columns (B, count, K) of each prompt; end of stream where it has fewer."""
    filler = torch.full((count, num_codebooks), end_id)
    return torch.stack([torch.cat([filler, *columns])[-count:] if count else filler for columns in heard])
