"""llama.cpp's own server, in the Python that has xllamacpp, whose wheels hold it.

python benchmarks/llama_server.py MODEL.gguf PORT is llama-server -m MODEL.gguf --jinja --port PORT.
"""

import importlib
import sys
import threading
from typing import Any


def main(file: str, port: str) -> None:
    xllamacpp: Any = importlib.import_module("xllamacpp")
    options = xllamacpp.CommonParams()
    options.model.path = file
    options.hostnames = ["127.0.0.1"]
    options.port = int(port)
    options.use_jinja = True
    # Its threads wait by spinning, which takes the cores from the model that it is compared with.
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(options)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
