"""The bytes of a file that is not data -> what it is, and the way out. Content decides, then name.

Kinds that are read (JSON, CSV, Parquet, Excel, compressed files) are recognised here too.
"""

import io
import json
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any, cast

from tinkersmith.errors import UserError, one_line
from tinkersmith.files import LFS_POINTER, is_lfs_pointer

_SAVE_AS_JSON = "Save its records as JSON Lines in the program that wrote it."
_PICKLE_ADVICE = (
    "It is not opened, because a pickle can run any program. Load it where it was made, and save "
    "the records with Python's json.dump."
)
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (  # (offset, bytes, what it is, the way out)
    (0, b"%PDF-", "a PDF document", "Extract its text, and write it as records."),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it with: 7z x {path}"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "Unpack it with: unrar x {path}"),
    (257, b"ustar", "a tar archive", "Unpack it with: tar -xf {path}"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file", "Unpack it with: lz4 -d {path}"),
    (0, b"\x1f\x9d", "a file packed by compress", "Unpack it with: uncompress {path}"),
    (0, b"LZIP", "an lzip file", "Unpack it with: lzip -dk {path}"),
    (0, b"\xff\x06\x00\x00sNaPpY", "a snappy file", "Unpack it first."),
    (0, b"\x93NUMPY", "an array of numpy", "Save the records as JSON Lines instead."),
    (0, b"SQLite format 3\x00", "an SQLite database",
     'Export a table with: sqlite3 -json {path} "SELECT * FROM name" > records.json'),
    (0, b"\x89PNG\r\n", "an image (PNG)", "Name a file of records."),
    (0, b"\xff\xd8\xff", "an image (JPEG)", "Name a file of records."),
    (0, b"GIF8", "an image (GIF)", "Name a file of records."),
    (0, b"II*\x00", "an image (TIFF)", "Name a file of records."),
    (0, b"MM\x00*", "an image (TIFF)", "Name a file of records."),
    (8, b"WEBP", "an image (WebP)", "Name a file of records."),
    (8, b"WAVE", "a sound file", "Name a file of records."),
    (0, b"ID3", "a sound file (MP3)", "Name a file of records."),
    (0, b"OggS", "a sound or video file", "Name a file of records."),
    (0, b"fLaC", "a sound file (FLAC)", "Name a file of records."),
    (4, b"ftyp", "a video or image file", "Name a file of records."),
    (0, b"\x1aE\xdf\xa3", "a video file", "Name a file of records."),
    (0, b"\x7fELF", "a program", "Name a file of records."),
    (0, b"\x00\x00\x00\x01Bud1", "a .DS_Store file, in which macOS keeps the look of a folder",
     "Name a file of records."),
    (0, b"\x00\x05\x16\x07", "a resource fork, which macOS writes beside the real file",
     'Name the file without "._".'),
    (0, b"\x00\x05\x16\x00", "a resource fork of macOS", "Name the real file."),
    (0, b"\x89HDF\r\n", "an HDF5 file", _SAVE_AS_JSON),
    (0, b"Obj\x01", "an Avro file", _SAVE_AS_JSON),
    (0, b"ORC", "an ORC file", _SAVE_AS_JSON),
    (0, b"PARE", "an encrypted Parquet file", "Decrypt it, and save it as plain Parquet."),
    (0, b"FEA1", "a Feather file of version 1", "Write it again as version 2, or as Parquet."),
    (0, b"GGUF", "a model file (GGUF)", "Name a file of records."),
    (0, b"{\\rtf", "a rich text document (RTF)", "Save its text as records."),
    (0, b"wOFF", "a font", "Name a file of records."),
)  # fmt: skip
_UNFINISHED = (".crdownload", ".part", ".partial", ".aria2", ".incomplete", ".download", ".!ut")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")

TABLE_KINDS = ("Parquet", "Arrow", "Excel")


def refuse_unfinished(path: Path) -> None:
    """Raise UserError if the name is that of a download that has not ended."""
    if path.suffix.lower() in _UNFINISHED:
        raise UserError(
            f"{path} is an unfinished download, as its name says. Wait for its end or start it "
            f"again; if it is complete, rename it to {path.with_suffix('').name}."
        )
    if path.name.startswith("._"):
        raise UserError(
            f"{path} is a resource fork, which macOS writes beside the real file. Name the file "
            'without "._".'
        )


def table_kind(data: bytes) -> str:
    """What a file is that begins so and holds a table: one of `TABLE_KINDS`, or ""."""
    if data.startswith(b"PAR1"):
        return "Parquet"
    if data.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "Arrow"
    if data.startswith((_OLE, b"PK\x03\x04")):
        return "Excel"  # or another document of this form, see `refuse_archive`
    return ""


def refuse_archive(path: Path, data: bytes) -> None:
    """Raise UserError unless a file that begins like an archive or a document is a workbook."""
    if data.startswith(_OLE):
        if _ENCRYPTED in data:
            raise UserError(f"{path} is a document with a password. Save it without one.")
        if "WordDocument".encode("utf-16-le") in data:
            raise _is(path, "a Word document", "Save its records as CSV, Excel or JSON Lines.")
        if any(name.encode("utf-16-le") in data for name in ("Workbook", "Book")):
            return
        raise _is(path, "an old document of Office", "Save its records as CSV or JSON Lines.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            kind = archive.read("mimetype")[:100] if "mimetype" in names[:1] else b""
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError):
        raise UserError(
            f"{path} is a zip archive or an Excel file that is cut off or damaged. Download or "
            "save it again."
        ) from None
    if any(name.startswith("xl/") for name in names) or b"opendocument.spreadsheet" in kind:
        return
    for beginning, what in (
        ("word/", "a Word document"),
        ("ppt/", "a presentation"),
        ("META-INF/container.xml", "a book (EPUB)"),
    ):
        if any(name.startswith(beginning) for name in names):
            raise _is(path, what, "Save its records as CSV, Excel or JSON Lines.")
    if b"opendocument" in kind:
        raise _is(path, "an OpenDocument file", "Save its records as CSV or JSON Lines.")
    if any(name.endswith("data.pkl") for name in names):
        raise _is(path, "a file of PyTorch", _PICKLE_ADVICE)
    if names and all(name.endswith(".npy") for name in names):
        raise _is(path, "a file of numpy arrays", "Save the records as JSON Lines instead.")
    files = [one_line(name, 40) for name in names if not name.endswith("/")]
    inside = f" with {', '.join(files[:3])}{' and more' if len(files) > 3 else ''}"
    raise _is(
        path,
        f"a zip archive{inside if files else ' without files'}",
        f"Unpack it with: python -m zipfile -e {shlex.quote(str(path))} .",
    )


def refuse_binary(path: Path, data: bytes) -> None:
    """Raise UserError if a file's first bytes are those of a kind that holds no records."""
    for offset, mark, what, advice in _MAGIC:
        if data[offset : offset + len(mark)] == mark:
            raise _is(path, what, advice.format(path=shlex.quote(str(path))))
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise _is(path, "a Python pickle", _PICKLE_ADVICE)
    if data[:2] == b"BM" and data[6:10] == bytes(4):
        raise _is(path, "an image (BMP)", "Name a file of records.")
    if data[:2] == b"MZ" and b"\x00" in data[2:64]:
        raise _is(path, "a program", "Name a file of records.")
    if data[8:10] == b'{"' and int.from_bytes(data[:8], "little") < 100_000_000:
        raise _is(path, "a model file (safetensors)", "Name a file of records.")
    if b"\x00" in data[:1000] and not data.strip(b"\x00\r\n"):
        raise UserError(
            f"{path}, line 1: there are only NUL bytes, as a crash may leave them. Copy the file "
            "again."
        )


# A line with the columns' names, and one of dashes below it.
_DASHES = r"[ \t]*:?-{3,}:?[ \t]*"
_MARKDOWN_TABLE = re.compile(
    rf"[^\n]*\|[^\n]*\n(?=[^\n]*\|)[ \t]*\|?{_DASHES}(\|{_DASHES})*\|?[ \t]*\r?(\n|$)"
)


def refuse_text(path: Path, data: bytes) -> None:
    """Raise UserError if UTF-8 text is certainly of a kind that holds no records."""
    start = data[:20_000].decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    low = start[:1000].lower()
    if is_lfs_pointer(data):
        raise _is(path, LFS_POINTER, "Fetch the file with: git lfs pull")
    if re.match(r"(\.\./)*(\.git/annex|/annex)/objects/", start):
        raise _is(path, "a pointer of git-annex", "Fetch the file with: git annex get")
    if re.match(r"<(!doctype html|html|head|body|!--.{0,500}<html)", low, re.DOTALL):
        raise _is(
            path,
            "an HTML page, which a failed download leaves",
            "Download the file itself again; on a hub take the download link and not the page.",
        )
    if _MARKDOWN_TABLE.match(start):
        raise _is(path, "a Markdown table", "Save its rows as CSV or JSON Lines.")
    if start.startswith("-----BEGIN "):
        raise _is(path, "a key or certificate (PEM)", "Name a file of records.")
    if re.match(r"<\?xml|<!--|<svg|<[A-Za-z][\w:.-]*[\s>/]", start):
        raise _is(path, "an XML file", "Write its records as JSON Lines or CSV.")


def refuse_unknown_text(path: Path, data: bytes) -> None:
    """Raise UserError naming the likely kind of a text that is neither JSON nor CSV."""
    start = data[:20_000].decode("utf-8", "replace").lstrip("\ufeff")
    lines = [line for line in start.split("\n")[:60] if line.strip()]
    first = lines[0] if lines else ""
    suffix = path.suffix.lower()
    if first.startswith("#!") or _count(r"(import |from \S+ import |def |class |@\w)", lines):
        raise _is(
            path, "a program in Python", "Run it, if it writes the data, and name its output."
        )
    if re.match(r"(var|let|const|export|module\.exports)\b|[\w.$]+ ?\(\s*[\[{]", first):
        raise _is(path, "JavaScript", "Keep only the JSON in it: from the first [ to its last ].")
    if re.match(r"[A-Za-z_]\w* ?= ?[\[{]", first):
        raise _is(path, "a program", "Keep only the JSON in it: from the first [ to its last ].")
    is_yaml = first.strip() == "---" or _count(r"\s*(- )?[\w \"'-]+: ?(\S.*)?$", lines) > (
        0.6 * len(lines)
    )
    if suffix in (".yaml", ".yml") or (is_yaml and suffix not in (".md", ".markdown")):
        raise _is(
            path,
            "a YAML file",
            'Write it as JSON with: python -c "import json, sys, yaml; '
            'json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)" '
            f"{shlex.quote(str(path))} > records.json",
        )
    if suffix == ".toml" or (first.startswith("[[") and first.rstrip().endswith("]]")):
        raise _is(path, "a TOML file", "Write its records as JSON Lines.")
    if suffix in (".md", ".markdown", ".rst") or _count(r"(#{1,6} |```|\* |- |> )", lines) > 2:
        raise _is(path, "a Markdown text", 'Write records, one a line: {"text": "..."}')
    if suffix in (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".tab"):
        return
    raise _is(path, "plain text", 'Write records, one a line, such as {"text": "..."}')


def refuse_object(path: Path, value: Any) -> None:
    """Raise UserError if a JSON object is known to be something else than records."""
    if not isinstance(value, dict):
        return
    fields = cast("dict[str, Any]", value)
    if "nbformat" in fields and "cells" in fields:
        raise _is(path, "a Jupyter notebook", "Name the file of records that it reads or writes.")
    if any(
        isinstance(inner, list) and len(cast("list[Any]", inner)) > 1 for inner in fields.values()
    ):
        return
    for name in ("error", "errors", "detail", "message", "msg", "Message", "Code"):
        if name in fields and len(fields) <= 6 and not {"instruction", "output"} & set(fields):
            text = fields[name]
            shown = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
            raise UserError(
                f'{path} holds the answer of a server, and no records: "{name}" is '
                f'"{one_line(shown, 80)}". The download has failed; start it again.'
            )
    if "features" in fields and ("splits" in fields or "dataset_size" in fields):
        raise _is(path, "the description of a data set", "Name the files of its records.")


def _is(path: Path, what: str, advice: str) -> UserError:
    return UserError(f"{path} is {what}. {advice}")


def _count(pattern: str, lines: list[str]) -> int:
    return sum(bool(re.match(pattern, line)) for line in lines)


def refuse_python_literal(path: Path, data: bytes) -> None:
    """Raise UserError if a text that begins like JSON is something similar."""
    start = data[:2000].decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if re.match(r"[\[{(]\s*[\[{(]?\s*'", start):
        raise _is(
            path,
            "a list as Python prints it, with single quotation marks, and not JSON",
            "Write it with Python's json.dump.",
        )
    if re.match(r"\[\[?\w[\w. -]*\]\]?\s*(\n|$)", start):
        raise _is(path, "a TOML or INI file", "Write its records as JSON Lines.")
