"""Odd settings files and --set values -> the real loader: settings or one sentence, no traceback.

The texts of config.py are made from the real names and from odd values, then damaged by seed.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.reliability.mutations import damaged, put_something_else, remove
from benchmarks.reliability.promise import Tally, grown_memory, report
from tinkersmith.settings.fields import FIELDS
from tinkersmith.settings.reading import load_settings, settings_for_file

_NAMES = [name.upper() for name in FIELDS]
_ODD_NAMES = (
    "LORA_RNAK",
    "lora_rank",
    "X",
    "_PRIVATE",
    "TINKER_API_KEY",
    "OUTPUT",
    "É",
    "DATA_FILE",
)
_VALUES = (
    *("16", "-1", "0", "1.5", "1e999", "-1e999", "float('nan')", "10**400", "1 << 20000", "0x10"),
    *("True", "None", "...", "1j", "b'x'", "'16'", "''", "' '", "'a' * 5000", "'\\0'", "'\\ud800'"),
    *("'\\n'", "'../..'", "'~nobody/x'", "'~'", "'/'", "'.'", "'a//b'", "'\u3000'", "'\\x1b[2J'"),
    *("[]", "['a.json']", "['']", "[1]", "[None]", "[['a']]", "('a', 'b')", "{'a': 1}", "{1, 2}"),
    *("'{instruction}'", "'{instruction'", "'{input}'", "'{}'", "'{instruction!r}'", "'{0}'"),
    *("'{instruction:>9}'", "'{{instruction}}'", "'chat'", "'Alpaca'", "'auto'", "'cosine'"),
    *("range(3)", "object()", "print", "int", "lambda: 1", "__import__('math')", "iter([])"),
    *("type('N', (int,), {})(3)", "type('R', (), {'__repr__': lambda s: 1 / 0})()"),
    *("type('S', (str,), {'__str__': lambda s: 1 / 0})('a')", "__import__('pathlib').Path('a')"),
    *("(lambda l: (l.append(l), l)[1])([])", "['a'] * 5000", "'a.json,b.json'", "'[a.json]'"),
    *("'" + "x" * 300 + "'", "'" + "d/" * 2500 + "'", "9" * 5000, "'con\\\\nul'", "[b'a.json']"),
)
_LINES = (
    *("raise ValueError('no')", "raise SystemExit('no')", "import sys; sys.exit(3)", "1 / 0"),
    *("raise BaseException('no')", "raise GeneratorExit", "import no_such_module", "x = y"),
    *(
        "class E(Exception):\n    __str__ = None\nraise E",
        "def f(): return f()\nf()",
        "assert False",
    ),
    *("raise Exception('a\\nb')", "from __future__ import annotations", "# -*- coding: gbk -*-"),
    *("# coding: nonsense", "if True:", "    x = 1", "(" * 300, "'''", "LORA_RANK =", "\x0c", "\\"),
    *("del __name__", "globals().clear()", "import math", "x: int = 3", "global X", "return 3"),
    *("await x", "LORA_RANK: int", "LORA_RANK = LEARNING_RATE = 1", "__file__ = 3", "\ud800"),
)
_SET = (
    *("", "=", "LORA_RANK", "=3", "LORA_RANK=", "LORA_RANK==3", " LORA_RANK = 3 ", "lora_rank=3"),
    *("DATA_FILES=a.json,b.json", "DATA_FILES=[a.json]", "DATA_FILES=['a.json'", "BASE_MODEL=2024"),
    *("LORA_RANK=" + "(" * 3000, "LORA_RANK=" + "-" * 3000 + "1", "LORA_RANK=" + "9" * 5000),
    *(
        "OUTPUT_DIR=\0",
        "OUTPUT_DIR=\udcff",
        "BASE_MODEL=" + "x" * 5000,
        "DATA_FILES=" + "d/" * 3000,
    ),
    *("LEARNING_RATE=nan", "LEARNING_RATE=inf", "LEARNING_RATE=1e999", "SEED=1e3", "SEED=0x7"),
    *("PROMPT_TEMPLATE={instruction}\\n", "PROMPT_TEMPLATE={", "SEED=None", "SEED=none", "\n=\n"),
)


# For each format: a line, what stands between lines, and what stands around them.
_FORMATS = {
    "YAML": ("{}: {}", "\n", "{}\n"),
    "JSON": ('"{}": {}', ",\n", "{{{}}}"),
    "TOML": ("{} = {}", "\n", "{}\n"),
}
_PLAIN_VALUES = (
    *("16", "-1", "1.5", "1e-4", "1e999", "9" * 5000, "0x10", "010", "1_000", "NaN", ".inf", "nan"),
    *("true", "no", "null", "~", "'16'", '"16"', '""', '"a.json"', "a.json", "a, b", "2024-01-01"),
    *(
        "[]",
        "[1]",
        '["a.json"]',
        "[[[1]]]",
        "{}",
        '{"a": 1}',
        '{"a": {"b": 1}}',
        "{a = 1}",
        "[null]",
    ),
    *("&a [*a]", "*a", "!!python/name:os.system x", "!x 1", "!!binary aGk=", "? 1", "|", "1:30"),
    *('"\\u0000"', '"\\ud800"', "\u3000", "[" * 3000, '"' + "x" * 300 + '"', "'''", "07:32:00"),
    *('"{instruction}"', '"{"', "&a", "<<", "=", ": :", "'a", '"a', "#", "%", "@", "`", "{[1]: 2}"),
)
_PLAIN_LINES = (
    *("[run]", "[[run]]", "---", "...", "run:", "- 1", "# c", "// c", "<<: {}", "? [1]: 2", "\t"),
    *("[DATA_FILES]", "[COLUMNS]", "a.b = 1", '"a" = 1', "%YAML 1.2", "null: 1", "? a\n: b", "= 1"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    tally = Tally()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        grown = try_settings(wanted.settings, wanted.seed, Path(folder), tally)
    seconds = time.perf_counter() - start
    figures: dict[str, object] = {
        "settings": sum(tally.by_kind.values()),
        "seed": wanted.seed,
        "accepted": tally.works,
        "refused in a sentence": tally.sentences,
        "by kind": dict(sorted(tally.by_kind.items())),
    }
    arguments = f"--settings {wanted.settings} --seed {wanted.seed}"
    command = f"python -m benchmarks.reliability.settings {arguments}"
    return report("reliability_settings", command, figures, tally, grown, seconds)


def try_settings(count: int, seed: int, folder: Path, tally: Tally) -> int:
    """Load `count` odd settings in `folder`; MiB that memory grew."""
    rng = random.Random(seed)
    file = folder / "config.py"

    def try_some(number: int) -> None:
        for _ in range(number):
            _try(file, rng, tally)

    try_some(count // 5)
    return grown_memory(lambda: try_some(count - count // 5))


def _try(file: Path, rng: random.Random, tally: Tally) -> None:
    chance = rng.random()
    overrides: list[str] = []
    names = [file.name]
    if chance < 0.04:
        kind = put_something_else(file, rng)
    elif chance < 0.2:
        kind, names = rng.choice(list(_FORMATS)), []
        file = file.with_name(f"run.{kind.lower()}")
        text = _in_format(kind, rng)
        if chance < 0.1:
            _, text = damaged(text, rng, [b"LORA_RANK = 8\n"])
        file.write_bytes(text)
    elif chance < 0.45:
        kind, text = "values", _values(rng)
        file.write_bytes(text)
        names = []  # the sentence names the setting, or the line
    elif chance < 0.75:
        kind, text = damaged(
            _values(rng, sound=True), rng, [b'{"a": 1}', b"PK\3\4\0\0", b"\xca\r\r\n"]
        )
        file.write_bytes(text)
        names = []
    else:
        kind, names = "--set", []
        file.write_bytes(_values(rng, sound=True))
        overrides = [_override(rng) for _ in range(rng.randrange(1, 3))]
    try:
        tally.run(kind, lambda: _load(file, overrides), names)
    finally:
        remove(file)


def _load(file: Path, overrides: list[str]) -> None:
    settings = load_settings(file, overrides)
    settings_for_file(settings, file.parent / "runs")


def _in_format(kind: str, rng: random.Random) -> bytes:
    """The text of a settings file in YAML, JSON or TOML with odd names, values and lines."""
    line, between, around = _FORMATS[kind]
    names = [rng.choice(_ODD_NAMES if rng.random() < 0.1 else _NAMES) for _ in range(3)]
    lines = [line.format(name, rng.choice(_PLAIN_VALUES)) for name in names]
    if rng.random() < 0.1:
        lines.append(rng.choice(_PLAIN_LINES))
    return around.format(between.join(lines)).encode("utf-8", "surrogatepass")


def _values(rng: random.Random, *, sound: bool = False) -> bytes:
    """The text of a settings file: sound, or with odd names, values and lines."""
    if sound:
        return b"LORA_RANK = 16\nDATA_FILES = ['a.json']\nLEARNING_RATE = 1e-4\n# \xe4\xb8\xad\n"
    lines: list[str] = []
    for _ in range(rng.randrange(1, 4)):
        chance = rng.random()
        name = rng.choice(_ODD_NAMES if chance < 0.1 else _NAMES)
        lines.append(rng.choice(_LINES) if chance > 0.8 else f"{name} = {rng.choice(_VALUES)}")
    return "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"


def _override(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return rng.choice(_SET)
    value = rng.choice(_VALUES)
    return f"{rng.choice(_NAMES)}={value}"


if __name__ == "__main__":
    sys.exit(main())
