"""Speaking, against transformers' own ``generate``: ``python benchmarks/generate.py [--model DIR] [--json]``.

Both sides get the same prompts and the same way of drawing, in turns within one run, one thread, CPU time. Ours draws
each clip by a generator of its own and lets only the first codebook end a clip; theirs draws for the whole batch. A
column is one call of the model, so its time compares them even where clips end at different columns. Without
``--model`` the packaged demo model speaks. It has 4 million parameters, so the drawing weighs far more in it than in a
real model; ``--codes 1024`` takes random weights of its size with the released checkpoint's codebooks instead.

The second table says how many clips of batches of eight are those of single calls, code for code.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from higgs_trainer.dataset.context import Context
from higgs_trainer.demo.blank_model import write_blank_model
from higgs_trainer.model.loading import Checkpoint, load_trained
from higgs_trainer.model.prompt import encode_prompt
from higgs_trainer.speech.generate import Request, generate_codes
from higgs_trainer.speech.sampling import Sampling

DIGITS = "zero one two three four five six seven eight nine".split()
DRAWING = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}


def pick_texts(count: int) -> list[str]:
    """Strings of three to seven digits: prompts of several lengths."""
    return [" ".join(DIGITS[(7 * i + j) % 10] for j in range(3 + i % 5)) for i in range(count)]


def time_columns(checkpoint: Checkpoint, run: Callable[[], Any]) -> tuple[float, int]:
    """CPU seconds of the run, and how often it called the model: once a column."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = checkpoint.model.register_forward_hook(count)
    start = time.process_time()
    run()
    seconds = time.process_time() - start
    hook.remove()
    return seconds, calls


def build_theirs(
    checkpoint: Checkpoint, texts: list[str], sampling: Sampling, greedy: bool
) -> Callable[[], Any]:
    """transformers' generate on the same prompts, padded on the left as its processor pads."""
    K = checkpoint.stream_ids.num_codebooks
    drawing = {"do_sample": False} if greedy else {"do_sample": True, **DRAWING}

    def run() -> None:
        prompts = [encode_prompt(checkpoint.tokenizer, text, Context(), num_codebooks=K) for text in texts]
        batch = checkpoint.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        torch.manual_seed(sampling.seed)
        with torch.no_grad():
            checkpoint.model.generate(
                **batch.to(checkpoint.model.device),
                **drawing,
                max_new_tokens=int(sampling.max_seconds * 25) + K + 1,
            )

    return run


def measure(checkpoint: Checkpoint, *, batch_size: int, greedy: bool, repeats: int) -> dict[str, Any]:
    """Median time of a column on both sides, in turns."""
    texts = pick_texts(batch_size)
    drawing = {"greedy": True} if greedy else DRAWING
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(-1, repeats):
        sampling = Sampling(max_seconds=3.0, seed=max(repeat, 0), **drawing)
        requests = [Request(text) for text in texts]
        sides = {
            "ours": lambda requests=requests, sampling=sampling: list(
                generate_codes(checkpoint, requests, sampling=sampling, batch_size=batch_size)
            ),
            "theirs": build_theirs(checkpoint, texts, sampling, greedy),
        }
        for side, run in sides.items():
            seconds, columns = time_columns(checkpoint, run)
            if repeat >= 0:  # the first turn warms up
                times[side].append(1000 * seconds / columns)
    ours, theirs = (statistics.median(times[side]) for side in ("ours", "theirs"))
    return {
        "batch": batch_size,
        "drawing": "greedy" if greedy else "sampled",
        "ours_ms_per_column": round(ours, 3),
        "transformers_ms_per_column": round(theirs, 3),
        "ours_by_transformers": round(ours / theirs, 3),
        "audio_seconds_per_second": round(batch_size / 25 / (ours / 1000), 1),
    }


def count_same(checkpoint: Checkpoint, *, greedy: bool, count: int) -> dict[str, Any]:
    """How many of ``count`` clips have the same codes in batches of eight as one by one."""
    sampling = Sampling(max_seconds=8.0, **({"greedy": True} if greedy else DRAWING))
    requests = [Request(text, seed=seed) for seed, text in enumerate(pick_texts(count))]
    eight, one = (
        dict(generate_codes(checkpoint, requests, sampling=sampling, batch_size=size)) for size in (8, 1)
    )
    same = [torch.equal(eight[i].codes_FK, one[i].codes_FK) for i in range(count)]
    codes = sum(clip.codes_FK.numel() for clip in one.values())
    return {
        "drawing": "greedy" if greedy else "sampled",
        "clips": count,
        "codes": codes,
        "same_clips": sum(same),
    }


def load_subject(model: str | None, codes: int | None) -> Checkpoint:
    """The model that is measured."""
    if model is not None:
        return load_trained(model)
    if codes is None:
        with as_file(files("higgs_trainer_demo") / "base") as folder:
            return load_trained(folder)
    with tempfile.TemporaryDirectory() as folder:
        codec = SimpleNamespace(
            num_codebooks=8, codebook_size=codes, sample_rate_hz=24_000, save_pretrained=lambda folder: None
        )
        sizes = {"hidden_size": 160, "intermediate_size": 384, "num_layers": 3, "num_heads": 4}
        write_blank_model(Path(folder), codec, seed=0, **sizes)  # type: ignore[arg-type]
        return load_trained(folder)


def main() -> None:
    """Print the table; with ``--json`` the same as JSON in the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a model's folder (the packaged demo model)")
    parser.add_argument("--codes", type=int, help="random weights with so many codes in a codebook")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each side (9)")
    parser.add_argument(
        "--clips", type=int, default=40, help="clips of which a batch is held against single calls (40)"
    )
    parser.add_argument("--json", action="store_true", help="the figures once more, in the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    checkpoint = load_subject(arguments.model, arguments.codes)
    rows = [
        measure(checkpoint, batch_size=batch_size, greedy=greedy, repeats=arguments.repeats)
        for batch_size in (1, 8)
        for greedy in (True, False)
    ]
    same = [count_same(checkpoint, greedy=greedy, count=arguments.clips) for greedy in (True, False)]
    for table in (rows, same):
        print("\n| " + " | ".join(name.replace("_", " ") for name in table[0]) + " |")
        print("|" + "---|" * len(table[0]))
        for row in table:
            print("| " + " | ".join(map(str, row.values())) + " |")
    if arguments.json:
        print(json.dumps({"codes": checkpoint.num_codes, "speed": rows, "batch_against_single": same}))


if __name__ == "__main__":
    main()
