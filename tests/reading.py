"""Count how much of what is read from files of weights is in memory at once."""

import weakref
from types import ModuleType

import pytest


class BytesInUse:
    """The bytes of tensors that exist now, and the most that existed at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def add(self, num_bytes: int) -> None:
        self.now += num_bytes
        self.most = max(self.most, self.now)


def count_bytes_in_use(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> BytesInUse:
    """Count the tensors that a module gets from `read_tensor`."""
    bytes_in_use = BytesInUse()
    read = module.read_tensor

    def read_and_count(file, name):
        tensor = read(file, name)
        weakref.finalize(tensor, bytes_in_use.add, -tensor.nbytes)
        bytes_in_use.add(tensor.nbytes)
        return tensor

    monkeypatch.setattr(module, "read_tensor", read_and_count)
    return bytes_in_use
