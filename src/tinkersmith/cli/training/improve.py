"""`tinkersmith improve`: a run and options -> rounds of training on the model's own answers."""

import argparse
from collections.abc import Sequence

from tinkersmith.cli.entry_point import COMMANDS


def improve_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith improve`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{COMMANDS['improve']} Settings are those of the run, changed by --set.",
    )
    parser.add_argument(
        "run", nargs="?", default="", metavar="RUN", help="name or folder (default: the newest run)"
    )
    parser.add_argument(
        "--checkpoint",
        default="",
        metavar="NAME",
        help="best, last, or a name such as step-000400 (default: the best, or the last where "
        "nothing was measured)",
    )
    parser.add_argument(
        "--method",
        choices=("rejection", "grpo"),
        help="rejection trains on the right answers (default); grpo rewards them among all answers",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds at most (default: 3)")
    parser.add_argument(
        "--answers", type=int, metavar="N", help="answers to each training question (default: 8)"
    )
    parser.add_argument(
        "--keep",
        type=int,
        metavar="N",
        help="rejection: different right answers to a question to train on (default: 4, "
        "or --answers if that is less)",
    )
    parser.add_argument(
        "--alone",
        action="store_true",
        help="rejection: train on the right answers only, without the run's own samples",
    )
    parser.add_argument(
        "--updates",
        type=int,
        metavar="N",
        help="grpo: updates on the answers of a step (default: 1)",
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="of these answers (default: 1)"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only so many training questions; 0 is all"
    )
    parser.add_argument(
        "--questions", default="", metavar="FILE", help="held-out questions (default: EVAL_FILES)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="as SEED (default: that of the run)")
    parser.add_argument(
        "--resume", default="", metavar="RUN", help="continue an improvement that was stopped"
    )
    parser.add_argument(
        "--config",
        default="",
        metavar="FILE",
        help="settings file, of which only OUTPUT_DIR is used (default: config.py)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change one setting"
    )
    wanted = parser.parse_args(argv)
    from tinkersmith.cli.common import refuse_unread_file, user_settings
    from tinkersmith.improve.improve import improve

    refuse_unread_file(wanted.config)
    places = [text for text in wanted.set if text.partition("=")[0].strip().upper() == "OUTPUT_DIR"]
    improve(
        user_settings(wanted.config, places),
        run=wanted.run,
        checkpoint=wanted.checkpoint,
        resume=wanted.resume,
        questions=wanted.questions,
        overrides=[text for text in wanted.set if text not in places],
        seed=wanted.seed,
        method=wanted.method,
        rounds=wanted.rounds,
        answers=wanted.answers,
        keep=wanted.keep,
        mix=False if wanted.alone else None,
        updates=wanted.updates,
        temperature=wanted.temperature,
        limit=wanted.limit,
    )
    return 0
