"""Checkpoints that are several models, each in a folder: which folders these are. The files that say it are anyone's.

modules.json         sentence-transformers (base/model.py, save): the modules of a model, each with its path
router_config.json   sentence-transformers (base/modules/router.py): the modules inside one that chooses between them
model_index.json     diffusers (pipelines/pipeline_utils.py): the components of a pipeline, in folders of their names
belay.json           belay: the folders of an output
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from belay_cli.checkpoints.config import read_config
from belay_cli.checkpoints.directory import holders, holds_weights, raw_or_ema, subfolder
from belay_cli.checkpoints.order.averages import ema_by_name
from belay_cli.checkpoints.order.ranks import refuse_parts_in
from belay_cli.checkpoints.weights import Opening, inside
from belay_cli.errors import CheckpointError, UsageError
from belay_cli.formats.text import short
from belay_cli.storage.files import AnyPath, is_plain_name
from belay_cli.storage.json_file import read_json

ALL = "all"
_RECORD = "belay.json"
LISTS = _MODULES, _PIPELINE = "modules.json", "model_index.json"
_ROUTERS = ("router_config.json", "config.json")  # the second of its first versions, then called Asym

_LARGEST = 1_000_000  # bytes of a list of modules or components
_MOST = 200  # folders
_COPY = "copy the checkpoint again"
_SAVE_NOTHING = ("Normalize",)  # modules whose folders are empty, so that git has none


class Folders(NamedTuple):
    """The folders of a checkpoint that is several models, in order, and those with an EMA that are passed over.

    An empty one is the directory itself. None at all: the checkpoint is one model.
    """

    taken: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What is taken, in words."""
        names = ", ".join(folder or "the directory itself" for folder in self.taken)
        aside = f", not {', '.join(self.passed_over)}" if self.passed_over else ""
        return f"takes the weights in {names}{aside}"


def several(wanted: str | None) -> bool:
    """Whether --subfolder asks for more than one model."""
    return wanted is not None and (wanted == ALL or "," in wanted)


def canonical(wanted: str | None) -> str | None:
    """--subfolder in one form: the folders of a list in order, none twice."""
    return ",".join(named(wanted)) if wanted is not None and several(wanted) and wanted != ALL else wanted


def named(wanted: str) -> list[str]:
    """The folders that a list names, in order."""
    return sorted({name.strip(" /") for name in wanted.split(",")})


def find_folders(directory: AnyPath, opening: Opening) -> Folders:
    """The folders with the weights of a checkpoint. Raises CheckpointError or UsageError."""
    wanted = opening.subfolder
    if wanted is None:
        found = Folders(tuple(_recorded(directory) or _modules(directory)))
    elif several(wanted):
        found = _with_named(directory, _every(directory, opening), wanted)
    else:
        found = Folders()
    _refuse_many(found.taken, directory)
    return Folders() if found.taken == ("",) else found


def _every(directory: AnyPath, opening: Opening) -> Folders:
    modules = _modules(directory)
    return Folders(tuple(modules)) if modules else _pipeline(directory, opening)


def _with_named(directory: AnyPath, found: Folders, wanted: str) -> Folders:
    if wanted == ALL:
        return found
    if "" in found.taken:
        raise UsageError(
            f"--subfolder {wanted} leaves out the weights that lie in {directory} itself",
            hint=f"take all of them: --subfolder {ALL}; to keep the last one's of some tensors: --last GLOB",
        )
    names = named(wanted)
    for name in names:
        subfolder(directory, name)
    return Folders(tuple(sorted({*found.taken, *names})), tuple(n for n in found.passed_over if n not in names))


def _pipeline(directory: AnyPath, opening: Opening) -> Folders:
    """The folders with weights that model_index.json names, or all where there is none, and the directory itself."""
    found, path = holders(directory), directory / _PIPELINE
    if path.is_file():
        components = _of_pipeline(path, all_needed=opening.subfolder == ALL)
        names = [entry.name for entry in found if entry.name in components]
    else:
        top = holds_weights(directory)
        alone = top and all(ema_by_name(entry.name) for entry in found)
        names = [entry.name for entry in raw_or_ema(directory, found, opening)] if not alone else []
        refuse_parts_in(directory, names)
        names = ["", *names] if top else names
    twins = [entry.name for entry in found if ema_by_name(entry.name) and entry.name not in names]
    return Folders(tuple(names), tuple(twins))


def _of_pipeline(path: AnyPath, *, all_needed: bool) -> list[str]:
    """The names of its components, which have a library and a class. Each has a folder, or only if all are needed."""
    listed = read_json(path, _LARGEST)
    if not isinstance(listed, dict):
        raise CheckpointError("is no index of a pipeline", file=path, hint="save the pipeline again")
    names = [name for name, value in listed.items() if not name.startswith("_") and _is_class(value)]
    _refuse_many(names, path)
    for name in names:
        if not _below(path.parent, _inner(name, path)).is_dir() and all_needed:
            raise CheckpointError(
                f"names the component {short(name)}, which is not there",
                file=path,
                hint="copy its folder too, or name those to be averaged: --subfolder unet,text_encoder",
            )
    return names


def _is_class(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _modules(directory: AnyPath) -> list[str]:
    """The folders with weights of the modules that modules.json lists."""
    path = directory / _MODULES
    if not path.is_file():
        return []
    listed = read_json(path, _LARGEST)
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise CheckpointError("is no list of modules", file=path, hint="save the model again")
    folders = {folder for module in listed for folder in _of_module(module, path)}
    _refuse_many(folders, path)
    return sorted(folder for folder in folders if holds_weights(_below(directory, folder)))


def _of_module(module: dict[str, Any], path: AnyPath) -> Iterator[str]:
    folder, kind = _inner(module.get("path"), path), str(module.get("type")).rpartition(".")[2]
    there = _below(path.parent, folder)
    if there.is_dir():
        yield folder
        yield from (inside(folder, name) for name in _routed(there))
    elif kind not in _SAVE_NOTHING:
        raise CheckpointError(
            f"names the module {short(folder)}, which is not there",
            file=path,
            hint="copy its folder too; if the module has no files, an empty one",
        )


def _routed(module: AnyPath) -> list[str]:
    """The folders of the modules between which one chooses; none for any other module."""
    for name in _ROUTERS:
        config = read_config(module, name)
        if isinstance(config.get("types"), dict) and isinstance(config.get("structure"), dict):
            _refuse_many(config["types"], module / name)
            return [folder for folder in config["types"] if _below(module, _inner(folder, module / name)).is_dir()]
    return []


def _recorded(directory: AnyPath) -> list[str]:
    """The folders that an output of belay says it is made of; all of them must hold weights."""
    path = directory / _RECORD
    folders = read_config(directory, _RECORD).get("components")
    if not isinstance(folders, list):
        return []
    _refuse_many(folders, path)
    for folder in folders:
        there = _below(directory, _inner(folder, path))
        if not there.is_dir() or not holds_weights(there):
            raise CheckpointError(f"names weights in {short(folder)}, which are not there", file=path, hint=_COPY)
    return folders


def _inner(folder: Any, path: AnyPath) -> str:
    """A folder that a file names, if it lies inside the file's own directory. Raises CheckpointError."""
    if not isinstance(folder, str) or (folder and not all(map(is_plain_name, folder.split("/")))):
        raise _outside(path, folder)
    return folder


def _below(directory: AnyPath, folder: str) -> AnyPath:
    return directory.joinpath(*folder.split("/")) if folder else directory


def _outside(path: AnyPath, folder: Any) -> CheckpointError:
    return CheckpointError(
        f"names {short(folder)}, which is no folder beside it",
        file=path,
        hint=f"it is damaged, or not to be trusted; {_COPY}",
    )


def _refuse_many(folders: Any, path: AnyPath) -> None:
    if len(folders) > _MOST:
        raise CheckpointError(f"has {len(folders)} models, more than the {_MOST} that belay takes", file=path)
