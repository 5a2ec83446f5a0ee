"""Sampling by vLLM, with a stand-in: vLLM itself runs on a GPU only, and is no dependency.

The stand-in takes vLLM's own arguments and answers in its form, by plain transformers and peft: so
a request, an adapter's files and an answer that are translated wrongly give other tokens than ours.
"""

import dataclasses
import importlib.util
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.adapters import filled_adapter
from tests.support.loading import load_with_torch
from tests.support.sampling import answers as sampled
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.gpu import vllm_sampler
from tinkersmith.engine.gpu.vllm_sampler import VllmSampler, check_installed, sampling_params
from tinkersmith.engine.json_grammar import Grammars, vocabulary_of
from tinkersmith.engine.messages import LoraConfig, SampleRequest, SampleResult
from tinkersmith.engine.model.adapters import snapshot
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.runtime.clients import Models
from tinkersmith.engine.runtime.experimental import Experimental
from tinkersmith.engine.sampling.sampler import sample
from tinkersmith.engine.server.routes.chat_prompts import read_texts
from tinkersmith.engine.storage.catalogue import Catalogue
from tinkersmith.engine.storage.store import Store


@dataclasses.dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclasses.dataclass
class SamplingParams:
    """The fields of vLLM's that are used here, with its defaults."""

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop_token_ids: list[int] | None = None
    stop: list[str] | None = None
    ignore_eos: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    logprobs: int | None = None


class LLM:
    """Greedy answers of plain transformers + peft, in the form of vLLM's RequestOutput."""

    made: ClassVar[list["LLM"]] = []
    off = 0.0  # added to every log-probability

    def __init__(self, model: str, *, max_model_len: int, max_lora_rank: int, **rest: Any) -> None:
        assert rest["enable_lora"] and rest["logprobs_mode"] == "raw_logprobs"
        self.folder, self.longest, self.rank = model, max_model_len, max_lora_rank
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.calls = 0
        LLM.made.append(self)

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        params: list[SamplingParams],
        *,
        use_tqdm: bool,
        lora_request: LoRARequest | None,
    ) -> list[Any]:
        self.calls += 1
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        if lora_request is not None:
            model = PeftModel.from_pretrained(model, lora_request.lora_path)
            assert model.peft_config["default"].r <= self.rank  # type: ignore[union-attr]
        return [
            self._answer(model, prompt["prompt_token_ids"], one)
            for prompt, one in zip(prompts, params, strict=True)
        ]

    @torch.no_grad()
    def _answer(self, model: Any, prompt: list[int], params: SamplingParams) -> Any:
        assert params.temperature == 0 and params.ignore_eos and params.max_tokens
        assert len(prompt) + params.max_tokens <= self.longest
        tokens: list[int] = []
        logprobs: list[dict[int, Any]] = []
        reason = "length"
        while len(tokens) < params.max_tokens and reason == "length":
            logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            values, ids = logits.log_softmax(-1).sort(descending=True)
            logprobs.append(
                {
                    int(ids[i]): types.SimpleNamespace(
                        logprob=float(values[i]) + LLM.off, rank=i + 1
                    )
                    for i in range(max(1, params.logprobs or 0))
                }
            )
            tokens.append(int(ids[0]))
            text = self.tokenizer.decode(tokens) if params.detokenize else ""
            if tokens[-1] in (params.stop_token_ids or []) or any(
                one in text for one in params.stop or []
            ):
                reason = "stop"
        outputs = [
            types.SimpleNamespace(
                index=i, token_ids=tuple(tokens), logprobs=logprobs, finish_reason=reason
            )
            for i in reversed(range(params.n))
        ]
        return types.SimpleNamespace(outputs=outputs)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """As if vLLM were installed, and this CPU a GPU."""
    package, lora = types.ModuleType("vllm"), types.ModuleType("vllm.lora")
    request = types.ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    request.LoRARequest = LoRARequest  # type: ignore[attr-defined]
    for name, module in (("vllm", package), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(vllm_sampler, "gpu_share", lambda device: 0.5)
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(LLM, "off", 0.0)
    return LLM


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder: Path = tmp_path_factory.mktemp("model")
    return load_with_torch("tiny", make_tiny_model(folder, max_context=128))


@pytest.fixture(scope="module")
def adapter(base: BaseModel) -> Adapter:
    return snapshot(filled_adapter(base, LoraConfig(8, 0, train_unembed=False)))


def greedy(prompt: list[int], **changes: Any) -> SampleRequest:
    return SampleRequest(prompt, **{"max_tokens": 12, "temperature": 0.0, "stop": [], **changes})


def same(ours: SampleResult, theirs: SampleResult | None) -> None:
    assert theirs is not None and len(theirs.sequences) == len(ours.sequences)
    for one, other in zip(ours.sequences, theirs.sequences, strict=True):
        assert other.tokens == one.tokens and other.stop_reason == one.stop_reason
        np.testing.assert_allclose(other.logprobs, one.logprobs, atol=1e-4)
        assert (one.topk is None) == (other.topk is None)
        if one.topk is not None and other.topk is not None:
            np.testing.assert_array_equal(other.topk[0], one.topk[0])
            np.testing.assert_allclose(other.topk[1], one.topk[1], atol=1e-4)


@pytest.mark.parametrize("tuned", ["not at all", "layers", "layers and output"])
def test_answers_are_those_of_our_own_sampler(base: BaseModel, vllm: type[LLM], tuned: str) -> None:
    rng = np.random.default_rng()
    prompts = [rng.integers(0, 250, length).tolist() for length in (1, 9, 40)]
    weights = None
    if tuned != "not at all":
        config = LoraConfig(8, 0, train_unembed="output" in tuned)
        weights = snapshot(filled_adapter(base, config))
    [free] = sample(base, weights, [greedy(prompts[1])])
    tokens = free.sequences[0].tokens
    decode: Callable[[list[int]], str] = AutoTokenizer.from_pretrained(base.folder).decode
    requests = [
        greedy(prompts[0], stop=None),
        greedy(prompts[1], stop=[tokens[4]]),
        greedy(prompts[1], num_samples=3, topk_sample_logprobs=4),
        greedy(prompts[2], max_tokens=None),
        *([greedy(prompts[1], stop=[text])] if (text := decode(tokens[2:4])) else []),
    ]
    found = VllmSampler().answers(base, "one", weights, requests)
    ours = sample(base, weights, requests, decode)
    # vLLM counts the last token into the context, so its longest answer is one shorter.
    for part in ours[3].sequences:
        del part.tokens[-1], part.logprobs[-1]
    for one, other in zip(ours, found, strict=True):
        same(one, other)


def test_what_it_cannot_do_is_left_to_our_own_sampler(
    base: BaseModel, adapter: Adapter, vllm: type[LLM]
) -> None:
    sampling = VllmSampler()
    requests = [
        greedy([1, 2, 3], prompt_logprobs=True),
        greedy([1, 2, 3], topk_prompt_logprobs=2),
        greedy([1, 2, 3], topk_sample_logprobs=21),
        greedy([1] * 100, max_tokens=29),  # the last token is one too many for it
        SampleRequest([1, 2, 3], max_tokens=4, temperature=0.001),
    ]
    assert sampling.answers(base, "one", adapter, requests) == [None] * len(requests)
    assert not vllm.made


def test_an_answer_that_must_follow_a_schema_is_sampled_by_the_engine(
    base: BaseModel, vllm: type[LLM]
) -> None:
    tokenizer = read_texts("bytes", base.folder, "2026-01-31").tokenizer
    grammar = Grammars(vocabulary_of("bytes", tokenizer)).of({"const": 7})
    batch = VllmSampler().batch(base, "one", None)
    bound, free = greedy([1, 2, 3], grammar=grammar), greedy([1, 2, 3])
    answers = {}
    for request in (bound, free):
        answers[id(batch.add(request, None))] = request
    while batch.is_ready:
        for answering in batch.step():
            [sequence] = answering.result.sequences
            follows = tokenizer.decode(sequence.tokens).startswith("7")
            assert follows == (answers.pop(id(answering)) is bound)
    assert not answers and vllm.made[0].calls == 2  # the check, and the free request


def test_a_request_becomes_vllms_parameters(base: BaseModel) -> None:
    request = SampleRequest([5, 6], num_samples=2, temperature=0.7, top_k=5, top_p=0.9, seed=-3)
    found = sampling_params(base, request)
    assert (found["n"], found["temperature"], found["top_k"], found["top_p"]) == (2, 0.7, 5, 0.9)
    assert found["seed"] == 2**63 - 3 and found["max_tokens"] == base.max_context - 2
    assert found["stop_token_ids"] == sorted(base.eos_ids) and found["stop"] == []
    with_text = sampling_params(base, dataclasses.replace(request, stop=["\n"], max_tokens=3))
    assert with_text["stop"] == ["\n"] and with_text["detokenize"] and with_text["max_tokens"] == 3


def test_an_adapter_that_it_gets_wrong_is_sampled_without_it(
    base: BaseModel,
    adapter: Adapter,
    vllm: type[LLM],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sampling = VllmSampler()
    monkeypatch.setattr(LLM, "off", 0.3)
    with caplog.at_level(logging.WARNING, "tinkersmith.engine"):
        assert sampling.answers(base, "one", adapter, [greedy([1, 2])]) == [None]
    assert "log-probabilities differ by 0.30" in caplog.text
    calls = vllm.made[0].calls
    monkeypatch.setattr(LLM, "off", 0.0)
    assert sampling.answers(base, "one", adapter, [greedy([1, 2])]) == [None]
    assert vllm.made[0].calls == calls  # it is not asked again
    assert sampling.answers(base, "two", adapter, [greedy([1, 2])]) != [None]


def test_where_it_cannot_be_loaded_it_is_tried_once(
    base: BaseModel,
    vllm: type[LLM],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = []

    def broken(*arguments: Any, **named: Any) -> None:
        tries.append(named)
        raise ValueError("no room for the cache\nwith a second line")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", broken)
    sampling = VllmSampler()
    with caplog.at_level(logging.WARNING, "tinkersmith.engine"):
        for _ in range(3):
            assert sampling.answers(base, "one", None, [greedy([1, 2])]) == [None]
    assert len(tries) == 1 and caplog.text.count("failed: no room for the cache") == 1


def test_clients_get_their_answers_in_order_and_files_go_with_the_sampler(
    tmp_path: Path, tiny_model: Path, vllm: type[LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        greedy([5, 6, 7]),
        greedy([5, 6, 7], prompt_logprobs=True),
        SampleRequest([5], max_tokens=0),  # refused
        greedy([8, 9], num_samples=2),
    ]

    def answers(fast: bool) -> list[Any]:
        models = Models(
            Store(tmp_path / str(fast)),
            Catalogue({"tiny": tiny_model}),
            device="cpu",
            threads=1,
            experimental=Experimental(vllm=fast),
        )
        models.create("a", "tiny", LoraConfig(4, 1, train_unembed=False))
        models.add_snapshot("s", "a")
        found = sampled(models, "s", requests)
        assert isinstance(models.sampler, VllmSampler) == fast
        made = models.sampler._folders if isinstance(models.sampler, VllmSampler) else {}
        folders = [Path(folder.name) for folder in made.values()]
        assert len(folders) == fast and all(folder.is_dir() for folder in folders)
        models.free_sampler("s")
        assert not any(folder.exists() for folder in folders)
        return found

    for ours, theirs in zip(answers(False), answers(True), strict=True):
        if isinstance(ours, Refused):
            assert str(theirs) == str(ours)
        else:
            same(ours, theirs)
    assert vllm.made[0].calls == 2  # the check, and the two requests that it takes together


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_machine_without_vllm_is_refused_with_how_to_install_it() -> None:
    with pytest.raises(Refused, match=r"which is not installed. Install it \(pip install vllm\)"):
        check_installed()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="vLLM needs a GPU")
def test_vllm_itself_agrees_with_our_sampler(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    base = load_with_torch("tiny", make_tiny_model(tmp_path), "bfloat16", "cuda")
    adapter = snapshot(filled_adapter(base, LoraConfig(8, 0, train_unembed=False)))
    found = VllmSampler().answers(base, "one", adapter, [greedy([1, 2, 3])])
    assert found != [None]
