"""A leak, and the error that ends a run because of one."""

from dataclasses import dataclass

LAYERS = {
    1: "training_step",
    2: "_prepare_inputs",
    3: "compute_loss",
    4: "model inputs",
    5: "forward",
}


@dataclass(frozen=True)
class Injector:
    """The code that put a key into a call: ``origin`` names it, ``mend`` says in one sentence how to stop it."""

    origin: str
    mend: str = ""


@dataclass
class Leak:
    """A key met where its contract does not list it as an input: which key, at which layer, from whom, how often."""

    key: str
    layer: int
    injector: Injector
    count: int = 1

    def __str__(self) -> str:
        times = "once" if self.count == 1 else f"{self.count} times"
        text = f"{self.key} <- {self.injector.origin}, at layer {self.layer} ({LAYERS[self.layer]}), {times}"
        return f"{text}. {self.injector.mend}" if self.injector.mend else text


class LabelLeakError(RuntimeError):
    """A key that must not reach the model, and that cannot be diverted or must not be (policy ``raise``).

    ``keys`` are the keys at fault; ``leak`` says where they came from, where a layer could find out.
    """

    def __init__(self, message: str, keys: tuple[str, ...] = (), leak: Leak | None = None) -> None:
        super().__init__(message)
        self.keys = keys
        self.leak = leak
