"""Answers in an unexpected script, and texts of an unexpected length."""

import random

import pytest

from tests.support.near_texts import han_words, text, words
from tinkersmith.doctor.outliers import Lengths, Scripts
from tinkersmith.doctor.texts import script_of


@pytest.mark.parametrize(
    ("script", "written"),
    [
        ("Latin", "The tides follow the moon, which pulls at the water of the sea."),
        ("Latin", "El niño comió piñas y después bebió agua."),
        ("Chinese", "潮汐是由月球的引力引起的现象。"),
        ("Chinese", "使用 Python 的 print 函数可以输出 hello world 这样的文字内容。"),
        ("Japanese", "潮の満ち引きは月の引力によって起こります。"),
        ("Korean", "조수는 달의 인력 때문에 생깁니다 그렇습니다"),
        ("Cyrillic", "Приливы вызваны притяжением Луны и Солнца."),
        ("Arabic", "المد والجزر سببه جاذبية القمر والشمس"),
        ("Chinese", "法国的首都是巴黎"),
        ("", "东京"),
        ("", "Albert Einstein"),
        ("", "42"),
        ("", "x = 1, y = 2"),
        ("", "```python\nprint('the tides follow the moon and the sun')\n```"),
        ("", "$\\text{the tides follow the moon and the sun}$"),
        ("", "https://example.org/the/tides/follow/the/moon/and/the/sun"),
    ],
)
def test_the_script_of_a_text(script: str, written: str) -> None:
    assert script_of(written) == script


ENGLISH = "Why does the water of the sea rise and fall every day?"
CHINESE = "为什么海水每天都会上涨和下降，请解释一下原因？"


def exchanges(rng: random.Random, count: int, chinese: bool) -> list[tuple[str, str]]:
    vocabulary, gap = (han_words(rng), "") if chinese else (words(rng), " ")
    return [(text(rng, vocabulary, 60, gap), text(rng, vocabulary, 120, gap)) for _ in range(count)]


def outliers_of(pairs: list[tuple[str, str]]) -> set[int]:
    scripts = Scripts()
    for question, answer in pairs:
        scripts.add(question, answer)
    return set(scripts.outliers())


def test_an_answer_in_another_script_than_its_question_is_found() -> None:
    rng = random.Random(1)
    english, chinese = exchanges(rng, 60, chinese=False), exchanges(rng, 60, chinese=True)
    pairs = [*english, *chinese, (english[0][0], chinese[0][1]), (chinese[0][0], english[0][1])]
    assert outliers_of(pairs) == {120, 121}


def test_few_answers_in_another_script_than_all_others_are_found() -> None:
    rng = random.Random(2)
    english, chinese = exchanges(rng, 200, chinese=False), exchanges(rng, 1, chinese=True)
    assert outliers_of([*english, *chinese]) == {200}
    assert outliers_of([*english, ("42?", chinese[0][1])]) == {200}


def test_data_in_two_languages_has_no_outliers() -> None:
    rng = random.Random(3)
    assert not outliers_of(exchanges(rng, 50, chinese=False) + exchanges(rng, 50, chinese=True))


def test_a_question_that_asks_for_a_translation_may_get_one() -> None:
    rng = random.Random(4)
    english, chinese = exchanges(rng, 50, chinese=False), exchanges(rng, 50, chinese=True)
    for frame in ("Translate into Chinese: ", "How do they say this in Chinese? ", "翻译成中文："):
        pairs = [*english, *chinese, (frame + english[0][0], chinese[0][1])]
        assert not outliers_of(pairs)


def test_where_answers_are_mostly_in_another_script_that_is_what_the_data_is_for() -> None:
    rng = random.Random(5)
    english, chinese = exchanges(rng, 50, chinese=False), exchanges(rng, 50, chinese=True)
    assert not outliers_of([(q, a) for (q, _), (_, a) in zip(english, chinese, strict=True)])


def lengths_of(lengths: list[int]) -> dict[int, str]:
    found = Lengths("answer")
    for length in lengths:
        found.add("x" * length)
    return found.outliers()


def test_far_longer_and_far_shorter_texts_are_found() -> None:
    rng = random.Random(6)
    usual = [round(rng.lognormvariate(6, 0.4)) for _ in range(500)]
    reasons = lengths_of([*usual, 20_000, 4])
    assert set(reasons) == {500, 501}
    assert "20,000 characters; half of all have fewer than" in reasons[500]
    assert "4 characters; half of all have more than" in reasons[501]


def test_usual_spreads_of_lengths_have_no_outliers() -> None:
    rng = random.Random(7)
    for sigma in (0.1, 0.5, 1.0, 1.5):
        assert not lengths_of([1 + round(rng.lognormvariate(5, sigma)) for _ in range(1000)])
    assert not lengths_of([1] * 500 + [500] * 500)
    assert not lengths_of([3] * 5 + [3000])
    assert not lengths_of([])
