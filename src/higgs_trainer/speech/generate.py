"""Text (and a reference voice) -> waveform: transformers' own ``generate`` on the prompts that training used.

Samples in training, ``higgs-trainer generate`` and the demo all speak through `speak`.
"""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, InfNanRemoveLogitsProcessor, LogitsProcessorList

from higgs_trainer.data.audio import read_audio, write_audio
from higgs_trainer.data.codec import Codec
from higgs_trainer.data.delay_pattern import apply_delay, revert_delay
from higgs_trainer.data.prompt import Context, SpokenClip, encode_prompt
from higgs_trainer.errors import UserError
from higgs_trainer.model.loading import Checkpoint, load_codec_of, load_trained

FRAMES_PER_SECOND = 25
INDEX_NAME = "index.jsonl"


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn. What is None is the model's own choice, in its ``generation_config.json``; where that is
    silent too, `WHERE_ALL_ARE_SILENT`. ``greedy``: always the likeliest code."""

    greedy: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_seconds: float = 30.0
    seed: int = 0


WHERE_ALL_ARE_SILENT = {"do_sample": True, "temperature": 1.0, "top_k": 50, "top_p": 0.95}
"""What Boson's own examples for Higgs Audio v2 draw with."""


@dataclass(frozen=True)
class Spoken:
    """One text, spoken. ``stopped``: the model ended the clip itself, before the limit of ``max_seconds``."""

    text: str
    codes_FK: Tensor
    stopped: bool


class FirstCodebookEnds(InfNanRemoveLogitsProcessor):
    """Lets only the first codebook end a clip; the others follow it one by one.

    transformers ends a clip as soon as *any* codebook draws end of stream. One slip of a fine codebook, which an
    adapter trained on little data makes now and then, would cut a clip in the middle of a word.

    (transformers admits only four kinds of processors on Higgs Audio, lest one mix the codebooks. This one does not,
    and derives from one of the four.)
    """

    def __init__(self, *, num_codebooks: int, end_id: int, delay_token: int) -> None:
        self.num_codebooks = num_codebooks
        self.end_id = end_id
        self.delay_token = delay_token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids`` (B, T), the text side, whose last token is a delay token once the clip is ending; ``scores``
        (B * K, C)."""
        scores_BKC = scores.reshape(len(input_ids), self.num_codebooks, -1).clone()
        is_speaking_B = (input_ids[:, -1] != self.delay_token).to(scores.device)
        is_free_BK = (
            scores_BKC.isfinite().sum(dim=-1) > 1
        )  # not so in a finished clip, which waits for its batch
        is_barred_BK = is_speaking_B[:, None] & is_free_BK
        is_barred_BK[:, 0] = False
        scores_BKC[..., self.end_id].masked_fill_(is_barred_BK, -torch.inf)
        return scores_BKC.reshape(scores.shape)


def speak(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    *,
    context: Context = Context(),
    sampling: Sampling = Sampling(),
    batch_size: int = 8,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[Spoken]:
    """Speak each text; the results stand in the order of the texts.

    Only prompts of one length share a batch, so nothing is padded and a batch says what single calls would.
    ``on_done`` is told how many texts each batch finished.
    """
    K = checkpoint.stream_ids.num_codebooks
    prompts = [encode_prompt(checkpoint.tokenizer, text, context, num_codebooks=K) for text in texts]
    spoken: dict[int, Spoken] = {}
    was_training = checkpoint.model.training
    checkpoint.model.eval()
    for batch in _equal_length_batches(prompts, batch_size):
        columns = _generate(checkpoint, torch.stack([prompts[i] for i in batch]), context, sampling)
        for i, columns_PK in zip(batch, columns, strict=True):
            spoken[i] = _read_clip(checkpoint, texts[i], columns_PK)
        on_done(len(batch))
    checkpoint.model.train(was_training)
    return [spoken[i] for i in range(len(texts))]


def _equal_length_batches(prompts: Sequence[Tensor], batch_size: int) -> Iterator[list[int]]:
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


@torch.no_grad()
def _generate(checkpoint: Checkpoint, input_ids_BT: Tensor, context: Context, sampling: Sampling) -> Tensor:
    """Delayed columns (B, P, K), those of the prompt left out."""
    ids, model = checkpoint.stream_ids, checkpoint.model
    inputs: dict[str, Tensor] = {
        "input_ids": input_ids_BT.to(model.device),
        "attention_mask": torch.ones_like(input_ids_BT, device=model.device),
    }
    clips = [apply_delay(clip.codes_FK, begin_id=ids.begin, end_id=ids.end) for clip in context.clips]
    if clips:
        inputs["audio_input_ids"] = torch.cat(clips).expand(len(input_ids_BT), -1, -1).to(model.device)
        inputs["audio_input_ids_mask"] = torch.ones_like(inputs["audio_input_ids"][..., 0], dtype=torch.bool)
    torch.manual_seed(sampling.seed)
    columns_BPK = model.generate(
        **inputs,
        generation_config=build_generation_config(checkpoint, sampling),
        logits_processor=LogitsProcessorList(
            [FirstCodebookEnds(num_codebooks=ids.num_codebooks, end_id=ids.end, delay_token=ids.delay_token)]
        ),
    )
    return columns_BPK[:, sum(map(len, clips)) :].cpu()


def build_generation_config(checkpoint: Checkpoint, sampling: Sampling) -> GenerationConfig:
    """The model's own generation config with what ``sampling`` asks for."""
    config = checkpoint.model.config
    chosen = copy.deepcopy(checkpoint.model.generation_config)
    asked = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    asked = {name: value for name, value in asked.items() if value is not None}
    if sampling.greedy:
        chosen.update(do_sample=False, temperature=None, top_k=None, top_p=None)
    elif asked or chosen.do_sample is None:
        silent = {name: v for name, v in WHERE_ALL_ARE_SILENT.items() if getattr(chosen, name) is None}
        chosen.update(**silent | asked | {"do_sample": True})
    chosen.update(
        max_new_tokens=int(sampling.max_seconds * FRAMES_PER_SECOND) + config.num_codebooks + 1,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        use_cache=True,
    )
    return chosen


def _read_clip(checkpoint: Checkpoint, text: str, columns_PK: Tensor) -> Spoken:
    codes_FK = revert_delay(columns_PK, codebook_size=checkpoint.num_codes)
    stopped = bool((columns_PK[:, 0] == checkpoint.stream_ids.end).any())
    return Spoken(text, codes_FK, stopped)


def write_spoken(spoken: Sequence[Spoken], codec: Codec, folder: Path) -> list[Tensor]:
    """Decode each clip and write it as a WAV file, with ``index.jsonl`` in the same order; returns the waveforms (S,).

    A clip in which the model said nothing at all is a tenth of a second of silence, and ``seconds`` is 0 in the index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waveforms, lines = [], []
    for number, clip in enumerate(spoken):
        num_frames = len(clip.codes_FK)
        waveform_S = codec.decode(clip.codes_FK) if num_frames else torch.zeros(codec.sample_rate_hz // 10)
        name = f"{number:04d}.wav"
        write_audio(folder / name, waveform_S)
        waveforms.append(waveform_S)
        seconds = num_frames / codec.frames_per_second
        lines.append({"text": clip.text, "audio": name, "seconds": seconds, "stopped": clip.stopped})
    index = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / INDEX_NAME).write_text(index, encoding="utf-8")
    return waveforms


def generate_files(
    model: str | Path,
    texts: Sequence[str],
    output: str | Path,
    *,
    codec: str | None = None,
    references: Sequence[tuple[Path, str | None]] = (),
    references_in_system: bool = False,
    scene: str | None = None,
    sampling: Sampling = Sampling(),
    batch_size: int = 8,
) -> tuple[list[Spoken], list[Tensor]]:
    """Speak ``texts`` with a model folder, trained or base, into WAV files and ``index.jsonl`` in ``output``; returns
    the clips and their waveforms (S,).

    ``references``: clips of voices to clone, and their words: one, or one for each of [SPEAKER0], [SPEAKER1] and so on.
    (`Context` says what ``references_in_system`` and ``scene`` do.)

    Raises ``UserError`` where ``output`` holds files already, and
    ``CheckpointError`` where model or codec cannot be loaded.
    """
    from rich.console import Console
    from rich.progress import Progress

    output = Path(output)
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty; give another folder for the WAV files")
    checkpoint = load_trained(model)
    its_codec = load_codec_of(checkpoint, codec)
    clips = tuple(SpokenClip(words, its_codec.encode(read_audio(path))) for path, words in references)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("speaking", total=len(texts))
        spoken = speak(
            checkpoint,
            texts,
            context=Context(scene, clips, references_in_system=references_in_system),
            sampling=sampling,
            batch_size=batch_size,
            on_done=lambda count: progress.advance(task, count),
        )
    return spoken, write_spoken(spoken, its_codec, output)
