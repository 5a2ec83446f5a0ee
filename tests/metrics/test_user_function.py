"""A metric of the user's own: how it is called, and what is said when it fails."""

from pathlib import Path
from typing import Any

import pytest

from tinkersmith.errors import UserError
from tinkersmith.metrics.user_function import OwnMetric, own_metric


def written(tmp_path: Path, text: str, name: str = "mine.py") -> str:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return str(file)


def metric_of(tmp_path: Path, text: str) -> OwnMetric:
    return own_metric(written(tmp_path, text), "mine")


def scores(metric: OwnMetric) -> dict[str, float]:
    return metric.scores("4", "5", "2 + 2", {"level": "easy"}, "test.json, record 3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def mine(expected, produced): return expected == produced", {"mine": 0.0}),
        ("def mine(produced, prompt): return len(produced + prompt)", {"mine": 6.0}),
        ("def mine(*, fields): return fields['level'] == 'easy'", {"mine": 1.0}),
        ("def mine(**all): return len(all)", {"mine": 4.0}),
        ("def mine(expected, weight=2): return weight", {"mine": 2.0}),
        ("def mine(expected): return None", {}),
        (
            "def mine(expected): return {'a': 1, 'b': True, 'c': None}",
            {"mine_a": 1.0, "mine_b": 1.0},
        ),
        ("import numpy as np\ndef mine(expected): return np.float32(0.5)", {"mine": 0.5}),
        ("mine = lambda expected: 1", {"mine": 1.0}),
    ],
)
def test_a_function_gets_the_arguments_that_it_names(tmp_path: Path, text: str, expected: Any):
    assert scores(metric_of(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('no\\ngood')", r"ValueError: no good \(.*mine.py, line 2\)"),
        ("return expected[99]", "IndexError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("return 'high'", "returned 'high'"),
        ("return float('nan')", "returned nan"),
        ("return float('inf')", "returned inf"),
        ("return [1]", r"returned \[1\]"),
        ("return 10**400", "returned 1000"),
        ("return {'a': 'x'}", "returned 'x' as \"a\""),
        ("return {1: 2}", "with the key 1"),
        ("import numpy as np; return np.ones(3)", "returned array"),
        ("return 1j", "returned 1j"),
        ("return mine(expected)", "RecursionError"),
    ],
)
def test_a_function_that_fails_is_one_sentence_that_names_the_sample(
    tmp_path: Path, body: str, said: str
):
    metric = metric_of(tmp_path, f"def mine(expected):\n    {body}\n")
    with pytest.raises(UserError, match=said) as caught:
        scores(metric)
    assert "test.json, record 3" in str(caught.value) and "\n" not in str(caught.value)


def test_a_keyboard_interrupt_is_the_users_and_passes(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        scores(metric_of(tmp_path, "def mine(expected): raise KeyboardInterrupt"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def other(expected): return 1", "has no function mine; it has other"),
        ("x = 1", "has no function mine; it has no function"),
        ("mine = 3", "has no function mine"),
        ("def mine(:", r"cannot be run: SyntaxError"),
        ("1 / 0", r"cannot be run: ZeroDivisionError.*line 1"),
        ("import nowhere_to_be_found", "cannot be run: ModuleNotFoundError"),
        ("def mine(answer): return 1", "needs answer"),
        ("def mine(): return 1", "takes none of them"),
        ("def mine(expected, /): return 1", "needs expected"),
        ("async def mine(expected): return 1", "is an async function"),
        ("raise SystemExit", "cannot be run: SystemExit"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, text: str, said: str):
    with pytest.raises(UserError, match=said) as caught:
        metric_of(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"METRICS: .*nowhere\.py cannot be read"):
        own_metric(str(tmp_path / "nowhere.py"), "mine")


def test_a_file_may_import_its_neighbours_and_leaves_no_bytecode(tmp_path: Path):
    written(tmp_path, "LIMIT = 3", "neighbour_of_mine.py")
    metric = metric_of(
        tmp_path,
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Point:\n    x: int\n"
        "def mine(expected):\n    import neighbour_of_mine\n    return neighbour_of_mine.LIMIT\n",
    )
    assert scores(metric) == {"mine": 3.0}
    assert not list(tmp_path.glob("__pycache__/mine*"))
