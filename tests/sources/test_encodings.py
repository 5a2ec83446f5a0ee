"""An encoding is read when it is certain, never named wrongly, and never guessed in silence."""

import codecs
import json
import time
from pathlib import Path

import pytest

from tinkersmith.errors import UserError
from tinkersmith.sources.encodings import LINE_BY_LINE, as_utf8, codec_name, shown_name

FILE = Path("data/x.json")
# Sentences of our own in many languages, and the encodings that files in them are written in.
TEXTS = {
    "zh": [
        "请把下面的句子翻译成英文。今天天气很好，我们去公园散步吧。",
        "小明有三个苹果，他又买了五个，一共有几个？答案是八个。",
        "你好",
        "机器学习",
        "写一首关于春天的短诗：春风吹来，桃花开了，孩子们在河边唱歌。",
        "解释什么是深度学习，并举一个例子😀说明它的应用。",
    ],
    "zh-TW": [
        "請把下面的句子翻譯成英文。今天天氣很好，我們去公園散步吧。",
        "小明有三個蘋果，他又買了五個，一共有幾個？答案是八個。",
        "您好",
        "寫一句問候語。早安，祝您今天順利。",
    ],
    "ja": [
        "次の文章を英語に翻訳してください。今日は天気がとても良いので、公園へ散歩に行きましょう。",
        "挨拶を書いてください。",
        "おはようございます。",
        "機械学習",
        "コンピューターのプログラムについて説明してください。",
        "リンゴが三つあります。五つ買いました。全部でいくつですか？",
    ],
    "ko": [
        "다음 문장을 영어로 번역하세요. 오늘은 날씨가 아주 좋으니 공원으로 산책하러 갑시다.",
        "사과가 세 개 있습니다. 다섯 개를 더 샀습니다. 모두 몇 개입니까?",
        "안녕하세요",
        "기계 학습이란 무엇입니까? 예를 들어 설명하세요.",
    ],
    "ru": [
        "Переведите следующее предложение на английский язык. Сегодня очень хорошая погода.",
        "У Маши было три яблока, она купила ещё пять. Сколько яблок стало?",
        "Привет",
        "МОСКВА СТОЛИЦА РОССИИ",
        "что такое машинное обучение",
    ],
    "uk": ["Перекладіть наступне речення англійською мовою. Сьогодні дуже гарна погода."],
    "bg": ["Преведете следното изречение на английски език. Днес времето е много хубаво."],
    "el": ["Μεταφράστε την ακόλουθη πρόταση στα αγγλικά. Σήμερα ο καιρός είναι πολύ καλός."],
    "tr": ["Aşağıdaki cümleyi İngilizceye çevirin. Bugün hava çok güzel, öğrenciler dışarıda."],
    "he": ["תרגם את המשפט הבא לאנגלית. היום מזג האוויר יפה מאוד, בואו נלך לטייל בפארק."],
    "ar": ["ترجم الجملة التالية إلى الإنجليزية. الطقس جميل جدا اليوم، لنذهب في نزهة."],
    "th": ["แปลประโยคต่อไปนี้เป็นภาษาอังกฤษ วันนี้อากาศดีมาก ไปเดินเล่นกันเถอะ"],
    "lt": ["Išverskite šį sakinį į anglų kalbą. Šiandien labai gražus oras, žąsis ėmė ąžuolą."],
    "pl": ["Przetłumacz następujące zdanie na angielski. Dziś jest ładna pogoda, więc idziemy."],
    "cs": ["Přeložte následující větu do angličtiny. Dnes je velmi pěkné počasí, půjdeme ven."],
    "hu": ["Fordítsd le a következő mondatot angolra. Ma nagyon szép idő van, együtt sétálunk."],
    "de": [
        "Übersetze den Satz ins Englische. Heute ist das Wetter schön, wir essen Käse für später.",
        "Größe",
        "Erkläre maschinelles Lernen: Ein Modell lernt – ohne Regeln. Müller, Österreich, Straße.",
    ],
    "fr": [
        "Traduisez en français. Où est la bibliothèque ? Elle a été fermée à cause de l’été.",
        "Café",
        "Expliquez : le modèle apprend à partir d'exemples, ça va être très intéressant.",
    ],
    "es": [
        "¿Cómo estás? Traduce la siguiente oración: El niño comió una manzana en el jardín.",
        "Mañana por la mañana el señor Muñoz cocinará el camarón con limón.",
    ],
    "pt": ["Traduza a frase. A educação é muito importante; não há opções. Coração, mão, você."],
    "it": ["Perché la città è così bella? Può darsi che sia più antica; è già lunedì, però."],
    "sv": ["Översätt till engelska. I dag är vädret mycket fint, så vi går ut och äter smörgåsar."],
    "da": ["Oversæt til engelsk. I dag er vejret smukt, så vi går en tur og spiser brød på en ø."],
}  # fmt: skip
ENCODINGS = {
    "zh": ["gb18030", "gbk", "gb2312"],
    "zh-TW": ["big5", "cp950", "big5hkscs", "gbk"],
    "ja": ["shift_jis", "cp932", "euc_jp", "iso2022_jp"],
    "ko": ["euc_kr", "cp949"],
    "ru": ["cp1251", "koi8_r", "cp866", "iso8859_5", "mac_cyrillic"],
    "uk": ["cp1251", "koi8_u", "mac_cyrillic"],
    "bg": ["cp1251"],
    "el": ["cp1253", "iso8859_7"],
    "tr": ["cp1254"],
    "he": ["cp1255"],
    "ar": ["cp1256"],
    "th": ["cp874"],
    "lt": ["cp1257"],
    "pl": ["cp1250", "iso8859_2", "cp852"],
    "cs": ["cp1250", "iso8859_2", "cp852"],
    "hu": ["cp1250", "iso8859_2"],
}
WESTERN = ["cp1252", "iso8859_1", "iso8859_15", "mac_roman", "cp850"]


def files() -> list[tuple[str, str, str, bytes]]:
    """(language, encoding, text, bytes) of small files that are not UTF-8."""
    made: list[tuple[str, str, str, bytes]] = []
    for language, sentences in TEXTS.items():
        for text in [*sentences, " ".join(sentences)]:
            record = {"instruction": text, "input": "", "output": "a"}
            forms = (
                json.dumps([record], ensure_ascii=False),
                json.dumps(record, ensure_ascii=False) + '\n{"instruction": "b", "output": "c"}\n',
                json.dumps([record] * 5, ensure_ascii=False, indent=1),
                f'instruction,output\n"{text}",a\n',
            )
            for form in forms:
                for encoding in [*ENCODINGS.get(language, WESTERN), "utf-16-le", "utf-16-be"]:
                    try:
                        data = form.encode(encoding)
                    except UnicodeEncodeError:
                        continue
                    if not is_utf8(data) or encoding.startswith(("utf-16", "iso2022")):
                        made.append((language, encoding, form, data))
    return made


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_no_certain_guess_is_wrong_and_most_files_are_read() -> None:
    read = 0
    made = files()
    assert len(made) > 400
    for language, encoding, text, data in made:
        try:
            guess = as_utf8(FILE, data)
        except UserError as error:
            assert "ENCODING" in str(error) and str(error).startswith("data/x.json, line ")
            continue
        assert guess.data.decode() == text, (language, encoding, guess.note)
        assert guess.note, (language, encoding)
        read += 1
    print(f"{read} of {len(made)} read, the others refused with candidates")
    assert read > 0.7 * len(made)


@pytest.mark.parametrize(
    ("encoding", "language", "name"),
    [
        ("gb18030", "zh", "GB18030"),
        ("big5", "zh-TW", "Big5"),
        ("shift_jis", "ja", "Shift-JIS"),
        ("euc_jp", "ja", "EUC-JP"),
        ("euc_kr", "ko", "EUC-KR"),
        ("cp1251", "ru", "Windows-1251"),
        ("koi8_r", "ru", "KOI8-R"),
        ("cp1252", "de", "Windows-1252"),
        ("iso8859_1", "fr", "Windows-1252"),
        ("mac_roman", "fr", "MacRoman"),
        ("cp1250", "cs", "Windows-1250"),
    ],
)
def test_a_file_with_some_text_is_read_and_the_guess_is_said_with_the_setting(
    encoding: str, language: str, name: str
) -> None:
    text = " ".join(TEXTS[language]).replace("’", "'").replace("–", "-").replace("😀", "")
    guess = as_utf8(FILE, json.dumps([text], ensure_ascii=False).encode(encoding))
    assert json.loads(guess.data) == [text]
    assert guess.note.startswith(f"{name}, which it seems to be; set ENCODING = ")
    named = guess.note.split('"')[1]
    assert shown_name(codec_name(named)) == name


@pytest.mark.parametrize(
    "data",
    [
        b'[{"a": "Caf\xe9"}]',  # one letter could be anything
        '[{"a": "你好"}]'.encode("gbk"),
        '[{"a": "日"}]'.encode("shift_jis"),
        b'[{"a": "\xff"}]',
        b'[{"a": "\xa0\xa0"}]',
    ],
)
def test_a_few_bytes_are_never_a_certain_guess(data: bytes) -> None:
    with pytest.raises(UserError, match=r"line 1, column \d+: the byte 0x.. is not UTF-8\. "):
        as_utf8(FILE, data)


@pytest.mark.parametrize("language", ["zh", "ja", "ko", "ru", "th", "de", "fr", "el", "ar"])
@pytest.mark.parametrize("bad", [b"\xff", b"\xe4", b"\x81"])
def test_utf8_with_a_damaged_byte_is_told_as_that_with_its_place(language: str, bad: bytes) -> None:
    lines = [json.dumps({"a": text}, ensure_ascii=False) for text in TEXTS[language] * 3]
    data = "\n".join(lines).encode()
    place = data.index(b"\n") + 8
    damaged = data[:place] + bad + data[place:]
    with pytest.raises(UserError) as caught:
        as_utf8(FILE, damaged)
    assert str(caught.value).startswith(f"data/x.json, line 2, column 8: the byte 0x{bad[0]:02X} ")
    assert "not UTF-8, but most of the file is (1 place with such bytes). It is damaged" in str(
        caught.value
    )


def test_utf8_that_is_cut_off_inside_a_character_is_told_as_that() -> None:
    with pytest.raises(UserError, match=r"ends in the middle of a character\. It is cut off"):
        as_utf8(FILE, '[{"a": "你好，世界'.encode()[:-1])


def test_a_file_in_two_encodings_is_not_read_as_either() -> None:
    lines = [json.dumps({"a": text}, ensure_ascii=False) for text in TEXTS["zh"][:5]]
    mixed = [line.encode("gb18030" if place % 2 else "utf-8") for place, line in enumerate(lines)]
    with pytest.raises(UserError, match=r"line 2, .*files? in\s+two encodings"):
        as_utf8(FILE, b"\n".join(mixed))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_mark_decides_and_is_removed(encoding: str) -> None:
    text = '[{"a": "中文 é"}]'
    assert as_utf8(FILE, text.encode(encoding)).data == text.encode()
    assert as_utf8(FILE, text.encode(encoding)).note == ""
    assert "as its first bytes say" in as_utf8(FILE, text.encode("utf-16"), "gbk").note


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf16_and_utf32_without_a_mark_are_read_and_said(encoding: str) -> None:
    text = '[{"instruction": "中文", "output": "é😀"}]'
    guess = as_utf8(FILE, text.encode(encoding))
    assert guess.data.decode() == text
    assert guess.note == f"UTF-{encoding[4:6]} without a mark"


def test_the_setting_names_the_encoding_in_any_spelling() -> None:
    text = '["把下面的句子翻译成英文㐀"]'
    for name in ("gb18030", "GB2312", " gbk", "GB 18030", "cp936"):
        assert as_utf8(FILE, text.encode("gb18030"), name).data.decode() == text
    assert as_utf8(FILE, b'["Caf\xe9 \x80"]', "latin-1").data.decode() == '["Café €"]'
    assert as_utf8(FILE, '["é"]'.encode("mac_roman"), "MacRoman").data.decode() == '["é"]'


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gb18300", 'is "gb18300", which is no encoding; did you mean "gb18030"?'),
        ("klingon", 'is "klingon", which is no encoding; usual ones are utf-8, '),
        ("ansi", '"ANSI" means another one on each machine'),
        ("base64", "which is no encoding"),
        ("rot13", "which is no encoding"),
        ("unicode_escape", "which is no encoding"),
        ("idna", "which is no encoding"),
        ("\u4e2d", "which is no encoding"),
        ("a\0b", "which is no encoding"),
        ("x" * 5000, "which is no encoding"),
    ],
)
def test_a_name_of_no_encoding_is_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        as_utf8(FILE, b"[]", name)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_an_encoding_that_does_not_fit_is_told_with_line_and_column() -> None:
    data = '[\n"把下面的句子翻译成英文"]'.encode("gb18030")
    with pytest.raises(UserError) as caught:
        as_utf8(FILE, data, "utf-8")
    assert str(caught.value) == (
        'data/x.json, line 2, column 2: the byte 0xB0 is not UTF-8. ENCODING is "utf-8"; correct '
        "it, or the file."
    )
    with pytest.raises(
        UserError, match=r"line 2, column \d+: the byte 0x.. is not EUC-KR\. ENCODING"
    ):
        as_utf8(FILE, '[\n"Übung für später"]'.encode("cp1252"), "euc-kr")


def test_a_file_that_is_certainly_utf8_is_not_read_as_the_setting_says() -> None:
    text = '["把下面的句子翻译成英文"]'
    guess = as_utf8(FILE, text.encode(), "gb18030")
    assert guess.data.decode() == text
    assert guess.note == 'UTF-8, which it certainly is, although ENCODING is "gb18030"'
    assert as_utf8(FILE, b'["ascii"]', "gb18030").note == ""


def test_encodings_that_are_read_line_by_line_have_no_line_end_inside_a_character() -> None:
    for codec in LINE_BY_LINE:
        codecs.lookup(codec)
        for code in (*range(0x80, 0x600), *range(0x3000, 0x3100), *range(0x4E00, 0x9FA6)):
            try:
                data = chr(code).encode(codec)
            except UnicodeEncodeError:
                continue
            assert b"\n" not in data


def test_small_files_of_four_encodings_get_the_right_name_or_none() -> None:
    """The first three were once told to be Latin-1."""
    form = '[{"instruction": "%s", "input": "", "output": "%s"}]'
    for encoding, name, texts in (
        ("big5", "Big5", ("寫一句問候語。", "早安，祝您今天順利。")),
        ("shift_jis", "Shift-JIS", ("挨拶を書いて。", "おはようございます。")),
        ("cp1252", "Windows-1252", ("Quote it.", "“Café” costs €3")),
        ("gb18030", "GB18030", ("写一句问候语。", "早上好，祝您今天一切顺利。")),
    ):
        data = (form % texts).encode(encoding)
        try:
            said = as_utf8(FILE, data).note
            assert as_utf8(FILE, data).data.decode() == form % texts
        except UserError as error:
            said = str(error)
        assert name in said and "Latin-1" not in said


def test_a_damaged_byte_in_gbk_is_named_with_its_place_in_little_time() -> None:
    line = '{"instruction": "请用一句话说明什么是机器学习", "output": "机器从数据中学习规律。"}\n'
    data = (line * 2000).encode("gbk")
    at = len((line * 1500).encode("gbk")) + 18
    damaged = data[:at] + b"\xff" + data[at + 1 :]
    start = time.process_time()
    with pytest.raises(UserError, match=r"line 1501, column \d+: the byte 0x.* is not GB18030"):
        as_utf8(Path("x.jsonl"), damaged)
    assert as_utf8(Path("x.jsonl"), data).data.decode() == line * 2000
    assert time.process_time() - start < 20
