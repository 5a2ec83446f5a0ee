"""A run's files and an evaluation of it -> the facts that a report shows, as plain JSON values.

Nothing is computed here that a file says already: scores, intervals and verdicts are those of the
evaluation. A missing file leaves its part out, and `missing` names the command that makes it. A
damaged one does as well, and `damaged` says so; those without which there is no report are refused.
"""

import datetime as dt
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError, reason_of
from tinkersmith.evaluation.results import Record, ResultsFile, read_results
from tinkersmith.files import LARGEST_JSON_FILE, read_json_object, read_regular
from tinkersmith.runs.best import best_of_run, choose_checkpoint
from tinkersmith.runs.curves import Point, downsampled
from tinkersmith.runs.folder import SAMPLES_FILE, RunFolder, lost_lines
from tinkersmith.runs.lock import run_state
from tinkersmith.settings.fields import FIELDS, Settings
from tinkersmith.settings.measures import is_told_in_percent
from tinkersmith.settings.spelling import output_dir_option

RESULTS_FILE = "evaluation_results.json"  # where `tinkersmith evaluate` writes by default
_SMOOTHED = 50  # the smoothed loss is a mean over this part of the run's steps
_MOST_SKIPPED, _MOST_HARD = 50, 30
_MOST_ANSWERS = {"won": 40, "lost": 40, "both_wrong": 20, "both_right": 10, "equal": 10}
_LONGEST = 4000  # characters of a text
_NOT_SHOWN = ("output_dir",)


def gather(run: RunFolder, results: Path | None = None) -> dict[str, Any]:
    """The facts of a run.

    Args:
        results: the file of an evaluation of this run; None looks for one that evaluated it.

    Raises:
        UserError: a file that a report needs is damaged, or `results` is about another run.
    """
    damaged: list[str] = []
    facts, settings = run.facts(), run.settings()
    lines = run.metrics()
    damaged += [f"{lost} The report shows what is left." for lost in lost_lines(run, lines)]
    evaluated = _results_of(run, results, damaged)
    scores = _score_curves(lines)
    saved = run.checkpoints()
    missing: list[dict[str, str]] = []
    if saved and (evaluated is None or not evaluated.base):
        what = "evaluation" if evaluated is None else "base"
        missing.append({"what": what, "command": _command_to_evaluate(run)})
    return {
        "run": {
            "name": run.name,
            "base_model": facts.get("base_model", settings.base_model),
            "backend": facts.get("backend", ""),
            "template": _template_name(facts),
            "rank": settings.lora_rank,
            "files": list(settings.training_files),
            "state": _state(run, facts, lines),
            "written": dt.datetime.now().astimezone().isoformat(timespec="seconds"),
            "sessions": facts.get("sessions", []),
        },
        "training": _training(run, facts, lines),
        "curves": _curves(lines),
        "scores_while_training": scores,
        "in_percent": [name for name in scores if is_told_in_percent(name)],
        "best": _best(run),
        "checkpoints": [
            {"name": point.name, "step": point.step, "epoch": point.epoch, "path": point.state_path}
            for point in saved
        ],
        "lengths": _lengths(run, settings, damaged),
        "left_out": _left_out(run, damaged),
        "hard_samples": _hard_samples(run, damaged),
        "shown": _shown(run, damaged),
        "evaluation": None if evaluated is None else _evaluation(evaluated),
        "settings": _changed_settings(settings),
        "digests": {
            name: facts[name]
            for name in ("data_digest", "tokenizer_digest", "template_digest", "base_fingerprint")
            if facts.get(name)
        },
        "missing": missing,
        "damaged": damaged,
    }


# ---- the run


def _state(run: RunFolder, facts: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    done = max((line["step"] for line in lines if "loss" in line), default=0)
    diverged = bool(lines and lines[-1].get("diverged"))
    # The process that trains writes the report when it has ended the run.
    return run_state(run, diverged, done, facts.get("total_steps", 0), apart_from=os.getpid())


def _template_name(facts: Mapping[str, Any]) -> str:
    template = facts.get("prompt_template")
    values = cast("dict[str, Any]", template if isinstance(template, dict) else {})
    return str(values.get("name", values.get("kind", "")))


def _training(
    run: RunFolder, facts: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    steps = [line for line in lines if "loss" in line]
    before = [
        line
        for file in sorted(run.path.glob("metrics.before-resume-*.jsonl"))
        for line in run.lines(file.name)
        if "loss" in line
    ]
    return {
        "steps": steps[-1]["step"] if steps else 0,
        "total_steps": facts.get("total_steps", 0),
        "epochs": steps[-1]["epoch"] if steps else 0,
        "samples": facts.get("training_samples", 0),
        "tokens": sum(line.get("tokens", 0) for line in steps),
        "completion_tokens": sum(line.get("completion_tokens", 0) for line in steps),
        "repeated_tokens": sum(line.get("tokens", 0) for line in before),
        "seconds": _seconds(facts, steps),
        "tokens_per_second": steps[-1].get("tokens_per_second") if steps else None,
        "first_loss": steps[0]["loss"] if steps else None,
        "last_loss": fmean(line["loss"] for line in steps[-10:]) if steps else None,
        "epoch_losses": [line["epoch_loss"] for line in lines if "epoch_loss" in line],
    }


def _seconds(facts: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> float:
    """How long the steps took: in each session, its tokens by its mean rate."""
    sessions = cast("list[dict[str, Any]]", facts.get("sessions") or [])
    starts = sorted({int(one.get("first_step", 0)) for one in sessions} | {0})
    seconds = 0.0
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        own = [
            line for line in steps if line["step"] > start and (end is None or line["step"] <= end)
        ]
        rate = own[-1].get("tokens_per_second") if own else None
        seconds += sum(line.get("tokens", 0) for line in own) / rate if rate else 0.0
    return seconds


def _curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    steps = [line for line in lines if "loss" in line]
    losses: list[Point] = [(line["step"], line["loss"]) for line in steps]
    curves = {
        "loss": losses,
        "smoothed": smoothed(losses, max(len(steps) // _SMOOTHED, 1)),
        "validation": _points(lines, "validation_loss"),
        "learning_rate": _points(steps, "learning_rate"),
        "grad_norm": _points(steps, "grad_norm"),
        "tokens_per_second": _points(steps, "tokens_per_second"),
    }
    return {name: downsampled(points) for name, points in curves.items()}


def smoothed(points: Sequence[Point], width: int) -> list[Point]:
    """The mean of each point and up to `width - 1` points before it; missing ones do not count."""
    means: list[Point] = []
    total, count = 0.0, 0
    values = [(y if y is not None and math.isfinite(y) else None) for _, y in points]
    for index, (x, _) in enumerate(points):
        entering = values[index]
        if entering is not None:
            total, count = total + entering, count + 1
        leaving = values[index - width] if index >= width else None
        if leaving is not None:
            total, count = total - leaving, count - 1
        means.append((x, total / count if count else None))
    return means


def _score_curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """The scores on EVAL_FILES by name, each with its interval."""
    scores: dict[str, list[dict[str, float]]] = {}
    for line in lines:
        for name in line:
            if name.startswith("eval/") and f"{name}_low" in line:
                scores.setdefault(name.removeprefix("eval/"), []).append(
                    {
                        "step": line["step"],
                        "value": line[name],
                        "low": line[f"{name}_low"],
                        "high": line[f"{name}_high"],
                        "n": line.get(f"{name}_n", line.get("eval/n", 0)),
                    }
                )
    return scores


def _best(run: RunFolder) -> dict[str, Any] | None:
    best = best_of_run(run)
    if best is None:
        return None
    point, measurement = best
    return {
        "name": point.name,
        "step": point.step,
        "by": measurement.by,
        "value": measurement.value,
    }


def _lengths(run: RunFolder, settings: Settings, damaged: list[str]) -> dict[str, Any] | None:
    file = run.file("lengths.json")
    try:
        stored = read_json_object(file)
    except FileNotFoundError:
        return None  # a kill before the data were read through
    except OSError as error:
        damaged.append(_left_out_of_report(file, reason_of(error)))
        return None
    except ValueError as error:
        damaged.append(_left_out_of_report(file, str(error)))
        return None
    edges, counts = stored.get("edges"), stored.get("bins")
    numbers = [stored.get(name) for name in ("count", "max", "mean", "median", "p95")]
    if not (_are_numbers(edges) and _are_numbers(counts) and _are_numbers(numbers)):
        damaged.append(_left_out_of_report(file, "it holds no lengths"))
        return None
    edges, counts = cast("list[float]", edges), cast("list[int]", counts)
    kept = ("count", "unit", "min", "max", "mean", "median", "p90", "p95", "p99", "advice")
    return {
        **{name: stored[name] for name in kept if name in stored},
        "bins": [list(one) for one in zip(edges, edges[1:], counts, strict=False)],
        "limit": settings.max_sequence_length,
        "model_holds": stored.get("model_holds"),
    }


def _left_out(run: RunFolder, damaged: list[str]) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    shown: list[dict[str, Any]] = []
    for line in _whole_lines(run, "skipped.jsonl", damaged):
        kinds[str(line.get("kind", "?"))] += 1
        if len(shown) < _MOST_SKIPPED:
            shown.append(_short(line))
    return {
        "kinds": dict(kinds),
        "shown": shown,
        "duplicates": sum(1 for _ in _whole_lines(run, "duplicates.jsonl", damaged)),
    }


def _hard_samples(run: RunFolder, damaged: list[str]) -> list[dict[str, Any]]:
    lines = islice(_whole_lines(run, "hard_samples.jsonl", damaged), _MOST_HARD)
    return [_short(line) for line in lines]


def _shown(run: RunFolder, damaged: list[str]) -> list[dict[str, Any]]:
    file = run.file(SAMPLES_FILE)
    try:
        stored: object = json.loads(read_regular(file, LARGEST_JSON_FILE))
    except FileNotFoundError:
        return []
    except OSError as error:
        damaged.append(_left_out_of_report(file, reason_of(error)))
        return []
    except (ValueError, RecursionError):
        damaged.append(_left_out_of_report(file, "it is not JSON"))
        return []
    samples = cast("list[object]", stored if isinstance(stored, list) else [stored])
    shown = [cast("dict[str, Any]", one) for one in samples if isinstance(one, dict)]
    sound = [one for one in shown if _is_shown_sample(one)]
    if len(sound) < len(samples):
        damaged.append(_left_out_of_report(file, "it does not hold samples with their answers"))
    return [_short(one) for one in sound]


def _is_shown_sample(one: Mapping[str, Any]) -> bool:
    answers: object = one.get("answers")
    if not isinstance(answers, list):
        return False
    texts = [one.get("source"), one.get("prompt"), *cast("list[object]", answers)]
    return all(isinstance(text, str) for text in texts)


def _whole_lines(run: RunFolder, name: str, damaged: list[str]) -> Iterator[dict[str, Any]]:
    """The lines of a file up to the first that is damaged, which is noted."""
    try:
        yield from run.each_line(name)
    except UserError as error:
        damaged.append(f"{error} The report leaves out what follows it.")


def _left_out_of_report(file: Path, reason: str) -> str:
    return f"{file} is damaged: {reason}. The report leaves its part out."


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and math.isfinite(value)
        for value in cast("list[object]", values)
    )


def _changed_settings(settings: Settings) -> list[dict[str, Any]]:
    return [
        {
            "name": name.upper(),
            "value": value,
            "default": field.get_default(call_default_factory=True),
        }
        for name, field in FIELDS.items()
        if name not in _NOT_SHOWN
        and (value := getattr(settings, name)) != field.get_default(call_default_factory=True)
    ]


# ---- the evaluation


def _command_to_evaluate(run: RunFolder) -> str:
    point, _ = choose_checkpoint(run, "")
    where = output_dir_option(run.path.parent)
    return command_line("evaluate", "--model-path", point.sampler_path, *where, "--compare-base")


def _results_of(run: RunFolder, named: Path | None, damaged: list[str]) -> ResultsFile | None:
    paths = {path for point in run.checkpoints() for path in (point.sampler_path, point.state_path)}
    if named is not None:
        found = read_results(named)
        if found.facts.get("model_path") not in paths:
            raise UserError(
                f"{named} is about {found.facts.get('model_path')}, which is no checkpoint of "
                f"{run.name}. Name the results of this run."
            )
        return found
    places = (run.file(RESULTS_FILE), Path(RESULTS_FILE), run.path.parent.parent / RESULTS_FILE)
    files = {file.resolve(): file for file in places if os.path.lexists(file)}
    for file in files.values():
        try:
            found = read_results(file)
        except UserError as error:  # it may be about this run
            damaged.append(f"{error} The report leaves it out.")
            continue
        if found.facts.get("model_path") in paths:
            return found
    return None


def _evaluation(found: ResultsFile) -> dict[str, Any]:
    facts = found.facts
    base = cast("dict[str, Any]", facts.get("base") or {})
    return {
        "file": str(facts.get("test_file", "")),
        "created": facts.get("created", ""),
        "model_path": facts.get("model_path", ""),
        "counts": facts.get("counts", {}),
        "metrics": facts.get("metrics", {}),
        "base_metrics": base.get("metrics"),
        "verdicts": {
            name: {key: value for key, value in verdict.items() if key != "questions"}
            for name, verdict in cast("dict[str, Any]", facts.get("verdicts") or {}).items()
        },
        "groups": facts.get("groups", []),
        "mean_tokens": facts.get("mean_tokens"),
        "cut": facts.get("cut_at_token_limit", 0),
        "unfinished_thoughts": facts.get("unfinished_thoughts", 0),
        "near_duplicates": cast("dict[str, Any]", facts.get("counts") or {}).get(
            "near_duplicates_of_training"
        ),
        "answers": _answers(found),
    }


def _answers(found: ResultsFile) -> dict[str, Any]:
    """Answers of both models side by side; without a base, those that are wrong first."""
    verdicts = cast("dict[str, Any]", found.facts.get("verdicts") or {})
    metric = "final_answer" if "final_answer" in verdicts else next(iter(verdicts), "")
    outcomes = cast("dict[str, list[str]]", verdicts[metric]["questions"]) if metric else {}
    trained = {f"{record.source}": record for record in reversed(found.trained)}
    base = {f"{record.source}": record for record in reversed(found.base)}
    rows: list[dict[str, Any]] = []
    totals: dict[str, int] = {}
    for outcome, most in _MOST_ANSWERS.items():
        sources = outcomes.get(outcome, [])
        totals[outcome] = len(sources)
        for source in [one for one in sources if one in trained][:most]:
            rows.append(_pair(outcome, trained[source], base.get(source)))
    if not metric:
        metric = "final_answer"
        worst = sorted(found.trained, key=lambda record: min(record.scores.values(), default=0))
        rows = [_pair("", record, None) for record in worst[: _MOST_ANSWERS["won"]]]
    return {"metric": metric, "totals": totals, "rows": rows}


def _pair(outcome: str, trained: Record, base: Record | None) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "source": str(trained.source),
        "prompt": _cut(trained.prompt),
        "expected": _cut(trained.expected),
        "trained": _cut(trained.generated or trained.produced),
        "base": None if base is None else _cut(base.generated or base.produced),
        "scores": trained.scores,
        "base_scores": None if base is None else base.scores,
    }


# ---- values


def _points(lines: Iterable[Mapping[str, Any]], name: str) -> list[Point]:
    return [(line["step"], line[name]) for line in lines if name in line]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def _short(line: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose texts are not too long for a page."""
    return {name: _cut(value) if isinstance(value, str) else value for name, value in line.items()}
