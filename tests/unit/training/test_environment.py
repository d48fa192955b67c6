"""The environment of a run names the versions on which its numbers depend, from one list."""

from accelerate import Accelerator

from higgs_trainer.training import environment
from higgs_trainer.training.environment import describe_environment, list_versions


def test_the_environment_names_the_versions_that_a_resumed_run_compares(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "torch"))
    found = describe_environment(Accelerator(cpu=True))
    assert {"higgs_trainer": found["higgs_trainer"], **found["packages"]} == list_versions()
    assert list(found["packages"]) == ["numpy", "torch"]
