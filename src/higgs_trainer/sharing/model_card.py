"""``README.md`` of a folder that training or `merge` wrote: what somebody must know who is given it.

The card is a function of the files in the folder, so a merged folder's says the same as its adapter's. Nothing of the
machine goes into it: of a base model or a data set in a local folder not even the name.
"""

import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from higgs_trainer import __version__
from higgs_trainer.audio.codec import HUB_NAME
from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.evaluation_file import SCHEMA
from higgs_trainer.files import read_json_object, write_text
from higgs_trainer.model.loading import ADAPTER_CONFIG
from higgs_trainer.recipe.yaml_file import read_yaml
from higgs_trainer.run_folder import (
    DATA_SUMMARY_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    MODEL_CARD_FILE,
    RECIPE_FILE,
    SAMPLES_FOLDER,
)

TEMPLATE = "model_card.md.jinja"
SHOWN_SETTINGS = {
    "model": ("dtype", "freeze"),
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
"""Fields of the recipe that make the result what it is; none of them is a path."""
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
KNOWN_BY = (RECIPE_FILE, ADAPTER_CONFIG, "config.json")
CONSENT_NOTE = re.compile(r"says so here:\n\n((?:>.*\n)+)")
ISO_LANGUAGE = re.compile(r"([a-z]{2,3})(-.*)?")


def write_model_card(
    folder: Path, *, record: Path | None = None, earlier: Path | None = None, name: str | None = None
) -> None:
    """Write the card of ``folder``, in place of the one that PEFT leaves there, which names local paths.

    Args:
        record: where the run's own files are (recipe, metrics, samples), if not in ``folder``.
        earlier: a folder whose card's consent note and licence are kept, if not ``record``.
        name: what to call the model: its name on the hub; None: the folder's own name.

    Raises:
        UserError: neither a recipe nor weights lie there.
    """
    record = record or folder
    if not any((place / known).is_file() for place in (folder, record) for known in KNOWN_BY):
        raise UserError(
            f"{folder} is no folder that training or merging wrote: none of {', '.join(KNOWN_BY)} is there"
        )
    card = build_model_card(
        folder, record, (earlier or record) / MODEL_CARD_FILE, name or record.resolve().name
    )
    write_text(folder / MODEL_CARD_FILE, f"{card}\n")


def build_model_card(folder: Path, record: Path, earlier: Path, name: str) -> ModelCard:
    """The card, its metadata checked by huggingface_hub's own parsing."""
    recipe = read_yaml(record / RECIPE_FILE) if (record / RECIPE_FILE).is_file() else {}
    data = _read_json(_find(DATA_SUMMARY_FILE, folder, record))
    evaluation = _read_evaluation(_find(EVALUATION_FILE, folder, record))
    metrics = _read_json(_find(METRICS_FILE, folder, record))
    kept = read_kept(earlier)
    base = read_base(recipe)
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
        model_name=name if evaluation else None,
        eval_results=list(_list_results(evaluation, data)) or None,
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
        measures=sorted({measure for one in evaluation for measure in one["scores"]}),
        show=_show,
        has_samples=(_find(SAMPLES_FOLDER, folder, record)).is_dir(),
        version=__version__,
    )


def read_kept(card: Path) -> dict[str, str]:
    """What a person may have written into an earlier card: the licence in its metadata, and the note on consent."""
    if not card.is_file():
        return {}
    found = ModelCard.load(card, ignore_metadata_errors=True)
    metadata = found.data.to_dict()
    kept = {key: metadata[key] for key in ("license", "license_name", "license_link") if metadata.get(key)}
    if note := CONSENT_NOTE.search(found.content):
        kept["consent"] = note[1].strip()
    return kept


def read_base(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What can be said of the base model: its name if it is on the hub, and its licence.

    A hub model's licence is left to its own page; a local one's is what its card says, if it has one.
    """
    named = str(recipe.get("model", {}).get("name_or_path", ""))
    if HUB_NAME.fullmatch(named) and not Path(named).exists():
        link = f"https://huggingface.co/{named}"
        licence = {"license": "other", "license_name": BASES_LICENCE, "license_link": link}
        return {"hub_name": named, **licence}
    card = Path(named) / MODEL_CARD_FILE
    if not named or not card.is_file():
        return {}
    found = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    return {key: found[key] for key in ("license", "license_name", "license_link") if key in found}


def list_languages(data: Mapping[str, Any]) -> list[str]:
    """ISO 639 codes of the training set: "en" for "en-GB" too. What is no such code the metadata cannot hold."""
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


def _list_results(evaluation: list[dict[str, Any]], data: Mapping[str, Any]) -> Iterator[EvalResult]:
    """Of the set "after", for the hub's own table."""
    for one in evaluation:
        if one["name"] == "after":
            for measure, score in sorted(one["scores"].items()):
                value = score["value"] if isinstance(score, dict) else score
                if value is not None:
                    yield EvalResult(
                        task_type="text-to-speech",
                        dataset_type="held-out",
                        dataset_name=f"{len(one['clips'])} texts",
                        metric_type=measure,
                        metric_value=round(value, 4),
                    )


def _show(score: Any) -> str:
    if isinstance(score, dict):
        return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
    return "" if score is None else f"{score:.3f}"


def _read_evaluation(path: Path) -> list[dict[str, Any]]:
    found = _read_json(path)
    if found.get("schema") != SCHEMA:
        return []
    sets: list[dict[str, Any]] = found["sets"]
    return sets


def _read_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _find(name: str, *places: Path) -> Path:
    return next((place / name for place in places if (place / name).exists()), places[-1] / name)
