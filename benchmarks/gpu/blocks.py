"""Which blocks there are, in the order of what matters most, and what each needs."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

from benchmarks.gpu import correctness, environment, paths, sampling, training
from benchmarks.gpu.models import SHAPES, TINY, TINY_VOCABULARY, VOCABULARY
from benchmarks.gpu.runner import Block, Figures

ENVIRONMENT, CORRECTNESS = "environment", "correctness"
TRAINING, SAMPLING = "training", "sampling"
NEEDS_GPU = "needs a GPU"
_QUICK_LIMIT = 180  # seconds
_LARGE, _EXPERTS, _SMALL = "Qwen3-8B", "Qwen3-30B-A3B", "Qwen3-0.6B"


def environment_block() -> Block:
    return Block("environment", ENVIRONMENT, environment.look, limit=90)


def all_blocks(device: str, installed: Collection[str], *, quick: bool) -> list[Block]:
    """Everything after the environment. `installed`: the optional packages that are there."""
    make = _Blocks(device, installed, quick)
    return [*_correctness(make), *_first_speed(make), *_more_speed(make)]


class _Blocks:
    """Makes blocks for one machine."""

    def __init__(self, device: str, installed: Collection[str], quick: bool) -> None:
        self.device, self.installed, self.quick = device, installed, quick

    def correctness(
        self,
        name: str,
        work: Callable[..., Iterator[Figures]],
        *needs: str,
        gpu: bool = False,
        limit: float = 90,
        **arguments: Any,
    ) -> Block:
        return Block(
            f"correctness: {name}",
            CORRECTNESS,
            work,
            {**arguments, "device": self.device},
            self._limit(limit),
            side_by_side=True,
            why_not=self._why_not(needs, gpu),
        )

    def training(
        self, shape: str, what: str, *needs: str, gpu: bool = False, limit: float = 75
    ) -> Block:
        return Block(
            f"training: {shape}, {what}",
            TRAINING,
            training.trl if what == training.TRL else training.speed,
            {
                "what": what,
                **self._shape(shape),
                "lengths": [[10, 40]] * 4 if self.quick else [[1024, 3072]] * 4,
                "device": self.device,
            },
            self._limit(limit),
            why_not=self._why_not(needs, gpu),
        )

    def sampling(self, shape: str, what: str, *needs: str, limit: float = 75) -> Block:
        sizes = (4, 12, 8) if self.quick else (32, 256, 256)
        return Block(
            f"sampling: {shape}, {what}",
            SAMPLING,
            sampling.speed,
            {
                "what": what,
                **self._shape(shape),
                **dict(zip(("prompts", "prompt_tokens", "new_tokens"), sizes, strict=True)),
                "device": self.device,
            },
            self._limit(limit),
            why_not=self._why_not(needs, gpu=what == sampling.VLLM),
        )

    def _limit(self, seconds: float) -> float:
        """Tiny shapes may be tried on a slow and busy CPU."""
        return _QUICK_LIMIT if self.quick else seconds

    def _shape(self, name: str) -> dict[str, Any]:
        if self.quick:
            return {"shape": TINY[name], "vocabulary": TINY_VOCABULARY}
        return {"shape": SHAPES[name], "vocabulary": VOCABULARY}

    def _why_not(self, needs: Collection[str], gpu: bool) -> str:
        missing = [name for name in needs if name not in self.installed]
        if missing:
            return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        return NEEDS_GPU if gpu and self.device != "cuda" else ""


def _correctness(make: _Blocks) -> Iterator[Block]:
    # A CPU is often slow in bfloat16; there the dense paths alone are tried in it.
    dtypes = ["float32", "bfloat16"] if make.device == "cuda" else ["float32"]
    for path in (paths.TILES, paths.DEFAULT):
        yield make.correctness(path, correctness.training, family="qwen3", path=path)
    yield make.correctness(
        paths.VARLEN,
        correctness.training,
        gpu=True,
        family="qwen3",
        path=paths.VARLEN,
        dtypes=["bfloat16"],  # it has no float32
    )
    yield make.correctness(
        paths.COMPILED,
        correctness.training,
        gpu=True,
        limit=120,
        family="qwen3",
        path=paths.COMPILED,
    )
    yield make.correctness(
        paths.GRAPHS,
        correctness.training,
        gpu=True,
        family="qwen3",
        path=paths.GRAPHS,
        dtypes=["bfloat16"],
    )
    yield make.correctness("float8", correctness.float8_training, gpu=True)
    for family in ("qwen3_moe", "qwen3_moe, all", "gemma", "gpt_neox"):
        yield make.correctness(
            family, correctness.training, family=family, path=paths.DEFAULT, dtypes=dtypes
        )
    yield make.correctness("optimizer", correctness.optimizer)
    for family in ("qwen3", "qwen3_moe"):
        yield make.correctness(
            f"sampling, {family}", correctness.sampling, family=family, dtypes=dtypes
        )
    yield make.correctness("sampling, vLLM", correctness.vllm, "vllm", gpu=True, limit=120)


def _first_speed(make: _Blocks) -> Iterator[Block]:
    yield make.training(_LARGE, training.OURS, limit=110)  # the first to compile for this shape
    yield make.training(_LARGE, training.SPARING)
    yield make.training(_EXPERTS, training.OURS, limit=90)
    yield make.training(_EXPERTS, training.OURS_ATTENTION, limit=90)
    yield make.training(_EXPERTS, training.SPARING_ATTENTION, limit=90)
    yield make.sampling(_LARGE, sampling.OURS)
    yield make.sampling(_LARGE, sampling.GENERATE)
    yield make.sampling(_LARGE, sampling.VLLM, "vllm", limit=120)
    yield Block(
        f"sampling: {_LARGE}, tinkersmith, CUDA graphs",
        SAMPLING,
        sampling.speed,
        why_not="the engine has CUDA graphs for training only; decoding launches every kernel",
    )


def _more_speed(make: _Blocks) -> Iterator[Block]:
    yield make.training(_LARGE, training.PLAIN)
    yield make.training(_LARGE, training.FLOAT8, gpu=True)
    yield make.training(_LARGE, training.GRAPHS, gpu=True)
    yield make.training(_LARGE, training.UNCOMPILED, gpu=True)
    yield make.training(_EXPERTS, training.SPARING, limit=90)
    yield make.training(_LARGE, training.TRL, "trl", "datasets", limit=90)
    yield make.training(_LARGE, training.LIGER_SPARING, "liger_kernel", gpu=True)
    yield make.training(_LARGE, training.LIGER, "liger_kernel", gpu=True)
    yield make.sampling(_LARGE, sampling.OURS_ADAPTED)
    yield make.training(_SMALL, training.OURS, limit=45)
    yield make.training(_SMALL, training.GRAPHS, gpu=True, limit=45)
    yield make.training(_SMALL, training.UNCOMPILED, gpu=True, limit=45)
    yield make.training(_SMALL, training.PLAIN, limit=45)
