"""Write tests/golden/prompts/ with transformers' own processor and a chat template, from the repository's root."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, "tests")

from conversations import TARGET_FRAMES, TASKS, CountingCodec, build_processor, demo_tokenizer, process
from higgs_trainer.model.prompt import build_messages

TARGET_LINE = "--- the target"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chat-template", type=Path, required=True)
    template = parser.parse_args().chat_template.read_text(encoding="utf-8")
    processor = build_processor(demo_tokenizer(), CountingCodec(), chat_template=template)
    for task, (text, context) in TASKS.items():
        messages = build_messages(text, context)
        frames = [len(clip.codes_FK) for clip in context.clips]
        prompt = process(processor, messages, frames, add_generation_prompt=True)["input_ids"][0]
        target = {"role": "assistant", "content": [{"type": "audio"}]}
        whole = process(processor, [*messages, target], [*frames, TARGET_FRAMES])["input_ids"][0]
        assert whole[: len(prompt)].tolist() == prompt.tolist()
        tokens = processor.tokenizer.convert_ids_to_tokens(whole)
        lines = [f"{id_:4} {token}" for id_, token in zip(whole.tolist(), tokens, strict=True)]
        lines.insert(len(prompt), TARGET_LINE)
        path = Path("tests/golden/prompts") / f"{task.replace(' ', '_')}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
