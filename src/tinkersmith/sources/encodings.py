"""Bytes of text -> UTF-8, and what encoding they were in. A doubtful encoding is never chosen.

An encoding is certain if the file decodes without an error, if nearly all of its characters beyond
ASCII are usual ones of one language, and if every other encoding gives the same text or gives text
that no language has. This module does not handle files, JSON or tables.
"""

import codecs
import difflib
import io
import itertools
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tinkersmith.errors import UserError, one_line
from tinkersmith.plurals import counted
from tinkersmith.sources.languages import (
    ALPHABETS,
    HANGUL,
    KANA,
    KANJI,
    NEUTRAL,
    SIMPLIFIED,
    TRADITIONAL,
    Alphabet,
)

BOM = b"\xef\xbb\xbf"
AUTO = "auto"

_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (b"\xff\xfe\x00\x00", "utf-32", "UTF-32"),
    (b"\x00\x00\xfe\xff", "utf-32", "UTF-32"),
    (b"\xff\xfe", "utf-16", "UTF-16"),
    (b"\xfe\xff", "utf-16", "UTF-16"),
)
# A wider encoding that reads all that the named one can write, as browsers do.
_WIDER = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "cp936": "gb18030",
    "big5": "cp950",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "iso8859-1": "cp1252",
    "ascii": "utf-8",
    "utf-8-sig": "utf-8",
}
_NAMES = {
    "gb18030": "GB18030", "big5": "Big5", "cp950": "Big5", "big5hkscs": "Big5-HKSCS",
    "cp932": "Shift-JIS", "euc_jp": "EUC-JP", "cp949": "EUC-KR", "cp1252": "Windows-1252",
    "cp1250": "Windows-1250", "cp1251": "Windows-1251", "cp1253": "Windows-1253",
    "cp1254": "Windows-1254", "cp1255": "Windows-1255", "cp1256": "Windows-1256",
    "cp1257": "Windows-1257", "cp1258": "Windows-1258", "koi8_r": "KOI8-R", "koi8-r": "KOI8-R",
    "koi8_u": "KOI8-U", "koi8-u": "KOI8-U", "cp866": "IBM 866", "iso8859_5": "ISO-8859-5",
    "iso8859_2": "ISO-8859-2", "iso8859_7": "ISO-8859-7", "iso8859_15": "ISO-8859-15",
    "mac_cyrillic": "Mac Cyrillic", "mac-cyrillic": "Mac Cyrillic", "mac_roman": "MacRoman",
    "mac-roman": "MacRoman", "cp874": "Windows-874", "cp437": "IBM 437", "cp850": "IBM 850",
    "cp852": "IBM 852", "utf-8": "UTF-8", "utf-16": "UTF-16", "utf-32": "UTF-32",
    "iso2022_jp": "ISO-2022-JP", "iso2022_kr": "ISO-2022-KR",
}  # fmt: skip
_WRITTEN = {"cp950": "big5", "big5hkscs": "big5hkscs", "cp932": "shift_jis", "cp949": "euc_kr"}
_EAST_ASIAN = {
    "gb18030": (SIMPLIFIED | TRADITIONAL, ()),
    "cp950": (TRADITIONAL, ()),
    "big5hkscs": (TRADITIONAL, ()),
    "cp932": (KANJI, KANA),
    "euc_jp": (KANJI, KANA),
    "cp949": (HANGUL, ()),
}
# The first byte from which on the rarer characters lie.
_RARE_FROM = {"gb18030": 0xD8, "cp950": 0xC9, "big5hkscs": 0xC9, "cp932": 0x98, "euc_jp": 0xD0,
              "cp949": 0xC9}  # fmt: skip
_WESTERN = ("German", "French", "Spanish", "Portuguese", "Italian", "Dutch", "Swedish", "Danish",
            "Icelandic", "Catalan")  # fmt: skip
_CENTRAL = ("Polish", "Czech", "Slovak", "Hungarian", "Romanian", "Croatian", "German")
_CYRILLIC = ("Russian", "Ukrainian", "Bulgarian", "Serbian")
_SINGLE_BYTE: dict[str, tuple[str, ...]] = {
    "cp1252": _WESTERN,
    "cp1250": _CENTRAL,
    "cp1251": _CYRILLIC,
    "koi8_r": ("Russian", "Bulgarian"),
    "koi8_u": ("Ukrainian", "Russian"),
    "iso8859_5": _CYRILLIC,
    "cp866": ("Russian",),
    "mac_cyrillic": _CYRILLIC,
    "iso8859_2": _CENTRAL,
    "iso8859_15": (*_WESTERN, "Estonian"),
    "mac_roman": _WESTERN,
    "cp850": _WESTERN,
    "cp437": _WESTERN,
    "cp852": _CENTRAL,
    "cp1253": ("Greek",),
    "iso8859_7": ("Greek",),
    "cp1254": ("Turkish", *_WESTERN),
    "cp1255": ("Hebrew",),
    "cp1256": ("Arabic",),
    "cp1257": ("Lithuanian", "Latvian", "Estonian", "Polish", "German"),
    "cp1258": ("Vietnamese",),
    "cp874": ("Thai",),
}
# They begin again at every line, and no letter holds the byte of a line's end.
LINE_BY_LINE = frozenset(
    {"utf-8", *_EAST_ASIAN, "big5", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", *_SINGLE_BYTE}
)
_NO_ENCODINGS = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "utf_7",
                 "mbcs", "oem", "charmap", "palmos"}  # fmt: skip
_USUAL = ("utf-8", "utf-16", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp1252", "cp1251",
          "koi8_r", "mac_roman")  # fmt: skip
_LOOKED_AT = 64_000  # bytes with characters beyond ASCII that are enough to judge by
_BEFORE = 100  # ASCII characters before the first other one of a line
_CERTAIN, _RIVAL = 0.75, 0.4  # of 1.0: what the best must reach, and what no other may
# Of the bytes beyond ASCII, how many are in whole characters of UTF-8: nearly all, or most.
_DAMAGED, _PERHAPS_DAMAGED = 0.9, 0.6
_EVIDENCE = 6  # letters beyond ASCII: fewer could be anything


@dataclass(frozen=True, slots=True)
class Utf8:
    """Text as UTF-8 without a mark."""

    data: bytes
    note: str = ""  # completes "Read data/a.json as ...", if it is worth saying


def codec_name(encoding: str) -> str:
    """Python's name of the encoding that ENCODING names; a wider one where browsers take it.

    Raises:
        UserError: there is no such encoding of text.
    """
    name = encoding.strip()
    try:
        found = codecs.lookup(re.sub(r"\s+", "", name))
        normal = found.name
        if (
            not getattr(found, "_is_text_encoding", True)
            or normal.replace("-", "_") in _NO_ENCODINGS
        ):
            raise LookupError
        "x".encode(normal)
    except (LookupError, ValueError, UnicodeError):
        shown = one_line(name)
        if name.lower() in ("ansi", "oem", "mbcs", "acp"):
            advice = (
                '"ANSI" means another one on each machine: "cp1252" in Western Europe, "gb18030" '
                'in China, "big5" in Taiwan, "cp932" in Japan, "cp949" in Korea'
            )
        else:
            match = _nearest(name)
            advice = (
                f'did you mean "{match}"?'
                if match
                else f"usual ones are {', '.join(_USUAL[:-1])} and {_USUAL[-1]}"
            )
        end = "" if advice.endswith("?") else "."
        raise UserError(f'ENCODING is "{shown}", which is no encoding; {advice}{end}') from None
    return _WIDER.get(normal, normal)


def _nearest(name: str) -> str:
    """The usual encoding with the most similar name; "" if none is similar."""
    plain = {re.sub(r"[^a-z0-9]", "", usual): usual for usual in _USUAL}
    near = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", name.lower()), plain, n=1)
    return plain[near[0]] if near else ""


def shown_name(codec: str) -> str:
    """The encoding's name for people."""
    return _NAMES.get(codec, codec)


def _setting(codec: str) -> str:
    """The encoding's name as one writes it into ENCODING."""
    return _WRITTEN.get(codec, codec)


def as_utf8(path: Path, data: bytes, encoding: str = AUTO) -> Utf8:
    """The text of a file as UTF-8.

    Raises:
        UserError: its encoding is not known for certain, or it does not fit `encoding`.
    """
    wanted = AUTO if encoding.strip().lower() == AUTO else codec_name(encoding)
    for mark, codec, name in _MARKS:
        if data.startswith(mark):
            said = f"{name}, as its first bytes say"
            note = said if wanted not in (AUTO, codec, f"{codec}-le", f"{codec}-be") else ""
            return Utf8(_decoded(path, data, codec).encode("utf-8", "surrogatepass"), note)
    had_mark = data.startswith(BOM)
    data = data.removeprefix(BOM)
    if wanted != AUTO:
        return _as_named(path, data, wanted, encoding, had_mark)
    if unmarked := _unmarked_utf(data):
        codec, name = unmarked
        return Utf8(_decoded(path, data, codec).encode(), f"{name} without a mark")
    if b"\x1b$" in data:
        for codec in ("iso2022_jp", "iso2022_kr"):
            try:
                return Utf8(data.decode(codec).encode(), f"{shown_name(codec)}, as its escapes say")
            except UnicodeDecodeError:
                continue
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return _guessed(path, data)
    return Utf8(data)


def _as_named(path: Path, data: bytes, codec: str, encoding: str, had_mark: bool) -> Utf8:
    if codec == "utf-8":
        _decoded(path, data, "utf-8", encoding)
        return Utf8(data)
    if had_mark or _is_surely_utf8(data):
        if data.isascii() and not had_mark:
            return Utf8(data)
        return Utf8(data, f'UTF-8, which it certainly is, although ENCODING is "{encoding}"')
    text = _decoded(path, data, codec, encoding)
    return Utf8(text.encode("utf-8", "surrogatepass"))


def _is_surely_utf8(data: bytes) -> bool:
    """Whether the data is UTF-8 with so many letters beyond ASCII that it cannot be by chance."""
    if data.isascii():
        return b"\x1b" not in data and b"\x00" not in data and b"~{" not in data
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return sum(not character.isascii() for character in text[:100_000]) >= 4


def _decoded(path: Path, data: bytes, codec: str, encoding: str = "") -> str:
    """The text, or a UserError with line and column."""
    try:
        return data.decode(codec)
    except UnicodeDecodeError as error:
        if codec == "cp1252" and encoding and codecs.lookup(encoding).name == "iso8859-1":
            return data.decode("iso8859-1")
        line, column = _place(data, error.start, codec)
        advice = (
            f'ENCODING is "{encoding}"; correct it, or the file.'
            if encoding
            else "Copy or save the file again."
        )
        raise UserError(
            f"{path}, line {line}, column {column}: the byte 0x{data[error.start]:02X} is not "
            f"{shown_name(codec)}. {advice}"
        ) from None


def not_in_encoding(path: Path, data: bytes, codec: str, first_line: int) -> UserError:
    """The sentence about a part of a file that is not in the encoding that ENCODING names."""
    wrong = _first_wrong_byte(path, data, codec, first_line)
    assert wrong, "it is in the encoding"
    return UserError(f"{wrong}. Correct ENCODING, or the file.")


def _first_wrong_byte(path: Path, data: bytes, codec: str, first_line: int) -> str:
    """Where a part of a file is not in an encoding, as the start of a sentence; "" if it is."""
    try:
        data.decode(codec)
    except UnicodeDecodeError as error:
        line, column = _place(data, error.start, codec)
        return (
            f"{path}, line {line + first_line - 1}, column {column}: the byte "
            f"0x{data[error.start]:02X} is not {shown_name(codec)}"
        )
    return ""


def _place(data: bytes, position: int, codec: str) -> tuple[int, int]:
    """Line and column of a byte, counted in characters."""
    before = data[:position].decode(codec, "replace")
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _unmarked_utf(data: bytes) -> tuple[str, str] | None:
    """UTF-16 or UTF-32 without a mark, if the zeros of its ASCII characters leave no doubt."""
    start = data[:4096]
    if b"\x00" not in start or not start.strip(b"\x00\r\n"):
        return None
    for codec, name, width, zeros in (
        ("utf-32-le", "UTF-32", 4, (1, 2, 3)),
        ("utf-32-be", "UTF-32", 4, (0, 1, 2)),
        ("utf-16-le", "UTF-16", 2, (1,)),
        ("utf-16-be", "UTF-16", 2, (0,)),
    ):
        letter = next(place for place in range(width) if place not in zeros)
        first, whole = start[:width], len(data) % width == 0
        if not whole or first[letter] == 0 or any(first[place] for place in zeros):
            continue
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        if "\x00" not in text and text[:1].isprintable():
            return codec, name
    return None


# ---- guesses


def _guessed(path: Path, data: bytes) -> Utf8:
    """The text of a file that is not UTF-8, if its encoding is certain."""
    judged = guesses(data) if _utf8_share(data) < _DAMAGED else []
    certain = _certain(judged)
    if not certain:
        raise _not_utf8(path, data, judged)
    codec, name = certain
    note = f'{name}, which it seems to be; set ENCODING = "{_setting(codec)}" to be sure'
    return Utf8(data.decode(codec).encode(), note)


@dataclass(frozen=True, slots=True)
class Guess:
    """How well an encoding explains a file."""

    codec: str
    score: float  # 1 is usual text of a language, 0 is none
    evidence: int  # letters beyond ASCII
    text: str


def guesses(data: bytes) -> list[Guess]:
    """The encodings that decode the data into text of a language, best first."""
    sample = _telling_lines(data)
    judged: list[Guess] = []
    for codec in (*_EAST_ASIAN, *_SINGLE_BYTE):
        try:
            text = _decoded_start(sample, codec)
            data.decode(codec)
        except UnicodeDecodeError:
            continue
        score, evidence = _judged(text, codec)
        if score > 0:
            judged.append(Guess(codec, score, evidence, text))
    return sorted(judged, key=lambda guess: -guess.score)


def _decoded_start(data: bytes, codec: str) -> str:
    """The text of data that may end within a character."""
    return codecs.getincrementaldecoder(codec)().decode(data)


def _certain(judged: list[Guess]) -> tuple[str, str] | None:
    if not judged:
        return None
    best = judged[0]
    if best.score < _CERTAIN or best.evidence < _EVIDENCE:
        return None
    rivals = [guess for guess in judged if guess.text != best.text]
    if any(rival.score > _RIVAL * best.score for rival in rivals):
        return None
    # Several names for one text: the one that most programs mean.
    same = [guess.codec for guess in judged if guess.text == best.text]
    order = [*_EAST_ASIAN, *_SINGLE_BYTE]
    codec = min(same, key=order.index)
    return codec, shown_name(codec)


def _telling_lines(data: bytes) -> bytes:
    """The lines of the data with bytes beyond ASCII, as many as are needed to judge.

    The last one may be cut; a character is never cut at its beginning.
    """
    if len(data) <= _LOOKED_AT:
        return data
    lines: list[bytes] = []
    size = 0
    for line in io.BytesIO(data):
        if first := re.search(rb"[\x80-\xff]", line):
            start = max(first.start() - _BEFORE, 0)
            lines.append(line[start : start + _LOOKED_AT])
            size += len(lines[-1])
        if size >= _LOOKED_AT:
            break
    return b"".join(lines)[:_LOOKED_AT]


_WORD = re.compile(r"[A-Za-z\u00aa-\u00ff\u0100-\u1fff]+")  # with the marks of Thai and Arabic


_CONTROL = re.compile(r"[\x80-\x9f]")  # no text has them, but Latin-1 gives each of them a byte
_SIGN_IN_WORD = re.compile(
    r"€(?=[^\W\d_])|(?<=[^\W\d_])(?:€|[^\w\s\x00-\x7f’‘–—…·\u00ad](?=[^\W\d_]))"
)


def _judged(text: str, codec: str) -> tuple[float, int]:
    """How usual the text's characters beyond ASCII are, and how many of them tell."""
    beyond = [character for character in text if character > "\x7f"]
    telling = [character for character in beyond if character not in NEUTRAL]
    if not telling or _CONTROL.search(text):
        return 0.0, 0
    if codec in _EAST_ASIAN:
        return _judged_east_asian(telling, codec)
    telling += [sign for sign in _SIGN_IN_WORD.findall(text) if sign in NEUTRAL]
    languages = _SINGLE_BYTE[codec]
    words = _WORD.findall(text)
    return max(
        (_judged_letters(telling, words, ALPHABETS[language]) for language in languages),
        default=(0.0, 0),
    )


def _judged_east_asian(telling: list[str], codec: str) -> tuple[float, int]:
    usual, syllables = _EAST_ASIAN[codec]
    ideographs = [character for character in telling if character not in syllables]
    hits = sum(character in usual for character in ideographs)
    others = len(telling) - len(ideographs)
    strange = sum(_is_strange(character) for character in telling)
    if syllables and others < 0.2 * len(telling):
        return 0.0, 0  # Japanese without kana is rare, and looks like other encodings of Chinese
    share = hits / len(ideographs) if ideographs else 1.0
    if len(ideographs) < 4 and others > 8:
        share = max(share, 0.5)
    score = min(1.0, share / 0.4) - 4 * strange / len(telling)
    leads = [character.encode(codec, "replace")[0] for character in ideographs]
    rare = sum(lead >= _RARE_FROM[codec] or lead < 0x80 for lead in leads) / max(len(leads), 1)
    score -= max(2 * rare - 0.1, 0.0)
    if codec in ("cp950", "big5hkscs") and leads.count(0xA4) > 0.5 * len(leads):
        score /= 2  # the syllables of EUC-JP are there, and look like simple characters
    return max(score, 0.0), len(telling)


def _is_strange(character: str) -> bool:
    """Whether a character of East Asian encodings hardly occurs in text."""
    code = ord(character)
    return (
        0xE000 <= code < 0xF900
        or 0xFF61 <= code < 0xFFA0
        or code < 0x100
        or 0x2500 <= code < 0x2580
    )


def _judged_letters(telling: list[str], words: list[str], alphabet: Alphabet) -> tuple[float, int]:
    letters = set(alphabet.letters) | set(alphabet.letters.upper())
    bad = sum(character not in letters for character in telling)
    written = [word for word in words if not word.isascii()]
    odd = sum(count for word, count in Counter(written).items() if _is_odd(word, alphabet))
    score = 1.0 - 4 * bad / len(telling) - 3 * odd / max(len(written), 1)
    if alphabet.usual:
        usual = set(alphabet.usual) | set(alphabet.usual.upper())
        share = sum(character in usual for character in telling) / len(telling)
        score = min(score, (share - 0.5) / 0.25)
        capitals = sum(character.isupper() for character in telling)
        if alphabet.has_case and capitals > 0.6 * len(telling):
            score *= 0.7  # KOI8 has capitals where Windows-1251 has small letters
    if alphabet.signs:
        signs = sum(character in alphabet.signs for character in telling)
        score = min(score, 4 * signs / len(telling))
    return max(score, 0.0), len(telling) - bad


def _is_odd(word: str, alphabet: Alphabet) -> bool:
    """Whether a word looks as words do in a wrong encoding."""
    if alphabet.has_case and _has_odd_case(word):
        return True
    beyond = sum(not letter.isascii() for letter in word)
    if alphabet.is_latin:
        return len(word) > 2 and beyond > 2 / 3 * len(word)
    if beyond < len(word):  # letters of two scripts
        return True
    return bool(alphabet.vowels) and len(word) > 3 and not set(word.lower()) & set(alphabet.vowels)


def _has_odd_case(word: str) -> bool:
    """Whether a capital letter follows a small one, which is rare but in wrong encodings."""
    return any(
        first.islower() and second.isupper() and not (first.isascii() and second.isascii())
        for first, second in itertools.pairwise(word)
    )


_SEQUENCE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)


def _utf8_share(data: bytes) -> float:
    """The share of the bytes beyond ASCII that are in whole characters of UTF-8."""
    beyond = len(data) - len(re.sub(rb"[\x80-\xff]+", b"", data))
    return sum(len(match.group()) for match in _SEQUENCE.finditer(data)) / max(beyond, 1)


def _is_cut(data: bytes) -> bool:
    """Whether only the last character is incomplete."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def not_utf8(path: Path, data: bytes, first_line: int = 1) -> UserError:
    """The sentence about a part of a file that must be UTF-8 and is not."""
    judged = guesses(data) if _utf8_share(data) < _DAMAGED else []
    return _not_utf8(path, data, judged, first_line)


def _not_utf8(path: Path, data: bytes, judged: list[Guess], first_line: int = 1) -> UserError:
    """Like `not_utf8`, with the `guesses` of the data."""
    share = _utf8_share(data)
    if share < _PERHAPS_DAMAGED and (
        damaged := _damaged_east_asian(path, data, judged, first_line)
    ):
        return damaged
    if share >= _PERHAPS_DAMAGED and (not judged or judged[0].score < _CERTAIN):
        return _damaged(path, data, first_line)
    return _unknown(path, data, judged, first_line)


def _damaged_east_asian(
    path: Path, data: bytes, judged: list[Guess], first_line: int
) -> UserError | None:
    """The sentence about a file that is in an East Asian encoding but for a few bytes."""
    sample = _telling_lines(data)
    nearly: list[tuple[int, float, str]] = []
    for codec in _EAST_ASIAN:
        text = sample.decode(codec, "replace")
        wrong = text.count("\ufffd")
        if wrong > 0.001 * len(text) + 2:
            continue
        score, evidence = _judged(text.replace("\ufffd", ""), codec)
        if score >= _CERTAIN and evidence >= 20:
            nearly.append((-wrong, score, codec))
    if not nearly or any(guess.score > _RIVAL for guess in judged):
        return None
    codec = max(nearly)[2]
    wrong = _first_wrong_byte(path, data, codec, first_line)
    if not wrong:
        return None
    return UserError(
        f"{wrong}, but the rest of the file seems to be. It is damaged; correct it there, and save "
        "the file as UTF-8."
    )


def _damaged(path: Path, data: bytes, first_line: int = 1) -> UserError:
    """The sentence about a file that is UTF-8 but for some places."""
    where = _first_bad_byte(path, data, first_line)
    if _is_cut(data):
        return UserError(
            f"{where}: the file ends in the middle of a character. It is cut off; copy or download "
            "it again."
        )
    places = counted(len(re.findall(rb"[\x80-\xff]+", _SEQUENCE.sub(b"", data))), "place")
    return UserError(
        f"{where}, but most of the file is ({places} with such bytes). It is damaged, or put "
        "together from files in two encodings; correct it there."
    )


def _unknown(path: Path, data: bytes, judged: list[Guess], first_line: int = 1) -> UserError:
    """The sentence about a file whose encoding is not certain."""
    likely = _candidates(judged)
    if len(likely) == 1:
        seems = f'It may be {shown_name(likely[0])}; if so, set ENCODING = "{_setting(likely[0])}".'
    elif likely:
        names = [shown_name(codec) for codec in likely]
        listed = f"{', '.join(names[:-1])} or {names[-1]}"
        seems = (
            f'It may be {listed}; set ENCODING to the right one, such as "{_setting(likely[0])}".'
        )
    elif _SEQUENCE.search(data):
        seems = (
            "Other parts of it are, so it may be put together from files in two encodings; save "
            "each of them as UTF-8 first."
        )
    else:
        seems = "Save it as UTF-8, or set ENCODING to the encoding that it is in."
    return UserError(f"{_first_bad_byte(path, data, first_line)}. {seems}")


def _first_bad_byte(path: Path, data: bytes, first_line: int) -> str:
    """The beginning of a sentence about data that is not UTF-8."""
    position = _not_utf8_at(data)
    line, column = _place(data, position, "utf-8")
    line += first_line - 1
    return f"{path}, line {line}, column {column}: the byte 0x{data[position]:02X} is not UTF-8"


def _not_utf8_at(data: bytes) -> int:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _candidates(judged: list[Guess]) -> list[str]:
    """At most three encodings that a file may be in, one for each text that they give."""
    likely: list[Guess] = []
    for guess in judged:
        if guess.score >= 0.5 and all(guess.text != other.text for other in likely):
            likely.append(guess)
    return [guess.codec for guess in likely[:3]]


def text_codec(path: Path, start: bytes, encoding: str = AUTO) -> str:
    """Python's name of the encoding of a file that is too large to be looked at as a whole.

    Raises:
        UserError: it begins in another encoding than UTF-8, and `encoding` does not say which.
    """
    for mark, codec, _ in _MARKS:
        if start.startswith(mark):
            return codec
    if encoding.strip().lower() != AUTO:
        codec = codec_name(encoding)
        whole = start[: start.rfind(b"\n") + 1]
        is_utf8 = start.startswith(BOM) or (not whole.isascii() and _is_surely_utf8(whole))
        return "utf-8" if is_utf8 else codec
    if unmarked := _unmarked_utf(start[: len(start) // 4 * 4]):
        return unmarked[0]
    whole = start[: start.rfind(b"\n") + 1] or start
    try:
        whole.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            raise not_utf8(path, whole) from None
    return "utf-8"
