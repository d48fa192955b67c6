"""The name and the content of every file that training, `generate` and `evaluate` write.

Writers and readers both import from here, so that neither can look for a file or a field that the other does not write.
The types at the end say what is in the JSON files. guard_report.json belongs to label-guard, trainer_state.json to
transformers, and the cards of prepared datasets to `dataset/prepared.py`.

A run folder is the output folder of one training run:

    recipe.yaml, environment.json,          written before the first step
    trainable_parameters.json, _recordings/,
    data_overlap.json, _local_paths.json
    metrics.jsonl, samples/step-N/,         written during training, history.jsonl by a resumed run
    checkpoint-N/
    adapter or model, tokenizer, codec,     written after the last step, metrics.json last
    trainer_state.json, guard_report.json,
    data_summary.json, README.md, metrics.json
    report.html                             written at the end, and by `higgs-trainer report`
    evaluation/                             written by `higgs-trainer evaluate RUN`, and by the demo

``evaluation/`` holds the generated clips and two files. ``figures.json`` is one object:

    schema                "higgs-trainer/evaluation/2"
    models                a list; of each model:
        model             its name as it was given, or the name of a set of recordings
        role              "after": the model of this run; "before": its base model; or null
        clips             how many clips were judged
        audio_seconds_per_second   how fast it generated, or null
        wer, cer, ...     {"value", "low", "high", "n"} or null; low and high are the ends of the 95% interval, null
                          if n is less than 6
        by_language       clips, wer and cer of each language, if there are several
    second_minus_first    differences between the first two models, {"value", "low", "high", "p", "smallest_p", "n"} or
                          null by figure; null if they were not judged on the same sentences
    languages             how many sentences are in each language
    recogniser            the name of the recogniser; null if words were not judged
    note                  what readers must know about the figures, often empty
    sentences, seed, normaliser, test    how the figures were made

``rows.jsonl`` has one line for each clip: a ``JudgedClip`` of ``evaluation/judging.py``. ``audio`` is relative to the
folder. Readers need ``schema``, ``models`` with ``model`` and figures with ``value``; in rows, ``model`` and ``text``.
"""

import re
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

# Before the first step.
RECIPE_FILE = "recipe.yaml"
ENVIRONMENT_FILE = "environment.json"
PARAMETERS_FILE = "trainable_parameters.json"
DATA_OVERLAP_FILE = "data_overlap.json"
# transformers uploads nothing whose name starts with an underscore, and these are recordings of a person.
RECORDINGS_FOLDER = "_recordings"
# The paths on this machine that the other files name relatively.
LOCAL_PATHS_FILE = "_local_paths.json"

# During training.
LOG_FILE = "metrics.jsonl"
SAMPLES_FOLDER = "samples"
# Folders that are not complete yet. The underscore keeps transformers from uploading them.
UNFINISHED_FOLDER = "_unfinished"
# The final files, whole, while they are moved into the run folder.
RESULT_FOLDER = "_result"

# After the last step.
TRAINER_STATE_FILE = "trainer_state.json"
GUARD_REPORT_FILE = "guard_report.json"
DATA_SUMMARY_FILE = "data_summary.json"
MODEL_CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"

# The figures of the judges.
EVALUATION_FOLDER = "evaluation"
ROWS_FILE = "rows.jsonl"
FIGURES_FILE = "figures.json"
EVALUATION_SCHEMA = "higgs-trainer/evaluation/2"

# In each folder of an adapter, and in each folder of a model.
ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"

# In each checkpoint, prepared dataset, and folder of a model or an adapter.
CHECKSUMS_FILE = "checksums.json"
CHECKSUMS_SCHEMA = "higgs-trainer/checksums/1"

# In each checkpoint: what a resumed run must have in common with it.
RESUME_FILE = "resume.json"
RESUME_SCHEMA = "higgs-trainer/resume/1"
# In the run folder: the changes with which the run was resumed.
HISTORY_FILE = "history.jsonl"

# The names of clips and figures from before and after training.
BEFORE, AFTER = "before", "after"
# The names of the recordings of the voice. No model that speaks through the codec sounds better than the second.
REAL_VOICE, REAL_VOICE_DECODED = "the real voice", "the real voice through the codec"
# Given to `evaluate` in place of a model, this judges the recordings of the sentences.
RECORDINGS = "recordings"

# In each folder of generated clips.
CLIP_INDEX_FILE = "index.jsonl"

# In the demo's output folder, next to the run folder.
DEMO_SUMMARY_FILE = "summary.json"
DEMO_PAGE_FILE = "samples.html"

RUN_RECORD = (
    RECIPE_FILE,
    GUARD_REPORT_FILE,
    METRICS_FILE,
    LOG_FILE,
    PARAMETERS_FILE,
    DATA_SUMMARY_FILE,
    DATA_OVERLAP_FILE,
    ENVIRONMENT_FILE,
    HISTORY_FILE,
    EVALUATION_FOLDER,
    SAMPLES_FOLDER,
)
"""The files and folders that describe a run. `merge` copies them next to the merged weights."""

TRAINING_WRITES = (
    *RUN_RECORD,
    MODEL_CARD_FILE,
    REPORT_FILE,
    TRAINER_STATE_FILE,
    RECORDINGS_FOLDER,
    LOCAL_PATHS_FILE,
    CHECKSUMS_FILE,
    "codec",
    "*.jinja",
    "*.safetensors",
    "*.safetensors.index.json",
    ADAPTER_CONFIG,
    MODEL_CONFIG,
    "generation_config.json",
    "*processor_config.json",
    "tokenizer*",
)
"""Patterns of what a run writes into its folder, without checkpoints."""

# Training writes these, and nothing else does. A recipe alone is no sign: users keep theirs anywhere.
SIGNS_OF_A_RUN = (ENVIRONMENT_FILE, PARAMETERS_FILE, LOG_FILE, METRICS_FILE, GUARD_REPORT_FILE)


def is_run(folder: Path) -> bool:
    """Return whether training has written into this folder."""
    return any((folder / name).is_file() for name in SIGNS_OF_A_RUN)


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders directly inside a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path))


def read_step(checkpoint: Path) -> int:
    """Return N of a folder ``checkpoint-N``, and -1 for another name."""
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else -1


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """List the complete checkpoints of a run, the oldest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir() and read_step(path) >= 0]
    return sorted(found, key=read_step)


def name_clip(number: int) -> str:
    """Return the file name of a generated clip."""
    return f"{number:04d}.wav"


def name_samples(step: int) -> str:
    """Return the name of the folder, in ``samples``, of the clips that were generated after this step."""
    return f"step-{step}"


def list_samples(run: Path) -> dict[int, Path]:
    """Return the folders of samples in a run folder by step, the earliest first."""
    matches = (
        (re.fullmatch(r"step-(\d+)", path.name), path) for path in (run / SAMPLES_FOLDER).glob("step-*")
    )
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


class TrainedCount(TypedDict):
    """How many parameters of one kind of layer are trained, and how many there are."""

    trained: int
    all: int


TrainableParameters = dict[str, TrainedCount]
"""``trainable_parameters.json``: the counts by kind of layer, such as "q_proj"."""

Metrics = dict[str, float]
"""``metrics.json``: the last value of each logged metric, and transformers' own figures of the run. A line of
``metrics.jsonl`` is the same for one log, with its ``step``."""


class Environment(TypedDict):
    """``environment.json``: the distribution and the versions of a run. ``cuda`` is None without CUDA."""

    device: str
    processes: int
    distributed: str
    mixed_precision: str
    python: str
    cuda: str | None
    higgs_trainer: str
    packages: dict[str, str]


class DatasetSummary(TypedDict):
    """Counts of one dataset, without names of people or folders. ``tasks`` and ``languages`` count utterances."""

    utterances: int
    hours: float
    tasks: dict[str, int]
    languages: dict[str, int]
    speakers: int


DataSummary = dict[str, DatasetSummary]
"""``data_summary.json``: the summaries of "train" and, if there is one, "eval"."""


class DataOverlap(TypedDict):
    """``data_overlap.json``: how much of the evaluation data is training data. Absent without evaluation data.

    All counts but ``same_folders``, which counts prepared folders, are of utterances of the evaluation data.
    """

    eval_utterances: int
    same_folders: int
    same_recordings: int
    same_texts: int


class ClipLine(TypedDict):
    """A line of ``index.jsonl`` in a folder of generated clips.

    ``audio`` is a path from that folder. ``seconds`` is 0 if the model generated nothing. ``stopped`` is whether the
    model ended the clip itself, before the time limit. ``parts`` counts the parts into which a long text was cut.
    """

    text: str
    audio: str
    seconds: float
    stopped: bool
    parts: int
    seed: NotRequired[int]


class FileChecksum(TypedDict):
    """The size of a file and the hash of its content (XXH3 with 128 bits, in hexadecimal digits)."""

    bytes: int
    xxh3: str


class Checksums(TypedDict):
    """``checksums.json``: what the files of the same folder contain. ``files`` has their names, with ``/`` in paths.

    ``fingerprint`` is a hash of all names and hashes.
    """

    schema: str
    fingerprint: str
    files: dict[str, FileChecksum]


class ResumedData(TypedDict):
    """The data of a run: the content hash of each prepared dataset, with its weight unless that is 1, and the number of
    packs (without packing: of examples and fillers) in an epoch."""

    train_content: list[str]
    eval_content: list[str]
    groups_per_epoch: int


class ResumedModel(TypedDict):
    """The model that training started from. ``fingerprint`` is a hash of its files."""

    family: str
    fingerprint: str


class ResumeRecord(TypedDict):
    """``resume.json`` in a checkpoint: what decides the numbers of a run.

    ``recipe`` holds the fields of the recipe by their dotted names, without paths and secrets. ``optimizer`` is the
    class of an optimizer that was built in Python, or null. ``world_size`` counts devices.
    """

    schema: str
    recipe: dict[str, Any]
    data: ResumedData
    base_model: ResumedModel
    optimizer: str | None
    world_size: int
    versions: dict[str, str]


class Change(TypedDict):
    """A setting that a resumed run has changed, and its values."""

    field: str
    was: Any
    now: Any


class HistoryLine(TypedDict):
    """A line of ``history.jsonl``: with which changes a run was resumed from the checkpoint after ``step``."""

    step: int
    changes: list[Change]


REFERENCE_KIND: Literal["reference"] = "reference"
RECORDING_KIND: Literal["recording"] = "recording"


class RecordingLine(TypedDict):
    """A line of ``index.jsonl`` in ``_recordings``: real speech to compare with the samples of ``sentence``.

    A "reference" is a clip from the prompt with its own ``text``, if that is known. A "recording" says the sentence.
    """

    sentence: str
    kind: Literal["reference", "recording"]
    text: str | None
    audio: str
