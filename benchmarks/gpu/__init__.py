"""One command for the day a GPU is at hand: python -m benchmarks.gpu

On a machine with one GPU of 80 GB it answers, within `--minutes` (8): is every path of the engine
right there, how fast does it train and sample, and how does that compare with its peers? Weights
are random and made on the GPU, so nothing is downloaded.

The blocks, in this order; those that matter most come first:

1. Environment: the GPU, the versions, the optional packages, and which fast paths work.
2. Correctness, several blocks at a time: loss, log-probabilities and LoRA gradients of tiny models
   on the GPU against transformers' own layers and autograd on the CPU in float32. One block for
   each path: tiles, variable-length FlashAttention, compiled element-wise work, CUDA graphs,
   float8, mixtures of experts, other families; then the optimizer, sampling and vLLM.
3. Training of Qwen3-8B and Qwen3-30B-A3B shapes, rank 32, 4 documents of 4,096 tokens a step: our
   default path beside plain transformers + peft with checkpointing. Where documents do not fit into
   memory, they are halved until they do, and the row shows their length. The experts' LoRAs take
   much memory, so there are rows that train the attention layers only.
4. Sampling from the Qwen3-8B shape: 32 prompts, 256 new tokens each, beside `generate` and vLLM.
5. More training: plain without checkpointing, our float8, CUDA graphs and uncompiled paths, TRL,
   Liger's kernels, Qwen3-0.6B.

Every block has a process of its own and a time limit, so a crash, a hang or a lack of memory costs
one row. A row is printed as its block ends, and the JSON file (`--out`) is written anew each time;
it also holds the log and the traceback of each block. A block whose turn comes too late is listed
as "not run: no time left". `--only WORD...` runs the blocks whose names contain one of the words.

What must be installed: torch >= 2.11, transformers >= 5.5, peft, numpy, safetensors and tokenizers;
`torch.compile` needs a C compiler. The package itself is taken from the sources beside this folder;
neither the `tinker` SDK nor a web server is imported. Optional peers may lie in a folder on
PYTHONPATH: trl with datasets, dill and multiprocess; liger_kernel; vllm. A missing one is a row
"not run: X is not installed".

`--quick` runs the same blocks with tiny shapes, on a CPU too: a check that the benchmark works.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src"
if str(SOURCES) not in sys.path:  # also where the package is not installed
    sys.path.insert(0, str(SOURCES))
