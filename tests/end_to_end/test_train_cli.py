"""prepare, check, train and generate on a tiny model, as a user types them."""

import json
import math
import re
import shutil

import pytest
import soundfile
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import HiggsAudioV2ForConditionalGeneration
from typer.testing import CliRunner

from higgs_trainer.audio.files import write_audio
from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.cli import app, main
from higgs_trainer.dataset.collator import PackingCollator
from higgs_trainer.demo.blank_model import write_blank_model
from higgs_trainer.errors import RecipeError, UserError

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2}
RECIPE = """
model: {name_or_path: model}
data: {train: prepared, eval: prepared, tokens_per_pack: 150}
adapter: {r: 4, target_modules: all_linear}
samples: {texts: [one two, one one], ref_audio: 3.wav, ref_text: one one one one, max_seconds: 0.4}
training:
  output_dir: out
  max_steps: 2
  eval_strategy: steps
  eval_steps: 2
  save_strategy: "no"
  logging_steps: 1
  use_cpu: true
"""


def tone(hz, seconds):
    time_S = torch.arange(int(24_000 * seconds)) / 24_000
    return 0.3 * torch.sin(2 * math.pi * hz * time_S) + 0.01 * torch.randn(len(time_S))


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a codec that fits it, and a prepared dataset of four tones."""
    folder = tmp_path_factory.mktemp("house")
    torch.manual_seed(0)
    waveforms = [tone(200 + 100 * i, 0.6 + 0.2 * i) for i in range(4)]
    codec = MelCodec.fit(waveforms, codebook_size=8, seed=0)
    write_blank_model(folder / "model", codec, seed=0, **SIZES)
    rows = []
    for i, waveform_S in enumerate(waveforms):
        write_audio(folder / f"{i}.wav", waveform_S)
        rows.append({"audio": f"{i}.wav", "text": "one " * (i + 1)})
    rows[0] |= {"ref_audio": "3.wav", "ref_text": "one one one one"}
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    done = run(
        "prepare", folder / "data.jsonl", "-o", folder / "prepared", "--codec", folder / "model" / "codec"
    )
    assert done.exit_code == 0, done.output
    return folder


def test_check_says_what_the_guard_saw_and_passes(folder):
    result = run("check", folder / "recipe.yaml")
    assert result.exit_code == 0, result.output
    for expected in (
        "guard: clean",
        "end of stream is supervised once a codebook",
        "parameters are trained",
        "q_proj",
    ):
        assert expected in result.output
    assert "failed" not in result.output
    assert "WARNING" in result.output
    assert "4 of 4" in result.output, "the recipe evaluates on its training data"
    assert not (folder / "out").exists()


LEAK = "shift_labels <- already in the batch, from the collator PackingCollator (tests/end_to_end/test_train_cli.py:"


@pytest.fixture
def leaky_collator(monkeypatch):
    """A collator that puts a key into the batch which neither model nor loss knows."""
    original = PackingCollator.__call__

    def collate_with_leak(self, examples):
        return original(self, examples) | {"shift_labels": torch.zeros(3)}

    monkeypatch.setattr(PackingCollator, "__call__", collate_with_leak)


@pytest.mark.parametrize(
    "overrides",
    [
        ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", "{min_lr: 1e-5}"],
        ["--lr_scheduler_type", "reduce_lr_on_plateau"],
    ],
)
def test_check_takes_any_schedule(folder, overrides):
    """Its learning rate is 0, by which a schedule with a minimum would divide, and it does not evaluate."""
    result = run("check", folder / "recipe.yaml", *overrides)
    assert result.exit_code == 0, result.output


def test_each_command_says_what_came_out_and_what_to_run_next(folder, tmp_path):
    """In Czech: the sentence to try is one that the samples speak, and its language goes with it."""
    row = json.dumps({"audio": "1.wav", "text": "dobr\u00fd den", "language": "cs"})
    (folder / "cs.jsonl").write_text(row + "\n", encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    text = RECIPE.replace("name_or_path: model", f"name_or_path: {folder / 'model'}").replace(
        "prepared", "cs"
    )
    start, end = text.index("samples:"), text.index("training:")
    samples = "samples: {texts: [], held_out: 1, max_seconds: 0.2}\n"
    recipe.write_text(text[:start] + samples + text[end:])
    prepared = run("prepare", folder / "cs.jsonl", "-o", tmp_path / "cs", "--recipe", recipe)
    assert prepared.exit_code == 0, prepared.output
    assert "1 utterance, " in prepared.output
    assert "changed in texts" not in prepared.output
    assert prepared.output.endswith(f"Run next:\n    higgs-trainer check {recipe}\n")
    trained = run("train", recipe, "--save_strategy", "steps")
    assert f"{tmp_path / 'out'}: 2 steps trained" in trained.output
    assert f"--text 'dobr\u00fd den' --language cs -o {tmp_path / 'out'}-spoken" in trained.output
    resumed = run("train", recipe, "--save_strategy", "steps", "--resume_from_checkpoint", "true")
    assert "nothing was left to train" in resumed.output, resumed.output


@pytest.mark.parametrize(("policy", "exit_code"), [("raise", 1), ("divert", 0)])
def test_check_fails_on_a_leak_under_raise_alone_and_names_who_did_it(
    folder, leaky_collator, policy, exit_code
):
    result = run("check", folder / "recipe.yaml", "--policy", policy)
    assert result.exit_code == exit_code, result.output
    assert LEAK in result.output
    assert "none reached the model" in result.output
    assert ("failed" in result.output) == (policy == "raise")


def test_train_ends_with_exit_code_1_on_a_leak_under_raise(folder, tmp_path, leaky_collator, capsys):
    options = ["--policy", "raise", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(folder / "recipe.yaml"), *options])
    assert stopped.value.code == 1
    assert LEAK in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(folder):
    result = run("train", folder / "recipe.yaml", "--learning_rate", "1e-2", "--training.seed", "3")
    assert result.exit_code == 0, result.output
    return folder / "out"


def test_train_leaves_a_folder_that_peft_opens(folder, trained):
    base = HiggsAudioV2ForConditionalGeneration.from_pretrained(folder / "model")
    model = PeftModel.from_pretrained(base, str(trained))
    assert model.peft_config["default"].task_type is None
    for name in (
        "recipe.yaml",
        "guard_report.json",
        "metrics.json",
        "tokenizer.json",
        "samples/step-0/0000.wav",
        "samples/step-2/0000.wav",
        "report.html",
    ):
        assert (trained / name).is_file(), name
    assert "learning_rate: 0.01" in (trained / "recipe.yaml").read_text()
    assert json.loads((trained / "metrics.json").read_text())["codebook_7_loss"] > 0
    assert json.loads((trained / "data_overlap.json").read_text()) == {
        "eval_utterances": 4, "same_folders": 1, "same_recordings": 4, "same_texts": 4
    }  # fmt: skip


def test_the_page_of_a_run_lacks_nothing_but_an_evaluation(trained, tmp_path):
    """Whatever training writes is where the page looks for it."""
    result = run("report", trained, "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "note:" not in result.output
    for page in (trained / "report.html", tmp_path / "page.html"):
        text = page.read_text()
        missing = re.findall('<p class="missing">(.*?)</p>', text, re.DOTALL)
        assert len(missing) == 2, missing
        assert any("need JavaScript" in one for one in missing)
        assert any("evaluation/figures.json is not in" in one for one in missing)
        for expected in (
            "before",
            "after",
            "the real voice through the codec",
            "training_step",
            "<dt>device</dt><dd>cpu",
            "reference",
        ):
            assert expected in text, expected


def test_several_runs_need_a_place_for_their_page(trained):
    result = CliRunner().invoke(app, ["report", str(trained), str(trained)])
    assert isinstance(result.exception, UserError)
    assert "--output" in str(result.exception)


def test_a_fully_trained_model_speaks_from_its_own_folder(folder, tmp_path):
    result = run("train", folder / "recipe.yaml", "--adapter", "null", "--output_dir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    shutil.copytree(tmp_path / "out", tmp_path / "moved")
    wav = tmp_path / "wav"
    result = run("generate", "--model", tmp_path / "moved", "--text", "one", "-o", wav, "--max-seconds", 1)
    assert result.exit_code == 0, result.output
    assert not list((tmp_path / "out").glob("*.bin"))  # nothing pickled is left


def test_frozen_kinds_stay_as_they_are_and_the_table_says_so(folder, tmp_path):
    overrides = ("--adapter", "null", "--model.freeze", "[text_ffn, norms]", "--texts", "[]")
    result = run("train", folder / "recipe.yaml", *overrides, "--output_dir", tmp_path)
    assert result.exit_code == 0, result.output
    before, after = (load_file(place / "model.safetensors") for place in (folder / "model", tmp_path))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".mlp." not in name and "norm" not in name}
    table = json.loads((tmp_path / "trainable_parameters.json").read_text())
    assert table["mlp.up_proj"] == {"trained": 0, "all": 32 * 48}
    assert table["audio_mlp.up_proj"] == {"trained": 32 * 48, "all": 32 * 48}
    assert "audio_mlp.up_proj" in result.output


def test_generate_speaks_with_the_adapter_and_a_reference(folder, trained):
    texts = folder / "texts.txt"
    texts.write_text("one two\nthree\n")
    out = folder / "spoken"
    result = run(
        *("generate", "--model", trained, "--text-file", texts, "--output", out, "--max-seconds", 0.4),
        *("--ref-audio", folder / "3.wav", "--ref-text", "one"),
    )
    assert result.exit_code == 0, result.output
    index = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert [row["text"] for row in index] == ["one two", "three"]
    for row in index:
        assert soundfile.info(out / row["audio"]).frames > 0


def test_another_codecs_codes_are_refused(folder, tmp_path):
    other = MelCodec.fit([tone(900, 1.0), tone(50, 1.0)], codebook_size=8, seed=1)
    other.save_pretrained(tmp_path / "codec")
    prepared = tmp_path / "prepared"
    assert run("prepare", folder / "data.jsonl", "-o", prepared, "--codec", tmp_path / "codec").exit_code == 0
    result = run("train", folder / "recipe.yaml", "--data.train", prepared, "--output_dir", tmp_path / "out")
    assert result.exit_code != 0
    assert "other sounds" in str(result.exception) + result.output


def test_a_target_that_matches_nothing_names_near_ones(folder):
    result = run("check", folder / "recipe.yaml", "--adapter.target_modules", "[q_prj]")
    assert result.exit_code != 0
    assert "q_proj" in str(result.exception) + result.output


def test_a_wrong_number_of_codebook_weights_is_a_users_mistake(folder):
    result = run("check", folder / "recipe.yaml", "--loss.codebook_weights", "[1, 2]")
    assert isinstance(result.exception, RecipeError)
    assert "2 weights" in str(result.exception)
