"""A text -> what is left over in it from web pages, chat programs, templates and encodings."""

import re
from collections.abc import Iterator

from tinkersmith.doctor.texts import quoted, without_code

_Problem = tuple[str, str]  # kind, reason

_TAG = re.compile(
    r"</?(?:p|br|div|span|b|i|u|em|strong|ul|ol|li|table|tr|td|th|h[1-6]|img|font|sup|sub|center|hr"
    r"|blockquote|a)(?:\s+[a-z-]+\s*=[^<>]*)?\s*/?>",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|mdash|ndash|hellip|#\d{2,5}|#x[0-9a-f]{2,4});")
_ABOUT_MARKUP = re.compile(
    r"html|css|xml|svg|javascript|react|vue|jsx|php|markdown|web ?page|website|tag|网页|标签|前端"
    r"|爬虫|網頁|標籤",
    re.IGNORECASE,
)
_OF_CHAT_PROGRAMS = (
    " said:",
    "ChatGPT",
    "Copy code",
    "复制代码",
    "egenerate",
    "重新生成",
    "Thought",
)
_OF_CITATIONS = ("†", "[citation:", "oai", "[^", "turn")  # to look for first, which is faster
_CHAT_PROGRAM = re.compile(
    r"^(?:ChatGPT|You|Gemini|Claude|DeepSeek) said:|^ChatGPT\s*:|^(?:Copy code|复制代码|Regenerate "
    r"response|重新生成回答)\s*$|^Thought for \d+ seconds?\s*$|^已深度思考（用时",
    re.MULTILINE,
)
_CITATION = re.compile(
    r"【\d+(?::\d+)?†[^】\n]*】|\[citation:\s?\d+\]|:contentReference\[oaicite:|oai_citation"
    r"|\[\^\d+\^\]|cite\ue202?turn\d+\w+"
)
_CONTROL = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|eom_id|start_header_id|end_header_id|begin_of_text"
    r"|end_of_text|user|assistant|system|end|endofturn|END_OF_TURN_TOKEN|channel|message|return"
    r"|start|startoftext|pad|sep)\|>"
    r"|\[/?INST\]|<</?SYS>>|</s>|<(?:start|end)_of_turn>|<[｜|](?:User|Assistant)[｜|]>"
    r"|<｜(?:begin|end)▁of▁sentence｜>|\[gMASK\]|<(?:bos|eos|unk|pad)>|\[(?:SEP|CLS|PAD|UNK)\]"
)
_ROLE = re.compile(
    r"^[#\s]{0,5}(?:(?:Human|User|HUMAN|USER|Assistant|ASSISTANT)\s?[:：]"
    r"|###\s*(?:Instruction|Response|Human|Assistant|User|Input|指令|回答)\s*[:：]"
    r"|(?:用户|助手|人类)[:：])",
    re.MULTILINE,
)
_ABOUT_TALK = re.compile(
    r"dialog|conversation|script|transcript|chat|screenplay|prompt|roleplay|role-play|interview|play"
    r"|对话|剧本|聊天|采访|角色|提示词|對話|劇本",
    re.IGNORECASE,
)
_UNICODE_ESCAPE = re.compile(r"(?:(?<!\\)\\u[0-9a-fA-F]{4}){2,}")
_WRITTEN_LINE_END = re.compile(r"\\n(?:\\n|[A-Z0-9*#\-\u4e00-\u9fff])")
_ABOUT_ESCAPES = re.compile(
    r"unicode|escape|json|regex|python|string|newline|code|转义|编码|字符串|换行|轉義|編碼|字串",
    re.IGNORECASE,
)
_REPLACEMENT = re.compile("\ufffd+")
# Letters that the bytes 0x80 to 0xBF become in Windows-1252 or Latin-1.
_LATE = "[\u0080-\u00bf\u0152-\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]"
# UTF-8 that was read so. Two letters in a row, where one happens in sound text ("touché…”").
_LATIN_MOJIBAKE = re.compile(
    f"[ÂÃ]{_LATE}|(?:[ÐÑ]{_LATE}){{2,}}|(?:[ã-ï]{_LATE}{{2}}){{2,}}|â[\u0080€]{_LATE}"
)
_GBK_MOJIBAKE = re.compile("锟斤拷|烫烫烫|屯屯屯")
# UTF-8 that was read as GBK, as its bytes: four letters in a row do not happen in sound text.
_UTF8_IN_GBK = re.compile(rb"(?:[\xe3-\xef][\x80-\xbf]{2}){4,}")
_INVISIBLE = re.compile(
    "[\u200b\u2060\ufeff\u00ad\u2028\u2029\u202a-\u202e\u2066-\u2069\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)
_DIRECTIONS = re.compile("[\u200e\u200f]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff]")


def in_any_text(text: str, context: str) -> Iterator[_Problem]:
    """Problems of a question or an answer.

    Args:
        context: all texts of the exchange, which say what it is about.
    """
    yield from _markup(text, context)
    if match := _CONTROL.search(text) if ("<" in text or "[" in text) else None:
        yield "control-tokens", f"contains {match[0]}: {_around(text, match)}"
    if "\\" in text:
        yield from _escapes(text, context)
    yield from _mojibake(text)
    yield from _invisible(text)


def in_an_answer(text: str, context: str) -> Iterator[_Problem]:
    """Problems that only answers have."""
    if (":" in text or "：" in text) and not _ABOUT_TALK.search(context):
        for match in _ROLE.finditer(text):
            yield "role-words", f"the answer contains a role: {_around(text, match)}"
            break


def _markup(text: str, context: str) -> Iterator[_Problem]:
    if any(word in text for word in _OF_CHAT_PROGRAMS) and (match := _CHAT_PROGRAM.search(text)):
        yield "markup", f"left over from a chat program: {_around(text, match)}"
    if any(word in text for word in _OF_CITATIONS) and (match := _CITATION.search(text)):
        yield "markup", f"a citation mark without its source: {_around(text, match)}"
    if "<" not in text and "&" not in text:
        return
    plain = without_code(text)
    match = _TAG.search(plain) or _ENTITY.search(plain)
    if match and not _ABOUT_MARKUP.search(context):
        yield "markup", f"HTML: {_around(plain, match)}"


def _escapes(text: str, context: str) -> Iterator[_Problem]:
    plain = without_code(text)
    match = _UNICODE_ESCAPE.search(plain)
    if match is None and "\n" not in text.strip():
        match = _WRITTEN_LINE_END.search(plain)
    if match and not _ABOUT_ESCAPES.search(context):
        yield "escapes", f"an escape is written out: {_around(plain, match)}"


def _mojibake(text: str) -> Iterator[_Problem]:
    if text.isascii():
        return
    if match := _REPLACEMENT.search(text):
        yield "mojibake", f"a character was lost (U+FFFD): {_around(text, match)}"
        return
    match = _LATIN_MOJIBAKE.search(text) or _GBK_MOJIBAKE.search(text)
    if match is None and (garbled := _utf8_read_as_gbk(text)):
        match = re.search(re.escape(garbled), text)
    if match:
        yield "mojibake", f"looks read in a wrong encoding: {_around(text, match)}"


def _utf8_read_as_gbk(text: str) -> str:
    """The first part of a text that is Chinese in UTF-8 which was read as GBK."""
    match = _UTF8_IN_GBK.search(text.encode("gb18030", "ignore"))
    if match is None:
        return ""
    try:
        meant = match[0].decode("utf-8")
    except UnicodeError:
        return ""
    if not all("\u3000" <= character <= "\u9fff" or character > "\uff00" for character in meant):
        return ""
    return match[0][: len(match[0]) // 2 * 2].decode("gb18030", "ignore")[:4]


def _invisible(text: str) -> Iterator[_Problem]:
    if text.isascii() and text.isprintable():
        return
    match = _INVISIBLE.search(text)
    if match is None and not text.isascii() and not _RIGHT_TO_LEFT.search(text):
        match = _DIRECTIONS.search(text)
    if match:
        yield "invisible", f"contains U+{ord(match[0]):04X}: {_around(text, match)}"


def _around(text: str, match: re.Match[str]) -> str:
    return quoted(text, match.start(), match.end())
