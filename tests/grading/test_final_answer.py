"""The final answer of texts as models really write them, and the rule that finds it."""

import pytest

from tinkersmith.grading.final_answer import final_answer, normalise


@pytest.mark.parametrize(
    ("text", "expected", "rule"),
    [
        # announced
        ("So x = 4.\nAnswer: 4", "4", "Answer:"),
        ("Answer: 1,234", "1,234", "Answer:"),
        ("Answer: $5.00", "$5.00", "Answer:"),
        ("Ans: 5", "5", "Answer:"),
        ("**Answer:** 42.", "42", "Answer:"),
        ("**Answer**: 42", "42", "Answer:"),
        ("Answer: **7**", "7", "Answer:"),
        ('Answer: "yes"', "yes", "Answer:"),
        ("Answer:\n42", "42", "Answer:"),
        ("Answer:\n\n$$42$$", "42", "Answer:"),
        ("Answer:\n$$\n42\n$$", "42", "Answer:"),
        ("## Answer\n42", "42", "Answer:"),
        ("Answer: {1, 2}", "{1, 2}", "Answer:"),
        ("Answer: 42. I hope this helps!", "42", "Answer:"),
        ("Answer: 42, not 43", "42", "Answer:"),
        ("FINAL ANSWER: C", "C", "Answer:"),
        ('{"answer": "C", "sure": 1}', "C", "Answer:"),
        ("**Final Answer**: $\\boxed{42}$", "42", "boxed"),
        ("The answer is 42.", "42", "the answer is"),
        ("The answer is 42 because 6*7=42.", "42", "the answer is"),
        ("The final answer is: 3/4", "3/4", "the answer is"),
        ("The answer is Dr. Smith.", "Dr. Smith", "the answer is"),
        ("the answer is $\\frac{1}{2}$.", "\\frac{1}{2}", "the answer is"),
        ("The answer to the first question is 5.", "5", "the answer is"),
        ("Answer: \\(x=3\\)", "x=3", "Answer:"),
        ("Answer: \\[ 12 \\]", "12", "Answer:"),
        ("\\textbf{Answer: 12}", "12", "Answer:"),
        ("答案：12元", "12元", "答案"),
        ("所以答案是 12。", "12", "答案是"),
        ("答案为：－3", "－3", "答案是"),
        ("最终答案: 1,000", "1,000", "答案"),
        ("答案是北京。谢谢！", "北京", "答案是"),
        ("解：一共有 5 个。\n答：小明有 5 个苹果。", "小明有 5 个苹果", "答案"),
        ("综上，故选B。", "B", "选"),
        ("So option C is correct.", "C", "option"),
        ("<answer>24</answer>", "24", "<answer>"),
        ("<answer>Some words.\nAnswer: 24</answer>", "24", "Answer:"),
        # boxed and hashes
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", "boxed"),
        ("so \\boxed{x^{2}+1} it is, as 2 > 1", "x^{2}+1", "boxed"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}", "boxed"),
        ("$\\boxed{\\text{Tuesday}}$", "\\text{Tuesday}", "boxed"),
        ("$x = \\boxed{2}$ or $x = \\boxed{3}$", "2, 3", "boxed"),
        ("He has 3*4=12 apples.\n#### 12", "12", "####"),
        ("#### Step 1\nadd\n#### 1,200", "1,200", "####"),
        # the last marker counts
        ("step \\boxed{3}, then \\boxed{7}.", "7", "boxed"),
        ("Answer: 3? No.\nAnswer: 4", "4", "Answer:"),
        ("The answer is not obvious.\n#### 4", "4", "####"),
        ("\\boxed{4}. This answer is reasonable.", "4", "boxed"),
        ("cut off: Answer: 3 and \\boxed{12", "3 and \\boxed{12", "Answer:"),
        # no marker
        ("It is 3.5 km away", "It is 3.5 km away", "whole text"),
        ("Apollo 13", "Apollo 13", "whole text"),
        ("no number here\nParis.", "Paris", "last line"),
        # thoughts, and a base model that asks itself the next question
        ("<think>the answer is 5</think>6", "6", "whole text"),
        ("<|channel|>analysis<|message|>5?<|channel|>final<|message|>Answer: 6", "6", "Answer:"),
        ("Answer: 12\n\nQuestion: What is 3 + 4?\nAnswer: 7", "12", "Answer:"),
    ],
)
def test_the_final_answer_of_a_text(text: str, expected: str, rule: str):
    found = final_answer(text)
    assert found is not None
    assert (found.text, found.rule) == (expected, rule)


@pytest.mark.parametrize("text", ["", " \n ", "<think>the answer is 5"])
def test_a_blank_text_and_an_unfinished_thought_have_no_final_answer(text: str):
    assert final_answer(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Step 1: 2 + 3 = 5\nStep 2: 5 × 2", None),
        ("The total is 24", None),
        ("Answer: 12", None),
        ("Answer: 3.", None),
        ("The answer is 1", None),
        ("\\boxed{12", None),
        ("<answer>12", None),
        ("#### 12", None),
        ("Answer: 12\n", None),  # white space at the end is not kept, so the line may go on
        ("Answer: 12\nNow check", "12"),
        ("#### 12\nNow", "12"),
        ("答案：12。", "12"),
        ("The answer is Paris.", "Paris"),
        ("The answer is 12 because", "12"),
        ("\\boxed{12} is", "12"),
        ("<answer>12</answer>", "12"),
        ("Answer: 12. Let me check with \\boxed{1", "12"),
    ],
)
def test_a_text_that_was_cut_has_an_answer_only_if_its_marker_is_complete(
    text: str, expected: str | None
):
    found = final_answer(text, cut=True)
    assert (found and found.text) == expected


def test_normalising_forgives_line_ends_and_unicode_forms_only():
    assert normalise("  x \r y\t\n\n") == "x\n y"
    assert normalise("cafe\u0301") == "caf\u00e9"
