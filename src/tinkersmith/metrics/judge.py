"""Verdicts of a judge on many answers: graded, right or wrong, or pairs in both orders.

A verdict that cannot be read is counted apart, and never guessed.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tinkersmith.metrics.judge_client import JudgeClient, JudgeRefused
from tinkersmith.metrics.judge_prompts import GRADES, judge_prompt, read_verdict
from tinkersmith.metrics.judge_replies import JudgeReply
from tinkersmith.plurals import counted

PARALLEL = 8  # requests under way
_PER = 1_000_000  # tokens that a price is for


@dataclass(frozen=True, slots=True)
class JudgePlan:
    """How answers are judged."""

    mode: str  # "graded", "right_wrong" or "pairwise"
    language: str  # of the prompts: "en" or "zh"
    rubric: str
    price: Mapping[str, float]  # {} or "input" and "output", for a million tokens


@dataclass(frozen=True, slots=True)
class Judged:
    """A question with the answer to judge, or for "pairwise" with the tuned and the base one."""

    prompt: str
    expected: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JudgeVerdict:
    """What came of one `Judged`."""

    score: float | None  # 0 to 1; None: unreadable or refused. Pairwise: 1 is for the tuned one
    orders: tuple[float | None, ...] = ()  # pairwise: the verdict for the tuned one, each order
    refused: str = ""
    unasked: bool = False  # pairwise: both answers are the same text
    reply: str = ""  # the last one that could not be read


@dataclass(slots=True)
class JudgeCounts:
    """What the requests to a judge took."""

    requests: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    without_usage: int = 0
    cut: int = 0

    def add(self, reply: JudgeReply) -> None:
        self.requests += 1
        self.cut += reply.cut
        if reply.prompt_tokens is None or reply.reply_tokens is None:
            self.without_usage += 1
        else:
            self.prompt_tokens += reply.prompt_tokens
            self.reply_tokens += reply.reply_tokens

    def cost(self, price: Mapping[str, float]) -> float | None:
        """What the tokens cost; None without prices, or where the server counts no tokens."""
        if not price or self.requests == self.without_usage:
            return None
        return (self.prompt_tokens * price["input"] + self.reply_tokens * price["output"]) / _PER


def try_judge(client: JudgeClient, plan: JudgePlan) -> None:
    """Ask one short question, before hours of sampling.

    Raises:
        UserError: the judge cannot be used.
    """
    answers = ("4", "5") if plan.mode == "pairwise" else ("4",)
    prompt = judge_prompt(plan.mode, plan.language, plan.rubric, "2 + 2 = ?", "4", *answers)
    with suppress(JudgeRefused):  # it answers; what it refuses is counted later
        client.try_out(prompt)


def judge_all(
    client: JudgeClient,
    plan: JudgePlan,
    items: Sequence[Judged],
    counts: JudgeCounts,
    reached: Callable[[int], None] = lambda done: None,
    check: Callable[[], None] = lambda: None,
) -> list[JudgeVerdict]:
    """The verdicts on all items, in their order. Equal items are asked about once.

    Args:
        counts: gets what the requests took.
        reached: called with the number of different items that have a verdict.
        check: called meanwhile; raises to end the work.

    Raises:
        UserError: the judge cannot be used, or is away for long.
    """
    different = list(dict.fromkeys(items))
    verdicts: dict[Judged, JudgeVerdict] = {}
    pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="judge")
    try:
        under_way = {pool.submit(_judge, client, plan, item): item for item in different}
        while under_way:
            done, _ = wait(under_way, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                item = under_way.pop(future)
                verdict, replies = future.result()
                verdicts[item] = verdict
                for reply in replies:
                    counts.add(reply)
            reached(len(verdicts))
            check()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return [verdicts[item] for item in items]


def _judge(
    client: JudgeClient, plan: JudgePlan, item: Judged
) -> tuple[JudgeVerdict, list[JudgeReply]]:
    if plan.mode == "pairwise" and item.answers[0].split() == item.answers[1].split():
        return JudgeVerdict(0.5, unasked=True), []
    orders = [item.answers, item.answers[::-1]] if plan.mode == "pairwise" else [item.answers]
    replies: list[JudgeReply] = []
    values: list[float | None] = []
    unreadable = ""
    try:
        for answers in orders:
            prompt = judge_prompt(
                plan.mode, plan.language, plan.rubric, item.prompt, item.expected, *answers
            )
            reply = client.ask(prompt)
            replies.append(reply)
            value = None if reply.cut else read_verdict(plan.mode, reply.text)
            if value is None:
                unreadable = reply.text
            values.append(value)
    except JudgeRefused as error:
        return JudgeVerdict(None, refused=str(error)), replies
    if plan.mode != "pairwise":
        value = values[0]
        if value is not None and plan.mode == "graded":
            value = (value - GRADES[0]) / (GRADES[1] - GRADES[0])
        return JudgeVerdict(value, reply=unreadable), replies
    # In the second order, A is the base model's answer.
    seen = (values[0], None if values[1] is None else 1.0 - values[1])
    if seen[0] is None or seen[1] is None:
        return JudgeVerdict(None, seen, reply=unreadable), replies
    return JudgeVerdict(seen[0] if seen[0] == seen[1] else 0.5, seen), replies


# ---- what is said


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """The verdicts, with the answers' correctness by final answer where that is known."""

    plan: JudgePlan
    verdicts: Sequence[JudgeVerdict]
    right: Sequence[tuple[float | None, ...]] = field(
        default_factory=list[tuple[float | None, ...]]
    )

    def to_json(self) -> dict[str, Any]:
        scores = [v.score for v in self.verdicts if v.score is not None]
        unreadable = [v for v in self.verdicts if v.score is None and not v.refused]
        refused = [v.refused for v in self.verdicts if v.refused]
        content: dict[str, Any] = {
            "mode": self.plan.mode,
            "judged": len(scores),
            "unreadable": len(unreadable),
            "unreadable_example": unreadable[0].reply[-300:] if unreadable else None,
            "refused": len(refused),
            "refused_example": refused[0] if refused else None,
            "mean": sum(scores) / len(scores) if scores else None,
        }
        if self.plan.mode == "pairwise":
            content |= self._orders()
        return content | self._agreement()

    def _orders(self) -> dict[str, Any]:
        """How the two orders of a pair agree, and which place the judge prefers."""
        both = [
            (v.orders[0], v.orders[1])
            for v in self.verdicts
            if v.score is not None and not v.unasked
        ]
        agreed = [pair for pair in both if pair[0] == pair[1]]
        score_counts = [v.score for v in self.verdicts if not v.unasked]
        # Verdicts are as seen from the tuned model, which is A in the first order alone.
        first_place = sum((a == 1) + (b == 0) for a, b in both)
        second_place = sum((a == 0) + (b == 1) for a, b in both)
        return {
            "tuned_better": score_counts.count(1.0),
            "base_better": score_counts.count(0.0),
            "tie": len(agreed) - sum(a in (0, 1) for a, _ in agreed),
            "orders_disagree": len(both) - len(agreed),
            "equal_answers": sum(v.unasked for v in self.verdicts),
            "orders_agree": len(agreed) / len(both) if both else None,
            "first_place_preferred": first_place,
            "second_place_preferred": second_place,
        }

    def _agreement(self) -> dict[str, Any]:
        """How the verdicts agree with the final answers."""
        known = [
            (v.score, right)
            for v, right in zip(self.verdicts, self.right, strict=False)
            if v.score is not None and not v.unasked and None not in right
        ]
        if self.plan.mode == "pairwise":
            differing = [(s, r[0]) for s, r in known if len(r) == 2 and r[0] != r[1]]
            agree = sum((s == 1) if first else (s == 0) for s, first in differing)
            return {"final_answer_differs": len(differing), "prefers_the_right_one": agree}
        if self.plan.mode == "right_wrong":
            agree = sum(s == r[0] for s, r in known)
            return {"with_final_answer": len(known), "agrees_with_final_answer": agree}
        content: dict[str, Any] = {}
        for name, wanted in (("right", 1.0), ("wrong", 0.0)):
            scores = [s for s, r in known if r[0] == wanted]
            mean = sum(scores) / len(scores) if scores else None
            content[f"mean_if_final_answer_{name}"] = mean
            content[f"n_if_final_answer_{name}"] = len(scores)
        return content


def judge_lines(content: Mapping[str, Any]) -> list[str]:
    """What a judge said of one model, or of two, in sentences."""
    judged, lines = content["judged"], list[str]()
    if content["mode"] == "pairwise":
        lines.append(
            f"Judge: the trained model's answer is better {content['tuned_better']:,} times, the "
            f"base model's {content['base_better']:,} times; {counted(content['tie'], 'tie')}, "
            f"and {content['orders_disagree']:,} more where the two orders disagree, which count "
            "as ties."
        )
        if content["equal_answers"]:
            pairs = counted(content["equal_answers"], "pair has", "pairs have")
            lines.append(f"{pairs} equal answers: a tie, without asking.")
        if content["orders_agree"] is not None:
            lines.append(
                f"The two orders agree in {content['orders_agree']:.1%} of the pairs; the answer "
                f"shown first was preferred {content['first_place_preferred']:,} times, the second "
                f"{content['second_place_preferred']:,} times."
            )
        if content["final_answer_differs"]:
            lines.append(
                f"Where only one final answer is right, the judge prefers that one in "
                f"{content['prefers_the_right_one']:,} of {content['final_answer_differs']:,}."
            )
    elif judged:
        if content["mode"] == "graded":
            low, high = GRADES
            mean = low + (high - low) * content["mean"]
            text = f"Judge: mean grade {mean:.2f} of {high} for {counted(judged, 'answer')}"
            text += " (scores above are (grade - 1) / 9)"
            shown = [
                f"{low + (high - low) * content[f'mean_if_final_answer_{name}']:.2f} where the "
                f"final answer is {name} ({content[f'n_if_final_answer_{name}']:,})"
                for name in ("right", "wrong")
                if content[f"n_if_final_answer_{name}"]
            ]
            lines.append(f"{text}; {', '.join(shown)}." if shown else f"{text}.")
        else:
            text = f"Judge: {content['mean']:.1%} of {counted(judged, 'answer')} right"
            if content["with_final_answer"]:
                text += (
                    f"; it agrees with the final answers in "
                    f"{content['agrees_with_final_answer']:,} of {content['with_final_answer']:,}"
                )
            lines.append(f"{text}.")
    for name, why in (
        ("unreadable", ("could not be read", "could not be read")),
        ("refused", ("was refused", "were refused")),
    ):
        if content[name]:
            example = content[f"{name}_example"]
            quoted = " ".join(str(example).split())[-100:]
            verdicts = counted(content[name], f"verdict {why[0]}", f"verdicts {why[1]}")
            lines.append(f"{verdicts}, so no score. The first: {quoted or 'an empty reply'}")
    return lines


def cost_lines(counts: JudgeCounts, price: Mapping[str, float]) -> list[str]:
    """What the judge took."""
    text = (
        f"The judge took {counted(counts.requests, 'request')}, {counts.prompt_tokens:,} tokens of "
        f"prompts and {counts.reply_tokens:,} of replies"
    )
    cost = counts.cost(price)
    text += f", which cost {cost:.4g} by JUDGE_PRICE" if cost is not None else ""
    lines = [f"{text}."]
    if counts.without_usage:
        lines.append(
            "The server did not count the tokens of "
            + counted(counts.without_usage, "reply", "replies")
            + (", so the cost is higher." if cost is not None else ".")
        )
    if counts.cut:
        lines.append(f"{counted(counts.cut, 'reply was', 'replies were')} cut at the token limit.")
    return lines
