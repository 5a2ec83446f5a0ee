"""Left-over markup is found, and sound texts that look a little like it are not."""

import pytest

from tinkersmith.doctor.markup import in_an_answer, in_any_text

GREETING = "Ich möchte früher über Köln nach Düsseldorf fahren"
CHINESE = "人工智能正在改变世界各地人们的工作方式"


def kinds(text: str, context: str = "") -> list[str]:
    context = f"{context}\n{text}"
    return [kind for kind, _ in (*in_any_text(text, context), *in_an_answer(text, context))]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("markup", "First line.<br>Second line."),
        ("markup", "<p>All is well.</p>"),
        ("markup", 'See <a href="x">here</a>.'),
        ("markup", "Tom &amp; Jerry"),
        ("markup", "It&#39;s late."),
        ("markup", "空格&nbsp;在这里"),
        ("markup", "ChatGPT said:\nParis."),
        ("markup", "python\nCopy code\nprint(1)"),
        ("markup", "答案如下\n复制代码\nprint(1)"),
        ("markup", "Paris is the capital【4†source】."),
        ("markup", "Paris【12:3†city.pdf】 is large."),
        ("markup", "巴黎是首都[citation:3]。"),
        ("markup", "It is so :contentReference[oaicite:2]{index=2}."),
        ("markup", "It is so[^3^]."),
        ("markup", "It rained \ue200cite\ue202turn0search1\ue201 all day."),
        ("control-tokens", "Yes.<|im_end|>"),
        ("control-tokens", "<|im_start|>assistant\nYes."),
        ("control-tokens", "[INST] Say yes [/INST] Yes"),
        ("control-tokens", "Yes</s>"),
        ("control-tokens", "Yes<end_of_turn>"),
        ("control-tokens", "是<｜end▁of▁sentence｜>"),
        ("control-tokens", "<|start_header_id|>user<|end_header_id|>"),
        ("control-tokens", "<|endoftext|>"),
        ("role-words", "Yes.\n\nHuman: And now?"),
        ("role-words", "### Response:\nYes."),
        ("role-words", "好的。\n用户：然后呢？"),
        ("role-words", "Assistant: Yes."),
        ("escapes", "\\u4eba\\u5de5\\u667a\\u80fd"),
        ("escapes", "First point.\\nSecond point.\\n\\nThird."),
        ("mojibake", "CafÃ© au lait"),
        ("mojibake", "Itâ€™s late."),
        ("mojibake", GREETING.encode().decode("cp1252", "replace").replace("\ufffd", "")),
        ("mojibake", "A lost \ufffd character"),
        ("mojibake", CHINESE.encode().decode("latin-1")),
        ("mojibake", CHINESE.encode().decode("gb18030", "ignore")),
        ("mojibake", "Привет, мир".encode().decode("latin-1")),
        ("mojibake", "锟斤拷锟斤拷"),
        ("invisible", "zero\u200bwidth"),
        ("invisible", "mark\ufeff inside"),
        ("invisible", "soft\u00adhyphen"),
        ("invisible", "null\x00byte"),
        ("invisible", "colour \x1b[31mred\x1b[0m"),
        ("invisible", "left\u200eto right"),
        ("invisible", "\u202eevil"),
    ],
)
def test_left_overs_are_found(kind: str, text: str) -> None:
    assert kind in kinds(text)


@pytest.mark.parametrize(
    ("text", "context"),
    [
        ("If a < b and b > c, then a is small.", ""),
        ("a<b>c is no HTML, x < y & z", "math"),
        ("Use `<br>` to break a line.", ""),
        ("```html\n<p>Hello</p>\n```", ""),
        ("<p>Hello</p>", "Write the HTML of a paragraph."),
        ("<p>你好</p>", "写一个网页段落"),
        ("AT&T and R&D; Q&A", ""),
        ("The list [1] and [2, 3] of sources.", ""),
        ("Matrix [[1, 2], [3, 4]]", ""),
        ("Vec<String> and List<int> in C++", ""),
        ("Human rights: a short history.", ""),
        ("User: hi\nAssistant: hello", "Write a dialogue between a user and an assistant."),
        ("助手：好的", "写一段对话"),
        ("C:\\new\\temp", ""),
        ("\\nabla f = 0 and \\neq, \\underline{x}", ""),
        ("```python\nprint('a\\nB\\n\\nC')\n```", ""),
        ("\\u4e2d\\u6587", "Decode this unicode escape."),
        (GREETING, ""),
        ("«É» à côté… “Ça va”, São Paulo, ÎLE, Ångström, 20 °C, ½ Maß, naïve", ""),
        ("SÃO PAULO, NÃO, CORAÇÃO, MAÇÃ", ""),
        ("touché…” dit-il. Le café» est bon.", ""),
        ("VIỆT NAM, HÀ NỘI, CHÂU Á", ""),
        (CHINESE + "，锟是一个字。", ""),
        ("日本語の文章です。これは正しい。", ""),
        ("한국어 문장입니다.", ""),
        ("👨‍👩‍👧 family, कर्म, می‌خواهم", ""),
        ("שלום\u200f עולם", ""),
        ("tab\tand\nline\r\n", ""),
        ("English with ’typographic’ “quotes” — and dashes…", ""),
        ("The model reads the prompt until the end.", ""),
        ("Answer: 42", ""),
        ("答案：42", ""),
    ],
)  # fmt: skip
def test_sound_texts_have_no_left_overs(text: str, context: str) -> None:
    assert kinds(text, context) == []
