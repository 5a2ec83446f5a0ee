"""How much of an expected text an answer has: token F1, ROUGE-L and BLEU."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tinkersmith.metrics.words import counted_words, jieba_words, metrics_extra, writing_of

# rouge-chinese fills a table with a cell for each pair of words: a second for a million.
_LARGEST_TABLE = 40_000
# sacreBLEU's tokenizers for the scripts that have no spaces between words.
_TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char", "other": "13a"}


def token_f1(expected: str, produced: str) -> float:
    """The harmonic mean of precision and recall of the words, as in SQuAD and CMRC."""
    wanted, given = counted_words(expected), counted_words(produced)
    common = (Counter(wanted) & Counter(given)).total()
    if not wanted or not given:
        return float(wanted == given and expected.split() == produced.split())
    return 2 * common / (len(wanted) + len(given))


def rouge_l(expected: str, produced: str) -> float:
    """The F1 of ROUGE-L: the longest common subsequence of the words."""
    wanted, given = jieba_words(expected), jieba_words(produced)
    if not wanted or not given:
        return float(wanted == given and expected.split() == produced.split())
    if len(wanted) * len(given) <= _LARGEST_TABLE:
        library: Any = metrics_extra("rouge_chinese").Rouge(metrics=["rouge-l"])
        scores = library.get_scores(" ".join(given), " ".join(wanted))[0]["rouge-l"]
        precision, recall = scores["p"], scores["r"]
        # Its F has a small number in the denominator, which makes equal texts differ.
        return 2 * precision * recall / (precision + recall) if precision else 0.0
    return 2 * longest_common_subsequence(wanted, given) / (len(wanted) + len(given))


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length, by bits: what rouge-chinese computes, for texts of any length.

    M. Crochemore et al., A fast and practical bit-vector algorithm for the longest common
    subsequence problem (2001).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    row = every
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & every
    return len(first) - row.bit_count()


def bleu_tokenizer(references: Sequence[str]) -> str:
    """The tokenizer of sacreBLEU that suits the references."""
    return _TOKENIZERS[writing_of(references)]


def sentence_bleu(expected: str, produced: str, tokenizer: str) -> float:
    """The BLEU of one answer, from 0 to 1. Means of it are no corpus BLEU."""
    score = _bleu(tokenizer, for_sentence=True).sentence_score(produced, [expected]).score
    return min(1.0, score / 100)


def corpus_bleu(pairs: Sequence[tuple[str, str]], tokenizer: str) -> tuple[float, str]:
    """The BLEU of all (expected, produced), from 0 to 100, and the signature to quote with it."""
    metric = _bleu(tokenizer, for_sentence=False)
    score = metric.corpus_score([given for _, given in pairs], [[wanted for wanted, _ in pairs]])
    return min(100.0, score.score), str(metric.get_signature())


def _bleu(tokenizer: str, *, for_sentence: bool) -> Any:
    module: Any = metrics_extra("sacrebleu")
    return module.BLEU(tokenize=tokenizer, effective_order=for_sentence)
