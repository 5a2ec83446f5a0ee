"""Export through the SDK from a real engine, loaded again by plain transformers and peft."""

import errno
import json
import os
import shutil
import warnings
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tinker
import torch
from huggingface_hub import constants
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.connections import bare_connection
from tests.support.damaged_models import in_two_shards
from tests.support.engine import KEY, datum, running_engine
from tests.support.http_server import http_server
from tests.support.hubs import hub_with
from tests.support.run_folders import run_of_settings
from tests.support.small_run import SmallRun, small_run
from tests.support.tiny_models import make_tiny_model
from tinkersmith.cli.models.export import export_command
from tinkersmith.data.samples import Source, alpaca_sample
from tinkersmith.errors import UserError
from tinkersmith.export import export as whole_export
from tinkersmith.export import merge as merged_files
from tinkersmith.export import peft_files as adapter_files
from tinkersmith.export.download import _fetch
from tinkersmith.export.export import _stop_at_end_token, export_model
from tinkersmith.export.targets.folder import check_export_folder
from tinkersmith.service.connection import open_service
from tinkersmith.settings.reading import settings_from
from tinkersmith.text.jinja_template import chat_template_of
from tinkersmith.text.templates import choose_template, template_from_json
from tinkersmith.text.tokenizer import load_tokenizer

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("kept_engines")]

PROMPT = "Instruction: Add.\nInput: 41 + 41\nResponse:\n"


@pytest.fixture(scope="module")
def small() -> SmallRun:
    torch.set_num_threads(2)
    return small_run()


@pytest.fixture(scope="module")
def adapter(small: SmallRun) -> tuple[Path, str]:
    said: list[str] = []
    out = small.folder / "adapter"
    export_model(small.settings, small.sampler_path, out, say=said.append)
    return out, "\n".join(said)


@pytest.fixture(scope="module")
def merged(small: SmallRun) -> tuple[Path, str]:
    said: list[str] = []
    out = small.folder / "merged"
    export_model(small.settings, small.state_path, out, merged=True, say=said.append)
    return out, "\n".join(said)


def load_adapter(folder: Path, base: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, folder).eval()


def test_an_adapter_export_is_complete_and_verified(small: SmallRun, adapter: tuple[Path, str]):
    folder, said = adapter
    assert {file.name for file in folder.iterdir()} == {
        *("adapter_model.safetensors", "adapter_config.json", "README.md"),
        *("prompt_template.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"),
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((small.folder / "base").resolve())
    assert config["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert (config["r"], config["lora_alpha"]) == (4, 32)
    assert "transformers + peft loaded all 28 tensors" in said
    assert "allowed: 0.0001" in said
    private = [file.name for file in folder.iterdir() if not file.stat().st_mode & 0o044]
    assert private == []


def test_a_merged_export_is_complete_and_verified(merged: tuple[Path, str]):
    folder, said = merged
    assert {file.name for file in folder.iterdir()} == {
        *("model.safetensors", "config.json", "generation_config.json", "README.md"),
        *("prompt_template.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"),
    }
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    assert "Verified: transformers loaded all" in said and "allowed: 0.0001" in said


def test_greedy_answers_are_those_of_generate_token_for_token(
    small: SmallRun, adapter: tuple[Path, str], merged: tuple[Path, str]
):
    import tinker

    tokenizer = AutoTokenizer.from_pretrained(adapter[0])
    prompts = [PROMPT.replace("41", str(n)) for n in range(36, 42)]
    with open_service(small.settings, base_model=small.run.base_model()) as service:
        client = service.create_sampling_client(small.sampler_path)
        params = tinker.SamplingParams(max_tokens=40, temperature=0)
        pending = [
            client.sample(tinker.ModelInput.from_ints(tokenizer(text)["input_ids"]), 1, params)
            for text in prompts
        ]
        ours = [service.wait(one, "sampling").sequences[0].tokens for one in pending]
    for model in (load_adapter(adapter[0], small.folder / "base"), _load(merged[0])):
        for text, tokens in zip(prompts, ours, strict=True):
            ids = tokenizer(text, return_tensors="pt")
            theirs = model.generate(**ids, max_new_tokens=40, do_sample=False)
            assert theirs[0, ids["input_ids"].shape[1] :].tolist() == list(tokens), text
    assert len({tuple(tokens) for tokens in ours}) > 1


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_the_template_travels_with_the_export(small: SmallRun, adapter: tuple[Path, str]):
    stored = json.loads((adapter[0] / "prompt_template.json").read_text())
    template = template_from_json(stored)
    assert template == small.run.template()
    tokenizer = AutoTokenizer.from_pretrained(adapter[0])
    sample = alpaca_sample(
        instruction="2 + 2?", input="", output="4", system="Add.", source=Source("", 1)
    )
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 2?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert (
        text == template.render_prompt(sample) == "System: Add.\nInstruction: 2 + 2?\nResponse:\n"
    )


@pytest.mark.parametrize(
    "setting",
    [
        "instruction",
        "alpaca",
        "chat",
        "Q: {instruction}\nA: ",
        "{system}\n{instruction} {input} =>",
        "a {{b}} \"' \\n {instruction}",
        "Q: {instruction}\n{input}",
    ],
)
def test_every_template_has_a_chat_template_that_writes_the_same(small: SmallRun, setting: str):
    tokenizer = load_tokenizer(small.folder / "base")
    assert chat_template_of(choose_template(setting, tokenizer, "x")) is not None


def test_the_readme_shows_the_prompt_with_its_input(adapter: tuple[Path, str]):
    card = (adapter[0] / "README.md").read_text()
    assert repr("Instruction: {instruction}\nInput: {input}\nResponse:\n") in card
    assert repr("Instruction: {instruction}\nResponse:\n") not in card  # all samples had an input


def test_the_server_is_named_and_what_is_set_in_vain(
    small: SmallRun, tmp_path: Path, monkeypatch: Any
):
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TINKER_API_KEY", "tml-not-shown")
    said: list[str] = []
    asked = small.settings.model_copy(update={"backend": "auto"})
    export_model(asked, out=tmp_path / "new", verify=False, say=said.append)
    text = "\n".join(said)
    assert "Server: the engine on this machine" in text
    assert "TINKER_BASE_URL and TINKER_API_KEY are set and not used: the run was trained on" in text
    assert "not-shown" not in text


def test_a_missing_peft_is_said_before_anything_is_exported(
    small: SmallRun, tmp_path: Path, monkeypatch: Any
):
    monkeypatch.setattr(whole_export, "find_spec", lambda name: None)
    said: list[str] = []
    export_model(small.settings, out=tmp_path / "new", say=said.append)
    place = {line.split(" ")[0]: number for number, line in enumerate(said)}
    assert "will not be verified: peft is not installed (pip install peft)" in said[place["The"]]
    assert place["The"] < place["Wrote"]
    assert "Verified" not in "".join(said)
    monkeypatch.setattr(whole_export, "open_service", None)  # nothing may be opened
    with pytest.raises(UserError, match=r"--verify: peft is not installed .* --no-verify"):
        export_model(small.settings, out=tmp_path / "other", verify=True, say=said.append)
    assert not (tmp_path / "other").exists()
    # A merged model needs no peft.
    out = tmp_path / "other"
    with pytest.raises(TypeError):  # open_service is None
        export_model(small.settings, out=out, merged=True, verify=True, say=said.append)


def test_an_adapter_of_a_base_whose_weights_are_elsewhere_is_written_and_not_verified(
    small: SmallRun, adapter: tuple[Path, str], tmp_path: Path
):
    base = Path(small.run.base_model())
    light = tmp_path / "light"  # as a large base's small files are copied from a hub
    weights = load_file(base / "model.safetensors")
    shutil.copytree(base, light, ignore=shutil.ignore_patterns("*.safetensors"))
    index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (light / "model.safetensors.index.json").write_text(json.dumps(index))
    said: list[str] = []
    out = tmp_path / "new"
    export_model(small.settings, out=out, base_folder=light, say=said.append)
    text = "\n".join(said)
    assert f"will not be verified: the weights of the base model are not in {light}" in text
    assert "Verified" not in text
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (adapter[0] / name).read_bytes()
    with pytest.raises(UserError, match="--verify: the weights of the base model are not in"):
        export_model(
            small.settings, out=tmp_path / "b", base_folder=light, verify=True, say=said.append
        )
    assert not (tmp_path / "b").exists()


def test_the_newest_run_without_a_checkpoint_is_an_error(
    small: SmallRun, tmp_path: Path, capsys: Any
):
    runs = tmp_path / "runs"
    shutil.copytree(small.run.path, runs / small.run.path.name)
    newer = run_of_settings(runs / "newer-29990101-000000")
    os.utime(newer.path, (2e9, 2e9))
    sets = ["--set", f"OUTPUT_DIR={json.dumps(str(runs))}"]
    assert export_command([*sets, "--out", str(tmp_path / "new")]) == 1
    said = capsys.readouterr().err
    assert f"The newest run in {runs}, newer-29990101-000000, has no checkpoint" in said
    assert f"{small.run.name} (" in said and small.sampler_path in said
    assert not (tmp_path / "new").exists()


def test_the_readme_s_code_runs(adapter: tuple[Path, str], monkeypatch: Any, capsys: Any):
    monkeypatch.chdir(adapter[0])
    code = Path("README.md").read_text().partition("```python\n")[2].partition("```")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code.replace("max_new_tokens=256", "max_new_tokens=4"), {})
    assert capsys.readouterr().out


def test_an_export_there_is_replaced_only_by_force(small: SmallRun, adapter: tuple[Path, str]):
    before = (adapter[0] / "adapter_model.safetensors").read_bytes()
    (adapter[0] / "README.md").write_text("old")
    with pytest.raises(UserError, match="--force"):
        export_model(small.settings, out=adapter[0])
    export_model(small.settings, out=adapter[0], force=True, say=lambda _: None)
    assert (adapter[0] / "README.md").read_text() != "old"
    assert (adapter[0] / "adapter_model.safetensors").read_bytes() == before


def test_force_does_not_replace_what_is_no_export(small: SmallRun, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="does not look like an export"):
        export_model(small.settings, out=tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"


def test_an_export_to_a_link_is_refused_at_once(tmp_path: Path):
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"dangling is a link to nowhere, and links are not"):
        check_export_folder(tmp_path / "dangling", force=False)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    with pytest.raises(UserError, match="exists already"):
        check_export_folder(tmp_path / "link", force=False)
    with pytest.raises(UserError, match="link is a link to there"):
        check_export_folder(tmp_path / "link", force=True)
    check_export_folder(tmp_path / "link" / "export", force=False)


@pytest.mark.parametrize("merged", [True, False])
def test_damaged_weights_are_told_before_the_server_is_asked(
    small: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
):
    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("the server was asked")

    monkeypatch.setattr(whole_export, "open_service", fails)
    base = in_two_shards(make_tiny_model(tmp_path / "base"))
    shard = sorted(base.glob("model-0*.safetensors"))[0]
    whole = shard.read_bytes()

    def told() -> str:
        with pytest.raises(UserError) as caught:
            export_model(
                small.settings, small.sampler_path, tmp_path / "x", merged, base_folder=base
            )
        return str(caught.value)

    shard.write_bytes(whole[: len(whole) // 2])
    assert f"{shard} is damaged" in told()
    if merged:
        shard.unlink()
        assert f"there is no {shard.name}" in told()


@pytest.mark.parametrize("merge", [False, True])
def test_a_full_disk_leaves_nothing_behind(
    small: SmallRun, tmp_path: Path, monkeypatch: Any, merge: bool
):
    written = adapter_files.write_tensors

    def fails_in_the_middle(path: Path, tensors: Any) -> None:
        written(path, tensors)
        with path.open("r+b") as file:
            file.truncate(100)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(adapter_files, "write_tensors", fails_in_the_middle)
    monkeypatch.setattr(merged_files, "write_tensors", fails_in_the_middle)
    with pytest.raises(UserError, match="No space left on device") as caught:
        export_model(small.settings, out=tmp_path / "new", merged=merge, say=lambda _: None)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("merge", [False, True])
def test_an_interruption_leaves_nothing_behind_and_is_told(
    small: SmallRun, tmp_path: Path, monkeypatch: Any, merge: bool
):
    written = adapter_files.write_tensors

    def interrupted(path: Path, tensors: Any) -> None:
        written(path, tensors)
        raise KeyboardInterrupt

    monkeypatch.setattr(adapter_files, "write_tensors", interrupted)
    monkeypatch.setattr(merged_files, "write_tensors", interrupted)
    said: list[str] = []
    out = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt):
        export_model(small.settings, out=out, merged=merge, say=said.append)
    assert said[-1] == f"Interrupted. {out} was not written, and nothing was left behind."
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_check_leaves_the_whole_export(
    small: SmallRun, tmp_path: Path, monkeypatch: Any
):
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_export, "verify_export", interrupted)
    said: list[str] = []
    out = tmp_path / "new"
    out.mkdir()  # an empty folder, which --force replaces
    with pytest.raises(KeyboardInterrupt):
        export_model(small.settings, out=out, force=True, say=said.append)
    assert said[-1] == f"Interrupted. {out} is complete, but was not verified."
    assert list(tmp_path.iterdir()) == [out] and (out / "README.md").is_file()


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("my-model", {}, "is not a path of trained weights"),
        ("tinker://nobody:train:0/weights/x", {}, "nobody"),
        ("", {"base_model": "Qwen/Qwen3-8B"}, "was trained on"),
        ("", {"base_folder": "/nowhere"}, "/nowhere"),
        ("", {"out": "/proc/nowhere/x"}, "cannot be written"),
        ("", {"out": f"{__file__}/x"}, "a part of its path is a file, not a folder"),
    ],
)
def test_a_mistake_is_one_sentence(
    small: SmallRun, tmp_path: Path, path: str, options: dict[str, Any], words: str
):
    with pytest.raises(UserError) as caught:
        export_model(small.settings, path, **{"out": tmp_path / "new", "say": len, **options})
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_another_base_model_is_refused(small: SmallRun, tmp_path: Path):
    from tests.support.tiny_models import make_tiny_model

    other = make_tiny_model(tmp_path / "other", hidden=48)
    with pytest.raises(UserError, match="Check that this is the model it was trained on"):
        export_model(small.settings, out=tmp_path / "new", base_folder=other, say=lambda _: None)
    assert not (tmp_path / "new").exists()


class _Server(BaseHTTPRequestHandler):
    """Promises 100 bytes, and sends as many as the path says, or hangs up; "bad" does all once."""

    faults: ClassVar[list[str]] = []  # before the first whole answer to "bad"

    def do_GET(self) -> None:
        if self.path == "/bad":
            self.path = self.faults.pop() if self.faults else "/100"
        if self.path == "/503":
            self.send_error(503)
            return
        if self.path == "/hang-up":
            self.connection.close()
            return
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"x" * int(self.path[1:]))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("100", None),
        ("60", "60 of 100 bytes"),
        ("hang-up", "could not be downloaded"),
        ("503", "503"),
    ],
)
def test_a_broken_download_is_told_and_loopback_needs_no_proxy(
    tmp_path: Path, monkeypatch: Any, path: str, words: str | None
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody there
    with http_server(_Server) as address:
        url = f"{address}/{path}"
        if words is None:
            _fetch(bare_connection(url), url, tmp_path / "file")
            assert (tmp_path / "file").read_bytes() == b"x" * 100
            return
        with pytest.raises(UserError, match=words):
            _fetch(bare_connection(url), url, tmp_path / "file")


def test_a_download_begins_again_until_it_is_whole(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(_Server, "faults", ["/503", "/60", "/hang-up"])
    with http_server(_Server) as address:
        url = f"{address}/bad"
        _fetch(bare_connection(url, patience=60), url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"x" * 100
    assert _Server.faults == []


def test_a_merged_model_stops_at_the_template_s_end_token(small: SmallRun, tmp_path: Path):
    tokenizer = load_tokenizer(small.folder / "base")
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": tokenizer.eos_id, "top_k": 5}))
    _stop_at_end_token(tmp_path, choose_template("instruction", tokenizer, "x"), tokenizer)
    assert json.loads(file.read_text())["eos_token_id"] == tokenizer.eos_id
    _stop_at_end_token(tmp_path, choose_template("chat", tokenizer, "x"), tokenizer)
    end = tokenizer.special_tokens["<|im_end|>"]
    assert json.loads(file.read_text()) == {"eos_token_id": [end, tokenizer.eos_id], "top_k": 5}


def test_no_temporary_copy_stays_on_the_server(small: SmallRun, adapter: tuple[Path, str]):
    with open_service(small.settings, base_model=small.run.base_model()) as service:
        found = service.wait(service.rest.list_user_checkpoints(), "listing").checkpoints
    assert {checkpoint.checkpoint_type for checkpoint in found} == {"training", "sampler"}


def test_the_command_prints_the_sentence_and_fails(capsys: Any, monkeypatch: Any, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert export_command(["--dtype", "float32"]) == 1
    assert "--merged" in capsys.readouterr().err
    assert export_command([]) == 1
    shown = capsys.readouterr()
    assert "tinkersmith train" in shown.err and shown.err.count("\n") == 1


def test_without_any_run_the_user_is_told_how_to_make_one(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"tinkersmith train --set OUTPUT_DIR="):
        export_model(settings_from({"OUTPUT_DIR": str(tmp_path)}))


def test_an_adapter_of_a_hub_model_in_one_file_is_exported_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an index, only the file itself names the layers."""
    name, model = "some-org/one-file", make_tiny_model(tmp_path / "model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    more = ("--base-model", f"{name}={model}")
    with running_engine(tmp_path / "engine", model, *more) as running, hub_with(name, model) as hub:
        for variable, value in (
            ("TINKER_BASE_URL", running.url),
            ("TINKER_API_KEY", KEY),
            ("HF_ENDPOINT", hub.url),
        ):
            monkeypatch.setenv(variable, value)
        with running.client() as service:
            client = service.create_lora_training_client(base_model=name, rank=2).result()
            client.forward_backward([datum([1, 2, 3])], "cross_entropy").result()
            client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
            path = client.save_state("trained").result().path
        said: list[str] = []
        settings = settings_from({"BACKEND": "tinker", "BASE_MODEL": name})
        out = tmp_path / "adapter"
        export_model(settings, path, out, base_model=name, say=said.append)
    assert (out / "adapter_model.safetensors").is_file()
    assert any("erified" in line for line in said), said
