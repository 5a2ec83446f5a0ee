"""The output of `make demo` -> docs/images/demo.svg, the picture in the README.

make demo > demo.txt
python tools/terminal_picture.py demo.txt
"""

import argparse
import html
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "demo.svg"
COLUMNS = 90  # longer lines are continued on the next one

# What is shown: a line that begins so, and how many lines from there. "..." stands between two.
EXCERPTS = [
    (r"Read [\d,]+ samples", 3),
    (r"Lengths: ", 3),
    (r"Training ", 1),
    (r"  Epoch 1/", 1),
    (r"  step 400/", 2),
    (r"The first training sample", 4),
    (r"  the tuned model:", 4),
    (r" +trained model", 4),
    (r"n = ", 1),
    (r"Wrote the adapter", 1),
    (r"Verified: ", 1),
]
# The first pattern that is found in a line colours what it matches.
COLOURS = [
    (r"^\$ .*", "command"),
    (r"^\.\.\.$", "dim"),
    (r"(?<=mean )loss [\d.]+", "good"),
    (r"(?<=^exact match) +[\d.]+%|(?<=^final answer) +[\d.]+%", "good"),
    (r"(?<=^contains answer) +[\d.]+%", "good"),
    (r"^Verified: \S+ \+ \S+", "good"),
]
FONT_SIZE, LINE_HEIGHT, CHARACTER = 14, 20, 8.43  # pixels
HEAD, EDGE = 40, 20
STYLE = """
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
       fill: #24292f; white-space: pre; }
.command { fill: #0550ae; font-weight: bold; }
.good { fill: #116329; font-weight: bold; }
.dim { fill: #8c959f; }
"""


def excerpt(output: str) -> list[str]:
    """The lines of the picture, taken from the output as they are.

    Raises:
        ValueError: the output lacks one of the excerpts.
    """
    lines = output.splitlines()
    shown, end = ["$ make demo"], 0
    for pattern, count in EXCERPTS:
        start = next((n for n in range(end, len(lines)) if re.match(pattern, lines[n])), None)
        if start is None:
            raise ValueError(f"the output has no line that begins with {pattern!r}")
        if start > end and len(shown) > 1:
            shown.append("...")
        end = start + count
        shown += lines[start:end]
    wrapped = [textwrap.wrap(line, COLUMNS, break_on_hyphens=False) or [""] for line in shown]
    return [row for rows in wrapped for row in rows]


def picture(lines: list[str]) -> str:
    """An SVG of a terminal window that shows `lines`, in fonts that every system has."""
    width = round(2 * EDGE + COLUMNS * CHARACTER)
    height = HEAD + LINE_HEIGHT * len(lines) + EDGE
    rows = [
        f'<text x="{EDGE}" y="{HEAD + LINE_HEIGHT * n + FONT_SIZE}" xml:space="preserve">'
        f"{_coloured(line)}</text>"
        for n, line in enumerate(lines)
    ]
    dots = [
        f'<circle cx="{EDGE + 6 + 20 * n}" cy="20" r="6" fill="{colour}"/>'
        for n, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img">',
            "<title>A terminal that runs make demo</title>",
            f"<style>{STYLE}</style>",
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" '
            'fill="#f6f8fa" stroke="#d0d7de"/>',
            *dots,
            *rows,
            "</svg>",
            "",
        ]
    )


def _coloured(line: str) -> str:
    for pattern, style in COLOURS:
        match = re.search(pattern, line)
        if match is not None:
            before, coloured, after = (
                html.escape(text, quote=False)
                for text in (line[: match.start()], match.group(), line[match.end() :])
            )
            return f'{before}<tspan class="{style}">{coloured}</tspan>{after}'
    return html.escape(line, quote=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the README's picture of a terminal.")
    parser.add_argument("output", type=Path, help="a file with what `make demo` printed")
    parser.add_argument("--out", type=Path, default=PICTURE, metavar="FILE")
    wanted = parser.parse_args()
    try:
        lines = excerpt(wanted.output.read_text(encoding="utf-8"))
    except ValueError as error:
        sys.exit(f"Error: {wanted.output}: {error}.")
    wanted.out.write_text(picture(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
