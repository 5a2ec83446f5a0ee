"""Uploads by the real huggingface_hub to a hub on loopback."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.hubs import REFUSING, UNRESOLVED, silent_hub
from tests.support.processes import PATIENCE
from tests.support.upload_hub import TOKEN, UploadHub, upload_hub
from tinkersmith.cli.models.export import export_command
from tinkersmith.errors import UserError
from tinkersmith.export.targets import hub as hub_module
from tinkersmith.export.targets.hub import (
    HubTarget,
    check_access,
    hub_target,
    push_folder,
    refuse_private_base,
)
from tinkersmith.export.targets.hub_card import hub_card
from tinkersmith.runs.trained_model import ModelReference
from tinkersmith.settings.reading import settings_from

TARGET = HubTarget("hf", "our-org/our-model")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    from huggingface_hub import close_session, constants

    # Large files then go by LFS; the protocol of Xet needs a store of its own behind the hub.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with upload_hub() as opened:
        monkeypatch.setenv("HF_ENDPOINT", opened.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield opened
        close_session()  # an upload limits how long the shared client waits


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text("# ours\n", encoding="utf-8")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    return folder


def reference() -> ModelReference:
    return ModelReference(
        name="ours",
        run=None,
        state_path="tinker://r/weights/last",
        sampler_path="tinker://r/sampler_weights/last",
        base_model="Qwen/Qwen3-8B",
        settings=settings_from({}),
    )


def test_an_export_is_sent_whole_to_a_private_repository(hub: UploadHub, export: Path):
    check_access(TARGET)
    address = push_folder(TARGET, export, "---\nlicense: unknown\n---\n# card\n")
    assert address == f"{hub.url}/our-org/our-model"
    [created] = hub.created
    assert created["name"] == "our-model" and created["organization"] == "our-org"
    assert created.get("private") is True or created.get("visibility") == "private"
    assert hub.files == {
        "README.md": b"---\nlicense: unknown\n---\n# card\n",
        "config.json": b"{}",
        "model.safetensors": b"weights" * 1000,
    }
    assert (export / "README.md").read_text() == "# ours\n"


def test_a_public_repository_is_public(hub: UploadHub, export: Path):
    push_folder(TARGET, export, "# card\n", public=True)
    [created] = hub.created
    assert created.get("private") is False or created.get("visibility") == "public"


def test_without_a_token_one_sentence_says_where_to_get_one(
    hub: UploadHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="needs a token that may write") as told:
        check_access(TARGET)
    assert f"{hub.url}/settings/tokens" in str(told.value)
    assert hub.asked == []


def test_a_wrong_token_is_told_before_the_export(hub: UploadHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "another-token")
    with pytest.raises(UserError, match=r"does not accept the token \(HTTP 401\)"):
        check_access(TARGET)


def test_a_missing_right_to_write_keeps_the_export(hub: UploadHub, export: Path):
    hub.refuses["/api/repos/create"] = 403
    with pytest.raises(UserError) as told:
        push_folder(TARGET, export, "# card\n")
    assert "The token may not write to hf:our-org/our-model (HTTP 403: no). Ask our-org" in str(
        told.value
    )
    assert f"The export stays in {export}; the same command with --force" in str(told.value)
    assert hub.files == {}


@pytest.mark.parametrize(
    ("place", "status", "sentence"),
    [
        ("/api/repos/create", 429, "takes no more requests for now (HTTP 429: the quota). Wait"),
        ("/api/repos/create", 500, "failed (HTTP 500: the quota). Try again later."),
        ("/preupload/", 404, "The token may not write to hf:our-org/our-model (HTTP 404"),
        ("/commit/", 409, "changed by somebody else at the same time (HTTP 409: the quota)"),
        ("/commit/", 413, "does not take files of this size (HTTP 413: the quota)"),
        ("PUT", 413, "does not take files of this size (HTTP 413: the quota)"),
        ("/api/validate-yaml", 400, "did not take hf:our-org/our-model (HTTP 400: the quota)."),
    ],
)
def test_a_refusal_says_what_it_means_and_what_the_hub_says(
    hub: UploadHub, export: Path, place: str, status: int, sentence: str
):
    hub.refuses[place], hub.words = status, "the quota"
    with pytest.raises(UserError) as told:
        push_folder(TARGET, export, "---\nlicense: unknown\n---\n# card\n")
    assert sentence in str(told.value)
    assert "http" not in str(told.value).replace(hub.url, "")  # no address of a page about HTTP
    assert hub.files == {}


def test_a_page_in_place_of_an_answer_and_a_cut_connection_are_told_apart(
    hub: UploadHub, export: Path
):
    hub.pages = "/api/repos/create"
    with pytest.raises(UserError, match=r"something that is no answer of a hub.*wants a login"):
        push_folder(TARGET, export, "# card\n")
    hub.pages = "whoami"
    with pytest.raises(UserError, match=r"something that is no answer of a hub.*wants a login"):
        check_access(TARGET)
    hub.pages, hub.cuts = "", "/commit/"
    with pytest.raises(UserError, match=r"is not reached .*Check the network"):
        push_folder(TARGET, export, "# card\n")
    hub.cuts, hub.refuses["whoami"] = "", 404
    with pytest.raises(UserError, match=r"does not say whose the token is .*Check HF_ENDPOINT"):
        check_access(TARGET)


def test_a_hub_that_falls_silent_during_an_upload_is_given_up(
    hub: UploadHub, export: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hub_module, "SILENT_FOR", 0.3)
    hub.delay = 2.0
    with pytest.raises(UserError, match=r"is not reached .*the same command with --force"):
        push_folder(TARGET, export, "# card\n")


def test_a_token_that_cannot_write_is_told_before_the_export(
    hub: UploadHub, monkeypatch: pytest.MonkeyPatch
):
    check_access(TARGET)
    hub.role = "read"
    with pytest.raises(UserError, match="The token may only read"):
        check_access(TARGET)
    monkeypatch.setenv("HF_TOKEN", "令牌")
    with pytest.raises(UserError, match="HF_TOKEN has characters that no token has"):
        check_access(TARGET)


@pytest.mark.parametrize("address", ["ftp://x", "localhost:99", "http://", "http://me:pass@x"])
def test_what_is_no_address_of_a_hub_is_named_without_its_password(
    address: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match="HF_ENDPOINT is no address of a hub") as told:
        check_access(TARGET)
    assert "me:pass" not in str(told.value)


@pytest.mark.parametrize("address", [UNRESOLVED, REFUSING])
def test_a_hub_that_is_not_reached_is_one_sentence(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub_module, "ANSWER_WITHIN", PATIENCE)
    with pytest.raises(UserError) as told:
        check_access(TARGET)
    assert str(told.value).startswith(f"The hub at {address} ")
    assert "nothing can be sent to hf:our-org/our-model. Check the network." in str(told.value)


def test_a_silent_hub_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub_module, "ANSWER_WITHIN", 1.0)
    with silent_hub() as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(UserError, match="nothing arrived for 1 s"):
            check_access(TARGET)


def test_targets_have_one_form():
    assert hub_target("hf:a/b.c-1") == HubTarget("hf", "a/b.c-1")
    assert hub_target("ms:a/b") == HubTarget("ms", "a/b")
    for wrong in ("a/b", "hf:a", "gh:a/b", "hf:a/b/c", "hf:/b"):
        with pytest.raises(UserError, match="names no repository"):
            hub_target(wrong)


def test_modelscope_needs_its_package_or_a_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    with pytest.raises(UserError, match=r"pip install modelscope|needs a token"):
        check_access(HubTarget("ms", "a/b"))


def test_an_adapter_on_a_folder_of_this_machine_is_not_sent(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="nobody else can load it"):
        refuse_private_base(TARGET, str(tmp_path))
    refuse_private_base(TARGET, "Qwen/Qwen3-8B")


def test_options_of_an_upload_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    for options, words in (
        (["--public"], "--public has an effect only with --push"),
        (["--push", "hf:a/b", "--no-verify"], "--push sends only what was verified"),
        (["--push", "a/b"], "names no repository"),
    ):
        assert export_command(options, folder=tmp_path) == 1
        assert words in capsys.readouterr().err


def test_the_card_has_metadata_and_the_scores_of_this_model_only(export: Path, tmp_path: Path):
    results = tmp_path / "evaluation_results.json"
    metric = {"rate": 0.95, "interval_95": [0.888, 0.978]}
    scored = {
        "model_path": "tinker://r/sampler_weights/last",
        "counts": {"evaluated": 100},
        "metrics": {"final_answer": metric},
        "base": {"metrics": {"final_answer": {"rate": 0.1, "interval_95": [0.05, 0.2]}}},
    }
    results.write_text(json.dumps(scored))
    text = hub_card(reference(), export, TARGET.repository, "all tensors", results)
    _, head, body = text.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["base_model"] == "Qwen/Qwen3-8B"
    assert data["license"] == "unknown"
    assert data["library_name"] == "transformers"
    assert body.strip().startswith("# ours")
    assert "| final answer right | 95.0% (88.8% to 97.8%) | 10.0% (5.0% to 20.0%) |" in body
    assert "Verified before the upload: all tensors" in body
    assert "Unknown: the licence" in body
    results.write_text(json.dumps({**scored, "model_path": "tinker://other/sampler_weights/x"}))
    assert "## Scores" not in hub_card(reference(), export, TARGET.repository, "", results)
