"""Scores on texts as models really write them."""

import random
import time

import pytest

from tinkersmith.grading.scoring import (
    METRICS,
    contains_answer,
    exact_match,
    final_answer,
    final_answer_match,
    normalise,
    same_answer,
    score,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # announced
        ("So x = 4.\nAnswer: 4", "4"),
        ("Answer: 1,234", "1,234"),
        ("Answer: $5.00", "$5.00"),
        ("Ans: 5", "5"),
        ("**Answer:** 42.", "42"),
        ("**Answer**: 42", "42"),
        ("Answer: **7**", "7"),
        ('Answer: "yes"', "yes"),
        ("Answer:\n42", "42"),
        ("Answer:\n\n$$42$$", "42"),
        ("Answer:\n$$\n42\n$$", "42"),
        ("Answer: {1, 2}", "{1, 2}"),
        ("Answer: 42. I hope this helps!", "42"),
        ("FINAL ANSWER: C", "C"),
        ("**Final Answer**: $\\boxed{42}$", "42"),
        ("The answer is 42.", "42"),
        ("The answer is 42 because 6*7=42.", "42"),
        ("The final answer is: 3/4", "3/4"),
        ("The answer is Dr. Smith.", "Dr. Smith"),
        ("the answer is $\\frac{1}{2}$.", "\\frac{1}{2}"),
        ("Answer: \\(x=3\\)", "x=3"),
        ("Answer: \\[ 12 \\]", "12"),
        ("答案：12元", "12元"),
        ("所以答案是 12。", "12"),
        ("答案为：－3", "－3"),
        ("最终答案: 1,000", "1,000"),
        ("答案是北京。谢谢！", "北京"),
        ("解：一共有 5 个。\n答：小明有 5 个苹果。", "小明有 5 个苹果"),
        # boxed and hashes
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("so \\boxed{x^{2}+1} it is, as 2 > 1", "x^{2}+1"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("$\\boxed{\\text{Tuesday}}$", "\\text{Tuesday}"),
        ("He has 3*4=12 apples.\n#### 12", "12"),
        ("#### Step 1\nadd\n#### 1,200", "1,200"),
        ("#### Step one\nIt is 7", "7"),
        # the last marker counts
        ("step \\boxed{3}, then \\boxed{7}.", "7"),
        ("Answer: 3? No.\nAnswer: 4", "4"),
        ("The answer is not obvious.\n#### 4", "4"),
        ("cut off: Answer: 3 and \\boxed{12", "3 and \\boxed{12"),
        # no marker: last number, else last line
        ("It is 3.5 km away", "3.5"),
        ("Therefore 10-5=5", "5"),
        ("it was -5 outside", "-5"),
        ("He owes 1,234.50 dollars", "1,234.50"),
        ("一共有１２个苹果", "12"),
        ("We get $\\frac{3}{4}$", "3/4"),
        ("no number here\nParis.", "Paris"),
        ("", None),
        (" \n ", None),
    ],
)
def test_the_final_answer_of_a_text(text: str, expected: str | None):
    assert final_answer(text) == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1,234", "1234"),
        ("1，234", "1234"),
        ("10 000", "10000"),
        ("12{,}345", "12345"),
        ("12\\,345", "12345"),
        ("3.0", "3"),
        ("7.", "7"),
        ("+7", "7"),
        (".5", "0.5"),
        ("１２３", "123"),
        ("1e3", "1000"),
        ("1.5 \\times 10^3", "1500"),
        ("2×10⁻³", "0.002"),
        # signs
        ("-3", "−3"),
        ("-3", "－3"),
        ("-$5", "-5"),
        # fractions
        ("1/2", "0.5"),
        ("２／３", "2/3"),
        ("1 1/2", "1.5"),
        ("1½", "3/2"),
        ("\\frac{1}{2}", "0.5"),
        ("\\dfrac12", "1/2"),
        ("\\frac{-3}{4}", "-0.75"),
        ("-\\frac{3}{4}", "-0.75"),
        # percent
        ("50%", "50"),
        ("50%", "0.5"),
        ("50\\%", "50％"),
        # units and currencies
        ("5 km", "5"),
        ("5km", "5 km"),
        ("3 apples", "3 apple"),
        ("12元", "12"),
        ("12 个", "12个"),
        ("¥12", "12元"),
        ("\\$18", "18"),
        ("100 dollars", "$100"),
        ("18 \\text{ cm}", "18 cm"),
        ("5 m/s^2", "5 m/s²"),
        ("90^\\circ", "90°"),
        ("90°", "90"),
        # algebra and words
        ("x = 4", "4"),
        ("m = \\frac{1}{3}", "1/3"),
        ("x^2", "x²"),
        ("x^{2}+1", "x^2 + 1"),
        ("\\sqrt{2}", "√2"),
        ("2\\sqrt{3}", "2√3"),
        ("2π", "2\\pi"),
        ("\\left(1,2\\right)", "(1, 2)"),
        ("3:2", "3 : 2"),
        ("\\infty", "∞"),
        ("(B)", "b"),
        ("\\text{Paris}", "paris"),
        ("Yes", "yes."),
        ("北京", " 北京"),
    ],
)
def test_the_same_answer_in_two_ways(first: str, second: str):
    assert same_answer(first, second)
    assert same_answer(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("12", "112"),
        ("3", "3.5"),
        ("-3", "3"),
        ("0.333", "1/3"),
        ("1/2", "1/3"),
        ("\\frac{1}{2}", "12"),
        ("1,23", "123"),
        ("1,2", "12"),
        ("(1,2)", "(2,1)"),
        ("42", "42 or 43"),
        ("50%", "60"),
        ("50%", "50 km"),
        ("5 km", "5 m"),
        ("4x", "4"),
        ("2\\pi", "2"),
        ("3\\sqrt{2}", "3"),
        ("x = 4", "5"),
        ("x = 4", "y = 4"),
        ("x^2", "x2"),
        ("A", "B"),
        ("Paris", "London"),
        ("", ""),
    ],
)
def test_different_answers(first: str, second: str):
    assert not same_answer(first, second)
    assert not same_answer(second, first)


@pytest.mark.parametrize(
    ("answer", "produced", "expected"),
    [
        ("12", "there are 12 of them", 1),
        ("12", "there are 112 of them", 0),
        ("12", "12.5", 0),
        ("12", "1,312", 0),
        ("234", "1,234", 0),
        ("1234", "1,234 in all", 1),
        ("12", "12km", 1),
        ("3.0", "it is 3.", 1),
        ("3", "the list 1,2,3", 1),
        ("3", "3/4", 0),
        ("1/2", "\\frac{1}{2} of it", 1),
        ("5", "10-5", 1),
        ("5", "-5", 0),
        ("-5", "10-5=5", 0),
        ("2", "x2 and v1.2.3", 0),
        ("50%", "about 50 percent", 1),
        ("7", "**7**", 1),
        ("7", "", 0),
        ("12", "一共有12个苹果", 1),
        ("12", "一共有１２个苹果", 1),
        ("Paris", "It is PARIS.", 1),
        ("art", "the party", 0),
        ("A", "a train", 0),
        ("A", "I choose A.", 1),
        ("北京", "首都是北京。", 1),
    ],
)
def test_an_answer_is_contained_only_as_a_whole(answer: str, produced: str, expected: int):
    assert contains_answer(f"Answer: {answer}", produced) == expected
    assert contains_answer(f"答案：{answer}", produced) == expected


def test_an_exact_match_forgives_line_ends_and_unicode_forms_only():
    assert exact_match("a\r\nb  \n", "a\nb") == 1
    assert exact_match("caf\u00e9", "cafe\u0301") == 1
    assert exact_match("a b", "a  b") == 0
    assert exact_match("A", "a") == 0
    assert normalise("  x \r y\t\n\n") == "x\n y"


def test_a_wrong_solution_that_mentions_the_answer_contains_it_and_does_not_match():
    expected = "3 * 4 = 12\nAnswer: 12"
    produced = "12 is too much, so 11.\nAnswer: 11"
    assert score(expected, produced) == {
        "exact_match": 0.0,
        "final_answer": 0.0,
        "contains_answer": 1.0,
    }


def test_the_answer_that_a_sample_names_itself_goes_before_that_of_its_output():
    scores = score("We met in 1999 at noon.", "Answer: Rome", answer="Rome")
    assert scores == {"exact_match": 0.0, "final_answer": 1.0, "contains_answer": 1.0}
    assert final_answer_match("We met in 1999 at noon.", "Answer: Rome") == 0


def test_every_text_agrees_with_itself():
    rng = random.Random(7)
    pieces = [
        "Answer: ",
        "答案：",
        "\\boxed{",
        "}",
        "{",
        "$",
        "1,2",
        "12",
        "3/4",
        "\n",
        " ",
        "x",
        "。",
    ]
    pieces += ["\\frac{1}{2}", "#### ", "-", "%", "½", "²", "é", "\\", "=", "(", "km", ".", "*"]
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
        for name, metric in METRICS.items():
            assert 0 <= metric(text, text) <= 1
            if name == "exact_match":
                assert metric(text, text) == 1, repr(text)


def test_a_model_in_a_loop_is_scored_in_no_time():
    start = time.process_time()
    for text in (
        "the answer is " * 3000,
        "\\boxed{" * 3000 + "}" * 3000,
        "\\frac{" * 3000 + "}" * 6000,
        "1 " * 10_000,
        "1," * 10_000,
        "1" * 20_000,
        "1/" * 10_000,
        " " * 20_000 + "x",
        "Answer: " + "9" * 5000 + "e999999999",
    ):
        final_answer(text)
        contains_answer("Answer: 5", text)
        same_answer(text, text + "1")
    assert time.process_time() - start < 10
