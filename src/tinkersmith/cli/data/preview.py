"""`tinkersmith preview`: data files -> their tokens, trained or not, in a terminal or on a page."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tinkersmith.cli.common import add_settings_options, settings_file
from tinkersmith.cli.entry_point import COMMANDS

_ON_A_PAGE = 200  # samples, unless --count says so
_IN_A_TERMINAL = 3


def preview_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith preview`."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["preview"])
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="data files (default: DATA_FILES of config.py)"
    )
    add_settings_options(parser)
    parser.add_argument(
        "--base-model", metavar="MODEL", help="the model whose tokenizer and template are used"
    )
    parser.add_argument(
        "--count",
        type=int,
        metavar="N",
        help=f"samples to show (default: {_IN_A_TERMINAL}; {_ON_A_PAGE} on a page)",
    )
    parser.add_argument(
        "--record", type=int, metavar="N", help="show record N of each file, with all its tokens"
    )
    parser.add_argument(
        "--filter",
        choices=("longest", "cut", "multi-turn", "suspicious", "all"),
        default="all",
        help="which samples to show (default: %(default)s)",
    )
    parser.add_argument("--html", metavar="FILE", help="write a page for the browser")
    parser.add_argument(
        "--lang",
        choices=("auto", "en", "zh"),
        help="with --html: the page's language (default: the browser's)",
    )
    parser.add_argument(
        "--force", action="store_true", help="with --html: overwrite a file that is no preview"
    )
    wanted = parser.parse_args(argv)
    _refuse_options_without_effect(wanted)
    from tinkersmith.batches.summary import none_trained
    from tinkersmith.cli.common import user_settings
    from tinkersmith.preview.examine import Choice, examine_tokens
    from tinkersmith.preview.plan import local_encoding, tokenizer_for, training_samples
    from tinkersmith.preview.token_texts import token_texts
    from tinkersmith.progress import watched
    from tinkersmith.sources.find import look_up, refuse_inputs_as_outputs

    if wanted.html:
        from tinkersmith.preview.page import check_target

        refuse_inputs_as_outputs([Path(wanted.html)], [settings_file(wanted.config)])
        check_target(Path(wanted.html), wanted.force)
    settings = user_settings(wanted.config, wanted.set)
    if wanted.files:
        settings = settings.model_copy(update={"data_files": wanted.files})
    if wanted.base_model:
        settings = settings.model_copy(update={"base_model": wanted.base_model})
    if wanted.html:
        inputs = (settings.training_files, settings.validation_files, settings.eval_files)
        for names in filter(None, inputs):
            refuse_inputs_as_outputs([Path(wanted.html)], look_up(names).paths)
    count = wanted.count or (_ON_A_PAGE if wanted.html else _IN_A_TERMINAL)
    choice = Choice(count, wanted.filter, wanted.record, bool(wanted.html), settings.seed)
    with watched(print) as progress:
        base = tokenizer_for(settings)  # before the data is read
        data = training_samples(settings, progress)
        encoding, lines = local_encoding(settings, data.source, base)
        for line in (*data.lines, *lines):
            progress.say(line)
        with progress.doing("tokenising the samples"):
            examined = examine_tokens(data.samples, encoding, choice)
        if examined.untrained and not examined.counts.sequences:
            raise none_trained(examined.counts.samples, examined.untrained[0])
        texts = token_texts(encoding.tokenizer)
    if wanted.record is not None and not examined.chosen:
        _refuse_record(wanted.record, data.skipped)
    from tinkersmith.preview.terminal import SHORTENED, console_for, count_lines, print_samples

    if wanted.html:
        from tinkersmith.preview.page import write_page

        whole = wanted.record is not None
        size = write_page(
            Path(wanted.html), examined, encoding, texts, wanted.lang or "auto", whole=whole
        )
    else:
        size = 0
        total = examined.counts.samples
        console = console_for(sys.stdout)
        longest = SHORTENED if wanted.record is None else sys.maxsize
        print_samples(console, examined.chosen, total, texts, longest)
        print()
    for line in count_lines(examined.counts):
        print(line)
    if examined.epoch is not None:
        print(examined.epoch)
    for finding in examined.findings.all(encoding.template):
        print(f"Warning: {finding}")
    if wanted.html:
        shown = len(examined.chosen)
        print(
            f"Wrote {wanted.html}: {shown:,} of {examined.counts.samples:,} samples, {size:,} bytes"
        )
    elif not examined.chosen:
        print(f'No sample passes the filter "{wanted.filter}".')
    return 0


def _refuse_options_without_effect(wanted: argparse.Namespace) -> None:
    from tinkersmith.errors import UserError

    if not wanted.html:
        for option, given in (("--lang", wanted.lang), ("--force", wanted.force)):
            if given:
                raise UserError(f"{option} has no effect without --html. Name the page to write.")
    if wanted.count is not None and wanted.count < 1:
        raise UserError(f"--count is {wanted.count}; it must be at least 1.")
    if wanted.record is not None and wanted.record < 1:
        raise UserError(f"--record is {wanted.record}; the first record is 1.")
    if wanted.record is not None and wanted.filter != "all":
        raise UserError("--filter has no effect with --record. Give one of the two.")


def _refuse_record(record: int, skipped: Sequence[object]) -> None:
    from tinkersmith.data.samples import Skipped
    from tinkersmith.errors import UserError

    for bad in skipped:
        if isinstance(bad, Skipped) and bad.source.record == record:
            raise UserError(f"{bad} It is not trained on.")
    raise UserError(f"No sample to train on is record {record}. Name a smaller number.")
