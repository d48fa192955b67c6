"""Describe one leak, and define the error that stops a run because of one."""

from dataclasses import dataclass

LAYERS = {
    1: "training_step",
    2: "_prepare_inputs",
    3: "compute_loss",
    4: "model inputs",
    5: "forward",
}

# What a guard does with a leak.
POLICIES = {
    "divert": "keep labels out of the model, and continue (default)",
    "raise": "stop at the first leak",
    "watch": "change nothing, and name every source",
}

# What became of a leak. STOPPED: it was removed, or it stopped the run. PASSED: it was left in the call, and Python
# raises a TypeError. SWALLOWED: it was left in the call to a forward that takes any key.
STOPPED = "stopped"
PASSED = "passed"
SWALLOWED = "swallowed"


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
        outcome: what became of it: ``STOPPED``, ``PASSED`` or ``SWALLOWED``.
        model: the class whose ``forward`` it reached, or would have reached; empty at the layers 1 to 4.
        first_layer: the layer at which a trainer's batch first held the key; 0 if it was never in the batch.
    """

    key: str
    layer: int
    source: KeySource
    count: int = 1
    outcome: str = STOPPED
    model: str = ""
    first_layer: int = 0

    def __str__(self) -> str:
        times = "once" if self.count == 1 else f"{self.count} times"
        where = f"at layer {self.layer} ({LAYERS[self.layer]})"
        if self.outcome == PASSED:
            where += f", not stopped, and {self.model}.forward does not take it"
        if self.outcome == SWALLOWED:
            where += f", not stopped, because {self.model}.forward takes any key (**kwargs)"
        text = f"{self.key} <- {self.source.name}, {where}, {times}"
        if self.first_layer:
            text += f", first in the batch at layer {self.first_layer} ({LAYERS[self.first_layer]})"
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
