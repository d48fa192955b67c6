"""Describe one leak, and define the error that stops a run because of one."""

from dataclasses import dataclass

LAYERS = {
    1: "training_step",
    2: "_prepare_inputs",
    3: "compute_loss",
    4: "model inputs",
    5: "forward",
}


@dataclass(frozen=True)
class KeySource:
    """The code that added a key.

    Attributes:
        name: the function, hook, collator or dataset column, with its file and line if they are known.
        remedy: one sentence that says how to stop it; empty for code that the guard does not know.
    """

    name: str
    remedy: str = ""


@dataclass
class Leak:
    """A key found where the model's contract does not list it as an input.

    Attributes:
        key: the name of the key.
        layer: the layer that found it, 1 to 5.
        source: the code that added it.
        count: how many times this layer found this key from this source.
    """

    key: str
    layer: int
    source: KeySource
    count: int = 1

    def __str__(self) -> str:
        times = "once" if self.count == 1 else f"{self.count} times"
        text = f"{self.key} <- {self.source.name}, at layer {self.layer} ({LAYERS[self.layer]}), {times}"
        return f"{text}. {self.source.remedy}" if self.source.remedy else text


class LabelLeakError(RuntimeError):
    """Raised for a key that must not reach the model and is not diverted to the loss.

    Attributes:
        keys: the names of the keys in question.
        leak: the key, layer and source. None if the source was not looked for.
    """

    def __init__(self, message: str, keys: tuple[str, ...] = (), leak: Leak | None = None) -> None:
        super().__init__(message)
        self.keys = keys
        self.leak = leak
