"""Answers that were cut off are found, and complete ones are not."""

import random

import pytest

from tests.support.near_texts import han_words, text, words
from tinkersmith.doctor.truncation import EndsOfAnswers, what_is_open


@pytest.mark.parametrize(
    "answer",
    [
        "Here it is:\n```python\nprint(1)\n",
        "```\na\n```\nand\n```sh\nls",
        "The result is \\boxed{42",
        "So we get \\boxed{\\frac{1}{2}",
        "\\begin{align}\nx &= 1 \\\\\n",
        "Therefore \\[ x = 1",
        "It is $$ x^2 + y",
        "It follows that $x^2 = ",
        '{"name": "Ann", "age": 3',
        '[{"a": 1}, {"a": 2',
        '{"name": "An',
        "The reason is that the water of the sea is drawn by the",
        "They came from the north, and they brought corn,",
        "原因是海水受到月球引力的作用，从而形成潮汐现象，并且",
        "我们先来看第一个方面，它说明了这个问题有很多不同的原因，",
        "The list has three items (the first is red, the second",
        "<think>Let me see. The number is odd",
        "这个方法有三个步骤（首先是准备材料，然后",
        "There are three ways to do it. They are the following:",
        "下面是完成这项工作的几个步骤，请依次进行：",
        "1. Take the book.\n2. Open it.\n3.",
        "- red\n- green\n-",
        "She looked at him and said “I have never been so",
    ],
)
def test_open_ends_are_found(answer: str) -> None:
    assert what_is_open(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Paris",
        "42",
        "是",
        "```python\nprint(1)\n```",
        "- a\n  ```sh\n  ls\n  ```\n- b",
        "1. ```sh\n   ls\n   ```",
        "Use ``` for code.",
        "The result is \\boxed{\\frac{1}{2}}.",
        "A set is \\{1, 2\\} and \\boxed{\\{1\\}}",
        "\\begin{align}\nx &= 1 \\\\[2pt]\ny &= 2\n\\end{align}",
        "It costs $5 and $7, so $12.",
        "It costs $5",
        "kill $$",
        "Both \\(x\\) and \\[ y \\] are fine",
        "$x$ and $$y$$",
        '{"name": "Ann"}',
        "{1, 2, 3}",
        "[1, 2, 3]",
        "[a note] The rest is text",
        "{curly} words",
        "I am happy :(",
        "a) first\nb) second",
        "Use f( and g)",
        "Go to the shop and buy 3 apples",
        "Dear Ann:",
        "The answer is\n42.",
        "“Yes”, he said",
        "- red\n- green\n- blue",
        "<think>It is odd.</think>It is odd",
        "What is it made of?",
        "潮汐是月球引力造成的。",
        "他是我的",
        "根据以上分析，题目中给出的这个说法在一般情况下是错误的",
        "Thank you for your letter. I will come on Monday.\n\nBest regards,",
        "x < 3 and y > 2",
    ],
)
def test_complete_answers_have_nothing_open(answer: str) -> None:
    assert what_is_open(answer) == ""


def sentences(rng: random.Random, count: int, chinese: bool) -> list[str]:
    vocabulary, gap, stop = (han_words(rng), "", "。") if chinese else (words(rng), " ", ".")
    return [
        text(rng, vocabulary, 300, gap).strip(stop).replace("、", "") + stop for _ in range(count)
    ]


def ends_of(answers: list[str]) -> dict[int, str]:
    ends = EndsOfAnswers()
    for answer in answers:
        ends.add(answer)
    return ends.cut_off()


@pytest.mark.parametrize("chinese", [False, True])
def test_few_answers_without_a_full_stop_are_cut_off(chinese: bool) -> None:
    answers = sentences(random.Random(1), 100, chinese)
    answers[7] = answers[7][:-1]
    answers[50] = answers[50][:-40].rstrip("。. ") + " word" if not chinese else answers[50][:-1]
    assert set(ends_of(answers)) == {7, 50}


def test_one_cut_answer_among_few_is_found() -> None:
    answers = sentences(random.Random(8), 12, chinese=False)
    answers[5] = answers[5][:150].rstrip(". ") + " an"
    assert set(ends_of(answers)) == {5}


def test_many_answers_without_a_full_stop_are_a_style() -> None:
    answers = sentences(random.Random(2), 100, chinese=False)
    answers[:30] = [answer[:-1] for answer in answers[:30]]
    assert ends_of(answers) == {}


def test_headings_items_and_short_answers_need_no_full_stop() -> None:
    answers = sentences(random.Random(3), 100, chinese=False)
    others = ["Paris", answers[0] + "\nAnswer: 42", answers[1] + "\n- a last item of the list"]
    others += [answers[2] + "\n" + "| cell " * 20 + "|"]
    assert ends_of([*answers, *others]) == {}


def test_few_answers_that_end_with_dots_are_cut_off() -> None:
    answers = sentences(random.Random(4), 100, chinese=False)
    answers[3] = answers[3][:-1] + "..."
    answers[4] = answers[4][:-1] + "……"
    assert set(ends_of(answers)) == {3, 4}
    assert ends_of([*answers[5:], answers[6] + " It goes 1, 2, 3, ..."]) == {}
    assert ends_of([answer[:-1] + "..." for answer in answers[5:]]) == {}


def test_many_answers_of_the_same_greatest_length_are_cut_at_it() -> None:
    rng = random.Random(5)
    answers = [text(rng, words(rng, 200), rng.randint(100, 600), " ")[:500] for _ in range(200)]
    at_cap = {number for number, answer in enumerate(answers) if len(answer) == 500}
    assert len(at_cap) > 20
    found = {number for number, why in ends_of(answers).items() if "exactly 500" in why}
    assert found <= at_cap and len(found) > len(at_cap) // 2


def test_equal_short_answers_are_no_cap() -> None:
    assert ends_of(["The same words again"] * 50) == {}
    assert ends_of([]) == {}
