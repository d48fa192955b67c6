"""Each process chooses its device before anything is loaded."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from higgs_trainer.corpus import prepare as preparation
from higgs_trainer.distributed import Processes, find_processes, join_processes
from higgs_trainer.errors import RecipeError
from higgs_trainer.run import check as checking
from higgs_trainer.run import train as training


class Joined(Exception):
    """The group was joined."""


def test_without_a_launcher_a_process_is_alone():
    assert join_processes() == find_processes() == Processes(0, 1)
    assert find_processes().find_failed(True) == []
    assert find_processes().find_failed(False) == [0]


def test_prepare_joins_before_it_loads_the_codec(tmp_path, monkeypatch):
    (tmp_path / "m.jsonl").write_text("{}")
    steps = []

    @contextmanager
    def join():
        steps.append("join")
        yield Processes()

    def load(codec):
        steps.append("codec")
        raise RecipeError("far enough")

    monkeypatch.setattr(preparation, "joined_processes", join)
    monkeypatch.setattr(preparation, "_load_codec", load)
    with pytest.raises(RecipeError, match="far enough"):
        preparation.prepare(tmp_path / "m.jsonl", tmp_path / "out", codec="codec")
    assert steps == ["join", "codec"]


@pytest.mark.parametrize("verb", [training.train, checking.check])
def test_train_and_check_join_before_anything_else(verb, monkeypatch):
    def join(section):
        raise Joined

    monkeypatch.setattr(training, "join_run", join)
    monkeypatch.setattr(checking, "join_run", join)
    with pytest.raises(Joined):
        verb(SimpleNamespace(training=None))


def test_the_wait_and_the_device_are_those_of_the_recipe(monkeypatch):
    from higgs_trainer.run import arguments

    monkeypatch.setattr(
        arguments, "join_processes", lambda timeout, use_cpu: (timeout.total_seconds(), use_cpu)
    )
    extra = {"ddp_timeout": 60, "use_cpu": True}
    assert arguments.join_run(SimpleNamespace(extra_arguments=extra)) == (60, True)
    assert arguments.join_run(SimpleNamespace(extra_arguments={})) == (1800, False)
