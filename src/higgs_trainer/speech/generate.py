"""Generate codes for texts: transformers' own ``generate`` on the prompts that the model was trained on.

`generate_codes` is used by the samples during training, ``higgs-trainer generate``, ``evaluate`` and the demo.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from peft import PeftModel
from torch import Tensor
from transformers import LogitsProcessorList

from higgs_trainer.dataset.context import Context, PromptClip
from higgs_trainer.model.loading import Checkpoint
from higgs_trainer.speech.chunks import cut_text
from higgs_trainer.speech.clip_folder import GeneratedCodes
from higgs_trainer.speech.sampling import (
    SampleByClip,
    Sampling,
    build_generation_config,
    check_generation_config,
    choose_sampling_rule,
)
from higgs_trainer.tensors import FRAMES_PER_SECOND

PART_OF_LIMIT = 2 / 3
"""The share of ``max_seconds`` that a part of a long text should take. A slow voice takes longer than estimated."""


@dataclass(frozen=True)
class Request:
    """A text to generate speech for.

    Attributes:
        context: the part of the prompt before the text: scene, references and earlier turns.
        seed: the seed of the sampling. None: that of `Sampling`.
        language: the language of the text, which decides where the sentences of a long text end.
    """

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
    is_sharded: bool = False,
) -> Iterator[tuple[int, GeneratedCodes]]:
    """Generate codes for each request, and yield them with the index of the request as soon as they are finished.

    The longest texts come first. A result does not depend on the batch, up to float rounding: shorter prompts are
    padded on the left and masked, and each clip has its own random generator. The state of torch's global generator is
    not changed, so samples do not disturb a training run.

    Args:
        is_sharded: whether each process has a part of the model. Then every process must generate the same requests.
    """
    drafts = [_Draft.of(number, request, sampling) for number, request in enumerate(requests)]
    drafts.sort(key=lambda draft: (len(draft.parts), len(draft.request.text.encode())), reverse=True)
    for start in range(0, len(drafts), batch_size):
        batch = drafts[start : start + batch_size]
        unfinished = batch
        while unfinished:
            _generate_next_parts(checkpoint, unfinished, sampling, is_sharded=is_sharded)
            unfinished = [draft for draft in unfinished if draft.next_part is not None]
        for draft in batch:
            yield draft.number, draft.finish()


@dataclass
class _Draft:
    """A request in progress: the parts of its text, the clips of the finished parts, and the generator of all parts."""

    number: int
    request: Request
    parts: Sequence[str]
    generator: torch.Generator
    clips: list[PromptClip] = field(default_factory=list)
    stopped: bool = True

    @classmethod
    def of(cls, number: int, request: Request, sampling: Sampling) -> "_Draft":
        seed = sampling.seed if request.seed is None else request.seed
        part_seconds = sampling.part_seconds or PART_OF_LIMIT * sampling.max_seconds
        parts = cut_text(request.text, max_seconds=part_seconds, language=request.language)
        return cls(number, request, parts, torch.Generator().manual_seed(seed))

    @property
    def next_part(self) -> str | None:
        return self.parts[len(self.clips)] if len(self.clips) < len(self.parts) else None

    @property
    def context(self) -> Context:
        """The context of the request, with the last part that has codes as an additional turn."""
        with_codes = [clip for clip in self.clips if len(clip.codes_FK)]
        return replace(self.request.context, turns=(*self.request.context.turns, *with_codes[-1:]))

    def finish(self) -> GeneratedCodes:
        codes_FK = torch.cat([clip.codes_FK for clip in self.clips])
        return GeneratedCodes(self.request.text, codes_FK, self.stopped, num_parts=len(self.parts))


def _generate_next_parts(
    checkpoint: Checkpoint, drafts: Sequence[_Draft], sampling: Sampling, *, is_sharded: bool
) -> None:
    ids, sequence = checkpoint.stream_ids, checkpoint.sequence
    contexts, texts = [draft.context for draft in drafts], [draft.next_part or "" for draft in drafts]
    prompts = [
        sequence.encode_prompt(checkpoint.tokenizer, text, context, num_codebooks=ids.num_codebooks)
        for text, context in zip(texts, contexts, strict=True)
    ]
    prompt_columns = [
        [sequence.apply_delay(clip.codes_FK, begin_id=ids.begin, end_id=ids.end) for clip in context.clips]
        for context in contexts
    ]
    generators = [draft.generator for draft in drafts]
    columns_BPK = _generate_columns(
        checkpoint, prompts, prompt_columns, generators, sampling, is_sharded=is_sharded
    )
    for draft, text, columns_PK in zip(drafts, texts, columns_BPK, strict=True):
        codes_FK = sequence.revert_delay(columns_PK, codebook_size=checkpoint.num_codes)
        draft.clips.append(PromptClip(text, codes_FK))
        draft.stopped &= bool((columns_PK[:, 0] == ids.end).any())


def _generate_columns(
    checkpoint: Checkpoint,
    prompts: Sequence[Tensor],
    prompt_columns: Sequence[Sequence[Tensor]],
    generators: Sequence[torch.Generator],
    sampling: Sampling,
    *,
    is_sharded: bool,
) -> Tensor:
    """Generate delayed columns (B, P, K), without those of the prompts. Shorter clips are padded with end of stream.

    Args:
        prompts: token ids (T,) of each prompt.
        prompt_columns: the columns (P, K) of each clip in each prompt.
    """
    ids, model = checkpoint.stream_ids, checkpoint.model
    config = model.config
    inputs = _pad_prompts(prompts, config.pad_token_id)
    prompt_columns_BPK, is_column_BP = _pad_columns(prompt_columns, ids.end, ids.num_codebooks)
    if prompt_columns_BPK.shape[1]:
        inputs |= {"audio_input_ids": prompt_columns_BPK, "audio_input_ids_mask": is_column_BP}
    processors = LogitsProcessorList([checkpoint.sequence.build_stream_rule(ids, config.eos_token_id)])
    # PEFT's generate uses the generation config of the model beneath it.
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    of_model = base.generation_config
    check_generation_config(of_model)
    rule = choose_sampling_rule(of_model, sampling)
    if rule is not None:
        window = 0 if rule.repetition is None else rule.repetition.window_columns
        processors.append(
            SampleByClip(
                rule,
                generators,
                stream_ids=(ids.begin, ids.end),
                done_token=config.eos_token_id,
                last_columns_BWK=_take_last_columns(prompt_columns, window, ids.end, ids.num_codebooks),
            )
        )
    max_columns = int(sampling.max_seconds * FRAMES_PER_SECOND) + ids.num_codebooks + 1
    was_training = model.training
    model.eval()
    # transformers fills what a given config does not set from the model's own.
    plain = base.generation_config = build_generation_config(checkpoint, max_columns=max_columns)
    try:
        # On a CPU, inference mode takes a tenth less time than no_grad. FSDP cannot be used in it.
        with torch.no_grad() if is_sharded else torch.inference_mode():
            columns_BPK = model.generate(
                **{name: tensor.to(model.device) for name, tensor in inputs.items()},
                generation_config=plain,
                logits_processor=processors,
                # A process whose clips are finished still takes part in the forwards of the others.
                synced_gpus=is_sharded,
            )
    finally:
        base.generation_config = of_model
        model.train(was_training)
    # A tensor from inference mode cannot take part in autograd; its clone can.
    return columns_BPK[:, prompt_columns_BPK.shape[1] :].clone().cpu()


def _pad_prompts(prompts: Sequence[Tensor], pad_token: int) -> dict[str, Tensor]:
    """Pad prompts on the left, so that all of them end where generation begins."""
    T = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), T), pad_token)
    mask_BT = torch.zeros(len(prompts), T, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_BT[row, T - len(prompt) :] = prompt
        mask_BT[row, T - len(prompt) :] = 1
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


def _pad_columns(
    prompt_columns: Sequence[Sequence[Tensor]], end_id: int, num_codebooks: int
) -> tuple[Tensor, Tensor]:
    """Pad the columns of each prompt on the right, as transformers expects.

    Returns:
        The columns (B, P, K), and a mask (B, P) that is True for columns that are not padding.
    """
    rows = [
        torch.cat([torch.zeros(0, num_codebooks, dtype=torch.long), *columns]) for columns in prompt_columns
    ]
    P = max(map(len, rows))
    columns_BPK = torch.full((len(rows), P, num_codebooks), end_id)
    for row, columns_PK in enumerate(rows):
        columns_BPK[row, : len(columns_PK)] = columns_PK
    return columns_BPK, torch.arange(P) < torch.tensor([len(row) for row in rows])[:, None]


def _take_last_columns(
    prompt_columns: Sequence[Sequence[Tensor]], count: int, end_id: int, num_codebooks: int
) -> Tensor:
    """Return the last columns (B, count, K) of each prompt. Shorter prompts are padded with end of stream."""
    padding = torch.full((count, num_codebooks), end_id)
    return torch.stack(
        [torch.cat([padding, *columns])[-count:] if count else padding for columns in prompt_columns]
    )
