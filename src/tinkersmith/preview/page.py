"""What was examined -> one page for the browser, which loads nothing from elsewhere."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinkersmith.batches.source import Encoding
from tinkersmith.errors import UserError
from tinkersmith.files import write_atomically
from tinkersmith.pages.page import generator_mark, is_foreign, page_html, part
from tinkersmith.plurals import counted
from tinkersmith.preview.cells import Cell
from tinkersmith.preview.examine import Examined, SampleView
from tinkersmith.preview.findings import OF_LENGTH, PROBLEM_SENTENCES, ProblemTotal
from tinkersmith.preview.terminal import shortened
from tinkersmith.preview.token_texts import TokenTexts
from tinkersmith.preview.visible import VISIBLE, visible

_COMMAND = "tinkersmith preview"
GENERATOR = generator_mark(_COMMAND)
MOST_CELLS = 120_000  # on a page: about 3 MB
_FEWEST_CELLS = 300  # of a sample, however many there are
_CHINESE = {
    "no end token": "条序列的训练部分没有结束 token：模型学不会在那里停下",
    "double begin token": "条序列有两个起始 token",
    "empty completion": "条序列的答案部分没有文字",
    "nothing trained": "条样本被舍弃，没有可训练的内容：{}",
    "unknown tokens": "条序列含有分词器不认识的文字，被替换为 {}",
    "special token in text": "条样本的文字中写有特殊 token（如 {}）；它仍按普通文字处理",
    "prompt repeated": "条样本的答案以提问本身开头",
    "cut": "条序列在 MAX_SEQUENCE_LENGTH 处被截断",
    "too long": "条序列被舍弃：MAX_SEQUENCE_LENGTH 之内放不下答案",
    "too long to send whole": "条序列被舍弃：长度超过 MAX_SEQUENCE_LENGTH，"
    "而 TRUNCATE_LONG_SEQUENCES 为 False",
    "same answer": "条样本（{}）的答案相同。若是分类标签则没有问题；否则模型会学成对什么都这样回答",
    "no thoughts": "条样本都没有思考内容，而聊天模板支持思考：模型会学成不思考就回答",
}


def check_target(path: Path, force: bool) -> None:
    """Refuse to overwrite a file that is no preview, unless `force`.

    Raises:
        UserError: the file may not or cannot be overwritten.
    """
    if is_foreign(path, _COMMAND) and not force:
        raise UserError(
            f"{path} exists and is not a page of tinkersmith preview. Name another file with "
            "--html, or overwrite it with --force."
        )


def write_page(
    path: Path,
    examined: Examined,
    encoding: Encoding,
    texts: TokenTexts,
    language: str = "auto",
    *,
    whole: bool = False,
) -> int:
    """Write the page and return its size in bytes.

    Args:
        language: "en", "zh", or "auto": as the browser says.
        whole: show all tokens of the samples, however long they are.
    """
    page = page_text(examined, encoding, texts, language, whole=whole).encode()
    try:
        write_atomically(path, page)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written: {reason}. Name another file.") from None
    return len(page)


def page_text(
    examined: Examined,
    encoding: Encoding,
    texts: TokenTexts,
    language: str = "auto",
    *,
    whole: bool = False,
) -> str:
    """The page as HTML. Nothing of a sample becomes markup: the texts are JSON within a script."""
    chosen = examined.chosen
    budget = max(MOST_CELLS // max(len(chosen), 1), _FEWEST_CELLS)
    spare = sum(max(budget - view.length, 0) for view in chosen)
    long = sum(view.length > budget for view in chosen)
    longest = budget + spare // long if long else budget
    settings = encoding.settings
    counts = examined.counts
    data = {
        "language": language,
        "model": settings.base_model,
        "settings": {
            "PROMPT_TEMPLATE": f"{settings.prompt_template} → {encoding.template.name}",
            "TRAIN_ON": settings.train_on,
            "THINKING": settings.thinking,
            "MAX_SEQUENCE_LENGTH": encoding.max_length,
            "TRUNCATE_LONG_SEQUENCES": settings.truncate_long_sequences,
        },
        "counts": {name: getattr(counts, name) for name in counts.__dataclass_fields__},
        "epoch": asdict(examined.epoch) if examined.epoch else None,
        "totals": {"multi-turn": counts.multi_turn, "suspicious": counts.suspicious},
        "findings": [_finding(finding) for finding in examined.findings.all(encoding.template)],
        "kinds": {
            kind: _CHINESE[kind].removeprefix("条样本").removeprefix("条序列")
            for kind in PROBLEM_SENTENCES
        },
        "ofLength": OF_LENGTH,
        "samples": [_sample(view, texts, 10**9 if whole else longest) for view in chosen],
    }
    package = "tinkersmith.preview"
    return page_html(
        title=f"Preview: {settings.base_model}",
        language=language,
        body=part(package, "page.html"),
        data=data,
        scripts=[part(package, "page.js")],
        styles=[part(package, "page.css")],
        generator=_COMMAND,
    )


def _finding(finding: ProblemTotal) -> dict[str, Any]:
    chinese = f"{finding.count:,} {_CHINESE[finding.kind].format(finding.detail)}。"
    if finding.first:
        chinese += f"第一处：{finding.first.file}，第 {finding.first.record} 条记录。"
    return {"en": visible(str(finding)), "zh": visible(chinese)}


def _sample(view: SampleView, texts: TokenTexts, longest: int) -> dict[str, Any]:
    sent = sum(sequence.length for sequence in view.sequences)
    trained = sum(int((sequence.weights > 0).sum()) for sequence in view.sequences)
    tags = [name for name in ("cut", "multi-turn", "suspicious") if view.passes(name)]
    problems = [[problem.kind, visible(problem.detail)] for problem in view.problems]
    return {
        "number": view.number,
        "file": visible(view.sample.source.file),
        "record": view.sample.source.record,
        "tokens": view.length,
        "sent": sent,
        "trained": trained,
        "much": _much(view.length, sent, trained),
        "tags": tags,
        "problems": [list(pair) for pair in dict.fromkeys(map(tuple, problems))],
        "sequences": [
            {
                "sent": sequence.length,
                "tokens": len(sequence.tokens),
                "blocks": [
                    {"role": block.role, "gap": gap, **_cells(block.cells)}
                    for block, gap in shortened(
                        sequence.blocks(view.sample, texts), longest // len(view.sequences)
                    )
                ],
            }
            for sequence in view.sequences
        ],
    }


def _much(tokens: int, sent: int, trained: int) -> dict[str, str]:
    """How many tokens a sample has, how many are sent if not all are, and how many are trained."""
    share = f"{100 * trained / sent:.1f} %" if sent else "0 %"
    sent_en, sent_zh = (f"{sent:,} sent, ", f"发送 {sent:,}，") if sent < tokens else ("", "")
    return {
        "en": f"{counted(tokens, 'token')}, {sent_en}{trained:,} trained ({share})",
        "zh": f"{tokens:,} 个 token，{sent_zh}训练 {trained:,}（{share}）",
    }


def _cells(cells: Sequence[Cell]) -> dict[str, Any]:
    """The cells of a block as lists: texts, token ids, and a digit of flags for each."""
    return {
        "start": cells[0].position if cells else 0,
        "texts": [
            visible(cell.text, VISIBLE) if cell.text.strip(" ") else cell.text for cell in cells
        ],
        "ids": [cell.tokens[0] if len(cell.tokens) == 1 else list(cell.tokens) for cell in cells],
        "flags": "".join(
            f"{cell.trained | cell.cut << 1 | cell.control << 2 | cell.thought << 3:x}"
            for cell in cells
        ),
    }
