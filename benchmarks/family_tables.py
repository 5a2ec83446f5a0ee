"""Results of families.py and export_families.py -> the tables in docs/reference/model-families.md.

python -m benchmarks.family_tables
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS

ROOT = Path(__file__).resolve().parent.parent
ENGLISH, CHINESE = "docs/reference/model-families.md", "docs/reference/model-families.zh-CN.md"
PAGES = (ENGLISH, CHINESE)
COLUMNS = ("loss", "gradient", "log-probability", "packed", "sampled", "prompt", "exported")
# Every other word of the tables, in English and Chinese.
TRAINING_HEADS = (
    "| Model | `model_type` | Loss | LoRA gradients | Log-probabilities | Packed against alone "
    "| Sampled against forward | Prompt against forward | Exported and read "
    "| Resumed bit for bit |",
    "| 模型 | `model_type` | 损失 | LoRA 梯度 | 对数概率 | 拼接与单独 "
    "| 采样与前向 | prompt 与前向 | 导出后读回 | 逐位恢复 |",
)
EXPORT_HEADS = (
    "| Model | Base weights | Changed by the LoRA | Trained matrices in the adapter "
    "| Tensors that vLLM takes | Merged model | Adapter in peft |",
    "| 模型 | 基础权重 | LoRA 引起的变化 | adapter 中训练过的矩阵 "
    "| vLLM 接受的张量 | 合并模型 | peft 中的 adapter |",
)
CHINESE_WORDS = {
    " with windows in its last layers": "，最后几层有窗口",
    " with images": "，带图像",
    " with latent experts": "，latent 专家",
    " with a dense layer": "，含一个稠密层",
    " with shared experts": "，含共享专家",
    " with stacked experts": "，专家叠成一个张量",
    "limit": "上限",
    "yes": "是",
    "no": "否",
    "not measured": "未测量",
    "{} without {}": "{}，不含 {}",
}


def training_table(page: str, results: Path = RESULTS) -> str:
    """The table of training and sampling, and when and where it was measured."""
    content = _read(results / "families.json")
    figures, words = content["figures"], _words(page)
    lines = [
        _row(
            words(name, inside=True),
            f"`{family['model_type']}`",
            *(_small(family[column]) for column in COLUMNS),
            words("yes" if family["resumed bit for bit"] else "no"),
        )
        for name, family in figures["families"].items()
    ]
    limits = (f"{figures['limits'][column]:.0e}" for column in COLUMNS)
    lines.append(_row(words("limit"), "", *limits, words("yes")))
    return _table(TRAINING_HEADS[PAGES.index(page)], lines, content)


def export_table(page: str, results: Path = RESULTS) -> str:
    """The table of exports, and when and where it was measured."""
    content = _read(results / "export_families.json")
    figures, words = content["figures"], _words(page)
    lines: list[str] = []
    for row in figures["exports"]:
        adapter = words("not measured")
        if row["adapter in peft"] is not None:
            adapter = _small(row["adapter in peft"])
        if row["adapter without"]:
            adapter = words("{} without {}").format(adapter, f"`{row['adapter without']}`")
        changed = f"{row['changed by the LoRA']:.1f}"
        matrices = f"{row['matrices in the adapter']:g}/{row['trained matrices']}"
        lines.append(
            _row(
                words(row["family"], inside=True),
                row["base"],
                changed,
                matrices,
                row["vLLM takes"],
                _small(row["merged"]),
                adapter,
            )
        )
    limit = f"{figures['limit']:.0e}"
    lines.append(_row(words("limit"), "", "", "", "", limit, limit))
    return _table(EXPORT_HEADS[PAGES.index(page)], lines, content)


TABLES: dict[str, Callable[[str], str]] = {"training": training_table, "export": export_table}


def with_tables(text: str, page: str) -> str:
    """The page's text with both tables made anew."""
    for name, table in TABLES.items():
        before, rest = text.split(begin(name), 1)
        text = before + begin(name) + table(page) + end(name) + rest.split(end(name), 1)[1]
    return text


def begin(name: str) -> str:
    return f"<!-- {name}:begin (made by python -m benchmarks.family_tables) -->\n"


def end(name: str) -> str:
    return f"<!-- {name}:end -->\n"


def _words(page: str) -> Callable[..., str]:
    """What says an English word in the page's language; `inside`: also a part of a name."""

    def words(text: str, *, inside: bool = False) -> str:
        if page == ENGLISH:
            return text
        if not inside:
            return CHINESE_WORDS[text]
        for english, chinese in CHINESE_WORDS.items():
            if english.startswith(" "):
                text = text.replace(english, chinese)
        return text

    return words


def _read(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _small(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _table(head: str, lines: list[str], content: Mapping[str, Any]) -> str:
    versions = content["versions"]
    machine = content["machine"]
    where = ", ".join(
        [
            content["date"],
            machine["processor"],
            f"torch {versions['torch']}",
            f"transformers {versions['transformers']}",
            f"peft {versions['peft']}",
        ]
    )
    rule = "| --- " * (head.count("|") - 1) + "|\n"
    return f"{head}\n{rule}{''.join(lines)}\n`{content['command']}` · {where}\n"


def main() -> None:
    for page in PAGES:
        path = ROOT / page
        path.write_text(with_tables(path.read_text(encoding="utf-8"), page), encoding="utf-8")


if __name__ == "__main__":
    main()
