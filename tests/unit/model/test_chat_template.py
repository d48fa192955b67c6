"""A prompt contains every text once and whole, whatever the chat template of a model folder does."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from higgs_trainer.dataset.context import Context, PromptClip
from higgs_trainer.errors import CheckpointError, UserError
from higgs_trainer.limits import LONGEST_TEXT
from higgs_trainer.model import chat_template
from higgs_trainer.model.prompt import _build_placeholders, encode_conversation, encode_prompt
from tiny import NUM_CODEBOOKS, draw_codes, tiny_tokenizer

CONTEXT = Context("a room", references=(PromptClip("one <x> & 'two'", draw_codes(3, seed=0)),))
TEXT = "three\nfour PlaceOfText1 {{ five }}"


@pytest.fixture(autouse=True)
def no_layout_is_remembered() -> None:
    chat_template._lay_out.cache_clear()


def encode(template: str | None, text: str = TEXT) -> list[int]:
    tokenizer = tiny_tokenizer()
    own = str(tokenizer.chat_template)
    tokenizer.chat_template = None if template is None else template.replace("OWN", own)
    return encode_prompt(tokenizer, text, CONTEXT, num_codebooks=NUM_CODEBOOKS).tolist()


@pytest.mark.parametrize("is_whole", [False, True])
def test_another_template_gives_what_transformers_renders(is_whole: bool) -> None:
    """The layout of a template that is not our own is read in a process; the result is that of transformers."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        f"{{# another #}}{tokenizer.chat_template}{{% generation %}}{{% endgeneration %}}"
    )
    if is_whole:
        ids = encode_conversation(tokenizer, TEXT, CONTEXT, 2, num_codebooks=NUM_CODEBOOKS).tolist()
    else:
        ids = encode_prompt(tokenizer, TEXT, CONTEXT, num_codebooks=NUM_CODEBOOKS).tolist()
    own = tiny_tokenizer()
    messages = [
        {"role": "system", "content": "Generate audio following instruction."},
        {"role": "scene", "content": "a room"},
        {"role": "user", "content": "one <x> & 'two'"},
        {"role": "assistant", "content": [{"type": "audio"}]},
        {"role": "user", "content": TEXT},
        *([{"role": "assistant", "content": [{"type": "audio"}]}] if is_whole else []),
    ]
    rendered = own.apply_chat_template(messages, tokenize=False, add_generation_prompt=not is_whole)
    first, *rest = rendered.split("<|AUDIO_OUT|>")
    expected = first + "".join(
        _build_placeholders(frames, NUM_CODEBOOKS) + part
        for frames, part in zip([3, 2][: 1 + is_whole], rest, strict=True)
    )
    assert ids == own(expected, add_special_tokens=False)["input_ids"]


LOSES = "does not lay out each of the 3 texts and 1 clips"
DEPENDS = "what it writes around the texts depends on the texts"
HOSTILE = {
    "no template": (None, "cannot be used: "),
    "broken syntax": ("{% for %}", "TemplateSyntaxError"),
    "an error": ("{{ raise_exception('no') }}", "TemplateError: no"),
    "an unknown variable": ("{{ x.y.z }}", "UndefinedError"),
    "ten gigabytes": ("{{ 'x' * 10**10 }}", "takes more than 512 MiB of memory"),
    "ten gigabytes by doubling": (
        "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "takes more than 512 MiB of memory",
    ),
    "ten gigabytes by a format": ("{{ '%10000000000d' % 1 }}", "takes more than 512 MiB of memory"),
    "an endless loop": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "takes more than 1 s of the CPU",
    ),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "a long output": (
        "{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}",
        "builds more than 1,000,000 characters",
    ),
    "a template of 2 MB": ("OWN" + "x" * 2_000_000, "has more than 1,000,000 characters"),
    "another text": ("{{ bos_token }}say this", LOSES),
    "the beginning of a text": ("{{ messages[1].content[0].text[:4] }}OWN", DEPENDS),
    "words for long texts": ("{{ 'x' if messages[1].content[0].text | length > 30 }}OWN", DEPENDS),
    "a text twice": ("OWN{{ messages[-1].content[0].text }}", LOSES),
    "a text in capitals": ("{{ messages[1].content[0].text | upper }}OWN", DEPENDS),
    "an import": ("{{ cycler.__init__.__globals__ }}", "SecurityError"),
}


@pytest.mark.parametrize(("template", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_cannot_be_used_is_refused(template: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=r"the chat template of .* Copy chat_template\.jinja") as caught:
        encode(template)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


CHANGED = {
    "lower case": ("text_of(turn.content)", "text_of(turn.content) | lower"),
    "escapes": ("text_of(turn.content)", "text_of(turn.content) | escape"),
    "one line": ("text_of(turn.content)", "text_of(turn.content) | replace('\\n', ' ')"),
    "the first words": ("text_of(turn.content)", "text_of(turn.content)[:4]"),
    "exchanged turns": ("for turn in turns.rest", "for turn in turns.rest[::-1]"),
    "no scene": ("scene_of(turns.rest[0].content)", "''"),
    "no clips": ("<|AUDIO_OUT|>", ""),
    "another beginning of what is generated": ("header('assistant') ~", "header('assistant!') ~"),
}


@pytest.mark.parametrize(("old", "new"), CHANGED.values(), ids=CHANGED)
def test_a_template_that_changes_texts_is_refused(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    assert str(tokenizer.chat_template).count(old) >= 1
    changed = str(tokenizer.chat_template).replace(old, new)
    # Rendering it here is faster than in a process.
    monkeypatch.setattr(chat_template, "_read_own_template", lambda: changed)
    with pytest.raises(CheckpointError, match=r"lay out each|does not begin with"):
        encode(changed)


def test_a_text_cannot_change_the_template() -> None:
    assert encode(
        "{% if 'four' in messages[-1].content[0].text %}{{ 'x' * 10**10 }}{% endif %}OWN"
    ) == encode("OWN")


def test_each_kind_of_conversation_is_laid_out_once() -> None:
    for number in range(20):
        encode("OWN", text=f"text {number}")
    assert chat_template._lay_out.cache_info().misses == 1


@pytest.mark.parametrize("text", ["a \ud800", "a\x07", "x" * 30_000, "[SPEAKER01] a", "a <|x|>", "</s> a"])
def test_a_text_that_cannot_be_in_a_prompt_is_refused(text: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["</s>"]})
    with pytest.raises(UserError, match=r"^the text .{1,120} (contains|has)"):
        encode_prompt(tokenizer, text, Context(), num_codebooks=NUM_CODEBOOKS)


def test_a_text_may_be_as_long_as_the_limit_and_no_longer() -> None:
    tokenizer = tiny_tokenizer()
    ids = encode_prompt(tokenizer, "x" * LONGEST_TEXT, Context(), num_codebooks=NUM_CODEBOOKS)
    assert tokenizer.decode(ids).count("x") >= LONGEST_TEXT
    for text, context in (
        ("x" * (LONGEST_TEXT + 1), Context()),
        ("a", Context("x" * (LONGEST_TEXT + 1))),
        ("a", Context(references=(PromptClip("x" * (LONGEST_TEXT + 1), draw_codes(3, seed=0)),))),
    ):
        with pytest.raises(UserError, match=f"has {LONGEST_TEXT + 1} characters, more than {LONGEST_TEXT}"):
            encode_prompt(tokenizer, text, context, num_codebooks=NUM_CODEBOOKS)


def test_the_process_does_not_import_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert encode("{# #}OWN") == encode("OWN")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_a_process_that_the_machine_kills_has_not_used_too_much_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel sends SIGKILL when the machine has no memory left, and SIGXCPU at the limit of the CPU."""
    killed = subprocess.CompletedProcess([], -signal.SIGKILL, b"", b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(MemoryError, match="killed: out of memory"):
        encode("OWN ")
