"""The files of sentence-transformers beside a model: in its folder, or in its repository."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, cast

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from torch import nn

MODULES_FILE = "modules.json"
"""The list of what texts go through: a transformer, a pooling, and so on."""

SETTINGS_FILE = "config_sentence_transformers.json"
"""The prompts, and how embeddings are compared."""

READING_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""How the transformer reads texts; the later ones are names of earlier releases."""

_PACKAGE = "sentence_transformers."
_TRANSFORMERS = ("Transformer", "MLMTransformer")


class Module(NamedTuple):
    """One entry of the list of modules.

    Args:
        type: its class, with the package.
        path: its folder, from where the list is; empty for the folder of the list itself.
    """

    type: str
    path: str

    @property
    def kind(self) -> str:
        """The class without the package; with it, if it is not one of sentence-transformers."""
        return self.type.rpartition(".")[2] if self.type.startswith(_PACKAGE) else self.type

    @property
    def is_transformer(self) -> bool:
        """Whether it is a model of transformers that sentence-transformers itself loads."""
        return self.kind in _TRANSFORMERS

    @property
    def is_foreign(self) -> bool:
        """Whether its class is not one of sentence-transformers."""
        return self.kind == self.type

    @property
    def leads_out(self) -> bool:
        """Whether its path leaves the folder."""
        ways = (PurePosixPath(self.path), PureWindowsPath(self.path))
        return any(way.is_absolute() or way.drive or ".." in way.parts for way in ways)


_NETWORK = ("httpx", "httpx2", "httpcore", "requests", "urllib3")


def of_network(error: BaseException) -> bool:
    """Whether an error is about the network."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    return type(error).__module__.split(".")[0] in _NETWORK


class OutOfReach(Exception):
    """A repository cannot be asked for a file."""


@dataclass(frozen=True)
class FilesBeside:
    """The files beside a model.

    Args:
        name: a folder or a hub id.
        revision: of the repository; None for the newest.
    """

    name: str
    revision: str | None = None

    @staticmethod
    def of(model: nn.Module) -> FilesBeside | None:
        """Those of the folder or the repository that a model was loaded from; None if it was not loaded."""
        config = getattr(model, "config", None)
        name: object = getattr(config, "_name_or_path", None)
        if not isinstance(name, str) or not name:
            return None
        return FilesBeside.at(name, getattr(config, "_commit_hash", None))

    @staticmethod
    def at(name: str, revision: str | None = None) -> FilesBeside:
        """Those of a folder or a hub id; of the folder above, if the model is a module of the list there,
        such as ``0_Transformer``."""
        folder = Path(name)
        if folder.is_dir() and not (folder / MODULES_FILE).is_file():
            above = FilesBeside(str(folder.absolute().parent))
            if above.first_folder() == folder.absolute().name:
                return above
        return FilesBeside(name, revision)

    def modules(self) -> list[Module] | None:
        """The list of modules; None if there is none.

        Raises:
            OutOfReach: if that cannot be known.
            ValueError, LookupError, TypeError: if it cannot be understood.
        """
        told = self.read(MODULES_FILE)
        if told is None:
            return None
        return [Module(str(each["type"]), _plain(str(each["path"]))) for each in told]

    def folders(self) -> list[str]:
        """The folders of the modules in a folder's list, empty for the folder itself; none without a list that can
        be understood."""
        if not Path(self.name).is_dir():
            return []
        try:
            return ["" if each.leads_out else each.path for each in self.modules() or ()]
        except (ValueError, LookupError, TypeError):
            return []

    def first_folder(self) -> str:
        """The folder of the first module in a folder's list; empty for the folder itself, and without a list."""
        return next(iter(self.folders()), "")

    def read(self, file: str) -> Any:
        """The content of a JSON file; None if it is not there.

        Raises:
            OutOfReach: if that cannot be known.
            ValueError: if it is damaged.
        """
        path = self.path(file)
        return None if path is None else json.loads(path.read_text(encoding="utf-8"))

    def path(self, file: str) -> Path | None:
        """Where a file can be read; None if it is not there.

        Raises:
            OutOfReach: if that cannot be known.
        """
        folder = Path(self.name)
        if folder.is_dir():
            return folder / file if (folder / file).is_file() else None
        try:
            cached = huggingface_hub.try_to_load_from_cache(self.name, file, revision=self.revision)
            if isinstance(cached, str):
                return Path(cached)
            if cached is not None:  # known not to be there
                return None
            hub: Any = huggingface_hub
            return Path(hub.hf_hub_download(self.name, file, revision=self.revision))
        except HFValidationError:  # a folder that is gone
            return None
        except LocalEntryNotFoundError:  # which is an EntryNotFoundError too
            raise OutOfReach from None
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OSError):
            raise OutOfReach from None
        except Exception as error:
            if of_network(error):
                raise OutOfReach from None
            raise

    def within(self, folder: str) -> dict[str, Path]:
        """Where the files of a folder can be read, by their paths beside the model.

        Raises:
            OutOfReach: if that cannot be known.
        """
        top = Path(self.name)
        if not top.is_dir():
            hub: Any = huggingface_hub
            wanted = {"revision": self.revision, "allow_patterns": f"{folder}/*"}
            try:
                top = Path(cast("str", hub.snapshot_download(self.name, **wanted)))
            except (HFValidationError, EntryNotFoundError, HfHubHTTPError, OSError):
                raise OutOfReach from None
            except Exception as error:
                if of_network(error):
                    raise OutOfReach from None
                raise
        found = (path for path in sorted((top / folder).rglob("*")) if path.is_file())
        return {path.relative_to(top).as_posix(): path for path in found}


def _plain(path: str) -> str:
    """A path without a slash behind it; empty for the folder itself."""
    return "/".join(PurePosixPath(path).parts)
