"""The model card is built from the files in a folder."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from higgs_trainer.cli import main
from higgs_trainer.errors import UserError
from higgs_trainer.sharing.model_card import write_model_card
from hub import find_metadata_problems
from run_folders import write_evaluation_folder


def write_run(folder: Path, base: str) -> None:
    (folder / "recipe.yaml").write_text(f"model: {{name_or_path: {base}}}\n")
    (folder / "adapter_config.json").write_text("{}")
    scores = {"wer": {"value": 0.12345, "low": 0.1, "high": 0.2}, "similarity": {"value": 0.5}, "cer": None}
    models = [
        {"model": "/home/me/base", "role": "before", "clips": 2, **scores},
        {"model": "/home/me/run", "role": "after", "clips": 2, **scores},
        {"model": "/home/me/other", "role": None, "clips": 2, **scores},
    ]
    write_evaluation_folder(folder, models, [], note="Before merging.")


def test_a_base_on_the_hub_is_named_with_its_licence_and_scores_become_a_table(tmp_path):
    write_run(tmp_path, "bosonai/higgs-audio-v2-generation-3B-base")
    write_model_card(tmp_path, name="me/voice")
    text = (tmp_path / "README.md").read_text()
    data = ModelCard(text).data
    assert data.base_model == "bosonai/higgs-audio-v2-generation-3B-base"
    assert data.license == "other"
    assert data.license_link == "https://huggingface.co/bosonai/higgs-audio-v2-generation-3B-base"
    assert {(one.metric_type, one.metric_value) for one in data.eval_results} == {
        ("wer", 0.1235),
        ("similarity", 0.5),
    }
    assert "| after | 0.500 | 0.123 (0.100 to 0.200) | 2 |" in text
    assert "| other |" in text
    assert "/home" not in text
    assert "Before merging." in text
    assert "Not evaluated" not in text
    assert find_metadata_problems(text) == []


def test_the_licence_of_a_local_base_is_taken_from_its_card(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    write_run(run_folder, str(base))
    write_model_card(run_folder)
    card = ModelCard.load(run_folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.base_model is None
    assert str(tmp_path) not in card.content


@pytest.mark.parametrize("base", ["", "bosonai/higgs-audio-v2-generation-3B-base"])
def test_consent_and_licence_written_by_a_person_are_kept(tmp_path, capsys, base):
    write_run(tmp_path, base)
    write_model_card(tmp_path)
    first = (tmp_path / "README.md").read_text()
    note = "> They signed on paper in May.\n> The forms are with the studio."
    edited = first.replace("> *(how and when", f"{note}\n> *(how and when")
    lines = [line for line in edited.split("\n") if not line.startswith("license")]
    (tmp_path / "README.md").write_text("\n".join([lines[0], "license: cc-by-4.0", *lines[1:]]))
    with pytest.raises(SystemExit, match="0"):
        main(["card", str(tmp_path), "--name", "me/voice"])
    card = ModelCard.load(tmp_path / "README.md")
    assert note in card.content
    assert card.data.license == "cc-by-4.0"
    assert card.data.license_name is None
    assert "**Licence:** cc-by-4.0" in card.content
    assert "# me/voice" in card.content
    assert card.content.count("you say so here") == 1


@pytest.mark.parametrize("damage", [b"\xfc", b"\x00", b"---\na: [\n---\n", b"---\n- a\n---\n"])
def test_a_damaged_card_is_named_and_not_replaced(tmp_path, damage):
    write_run(tmp_path, "bosonai/higgs-audio-v2-generation-3B-base")
    (tmp_path / "README.md").write_bytes(damage)
    with pytest.raises(UserError, match=r"README\.md"):
        write_model_card(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == damage


def test_a_folder_without_recipe_and_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none of recipe\.yaml"):
        write_model_card(tmp_path)
    assert not list(Path(tmp_path).iterdir())
