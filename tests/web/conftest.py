"""A pool of small artefacts, shared or a test's own, and a server of it."""

import shutil

import pytest
from served import NAMES, save_artefact, serving


@pytest.fixture(scope="module")
def shelf_folder(tiny, tmp_path_factory):
    """Three artefacts: two of one layout, one deep."""
    folder = tmp_path_factory.mktemp("pool")
    for seed, name in enumerate(NAMES):
        save_artefact(tiny, folder / name, seed, deep=name == "cedar")
    return folder


@pytest.fixture
def own_pool(shelf_folder, tmp_path):
    """A copy of the pool that a test may change."""
    return shutil.copytree(shelf_folder, tmp_path / "pool")


@pytest.fixture(scope="module")
def client(shelf_folder, tiny):
    """A server of the shared pool."""
    with serving([shelf_folder], tiny) as found:
        yield found
