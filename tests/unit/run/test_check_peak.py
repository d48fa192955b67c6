"""`check` prints the largest memory that it needed."""

import re
import runpy
from pathlib import Path

import torch

from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.run.check import check, describe_peak

script = runpy.run_path(str(Path(__file__).resolve().parents[3] / "scripts" / "kill_and_resume.py"))


def test_the_peak_of_a_check_is_at_least_what_the_process_has_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(script["write_inputs"](tmp_path, max_steps=1), ["--resume_from_checkpoint", "false"])
    kept = torch.ones(100_000_000, dtype=torch.uint8)
    report = check(recipe)
    status = Path("/proc/self/status").read_text()
    resident_gb = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024 / 1e9
    found = re.match(r"peak memory: (\d+\.\d) GB of this process", report.peak)
    assert float(found[1]) >= round(resident_gb, 1) - 0.1 > kept.nbytes / 1e9


def test_on_a_gpu_the_peak_is_that_of_its_tensors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 12_300_000_000)
    line = describe_peak(torch.device("cuda", 0))
    assert line.startswith("peak memory: 12.3 GB of tensors on the GPU.")
