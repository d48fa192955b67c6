"""Train the demo's base model from the corpora of `build_demo_corpora.py`, with the codec of `build_demo_assets.py`.

    python scripts/build_base_model.py corpora runs/base
    cp -r runs/base/packaged packages/higgs-trainer-demo/src/higgs_trainer_demo/base

It takes about an hour on one CPU core and is seeded. The new voices are not in its training data. Overrides of the
recipe may follow the arguments, such as `--max_steps 100`.
"""

import argparse
import shutil
from importlib.resources import as_file, files
from pathlib import Path

import torch
from build_demo_assets import read_rows
from transformers import AutoTokenizer, HiggsAudioV2ForConditionalGeneration

from higgs_trainer.audio.files import read_audio
from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.dataset.prepared_writer import write_encoded
from higgs_trainer.demo.blank_model import write_blank_model
from higgs_trainer.demo.muon import build_muon
from higgs_trainer.model.model_files import CODEC_FOLDER
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.run.train import train
from higgs_trainer.run_folder import RECIPE_FILE

VOICES = (
    *("rms", "rms-r82", "rms-r91", "rms-r111", "rms-r123"),
    *("awb", "awb-r82", "awb-r91", "awb-r111", "awb-r123"),
    *("kal16", "kal16-r82", "kal16-r91"),
    *("joe", "joe-r87", "joe-r115"),
    *("jm_kumo", "jm_kumo-r90", "jm_kumo-r110", "jf_alpha", "jf_alpha-r90", "jf_alpha-r110"),
)
HELD_OUT_OF_A_VOICE = 12
SIZES = {"hidden_size": 192, "intermediate_size": 512, "num_layers": 4, "num_heads": 6}
RECIPE = """
model: {name_or_path: random}
data: {train: prepared/train, eval: prepared/held_out, packing: false, code_noise: 0.15}
loss: {codebook_weights: [3, 2, 1.5, 1.2, 1, 0.8, 0.7, 0.6]}
training:
  output_dir: trained
  learning_rate: 1e-2
  weight_decay: 0.05
  warmup_steps: 0.03
  per_device_train_batch_size: 12
  per_device_eval_batch_size: 24
  max_steps: 9000
  eval_strategy: steps
  eval_steps: 1000
  logging_steps: 100
  save_strategy: "no"
  use_cpu: true
  seed: 0
"""


def main() -> None:
    """Build the base model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpora", type=Path)
    parser.add_argument("output", type=Path)
    arguments, overrides = parser.parse_known_args()
    # With one thread, sums have the same order on every machine.
    torch.set_num_threads(1)

    output = arguments.output
    with as_file(files("higgs_trainer_demo") / "codec") as folder:
        codec = MelCodec.from_pretrained(folder)
    train_set, held_out = [], []
    for voice in VOICES:
        clips = [
            (f"{voice}/{number}", row["text"], codec.encode(read_audio(row["audio"])).numpy())
            for number, row in enumerate(read_rows(arguments.corpora, voice))
        ]
        train_set += clips[:-HELD_OUT_OF_A_VOICE]
        held_out += clips[-HELD_OUT_OF_A_VOICE:]
    write_encoded(train_set, output / "prepared" / "train", codec=codec, source="demo voices")
    write_encoded(held_out, output / "prepared" / "held_out", codec=codec, source="demo voices")
    write_blank_model(output / "random", codec, seed=0, **SIZES)
    recipe = output / RECIPE_FILE
    recipe.write_text(RECIPE, encoding="utf-8")
    train(read_recipe(recipe, overrides), build_optimizer=build_muon)
    write_packaged(output / "trained", output / "random", output / "packaged")


def write_packaged(trained: Path, random: Path, folder: Path) -> None:
    """Write a model folder with the trained weights in float16, and the tokenizer, configuration files and codec."""
    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(trained, dtype=torch.float16)
    model.config.use_cache = True
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(random).save_pretrained(folder)
    for name in ("preprocessor_config.json", "generation_config.json"):
        shutil.copy(random / name, folder)
    shutil.copytree(random / CODEC_FOLDER, folder / CODEC_FOLDER, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
