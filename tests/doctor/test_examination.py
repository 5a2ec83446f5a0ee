"""Planted faults are found in samples of every shape, and nothing else is."""

import json
import random
from collections.abc import Sequence

import pytest

from tests.support.near_texts import edited, han_words, jaccard, text, words
from tinkersmith.data.samples import Sample, Source, Turn, alpaca_sample
from tinkersmith.doctor.examination import Examination, examine_data
from tinkersmith.doctor.findings import FINDING_KINDS
from tinkersmith.progress import Progress


def silent(_: str) -> None:
    return


def examined(
    samples: Sequence[Sample], test: Sequence[Sample] = (), threshold: float = 0.8
) -> Examination:
    return examine_data(samples, test, threshold, 0, Progress(silent))


def sample(number: int, question: str, answer: str, input: str = "", system: str = "") -> Sample:
    return alpaca_sample(question, input, answer, Source("a.json", number), system=system)


def sound(rng: random.Random, count: int) -> list[Sample]:
    english, chinese = words(rng), han_words(rng)
    samples: list[Sample] = []
    for number in range(1, count + 1):
        vocabulary, gap, stop = (english, " ", ".") if number % 2 else (chinese, "", "。")
        question = text(rng, vocabulary, 60, gap) + "?"
        answer = text(rng, vocabulary, 200, gap).strip(stop) + stop
        samples.append(sample(number, question, answer))
    return samples


def records(examination: Examination, kind: str) -> list[int]:
    return [finding.source.record for finding in examination.findings[kind]]


def changed(original: Sample, number: int, question: str = "", answer: str = "") -> Sample:
    asked, answered = original.turns[-2].text, original.output
    return sample(number, question or asked, answer or answered)


def test_sound_samples_have_no_findings() -> None:
    examination = examined(sound(random.Random(1), 300))
    assert examination.count == 0, examination.findings
    assert examination.samples == 300
    assert set(examination.findings) == set(FINDING_KINDS) - {"leakage"}


def test_repeats_of_every_kind_are_found_once() -> None:
    rng = random.Random(2)
    samples = sound(rng, 40)
    near = edited(rng, samples[4].output[:-1], 3) + samples[4].output[-1]
    samples += [
        changed(samples[0], 41),  # exact
        changed(samples[4], 42, answer=near),
        changed(samples[0], 43),  # exact, again
        changed(samples[6], 44, answer="It is not so, and here is another reason why."),
        changed(samples[7], 45, question=samples[7].turns[-2].text + "  "),  # white space
    ]
    examination = examined(samples)
    assert records(examination, "exact-duplicates") == [41, 43]
    assert records(examination, "near-duplicates") == [42, 45]
    assert records(examination, "contradictions") == [42, 44]
    findings = examination.findings["near-duplicates"]
    texts = ["\n".join(turn.text for turn in one.turns) for one in samples]
    assert findings[0].more["similarity"] == pytest.approx(jaccard(texts[41], texts[4]), abs=1e-4)
    assert findings[1].more["similarity"] == 1
    assert examination.clusters == 2
    assert examination.findings["exact-duplicates"][0].more == {
        "copy_of": {"file": "a.json", "record": 1}
    }
    left_out = {
        kind: sorted(source.record for source in sources)
        for kind, sources in examination.left_out.items()
        if sources
    }
    assert left_out == {
        "exact-duplicates": [41, 43],
        "near-duplicates": [42, 45],
        "contradictions": [5, 7, 42, 44],
    }


def test_a_cluster_is_told_with_its_first_sample_and_loses_all_but_that_one() -> None:
    rng = random.Random(3)
    samples = sound(rng, 20)
    for number in range(21, 26):
        samples.append(changed(samples[9], number, answer=edited(rng, samples[9].output, 1)))
    examination = examined(samples)
    assert records(examination, "near-duplicates") == [21, 22, 23, 24, 25]
    for finding in examination.findings["near-duplicates"]:
        assert finding.more["cluster_first"] == {"file": "a.json", "record": 10}
        assert "in a cluster of 6" in finding.reason
    assert {source.record for source in examination.left_out["near-duplicates"]} == {*range(21, 26)}
    assert not examined(samples[:20]).findings["near-duplicates"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("What is 2+2?", "4"), ("what is 2+2 ?", "5")),
        (("Capital of France?", "Paris"), ("Capital of France", "Lyon")),
        (("Who won in 2018?", "France won in 2018."), ("Who won in 2018?", "Italy won in 2018.")),
        (("法国的首都是哪里？", "巴黎"), ("法国的首都是哪里", "里昂。")),
        (("Is it odd?", "Answer: yes"), ("Is it odd?", "Answer: no")),
    ],
)
def test_different_answers_to_a_question_are_contradictions(
    first: tuple[str, str], second: tuple[str, str]
) -> None:
    examination = examined([sample(1, *first), sample(2, *second)])
    assert records(examination, "contradictions") == [2]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("What is 2+2?", "4"), ("What is 2-2?", "0")),
        (("What is 1.5 * 2?", "3"), ("What is 15 * 2?", "30")),
        (("What is 5!?", "120"), ("What is 5?", "5")),
        (("Capital of France?", "Paris"), ("Capital of France?", "paris.")),
        (("What is 2+2?", "So the answer is \\boxed{4}."), ("What is 2+2?", "4")),
        (("2+2?", "Two and two: Answer: 4"), ("2+2?", "I add them up. Answer: 4.0")),
    ],
)
def test_other_questions_and_other_words_are_no_contradictions(
    first: tuple[str, str], second: tuple[str, str]
) -> None:
    examination = examined([sample(1, *first), sample(2, *second)])
    assert records(examination, "contradictions") == []


def test_another_input_or_system_text_makes_another_question() -> None:
    examination = examined(
        [
            sample(1, "Classify.", "good", input="I liked it."),
            sample(2, "Classify.", "bad", input="I hated it."),
            sample(3, "Hi", "Hello", system="Be kind."),
            sample(4, "Hi", "What?", system="Be rude."),
        ]
    )
    assert records(examination, "contradictions") == []


def test_leaks_are_found_exactly_and_nearly() -> None:
    rng = random.Random(4)
    samples = sound(rng, 60)
    long_question = text(rng, words(rng), 300, " ")
    samples.append(sample(61, long_question, "Yes."))
    tested = [
        alpaca_sample(asked, "", "unknown", Source("test.json", number))
        for number, asked in enumerate(
            [
                text(rng, words(rng), 80, " "),
                samples[3].turns[-2].text,
                edited(rng, long_question, 3),
                samples[4].turns[-2].text.upper(),
            ],
            start=1,
        )
    ]
    examination = examined(samples, tested)
    assert records(examination, "leakage") == [4, 5, 61]
    tests = [finding.more["test"]["record"] for finding in examination.findings["leakage"]]
    assert tests == [2, 4, 3]
    assert examination.findings["leakage"][0].more["similarity"] == 1
    assert "asks what test.json, record 2 asks" in str(examination.findings["leakage"][0])
    assert "asks nearly (" in str(examination.findings["leakage"][2])


def test_a_long_instruction_that_all_share_makes_nobody_a_near_duplicate() -> None:
    rng = random.Random(5)
    frame = text(rng, words(rng), 900, " ") + ":\n"
    vocabulary = words(rng)
    samples = [
        sample(number, frame + text(rng, vocabulary, 60, " "), text(rng, vocabulary, 40, " ") + ".")
        for number in range(1, 81)
    ]
    tested = [
        alpaca_sample(frame + text(rng, vocabulary, 60, " "), "", "?", Source("t.json", number))
        for number in range(1, 21)
    ]
    planted = sample(81, samples[0].turns[-2].text + "!", samples[0].output[:-1] + "!")
    examination = examined([*samples, planted], tested)
    assert records(examination, "near-duplicates") == [81]
    assert records(examination, "leakage") == []


def test_every_trained_answer_of_a_conversation_is_looked_at() -> None:
    def conversation(number: int, first: str, last: str, trained: bool | None = None) -> Sample:
        turns = (
            Turn("system", "Be kind."),
            Turn("user", "How are you?"),
            Turn("assistant", first, trained=trained),
            Turn("user", f"And what is number {number}?"),
            Turn("assistant", last),
        )
        return Sample(turns, Source("a.json", number), shape="messages")

    refusal = "As an AI language model, I have no feelings."
    examination = examined(
        [
            conversation(1, refusal, "One."),
            conversation(2, "I am well.", refusal),
            conversation(3, refusal, "Three.", trained=False),
            conversation(4, "I am well.", "Four."),
        ]
    )
    assert records(examination, "refusals") == [1, 2]


def test_plain_text_is_looked_at_for_what_any_text_may_have() -> None:
    def plain(number: int, content: str) -> Sample:
        return Sample((Turn("text", content),), Source("a.json", number), shape="text")

    rng = random.Random(6)
    texts = [text(rng, words(rng), 300, " ") for _ in range(30)]
    texts += [texts[0] + "x", "Caf" + "Ã© and tea", "As an AI language model, I wrote a book of"]
    examination = examined([plain(number, content) for number, content in enumerate(texts, 1)])
    assert records(examination, "near-duplicates") == [31]
    assert records(examination, "mojibake") == [32]
    assert records(examination, "refusals") == []
    assert records(examination, "contradictions") == []
    assert records(examination, "truncated") == []


def test_a_finding_is_a_line_of_json_with_its_place() -> None:
    examination = examined([sample(3, "Say yes.", "Yes.<|im_end|>")])
    (finding,) = examination.findings["control-tokens"]
    assert json.loads(json.dumps(finding.to_json())) == {
        "kind": "control-tokens",
        "file": "a.json",
        "record": 3,
        "reason": 'contains <|im_end|>: "Yes.<|im_end|>"',
    }


def test_thoughts_are_no_part_of_answers() -> None:
    def thinking(number: int, thought: str, answer: str) -> Sample:
        return sample(number, f"Is {number} odd?", f"<think>\n{thought}\n</think>\n\n{answer}")

    long_thought = "The number is not divisible by two without a rest, as one can see at once. "
    samples = [
        thinking(1, "I'm sorry, but I can't help with that, says he.", "No."),
        thinking(2, long_thought * 5, "It is not."),
        thinking(3, long_thought * 5, "It is, as a matter of fact."),
        thinking(4, "Well", "As an AI language model, I cannot say."),
        thinking(5, "Well", ""),
        sample(6, "Is 6 odd?", "<think>\nWell, it is"),
        thinking(7, "Caf\u00c3\u00a9", "Yes."),
        sample(8, "And 1?", "<think>\na\n</think>\n\nYes."),
        sample(9, "And 1?", "<think>\nb\n</think>\n\nYes."),
    ]
    found = {kind: records(examined(samples), kind) for kind in FINDING_KINDS if kind != "leakage"}
    assert {kind: numbers for kind, numbers in found.items() if numbers} == {
        "near-duplicates": [9],
        "empty-answers": [5],
        "truncated": [6],
        "refusals": [4],
        "mojibake": [7],
    }


def test_what_a_tool_returns_is_left_alone() -> None:
    turns = (
        Turn("user", "How warm is it?"),
        Turn("assistant", "", tool_calls=({"function": {"name": "weather"}},)),
        Turn("tool", "<b>20</b>\ufffd"),
        Turn("assistant", "It is 20 degrees."),
    )
    assert examined([Sample(turns, Source("a.json", 1), shape="messages")]).count == 0
