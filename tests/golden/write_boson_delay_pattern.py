"""Write tests/golden/boson_delay_pattern.json with Boson's own function, from the repository's root.

It needs boson_multimodal 0.1.1 and transformers 4.46.3: the environment that `make test-boson` makes.
"""

import json
from pathlib import Path

import torch
from boson_multimodal.model.higgs_audio.utils import build_delay_pattern_mask

BEGIN, END, IGNORED = 1024, 1025, -100
SHAPES = ((1, 1), (1, 8), (2, 3), (5, 8), (9, 4))  # frames, codebooks


def frame(codes_KF: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Codes between a first and a last column, as Boson's collator does before it applies the delay."""
    return torch.nn.functional.pad(torch.nn.functional.pad(codes_KF, (1, 0), value=first), (0, 1), value=last)


def main() -> None:
    clips = []
    for F, K in SHAPES:
        codes_KF = torch.randint(1024, (K, F), generator=torch.Generator().manual_seed(100 * F + K))
        columns, _ = build_delay_pattern_mask(frame(codes_KF, BEGIN, END)[None], BEGIN, END)
        labels, _ = build_delay_pattern_mask(frame(codes_KF, IGNORED, END)[None], IGNORED, IGNORED)
        clips.append(
            {"codes": codes_KF.tolist(), "columns": columns[0].tolist(), "labels": labels[0].tolist()}
        )
    lines = ",\n".join(json.dumps(clip) for clip in clips)
    Path("tests/golden/boson_delay_pattern.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
