"""The name of every file and folder that training, speaking and judging write.

Writers and readers both import the names from here, so that neither can look for a file that the other does not write.
A run folder is the output folder of one training run:

    recipe.yaml, environment.json,          written before the first step
    trainable_parameters.json, _recordings/
    metrics.jsonl, samples/step-N/,         written during training
    checkpoint-N/
    adapter or model, tokenizer, codec,     written after the last step, metrics.json last
    trainer_state.json, guard_report.json,
    data_summary.json, README.md, metrics.json
    report.html                             written at the end, and by `higgs-trainer report`
    evaluation/                             written by `higgs-trainer evaluate -o RUN/evaluation`
"""

import re
from pathlib import Path

# Before the first step.
RECIPE_FILE = "recipe.yaml"
ENVIRONMENT_FILE = "environment.json"
PARAMETERS_FILE = "trainable_parameters.json"
# transformers uploads nothing whose name starts with an underscore, and these are recordings of a person.
RECORDINGS_FOLDER = "_recordings"

# During training.
LOG_FILE = "metrics.jsonl"
SAMPLES_FOLDER = "samples"
# Folders that are not complete yet. The underscore keeps transformers from uploading them.
UNFINISHED_FOLDER = "_unfinished"

# After the last step.
TRAINER_STATE_FILE = "trainer_state.json"
GUARD_REPORT_FILE = "guard_report.json"
DATA_SUMMARY_FILE = "data_summary.json"
MODEL_CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"

# The judges' verdict: `evaluate` writes a folder with two files, the demo one file.
EVALUATION_FOLDER = "evaluation"
ROWS_FILE = "rows.jsonl"
FIGURES_FILE = "figures.json"
EVALUATION_FILE = "evaluation.json"

# In each folder of spoken clips.
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
    ENVIRONMENT_FILE,
    EVALUATION_FILE,
    SAMPLES_FOLDER,
)
"""What describes a run. `merge` copies these files next to the merged weights."""

# Training writes these, and nothing else does. A recipe alone is no sign: users keep theirs anywhere.
SIGNS_OF_A_RUN = (ENVIRONMENT_FILE, PARAMETERS_FILE, LOG_FILE, METRICS_FILE, GUARD_REPORT_FILE)


def is_run(folder: Path) -> bool:
    """Return whether training has written into this folder."""
    return any((folder / name).is_file() for name in SIGNS_OF_A_RUN)


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders directly inside a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path))


def name_clip(number: int) -> str:
    """Return the file name of a spoken clip."""
    return f"{number:04d}.wav"


def name_samples(step: int) -> str:
    """Return the name of the folder, in ``samples``, of the clips spoken after this step."""
    return f"step-{step}"


def list_samples(run: Path) -> dict[int, Path]:
    """Return the folders of spoken samples in a run folder by step, the earliest first."""
    matches = (
        (re.fullmatch(r"step-(\d+)", path.name), path) for path in (run / SAMPLES_FOLDER).glob("step-*")
    )
    return dict(sorted((int(match[1]), path) for match, path in matches if match))
