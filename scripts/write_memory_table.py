"""Write the predicted memory of the released model into docs/memory.md and README.md, or check that it is there.

    python scripts/write_memory_table.py            writes
    python scripts/write_memory_table.py --check    exits with 1 if a table is not what the planner predicts now

It takes some minutes. The configuration is that of the released model; no weights are needed.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from build_random_checkpoint import build_config, build_tokenizer

from higgs_trainer.planning.forecast import Forecast
from higgs_trainer.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[1]
SIZES_GB = (12, 16, 24, 48, 80)
CHECKPOINTED = {"bf16": True, "gradient_checkpointing": True}
FREEZE = ["text_ffn", "text_embeddings"]

ROWS: dict[str, dict[str, Any]] = {
    "LoRA, checkpointing": {"adapter": {}, "training": CHECKPOINTED},
    "LoRA, no checkpointing": {"adapter": {}, "training": {"bf16": True}},
    "QLoRA (`quantization: nf4`), checkpointing": {
        "adapter": {},
        "training": CHECKPOINTED,
        "model": {"quantization": "nf4"},
    },
    "full, text side frozen, checkpointing": {"training": CHECKPOINTED, "model": {"freeze": FREEZE}},
    "the same, `optim: adamw_8bit`": {
        "training": CHECKPOINTED | {"optim": "adamw_8bit"},
        "model": {"freeze": FREEZE},
    },
    "full, everything, checkpointing": {"training": CHECKPOINTED},
    "the same on 4 GPUs, each": {"training": CHECKPOINTED, "gpus": 4},
    "the same on 8 GPUs, each": {"training": CHECKPOINTED, "gpus": 8},
}
README_ROWS = tuple(ROWS)[:5]
BEGIN, END = "<!-- memory table: begin -->", "<!-- memory table: end -->"


def predict_rows(model: Path) -> dict[str, list[str]]:
    """Return the cells of each row: GB for a pack of 4,096 tokens, and the largest pack for each size of a GPU."""
    return {name: list(_predict(model, dict(row))) for name, row in ROWS.items()}


def _predict(model: Path, row: dict[str, Any]) -> Iterator[str]:
    num_gpus = row.pop("gpus", 1)
    recipe = Recipe(
        model={"name_or_path": str(model), "codec": "bosonai/higgs-audio-v2-tokenizer"}
        | row.pop("model", {}),
        data={"train": model / "none"},
        training={"output_dir": model / "run"} | row.pop("training"),
        **row,
    )
    forecast = Forecast(recipe)
    memory = forecast.compute_memory(forecast.recipe, forecast.work.shape.tokens, num_gpus)
    yield f"{memory.total / 1e9:.1f}"
    for size in SIZES_GB:
        tokens = forecast.find_largest_batch(forecast.recipe, size * 1e9, num_gpus)
        yield "no" if tokens is None else f"{tokens:,}"


def format_table(rows: dict[str, list[str]], names: tuple[str, ...]) -> str:
    """Return a Markdown table of some rows."""
    sizes = " | ".join(f"{size} GB" for size in SIZES_GB)
    lines = [f"| | GB for 4,096 tokens | {sizes} |", "|---" * (2 + len(SIZES_GB)) + "|"]
    lines += [f"| {name} | {' | '.join(rows[name])} |" for name in names]
    return "\n".join(lines)


def replace_table(text: str, table: str) -> str:
    """Return a page with this table between the two marks."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"the page has no {BEGIN} and {END}"
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> None:
    """Write or check the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_config("released").save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        rows = predict_rows(Path(folder))
    outdated = []
    for path, names in ((ROOT / "docs/memory.md", tuple(ROWS)), (ROOT / "README.md", README_ROWS)):
        text = path.read_text(encoding="utf-8")
        wanted = replace_table(text, format_table(rows, names))
        if wanted != text:
            outdated.append(path.name)
            if not arguments.check:
                path.write_text(wanted, encoding="utf-8")
    print(format_table(rows, tuple(ROWS)))
    if outdated and arguments.check:
        sys.exit(f"The tables in {' and '.join(outdated)} are old. Run python scripts/write_memory_table.py.")


if __name__ == "__main__":
    main()
