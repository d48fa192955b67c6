"""Write a small model with random weights and the embedded codec, to train from scratch on a CPU.

python scripts/build_small_model.py runs/small_model
"""

import argparse
from pathlib import Path

from higgs_trainer.audio.codec import load_codec
from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.demo.blank_model import write_blank_model

SIZES = {"hidden_size": 160, "intermediate_size": 384, "num_layers": 3, "num_heads": 4, "max_positions": 2048}


def main() -> None:
    """Write the folder of the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    codec = load_codec("embedded")
    assert isinstance(codec, MelCodec)
    write_blank_model(arguments.output, codec, seed=arguments.seed, **SIZES)
    print(f"{arguments.output}: random weights, codec {codec.name}")


if __name__ == "__main__":
    main()
