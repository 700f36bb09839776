"""Addresses: a module that moved into a room still answers at its old address, with a warning.

`vprompt.adapter` was written as long as all modules stood side by side; it is
`vprompt.learning.adapter` now. Plug-ins of other packages keep working until the next release.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

PACKAGE = __name__.partition(".")[0]
# Rooms whose files are found by their own names, and never stood at the top under those.
APART = frozenset({"backbones", "tasks", "adapters", "transfer", "metrics", "cli"})


class OldAddresses(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `vprompt.NAME` as the one module of that name in a room; asked after all others."""

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where a module of the package went, or None."""
        package, _, name = fullname.rpartition(".")
        if package != PACKAGE or name.startswith("_"):
            return None
        files = [file for folder in path or () for file in Path(folder).glob(f"*/{name}.py")]
        rooms = {file.parent.name for file in files} - APART
        if len(rooms) != 1:
            return None
        return importlib.machinery.ModuleSpec(
            fullname, self, origin=f"{PACKAGE}.{rooms.pop()}.{name}"
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the module itself: both addresses are one object."""
        warnings.warn(
            f"{spec.name} is {spec.origin} now; the old address goes with the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        module = importlib.import_module(str(spec.origin))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing, for the module was run where it stands; give it its own spec back."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


def answer() -> None:
    """Let old addresses be found from now on; done once, by the package itself."""
    if not any(isinstance(finder, OldAddresses) for finder in sys.meta_path):
        sys.meta_path.append(OldAddresses())
