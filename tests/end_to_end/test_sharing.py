"""Sharing a run folder: its card, its evaluation, a merged model, and a push to a local server in place of the hub."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, metadata_load

from hearing import Parrot
from higgs_trainer.audio.files import write_audio
from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.cli import main
from higgs_trainer.demo.blank_model import write_blank_model
from hub import find_metadata_problems, serve_hub

# One training run in another process.
pytestmark = pytest.mark.slow
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2}
RECIPE = """
model: {name_or_path: model}
data: {train: prepared, eval: prepared, tokens_per_pack: 150}
adapter: {r: 4, target_modules: all_linear}
samples: {texts: [one two], max_seconds: 0.4}
training: {output_dir: voice, max_steps: 2, eval_strategy: steps, eval_steps: 1, save_strategy: steps, save_steps: 1,
  logging_steps: 1, use_cpu: true}
"""
SHARED = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "codec/codec.safetensors",
    "data_summary.json",
    "guard_report.json",
    "metrics.json",
    "metrics.jsonl",
    "preprocessor_config.json",
    "recipe.yaml",
    "samples/step-2/0000.wav",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Build a model, its codec, a dataset of three named speakers, and a recipe."""
    folder = tmp_path_factory.mktemp("house")
    torch.manual_seed(0)
    waveforms = [0.1 * torch.randn(14_400 + 2_400 * i) for i in range(3)]
    codec = MelCodec.fit(waveforms, codebook_size=8, seed=0)
    write_blank_model(folder / "model", codec, seed=0, **SIZES)
    rows = []
    for i, waveform_S in enumerate(waveforms):
        write_audio(folder / f"{i}.wav", waveform_S)
        rows.append({"audio": f"{i}.wav", "text": "one " * (i + 1), "speaker": f"Jane Doe {i}"})
    for row, language in zip(rows, ("en-GB", "de", "de"), strict=True):
        row["language"] = language
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    prepared = ["-o", str(folder / "prepared"), "--codec", str(folder / "model" / "codec")]
    run("prepare", str(folder / "data.jsonl"), *prepared)
    return folder


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(arguments)


@pytest.fixture(scope="module")
def pushed(folder):
    """Train with push_to_hub in another process, because huggingface_hub reads its address only once."""
    with serve_hub() as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.address,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_stand_in",
        }
        environment.pop("TRANSFORMERS_OFFLINE", None)
        command = ["train", str(folder / "recipe.yaml"), "--push_to_hub", "--hub_model_id", "me/voice"]
        done = subprocess.run(
            [sys.executable, "-m", "higgs_trainer", *command],
            env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr + str(hub.requests)
        yield hub


def test_check_creates_no_repository(folder):
    """The hub cannot be reached here, so a request to create one would fail."""
    run("check", str(folder / "recipe.yaml"), "--push_to_hub", "--hub_model_id", "me/voice")


def test_a_push_uploads_the_whole_folder_in_one_commit_without_pickles(folder, pushed):
    assert pushed.created[0]["name"] == "voice"
    assert pushed.commits == ["End of training"]
    assert pushed.files.keys() >= SHARED, SHARED - pushed.files.keys()
    left = {name for name in pushed.files if name.endswith((".bin", ".pt", ".pth", ".pkl"))}
    assert not left
    assert not [name for name in pushed.files if name.startswith(("checkpoint-", "_"))]
    assert pushed.files["README.md"] == (folder / "voice" / "README.md").read_bytes()


def test_the_pushed_card_passes_the_hubs_validation(pushed):
    (validated,) = pushed.cards
    assert validated.encode() == pushed.files["README.md"].replace(b"\r\n", b"\n")
    assert find_metadata_problems(validated) == []


def test_the_card_has_the_facts_of_the_folder(folder, pushed):
    card = ModelCard.load(folder / "voice" / "README.md")
    metadata = card.data.to_dict()
    assert metadata["language"] == ["de", "en"]
    assert metadata["library_name"] == "peft"
    assert metadata["base_model_relation"] == "adapter"
    assert metadata["pipeline_tag"] == "text-to-speech"
    metrics = json.loads((folder / "voice" / "metrics.json").read_text())
    for expected in (
        "# me/voice",
        "| `adapter.r` | 4 |",
        "| `training.max_steps` | 2 |",
        "| training | 3 | 0.00 | 3 | single_speaker 3 | de 2, en-GB 1 |",
        f"| held-out loss | {metrics['eval_loss']:.4f} |",
        "consent",
        "Licence:** unknown",
    ):
        assert expected in card.content, expected


def test_the_card_contains_no_path_and_no_speaker(folder, pushed):
    card = (folder / "voice" / "README.md").read_text()
    for secret in (str(folder), str(folder.parent), "/", "Jane"):
        if secret == "/":
            assert not [word for word in card.split() if word.strip("`\"'(").startswith(("/", "~"))]
        else:
            assert secret not in card


def test_a_merged_folder_has_a_card_of_its_own(folder, pushed, tmp_path):
    adapter = shutil.copytree(folder / "voice", tmp_path / "voice")
    card = adapter / "README.md"
    card.write_text(card.read_text().replace("> *(how and when", "> They signed.\n> *(how and when"))
    run("merge", str(adapter), "-o", str(tmp_path / "merged"))
    path = tmp_path / "merged" / "README.md"
    metadata = metadata_load(path)
    assert metadata["library_name"] == "transformers"
    assert metadata["base_model_relation"] == "finetune"
    assert find_metadata_problems(path.read_text()) == []
    assert "| `adapter.r` | 4 |" in path.read_text()
    assert "> They signed." in path.read_text()
    assert (tmp_path / "merged" / "samples" / "step-2" / "0000.wav").is_file()


@pytest.mark.parametrize("with_base", [False, True])
def test_an_evaluation_is_in_the_card_the_page_and_the_merged_folder(
    folder, pushed, tmp_path, monkeypatch, capsys, with_base
):
    # The texts are "one", "one one" and "one one one".
    hears_one = Parrot(*["one"] * 3 * (1 + with_base))
    monkeypatch.setattr("higgs_trainer.evaluation.judging.load_recogniser", lambda *_, **__: hears_one)
    voice, merged = shutil.copytree(folder / "voice", tmp_path / "voice"), tmp_path / "merged"
    with chdir(folder):
        models = [str(folder / "model"), str(voice)] if with_base else [str(voice)]
        output = ["-o", str(voice / "evaluation")] if with_base else []
        options = ["--data", str(folder / "prepared"), "--no-quality", "--max-seconds", "0.4", "--json"]
        run("evaluate", *models, *options, *output)
        figures = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert figures == json.loads((voice / "evaluation" / "figures.json").read_text())
        run("card", str(voice))
        run("merge", str(voice), "-o", str(merged))
        of_merge = (merged / "README.md").read_text()
        run("card", str(merged))
    assert [model["role"] for model in figures["models"]] == ["before"] * with_base + ["after"]
    wer = figures["models"][-1]["wer"]
    # 3 of 6 words are missing. The second and third text are German, so their digits are not joined to one number.
    assert wer["value"] == pytest.approx(3 / 6)
    # Three sentences are too few for an interval.
    assert (wer["low"], wer["high"]) == (None, None)
    cell = f"| {wer['value']:.3f} |"
    of_voice, of_merged = ((one / "README.md").read_text() for one in (voice, merged))
    for card in (of_voice, of_merge, of_merged):
        assert cell in card
        assert ("| before |" in card) == with_base
        assert "| after |" in card
        assert "Not evaluated" not in card
        assert find_metadata_problems(card) == []
    note = "Measured with the adapter before it was merged. Merging rounded the weights once, to float32."
    assert note in of_merged
    assert note in of_merge
    assert note not in of_voice
    (result,) = (one for one in ModelCard(of_merged).data.eval_results if one.metric_type == "wer")
    assert result.metric_value == 0.5
    for one in (voice, merged):
        run("report", str(one), "-o", str(tmp_path / "page.html"))
        page = re.sub(r"\s+", " ", (tmp_path / "page.html").read_text())
        assert "<td>50.0%</td>" in page
        assert (note in page) == (one == merged)
        assert "heard correctly" in page


def test_the_local_hub_finds_wrong_metadata():
    wrong = "---\nlicense: other\nlanguage: [english]\nbase_model: /home/me/model\n---\n# x\n"
    assert len(find_metadata_problems(wrong)) == 3
