"""Small servers that answer in the forms of vLLM, llama-server, Ollama and transformers serve.

The numbers come from a real model by plain transformers. Each can have a fault that such servers
have in practice.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import torch

from tests.support.http_server import http_server

VLLM, LLAMA, OLLAMA, TRANSFORMERS = "vllm", "llamacpp", "library", "huggingface"


@dataclass
class StandIn:
    """How a stand-in answers."""

    program: str
    model: Any  # (1, T) ids -> logits
    tokenizer: Any  # of transformers
    chat_template: str
    ends: frozenset[int]  # at which answers stop
    adds_bos: int | None = None
    gives_logprobs: bool = True
    key: str = ""
    models: tuple[str, ...] = ("mine",)
    thoughts: str = ""  # in `reasoning_content` of chats
    loading: int = 0  # requests that are answered with 503 first
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)  # the authorization of each request

    def ids_of(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [*([] if self.adds_bos is None else [self.adds_bos]), *ids]

    def written(self, messages: Sequence[dict[str, Any]]) -> str:
        plain = [{"role": one["role"], "content": one["content"]} for one in messages]
        text = self.tokenizer.apply_chat_template(
            plain,
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=True,
        )
        assert isinstance(text, str)
        return text

    @torch.no_grad()
    def answered(self, prompt: Sequence[int], most: int) -> tuple[list[int], list[float], str]:
        """Tokens, an end token included, their log-probabilities, and why the answer ended."""
        tokens, logprobs = list(prompt), []
        while len(tokens) < len(prompt) + most:
            scores = self.model(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            tokens.append(int(scores.argmax()))
            logprobs.append(float(scores.max()))
            if tokens[-1] in self.ends:
                return tokens[len(prompt) :], logprobs, "stop"
        return tokens[len(prompt) :], logprobs, "length"

    @torch.no_grad()
    def prompt_logprobs(self, prompt: Sequence[int]) -> list[Any]:
        """vLLM's form, with the most likely token beside each token of the prompt."""
        scores = self.model(input_ids=torch.tensor([list(prompt)])).logits[0].log_softmax(-1)
        entries: list[Any] = [None]
        for place, token in enumerate(prompt[1:]):
            best = int(scores[place].argmax())
            ids = [token] if best == token else [best, token]  # in whatever order
            entries.append({str(one): {"logprob": float(scores[place, one])} for one in ids})
        return entries

    # ---- routes

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append((path, body))
        if self.loading:
            self.loading -= 1
            return 503, {"error": {"message": "Loading model", "code": 503}}
        if path == "/v1/models":
            about = {"object": "model", "owned_by": self.program}
            listed = [{"id": name, **about} for name in self.models]
            return 200, {"object": "list", "data": listed}
        if path == "/v1/completions":
            return self._completion(body)
        if path == "/v1/chat/completions":
            return self._chat(body)
        if path == "/tokenize" and self.program == VLLM and "content" not in body:
            text = body["prompt"] if "prompt" in body else self.written(body["messages"])
            ids = self.ids_of(text)
            return 200, {"count": len(ids), "max_model_len": 512, "tokens": ids}
        if path == "/tokenize" and self.program == LLAMA and "content" in body:
            return 200, {"tokens": self.ids_of(body["content"])}
        if path == "/apply-template" and self.program == LLAMA:
            return 200, {"prompt": self.written(body["messages"])}
        return 404, {"error": {"message": "File Not Found", "type": "not_found_error"}}

    def _completion(self, body: dict[str, Any]) -> tuple[int, Any]:
        prompt = body["prompt"]
        if isinstance(prompt, list) and self.program in (OLLAMA, TRANSFORMERS):
            return 400, {"error": {"message": "prompt must be a string."}}
        ids = list(prompt) if isinstance(prompt, list) else self.ids_of(prompt)
        tokens, logprobs, finish = self.answered(ids, body["max_tokens"])
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        choice["text"] = self.tokenizer.decode(tokens, skip_special_tokens=True)
        if self.gives_logprobs and self.program == VLLM:
            spelled = [self.tokenizer.decode([token]) for token in tokens]
            choice["logprobs"] = {"tokens": spelled, "token_logprobs": logprobs}
            if body.get("prompt_logprobs"):
                choice["prompt_logprobs"] = self.prompt_logprobs(ids)
        if self.gives_logprobs and self.program == LLAMA:
            choice["logprobs"] = {"content": self._listed(tokens, logprobs, with_ids=True)}
        if body.get("return_token_ids") and self.program == VLLM:
            choice |= {"token_ids": tokens, "prompt_token_ids": ids}
        return 200, {"object": "text_completion", "choices": [choice], "usage": _usage(ids, tokens)}

    def _chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids = self.ids_of(self.written(body["messages"]))
        tokens, logprobs, finish = self.answered(ids, body["max_tokens"])
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice["message"] = {"role": "assistant", "content": text}
        if self.thoughts:
            choice["message"]["reasoning_content"] = self.thoughts
        if self.gives_logprobs and self.program in (VLLM, LLAMA):
            listed = self._listed(tokens, logprobs, with_ids=self.program == LLAMA)
            choice["logprobs"] = {"content": listed}
        whole: dict[str, Any] = {"choices": [choice], "usage": _usage(ids, tokens)}
        if body.get("return_token_ids") and self.program == VLLM:
            choice["token_ids"] = tokens
            whole["prompt_token_ids"] = ids
        return 200, whole

    def _listed(
        self, tokens: Sequence[int], logprobs: Sequence[float], *, with_ids: bool
    ) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for token, logprob in zip(tokens, logprobs, strict=True):
            spelled = self.tokenizer.decode([token])
            entry = {"token": spelled, "logprob": logprob, "bytes": list(spelled.encode())}
            entries.append({**entry, "id": token} if with_ids else entry)
        return entries


def _usage(prompt: Sequence[int], answer: Sequence[int]) -> dict[str, int]:
    return {"prompt_tokens": len(prompt), "completion_tokens": len(answer)}


@contextmanager
def standing_in(server: StandIn) -> Iterator[str]:
    """The address of a stand-in, which ends after the block."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _reply(self, body: dict[str, Any]) -> None:
            with lock:
                given = self.headers.get("authorization", "")
                server.headers.append(given)
                if server.key and given != f"Bearer {server.key}":
                    status, answer = 401, {"error": "Unauthorized"}
                else:
                    status, answer = server.answer(self.path, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http_server(Handler) as url:
        yield url
