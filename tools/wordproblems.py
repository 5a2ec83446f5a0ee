"""Arithmetic word problems of ten families, in English and Chinese, with their solutions.

A problem is a family, its numbers and a wording. The same numbers give the same steps whatever the
wording, so a problem is recognised by `key()` under any story, in either language.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

LANGUAGES = ("en", "zh")

# Names and things take part in the stories only, never in the steps.
NAMES = {
    "en": [
        "Tom",
        "Anna",
        "Ben",
        "Lucy",
        "Sam",
        "Mia",
        "Jack",
        "Emma",
        "Leo",
        "Nora",
        "Max",
        "Ella",
    ],
    "zh": [
        "小明",
        "小红",
        "小华",
        "小丽",
        "小刚",
        "小芳",
        "小强",
        "小云",
        "李雷",
        "王芳",
        "张伟",
        "刘洋",
    ],
}
THINGS = {
    "en": [
        "apples",
        "pencils",
        "books",
        "cards",
        "stamps",
        "marbles",
        "cookies",
        "stickers",
        "balls",
        "coins",
    ],
    "zh": ["苹果", "铅笔", "书", "卡片", "邮票", "弹珠", "饼干", "贴纸", "球", "硬币"],
}


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a solution: `left operator right = result`, and what the result is."""

    left: int
    operator: str  # one of + - × ÷
    right: int
    result: int
    meaning: dict[str, str]  # language -> a few words

    def equation(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}"


@dataclass(frozen=True, slots=True)
class Problem:
    family: str
    numbers: tuple[int, ...]
    language: str
    story: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1].result

    def key(self) -> tuple[str, tuple[int, ...]]:
        """What makes two problems the same one, whatever the wording and language."""
        return self.family, self.numbers


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    draw: Callable[[random.Random], tuple[int, ...]]
    solve: Callable[..., list[Step]]
    stories: dict[str, tuple[str, ...]]  # language -> wordings
    held_out: dict[str, tuple[str, ...]]  # wordings that pretraining never uses


def _step(left: int, operator: str, right: int, en: str, zh: str) -> Step:
    results = {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "×": lambda: left * right,
        "÷": lambda: left // right,
    }
    if operator == "÷" and left % right:
        raise ValueError(f"{left} is not divisible by {right}")
    return Step(left, operator, right, results[operator](), {"en": en, "zh": zh})


def _add(a: int, b: int, en: str = "in total", zh: str = "一共") -> Step:
    return _step(a, "+", b, en, zh)


def _subtract(a: int, b: int, en: str = "left", zh: str = "剩下") -> Step:
    return _step(a, "-", b, en, zh)


def _multiply(a: int, b: int, en: str = "in all groups", zh: str = "总数") -> Step:
    return _step(a, "×", b, en, zh)


def _divide(a: int, b: int, en: str = "for each", zh: str = "每份") -> Step:
    return _step(a, "÷", b, en, zh)


# ---- the ten families: how numbers are drawn, and the one way they are solved


def _draw_gain_loss(rng: random.Random) -> tuple[int, ...]:
    a, b = rng.randint(10, 60), rng.randint(5, 39)
    return a, b, rng.randint(3, a + b - 2)


def _solve_gain_loss(a: int, b: int, c: int) -> list[Step]:
    return [_add(a, b), _subtract(a + b, c)]


def _draw_boxes(rng: random.Random) -> tuple[int, ...]:
    a, b = rng.randint(2, 9), rng.randint(3, 12)
    return a, b, rng.randint(2, a * b - 1)


def _solve_boxes(a: int, b: int, c: int) -> list[Step]:
    return [_multiply(a, b), _subtract(a * b, c)]


def _draw_two_prices(rng: random.Random) -> tuple[int, ...]:
    return rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)


def _solve_two_prices(a: int, p: int, b: int, q: int) -> list[Step]:
    return [
        _multiply(a, p, "for the first", "第一种"),
        _multiply(b, q, "for the second", "第二种"),
        _add(a * p, b * q),
    ]


def _draw_change(rng: random.Random) -> tuple[int, ...]:
    a, p = rng.randint(2, 9), rng.randint(2, 12)
    return a, p, a * p + rng.randint(1, 60)


def _solve_change(a: int, p: int, note: int) -> list[Step]:
    return [_multiply(a, p, "to pay", "应付"), _subtract(note, a * p, "change", "找回")]


def _draw_share(rng: random.Random) -> tuple[int, ...]:
    each, people, kept = rng.randint(2, 12), rng.randint(2, 9), rng.randint(2, 30)
    return each * people + kept, kept, people


def _solve_share(a: int, kept: int, people: int) -> list[Step]:
    return [_subtract(a, kept), _divide(a - kept, people)]


def _draw_compare(rng: random.Random) -> tuple[int, ...]:
    return rng.randint(8, 60), rng.randint(3, 30)


def _solve_compare(a: int, more: int) -> list[Step]:
    return [_add(a, more, "for the second", "第二个"), _add(a, a + more)]


def _draw_times(rng: random.Random) -> tuple[int, ...]:
    return rng.randint(3, 20), rng.randint(2, 5), rng.randint(2, 30)


def _solve_times(a: int, times: int, extra: int) -> list[Step]:
    return [
        _multiply(a, times, "for the second", "第二个"),
        _add(a, a * times),
        _add(a + a * times, extra, "with the rest", "加上其余"),
    ]


def _draw_travel(rng: random.Random) -> tuple[int, ...]:
    return rng.randint(3, 12), rng.randint(2, 8), rng.randint(3, 12), rng.randint(2, 8)


def _solve_travel(v: int, t: int, w: int, u: int) -> list[Step]:
    return [
        _multiply(v, t, "on the first part", "第一段"),
        _multiply(w, u, "on the second part", "第二段"),
        _add(v * t, w * u),
    ]


def _draw_rectangle(rng: random.Random) -> tuple[int, ...]:
    return rng.randint(3, 30), rng.randint(2, 20)


def _solve_rectangle(a: int, b: int) -> list[Step]:
    return [_add(a, b, "for two sides", "两边之和"), _multiply(a + b, 2, "around", "周长")]


def _draw_saving(rng: random.Random) -> tuple[int, ...]:
    start, week, weeks = rng.randint(5, 40), rng.randint(3, 12), rng.randint(2, 9)
    spend = rng.randint(3, start + week * weeks - 2)
    return start, week, weeks, spend, rng.randint(2, 30)


def _solve_saving(start: int, week: int, weeks: int, spend: int, gift: int) -> list[Step]:
    saved = week * weeks
    return [
        _multiply(week, weeks, "saved", "存下"),
        _add(start, saved),
        _subtract(start + saved, spend),
        _add(start + saved - spend, gift, "at the end", "最后"),
    ]


FAMILIES: tuple[Family, ...] = (
    Family(
        "gain and loss",
        _draw_gain_loss,
        _solve_gain_loss,
        {
            "en": (
                "{n} has {0} {t}. {n} gets {1} more and gives away {2}. How many {t} are left?",
                "There are {0} {t} in a bag. {n} puts {1} more in and takes {2} out. How many {t} are in the bag now?",
                "{n} had {0} {t}, found {1} more, and lost {2}. How many {t} does {n} have now?",
                "A shop has {0} {t}. It buys {1} more and sells {2}. How many {t} does the shop have?",
            ),
            "zh": (
                "{n}有{0}个{t}，又得到{1}个，送出{2}个。还剩多少个{t}？",
                "袋子里有{0}个{t}，{n}放进{1}个，又拿出{2}个。现在袋子里有多少个{t}？",
                "{n}原来有{0}个{t}，找到{1}个，丢了{2}个。{n}现在有多少个{t}？",
                "商店有{0}个{t}，买进{1}个，卖出{2}个。商店现在有多少个{t}？",
            ),
        },
        {
            "en": (
                "In the morning {n} has {0} {t}. Then {1} more come and {2} go. How many {t} are left?",
            ),
            "zh": ("早上{n}有{0}个{t}，后来得到{1}个，又送出{2}个。还剩多少个{t}？",),
        },
    ),
    Family(
        "boxes",
        _draw_boxes,
        _solve_boxes,
        {
            "en": (
                "{n} has {0} boxes with {1} {t} in each box. {n} gives away {2} {t}. How many {t} are left?",
                "There are {0} bags of {1} {t} each. {n} takes {2} {t}. How many {t} are left?",
                "A shop has {0} boxes of {1} {t}. It sells {2} {t}. How many {t} does the shop have now?",
                "{n} buys {0} bags with {1} {t} each and loses {2}. How many {t} does {n} have?",
            ),
            "zh": (
                "{n}有{0}个盒子，每个盒子里有{1}个{t}，送出{2}个。还剩多少个{t}？",
                "有{0}袋{t}，每袋{1}个，{n}拿走{2}个。还剩多少个{t}？",
                "商店有{0}盒{t}，每盒{1}个，卖出{2}个。商店现在有多少个{t}？",
                "{n}买了{0}袋{t}，每袋{1}个，丢了{2}个。{n}有多少个{t}？",
            ),
        },
        {
            "en": (
                "In {0} boxes there are {1} {t} each. Then {2} {t} are sold. How many {t} are left?",
            ),
            "zh": ("{0}个盒子里各有{1}个{t}，卖出{2}个。还剩多少个{t}？",),
        },
    ),
    Family(
        "two prices",
        _draw_two_prices,
        _solve_two_prices,
        {
            "en": (
                "{n} buys {0} {t} for {1} coins each and {2} cups for {3} coins each. How much does {n} pay?",
                "One of the {t} costs {1} coins and a cup costs {3} coins. {n} buys {0} {t} and {2} cups. How much is that in total?",
                "A shop sells {0} {t} for {1} coins each and {2} cups for {3} coins each. How many coins does it get?",
            ),
            "zh": (
                "{n}买了{0}个{t}，每个{1}元，又买了{2}个杯子，每个{3}元。{n}一共要付多少元？",
                "一个{t}{1}元，一个杯子{3}元。{n}买了{0}个{t}和{2}个杯子。一共多少元？",
                "商店卖出{0}个{t}，每个{1}元，又卖出{2}个杯子，每个{3}元。商店一共得到多少元？",
            ),
        },
        {
            "en": (
                "{n} pays {1} coins for each of {0} {t} and {3} coins for each of {2} cups. How much does {n} pay?",
            ),
            "zh": ("{0}个{t}每个{1}元，{2}个杯子每个{3}元，{n}都买了。{n}一共要付多少元？",),
        },
    ),
    Family(
        "change",
        _draw_change,
        _solve_change,
        {
            "en": (
                "{n} buys {0} {t} for {1} coins each and pays with {2} coins. How much change does {n} get?",
                "One of the {t} costs {1} coins. {n} buys {0} {t} and gives {2} coins. How many coins come back?",
                "{n} has {2} coins and buys {0} {t} for {1} coins each. How many coins are left?",
            ),
            "zh": (
                "{n}买了{0}个{t}，每个{1}元，付了{2}元。应找回多少元？",
                "一个{t}{1}元，{n}买了{0}个，给了{2}元。找回多少元？",
                "{n}有{2}元，买了{0}个{t}，每个{1}元。还剩多少元？",
            ),
        },
        {
            "en": (
                "{n} pays {2} coins for {0} {t} that cost {1} coins each. How much change does {n} get?",
            ),
            "zh": ("{n}付了{2}元，买了{0}个{t}，每个{1}元。应找回多少元？",),
        },
    ),
    Family(
        "share",
        _draw_share,
        _solve_share,
        {
            "en": (
                "{n} has {0} {t}, keeps {1} and shares the rest among {2} friends. How many {t} does each friend get?",
                "There are {0} {t}. {n} takes {1}, and {2} children share the rest. How many {t} does each child get?",
                "{n} puts {1} of {0} {t} away and the rest into {2} bags. How many {t} are in each bag?",
            ),
            "zh": (
                "{n}有{0}个{t}，自己留下{1}个，其余平均分给{2}个朋友。每个朋友得到多少个{t}？",
                "有{0}个{t}，{n}拿走{1}个，其余平均分给{2}个孩子。每个孩子得到多少个{t}？",
                "{n}有{0}个{t}，放好{1}个，其余平均装进{2}个袋子。每个袋子里有多少个{t}？",
            ),
        },
        {
            "en": (
                "From {0} {t} {n} keeps {1}. {2} friends share the rest. How many {t} does each friend get?",
            ),
            "zh": ("{0}个{t}中{n}留下{1}个，其余{2}个朋友平均分。每个朋友得到多少个{t}？",),
        },
    ),
    Family(
        "compare",
        _draw_compare,
        _solve_compare,
        {
            "en": (
                "{n} has {0} {t}. {m} has {1} more than {n}. How many {t} do they have together?",
                "{n} finds {0} {t} and {m} finds {1} more than {n}. How many {t} do they find together?",
                "{m} has {1} more {t} than {n}, and {n} has {0}. How many {t} do the two have?",
            ),
            "zh": (
                "{n}有{0}个{t}，{m}比{n}多{1}个。他们一共有多少个{t}？",
                "{n}找到{0}个{t}，{m}比{n}多找到{1}个。他们一共找到多少个{t}？",
                "{m}的{t}比{n}多{1}个，{n}有{0}个。两人一共有多少个{t}？",
            ),
        },
        {
            "en": ("{n} has {0} {t} and {m} has {1} more. How many {t} do they have together?",),
            "zh": ("{n}有{0}个{t}，{m}多{1}个。两人一共有多少个{t}？",),
        },
    ),
    Family(
        "times as many",
        _draw_times,
        _solve_times,
        {
            "en": (
                "{n} has {0} {t}. {m} has {1} times as many. There are {2} more in a box. How many {t} are there in total?",
                "{m} has {1} times as many {t} as {n}. {n} has {0}, and a box holds {2} more. How many {t} are there in total?",
                "{n} finds {0} {t} and {m} finds {1} times as many. They get {2} more. How many {t} do they have together?",
            ),
            "zh": (
                "{n}有{0}个{t}，{m}的数量是{n}的{1}倍，盒子里还有{2}个。一共有多少个{t}？",
                "{m}的{t}是{n}的{1}倍，{n}有{0}个，盒子里还有{2}个。一共有多少个{t}？",
                "{n}找到{0}个{t}，{m}找到的是{n}的{1}倍，他们又得到{2}个。他们一共有多少个{t}？",
            ),
        },
        {
            "en": (
                "{n} has {0} {t}, {m} has {1} times as many, and a bag holds {2}. How many {t} are there in total?",
            ),
            "zh": ("{n}有{0}个{t}，{m}有{n}的{1}倍，袋子里还有{2}个。一共有多少个{t}？",),
        },
    ),
    Family(
        "travel",
        _draw_travel,
        _solve_travel,
        {
            "en": (
                "{n} walks {0} miles a day for {1} days and then {2} miles a day for {3} days. How many miles is that in total?",
                "A cart goes {0} miles an hour for {1} hours and {2} miles an hour for {3} hours. How far does it go?",
                "For {1} days {n} runs {0} miles a day, then for {3} days {2} miles a day. How far does {n} run?",
            ),
            "zh": (
                "{n}每天走{0}里，走了{1}天，然后每天走{2}里，走了{3}天。一共走了多少里？",
                "一辆车每小时走{0}里，走了{1}小时，又每小时走{2}里，走了{3}小时。一共走了多少里？",
                "{n}先用{1}天每天跑{0}里，再用{3}天每天跑{2}里。一共跑了多少里？",
            ),
        },
        {
            "en": (
                "{n} goes {0} miles a day for {1} days, then {2} miles a day for {3} days. How far does {n} go?",
            ),
            "zh": ("{n}先每天走{0}里走{1}天，再每天走{2}里走{3}天。一共走了多少里？",),
        },
    ),
    Family(
        "rectangle",
        _draw_rectangle,
        _solve_rectangle,
        {
            "en": (
                "A garden is {0} steps long and {1} steps wide. {n} walks around it once. How many steps is that?",
                "{n} puts a rope around a field that is {0} steps long and {1} steps wide. How long is the rope?",
                "A room is {0} feet long and {1} feet wide. How many feet is it around the room?",
            ),
            "zh": (
                "花园长{0}步，宽{1}步，{n}绕它走一圈。一共走多少步？",
                "{n}用绳子围一块长{0}步、宽{1}步的地。绳子长多少步？",
                "房间长{0}米，宽{1}米。房间的周长是多少米？",
            ),
        },
        {
            "en": (
                "{n} walks once around a field, {0} steps long and {1} steps wide. How many steps is that?",
            ),
            "zh": ("一块地长{0}步，宽{1}步，{n}绕它走一圈。一共走多少步？",),
        },
    ),
    Family(
        "saving",
        _draw_saving,
        _solve_saving,
        {
            "en": (
                "{n} has {0} coins and saves {1} coins a week for {2} weeks. {n} spends {3} coins and then gets {4}. How many coins does {n} have at the end?",
                "{n} starts with {0} coins, saves {1} a week for {2} weeks, pays {3} for a book and finds {4}. How many coins are there at the end?",
                "For {2} weeks {n} saves {1} coins a week. {n} had {0} before, spends {3} and is given {4}. How many coins does {n} have?",
            ),
            "zh": (
                "{n}有{0}元，每周存{1}元，存了{2}周，花了{3}元，又得到{4}元。{n}最后有多少元？",
                "{n}开始有{0}元，每周存{1}元，存了{2}周，买书付了{3}元，又找到{4}元。最后有多少元？",
                "{n}用{2}周每周存{1}元，原来有{0}元，花了{3}元，又得到{4}元。{n}有多少元？",
            ),
        },
        {
            "en": (
                "{n} has {0} coins. {n} saves {1} a week for {2} weeks, spends {3} and gets {4}. How many coins does {n} have at the end?",
            ),
            "zh": (
                "{n}原来有{0}元，每周存{1}元，存{2}周后花了{3}元，又得到{4}元。{n}最后有多少元？",
            ),
        },
    ),
)


def draw_problem(
    rng: random.Random, language: str | None = None, *, held_out: float = 0.0
) -> Problem:
    """A random problem; `held_out` is the share of wordings that pretraining does not use."""
    family = rng.choice(FAMILIES)
    language = language or rng.choice(LANGUAGES)
    numbers = family.draw(rng)
    wordings = family.held_out if rng.random() < held_out else family.stories
    first, second = rng.sample(NAMES[language], 2)
    story = rng.choice(wordings[language]).format(
        *numbers, n=first, m=second, t=rng.choice(THINGS[language])
    )
    return Problem(family.name, numbers, language, story, tuple(family.solve(*numbers)))
