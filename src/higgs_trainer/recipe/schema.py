"""The configuration of a run: one immutable pydantic model for each section of a recipe.

`training_section.py` has the longest section, and `training_fields.py` decides which further fields of
`TrainingArguments` a recipe may set; `reading.py` reads and writes recipes; `consistency.py` checks fields against
each other. The text under a field is its description: in the reference of the documentation, and in the JSON schema
that `higgs-trainer recipe-schema` prints for editors.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    Strict,
    field_serializer,
    model_validator,
)

from higgs_trainer.limits import (
    LARGEST_COUNT,
    LARGEST_RANK,
    LARGEST_WEIGHT,
    LONGEST_SPEECH_SECONDS,
)
from higgs_trainer.recipe.consistency import list_contradictions
from higgs_trainer.recipe.problems import raise_problems
from higgs_trainer.recipe.training_section import TrainingRecipe
from higgs_trainer.recipe.values import (
    Count,
    FilePath,
    FolderOrName,
    Names,
    NotNegative,
    NotNegativeWhole,
    Numbers,
    Section,
    Share,
    Text,
    Whole,
    Wholes,
)


class ModelRecipe(Section):
    """The checkpoint that training starts from."""

    name_or_path: FolderOrName
    """Folder of the model, or its name on the Hugging Face hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision in which the weights are loaded. "auto": with an adapter, bfloat16 if the model is stored in it, else
    float32. Whatever is trained is float32 in any case."""
    quantization: Literal["nf4"] | None = None
    """"nf4" loads the linear layers of the frozen base in 4 bits (QLoRA), for GPUs with little memory. Needs an adapter
    and `pip install 'higgs-trainer[quantization]'`. null: as they are stored."""
    attn_implementation: Text = "packed_sdpa"
    """Attention function. "packed_sdpa" attends within each example of a pack with PyTorch's SDPA;
    "flash_attention_2" does so in one kernel on a GPU."""
    indexed_layers: bool = True
    """Use decoder layers with a faster forward, which compute the same numbers. false: transformers' own."""
    codec: Annotated[Literal["embedded"] | FolderOrName | None, Field(union_mode="left_to_right")] = None
    """Audio codec: "embedded" (the small codec in this package), a folder, or a name on the hub. null: the folder
    "codec" inside the model's folder."""
    freeze: Names = ()
    """Kinds of modules that full fine-tuning does not train. Not together with an adapter."""


class WeightedFolder(Section):
    """One prepared dataset and how often its examples are drawn."""

    path: FilePath
    """Folder that `higgs-trainer prepare` wrote."""
    weight: Annotated[float, Field(gt=0, le=LARGEST_WEIGHT)] = 1.0
    """How often each example is seen in an epoch, on average: 2 draws every example twice, 0.5 once in two epochs."""


def _list_folders(value: Any) -> Any:
    """Return one folder, or a list of folders with or without weights, as a list of sections."""
    if value is None:
        return ()
    folders = value if isinstance(value, list | tuple) else [value]
    return [item if isinstance(item, dict | WeightedFolder) else {"path": item} for item in folders]


AnyFolders = str | WeightedFolder | list[str | WeightedFolder]
"""The forms in which a recipe may name prepared folders."""


class DataRecipe(Section):
    """The prepared datasets for training and evaluation, and the form of a batch."""

    train: Annotated[
        tuple[WeightedFolder, ...],
        Strict(False),
        BeforeValidator(_list_folders, json_schema_input_type=AnyFolders),
    ]
    """Prepared dataset to train on: a folder that `higgs-trainer prepare` wrote, or a list of folders, each optionally
    with a weight: `[{path: prepared/a, weight: 2.0}, prepared/b]`."""
    eval: Annotated[
        tuple[WeightedFolder, ...],
        Strict(False),
        BeforeValidator(_list_folders, json_schema_input_type=AnyFolders | None),
    ] = ()
    """Prepared dataset to evaluate on: a folder or a list of folders, without weights."""
    packing: bool = True
    """Train on packs: one row of several whole examples, without padding. false: `per_device_train_batch_size` padded
    examples in a batch."""
    tokens_per_pack: Count = 4096
    """Maximum length of a pack: text tokens and audio columns together. Reduce it when memory runs out."""
    code_noise: Share = 0.0
    """Share of the input codes that training replaces by random codes. Targets and evaluation are not changed."""

    @field_serializer("train", "eval")
    def _write_folders(self, folders: tuple[WeightedFolder, ...]) -> Any:
        """Write one folder without a weight as a plain path."""
        written = [item.path if item.weight == 1 else item.model_dump() for item in folders]
        if not written:
            return None
        return written[0] if len(written) == 1 and not isinstance(written[0], dict) else written


class AdapterRecipe(Section):
    """LoRA. The fields are those of PEFT's `LoraConfig`; `bias` is not among them, since no linear layer of these
    models has one."""

    r: Annotated[Count, Field(le=LARGEST_RANK)] = 16
    """Rank of the update matrices."""
    lora_alpha: Whole = 32
    """Numerator of the scale: updates are multiplied by lora_alpha / r."""
    lora_dropout: Share = 0.0
    """Dropout on the input of the update matrices."""
    target_modules: Text | Names = "attention+audio_ffn"
    """Layers that get an adapter: a preset ("attention", "attention+audio_ffn", "all_linear") or names of modules."""
    exclude_modules: Names = ()
    """Names of modules that get no adapter although target_modules matches them."""
    modules_to_save: Names = ()
    """Names of modules that are trained in full and saved with the adapter."""
    layers_to_transform: Wholes | None = None
    """Indices of the decoder layers that get an adapter. null: all of them."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=LARGEST_RANK)]] = Field(default_factory=dict)
    """Another rank for some modules: name or regular expression, and rank."""
    alpha_pattern: dict[str, Annotated[int, Field(ge=-LARGEST_COUNT, le=LARGEST_COUNT)]] = Field(
        default_factory=dict
    )
    """Another lora_alpha for some modules: name or regular expression, and value."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead of lora_alpha / r."""
    use_dora: bool = False
    """Train magnitude and direction separately (DoRA)."""
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "olora", "pissa"] = True
    """Initial values of the update matrices, as in PEFT. true: the update is zero at first."""


class LossRecipe(Section):
    """Weights of the terms of the loss."""

    audio_weight: NotNegative = 1.0
    """Weight of the mean loss over the codebooks."""
    codebook_weights: Numbers | None = None
    """Weight of each codebook in the mean. null: all weigh the same."""


class GuardRecipe(Section):
    """Whether a label that would reach the model's forward is diverted or stops the run."""

    policy: Literal["divert", "raise"] = "divert"
    """"divert" hands the label to the loss; "raise" stops the run."""


class SamplesRecipe(Section):
    """Sentences that the model speaks at each evaluation and after training."""

    texts: Names = ()
    """Sentences to speak, in the voice of ref_audio if it is given."""
    ref_audio: FilePath | None = None
    """Recording of the voice to imitate in texts."""
    ref_text: Text | None = None
    """Words that are spoken in ref_audio."""
    max_seconds: Annotated[float, Field(ge=0.1, le=LONGEST_SPEECH_SECONDS)] = 10.0
    """Length at which a sample is cut (seconds)."""
    greedy: bool = False
    """Take the likeliest code instead of sampling."""
    temperature: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Sampling temperature; lower values are steadier. null: the model's own, else 0.3."""
    top_k: NotNegativeWhole | None = None
    """Sample from the k likeliest codes; 0 samples from all. null: the model's own, else 50."""
    top_p: Annotated[float, Field(ge=0.01, le=1)] | None = None
    """Sample from the likeliest codes that reach this total probability. null: the model's own, else 0.95."""
    held_out: NotNegativeWhole = 0
    """Number of sentences from the start of data.eval to speak as well, each with its own references."""
    judged: bool = False
    """Let a speech recogniser and a speaker encoder judge the held-out sentences. Adds eval_wer, eval_cer,
    eval_similarity and eval_stopped to the metrics; needs the packages of `pip install 'higgs-trainer[evaluate]'`."""
    words: bool = True
    """false: judge without a recogniser, so that eval_wer and eval_cer are left out."""
    language: Text | None = None
    """Language of texts, and of held-out sentences whose row names none, such as nl. null: English."""
    recogniser: Annotated[
        Literal["whisper-tiny.en", "whisper-base"] | FolderOrName | None, Field(union_mode="left_to_right")
    ] = None
    """Speech recogniser: "whisper-tiny.en", "whisper-base", or a folder or hub name of a model for faster-whisper or
    transformers. It must know the language of every held-out sentence that is judged. null: whisper-tiny.en for
    English, else whisper-base."""
    recogniser_languages: Names = ()
    """Languages that the recogniser knows, if its files do not say so."""


class EarlyStoppingRecipe(Section):
    """Stop when `training.metric_for_best_model` no longer improves."""

    patience: Count
    """Number of evaluations without an improvement after which the run stops."""
    threshold: NotNegative = 0.0
    """Difference of the metric that counts as an improvement."""


class Recipe(Section):
    """The configuration of a training run.

    Example:
        ```python
        from higgs_trainer import Recipe

        recipe = Recipe(
            model={"name_or_path": "base"},
            data={"train": "prepared/train"},
            adapter={"r": 8},
            training={"output_dir": "runs/from_python", "max_steps": 2},
        )
        ```
    """

    model: ModelRecipe
    data: DataRecipe
    training: TrainingRecipe
    adapter: AdapterRecipe | None = None
    """LoRA adapter. null: train all parameters."""
    loss: LossRecipe = LossRecipe()
    guard: GuardRecipe = GuardRecipe()
    samples: SamplesRecipe = SamplesRecipe()
    early_stopping: EarlyStoppingRecipe | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        raise_problems("Recipe", list_contradictions(self))
        return self
