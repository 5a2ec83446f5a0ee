"""Every public method of the tinker SDK and every `tinker` command, against a running engine.

Finds methods and commands by introspection; a method or command without a driver is an error.
Writes docs/reference/compatibility.md; with --check it only compares. It needs the tests' tiny
model, so run it in the repository's root: python tools/compatibility.py
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import inspect
import json
import logging
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import click
import numpy as np
import tinker
from click.testing import CliRunner
from tinker import types
from tinker.lib.api_future_impl import QueueState

from tinkersmith.version import NEWEST_SDK, OLDEST_SDK

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "compatibility.md"
RESULTS = ROOT / "benchmarks" / "results"
CLIENTS = (
    tinker.ServiceClient,
    tinker.TrainingClient,
    tinker.SamplingClient,
    tinker.RestClient,
    tinker.AdminClient,
)
LOCAL = {"holder"}  # attributes that send nothing to a server

Call = tuple[tuple[Any, ...], dict[str, Any]]


def call(*arguments: Any, **named: Any) -> Call:
    return arguments, named


@dataclass
class World:
    """What the drivers need: a client of each class, and new checkpoints on request."""

    url: str
    key: str
    model: str
    service: tinker.ServiceClient
    training: tinker.TrainingClient
    sampling: tinker.SamplingClient
    rest: tinker.RestClient
    admin: tinker.AdminClient
    names: Iterator[int]

    def name(self) -> str:
        return f"checkpoint-{next(self.names)}"

    def state(self) -> str:
        return self.training.save_state(self.name()).result().path

    def external(self) -> str:
        return self.training.save_weights_external(self.name()).result().path

    def weights(self) -> str:
        return self.training.save_weights_for_sampler(self.name()).result().path

    def graded(self, params: types.AdamParams) -> Call:
        """Arguments of an optim_step, after a forward_backward."""
        self.training.forward_backward(datums(), "cross_entropy").result()
        return call(params)

    def checkpoint_id(self) -> str:
        return "/".join(self.state().split("/")[-2:])

    @property
    def session_id(self) -> str:
        return self.training.model_id.partition(":")[0]

    @property
    def run_id(self) -> str:
        return self.training.model_id

    @property
    def sampler_id(self) -> str:
        return self.sampling._sampling_session_id


@contextlib.contextmanager
def new_world(url: str, key: str, model: str) -> Iterator[World]:
    with tinker.ServiceClient(base_url=url, api_key=key) as service:
        training = service.create_lora_training_client(model, rank=2).result()
        sampling = service.create_sampling_client(base_model=model).result()
        rest = tinker.RestClient(base_url=url, api_key=key)
        admin = tinker.AdminClient(base_url=url, api_key=key)
        yield World(url, key, model, service, training, sampling, rest, admin, count())


def datums() -> list[types.Datum]:
    targets = np.asarray([2, 3, 4], np.int64)
    inputs = {
        "target_tokens": types.TensorData.from_numpy(targets),
        "weights": types.TensorData.from_numpy(np.ones(3, np.float32)),
    }
    return [types.Datum(model_input=prompt(), loss_fn_inputs=inputs)]


def prompt() -> types.ModelInput:
    return types.ModelInput.from_ints([1, 2, 3])


def custom_loss(data: list[types.Datum], logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
    loss = -sum(values.sum() for values in logprobs)
    return loss, {"mine": float(loss)}


def graph_loss(logprobs: Any, weights: Any) -> Any:
    loss = -(logprobs * weights).sum()
    return loss, {"custom/mine:sum": loss}


def usage_days() -> Call:
    return call(dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.datetime(2026, 1, 2, tzinfo=dt.UTC))


# The arguments of each method, also for its async twin.
METHODS: dict[str, Callable[[World], Call]] = {
    "ServiceClient.close": lambda w: call("success"),
    "ServiceClient.copy_weights": lambda w: call(w.state(), ttl_seconds=3600),
    "ServiceClient.create_custom_loss": lambda w: call(graph_loss, {"logprobs": 1, "weights": 1}),
    "ServiceClient.create_lora_training_client": lambda w: call(w.model, rank=2),
    "ServiceClient.create_rest_client": lambda w: call(),
    "ServiceClient.create_sampling_client": lambda w: call(model_path=w.weights()),
    "ServiceClient.create_training_client_from_state": lambda w: call(w.state()),
    "ServiceClient.create_training_client_from_state_with_optimizer": lambda w: call(w.state()),
    "ServiceClient.get_console_url": lambda w: call(),
    "ServiceClient.get_server_capabilities": lambda w: call(),
    "ServiceClient.get_telemetry": lambda w: call(),
    "TrainingClient.create_sampling_client": lambda w: call(w.weights()),
    "TrainingClient.forward": lambda w: call(datums(), "cross_entropy"),
    "TrainingClient.forward_backward": lambda w: call(datums(), "cross_entropy"),
    "TrainingClient.forward_backward_custom": lambda w: call(datums(), custom_loss),
    "TrainingClient.get_console_url": lambda w: call(),
    "TrainingClient.get_info": lambda w: call(),
    "TrainingClient.get_telemetry": lambda w: call(),
    "TrainingClient.get_tokenizer": lambda w: call(),
    "TrainingClient.load_state": lambda w: call(w.state()),
    "TrainingClient.load_state_with_optimizer": lambda w: call(w.state()),
    "TrainingClient.optim_step": lambda w: w.graded(types.AdamParams(learning_rate=1e-3)),
    "TrainingClient.save_state": lambda w: call(w.name()),
    "TrainingClient.save_weights_and_get_sampling_client": lambda w: call(),
    "TrainingClient.save_weights_external": lambda w: call(w.name()),
    "TrainingClient.save_weights_for_sampler": lambda w: call(w.name()),
    "SamplingClient.compute_logprobs": lambda w: call(prompt()),
    "SamplingClient.create": lambda w: call(w.service.holder, base_model=w.model),
    "SamplingClient.from_sampler_handle": lambda w: call(
        w.sampling.get_sampler_handle(), api_key=w.key
    ),
    "SamplingClient.get_base_model": lambda w: call(),
    "SamplingClient.get_sampler_handle": lambda w: call(),
    "SamplingClient.get_telemetry": lambda w: call(),
    "SamplingClient.get_tokenizer": lambda w: call(),
    "SamplingClient.on_queue_state_change": lambda w: call(QueueState.ACTIVE, None),
    "SamplingClient.sample": lambda w: call(
        prompt(),
        2,
        types.SamplingParams(max_tokens=2, seed=1),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=2,
        prompt_alt_tokens_k=2,
    ),
    "RestClient.assign_session_project": lambda w: call(w.session_id, "project"),
    "RestClient.copy_weights": lambda w: call(w.state(), "project"),
    "RestClient.delete_checkpoint": lambda w: call(w.run_id, w.checkpoint_id()),
    "RestClient.delete_checkpoint_from_tinker_path": lambda w: call(w.state()),
    "RestClient.export_session_trace": lambda w: call(w.session_id),
    "RestClient.get_audit_log": lambda w: call(),
    "RestClient.get_billing_usage": lambda w: usage_days(),
    "RestClient.get_current_checkpoint_storage_usage": lambda w: call(),
    "RestClient.get_external_weights_urls": lambda w: call(w.external()),
    "RestClient.get_sampler": lambda w: call(w.sampler_id),
    "RestClient.get_server_capabilities": lambda w: call(),
    "RestClient.get_session": lambda w: call(w.session_id),
    "RestClient.get_telemetry": lambda w: call(),
    "RestClient.get_training_run": lambda w: call(w.run_id),
    "RestClient.get_training_run_by_tinker_path": lambda w: call(w.state()),
    "RestClient.get_weights_info_by_tinker_path": lambda w: call(w.state()),
    "RestClient.list_checkpoints": lambda w: call(w.run_id),
    "RestClient.list_sessions": lambda w: call(),
    "RestClient.list_training_runs": lambda w: call(),
    "RestClient.list_user_checkpoints": lambda w: call(),
    "RestClient.publish_checkpoint_from_tinker_path": lambda w: call(w.state()),
    "RestClient.search_sessions": lambda w: call(types.SessionSearchRequest()),
    "RestClient.set_checkpoint_ttl_from_tinker_path": lambda w: call(w.state(), 3600),
    "RestClient.unpublish_checkpoint_from_tinker_path": lambda w: call(w.state()),
    "RestClient.whoami": lambda w: call(),
    "AdminClient.get_audit_log": lambda w: call(),
    "AdminClient.get_billing_usage": lambda w: usage_days(),
    "AdminClient.get_current_checkpoint_storage_usage": lambda w: call(),
    "AdminClient.get_telemetry": lambda w: call(),
}

# The arguments of each command. SCRATCH stands for an empty folder.
SCRATCH = "<scratch>"
COMMANDS: dict[str, Callable[[World], list[str]]] = {
    "auth login": lambda w: [],
    "auth logout": lambda w: [],
    "auth status": lambda w: [],
    "auth whoami": lambda w: [],
    "billing checkpoint-storage": lambda w: [],
    "billing usage": lambda w: ["2026-01-01", "2026-01-02"],
    "checkpoint delete": lambda w: [w.state(), "--yes"],
    "checkpoint download": lambda w: [w.state(), "--output", SCRATCH],
    "checkpoint info": lambda w: [w.state()],
    "checkpoint list": lambda w: ["--run-id", w.run_id],
    "checkpoint publish": lambda w: [w.state()],
    "checkpoint set-ttl": lambda w: [w.state(), "--ttl", "3600"],
    "checkpoint unpublish": lambda w: [w.state()],
    "model list": lambda w: [],
    "run info": lambda w: [w.run_id],
    "run list": lambda w: [],
    "session export-trace": lambda w: [w.session_id, "--url-only"],
    "version": lambda w: [],
}
NOT_RUN = {"checkpoint push-hf": "downloads as `checkpoint download`, then sends it to a hub"}


def public_methods() -> list[str]:
    """Each Class.method, async twins included."""
    return [
        f"{client.__name__}.{name}"
        for client in CLIENTS
        for name, _ in inspect.getmembers(client, callable)
        if not name.startswith("_") and name not in LOCAL
    ]


def commands() -> list[str]:
    """Every command of `tinker` that has no subcommands."""
    from tinker.cli.__main__ import main_cli

    def leaves(command: click.Command, words: list[str]) -> Iterator[str]:
        if not isinstance(command, click.Group):
            yield " ".join(words)
            return
        context = click.Context(command)
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None
            yield from leaves(subcommand, [*words, name])

    return list(leaves(main_cli, []))


def outcome_of_method(world: World, method: str) -> str:
    """Return "works" or the sentence of the refusal; raise anything else."""
    class_name, name = method.split(".")
    if method == "ServiceClient.close":  # of another client: this one is still needed
        return _outcome(
            lambda: (
                tinker.ServiceClient(base_url=world.url, api_key=world.key)
                .close("success")
                .result()
            )
        )
    owner = {
        "ServiceClient": world.service,
        "TrainingClient": world.training,
        "SamplingClient": world.sampling,
        "RestClient": world.rest,
        "AdminClient": world.admin,
    }[class_name]
    arguments, named = METHODS[method.removesuffix("_async")](world)
    if name == "copy_weights":  # the SDK needs a project before it calls the server
        os.environ.setdefault("TINKER_PROJECT_ID", "local")
    function = getattr(owner, name)
    if name.endswith("_async"):
        return _outcome(lambda: asyncio.run(_awaited(function, arguments, named)))
    return _outcome(lambda: _resolved(function(*arguments, **named)))


def _resolved(value: Any) -> Any:
    return value.result(timeout=30) if hasattr(value, "result") else value


async def _awaited(function: Callable[..., Any], arguments: Any, named: Any) -> Any:
    value = await function(*arguments, **named)
    return await value if inspect.isawaitable(value) else value


def _outcome(do: Callable[[], object]) -> str:
    try:
        do()
    except tinker.APIStatusError as error:
        body = error.body
        if 400 <= error.status_code < 500 and isinstance(body, dict) and body.get("detail"):
            return str(body["detail"])
        raise
    except tinker.RequestFailedError as error:
        if "user" in str(getattr(error, "category", "")).lower():
            return str(error).removeprefix("Request failed: ").split(" for self.request_id")[0]
        raise
    except RuntimeError as error:
        if "requires JWT auth" not in str(error):  # whoami, refused by the SDK itself
            raise
        return str(error)
    return "works"


def outcome_of_command(world: World, command: str, scratch: Path) -> str:
    """Like `outcome_of_method`. The command runs in this process, because starting one is slow."""
    from tinker.cli.__main__ import main_cli
    from tinker.cli.exceptions import TinkerCliError

    folder = scratch / command.replace(" ", "-")
    folder.mkdir()
    arguments = [str(folder) if word == SCRATCH else word for word in COMMANDS[command](world)]
    environment = {
        "TINKER_BASE_URL": world.url,
        "TINKER_API_KEY": world.key,
        "HOME": str(scratch),
        "XDG_CONFIG_HOME": str(scratch / "config"),
    }
    done = CliRunner(env=environment).invoke(
        main_cli, [*command.split(), *arguments], input=f"{world.key}\n"
    )
    error = done.exception
    if error is None and done.exit_code == 0:
        return "works"
    if isinstance(error, TinkerCliError):
        text = f"{error.message} {error.details or ''}"
        match = re.search(r"'detail': ([\"'])(.*)\1\}", text) or re.search(r"()(.*)", text, re.S)
        assert match is not None
        return " ".join(match[2].split())
    raise RuntimeError(f"tinker {command}: {done.output}") from error


def page(world: World) -> str:
    """The text of docs/reference/compatibility.md, from a run.

    Raises:
        LookupError: a method or a command has no driver, or a driver has no method.
        RuntimeError: some gave neither a result nor a refusal; the message lists them.
    """
    logging.getLogger("tinker").setLevel(logging.CRITICAL)  # refusals are expected
    methods, leaf_commands = public_methods(), commands()
    names = {name.removesuffix("_async") for name in methods} | set(leaf_commands)
    driven = {*METHODS, *COMMANDS, *NOT_RUN}
    if names != driven:
        raise LookupError(
            f"without a driver: {sorted(names - driven)}; no longer there: {sorted(driven - names)}"
        )
    twins = set(methods)
    failures: list[str] = []

    def tried(name: str, drive: Callable[[], str]) -> str:
        try:
            return drive()
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
            return ""

    rows = ["| Method | Answer |", "| --- | --- |"]
    for method in methods:
        if method.endswith("_async") and method.removesuffix("_async") in twins:
            continue
        outcome = tried(method, lambda name=method: outcome_of_method(world, name))
        shown = f"`{method}`"
        if f"{method}_async" in twins:
            shown += ", `_async`"
            twin = f"{method}_async"
            other = tried(twin, lambda name=twin: outcome_of_method(world, name))
            if other != outcome:
                failures.append(f"{method}: {outcome}, but its async twin: {other}")
        rows.append(f"| {shown} | {_cell(outcome)} |")
    rows += ["", "| Command | Answer |", "| --- | --- |"]
    with tempfile.TemporaryDirectory() as scratch:
        for command in leaf_commands:
            if command in NOT_RUN:
                cell = f"not run: {NOT_RUN[command]}"
            else:
                outcome = tried(
                    f"tinker {command}",
                    lambda name=command: outcome_of_command(world, name, Path(scratch)),
                )
                cell = _cell(outcome)
            rows.append(f"| `tinker {command}` | {cell} |")
    if failures:
        raise RuntimeError("\n".join(["neither a result nor a refusal:", *failures]))
    return "\n".join([HEADER, *rows, "", *_recipes(), "", *_programs(), ""])


def _recipes() -> list[str]:
    """The part about tinker-cookbook, from the recorded run of benchmarks/cookbook_recipes.py."""
    recorded = json.loads((RESULTS / "cookbook_recipes.json").read_text(encoding="utf-8"))
    figures = recorded["figures"]
    counts = Counter(row["result"] for row in figures["recipes"])
    rows = [
        f"| `{row['recipe']}` | {row['result']} | {_remark(row)} |" for row in figures["recipes"]
    ]
    return [
        "## Recipes of tinker-cookbook",
        "",
        f"Every program below `tinker_cookbook.recipes` of tinker-cookbook "
        f"{figures['tinker-cookbook']}, as",
        f"`{recorded['command']}` ran them on {recorded['date']}: "
        f"{counts['runs']} run, {counts['fails']} fail, {counts['not run']} cannot",
        "run without a network or what the engine does not have. Losses, renderers, optimizers and",
        "evaluations are the recipe's own. Only sizes (the settings shown), the data and the model",
        "behind each name are replaced: every model is the bundled one, or a random one that sees;",
        "every data set is a few rows.",
        "So small a model earns little, and some recipes of reinforcement learning have nothing to",
        "learn here; tests teach it first and check that its rewards rise.",
        "",
        "| Recipe | Result | Settings, or the reason |",
        "| --- | --- | --- |",
        *rows,
    ]


def _remark(row: dict[str, Any]) -> str:
    if row["result"] == "not run":
        return _cell(row["reason"]).removeprefix("refused: ")
    settings = ", ".join(f"`{name}={value}`" for name, value in row["settings"].items())
    return f"{settings}; {row['reason'].replace('|', '/')}" if row["reason"] else settings


def _programs() -> list[str]:
    """The part about other programs, from the recorded run of benchmarks/foreign_programs.py."""
    recorded = json.loads((RESULTS / "foreign_programs.json").read_text(encoding="utf-8"))
    releases = f"{OLDEST_SDK}, {NEWEST_SDK}"
    rows = [
        f"| {row['program']} | {row['version']} | `{row['command']}` | {row['result']} |"
        for row in recorded["figures"]["programs"]
    ]
    return [
        "## Programs known to run",
        "",
        f"`{recorded['command']}` ran these on {recorded['date']}, unchanged, against an engine",
        "with the bundled model and no network. `BASE` stands for the engine's address.",
        "",
        "| Program | Version | Command | Result |",
        "| --- | --- | --- | --- |",
        f"| tinker (SDK) | {releases} | `make test-older-sdk`, `make test` | runs |",
        *rows,
    ]


def run_page() -> str:
    """Run `page` against a new engine. Its model is named by its folder, so that the SDK finds the
    tokenizer of a sampling client without the Hub."""
    from tests.support.engine import KEY, running_engine
    from tests.support.tiny_models import make_tiny_model

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        model = str(make_tiny_model(folder / "model"))
        with (
            running_engine(folder / "engine", Path(model), "--base-model", model) as engine,
            new_world(engine.url, KEY, model) as world,
        ):
            return page(world)


def _cell(outcome: str) -> str:
    return outcome if outcome == "works" else f"refused: {outcome.replace('|', '/')}"


SDK = NEWEST_SDK.rpartition(".")[0] + "."  # the table describes these versions of the SDK
HEADER = f"""# Tinker API compatibility

This page lists every public method of the SDK's five clients and every `tinker` command.
`python tools/compatibility.py` writes it: the script calls each of them once against a running
engine and records the answer. A test compares the page with a new run.

- `works`: the engine answered.
- `refused`: the engine refused at once, with the sentence shown.
- `_async`: the method has an asynchronous twin, which gave the same answer.

The table is for tinker {NEWEST_SDK}. The engine's tests also pass with tinker {OLDEST_SDK}
(`make test-older-sdk`). One thing differs: tinker {OLDEST_SDK} downloads archives, which newer SDKs
and this engine no longer offer.

What tinker 0.39 and 0.40 document besides is there too: `external_weights_upload_start` and
`_finish`, `search_checkpoints`, and the base model of a checkpoint. These releases are not to be
had yet, so this part is written by their documentation and tested without them. The documentation
does not name the address of the search; `/checkpoints/search` is our guess.

OpenAI's and Anthropic's API, which the cloud has beside the SDK's, are described in
[inference APIs](inference-api.md), with a test for each behaviour.

## Methods and commands
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Write docs/reference/compatibility.md from a run."
    )
    parser.add_argument("--check", action="store_true", help="compare without writing")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
    os.environ["TINKER_TELEMETRY"] = "0"
    new_page = run_page()
    if not options.check:
        PAGE.write_text(new_page, encoding="utf-8")
        return 0
    if new_page == PAGE.read_text(encoding="utf-8"):
        return 0
    print(f"Error: {PAGE.name} is not what a run gives: python tools/compatibility.py writes it.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
