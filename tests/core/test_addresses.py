"""Addresses: what plug-ins of other packages import goes on working, and is told to move."""

import importlib
import subprocess
import sys

import pytest

OLD = {
    "adapter": "learning.adapter",
    "backbone": "models.backbone",
    "errors": "core.errors",
    "mix": "pooling.mix",
    "prompt": "prompts.prompt",
    "registry": "core.registry",
    "types": "core.types",
}


@pytest.mark.parametrize("old", sorted(OLD))
def test_an_old_address_is_the_module_itself(old):
    sys.modules.pop(f"vprompt.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"vprompt.{old} is vprompt.{OLD[old]} now"):
        found = importlib.import_module(f"vprompt.{old}")
    assert found is importlib.import_module(f"vprompt.{OLD[old]}")
    assert found.__name__ == found.__spec__.name == f"vprompt.{OLD[old]}"


def test_a_new_process_imports_names_from_an_old_address():
    code = "import vprompt; from vprompt.errors import VPromptError as old; "
    code += "assert old is vprompt.VPromptError"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", ["nowhere", "_simplex", "uniform"])
def test_what_never_was_there_is_not_found(name):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"vprompt.{name}")


def test_other_packages_are_looked_up_as_ever():
    import google.protobuf  # a part of a namespace package: its path is no list

    import vprompt
    from vprompt.core.addresses import OldAddresses

    del vprompt
    assert OldAddresses().find_spec("google.nowhere", google.__path__) is None
