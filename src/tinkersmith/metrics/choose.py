"""METRICS and the expected outputs of a test set -> what is computed of each answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinkersmith.errors import UserError
from tinkersmith.metrics.labels import LabelSet, label_set, named_label_set
from tinkersmith.metrics.names import ALWAYS, METRIC_NAMES, user_function
from tinkersmith.metrics.overlap import bleu_tokenizer, rouge_l, sentence_bleu, token_f1
from tinkersmith.metrics.structured import MOSTLY_JSON, asks_for_json, match_fields, read_structure
from tinkersmith.metrics.user_function import check_metric_file, own_metric
from tinkersmith.metrics.words import metrics_extra
from tinkersmith.plurals import counted

# What a metric needs that comes as an extra.
_LIBRARIES = {"rouge_l": ("jieba", "rouge_chinese"), "bleu": ("sacrebleu",)}


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer with what it is compared with."""

    expected: str
    produced: str
    prompt: str
    fields: Mapping[str, Any]  # the other fields of its sample
    sample: str  # its place, for an error


@dataclass(frozen=True, slots=True)
class Scorer:
    """A metric of single answers: names of scores with their values, none where it has nothing."""

    name: str
    scores: Callable[[Answered], dict[str, float]]


@dataclass(frozen=True, slots=True)
class ChosenMetrics:
    """What is computed in an evaluation."""

    graded: tuple[str, ...]  # which of the scores of `grading` are wanted
    scorers: list[Scorer]
    labels: LabelSet | None = None  # then a confusion matrix is made
    structured: bool = False  # then fields are counted
    bleu: str = ""  # the tokenizer, if the BLEU of all answers is wanted
    perplexity: bool = False
    judge: bool = False
    said: list[str] = field(default_factory=list[str])


def metrics_for(names: Sequence[str], expected: Sequence[str]) -> ChosenMetrics:
    """The metrics that are named, with those that "auto" finds in the expected outputs.

    Raises:
        UserError: one cannot be computed: its library is missing, its function does not load, or
            the expected outputs are of another kind.
    """
    auto = "auto" in names
    said: list[str] = []
    scorers: list[Scorer] = []
    json_outputs = asks_for_json(expected) if auto or "json" in names else 0
    structured = "json" in names or (
        bool(json_outputs) and json_outputs >= MOSTLY_JSON * len(expected)
    )
    if structured:
        if not json_outputs:
            raise UserError(
                'METRICS names "json", but no expected output is a JSON object or list. Remove it.'
            )
        scorers.append(Scorer("json", _json_scores))
        said.append(
            f"{json_outputs:,} of {counted(len(expected), 'expected output')} are JSON objects or "
            "lists: for these, answers are compared field by field as well."
        )
    labels = named_label_set(expected) if "labels" in names else None
    if auto and labels is None and not structured:
        labels = label_set(expected)
    if labels is not None:
        scorers.append(Scorer("labels", _label_scorer(labels)))
        shown = ", ".join(list(labels.labels.values())[:8])
        more = f" and {len(labels.labels) - 8:,} more" if len(labels.labels) > 8 else ""
        said.append(
            f"The expected outputs are {len(labels.labels):,} labels: {shown}{more}. Accuracy, "
            "macro-F1 and the confusion matrix are computed as well."
        )
    if "token_f1" in names:
        scorers.append(Scorer("token_f1", lambda a: {"token_f1": token_f1(a.expected, a.produced)}))
    _check_libraries(names)
    if "rouge_l" in names:
        scorers.append(Scorer("rouge_l", lambda a: {"rouge_l": rouge_l(a.expected, a.produced)}))
        said.append("ROUGE-L compares words; Chinese is cut into words by jieba.")
    tokenizer = ""
    if "bleu" in names:
        tokenizer = bleu_tokenizer(expected)
        scorers.append(Scorer("bleu", _bleu_scorer(tokenizer)))
        said.append(
            f'BLEU uses the tokenizer "{tokenizer}" of sacreBLEU, as the script of the expected '
            "outputs asks for."
        )
    scorers += _own_scorers(names)
    return ChosenMetrics(
        graded=tuple(name for name in ALWAYS if auto or name in names),
        scorers=scorers,
        labels=labels,
        structured=structured,
        bleu=tokenizer,
        perplexity="perplexity" in names,
        judge="judge" in names,
        said=said,
    )


def check_metrics_are_there(names: Sequence[str]) -> None:
    """Refuse metrics whose library or file is missing. No function of the user's is run.

    Raises:
        UserError: the sentence names what is missing.
    """
    _check_libraries(names)
    for name in names:
        if (place := user_function(name)) is not None:
            check_metric_file(place[0])


def _check_libraries(names: Sequence[str]) -> None:
    for metric, libraries in _LIBRARIES.items():
        for library in libraries if metric in names else ():
            metrics_extra(library)


def _own_scorers(names: Sequence[str]) -> list[Scorer]:
    scorers: list[Scorer] = []
    for name in names:
        place = user_function(name)
        if place is None:
            continue
        metric = own_metric(*place)
        if metric.function in (*METRIC_NAMES, *(scorer.name for scorer in scorers)):
            raise UserError(
                f"METRICS: {metric.where} has the name of another metric. Give the function a name "
                "of its own."
            )
        scorers.append(
            Scorer(
                metric.function,
                # The default keeps this metric, not that of the last turn of the loop.
                lambda a, metric=metric: metric.scores(
                    a.expected, a.produced, a.prompt, a.fields, a.sample
                ),
            )
        )
    return scorers


def _json_scores(answered: Answered) -> dict[str, float]:
    expected = read_structure(answered.expected)
    return {} if expected is None else match_fields(expected, answered.produced).scores()


def _label_scorer(labels: LabelSet) -> Callable[[Answered], dict[str, float]]:
    def scores(answered: Answered) -> dict[str, float]:
        wanted = labels.label_of(answered.expected)
        return {"label": float(labels.label_of(answered.produced) == wanted)}

    return scores


def _bleu_scorer(tokenizer: str) -> Callable[[Answered], dict[str, float]]:
    def scores(answered: Answered) -> dict[str, float]:
        value = sentence_bleu(answered.expected, answered.produced, tokenizer)
        return {"sentence_bleu": value}

    return scores
