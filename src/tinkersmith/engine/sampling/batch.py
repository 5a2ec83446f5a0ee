"""Requests to one base model -> sequences that decode together, joining and leaving.

Each request has an adapter, or none. The products of the base model are computed for all rows
together, and those of each adapter for its own rows. Prompts are prefilled in packs, without
padding, and a prefix that several prompts of one adapter share only once. Then rows decode
together, each in a slot of the KV cache. A finished row's slot goes to the next row at once. A
request that joins while others decode is prefilled between their steps, so much at a time that
they are held up for a few steps at most.

A request that fails does so alone: those that were in one step with it go on without it.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tinkersmith.engine.log import log
from tinkersmith.engine.messages import Answering, SampledSequence, SampleRequest, SampleResult
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.kernels import ExactLogits
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.cache_memory import CacheMemory
from tinkersmith.engine.sampling.decoder import Decoder, LayerDecoder
from tinkersmith.engine.sampling.dense_decoder import DenseDecoder, decodes_densely
from tinkersmith.engine.sampling.prefixes import TokenRun, shared_runs, split_run
from tinkersmith.engine.sampling.prompt_scores import asks_about_prompt, score_prompt
from tinkersmith.engine.sampling.rows import Row, is_finished, new_row, report_token, take_tokens
from tinkersmith.engine.sampling.token_choice import UnsampledRows
from tinkersmith.engine.training.packing import PACK_TOKENS, packs

MAX_ROWS = 128
# Rows that an adapter may have in any case, however many others have, and that it gets at a time
# while others wait.
OWN_ROWS = 8
HOLD_UP = 4.0  # steps' time that prefill may take between two steps of the rows that decode
LEAST_PREFILL = 64  # tokens of it in any case
_FIRST_PREFILL = 256  # tokens, before the times of a step and of prefill are known
_NEWEST = 0.2  # of an average of times: the weight of the newest one


@dataclass(slots=True)
class _Prompt:
    """Rows that begin after the same tokens."""

    run: TokenRun  # all but the last token, which is read in the rows' first step of decoding
    rows: list[Row]

    @property
    def answering(self) -> Answering:
        return self.rows[0].answering

    @property
    def adapter(self) -> Adapter | None:
        return self.rows[0].adapter

    @property
    def is_prefilled(self) -> bool:
        return self.run.past is not None or not self.run.tokens


class Batch:
    """The requests that are being answered from one base model, each with its own adapter."""

    def __init__(
        self,
        base: BaseModel,
        decode: Callable[[list[int]], str] | None,  # needed where a stop is a string
        memory: CacheMemory,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._base, self._decode = base, decode
        self._memory, self._clock = memory, clock
        self._row_bytes = base.cache.of  # of a row with so many tokens
        self._rows: dict[Answering, list[Row]] = {}  # unfinished ones, in the order of joining
        self._joined: list[Answering] = []  # since the last step
        self._waiting: deque[_Prompt] = deque()  # for slots
        self._beginning: list[_Prompt] = []  # have slots, and are being prefilled
        self._active: list[Row] = []  # the row of each slot
        self._scored: set[Answering] = set()  # whose prompts have their log-probabilities
        # After a failed step: groups that are answered one after the other, to find who failed.
        self._apart: deque[list[Answering]] = deque()
        self._group: deque[_Prompt] | None = None  # what waits of the group that is answered now
        self._decoder: Decoder | None = None
        self._slots = 0
        # Rows that begin when none decodes wait for each other, and then decode together.
        self._gathering = False
        self._finished: list[Answering] = []
        self._step_seconds = self._prefill_seconds = 0.0  # of a step, and of a token; averages

    @property
    def sequences(self) -> int:
        """How many sequences are not finished."""
        return sum(map(len, self._rows.values()))

    @property
    def is_ready(self) -> bool:
        """Whether a step would do something. It would not while other batches fill the memory."""
        if self._active or self._beginning or self._finished:
            return True
        if any(answering.gives_up for answering in self._rows):
            return True
        longest = max((rows[0].longest for rows in self._rows.values()), default=0)
        size = self._row_bytes(longest) if longest else 0
        return bool(size) and self._memory.begins(id(self), self._base.device, size)

    def add(self, request: SampleRequest, adapter: Adapter | None) -> Answering:
        """Let a request, which has been checked, join at the next step.

        Its adapter must not change before the request is finished.
        """
        sequences = [SampledSequence() for _ in range(request.num_samples)]
        answering = Answering(request, SampleResult(sequences))
        numbers = range(request.num_samples)
        self._rows[answering] = [
            new_row(self._base, adapter, answering, number) for number in numbers
        ]
        self._joined.append(answering)
        return answering

    @torch.no_grad()
    def step(self) -> list[Answering]:
        """Prefill some of what has joined, then sample one token for each active row.

        Returns the requests that are finished, failed ones among them.
        """
        self._drop_given_up()
        try:
            if self._has_outgrown_its_decoder():
                self._begin_again()
            self._begin()
            if self._active and not self._gathering:
                self._decode_step()
        except Exception as error:
            log.warning("a step of sampling failed: %s", error)
            self._set_apart(error)
        if any(answering.error is not None for answering in self._finished):
            self._drop_missing()
        self._fit()
        finished, self._finished = self._finished, []
        return finished

    # ---- beginning

    def _begin(self) -> None:
        if not self._active and not self._beginning:
            self._gathering = True
            if not self._group:
                apart = self._apart
                self._group = deque(self._prompts(apart.popleft())) if apart else None
        if self._joined and self._group is None:
            joined, self._joined = self._joined, []
            self._waiting.extend(self._prompts(joined))
        self._give_slots()
        self._prefill(None if self._gathering else self._prefill_tokens())
        if not self._beginning:
            self._gathering = False

    def _prompts(self, requests: Sequence[Answering]) -> list[_Prompt]:
        """The prompts of requests that join together, in the order in which they begin."""
        prompts: list[_Prompt] = []
        for answering in requests:
            rows, prompt = self._rows[answering], answering.request.prompt
            new = [row for row in rows if not row.sequence.tokens]
            if new:
                prompts.append(_Prompt(TokenRun(list(prompt[:-1]), rows[0].adapter), new))
            for row in rows:  # those that had begun before a step failed
                if row.sequence.tokens:
                    tokens = [*prompt, *row.sequence.tokens[:-1]]
                    prompts.append(_Prompt(TokenRun(tokens, row.adapter), [row]))
        # Log-probabilities of a prompt need all of its hidden states.
        by_adapter: dict[Adapter | None, list[_Prompt]] = {}
        for prompt in prompts:
            if not self._asks(prompt):
                by_adapter.setdefault(prompt.adapter, []).append(prompt)
        for adapter, sharing in by_adapter.items():
            runs = shared_runs([prompt.run.tokens for prompt in sharing], adapter)
            for prompt, run in zip(sharing, runs, strict=True):
                prompt.run = run
        # The longest first, so that rows of similar length stand together and the longest answers
        # do not begin last. Prompts with one parent follow each other, so that it can be freed
        # early.
        longest: dict[int, int] = {}
        lengths = [len(prompt.run.tokens) + prompt.run.start for prompt in prompts]
        for prompt, length in zip(prompts, lengths, strict=True):
            family = id(prompt.run.parent)
            longest[family] = max(longest.get(family, 0), length)

        def place(index: int) -> tuple[int, int, int]:
            family = id(prompts[index].run.parent)
            return -longest[family], family, -lengths[index]

        return [prompts[index] for index in sorted(range(len(prompts)), key=place)]

    def _asks(self, prompt: _Prompt) -> bool:
        answering = prompt.answering
        return asks_about_prompt(answering.request) and answering not in self._scored

    def _give_slots(self) -> None:
        """Give free slots to rows of waiting prompts, as many as the memory allows.

        The next rows are those of the adapter that has the fewest.
        """
        waiting = self._waiting if self._group is None else self._group
        count, longest = self._taken()
        if not waiting or (count and self._memory.others_starve(id(self))):
            return
        rows_of = Counter(row.adapter for row in self._rows_with_slots())
        available = self._memory.available(id(self), self._base.device)
        while waiting:
            adapters = list(dict.fromkeys(prompt.adapter for prompt in waiting))
            adapter = min(adapters, key=rows_of.__getitem__)
            most = max(MAX_ROWS - count, OWN_ROWS - rows_of[adapter])
            if most < 1:
                break
            if len(adapters) > 1:
                most = min(most, OWN_ROWS)
            prompt = next(prompt for prompt in waiting if prompt.adapter is adapter)
            needed = max(longest, prompt.rows[0].longest)
            if isinstance(self._decoder, DenseDecoder) and not self._is_dense(prompt.rows):
                break  # until these rows have ended: then another decoder begins
            allowed = min(most, available // self._row_bytes(needed) - count)
            if count == 0 and allowed < 1:
                size = self._row_bytes(needed)
                allowed = int(self._memory.begins(id(self), self._base.device, size))
            if allowed < 1:
                break
            rows = prompt.rows[:allowed]
            self._beginning.append(_Prompt(prompt.run, rows))
            del prompt.rows[:allowed]
            if not prompt.rows:
                waiting.remove(prompt)
            count, longest = count + len(rows), needed
            rows_of[adapter] += len(rows)
        if self._decoder is None and count:
            kind = DenseDecoder if self._is_dense(self._rows_with_slots()) else LayerDecoder
            self._decoder, self._slots = kind(self._base, count), count
        self._fit()

    def _is_dense(self, rows: Sequence[Row]) -> bool:
        """Whether rows can begin in the fast decoder."""
        longest = max(row.length for row in rows)
        seeing = any(row.last_token < 0 for row in rows)  # it reads no image token by token
        return not seeing and decodes_densely(self._base, longest)

    def _has_outgrown_its_decoder(self) -> bool:
        """Whether a row is too long for the fast decoder, which knows no window."""
        if not isinstance(self._decoder, DenseDecoder):
            return False
        length = max((row.length for row in self._active), default=0)
        return not decodes_densely(self._base, length)

    def _begin_again(self) -> None:
        """Let all rows begin again after their tokens so far, in a decoder for any length."""
        together = list(dict.fromkeys(row.answering for row in self._rows_with_slots()))
        self._active, self._beginning = [], []
        self._close()
        waiting = self._waiting if self._group is None else self._group
        parted = set(together)
        rest = [prompt for prompt in waiting if prompt.answering not in parted]
        waiting.clear()
        waiting.extend([*self._prompts(together), *rest])

    def _rows_with_slots(self) -> list[Row]:
        return [*self._active, *(row for prompt in self._beginning for row in prompt.rows)]

    def _taken(self) -> tuple[int, int]:
        """How many rows have slots, and the most tokens that one of them can come to have."""
        rows = self._rows_with_slots()
        return len(rows), max((row.longest for row in rows), default=0)

    def _fit(self) -> None:
        """Have slots for all rows and not many more, and reserve what they can come to need."""
        count, longest = self._taken()
        if self._decoder is None or not count:
            self._close()
            return
        if not count <= self._slots <= 2 * count:
            self._slots = count
            self._decoder.resize(count)
        size = self._row_bytes(longest) * self._slots
        self._memory.reserve(id(self), size, self._decoder.held)

    def _prefill_tokens(self) -> int:
        """How many tokens of prompts may be read before the active rows go on."""
        if not self._step_seconds or not self._prefill_seconds:
            return _FIRST_PREFILL
        tokens = int(HOLD_UP * self._step_seconds / self._prefill_seconds)
        return max(LEAST_PREFILL, min(PACK_TOKENS, tokens))

    def _prefill(self, budget: int | None) -> None:
        """Read one pack of what beginning prompts need, and give slots to those that are ready.

        With a budget, the pack has at most so many tokens, unless a prompt cannot be divided.
        """
        needed = {id(run): run for prompt in self._beginning for run in prompt.run.chain()}
        missing = [run for run in needed.values() if run.past is None and run.tokens]
        asking = {
            id(prompt.run): prompt.rows[0] for prompt in self._beginning if self._asks(prompt)
        }
        if missing:
            for prompt in reversed(self._beginning):
                for run in prompt.run.chain():
                    if run.past is None:
                        run.read_for = prompt.answering
            ready = [run for run in missing if run.parent is None or run.parent.past is not None]
            self._read(self._pack(ready, asking, budget), asking)
        for prompt in self._beginning:
            if not prompt.run.tokens and self._asks(prompt):  # one token: nothing is prefilled
                self._score(prompt.rows[0], torch.empty(0))
        still: list[_Prompt] = []
        for prompt in self._beginning:
            if not prompt.is_prefilled:
                still.append(prompt)
                continue
            assert self._decoder is not None
            _note_cache_hits(prompt)
            for row in prompt.rows:
                self._decoder.put(len(self._active), prompt.run)
                self._active.append(row)
        self._beginning = still

    def _pack(
        self, ready: list[TokenRun], asking: dict[int, Row], budget: int | None
    ) -> list[TokenRun]:
        if budget is None:
            pack = packs([len(run.tokens) for run in ready], PACK_TOKENS)[0]
            return [ready[index] for index in pack]
        chosen: list[TokenRun] = []
        for run in ready:
            if len(run.tokens) > budget:
                if chosen:
                    break
                return [run if id(run) in asking else split_run(run, budget)]
            chosen.append(run)
            budget -= len(run.tokens)
        return chosen

    def _read(self, runs: list[TokenRun], asking: dict[int, Row]) -> None:
        assert self._decoder is not None
        start, tokens = self._clock(), sum(len(run.tokens) for run in runs)
        hidden = self._decoder.prefill(runs, [id(run) in asking for run in runs])
        for run, states in zip(runs, hidden, strict=True):
            if states is not None:
                self._score(asking[id(run)], states)
        seconds = (self._clock() - start) / tokens
        self._prefill_seconds = _average(self._prefill_seconds, seconds)

    def _score(self, row: Row, hidden: torch.Tensor) -> None:
        assert self._decoder is not None
        device, answering = self._base.device, row.answering
        request, result = answering.request, answering.result
        vision = self._base.vision
        placeholder = 0 if vision is None else vision.placeholder
        score_prompt(self._decoder, device, row.adapter, request, result, hidden, placeholder)
        self._scored.add(answering)

    # ---- decoding

    def _decode_step(self) -> None:
        assert self._decoder is not None
        start = self._clock()
        # Rows of one adapter stand together.
        places = {row.adapter: place for place, row in reversed(list(enumerate(self._active)))}
        slots = sorted(
            range(len(self._active)), key=lambda slot: places[self._active[slot].adapter]
        )
        rows = [self._active[slot] for slot in slots]
        greedy = not any(
            row.request.temperature or row.request.topk_sample_logprobs or row.request.grammar
            for row in rows
        )
        tokens, adapters = [row.last_token for row in rows], [row.adapter for row in rows]
        self._take_tokens(rows, *self._decoder.step(tokens, slots, adapters, greedy=greedy))
        self._step_seconds = _average(self._step_seconds, self._clock() - start)
        self._drop_finished()

    def _take_tokens(
        self, rows: Sequence[Row], logits: torch.Tensor | None, exact: ExactLogits | None
    ) -> None:
        """A token for each row; a request for which there is none fails alone."""
        taken = list(range(len(rows)))
        failed: dict[Answering, UnsampledRows] = {}
        while taken:
            everyone = len(taken) == len(rows)
            try:
                take_tokens(
                    logits if logits is None or everyone else logits[taken],
                    exact if exact is None or everyone else exact.only(taken),
                    [rows[index] for index in taken],
                )
                break
            except UnsampledRows as refusal:
                failed |= {rows[taken[row]].answering: refusal for row in refusal.rows}
                taken = [index for index in taken if rows[index].answering not in failed]
        for answering, refusal in failed.items():
            self._fail(answering, refusal)

    def _drop_finished(self) -> None:
        """Free the slots of finished rows; the last row moves into the gap."""
        for slot in range(len(self._active) - 1, -1, -1):
            row = self._active[slot]
            if row.answering in self._rows:  # else it has failed in this step
                try:
                    finished = is_finished(row, self._decode)
                    report_token(row, finished)
                except Exception as error:
                    self._fail(row.answering, error)
                else:
                    if not finished:
                        continue
                    self._end(row)
            self._free(slot)

    def _end(self, row: Row) -> None:
        row.close()
        rows = self._rows[row.answering]
        rows.remove(row)
        if not rows:
            del self._rows[row.answering]
            self._scored.discard(row.answering)
            self._finished.append(row.answering)

    def _free(self, slot: int) -> None:
        assert self._decoder is not None
        last = len(self._active) - 1
        if slot != last:
            self._decoder.move(last, slot)
            self._active[slot] = self._active[last]
        self._active.pop()

    # ---- leaving early

    def _drop_given_up(self) -> None:
        leaving = [answering for answering in self._rows if answering.gives_up]
        for answering in leaving:
            for row in list(self._rows[answering]):
                self._end(row)
        if leaving:
            self._drop_missing()

    def _fail(self, answering: Answering, error: BaseException) -> None:
        """Answer a request with an error. Its rows must leave their slots then."""
        answering.error = error
        del self._rows[answering]
        self._scored.discard(answering)
        self._finished.append(answering)

    def _drop_missing(self) -> None:
        """Free the places of requests that have left."""
        rows = self._rows
        self._joined = [answering for answering in self._joined if answering in rows]
        for group in self._apart:
            group[:] = [answering for answering in group if answering in rows]
        self._apart = deque(group for group in self._apart if group)
        self._waiting = deque(prompt for prompt in self._waiting if prompt.answering in rows)
        if self._group is not None:
            self._group = deque(prompt for prompt in self._group if prompt.answering in rows)
        self._beginning = [prompt for prompt in self._beginning if prompt.answering in rows]
        for slot in range(len(self._active) - 1, -1, -1):
            if self._active[slot].answering not in rows:
                self._free(slot)

    def _set_apart(self, error: Exception) -> None:
        """A step has failed: divide those that took part, until one is found that fails alone."""
        answering = dict.fromkeys(row.answering for row in self._rows_with_slots())
        together = [one for one in answering if one in self._rows]
        self._active, self._beginning = [], []
        self._close()
        # A waiting prompt of those is made again, with the rest of its request.
        parted = set(together)
        self._waiting = deque(one for one in self._waiting if one.answering not in parted)
        if self._group is not None:
            self._group = deque(one for one in self._group if one.answering not in parted)
        if len(together) > 1:
            half = len(together) // 2
            self._apart.extendleft([together[half:], together[:half]])
        elif together:
            self._fail(together[0], error)
        else:  # whoever joined or waits cannot even begin
            for one in list(self._rows):
                self._fail(one, error)

    def _close(self) -> None:
        """Free the KV cache."""
        self._decoder, self._slots = None, 0
        self._memory.release(id(self))


def _note_cache_hits(prompt: _Prompt) -> None:
    """Count the tokens of a prompt that were read for another request."""
    if not prompt.rows[0].sequence.tokens:  # else it begins again, after a failed step
        chain, answering = prompt.run.chain(), prompt.answering
        hits = sum(len(run.tokens) for run in chain if run.read_for is not answering)
        answering.result.prompt_cache_hit_tokens = hits


def _average(average: float, newest: float) -> float:
    return (1 - _NEWEST) * average + _NEWEST * newest if average else newest
