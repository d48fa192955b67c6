"""Damaged models and adapters are refused by everything that loads one, with the name of the file or of the weight."""

import errno
import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.demo.blank_model import write_blank_model
from higgs_trainer.errors import CheckpointError
from higgs_trainer.model import loading, weight_files
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import HIGGS_AUDIO_V2
from higgs_trainer.model.loading import load_checkpoint, load_trained
from higgs_trainer.model.model_files import fingerprint_model, write_model_checksums
from higgs_trainer.sharing.merging import merge_adapter
from higgs_trainer.speech.speech_model import load_speech_model
from higgs_trainer.tensors import list_not_finite

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2}
WEIGHTS = {"base": "model.safetensors", "adapter": "adapter_model.safetensors"}
CONFIG = {"base": "config.json", "adapter": "adapter_config.json"}
TENSOR = {
    "base": "model.layers.0.self_attn.q_proj.weight",
    "adapter": "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    codec = MelCodec.fit([torch.randn(24_000) * 0.1], codebook_size=8, seed=0)
    write_blank_model(folder / "base", codec, seed=0, **SIZES)
    adapted = add_lora(load_checkpoint(folder / "base").model, HIGGS_AUDIO_V2, target_modules=["q_proj"], r=4)
    adapted.peft_config["default"].base_model_name_or_path = "BASE"
    adapted.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def folders(originals, tmp_path):
    """Copies of both folders, without checksums."""
    for name in ("base", "adapter"):
        shutil.copytree(originals / name, tmp_path / name)
    edit_json(tmp_path / "adapter" / CONFIG["adapter"], base_model_name_or_path=str(tmp_path / "base"))
    return tmp_path


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def replace(value):
    """Return a change of the weights' file that replaces the tensor of its kind by ``value`` of it."""

    def change(path):
        kind = "adapter" if path.name == WEIGHTS["adapter"] else "base"
        edit_weights(path, lambda weights: weights.update({TENSOR[kind]: value(weights[TENSOR[kind]])}))

    return change


def fill(value):
    def set_last(weight):
        weight[-1, -1] = value
        return weight

    return replace(set_last)


def write_header(header, content=b"", length=None):
    def change(path):
        encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + content)

    return change


def write_pickle(path):
    path.unlink()
    path.with_name("adapter_model.bin" if "adapter" in path.name else "pytorch_model.bin").write_bytes(
        pickle.dumps({"weight": 3})
    )


def tensor(shape, begin, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


TWICE = b'{"a": %b, "a": %b}' % ((json.dumps(tensor([2], 0, 8)).encode(),) * 2)
WEIGHT_DAMAGES = {
    "deleted": (lambda path: path.unlink(), "has no weights: .* is missing"),
    "a pickle instead": (write_pickle, "bin, which is not loaded, because a pickle can run code"),
    "emptied": (lambda path: path.write_bytes(b""), "is damaged"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
    "a weight short": (lambda path: edit_weights(path, lambda w: w.pop(min(w))), "lacks"),
    "a weight too many": (
        lambda path: edit_weights(path, lambda w: w.update(more=torch.zeros(1))),
        "does not have: more",
    ),
    "another shape": (replace(lambda w: w.flatten()), "instead of"),
    "another size": (replace(lambda w: w[:-1].clone()), "instead of"),
    "integers": (replace(lambda w: w.to(torch.int32)), "q_proj.* I32"),
    "NaN": (fill(float("nan")), "not finite.*q_proj"),
    "infinity": (fill(float("-inf")), "not finite.*q_proj"),
    "beyond float32": (replace(lambda w: w.double() * 1e300), "not finite.*q_proj"),
    "a huge header": (
        write_header(b"{}", length=2**62),
        "its header would have 4,611,686,018,427,387,904 bytes",
    ),
    "a header of other text": (write_header(b"hello"), "is damaged"),
    "a deep header": (write_header(b"[" * 100_000), "is damaged"),
    "the same name twice": (write_header(TWICE, bytes(8)), "contains 'a' twice"),
    "overlapping": (write_header({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)), "is damaged"),
    "an absurd shape": (write_header({"a": tensor([2**40, 2**40], 0, 8)}, bytes(8)), "is damaged"),
    "a negative shape": (write_header({"a": tensor([-2], 0, 8)}, bytes(8)), "is damaged"),
}
CONFIG_DAMAGES = {
    "cut": (lambda path: path.write_text(path.read_text()[:-9]), "is damaged"),
    "emptied": (lambda path: path.write_text(""), "is damaged"),
    "a list": (lambda path: path.write_text("[]"), "is damaged|cannot be loaded"),
    "not UTF-8": (lambda path: path.write_bytes(b"\xff\xfe"), "is damaged"),
}


def check_refused(load, message):
    with pytest.raises(CheckpointError, match=message) as raised:
        load()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("damage", WEIGHT_DAMAGES)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_damaged_weights_are_refused(folders, kind, damage):
    change, message = WEIGHT_DAMAGES[damage]
    change(folders / kind / WEIGHTS[kind])
    check_refused(lambda: load_trained(folders / kind), message)


@pytest.mark.parametrize("damage", CONFIG_DAMAGES)
@pytest.mark.parametrize("kind", CONFIG)
def test_a_damaged_configuration_is_refused(folders, kind, damage):
    change, message = CONFIG_DAMAGES[damage]
    change(folders / kind / CONFIG[kind])
    check_refused(lambda: load_trained(folders / kind), message)


CONFIG_VALUES = {
    "a negative size": ({"hidden_size": -1}, "cannot be loaded"),
    "a text for a number": ({"hidden_size": "32"}, "cannot be loaded"),
    "no heads": ({"num_attention_heads": 0}, "cannot be loaded"),
    "a size of 1 TB": ({"intermediate_size": 2**38}, "intermediate_size in config.json is 274877906944"),
    "a number that no float can hold": (
        {"intermediate_size": 10**400},
        "intermediate_size in config.json is 1000",
    ),
    "layers without end": (
        {"num_hidden_layers": 2**31 - 1},
        "num_hidden_layers in config.json is 2,147,483,647",
    ),
    "more layers than weights fill": ({"num_hidden_layers": 18}, "lacks most of the weights"),
    "labels without end": ({"num_labels": 2**31 - 1}, "num_labels in config.json is 2,147,483,647"),
    "NaN": ({"rms_norm_eps": float("nan")}, "rms_norm_eps in config.json is nan"),
    "positions without a scale": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
        "rope_theta in config.json is 0, not above 0",
    ),
    "an encoder": ({"is_encoder_decoder": True}, "is_encoder_decoder in config.json must be false"),
    "a padding token outside": ({"pad_token_id": 10**6}, "cannot be loaded"),
    "no padding token": ({"pad_token_id": None}, "pad_token_id in config.json is None, not the id of"),
    "several ends": ({"eos_token_id": [3]}, "eos_token_id in config.json is \\[3\\], not the id of"),
    "a negative token": ({"audio_token_id": -5}, "the audio token in config.json is -5, not the id of"),
    "a negative code": ({"audio_stream_bos_id": -5}, "the stream tokens in config.json are -5 and"),
}


@pytest.mark.parametrize("damage", CONFIG_VALUES)
def test_a_wrong_value_in_the_configuration_of_a_model_is_refused_before_memory_is_taken(folders, damage):
    values, message = CONFIG_VALUES[damage]
    edit_json(folders / "base" / "config.json", **values)
    check_refused(lambda: load_checkpoint(folders / "base"), message)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_refused(folders, content):
    (folders / "base" / "tokenizer.json").write_text(content)
    check_refused(lambda: load_checkpoint(folders / "base"), "tokenizer.* (is damaged|cannot be loaded)")


ADAPTER_CONFIGS = {
    "another rank": ({"r": 3}, "of another shape than the model"),
    "another target": ({"target_modules": ["k_proj"]}, "lacks"),
    "no such target": ({"target_modules": ["a"]}, "does not fit the base"),
    "another method": ({"peft_type": "a"}, "does not fit the base"),
    "a rank of another type": ({"r": "4"}, "does not fit the base"),
    "no base": ({"base_model_name_or_path": None}, "Name the base model"),
    "a base that is a number": ({"base_model_name_or_path": 3}, "Name the base model"),
}


@pytest.mark.parametrize("edit", ADAPTER_CONFIGS)
def test_an_adapter_whose_configuration_does_not_fit_is_refused(folders, edit):
    values, message = ADAPTER_CONFIGS[edit]
    edit_json(folders / "adapter" / CONFIG["adapter"], **values)
    check_refused(lambda: load_trained(folders / "adapter"), message)


READERS = {
    "generate and evaluate": lambda folders: load_speech_model(folders / "adapter", device="cpu"),
    "merge": lambda folders: merge_adapter(folders / "adapter", folders / "merged"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_damaged_weights_and_changed_files(folders, reader, kind):
    write_model_checksums(folders / kind)
    path = folders / kind / WEIGHTS[kind]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    check_refused(lambda: READERS[reader](folders), f"{WEIGHTS[kind]} has changed since it was written")
    (folders / kind / "checksums.json").unlink()
    fill(float("nan"))(path)
    check_refused(lambda: READERS[reader](folders), "not finite")
    assert not (folders / "merged").exists()


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "codec/codec_config.json"]
)
def test_a_bit_is_flipped_in_another_file_of_a_model(folders, name):
    write_model_checksums(folders / "base")
    assert load_checkpoint(folders / "base")
    path = folders / "base" / name
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    check_refused(lambda: load_checkpoint(folders / "base"), f"{name} has changed since it was written")


def test_a_file_that_would_change_a_model_may_not_be_added(folders):
    write_model_checksums(folders / "base")
    (folders / "base" / "added_tokens.json").write_text("{}")
    check_refused(lambda: load_checkpoint(folders / "base"), "added_tokens.json was added")


def test_files_of_the_run_may_change_in_the_folder_of_its_adapter(folders):
    (folders / "adapter" / "metrics.json").write_text("{}")
    write_model_checksums(folders / "adapter")
    (folders / "adapter" / "metrics.json").write_text('{"loss": 3}')
    (folders / "adapter" / "README.md").write_text("another card")
    (folders / "adapter" / "environment.json").write_text("{}")
    assert load_trained(folders / "adapter")


def test_an_adapter_in_the_folder_of_a_model_is_refused(folders):
    shutil.copy(folders / "adapter" / "adapter_config.json", folders / "base")
    check_refused(lambda: load_checkpoint(folders / "base"), "contains an adapter .* not a model")


SHARD_DAMAGES = {
    "index cut": (lambda folder: (folder / INDEX).write_text("{"), "index.json is damaged"),
    "index without a map": (lambda folder: (folder / INDEX).write_text("{}"), "index.json is damaged"),
    "map of numbers": (
        lambda folder: edit_json(folder / INDEX, weight_map={"a": 3}),
        "index.json is damaged",
    ),
    "map leads out": (
        lambda folder: edit_json(folder / INDEX, weight_map={"a": "../a"}),
        "outside the folder",
    ),
    "shard deleted": (lambda folder: max(folder.glob("model-*")).unlink(), "is missing, but .* lists it"),
    "shard twice": (
        lambda folder: shutil.copy(min(folder.glob("model-*")), max(folder.glob("model-*"))),
        "also contains",
    ),
}
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("damage", SHARD_DAMAGES)
def test_damaged_shards_are_refused(folders, damage):
    model = load_checkpoint(folders / "base").model
    (folders / "base" / "model.safetensors").unlink()
    model.save_pretrained(folders / "base", max_shard_size="60KB")
    change, message = SHARD_DAMAGES[damage]
    change(folders / "base")
    check_refused(lambda: load_checkpoint(folders / "base"), message)


def test_the_fingerprint_of_a_model_does_not_depend_on_its_checksums_or_its_run(folders):
    base = folders / "base"
    before = fingerprint_model(base)
    write_model_checksums(base)
    (base / "metrics.json").write_text("{}")
    assert fingerprint_model(base) == before
    edit_json(base / "generation_config.json", top_k=3)
    assert fingerprint_model(base) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(dtype, value):
    weight = torch.linspace(-3, 3, 1000).to(dtype)
    weights = {"a": weight, "empty": weight[:0], "integers": torch.arange(3)}
    assert list_not_finite(weights) == []
    for place in (0, 517, 999):
        spoilt = weight.clone()
        spoilt[place] = value
        assert list_not_finite(weights | {"b": spoilt}) == ["b"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "codec/a.json"])
@pytest.mark.parametrize("kind", ["a pipe", "a device", "more than"])
def test_what_would_block_or_never_end_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(5 * 2**30)
    with pytest.raises(CheckpointError, match=f"{path.name} (is|has) {kind}"):
        load_checkpoint(tmp_path)


def test_an_exhausted_machine_is_not_called_a_damaged_file(originals):
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    file = originals / "base" / "model.safetensors"
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in (0, 1):
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe + more, hard))
        try:
            with pytest.raises(OSError, match="Too many open files") as caught:
                weight_files.read_headers([file])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.errno == errno.EMFILE


def test_a_file_that_only_safetensors_cannot_open_is_not_blamed_on_the_number_of_open_files(
    originals, monkeypatch
):
    def refuse(path, **_):
        raise FileNotFoundError(f"No such file or directory: {path}")

    monkeypatch.setattr(weight_files, "safe_open", refuse)
    with pytest.raises(FileNotFoundError, match="No such file"):
        load_checkpoint(originals / "base")


@pytest.mark.parametrize(
    "place", ["HiggsAudioV2ForConditionalGeneration.from_pretrained", "AutoTokenizer.from_pretrained"]
)
def test_exhausted_memory_is_not_called_a_mistake_in_a_model(originals, monkeypatch, place):
    def refuse(*_, **__):
        raise MemoryError

    name, method = place.split(".")
    monkeypatch.setattr(getattr(transformers, name), method, refuse)
    with pytest.raises(MemoryError):
        load_checkpoint(originals / "base")


def test_a_mistake_of_this_package_is_not_called_one_in_a_model(originals, monkeypatch):
    monkeypatch.setattr(loading, "_check_stored", lambda *_: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        load_checkpoint(originals / "base")
