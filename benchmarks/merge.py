"""Measure the precision lost by merging: ``benchmarks/merge.py ADAPTER [--text-file FILE] [--clips 16] [--json]``.

ADAPTER is a folder that training wrote, such as runs/demo/after after ``make demo``. The reference is the base with the
unmerged adapter in float32, which generates the texts greedily. Each row is another way to run the same model:

    merged             the merged model, weights and arithmetic in the row's dtype
    weights only       merged weights rounded to the row's dtype, arithmetic in float32
    unmerged           base and unmerged adapter in the row's dtype: what is lost without merging

Columns: the largest and the mean difference of a logit, over all cells of the reference's clips, with the reference's
codes as context; the share of cells with another most likely code; the share of clips in which any code differs when
each model continues from its own codes.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgs_trainer.demo.steps import quiet_transformers
from higgs_trainer.model.example_encoding import encode_example
from higgs_trainer.model.loading import Checkpoint, load_checkpoint, load_trained
from higgs_trainer.sharing.merging import merge_adapter
from higgs_trainer.speech.clip_folder import GeneratedCodes
from higgs_trainer.speech.generate import Request, generate_codes
from higgs_trainer.speech.sampling import Sampling

STRINGS = files("higgs_trainer_demo") / "unheard_strings.txt"
SAMPLING = Sampling(greedy=True, max_seconds=8.0)
DTYPES = ("float32", "bfloat16", "float16")


def list_ways(adapter: Path, scratch: Path) -> Iterator[tuple[str, str, Checkpoint]]:
    """Yield (kind, dtype, model), each loaded only when it is needed."""
    for dtype in DTYPES:
        merge_adapter(adapter, scratch / dtype, dtype=dtype)
        yield "merged", dtype, load_checkpoint(scratch / dtype, dtype=dtype)
        if dtype != "float32":
            yield "weights only", dtype, load_checkpoint(scratch / dtype, dtype="float32")
            yield "unmerged", dtype, load_trained(adapter, dtype=dtype)


def generate(checkpoint: Checkpoint, texts: list[str]) -> list[GeneratedCodes]:
    """Generate a clip for each text, in the order of the texts."""
    clips = dict(generate_codes(checkpoint, [Request(text) for text in texts], sampling=SAMPLING))
    return [clips[number] for number in range(len(texts))]


@torch.no_grad()
def compute_logits(checkpoint: Checkpoint, clips: list[GeneratedCodes]) -> list[Tensor]:
    """Return the logits of each clip, float32 (N, K, C): N columns, each predicted from the clip's earlier columns."""
    model, ids = checkpoint.model.eval(), checkpoint.stream_ids
    found = []
    for clip in clips:
        row: dict[str, Any] = {"utterance_id": clip.text, "text": clip.text, "scene": None, "reward": None}
        row |= {"task": "single_speaker", "num_references": 0, "context_texts": []}
        row |= {"context_codes": [], "codes_FK": clip.codes_FK, "duration_seconds": 0.0}
        example = encode_example(row, checkpoint.tokenizer, ids, checkpoint.sequence)
        columns_1PK = example.columns_PK[None]
        logits_NC = model(
            input_ids=example.input_ids[None],
            audio_input_ids=columns_1PK,
            audio_input_ids_mask=torch.ones_like(columns_1PK[..., 0], dtype=torch.bool),
            logits_to_keep=example.keep_T[None],
        ).logits
        found.append(logits_NC.float().reshape(-1, ids.num_codebooks, model.config.codebook_size))
    return found


def compare(
    logits: list[Tensor],
    reference_logits: list[Tensor],
    generated: list[GeneratedCodes],
    reference: list[GeneratedCodes],
) -> dict[str, Any]:
    """Compute the figures of one row."""
    logits_NKC, reference_NKC = torch.cat(logits), torch.cat(reference_logits)
    difference = (logits_NKC - reference_NKC).abs()
    others = [not torch.equal(a.codes_FK, b.codes_FK) for a, b in zip(generated, reference, strict=True)]
    return {
        "largest_logit_difference": float(difference.max()),
        "mean_logit_difference": float(difference.mean()),
        "other_codes": float((logits_NKC.argmax(-1) != reference_NKC.argmax(-1)).float().mean()),
        "other_clips": sum(others) / len(others),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--text-file", type=Path, default=STRINGS)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on the last line")
    arguments = parser.parse_args()
    quiet_transformers()
    texts = arguments.text_file.read_text(encoding="utf-8").splitlines()[: arguments.clips]

    unmerged = load_trained(arguments.adapter)
    reference = generate(unmerged, texts)
    reference_logits = compute_logits(unmerged, reference)
    rows = []
    print("| | dtype | largest logit difference | mean | other codes | other clips |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for what, dtype, checkpoint in list_ways(arguments.adapter, Path(scratch)):
            generated = generate(checkpoint, texts)
            row = compare(compute_logits(checkpoint, reference), reference_logits, generated, reference)
            rows.append({"what": what, "dtype": dtype, **row})
            print(
                f"| {what} | {dtype} | {row['largest_logit_difference']:.1e} | {row['mean_logit_difference']:.1e} "
                f"| {row['other_codes']:.2%} | {row['other_clips']:.0%} |",
                flush=True,
            )
    cells = sum(logits_NKC.shape[0] * logits_NKC.shape[1] for logits_NKC in reference_logits)
    largest = float(torch.cat(reference_logits).abs().max())
    print(f"{len(texts)} clips, {cells} cells, largest logit {largest:.1f}")
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
