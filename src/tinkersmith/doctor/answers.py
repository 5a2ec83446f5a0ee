"""An exchange -> whether its answer is empty, refuses, or repeats the question."""

import re
import unicodedata
from collections.abc import Iterator

from tinkersmith.data.near_duplicates import comparable
from tinkersmith.doctor.texts import Exchange, quoted

_PLACEHOLDER = re.compile(
    r"(?:n/a|null|nan|todo|tbd|tba|undefined|\[?(?:deleted|removed|redacted|empty|placeholder)\]?"
    r"|lorem ipsum.*|待补充|待填写|待定|暂无|略|空白|此处省略|\{\{?\s*[a-z_]{2,30}\s*\}?\}"
    r"|\[insert.{0,40}\]"
    r"|no (?:answer|response|output)|nooutput|<noinput>|<nooutput>)\W*",
    re.IGNORECASE | re.DOTALL,
)
_BEGINNING = 240  # characters in which a refusal is looked for

# A story may contain any sentence; a refusal stands at the beginning of the answer.
_CANNOT = (
    r"(?:can['’]?t|cannot|can not|could not|couldn['’]t|won['’]t|will not|am unable to|unable to"
    r"|am not able to|not able to|am not allowed to|am not permitted to|don['’]t have|do not have)"
)
_WHAT_PROGRAMS_DO = (
    r"(?:directly |actually |currently )?"
    r"(?:assist|help(?! \w+ing\b)|provide|comply|fulfil|engage|support|create|generate|write|answer"
    r"|do (?:that|this|so)|produce|share|discuss|continue|process|complete|access|browse|offer"
    r"|give (?:you|any|a|an|advice|medical|legal)|respond|recommend|perform|execute|participate"
    r"|predict|determine|verify|view|open|see (?:the|any|images)|search|translate|summari[sz]e"
    r"|encourage|promote|condone|enough|the ability|real-time|information|any information|personal)"
)
_HAN_CANNOT = (
    "(?:暂时|目前|现在|暫時|目前)?(?:无法|不能|没办法|没有办法|不会|不可以|無法|沒辦法|不便)"
)
_HAN_WHAT_PROGRAMS_DO = (
    "(?:直接|继续|立即)?(?:为您|为你|向您|向你|给您|给你|對您|為您|为大家|帮您|帮你|回答|提供|协助|帮助|满足|完成"
    "|执行|处理|生成|讨论|参与|给出|继续|支持|访问|浏览|识别|判断|查询|获取|理解|创作|编写|撰写|预测|透露|确认"
    "|協助|幫助|滿足|執行|處理|討論|給出|繼續|訪問|識別|判斷|查詢|獲取|回覆|回复)"
)
_REFUSAL = re.compile(
    rf"(?:\b(?:I['’]?m|I am) (?:really |very |so |truly |deeply )?(?:sorry|afraid)|^Sorry"
    rf"|\bI apologi[sz]e|^Unfortunately|^My apologies),?\s*(?:but )?(?:that )?(?:as an AI,? )?"
    rf"I(?:['’]m)? {_CANNOT} {_WHAT_PROGRAMS_DO}"
    rf"|^(?:No[,.] )?I(?:['’]m)? {_CANNOT} (?:directly |actually |currently )?"
    r"(?:assist|help (?:you|with)|provide|comply|fulfil|engage in|generate|create|produce|discuss"
    r"|browse|access|answer (?:that|this|your)|support (?:that|this|the)|participate)"
    r"|\bI (?:must|have to) (?:respectfully )?decline"
    r"|\bI (?:don['’]t|do not) have (?:any )?personal (?:opinion|feeling|experience|belief|view)"
    r"|\bOpenAI['’]s (?:content |usage |use-case )*polic"
    rf"|(?:很抱歉|非常抱歉|抱歉|对不起|對不起|不好意思|十分抱歉)[，,。！!]?\s*(?:但是?|不过)?\s*我?"
    rf"{_HAN_CANNOT}{_HAN_WHAT_PROGRAMS_DO}"
    rf"|^\s*我{_HAN_CANNOT}{_HAN_WHAT_PROGRAMS_DO}"
    r"|这个问题我(?:无法|不能)回答|我没有个人(?:观点|情感|意见|看法|经历)"
    r"|根据(?:相关|有关)?法律法规，?我(?:无法|不能)"
    r"|申し訳(?:ありません|ございません)が.{0,40}(?:できません|できかねます)"
)
_NAMES = ("AI", "language model", "rtificial intelligence", "人工智", "模型", "言語モデル")
_AS_AN_AI = re.compile(
    r"\b[Aa]s an? (?:AI|artificial intelligence|large language|language)"
    r"(?: language)?(?: model| assistant| chatbot)?,?\s+"
    r"(?:I\b|my\b|developed|created|trained|designed)"
    r"|\b[Aa]s an AI (?:language )?(?:model|assistant)\b"
    r"|\bI(?:['’]m| am) (?:just |only |merely )?an? (?:AI|artificial intelligence|large language)"
    r"(?: language)? (?:model|assistant|chatbot)\b"
    r"|(?:作为|作為|身为|身為)(?:一个|一個|一名|一款|一种|一位)?(?:由\w{2,12}(?:开发|训练)的)?"
    r"(?:AI|人工智能|人工智慧|大型?语言模型|语言模型|語言模型|大模型)"
    r"(?:语言模型|語言模型|模型|助手|助理|程序|系统|机器人|機器人)?[，,]?\s*(?:我|无法|不能|并不|没有|無法)"
    r"|我(?:是|只是|仅仅是)(?:一个|一個|一名|一款)?(?:AI|人工智能|大型?语言模型|语言模型)"
    r"(?:语言)?(?:模型|助手|程序)?[，,。].{0,30}(?:无法|不能|没有|不具备)"
    r"|AI(?:アシスタント|言語モデル)?として、?(?:私|わたし)?"
)
_REPEATED_AT_LEAST = 40  # characters of a question that an answer begins with


def in_an_exchange(exchange: Exchange) -> Iterator[tuple[str, str]]:
    """Problems of an answer: kind, reason."""
    answer = exchange.answer.strip()
    if not exchange.has_calls and _has_no_content(answer):
        yield "empty-answers", f"the answer is {quoted(answer, 0, len(answer))}"
        return
    names_itself = any(word in answer for word in _NAMES)
    match = (_AS_AN_AI.search(answer) if names_itself else None) or _REFUSAL.search(
        answer[:_BEGINNING]
    )
    if match:
        yield "refusals", quoted(answer, match.start(), match.end())
    yield from _copied(exchange.question, answer)


def _has_no_content(answer: str) -> bool:
    if len(answer) <= 60 and _PLACEHOLDER.fullmatch(answer):
        return True
    if any(character.isalnum() for character in answer[:200]):
        return False
    # Letters, numbers and symbols ("∞", "👍") say something; marks and invisible characters do not.
    return not any(unicodedata.category(character)[0] in "LNS" for character in answer)


def _copied(question: str, answer: str) -> Iterator[tuple[str, str]]:
    if len(answer) < len(question) * 0.8:
        return
    asked, answered = comparable(question), comparable(answer)
    if not asked:
        return
    if asked == answered:
        yield "copied-questions", f"the answer is the question: {quoted(answer, 0, 1)}"
    elif len(asked) >= _REPEATED_AT_LEAST and answered.startswith(asked):
        yield "copied-questions", f"the answer begins with the question: {quoted(answer, 0, 1)}"
