"""Names of data sets on a hub -> their records, through the hub's own library.

hf:org/name is a data set of Hugging Face, ms:org/name one of ModelScope. A subset follows after
another slash, a split after a colon: hf:org/name/subset:train.
"""

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from tinkersmith.errors import UserError, error_kinds, one_line
from tinkersmith.models.hub import NotShown, hub_unreached
from tinkersmith.paths import is_hub_name
from tinkersmith.sources.columnar import plain_rows
from tinkersmith.sources.contents import command_to_convert

_HUBS = {"hf": ("Hugging Face", "datasets"), "ms": ("ModelScope", "modelscope")}
_INSTALL = "pip install 'tinkersmith[hub]'"
_AT_ONCE = 1024  # records


def is_on_hub(path: Path) -> bool:
    """Whether a name is that of a data set on a hub, and not of a file here."""
    return is_hub_name(path.as_posix()) and not path.exists()


def hub_records(
    path: Path, columns: Mapping[str, str], notes: list[str], most: int | None
) -> Iterator[dict[str, Any]]:
    """The records of a data set on a hub, downloaded by the hub's library if it is not here yet.

    Without a split in the name it is the only one, or "train".

    Args:
        most: bytes of content after which the data set is refused.

    Raises:
        UserError: there is no network or no such data set, or the library is not installed.
    """
    name = path.as_posix()
    hub, _, rest = name.partition(":")
    repository, _, split = rest.partition(":")
    owner, base, *subset = repository.split("/")
    dataset = _loaded(name, hub, f"{owner}/{base}", subset[0] if subset else "", split)
    if isinstance(dataset, dict):  # a DatasetDict is one
        splits = cast("dict[str, Any]", dataset)
        chosen = _chosen_split(name, list(splits))
        if len(splits) > 1:
            others = ", ".join(one_line(other, 40) for other in splits if other != chosen)
            notes.append(f'the split "{chosen}" was read, and not {others}')
        dataset = splits[chosen]
    dataset = getattr(dataset, "ds_instance", dataset)  # ModelScope's wrapper
    tables = dataset.with_format("arrow").iter(batch_size=_AT_ONCE)
    too_large = f"Write it as JSON Lines, which are read as a stream: {command_to_convert(path)}"
    yield from plain_rows(path, tables, columns, notes, most, too_large)


def _chosen_split(name: str, splits: list[str]) -> str:
    if len(splits) == 1:
        return splits[0]
    if "train" in splits:
        return "train"
    listed = ", ".join(splits)
    raise UserError(f"{name} has the splits {listed}. Name one of them, such as {name}:{splits[0]}")


def _loaded(name: str, hub: str, repository: str, subset: str, split: str) -> Any:
    """The data set, or its splits by name."""
    about, library = _HUBS[hub]
    if Path(repository).exists():  # the libraries would take it without a word
        raise UserError(
            f"{name} is the name of a data set on {about}, but there is {repository} on this "
            f"machine as well. Name that folder as {repository}, or start from another folder."
        )
    try:
        if hub == "hf":
            load: Any = import_module("datasets").load_dataset
            options: dict[str, Any] = {"name": subset or None}
        else:
            load = import_module("modelscope.msdatasets").MsDataset.load
            options = {"subset_name": subset or None, "trust_remote_code": False}
    except ImportError as error:
        missing = f", or a part of it ({error})" if error.name != library else ""
        raise UserError(
            f"{name} is a data set on {about}. It needs the package {library}{missing}. Install "
            f"it with: {_INSTALL}"
        ) from None
    trouble = None
    if hub == "hf":
        with suppress(NotShown):  # the library says it, too, with what it may find elsewhere
            trouble = hub_unreached("datasets", repository)
    try:
        with _offline(trouble is not None):
            return load(repository, split=split or None, **options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # errors of many libraries, and exits of some
        raise _not_loaded(name, about, error, trouble) from None


@contextmanager
def _offline(wanted: bool) -> Generator[None, None, None]:
    """Within the block, Hugging Face's libraries read their caches and ask no hub.

    They would try for minutes to reach a hub that does not answer.
    """
    if not wanted:
        yield
        return
    settings: list[Any] = [import_module("huggingface_hub").constants]
    settings.append(import_module("datasets").config)
    before = [module.HF_HUB_OFFLINE for module in settings]
    for module in settings:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _not_loaded(
    name: str, about: str, error: BaseException, trouble: str | None = None
) -> UserError:
    """The sentence about a data set that a library did not load; `trouble` is the hub's."""
    kinds = error_kinds(error)
    text = " ".join(str(error).split())
    if trouble is not None and "OfflineModeIsEnabled" in f"{kinds} {text}":
        return UserError(
            f"{name} is not on this machine. {trouble} Check the network, set HF_ENDPOINT to a "
            "mirror such as https://hf-mirror.com, or name a file on this machine."
        )
    if "OfflineModeIsEnabled" in kinds or "OfflineModeIsEnabled" in text:
        return UserError(
            f"{name} is not on this machine, and HF_HUB_OFFLINE or HF_DATASETS_OFFLINE forbids to "
            "download it. Unset that, or name a file."
        )
    if available := re.search(r"Config name is missing.*?\[(.*?)\]", text):
        subsets = available.group(1).replace("'", "")
        first = subsets.split(", ")[0]
        return UserError(
            f"{name} has several subsets: {one_line(subsets, 200)}. Name one of them, such as "
            f"{name.partition(':')[0]}:{name.split(':')[1]}/{first}"
        )
    if re.search(r"Unknown split|BuilderConfig .* not found", text):
        return UserError(f"{name}: {one_line(text, 300).rstrip('.')}. Correct the name.")
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError", "NotExistError"}:
        return UserError(
            f"{name} does not exist on {about}, or is not public ({one_line(text, 200).rstrip('.')}"
            "). Correct the name, or log in with the hub's own program."
        )
    if kinds & {"ConnectionError", "Timeout", "TimeoutError", "MaxRetryError", "ConnectError"} or (
        re.search(r"Couldn't reach|Name or service not known|resolve host|timed out", text)
    ):
        return UserError(
            f"{name} cannot be downloaded: {about} does not answer. Check the network, or name a "
            "file on this machine."
        )
    what = one_line(text, 300).rstrip(".") or type(error).__name__
    return UserError(f"{name} cannot be read from {about}: {what}. Download it by other means.")
