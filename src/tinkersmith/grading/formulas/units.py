"""Names of units -> what they measure and how large they are, from a table of our own.

Currencies have no rates, so that each is a measure of its own. Months and years are not converted
into days. Temperatures have an offset. A name may have several meanings ("分" is 0.01 元 or a
minute); two quantities are equal if some pair of meanings agrees.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import product


@dataclass(frozen=True, slots=True)
class Unit:
    """A factor to the base units with their powers: km/h is 1000/3600 m^1 s^-1.

    Attributes:
        base: (name, power) in alphabetical order.
        offset: added after the factor, for temperatures.
        radian: the value is in radians; the base of angles is the degree.
    """

    factor: Fraction
    base: tuple[tuple[str, int], ...]
    offset: Fraction = Fraction(0)
    radian: bool = False


def _unit(factor: str | int | Fraction, base: str) -> Unit:
    """`base` is written like "kg m s^-2"."""
    powers: dict[str, int] = {}
    for word in base.split():
        name, _, power = word.partition("^")
        powers[name] = int(power or 1)
    return Unit(Fraction(factor), tuple(sorted(powers.items())))


# name of the measure -> {unit: factor}; names are separated by spaces
_TABLE: dict[str, dict[str | int, str]] = {
    "m": {
        1: "m meter metre 米 公尺", 1000: "km KM Km kilometer kilometre 千米 公里",
        "1/10": "dm decimeter decimetre 分米",
        "1/100": "cm CM Cm centimeter centimetre 厘米 公分",
        "1/1000": "mm MM millimeter millimetre 毫米",
        "1/1000000": "μm um µm micrometer micrometre micron 微米",
        "1/1000000000": "nm nanometer nanometre 纳米",
        "0.0254": "in inch inches 英寸", "0.3048": "ft foot feet 英尺", "0.9144": "yd yard 码",
        "1609.344": "mi mile 英里", 500: "里 华里", 1852: "海里",
    },
    "kg": {
        1: "kg KG Kg kilogram kilo 千克 公斤", "1/1000": "g gram gramme 克",
        "1/1000000": "mg milligram 毫克",
        "1/1000000000": "μg ug microgram 微克", 1000: "t ton tonne 吨", "1/2": "斤 市斤",
        "1/20": "两",
        "0.45359237": "lb lbs pound 磅", "0.028349523125": "oz ounce 盎司",
    },
    "s": {
        1: "s sec second 秒 秒钟", 60: "min minute 分 分钟", 3600: "h hr hour 小时 时 钟头 个小时",
        86400: "d day 天 日", 604800: "week wk 周 星期 个星期", "1/1000": "ms millisecond 毫秒",
        "1/1000000": "μs us microsecond 微秒", "1/1000000000": "ns nanosecond 纳秒", 900: "刻钟",
    },
    "month": {1: "month 月 个月", 12: "year yr 年", 120: "decade", 1200: "century centuries 世纪"},
    "m^2": {
        "10000": "ha hectare 公顷", "2000/3": "亩", "4046.8564224": "acre 英亩", 100: "公亩",
    },
    "m^3": {
        "1/1000": "L l liter litre 升", "1/1000000": "mL ml ML milliliter millilitre 毫升",
        "1/100000": "cL cl centiliter",
        "1/10000": "dL dl deciliter", "0.003785411784": "gal gallon 加仑",
        "0.000946352946": "qt quart",
        "0.000473176473": "pint", "0.0002365882365": "cup",
    },
    "m s^-1": {"0.44704": "mph", "1/3.6": "kph kmh kmph", "1852/3600": "knot"},
    "kg m s^-2": {1: "N newton 牛 牛顿", 1000: "kN kilonewton 千牛"},
    "kg m^2 s^-2": {
        1: "J joule 焦 焦耳", 1000: "kJ kilojoule 千焦", 1000000: "MJ megajoule 兆焦",
        "4.184": "cal calorie 卡",
        4184: "kcal kilocalorie 千卡 大卡", 3600000: "kWh 千瓦时 千瓦小时",
        "1.602176634e-19": "eV electronvolt",
    },
    "kg m^2 s^-3": {1: "W watt 瓦 瓦特", 1000: "kW kilowatt 千瓦", 1000000: "MW megawatt 兆瓦",
                    "1/1000": "mW milliwatt 毫瓦"},
    "kg m^-1 s^-2": {
        1: "Pa pascal 帕 帕斯卡", 1000: "kPa kilopascal 千帕", 1000000: "MPa megapascal 兆帕",
        101325: "atm",
        100000: "bar", 100: "hPa 百帕",
    },
    "s^-1": {1: "Hz hertz 赫兹 赫", 1000: "kHz 千赫", 1000000: "MHz 兆赫", 1000000000: "GHz"},
    "A": {1: "A amp ampere 安 安培", "1/1000": "mA milliamp 毫安"},
    "A s": {1: "C coulomb 库仑 库"},
    "A^-1 kg m^2 s^-3": {1: "V volt 伏 伏特", 1000: "kV kilovolt 千伏",
                         "1/1000": "mV millivolt 毫伏"},
    "A^-2 kg m^2 s^-3": {1: "Ω ohm 欧姆 欧", 1000: "kΩ 千欧"},
    "A^2 kg^-1 m^-2 s^4": {1: "F farad 法拉"},
    "mol": {1: "mol mole 摩尔 摩"},
    "degree": {1: "° degree deg 度", "1/60": "arcmin arcminute 角分", 360: "revolution 圈 周角"},
    "percent": {1: "% percent percentage pct 百分点 个百分点", "1/10": "‰", 10: "成 折"},
    "bit": {1: "bit 比特", 8: "byte 字节"},
    "元": {1: "元 块 块钱 圆 人民币 RMB rmb CNY yuan ¥", "1/10": "角 毛 jiao", "1/100": "分 分钱"},
    "dollar": {1: "$ dollar USD usd US$ buck 美元 美金 刀", "1/100": "cent ¢ 美分"},
    "euro": {1: "€ euro EUR 欧元", "1/100": "cent 欧分"},
    "pound": {1: "£ pound GBP 英镑", "1/100": "pence penny 便士"},
    "yen": {1: "¥ yen JPY 日元 円"},
    "rupee": {1: "₹ rupee INR Rs 卢比"},
    "won": {1: "₩ won KRW 韩元"},
    "score": {1: "分 point pt"},
    "unit": {1: "unit 单位 个单位"},  # of a drawing: 16 square units
}  # fmt: skip
_POWERS_IN_WORDS = {
    "square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3, "平方": 2, "立方": 3,
    "二次方": 2, "三次方": 3,
}  # fmt: skip


def _meanings() -> dict[str, list[Unit]]:
    table: dict[str, list[Unit]] = {}
    for base, units in _TABLE.items():
        for factor, names in units.items():
            above, _, below = str(factor).partition("/")
            value = Fraction(above) / Fraction(below or 1)
            for name in names.split():
                table.setdefault(name, []).append(_unit(value, base))
    kelvin = (("K", 1),)
    celsius = Unit(Fraction(1), kelvin, Fraction("273.15"))
    fahrenheit = Unit(Fraction(5, 9), kelvin, Fraction("273.15") - Fraction(160, 9))
    for name in ("°C", "celsius", "摄氏度", "C", "degree celsius", "degrees celsius", "度"):
        table.setdefault(name, []).append(celsius)
    for name in ("°F", "fahrenheit", "华氏度", "F", "degree fahrenheit", "degrees fahrenheit"):
        table.setdefault(name, []).append(fahrenheit)
    table["degrees"] = list(table["degree"])
    for name in ("degrees", "degree", "°", "deg"):
        table[name].extend([celsius, fahrenheit])
    for name in ("K", "kelvin", "开", "开尔文"):
        table.setdefault(name, []).append(Unit(Fraction(1), kelvin))
    for name in ("rad", "radian", "弧度"):
        table.setdefault(name, []).append(Unit(Fraction(1), (("degree", 1),), radian=True))
    for name in ("公斤", "千克"):
        table[name] = table[name][:1]
    return table


_MEANINGS = _meanings()
_SYMBOLS = {name for name in _MEANINGS if name.isascii() and len(name) <= 3}
_CHINESE_UNITS = sorted((name for name in _MEANINGS if not name.isascii()), key=len, reverse=True)
_CHINESE = re.compile("|".join(map(re.escape, _CHINESE_UNITS)))
_NAME = re.compile(r"°[CF]?|[a-zA-ZμµΩ]+|US\$|[%‰$€£¥₹₩¢]")
_POWER = re.compile(r"\s?\^\s?[({]?\s*(-?\d)\s*[)}]?|([23])(?![\d])|([²³])")


def unit_meanings(name: str) -> list[Unit]:
    """The meanings of one unit's name; plurals and capital letters of words are forgiven."""
    if name in _MEANINGS:
        return _MEANINGS[name]
    lower = name.lower()
    for candidate in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        # Symbols differ by case (mW and MW), words do not.
        if candidate in _MEANINGS and (candidate not in _SYMBOLS or candidate == name):
            return _MEANINGS[candidate]
        if candidate in _MEANINGS and candidate + "s" == name and len(candidate) > 1:
            return _MEANINGS[candidate]  # kgs, hrs, mins
    return []


def read_unit(text: str) -> list[Unit]:
    """The meanings of a unit such as "km/h", "square metres", "N·m" or "千米每小时"; [] if none.

    Raises nothing: an unknown text has no meaning.
    """
    text = text.strip().rstrip(".").replace("per cent", "percent")
    if not text or len(text) > 60 or text.endswith("/"):
        return []
    factors: list[tuple[list[Unit], int]] = []
    sign, power_before = 1, 1
    place = 0
    while place < len(text):
        rest = text[place:]
        if separator := re.match(r"\s*[*·]\s*|\s+|-(?=[a-zA-Z])", rest):
            place += separator.end()
            continue
        if separator := re.match(r"/|per\b|每|an?\b(?=\s)", rest):
            if separator[0][0] != "a":
                sign = -1
            elif not factors:
                return []
            place += separator.end()
            continue
        if word := re.match(
            r"(square|sq|cubic|cu)\b\.?|平方|立方|二次方|三次方", rest, re.IGNORECASE
        ):
            power_before = _POWERS_IN_WORDS[word[0].lower().rstrip(".")]
            place += word.end()
            continue
        match = _CHINESE.match(rest) or _NAME.match(rest)
        if match is None:
            return []
        name, end = match[0], match.end()
        meanings = unit_meanings(name)
        if name in ("degrees", "degree"):
            longer = re.match(r"degrees? (celsius|fahrenheit|[CF]\b)", rest, re.IGNORECASE)
            if longer:
                scale = longer[1].upper()[0]
                meanings, end = _MEANINGS[f"°{scale}"], longer.end()
        if not meanings:
            return []
        place += end
        power = power_before
        power_before = 1
        if exponent := _POWER.match(text, place):
            power *= int(exponent[1] or exponent[2] or {"²": 2, "³": 3}[exponent[3]])
            place = exponent.end()
        elif word := re.match(r"\s(squared|cubed)\b", text[place:]):
            power *= _POWERS_IN_WORDS[word[1]]
            place += word.end()
        factors.append((meanings, sign * power))
    if not factors or power_before != 1 or len(factors) > 5:
        return []
    if len(factors) == 1 and factors[0][1] == 1:
        return factors[0][0]
    return _combined(factors)


def _combined(factors: list[tuple[list[Unit], int]]) -> list[Unit]:
    units: list[Unit] = []
    for choice in product(*(meanings[:3] for meanings, _ in factors)):
        factor = Fraction(1)
        powers: dict[str, int] = {}
        for unit, (_, power) in zip(choice, factors, strict=True):
            if unit.offset or unit.radian:
                break
            factor *= unit.factor**power
            for name, times in unit.base:
                powers[name] = powers.get(name, 0) + times * power
        else:
            base = tuple(sorted((name, power) for name, power in powers.items() if power))
            units.append(Unit(factor, base))
    return units
