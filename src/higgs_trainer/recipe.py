"""The whole configuration of a run: frozen dataclasses, read from YAML, written back in full.

An unknown key, a wrong type or a missing value is an error that says where; all of a recipe's are raised together.
Paths in a recipe are relative to its folder, those on the command line to the working directory.
The fields of `training` are transformers' `TrainingArguments` of the same names, with this package's defaults.
"""

import math
import os
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from higgs_trainer.errors import RecipeError, name_the_near_one

FOLDER_OR_NAME = "a folder or a name on the hub"
FolderOrName = Annotated[str, FOLDER_OR_NAME]


@dataclass(frozen=True)
class ModelRecipe:
    """The checkpoint to start from. `codec` null: the codec folder inside the model's folder."""

    name_or_path: FolderOrName
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attn_implementation: str = "sdpa"
    codec: Literal["embedded"] | FolderOrName | None = None


@dataclass(frozen=True)
class DataRecipe:
    """Prepared folders: what `higgs-trainer prepare` wrote. `code_noise`: the share of input codes replaced by
    random ones in training, never in evaluation; targets stay true."""

    train: Path
    eval: Path | None = None
    code_noise: float = 0.0


@dataclass(frozen=True)
class AdapterRecipe:
    """LoRA. `target_modules`: a preset ("attention", "attention+audio_ffn", "all_linear") or names of modules."""

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "attention+audio_ffn"
    modules_to_save: tuple[str, ...] = ()
    use_rslora: bool = False


@dataclass(frozen=True)
class LossRecipe:
    """Weights of the loss's terms; `codebook_weights` null: 1 each."""

    audio_weight: float = 1.0
    text_weight: float = 0.0
    codebook_weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class GuardRecipe:
    """What happens to a label on its way into the model: it goes to the loss, or the run stops."""

    policy: Literal["divert", "raise"] = "divert"


Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
]
When = Literal["no", "steps", "epoch"]


@dataclass(frozen=True)
class TrainingRecipe:
    """Fields of `TrainingArguments`. A `*_steps` below 1 is a share of all steps, as there."""

    output_dir: Path
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch"
    lr_scheduler_type: Scheduler = "cosine"
    warmup_steps: int | float = 0
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3.0
    max_steps: int = -1
    label_smoothing_factor: float = 0.0
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    use_cpu: bool = False
    seed: int = 42
    data_seed: int | None = None
    full_determinism: bool = False
    dataloader_num_workers: int = 0
    dataloader_pin_memory: bool = True
    ddp_find_unused_parameters: bool | None = None
    logging_strategy: When = "steps"
    logging_steps: int | float = 10
    logging_first_step: bool = False
    eval_strategy: When = "no"
    eval_steps: int | float | None = None
    save_strategy: Literal["no", "steps", "epoch", "best"] = "epoch"
    save_steps: int | float = 500
    save_total_limit: int | None = 2
    save_only_model: bool = False
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    resume_from_checkpoint: bool | Path | None = None
    report_to: str | tuple[str, ...] = "none"
    run_name: str | None = None
    disable_tqdm: bool | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool | None = None


@dataclass(frozen=True)
class SamplesRecipe:
    """Sentences spoken after training, in the reference's voice where there is one."""

    texts: tuple[str, ...] = ()
    ref_audio: Path | None = None
    ref_text: str | None = None
    max_seconds: float = 10.0


@dataclass(frozen=True)
class Recipe:
    """A run. `adapter` null: all parameters are trained."""

    model: ModelRecipe
    data: DataRecipe
    training: TrainingRecipe
    adapter: AdapterRecipe | None = None
    loss: LossRecipe = field(default_factory=LossRecipe)
    guard: GuardRecipe = field(default_factory=GuardRecipe)
    samples: SamplesRecipe = field(default_factory=SamplesRecipe)


# The least that a number may be. What is in no row is left to the library that takes it.
MINIMA = {
    "data.code_noise": 0,
    "adapter.r": 1,
    "adapter.lora_dropout": 0,
    "loss.audio_weight": 0,
    "loss.text_weight": 0,
    "samples.max_seconds": 0.1,
    "training.learning_rate": 0,
    "training.warmup_steps": 0,
    "training.per_device_train_batch_size": 1,
    "training.per_device_eval_batch_size": 1,
    "training.gradient_accumulation_steps": 1,
    "training.dataloader_num_workers": 0,
    "training.label_smoothing_factor": 0,
    "training.save_total_limit": 1,
}


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, and set over it what the command line says.

    Args:
        overrides: `--section.field value`, `--field=value` where only one section has such a field, and `--field`
            alone for true.

    Raises:
        RecipeError: the file cannot be read, or anything in it or in `overrides` is wrong: all of it together.
    """
    path = Path(path)
    values = _read_yaml(path)
    reader = _Reader(path)
    for dotted, override in _parse_overrides(overrides):
        _set_value(values, dotted, override)
    recipe: Recipe = reader.read_section(Recipe, values, ())
    problems = reader.problems or [f"{path}: {problem}" for problem in _check_together(recipe)]
    if problems:
        raise RecipeError("\n".join(problems))
    return recipe


def write_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write every field, defaults too, so that `read_recipe` gives back an equal recipe."""
    text = yaml.dump(_to_plain(asdict(recipe)), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")


def training_arguments(recipe: Recipe) -> dict[str, Any]:
    """The `training` section as the arguments of `TrainingArguments`.

    `resume_from_checkpoint` is left out: it goes to `Trainer.train`. "muon" names this package's own optimizer,
    which the trainer builds; `TrainingArguments` does not know it. `gradient_checkpointing` is passed only when it
    is on: transformers gives the switch another name in version 6 and warns of the old one.
    """
    arguments = _to_plain(asdict(recipe.training))
    del arguments["resume_from_checkpoint"]
    if not arguments["gradient_checkpointing"]:
        del arguments["gradient_checkpointing"]
    if arguments["optim"] == "muon":
        arguments["optim"] = "adamw_torch"
    return arguments


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _check_together(recipe: Recipe) -> Iterator[str]:
    """What is wrong between fields that are right by themselves."""
    training, samples = recipe.training, recipe.samples
    if training.eval_strategy != "no" and recipe.data.eval is None:
        yield "training.eval_strategy needs data.eval, a prepared folder"
    if training.bf16 and training.fp16:
        yield "training.bf16 and training.fp16 exclude each other; keep one"
    if training.load_best_model_at_end and training.eval_strategy == "no":
        yield "training.load_best_model_at_end needs training.eval_strategy"
    if (samples.ref_audio is None) != (samples.ref_text is None):
        yield "samples.ref_audio and samples.ref_text are a recording and its words; give both or neither"


# YAML


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans (`2e-6` is a number, `no` a word), and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, (key, (key_node, _)) in enumerate(zip(keys, node.value, strict=True)):
            if key in keys[:position]:
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} is given twice", problem_mark=key_node.start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would otherwise take for something else."""


BOOL_TAG, FLOAT_TAG = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOL_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(BOOL_TAG, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    FLOAT_TAG, re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be read ({error.strerror}); give the path of a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{path}{line}: {error.problem}; mend the YAML there") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML ({error})") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds no sections; it starts with `model:`, `data:`, `training:`")
    return values


# The command line


@dataclass(frozen=True)
class _Override:
    """What an override gave, its text or True for none: its type is known only where it is read."""

    given: str | bool


def _parse_overrides(arguments: Sequence[str]) -> Iterator[tuple[str, _Override]]:
    """`--name value`, `--name=value`, `--name` -> (dotted path, what was given)."""
    paths = list(_list_paths(Recipe))
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith("--"):
            raise RecipeError(f"{argument!r} is no override; write --field value")
        name, equals, given = argument[2:].partition("=")
        if equals:
            yield _find_path(name, paths), _Override(given)
        elif position < len(arguments) and not arguments[position].startswith("--"):
            yield _find_path(name, paths), _Override(arguments[position])
            position += 1
        else:
            yield _find_path(name, paths), _Override(True)


def _list_paths(cls: type, prefix: str = "") -> Iterator[str]:
    """Every section and field by its dotted path."""
    for name, hint in get_type_hints(cls, include_extras=True).items():
        section = _find_section(hint)
        yield prefix + name
        if section is not None:
            yield from _list_paths(section, f"{prefix}{name}.")


def _find_path(name: str, paths: Sequence[str]) -> str:
    """The dotted path of a field that is named by it, or by its last part where that is unambiguous."""
    name = name.replace("-", "_")
    if name in paths:
        return name
    matches = [path for path in paths if path.endswith(f".{name}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise RecipeError(
            f"--{name} could be {' or '.join('--' + path for path in matches)}; write one of them"
        )
    known = [path for path in paths if "." in path]
    if "." not in name:
        known = [path.rpartition(".")[2] for path in known]
    raise RecipeError(f"--{name} is no field of a recipe; {name_the_near_one(name, known)}")


def _set_value(values: dict[str, Any], dotted: str, override: _Override) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None or isinstance(inner, _Override):
            inner = values[section] = {}
        if not isinstance(inner, dict):  # no section; the reader will say so
            return
        values = inner
    values[name] = override


# Values -> dataclasses


class _WrongType(Exception):
    """Carries, in words, what was expected."""


class _Reader:
    """Turns what YAML gave into dataclasses and collects what is wrong on the way."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.folder = file.parent.resolve()
        self.problems: list[str] = []

    def add(self, path: tuple[str, ...], problem: str) -> None:
        place = ": ".join(filter(None, (str(self.file), ".".join(path))))
        self.problems.append(f"{place}: {problem}")

    def read(self, hint: Any, value: Any, path: tuple[str, ...]) -> Any:
        """A field of any type, sections included; None and a problem where it does not fit."""
        folder, section = self.folder, _find_section(hint)
        if isinstance(value, _Override):
            folder, value = Path.cwd(), _parse_override(value.given, None if section else hint)
        if section is not None:
            return None if value is None and hint is not section else self.read_section(section, value, path)
        try:
            converted = _convert(hint, value, folder)
        except _WrongType as error:
            self.add(path, f"is {value!r}; expected {error}")
            return None
        least = MINIMA.get(".".join(path))
        if least is not None and converted is not None and converted < least:
            self.add(path, f"is {value!r}; it is at least {least}")
        return converted

    def read_section(self, cls: type, values: Any, path: tuple[str, ...]) -> Any:
        """`cls` from a mapping. Where `problems` grew, what comes back is not to be used."""
        values = {} if values is None else values
        if not isinstance(values, dict):
            self.add(path, f"is {values!r}; expected a section with fields")
            return None
        hints = get_type_hints(cls, include_extras=True)
        for key in values:
            if key not in hints:
                what = "field" if path else "section"
                self.add((*path, str(key)), f"no such {what}; {name_the_near_one(str(key), list(hints))}")
        found: dict[str, Any] = {}
        for item in fields(cls):
            is_required = item.default is MISSING and item.default_factory is MISSING
            if item.name in values or (is_required and is_dataclass(hints[item.name])):
                found[item.name] = self.read(hints[item.name], values.get(item.name), (*path, item.name))
            elif is_required:
                self.add((*path, item.name), "is missing; it has no default")
                found[item.name] = None
        return cls(**found)


def _find_section(hint: Any) -> type | None:
    """The dataclass in a type such as `AdapterRecipe | None`."""
    options = (option for option in (hint, *get_args(hint)) if isinstance(option, type))
    return next((option for option in options if is_dataclass(option)), None)


def _parse_override(given: str | bool, hint: Any) -> Any:
    """YAML where that fits the type, else the words as they were typed: `--run_name 7`, `--run_name "a #1"`."""
    if isinstance(given, bool):
        return given
    try:
        value = yaml.load(given, _Loader)
        if hint is not None:
            _convert(hint, value, Path())
    except (yaml.YAMLError, _WrongType):
        return given
    return given if isinstance(value, str) else value


def _convert(hint: Any, value: Any, folder: Path) -> Any:
    """`value` as the type `hint`. Raises _WrongType with what was expected."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _convert_to_one_of(options, value, folder)
    if origin is Literal:
        if isinstance(value, str) and value in options:
            return value
        raise _WrongType(" or ".join(map(repr, options)))
    if origin is tuple:
        if not isinstance(value, list):
            raise _WrongType("a list")
        return tuple(_convert(options[0], item, folder) for item in value)
    if origin is Annotated:
        return _find_folder(_convert(str, value, folder), folder)
    return CONVERTERS[hint](value, folder)


def _convert_to_one_of(options: Sequence[Any], value: Any, folder: Path) -> Any:
    """The first type that fits: so `int | float` keeps whole numbers whole."""
    expected = []
    for option in options:
        try:
            return _convert(option, value, folder)
        except _WrongType as error:
            expected.append(str(error))
    raise _WrongType(" or ".join(expected))


def _convert_none(value: Any, _: Path) -> None:
    if value is not None:
        raise _WrongType("null")


def _convert_bool(value: Any, _: Path) -> bool:
    if not isinstance(value, bool):
        raise _WrongType("true or false")
    return value


def _convert_int(value: Any, _: Path) -> int:
    if isinstance(value, bool) or not (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    ):
        raise _WrongType("a whole number")
    return int(value)


def _convert_float(value: Any, _: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _WrongType("a number")
    return float(value)


def _convert_str(value: Any, _: Path) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _WrongType("text (put it in quotes)")
    return value


def _convert_path(value: Any, folder: Path) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise _WrongType("a path")
    return Path(os.path.normpath(folder / Path(value).expanduser()))


def _find_folder(value: str, folder: Path) -> str:
    """A folder's path in full; what is no folder and does not look like one is a name on the hub."""
    path = _convert_path(value, folder)
    return str(path) if value.startswith((".", "/", "~")) or path.exists() else value


CONVERTERS: dict[Any, Callable[[Any, Path], Any]] = {
    NoneType: _convert_none,
    bool: _convert_bool,
    int: _convert_int,
    float: _convert_float,
    str: _convert_str,
    Path: _convert_path,
}
