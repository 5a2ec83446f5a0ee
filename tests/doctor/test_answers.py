"""Refusals, empty answers and repeated questions are found, and sound answers are not."""

import pytest

from tinkersmith.doctor.answers import in_an_exchange
from tinkersmith.doctor.texts import Exchange

QUESTION = "Tell me how the tides of the sea come about, in a few words."


def kinds(answer: str, question: str = QUESTION, has_calls: bool = False) -> list[str]:
    return [kind for kind, _ in in_an_exchange(Exchange(question, answer, has_calls))]


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot assist with that request.",
        "I am sorry, but I am unable to answer this.",
        "I cannot provide instructions for that.",
        "Sorry, but I can't assist with that.",
        "I apologize, but I cannot fulfill this request.",
        "I can't help with that request.",
        "I'm unable to provide that information.",
        "Unfortunately, I cannot browse the internet.",
        "I'm sorry, but as an AI, I cannot open links.",
        "I must decline to write this.",
        "抱歉，我目前无法访问互联网。",
        "I don't have personal opinions, but many people like it.",
        "This would go against OpenAI's use-case policy.",
        "根据相关法律法规，我无法提供此类信息。",
        "这个问题我无法回答，请换一个。",
        "As an AI language model, I do not have feelings.",
        "That is a hard question. As an AI, I have no body.",
        "As an artificial intelligence, I cannot taste food.",
        "As a large language model, I have no opinions.",
        "I'm just an AI assistant, so I have not seen it.",
        "作为一个AI语言模型，我无法提供个人意见。",
        "作为人工智能助手，我没有情感。",
        "作为一名AI，我不能回答这个问题。",
        "作为由OpenAI训练的语言模型，我无法访问互联网。",
        "抱歉，我无法回答这个问题。",
        "很抱歉，但我不能提供这类信息。",
        "对不起，我不能协助您完成这个请求。",
        "非常抱歉，我没有办法帮助你。",
        "我无法提供这方面的帮助。",
        "作為一個人工智慧，我無法提供醫療建議。",
        "申し訳ありませんが、そのご依頼にはお答えできません。",
    ],
)
def test_refusals_are_found(answer: str) -> None:
    assert kinds(answer) == ["refusals"]


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI engineer, you will train models.",
        "The hotel said: we cannot offer a refund. That is how the story ends.",
        "I'm sorry to hear that! Drink enough water and rest.",
        "I am sorry for your loss.",
        "She said that she could not help it.",
        "We cannot divide by zero, so x is not 1.",
        "作为人工智能领域的专家，你应当了解这些。",
        "作为一个工程师，我无法接受这种质量。",
        "抱歉让您久等了，您的订单已经发出。",
        "他无法提供证据，因此败诉。",
        "AI is a field of computer science.",
        "人工智能是计算机科学的一个分支。",
        "Dear guest, I apologize for the delay. We will send you a new one.",
        "I cannot recommend this book enough.",
        "I'm sorry, but I can't attend the meeting tomorrow.",
        "I can't help thinking that she was right.",
        "I cannot see why not; go ahead.",
        "抱歉，我不能参加明天的会议，因为家里有事。",
        "I'm sorry, Dave. I'm afraid I can't do it.",
        "I can't believe how beautiful it is.",
        "Once upon a time " + "there was a fox. " * 20 + "\"I'm sorry, but I can't\", it said.",
    ],
)
def test_sound_answers_are_no_refusals(answer: str) -> None:
    assert kinds(answer) == []


@pytest.mark.parametrize(
    "answer",
    ["...", "-", "???", "。。。", "N/A", "n/a.", "null", "TODO", "[deleted]", "\u200b", "暂无",
     "待补充", "nan", "“”", "{answer}", "{{ answer }}", "<nooutput>", "[Insert answer here]"],
)  # fmt: skip
def test_answers_without_content_are_found(answer: str) -> None:
    assert kinds(answer) == ["empty-answers"]


@pytest.mark.parametrize(
    "answer",
    ["A", "7", "是", "+", "∞", "👍", "None", "none", "无", "x", "π", "½", "'a'", "Null hypothesis",
     "{1, 2, 3}", "{}{}{1}", "f(x)={x}", "-1", "[1]", "№", "€"],
)  # fmt: skip
def test_short_answers_have_content(answer: str) -> None:
    assert kinds(answer) == []


def test_an_answer_that_calls_a_tool_may_be_empty() -> None:
    assert kinds("", has_calls=True) == []


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (QUESTION, QUESTION),
        (QUESTION, QUESTION.upper() + "\n"),
        (QUESTION, QUESTION + " The moon pulls at the water."),
        ("请解释一下潮汐是怎么产生的？", "请解释一下潮汐是怎么产生的?"),
    ],
)
def test_answers_that_repeat_the_question_are_found(question: str, answer: str) -> None:
    assert kinds(answer, question) == ["copied-questions"]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Correct the sentence.\nHe goes home.", "He goes home."),
        ("Is it so?", "It is so."),
        ("Water", "Water is wet."),
        ("", "A poem."),
        ("Name a colour", "Name a colour? Red."),
    ],
)
def test_answers_may_take_words_of_the_question(question: str, answer: str) -> None:
    assert kinds(answer, question) == []
