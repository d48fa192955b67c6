"""Write the model card, ``README.md``, of a folder that training or `merge` wrote.

The card depends only on the files in the folder, so a merged folder gets the same card as its adapter. The card
contains no path of the machine, and no name of a base model or dataset that is a local folder.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

# Of huggingface_hub's own dependency, which its ModelCard lets through.
from yaml import YAMLError  # type: ignore[import-untyped]

from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.evaluation_folder import JudgedSet, JudgedSets, Score, read_evaluation
from higgs_trainer.files import read_json_object, write_text
from higgs_trainer.hub_names import is_hub_name
from higgs_trainer.input_files import read_text_file
from higgs_trainer.printable import make_printable
from higgs_trainer.recipe.yaml_file import read_yaml
from higgs_trainer.run_folder import (
    ADAPTER_CONFIG,
    AFTER,
    DATA_SUMMARY_FILE,
    METRICS_FILE,
    MODEL_CARD_FILE,
    MODEL_CONFIG,
    RECIPE_FILE,
    SAMPLES_FOLDER,
)
from higgs_trainer.shared_paths import find_shared
from higgs_trainer.version import __version__

TEMPLATE = "model_card.md.jinja"
MOST_CARD_BYTES = 10_000_000
SHOWN_SETTINGS = {
    "model": ("dtype", "quantization", "freeze"),
    "data": ("packing", "tokens_per_pack", "code_noise"),
    "loss": ("audio_weight", "codebook_weights"),
    "training": (
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "optim",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_steps",
        "label_smoothing_factor",
        "bf16",
        "fp16",
        "seed",
    ),
}
"""Fields of the recipe that are listed in the card, because they determine the result. None of them is a path."""
ADAPTER_SETTINGS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "modules_to_save",
    "use_rslora",
    "use_dora",
)
SHOWN_METRICS = {
    "train_loss": "training loss, mean of the run",
    "eval_loss": "held-out loss",
    "eval_codebook_0_accuracy": "held-out accuracy of codebook 0",
}
BASES_LICENCE = "that-of-the-base-model"
KNOWN_BY = (RECIPE_FILE, ADAPTER_CONFIG, MODEL_CONFIG)
CONSENT_NOTE = re.compile(r"says? so here:\n\n((?:>.*\n)+)")
ISO_LANGUAGE = re.compile(r"([a-z]{2,3})(-.*)?")


def write_model_card(
    folder: str | Path, *, record: Path | None = None, earlier: Path | None = None, name: str | None = None
) -> None:
    """Write the card of ``folder``. It replaces the card that PEFT writes, which names local paths.

    Args:
        record: the folder with the files of the run (recipe, metrics, samples), if that is not ``folder``.
        earlier: the folder whose card has a note on consent and a licence to keep, if that is not ``record``.
        name: the model's name on the hub. None: the name of the folder.

    Raises:
        UserError: the folder holds neither a recipe nor weights, or its evaluation is damaged.

    Example:
        ```python
        from higgs_trainer import write_model_card

        write_model_card("runs/voice", name="your-name/my-voice")
        ```
    """
    folder = Path(folder)
    record = record or folder
    if not any((place / known).is_file() for place in (folder, record) for known in KNOWN_BY):
        raise UserError(
            f"{folder} is not a folder that training or merging wrote: it has none of {', '.join(KNOWN_BY)}. "
            "Give the output folder of a training run or of merge."
        )
    card = build_model_card(
        folder, record, (earlier or record) / MODEL_CARD_FILE, make_printable(name or record.resolve().name)
    )
    write_text(folder / MODEL_CARD_FILE, f"{card}\n")


def build_model_card(folder: Path, record: Path, earlier: Path, name: str) -> ModelCard:
    """Build the card. huggingface_hub's own classes check its metadata."""
    recipe = read_yaml(record / RECIPE_FILE) if (record / RECIPE_FILE).is_file() else {}
    data = _read_data(_find(DATA_SUMMARY_FILE, folder, record))
    evaluation = read_evaluation(folder) or read_evaluation(record) or JudgedSets([], "")
    metrics = _read_json(_find(METRICS_FILE, folder, record))
    kept = read_kept(earlier)
    base = read_base(recipe, record, earlier.parent)
    if "license" in kept:
        base = {key: value for key, value in base.items() if not key.startswith("license")}
    base |= kept
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    metadata = ModelCardData(
        base_model=base.get("hub_name"),
        base_model_relation="adapter" if is_adapter else "finetune",
        language=list_languages(data) or None,
        library_name="peft" if is_adapter else "transformers",
        license=base.get("license"),
        license_name=base.get("license_name"),
        license_link=base.get("license_link"),
        pipeline_tag="text-to-speech",
        tags=["higgs-audio", "higgs-trainer", *(["lora"] if is_adapter else [])],
        model_name=name if evaluation.sets else None,
        eval_results=list(_list_results(evaluation.sets)) or None,
    )
    return ModelCard.from_template(
        metadata,
        template_str=files("higgs_trainer.sharing").joinpath(TEMPLATE).read_text(encoding="utf-8"),
        name=name,
        base=base,
        bases_licence=BASES_LICENCE,
        is_adapter=is_adapter,
        data=data,
        settings=list(_list_settings(recipe)),
        metrics=[(label, metrics[key]) for key, label in SHOWN_METRICS.items() if key in metrics],
        evaluation=evaluation,
        measures=sorted({measure for one in evaluation.sets for measure in one.scores}),
        show_name=_show_name,
        show_score=_show_score,
        has_samples=(_find(SAMPLES_FOLDER, folder, record)).is_dir(),
        version=__version__,
    )


def read_kept(card: Path) -> dict[str, str]:
    """Read what a person wrote into an earlier card: the licence in its metadata, and the note on consent."""
    if not card.is_file():
        return {}
    found = _load_card(card)
    metadata = found.data.to_dict()
    kept = {key: metadata[key] for key in ("license", "license_name", "license_link") if metadata.get(key)}
    if note := CONSENT_NOTE.search(found.content):
        kept["consent"] = note[1].strip()
    return kept


def _load_card(path: Path) -> ModelCard:
    remedy = "Correct the model card, or remove it; what a person wrote into it is then lost."
    text = read_text_file(path, at_most=MOST_CARD_BYTES, what_to_do=remedy)
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, TypeError, YAMLError) as error:
        raise UserError(f"{path}: its metadata cannot be read ({error}). {remedy}") from error


def read_base(recipe: Mapping[str, Any], *folders: Path) -> dict[str, Any]:
    """Read the base model's name, if it is on the hub, and its licence.

    Args:
        folders: where a relative path of the recipe may start.

    For a model on the hub, the licence is a link to its page. For a local one, it is what its card says, if it has one.
    """
    named = str(recipe.get("model", {}).get("name_or_path", ""))
    named = str(next(filter(None, (find_shared(named, folder) for folder in folders)), named))
    if is_hub_name(named):
        link = f"https://huggingface.co/{named}"
        licence = {"license": "other", "license_name": BASES_LICENCE, "license_link": link}
        return {"hub_name": named, **licence}
    card = Path(named) / MODEL_CARD_FILE
    if not named or not card.is_file():
        return {}
    found = _load_card(card).data.to_dict()
    return {key: found[key] for key in ("license", "license_name", "license_link") if key in found}


def list_languages(data: Mapping[str, Any]) -> list[str]:
    """List the languages of the training set as ISO 639 codes, "en" for "en-GB". The metadata accepts nothing else."""
    named = data.get("train", {}).get("languages", {})
    found = [ISO_LANGUAGE.fullmatch(language.replace("_", "-").lower()) for language in named]
    return sorted({match[1] for match in found if match})


def _list_settings(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    adapter = recipe.get("adapter")
    sections = {**SHOWN_SETTINGS, **({"adapter": ADAPTER_SETTINGS} if adapter else {})}
    for section, names in sections.items():
        for name in names:
            value = (recipe.get(section) or {}).get(name)
            if value not in (None, [], {}):
                yield (
                    f"{section}.{name}",
                    ", ".join(map(str, value)) if isinstance(value, list) else str(value),
                )


def _list_results(sets: Sequence[JudgedSet]) -> Iterator[EvalResult]:
    """List the figures of the set "after" for the hub's own table."""
    for one in sets:
        if one.name == AFTER:
            for measure, score in sorted(one.scores.items()):
                yield EvalResult(
                    task_type="text-to-speech",
                    dataset_type="held-out",
                    dataset_name=f"{one.num_clips} texts",
                    metric_type=measure,
                    metric_value=round(score.value, 4),
                )


def _show_name(name: str) -> str:
    """Shorten the path of a local model to its last part."""
    return Path(name).name if Path(name).is_absolute() else name


def _show_score(score: Score | None) -> str:
    if score is None:
        return ""
    if score.low is None or score.high is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"


def _read_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _read_data(path: Path) -> dict[str, Any]:
    data = _read_json(path)
    kinds = {"utterances": int, "hours": int | float, "tasks": dict, "languages": dict, "speakers": int}
    for name, part in data.items():
        if not isinstance(part, dict) or not all(
            isinstance(part.get(key), kind) for key, kind in kinds.items()
        ):
            raise UserError(f'{path}: "{name}" is damaged; copy the file again, or remove it')
    return data


def _find(name: str, *places: Path) -> Path:
    return next((place / name for place in places if (place / name).exists()), places[-1] / name)
