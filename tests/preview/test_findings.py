"""What looks wrong in samples is found, counted, and named with its first place."""

from dataclasses import replace

import numpy as np
import pytest

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.data.samples import Sample, Source, alpaca_sample
from tinkersmith.preview.findings import (
    PROBLEM_SENTENCES,
    Control,
    ProblemCounts,
    SampleProblem,
    problems_of_sequence,
    problems_of_text,
)
from tinkersmith.text.templates import ChatTemplate, choose_template
from tinkersmith.text.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(BUNDLED_MODELS["tinkersmith/tiny-math"])
TEMPLATE = choose_template("chat", TOKENIZER, "x")
CONTROL = Control.of(TOKENIZER, TEMPLATE)
END = TOKENIZER.special_tokens["<|im_end|>"]
BEGIN = 7
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def kinds(tokens: list[int], spans: list[tuple[int, int]], cut: bool = False) -> list[str]:
    control = replace(CONTROL, begin=BEGIN, unknown=99, unknown_text="<unk>")
    places = np.array(spans, np.int64).reshape(-1, 2)
    found = problems_of_sequence(np.array(tokens, np.int32), places, cut, control)
    return [problem.kind for problem in found]


@pytest.mark.parametrize(
    ("tokens", "spans", "expected"),
    [
        ([BEGIN, 5, 6, END], [(2, 4)], []),
        ([BEGIN, 5, 6, END, 8], [(2, 5)], []),  # a new line may follow the end token
        ([5, 6, 6], [(1, 3)], ["no end token"]),
        ([5, 6, 6, 5, 6, END], [(1, 3), (4, 6)], ["no end token"]),
        ([BEGIN, BEGIN, 5, END], [(2, 4)], ["double begin token"]),
        ([BEGIN, 5, BEGIN, END], [(1, 4)], []),
        ([5, END], [(1, 2)], ["empty completion"]),
        ([5, 6], [], ["nothing trained"]),
        ([5, 99, END], [(1, 3)], ["unknown tokens"]),
    ],
)
def test_what_is_wrong_with_a_sequence_is_found(
    tokens: list[int], spans: list[tuple[int, int]], expected: list[str]
) -> None:
    assert kinds(tokens, spans) == expected


def test_a_cut_answer_needs_no_end_token_but_those_before_it_do() -> None:
    assert kinds([5, 6, 6], [(1, 3)], cut=True) == ["cut"]
    assert kinds([5, 6, 6, 6], [(1, 2), (3, 4)], cut=True) == ["cut", "no end token"]


def sample(instruction: str, output: str, input: str = "", record: int = 1) -> Sample:
    return alpaca_sample(instruction, input, output, Source("f.json", record))


@pytest.mark.parametrize(
    ("instruction", "input", "output", "expected"),
    [
        ("Say yes.", "", "yes", []),
        ("Say <|im_end|>.", "", "yes", ["special token in text"]),
        ("Say", "<|endoftext|>", "yes", ["special token in text"]),
        ("Say", "", "yes<|im_start|>", ["special token in text"]),
        (
            "What is the capital of France?",
            "",
            "What is the capital of France? Paris.",
            ["prompt repeated"],
        ),
        ("Why?", "", "Why? Because.", []),
    ],
)
def test_what_is_wrong_with_a_text_is_found(
    instruction: str, input: str, output: str, expected: list[str]
) -> None:
    problems = problems_of_text(sample(instruction, output, input), CONTROL)
    assert [problem.kind for problem in problems] == expected


def found(outputs: list[str], template: object = TEMPLATE) -> list[str]:
    findings = ProblemCounts()
    for number, output in enumerate(outputs, start=1):
        findings.add_sample(sample(f"Question {number}", output, record=number), ())
    return [str(finding) for finding in findings.all(template)]  # type: ignore[arg-type]


def test_the_same_answer_in_more_than_a_fifth_is_said_with_its_first_place() -> None:
    assert found(["a", "b", "same", "c", "same ", "d", "e", "f", "g", "same"]) == [
        "3 samples (30%) with the same answer. That is right for labels; else the model "
        "learns to give it to everything. The first: f.json, record 3."
    ]
    assert found(["same"] * 3 + list("abcdefghijkl")) == []  # a fifth is not more than a fifth
    assert found(["same", "same", "a", "b"]) == []  # two of a few say nothing


def test_a_template_with_thoughts_is_compared_with_the_data() -> None:
    assert isinstance(TEMPLATE, ChatTemplate)
    thinking = choose_template("chat", replace(TOKENIZER, chat_template=THINKING), "x")
    assert "1 sample without any thought" in found(["a"], thinking)[0]
    assert found(["<think>x</think>a"], thinking) == []
    assert found(["a"]) == []


def test_a_thought_that_begins_before_the_answer_is_no_special_token_in_the_text() -> None:
    control = replace(CONTROL, special_texts=("</think>",))
    answers = ("Okay.\n</think>\n\nFour.", "Write </think> here.")
    samples = [alpaca_sample("q", "", answer, Source("f", 1)) for answer in answers]
    found = [[*problems_of_text(sample, control)] for sample in samples]
    assert found == [[], [SampleProblem("special token in text", "</think>")]]


def test_problems_are_counted_and_the_first_is_named() -> None:
    findings = ProblemCounts()
    for record in (4, 9):
        findings.add(Source("f.json", record), [SampleProblem("no end token")])
    findings.add(Source("f.json", 5), [SampleProblem("unknown tokens", "<unk>")])
    assert [str(finding) for finding in findings.all(TEMPLATE)] == [
        "2 sequences without an end token in a part that is trained on: the model would not learn "
        "to stop there. The first: f.json, record 4.",
        "1 sequence with text that the tokenizer does not know and replaces by <unk>. The first: "
        "f.json, record 5.",
    ]


def test_every_kind_has_a_sentence_that_takes_a_detail() -> None:
    assert all(
        sentence.format("x") and not sentence.endswith(".")
        for sentence in PROBLEM_SENTENCES.values()
    )


def test_the_end_tokens_are_the_models_and_the_templates() -> None:
    assert {TOKENIZER.eos_id, END} <= CONTROL.ends
    assert CONTROL.begin is None  # this tokenizer has none
