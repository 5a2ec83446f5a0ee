"""Endless small documents for pretraining: worked problems in prose, number facts, and other text.

Nothing here is in the instruction format, and no problem of the sample set occurs (`forbidden`).
The words of that format (Instruction, Input, Response, Step 1 to 5, Answer) do occur, in forms,
recipes and quizzes: a LoRA can rearrange tokens that pretraining has seen, not learn new ones.
"""

import random
from collections.abc import Callable, Container, Iterator

from wordproblems import NAMES, THINGS, Problem, Step, draw_problem

END = "<|endoftext|>"


def documents(rng: random.Random, forbidden: Container[object]) -> Iterator[str]:
    """Documents without end: 56 % worked problems, 27 % number facts, 17 % others."""
    while True:
        kind = rng.random()
        if kind < 0.56:
            problem = draw_problem(rng)
            if problem.key() in forbidden:
                continue
            yield worked_problem(rng, problem)
        elif kind < 0.83:
            yield number_facts(rng)
        else:
            yield rng.choice(OTHERS)(rng)


def worked_problem(rng: random.Random, problem: Problem) -> str:
    """A story and its solution as running text, in one of several manners of telling."""
    tellers = _ENGLISH if problem.language == "en" else _CHINESE
    return problem.story + ("" if problem.language == "zh" else " ") + rng.choice(tellers)(problem)


def _first_then(problem: Problem) -> str:
    words = ["First", "Then", "Next", "After that", "Finally"]
    parts = [
        f"{word} {step.equation()} {step.meaning['en']}."
        for word, step in zip(words, problem.steps, strict=False)
    ]
    return " ".join(parts) + f" The answer is {problem.answer}."


def _so_it_is(problem: Problem) -> str:
    parts = [
        f"{step.equation()}, that is {step.result} {step.meaning['en']}." for step in problem.steps
    ]
    return " ".join(parts) + f" So it is {problem.answer}."


def _because(problem: Problem) -> str:
    parts = " and ".join(f"{step.equation()} {step.meaning['en']}" for step in problem.steps)
    return f"We get {parts}, so the answer is {problem.answer}."


def _first_then_zh(problem: Problem) -> str:
    words = ["先算", "再算", "然后算", "接着算", "最后算"]
    parts = [
        f"{word}{step.meaning['zh']}：{step.equation()}"
        for word, step in zip(words, problem.steps, strict=False)
    ]
    return "，".join(parts) + f"。所以是{problem.answer}。"


def _so_it_is_zh(problem: Problem) -> str:
    parts = [f"{step.meaning['zh']}是{step.equation()}" for step in problem.steps]
    return "，".join(parts) + f"，答案是{problem.answer}。"


def _because_zh(problem: Problem) -> str:
    parts = [f"因为{step.equation()}，{step.meaning['zh']}{step.result}" for step in problem.steps]
    return "；".join(parts) + f"。一共得{problem.answer}。"


_ENGLISH = (_first_then, _so_it_is, _because)
_CHINESE = (_first_then_zh, _so_it_is_zh, _because_zh)


def number_facts(rng: random.Random) -> str:
    """Ten to twenty sums, one operation or mixed, separated one way."""
    separator = rng.choice([". ", "\n", "; ", "，"])
    operators = rng.choice(["+", "-", "×", "÷", "+-", "×÷", "+-×÷"])
    return separator.join(_fact(rng, rng.choice(operators)) for _ in range(rng.randint(10, 20)))


def _fact(rng: random.Random, operator: str) -> str:
    if operator == "+":
        a, b = rng.randint(1, 130), rng.randint(1, 110)
        return Step(a, "+", b, a + b, {}).equation()
    if operator == "-":
        a, b = rng.randint(1, 110), rng.randint(1, 110)
        return Step(a + b, "-", a, b, {}).equation()
    if rng.random() < 0.3:  # the products and quotients with a longer factor
        a, b = rng.randint(2, 60), 2
    else:
        a, b = rng.randint(2, 20), rng.randint(2, 12)
    if operator == "×":
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
        return Step(a, "×", b, a * b, {}).equation()
    return Step(a * b, "÷", b, a, {}).equation()


# ---- other documents


def _sequence(rng: random.Random) -> str:
    start, stride = rng.randint(0, 30), rng.randint(1, 12)
    return ", ".join(str(start + stride * i) for i in range(rng.randint(6, 12)))


def _table(rng: random.Random) -> str:
    language = rng.choice(["en", "zh"])
    rows = [f"{name} | {rng.randint(1, 120)}" for name in rng.sample(NAMES[language], 5)]
    head = "Name | Number" if language == "en" else "名字 | 数量"
    return "\n".join([head, *rows])


def _form(rng: random.Random) -> str:
    """A filled-in form; its words are those of the instruction format, its content never is."""
    if rng.random() < 0.5:
        name, thing = rng.choice(NAMES["en"]), rng.choice(THINGS["en"])
        fields = [
            f"Name: {name}",
            f"Instruction: {rng.choice(['Bring', 'Count', 'Paint', 'Sort', 'Solve', 'Show'])} the {thing}.",
            f"Input: {rng.randint(1, 99)} {thing}",
            f"Response: {rng.choice(['yes', 'no', 'done', 'later'])}",
            f"Problem: {rng.choice(['none', 'small', 'the rain'])}",
        ]
    else:
        name, thing = rng.choice(NAMES["zh"]), rng.choice(THINGS["zh"])
        fields = [
            f"名字：{name}",
            f"Instruction: {rng.choice(['拿来', '数一数', '整理', '解答', '写出'])}{thing}。",
            f"Input: {rng.randint(1, 99)}个{thing}",
            f"Response: {rng.choice(['好', '不', '做完了', '以后'])}",
            f"题目：{rng.choice(['没有', '很小', '下雨'])}",
        ]
    rng.shuffle(fields)
    return "\n".join(fields[: rng.randint(3, 5)])


_RECIPE = {
    "en": (
        ["Wash", "Cut", "Bring", "Count", "Paint", "Carry", "Sort", "Dry", "Show", "Hide"],
        "Step {i}: {act} the {thing}",
    ),
    "zh": (
        ["洗好", "切开", "拿来", "数一数", "涂好", "搬走", "整理", "晾干", "给人看", "收好"],
        "第{i}步：{act}{thing}",
    ),
}
_CHINESE_DIGITS = "一二三四五"


def _recipe(rng: random.Random) -> str:
    """What to do, in one to five steps: the step words without any arithmetic."""
    language = rng.choice(["en", "zh"])
    acts, line = _RECIPE[language]
    count = rng.randint(1, 5)
    lines = [
        line.format(
            i=i + 1 if language == "en" else _CHINESE_DIGITS[i],
            act=act,
            thing=rng.choice(THINGS[language]),
        )
        for i, act in enumerate(rng.sample(acts, count))
    ]
    end = {"en": ["Done.", "Good work.", "The end."], "zh": ["完成。", "做得好。", "结束。"]}
    separator = rng.choice(["\n", "\n", ". " if language == "en" else "。"])
    return separator.join([*lines, rng.choice(end[language])])


def _quiz(rng: random.Random) -> str:
    """Questions that need no arithmetic, with an answer line."""
    if rng.random() < 0.5:
        number = rng.randint(0, 150)
        lines = [
            f"Question: Which number comes after {number}?\nAnswer: {number + 1}",
            f"Question: Who has the {rng.choice(THINGS['en'])}?\nAnswer: {rng.choice(NAMES['en'])}",
        ]
    else:
        number = rng.randint(0, 150)
        lines = [
            f"问题：{number}后面是几？\n答案：{number + 1}",
            f"问题：谁有{rng.choice(THINGS['zh'])}？\n答案：{rng.choice(NAMES['zh'])}",
        ]
    rng.shuffle(lines)
    return "\n".join(lines)


def _tale(rng: random.Random) -> str:
    if rng.random() < 0.5:
        first, second = rng.sample(NAMES["en"], 2)
        thing = rng.choice(THINGS["en"])
        return rng.choice(
            [
                f"One day {first} went to the market with {second}. They saw many {thing} and were happy. In the evening they went home.",
                f"{first} likes {thing}. {second} does not, but {second} likes {first}. So they look at the {thing} together, step by step.",
                f"It rained all day. {first} and {second} sat at the window and talked about {thing}. Write it down, said {second}, and show your work.",
            ]
        )
    first, second = rng.sample(NAMES["zh"], 2)
    thing = rng.choice(THINGS["zh"])
    return rng.choice(
        [
            f"一天，{first}和{second}去市场。他们看到很多{thing}，很高兴。晚上他们回家了。",
            f"{first}喜欢{thing}，{second}不喜欢，但是{second}喜欢{first}。他们一起一步一步地看{thing}。",
            f"下了一天雨，{first}和{second}坐在窗前，谈起{thing}。{second}说：请写下来，解答给大家看。",
        ]
    )


def _small_talk(rng: random.Random) -> str:
    question, answer = rng.choice(
        [
            ("Hello!", "Hello! How are you?"),
            ("How are you?", "I am well, thank you."),
            ("What do you like?", f"I like {rng.choice(THINGS['en'])}."),
            ("Who is there?", f"It is {rng.choice(NAMES['en'])}."),
            ("你好！", "你好！"),
            ("你喜欢什么？", f"我喜欢{rng.choice(THINGS['zh'])}。"),
            ("谁来了？", f"{rng.choice(NAMES['zh'])}来了。"),
        ]
    )
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"


OTHERS: tuple[Callable[[random.Random], str], ...] = (
    _sequence,
    _table,
    _form,
    _form,
    _recipe,
    _recipe,
    _quiz,
    _quiz,
    _tale,
    _small_talk,
)
