"""Our prompts, token by token, against golden files by transformers' processor (tests/golden/README.md)."""

from pathlib import Path

import pytest
import torch

from conversations import TARGET_FRAMES, TASKS, demo_tokenizer
from generation import generate_texts
from higgs_trainer.model.delay_pattern import apply_delay
from higgs_trainer.model.prompt import encode_conversation, encode_prompt
from tiny import NUM_CODEBOOKS, NUM_CODES, draw_codes, tiny_checkpoint, tiny_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "prompts"


@pytest.fixture(scope="module")
def tokenizer():
    return demo_tokenizer()


def read_golden(task: str) -> tuple[list[int], list[int]]:
    """Read the ids that generation gets, and the ids of the target that follow them in training."""
    text = (GOLDEN / f"{task.replace(' ', '_')}.txt").read_text(encoding="utf-8")
    prompt, target = text.split("--- the target\n")
    return ([int(line[:4]) for line in part.splitlines()] for part in (prompt, target))


def test_there_is_a_golden_file_for_each_task():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {task.replace(" ", "_") for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_training_and_generation_read_the_golden_tokens(tokenizer, task):
    text, context = TASKS[task]
    prompt, target = read_golden(task)
    assert encode_prompt(tokenizer, text, context, num_codebooks=NUM_CODEBOOKS).tolist() == prompt
    ids = encode_conversation(tokenizer, text, context, TARGET_FRAMES, num_codebooks=NUM_CODEBOOKS)
    assert ids.tolist() == prompt + target


@pytest.mark.parametrize("task", TASKS)
def test_generate_sends_the_golden_tokens_and_every_clip(tokenizer, task, monkeypatch):
    """Compare with what reaches ``generate`` of transformers."""
    text, context = TASKS[task]
    checkpoint, sent = tiny_checkpoint(tokenizer=tokenizer), {}

    said_FK = draw_codes(4, seed=4)

    def record(**inputs):
        """Return the columns of the prompt and then those of the generated clip, as transformers does."""
        sent.update(inputs)
        said = apply_delay(said_FK, begin_id=NUM_CODES, end_id=NUM_CODES + 1)[None]
        before = inputs.get("audio_input_ids", torch.empty(1, 0, NUM_CODEBOOKS, dtype=torch.long))
        return torch.cat([before, said], dim=1)

    monkeypatch.setattr(checkpoint.model, "generate", record)
    (spoken,) = generate_texts(checkpoint, [text], context=context)
    # Nothing of the context is in the generated clip.
    assert torch.equal(spoken.codes_FK, said_FK)
    prompt, _ = read_golden(task)
    assert sent["input_ids"][0].tolist() == prompt
    columns = [apply_delay(clip.codes_FK, begin_id=NUM_CODES, end_id=NUM_CODES + 1) for clip in context.clips]
    if columns:
        assert torch.equal(sent["audio_input_ids"][0], torch.cat(columns))
    else:
        assert "audio_input_ids" not in sent


def test_the_template_of_new_models_is_the_packaged_ones(tokenizer):
    assert tiny_tokenizer().chat_template == tokenizer.chat_template
