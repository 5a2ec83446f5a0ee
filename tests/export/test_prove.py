"""Exports against servers that serve them: stand-ins with faults, and our own `serve`."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.http_server import http_server
from tests.support.openai_servers import (
    LLAMA,
    OLLAMA,
    TRANSFORMERS,
    VLLM,
    StandIn,
    standing_in,
)
from tests.support.proved_exports import ProvedExport, make_proved_export
from tests.support.serving import serving
from tests.support.small_run import small_run
from tinkersmith.cli.models.export import export_command
from tinkersmith.errors import UserError
from tinkersmith.export.export import export_model
from tinkersmith.export.proof import prove
from tinkersmith.export.proof.compare import Proof
from tinkersmith.export.proof.prove import prove_export
from tinkersmith.export.proof.server import PLAIN_TEXT, TOKEN_IDS, connect
from tinkersmith.serving.models import models_to_serve

BOS = 257
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)
FULL = (VLLM, LLAMA)  # these give ids and log-probabilities
ALL = (*FULL, OLLAMA, TRANSFORMERS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ProvedExport:
    torch.set_num_threads(1)
    return make_proved_export(tmp_path_factory.mktemp("中文 and spaces"))


def stand_in(world: ProvedExport, program: str, **how: Any) -> StandIn:
    usual: dict[str, Any] = {
        "model": world.tuned,
        "chat_template": world.chat_template,
        "ends": frozenset({world.end}),
    }
    return StandIn(program, tokenizer=world.tokenizer, **{**usual, **how})


def proof_of(world: ProvedExport, server: StandIn, folder: Path | None = None, **how: Any) -> Proof:
    with standing_in(server) as url:
        return prove_export(url, folder or world.adapter, run=None, say=lambda _: None, **how)


def rows(proof: Proof) -> dict[tuple[str, str], tuple[int, int]]:
    return {(row.check, row.sent_as): (row.agree, row.of) for row in proof.rows}


# ---- servers that are right


@pytest.mark.parametrize("program", ALL)
def test_a_right_server_passes_in_every_form(world: ProvedExport, program: str) -> None:
    proof = proof_of(world, stand_in(world, program))
    assert proof.passed, proof.faults
    compared = rows(proof)
    sent = TOKEN_IDS if program in FULL else PLAIN_TEXT
    assert compared["Greedy answers", sent] == compared["Ends of answers", sent] == (3, 3)
    assert compared["Greedy answers", "chat messages"] == (3, 3)
    assert ("Log-probabilities of answers", TOKEN_IDS) in compared or program not in FULL
    largest = [row.largest for row in proof.rows if row.largest is not None]
    assert all(number < 1e-4 for number in largest)
    assert len(largest) == {VLLM: 3, LLAMA: 2}.get(program, 0)


def test_vllm_tells_tokens_and_prompt_logprobs(world: ProvedExport) -> None:
    compared = rows(proof_of(world, stand_in(world, VLLM), world.merged))
    for sent in (TOKEN_IDS, PLAIN_TEXT, "chat messages"):
        assert compared["Prompt tokens", sent] == (3, 3)
    agree, of = compared["Log-probabilities of prompts", TOKEN_IDS]
    assert agree == of > 90


def test_the_table_is_in_the_readme_and_replaces_the_last_one(world: ProvedExport) -> None:
    readme = world.adapter / "README.md"
    readme.write_text(
        "# Mine\n\nText.\n\n<!-- proof:begin -->\nstale table\n<!-- proof:end -->\n\nAfter.\n"
    )
    proof_of(world, stand_in(world, VLLM))
    text = readme.read_text()
    assert text.startswith("# Mine\n\nText.\n\n<!-- proof:begin -->\n## Served and compared\n")
    assert text.endswith("<!-- proof:end -->\n\nAfter.\n") and "stale table" not in text
    assert "| Greedy answers | token ids | 3 of 3 | - | - |" in text
    assert "- Nothing differs beyond rounding." in text
    proof_of(world, stand_in(world, VLLM, model=world.plain))
    assert "Nothing differs" not in readme.read_text()
    assert "does not use the LoRA" in readme.read_text()


def test_thoughts_that_are_told_apart_are_not_compared(world: ProvedExport) -> None:
    proof = proof_of(world, stand_in(world, OLLAMA, thoughts="Well."))
    assert proof.passed
    assert ("Greedy answers", "chat messages") not in rows(proof)
    assert any("3 answers to chat messages: the server tells" in s for s in proof.not_compared)
    assert proof_of(world, stand_in(world, VLLM, thoughts="Well.")).passed  # it has the tokens


def test_the_key_is_sent_only_to_a_server_that_asks(
    world: ProvedExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "correct-horse")
    free, closed = stand_in(world, VLLM), stand_in(world, VLLM, key="correct-horse")
    assert proof_of(world, free).passed and set(free.headers) == {""}
    assert proof_of(world, closed).passed and set(closed.headers) == {"", "Bearer correct-horse"}
    assert closed.headers.count("") == 1


def test_a_server_that_loads_its_model_is_waited_for(
    world: ProvedExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert proof_of(world, stand_in(world, LLAMA, loading=3)).passed


# ---- servers with a fault


@pytest.mark.parametrize("program", FULL)
def test_a_missing_lora_is_named(world: ProvedExport, program: str) -> None:
    proof = proof_of(world, stand_in(world, program, model=world.plain))
    assert "it does not use the LoRA" in proof.faults[0]


def test_other_weights_are_named(world: ProvedExport) -> None:
    def turned(**asked: Any) -> Any:
        answer = world.tuned(**asked)
        answer.logits = answer.logits * 0.6
        return answer

    proof = proof_of(world, stand_in(world, VLLM, model=turned))
    assert "log-probabilities for prompts sent as token ids differ by up to" in proof.faults[0]


@pytest.mark.parametrize("program", ALL)
def test_a_bos_that_the_server_adds_is_named(world: ProvedExport, program: str) -> None:
    proof = proof_of(world, stand_in(world, program, adds_bos=BOS))
    known = "it adds a BOS ('<|im_start|>') in front (3 of 3 prompts)" in proof.faults[0]
    counted = "it has one token more, such as a BOS in front" in proof.faults[0]
    assert known if program in FULL else counted
    assert "The server changes prompts that are sent as text" in proof.faults[0]
    assert known == ("add_bos_token" in proof.faults[0])


@pytest.mark.parametrize("program", ALL)
def test_another_chat_template_is_named(world: ProvedExport, program: str) -> None:
    proof = proof_of(world, stand_in(world, program, chat_template=CHATML))
    assert len(proof.faults) == 1
    assert "chat template writes another prompt than was trained" in proof.faults[0]
    position = "differ from position 0 on: it has '<|im_start|>use', trained was 'Inst'"
    assert (position in proof.faults[0]) == (program in FULL)


@pytest.mark.parametrize("program", ALL)
def test_a_server_that_does_not_stop_is_named(world: ProvedExport, program: str) -> None:
    proof = proof_of(world, stand_in(world, program, ends=frozenset()))
    assert "The server does not stop at" in proof.faults[0]


@pytest.mark.parametrize("program", ALL)
def test_a_stop_that_was_not_trained_is_named(world: ProvedExport, program: str) -> None:
    stop = world.tokenizer.encode("l")[0]  # of "Hello!"
    proof = proof_of(world, stand_in(world, program, ends=frozenset({world.end, stop})))
    assert (
        "The server stops too early: after 3 tokens, where the export goes on with"
        in (proof.faults[0])
    )


# ---- what is not offered


def test_without_logprobs_it_is_said_what_was_not_compared(world: ProvedExport) -> None:
    proof = proof_of(world, stand_in(world, VLLM, gives_logprobs=False))
    assert proof.passed
    said = " ".join(proof.not_compared)
    assert "The server gives no log-probabilities for prompts sent as token ids." in said
    proof = proof_of(world, stand_in(world, TRANSFORMERS))
    said = " ".join(proof.not_compared)
    assert "The server gives no log-probabilities for prompts sent as text." in said


# ---- mistakes, one true sentence each


def command(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    code = export_command(list(options))
    return code, capsys.readouterr().err


def test_a_difference_is_exit_status_1_and_agreement_0(
    world: ProvedExport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.base)  # where no run is
    run_of_path = "Source: `tinker://some-run/weights/final`.\n"
    (world.adapter / "README.md").write_text(f"# Mine\n\n{run_of_path}")
    out = ("--out", str(world.adapter), "--prove")
    with standing_in(stand_in(world, VLLM)) as url:
        assert command(capsys, *out, f"{url}/v1") == (0, "")
        (world.adapter / "README.md").unlink()  # the export alone is enough
        assert command(capsys, *out, f"{url}/v1") == (0, "")
        assert (world.adapter / "README.md").read_text().startswith("<!-- proof:begin -->")
    with standing_in(stand_in(world, VLLM, ends=frozenset())) as url:
        code, said = command(capsys, *out, url)
    assert code == 1 and "does not stop at" in said


@pytest.mark.parametrize(
    ("how", "options", "words"),
    [
        ({"models": ("base", "mine")}, (), "has 2 models: base, mine. Name the export's with"),
        ({"models": ()}, (), "serves no model"),
        ({}, ("--prove-model", "mein"), "has no model mein; it has mine. Did you mean mine?"),
        ({"key": "k"}, (), "asks for a key (HTTP 401). Set its key in the environment variable"),
    ],
)
def test_a_server_without_the_model_is_one_sentence(
    world: ProvedExport,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, Any],
    options: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with standing_in(stand_in(world, VLLM, **how)) as url:
        out = ("--out", str(world.adapter), "--model-path", "tinker://a/weights/b")
        code, said = command(capsys, *out, "--prove", url, *options)
    assert code == 1 and words in said and said.count("\n") == 1


def test_the_key_comes_from_the_environment_and_is_never_shown(
    world: ProvedExport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stand_in(world, VLLM, key="correct-horse")
    with standing_in(server) as url:
        out = ("--out", str(world.adapter), "--model-path", "tinker://a/weights/b")
        monkeypatch.setenv("OPENAI_API_KEY", "correct-horse")
        assert export_command([*out, "--prove", url]) == 0
        shown = capsys.readouterr()
        assert "correct-horse" not in shown.out + (world.adapter / "README.md").read_text()
        monkeypatch.setenv("OPENAI_API_KEY", "wrong-horse")
        code, said = command(capsys, *out, "--prove", url)
        assert code == 1 and "is not one of this server" in said and "horse" not in said
        hidden = url.replace("http://", "http://me:secret-horse@")
        code, said = command(capsys, *out, "--prove", hidden)
        assert code == 1 and "OPENAI_API_KEY" in said and "secret-horse" not in said


@contextmanager
def other_program(content: bytes) -> Iterator[str]:
    """A web server that knows nothing of models."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http_server(Handler) as url:
        yield url


@pytest.mark.parametrize("content", [b"<html>hello", b'{"data": 3}', b"[]", b"\xff\xfe"])
def test_another_program_is_told_from_a_server_of_this_api(
    world: ProvedExport, content: bytes
) -> None:
    with (
        other_program(content) as url,
        pytest.raises(UserError, match="does not have OpenAI's API"),
    ):
        prove_export(url, world.adapter, run=None, say=lambda _: None)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": []},
        {"choices": [3]},
        {"choices": [{"text": 3}]},
        {"choices": [{"text": "a"}, {"text": "b"}]},
        {"choices": [{"text": "x", "logprobs": [1], "prompt_logprobs": [[1]]}], "usage": [1]},
        {"choices": [{"text": "x", "logprobs": {"content": [3]}, "token_ids": ["a"]}]},
        {"choices": [{"text": "x", "logprobs": {"token_logprobs": [-inf], "tokens": ["x"]}}]},
        {"choices": [{"text": "half \ud83d"}]},
        {"choices": [{"text": "x", "token_ids": [10**9, -1], "prompt_token_ids": [10**9, -1]}]},
    ],
)
def test_an_answer_of_another_form_is_never_a_traceback(
    world: ProvedExport, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stand_in(world, VLLM)
    right = server.answer

    def strange(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return right(path, body) if path == "/v1/models" else (200, answer)

    monkeypatch.setattr(server, "answer", strange)
    with suppress(UserError):  # it may also count as an answer that differs
        assert not proof_of(world, server).passed


def test_an_answer_that_is_none_is_said_with_the_status_that_came(
    world: ProvedExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stand_in(world, VLLM)
    right = server.answer

    def silent(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return right(path, body) if path == "/v1/models" else (200, {"choices": [{"text": None}]})

    monkeypatch.setattr(server, "answer", silent)
    with pytest.raises(UserError, match=r"\(HTTP 200: an answer without text\)"):
        proof_of(world, server)


def test_a_server_that_never_has_time_is_given_up(
    world: ProvedExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stand_in(world, VLLM, loading=1000)
    waited: list[float] = []
    with standing_in(server) as url, pytest.raises(UserError, match=r"no time .*\(HTTP 503\)"):
        connect(url, "", waited.append)
    assert sum(waited) == 120.0


def test_where_a_redirect_leads_is_said_and_the_key_stays_here(world: ProvedExport) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(307)
            self.send_header("location", "http://elsewhere.invalid/v1/models")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    words = r"gives HTTP 307: it leads to http://elsewhere\.invalid/v1/models\."
    with http_server(Handler) as url, pytest.raises(UserError, match=words):
        connect(url, "")


def test_an_answer_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinkersmith.export.proof.server._LONGEST", 0.2)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # nobody reads any more
                for _ in range(100):
                    self.wfile.write(b" ")
                    time.sleep(0.05)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http_server(Handler) as url, pytest.raises(UserError, match="did not end its answer"):
        connect(url, "")


def test_nobody_listens_is_one_sentence(world: ProvedExport) -> None:
    with standing_in(stand_in(world, VLLM)) as url:
        pass
    with pytest.raises(UserError, match=r"Nobody listens at .* \(connection refused\)"):
        prove_export(url, world.adapter, run=None, say=lambda _: None)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/", "http://", "http://x:y/", ""])
def test_what_is_no_address_is_refused(world: ProvedExport, url: str) -> None:
    with pytest.raises(UserError, match="is not the address of a server"):
        prove_export(url, world.adapter, run=None, say=lambda _: None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--force",), "--force has no effect with --prove"),
        (("--no-verify",), "--no-verify has no effect with --prove"),
        (("--dtype", "float32"), "--dtype has no effect with --prove"),
        (("--out", "nowhere"), "nowhere does not exist, so there is nothing to prove"),
        (("--out", "."), "is not an exported adapter or merged model"),
    ],
)
def test_options_and_folders_that_do_not_fit_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = command(capsys, "--prove", "http://127.0.0.1:9/v1", *options)
    assert code == 1 and words in said


def test_a_model_name_without_an_address_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = command(capsys, "--prove-model", "x")
    assert code == 1 and "--prove-model has an effect only with --prove URL" in said


def test_a_card_that_cannot_be_written_is_one_sentence(
    world: ProvedExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(prove, "write_atomically", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        proof_of(world, stand_in(world, VLLM))


# ---- our own server


@pytest.mark.engine
def test_our_own_server_serves_what_the_export_gives(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prove, "PROMPTS", 2)
    monkeypatch.setattr(prove, "ANSWER_TOKENS", 8)
    small = small_run()
    out = small.folder / "proved adapter"
    export_model(small.settings, out=out, verify=False, say=lambda _: None)
    with serving(models_to_serve([f"mine={out}"], small.settings)) as server:
        options = ["--out", str(out), "--prove", server.url]
        options += ["--set", f"OUTPUT_DIR={json.dumps(str(small.folder / 'runs'))}"]
        assert export_command([*options, "--prove-model", "mine"]) == 0
        said = capsys.readouterr().out
        assert "2 prompts of the run's training data" in said
        assert "mine of tinkersmith serve" in said
        assert "Prompts were sent as token ids" in said
        assert export_command([*options, "--prove-model", "base"]) == 1
        assert "it does not use the LoRA" in capsys.readouterr().err
    prompt = prove._prompts(out, small.run.template(), *_tokenizer_of(out), small.run)
    assert prompt[1] == "of the run's training data"
    first = prompt[0][0]
    assert first.text == "Instruction: Add.\nInput: 10 + 10\nResponse:\n"
    assert first.messages == [{"role": "user", "content": "Add.\nInput: 10 + 10"}]


def _tokenizer_of(folder: Path) -> tuple[Any]:
    from tinkersmith.text.tokenizer import load_tokenizer

    return (load_tokenizer(folder),)
