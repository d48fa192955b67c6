"""Of several GPUs that are visible without a launcher, one is used."""

from pathlib import Path

import pytest
from transformers import TrainingArguments

from higgs_trainer.run.arguments import use_one_gpu


@pytest.mark.parametrize(("visible", "used"), [(0, 0), (1, 1), (2, 1), (8, 1)])
def test_one_gpu_is_used_and_it_is_said(
    visible: int, used: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=3)
    # What transformers sets when torch.cuda.device_count() says so.
    arguments._n_gpu = visible
    use_one_gpu(arguments)
    assert arguments.n_gpu == used
    assert arguments.train_batch_size == 3
    said = f"{visible} GPUs are visible, and one of them is used." in caplog.text
    assert said is (visible > 1)
    assert ("accelerate launch" in caplog.text) is (visible > 1)
