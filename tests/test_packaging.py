"""Packaging: what pip, conda, Docker and citations read agrees with the code."""

import fnmatch
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
ON_CONDA = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "huggingface-hub": "huggingface_hub",
}


def parts(requirement):
    """Return the name of a requirement, in lower case, and its bound."""
    name, bound = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?\s*(.*)", requirement).groups()
    return name.lower().replace("_", "-"), bound


# Versions


def test_the_version_is_one(capsys):
    import vprompt

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    recipe = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text("utf-8"))
    assert f"vprompt[demo,onnx,serve]=={vprompt.__version__}'" in DOCKERFILE
    assert (
        PROJECT["version"]
        == vprompt.__version__
        == str(citation["version"])
        == recipe["context"]["version"]
    )


def test_every_lower_bound_is_one_that_the_compatibility_run_installs():
    """Its file names the oldest releases, package by package."""
    lines = (ROOT / "requirements" / "oldest.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and line[0] != "#")
    extras = PROJECT["optional-dependencies"]
    tested = {"clip", "data", "demo", "lora", "serve", "tensorboard"}  # onnx needs a newer torch
    asked = [*PROJECT["dependencies"], *(each for name in tested for each in extras[name])]
    for name, bound in map(parts, asked):
        assert bound.startswith(">="), name
        assert same_release(pinned[name], bound[2:]), f"{name}{bound}, tested {pinned[name]}"


def same_release(one, other):
    """Say whether `2.4` and `2.4.0` are one release."""
    a, b = ([int(n) for n in version.split(".") if n.isdigit()] for version in (one, other))
    width = max(len(a), len(b))
    return a + [0] * (width - len(a)) == b + [0] * (width - len(b))


# Types


def test_the_marker_of_types_is_shipped():
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "py.typed" in whole["tool"]["setuptools"]["package-data"]["vprompt"]
    assert (ROOT / "src" / "vprompt" / "py.typed").is_file()


def test_every_shipped_kind_of_file_is_named():
    """A file that is no module is left out of a wheel unless a pattern names it."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = whole["tool"]["setuptools"]["package-data"]["vprompt"]
    home = ROOT / "src" / "vprompt"
    for path in home.rglob("*"):
        name = path.relative_to(home).as_posix()
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


# Citations


def test_the_citation_is_what_the_format_asks_for():
    """The keys and kinds of the Citation File Format 1.2.0, as far as they are used here."""
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert set(found) <= {
        "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi",
        "identifiers", "keywords", "license", "license-url", "message", "preferred-citation",
        "references", "repository", "repository-artifact", "repository-code", "title", "type",
        "url", "version",
    }  # fmt: skip
    assert {"authors", "cff-version", "message", "title"} <= set(found)
    assert found["cff-version"] == "1.2.0" and found["type"] in ("software", "dataset")
    assert found["license"] == PROJECT["license"]
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", found["date-released"])
    assert found["keywords"] and all(isinstance(word, str) for word in found["keywords"])
    persons = {"given-names", "family-names", "affiliation", "orcid", "email", "alias", "website"}
    for author in found["authors"]:
        assert set(author) <= persons or set(author) <= {"name", "website", "email", "alias"}


# conda


def test_the_conda_recipe_asks_for_what_the_package_asks_for():
    recipe = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text("utf-8"))
    python, *run = recipe["requirements"]["run"]
    assert python == "python >=${{ python_min }}"
    assert PROJECT["requires-python"] == f">={recipe['context']['python_min']}"
    asked = dict(parts(each) for each in PROJECT["dependencies"])
    names = {ON_CONDA.get(name, name): bound for name, bound in asked.items()}
    assert dict(each.split(" ") for each in run) == names
    [entry] = recipe["build"]["python"]["entry_points"]
    assert entry == f"vprompt = {PROJECT['scripts']['vprompt']}"
    assert recipe["about"]["summary"] == PROJECT["description"]
    assert recipe["about"]["license"] == PROJECT["license"]
    for script in recipe["tests"][1]["script"]:
        assert script.startswith("vprompt ")


# Docker


def instructions(text):
    """Return every instruction of a Dockerfile: its word, and the rest on one line."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word, " ".join(rest.split())) for word, _, rest in found]


def problems(text, context=ROOT):
    """Return what a careful reader would object to in a Dockerfile, as hadolint's rules do."""
    found, all_of = [], instructions(text)
    known = {
        "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL",
        "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
    }  # fmt: skip
    found += [f"no instruction {word}" for word, _ in all_of if word not in known]
    if not all_of or all_of[0][0] not in ("FROM", "ARG"):
        found.append("does not begin with FROM")
    stages = set()
    for word, rest in all_of:
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            if image not in stages and (":" not in image or image.endswith(":latest")):
                found.append(f"{image} has no version")
            stages.add(name)
        if word == "COPY":
            *flags_and_sources, _ = rest.split()
            of_stage = [w for w in flags_and_sources if w.startswith("--from=")]
            if of_stage and of_stage[0].removeprefix("--from=") not in stages:
                found.append(f"{of_stage[0]} is no stage")
            for source in [] if of_stage else flags_and_sources:
                if not (context / source).exists():
                    found.append(f"{source} is not there")
        if word == "ADD":
            found.append("ADD instead of COPY")
        if word == "WORKDIR" and not rest.startswith("/"):
            found.append(f"WORKDIR {rest} is relative")
        if word in ("CMD", "ENTRYPOINT"):
            found += [] if exec_form(rest) else [f"{word} goes through a shell"]
        if word == "HEALTHCHECK" and not exec_form(rest.partition("CMD ")[2]):
            found.append("HEALTHCHECK goes through a shell")
        if word == "RUN":
            for command in re.split(r"&&|\|\||;", rest):
                words = shlex.split(command)
                if words[:1] in (["sudo"], ["cd"]):
                    found.append(f"{words[0]} in RUN")
                if "apt-get" in words and "install" in words and "-y" not in words:
                    found.append("apt-get install asks")
    last = [i for i, (word, _) in enumerate(all_of) if word == "FROM"][-1:]
    final = all_of[last[0] :] if last else []
    users = [rest for word, rest in final if word == "USER"]
    if not users or users[-1] in ("root", "0"):
        found.append("runs as root")
    if not any(word == "HEALTHCHECK" for word, _ in final):
        found.append("no HEALTHCHECK")
    hosts = set(re.findall(r"https?://([^/\s'\"]+)", text)) - {"127.0.0.1:8000"}
    found += [f"fetches from {host}" for host in sorted(hosts - {"download.pytorch.org"})]
    return found


def exec_form(rest):
    try:
        return all(isinstance(word, str) for word in json.loads(rest))
    except ValueError:
        return False


def test_the_dockerfile_has_no_problem():
    assert problems(DOCKERFILE) == []


BROKEN = {
    "runs as root": ("USER 1000:1000\n", ""),
    "no HEALTHCHECK": ("HEALTHCHECK --interval", "LABEL --interval"),
    "python has no version": ("FROM python:3.11-slim-bookworm AS build", "FROM python AS build"),
    "ENTRYPOINT goes through a shell": ('ENTRYPOINT ["vprompt"]', "ENTRYPOINT vprompt"),
    "source is not there": ("COPY src src", "COPY source src"),
    "--from=built is no stage": ("--from=build ", "--from=built "),
    "fetches from example.org": ("download.pytorch.org", "example.org"),
    "no instruction COPPY": ("COPY src", "COPPY src"),
    "WORKDIR source is relative": ("WORKDIR /source", "WORKDIR source"),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_dockerfile_with_a_problem_has_it_found(problem):
    before, after = BROKEN[problem]
    assert before in DOCKERFILE
    assert problem in problems(DOCKERFILE.replace(before, after, 1))


def test_the_image_starts_a_server_whose_health_it_asks_for():
    """Read the last command as the command line would, and the check as the server's address."""
    import typer

    from vprompt.cli.app import app

    told = dict(instructions(DOCKERFILE))
    assert json.loads(told["ENTRYPOINT"]) == ["vprompt"]
    verb, *words = json.loads(told["CMD"])
    command = typer.main.get_command(app).commands[verb]
    given = command.make_context(verb, words).params
    assert given["host"] == "0.0.0.0" and str(given["port"]) == told["EXPOSE"]
    assert f"http://127.0.0.1:{given['port']}/health" in told["HEALTHCHECK"]
    assert str(given["pools"][0]) == told["VOLUME"]


def test_the_check_of_the_image_tells_a_server_from_none(tmp_path, tiny, shelf_folder):
    import subprocess
    import sys

    from served import serving

    [check] = [rest for word, rest in instructions(DOCKERFILE) if word == "HEALTHCHECK"]
    python, *words = json.loads(check.partition("CMD ")[2])
    assert python == "python"
    with serving([shelf_folder], tiny) as client:
        here = [word.replace("127.0.0.1:8000", client.host) for word in words]
        assert here != words
        assert subprocess.run([sys.executable, *here], check=False).returncode == 0
    gone = subprocess.run([sys.executable, *here], check=False, stderr=subprocess.DEVNULL)
    assert gone.returncode != 0


def test_what_the_image_copies_is_sent_to_the_builder():
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert next(line for line in lines if line and line[0] != "#") == "*"
    sent = {line[1:] for line in lines if line.startswith("!")}
    copied = set()
    for word, rest in instructions(DOCKERFILE):
        if word == "COPY" and "--from" not in rest:
            copied |= set(rest.split()[:-1])
    assert sent == copied


@pytest.fixture(scope="module")
def shelf_folder(tiny, tmp_path_factory):
    """A pool of one artefact."""
    from served import save_artefact

    folder = tmp_path_factory.mktemp("pool")
    save_artefact(tiny, folder / "ash", 0)
    return folder


# The page


def test_every_extra_is_explained():
    page = (ROOT / "docs" / "packaging.md").read_text("utf-8")
    for extra in PROJECT["optional-dependencies"]:
        assert f"`{extra}`" in page, extra
