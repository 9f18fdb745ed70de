"""How well a generated text answers: each metric is a number from 0 to 1 for each text, and their mean for a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from weightpager.bundle.format.manifest import TextMetric
from weightpager.machine.packages import not_installed

Measure = Callable[[str, str], float]
"""(generated, wanted) → from 0 to 1. Blanks at the ends of either have been taken off."""


def text_scores(metrics: Sequence[TextMetric], generated: Sequence[str], wanted: Sequence[str]) -> list[list[float]]:
    """Each text's values by the metrics. Raises `ConfigError` if the library of a metric isn't installed."""
    try:
        measures = [_MEASURES[metric]() for metric in metrics]
    except ModuleNotFoundError as error:
        raise not_installed(error.name, "compile", f"to measure {', '.join(metrics)}") from error
    pairs = [(ours.strip(), theirs.strip()) for ours, theirs in zip(generated, wanted, strict=True)]
    return [[measure(*pair) for measure in measures] for pair in pairs]


def _exact_match() -> Measure:
    """1 for the very same text."""
    return lambda ours, theirs: float(ours == theirs)


def _token_f1() -> Measure:
    """The harmonic mean of precision and recall of words (SQuAD, arXiv 1606.05250), which are what blanks part.

    Case and punctuation count: some tasks are about nothing else.
    """

    def f1(ours: str, theirs: str) -> float:
        first, second = Counter(ours.split()), Counter(theirs.split())
        total = first.total() + second.total()
        return 2 * (first & second).total() / total if total else 1.0

    return f1


def _chrf() -> Measure:
    """chrF2 of sacrebleu (Popović 2015), of each text by itself."""
    from sacrebleu.metrics.chrf import CHRF

    chrf = CHRF()
    return lambda ours, theirs: chrf.sentence_score(ours, [theirs]).score / 100


def _rouge_l() -> Measure:
    """ROUGE-L's F-measure (Lin 2004) as rouge-score has it: words of lower case, of a to z and digits alone."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    scorer = RougeScorer(["rougeL"], tokenizer=DefaultTokenizer(use_stemmer=False))  # named, so that nothing is logged
    return lambda ours, theirs: float(scorer.score(theirs, ours)["rougeL"].fmeasure)


_MEASURES: Mapping[TextMetric, Callable[[], Measure]] = {
    "exact-match": _exact_match,
    "chrf": _chrf,
    "rouge-l": _rouge_l,
    "token-f1": _token_f1,
}
