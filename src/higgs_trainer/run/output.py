"""Write the files of a run into its output folder: the plan before the first step, the result after the last."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from higgs_trainer.dataset.prepared import PreparedRows
from higgs_trainer.dataset.summary import summarize
from higgs_trainer.files import (
    explain_failed_write,
    flush_to_disk,
    move_into_place,
    write_json,
)
from higgs_trainer.model.model_files import write_model_checksums
from higgs_trainer.model.model_folder import copy_companions
from higgs_trainer.model.parameters import describe_trainable
from higgs_trainer.run_folder import (
    DATA_OVERLAP_FILE,
    DATA_SUMMARY_FILE,
    METRICS_FILE,
    PARAMETERS_FILE,
    REPORT_FILE,
    RESULT_FOLDER,
    UNFINISHED_FOLDER,
    DataOverlap,
)
from higgs_trainer.sharing.model_card import write_model_card
from higgs_trainer.training.run_record import write_end, write_start
from higgs_trainer.training.trainer import HiggsAudioTrainer
from higgs_trainer.unfinished_runs import finish_result


def write_plan(output_dir: Path, trainer: HiggsAudioTrainer, overlap: DataOverlap | None) -> str:
    """Write, before the first step, which parameters will be trained, with which versions, and whether data overlaps.

    Return a line about the parameters. The report page of an earlier run in the same folder is removed.
    """
    (output_dir / REPORT_FILE).unlink(missing_ok=True)
    trainable = write_start(output_dir, trainer.model, trainer.accelerator)
    if overlap is None:
        (output_dir / DATA_OVERLAP_FILE).unlink(missing_ok=True)
    else:
        write_json(output_dir / DATA_OVERLAP_FILE, overlap)
    return f"{describe_trainable(trainable)}. All counts: {PARAMETERS_FILE}"


def write_result(
    output_dir: Path,
    trainer: HiggsAudioTrainer,
    metrics: Mapping[str, float],
    *,
    base: str,
    datasets: Mapping[str, PreparedRows],
    dtype: str | None = None,
) -> None:
    """Write the trained model, its card, the metrics and the records of the run, after the last step.

    All files are written under another name first and then moved into place, ``metrics.json`` last. After a kill while
    they are moved, the next command that opens the folder moves the others.

    Args:
        base: folder or hub name of the model that training started from, whose codec and processor files are copied.
        datasets: the rows of the training set and the held-out set, by name, for ``data_summary.json``.
        dtype: round the weights to this dtype first. The checkpoints keep them in float32.
    """
    if dtype is not None:
        trainer.round_weights(dtype)
    result = output_dir / UNFINISHED_FOLDER / "result"
    advice = "make room and resume with --resume_from_checkpoint true"
    with explain_failed_write(output_dir, advice):
        # Every rank calls this: under FSDP each holds a part of the weights.
        trainer.save_model(str(result), _internal_call=True)
        if trainer.is_world_process_zero():
            copy_companions(base, result)
            write_end(result, trainer.state, trainer.guard)
            summary = {name: summarize(rows) for name, rows in datasets.items()}
            write_json(result / DATA_SUMMARY_FILE, summary)
            write_json(result / METRICS_FILE, metrics)
            write_model_card(result, record=output_dir, name=trainer.args.hub_model_id)
            write_model_checksums(result)
            flush_to_disk(result)
            move_into_place(result, output_dir / RESULT_FOLDER)
            finish_result(output_dir)
            shutil.rmtree(output_dir / UNFINISHED_FOLDER)
    if trainer.args.push_to_hub:
        # Every rank calls this too, because it saves the model again.
        trainer.push_to_hub()
