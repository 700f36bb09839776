"""Hub: push, pull and find against a stand-in server on this machine; no network."""

import base64
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse

import pytest
import torch
import yaml


class StandIn:
    """What the hub keeps: for every repository its commits, each a mapping of names to bytes."""

    def __init__(self):
        self.repos, self.refs, self.visibility, self.requests = {}, {}, {}, []

    def commit(self, repo, files, ref="main", message=""):
        text = repr(sorted(files.items())) + message
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = files
        self.refs[repo, ref] = commit
        return commit

    def info(self, repo, commit):
        files = self.repos[repo][commit]
        match = re.match(r"---\n(.*?)\n---", files.get("README.md", b"").decode(), re.S)
        head = yaml.safe_load(match[1]) if match else {}
        siblings = [{"rfilename": n, "size": len(c), "blobId": oid(c)} for n, c in files.items()]
        return {
            "id": repo,
            "sha": commit,
            "siblings": siblings,
            "tags": head.get("tags", []),
            "downloads": 3,
            "lastModified": "2026-01-02T03:04:05.000Z",
        }

    def answer(self, method, path, query, body):
        """Return `(status, headers, content)`."""
        if found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/(\w+)/(\S+)", path):
            repo, commit, name = found.groups()
            content = self.repos.get(repo, {}).get(commit, {}).get(name)
            if content is None:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            return 200, {"ETag": f'"{oid(content)}"', "X-Repo-Commit": commit}, content
        if path == "/api/models":
            heads = [self.info(r, c) for (r, ref), c in self.refs.items() if ref == "main"]
            wanted, word = set(query.get("filter", [])), query.get("search", [""])[0]
            return reply([h for h in heads if wanted <= set(h["tags"]) and word in h["id"]])
        if path == "/api/validate-yaml":
            return reply({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] == "stranger":
                return 403, {}, b"{}"
            if repo in self.repos:
                return 409, {}, json.dumps({"url": f"{self.address}/{repo}"}).encode()
            self.visibility[repo] = asked.get("visibility")
            self.commit(repo, {})
            return reply({"url": f"{self.address}/{repo}"})
        found = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(\w+)/(.+))?", path)
        assert found, f"nothing answers {method} {path}"
        repo, verb, rest = found.groups()
        ref = rest.split("/")[0] if rest else "main"
        commit = ref if ref in self.repos.get(repo, {}) else self.refs.get((repo, ref))
        if verb == "branch":
            self.refs[repo, ref] = self.refs[repo, "main"]
            return reply({})
        if commit is None:
            code = "RevisionNotFound" if repo in self.repos else "RepoNotFound"
            return 404, {"X-Error-Code": code}, b""
        if verb in (None, "revision"):
            return reply(self.info(repo, commit))
        if verb == "tree":
            files = self.repos[repo][commit].items()
            rows = [{"type": "file", "path": n, "size": len(c), "oid": oid(c)} for n, c in files]
            return reply(rows)
        if verb == "preupload":
            asked = [each["path"] for each in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]
            return reply({"files": modes})
        assert verb == "commit", path
        lines = [json.loads(line) for line in body.splitlines()]
        given = {v["path"]: base64.b64decode(v["content"]) for v in values(lines, "file")}
        [header] = values(lines, "header")
        made = self.commit(repo, {**self.repos[repo][commit], **given}, ref, header["summary"])
        url = f"{self.address}/{repo}/commit/{made}"
        return reply({"success": True, "commitOid": made, "commitUrl": url})


def values(lines, key):
    return [line["value"] for line in lines if line["key"] == key]


def oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def reply(content):
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


@pytest.fixture
def hub_server(monkeypatch, tmp_path):
    """A stand-in for the hub on a free port, with empty caches."""
    from huggingface_hub import constants

    stand_in = StandIn()

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_any(self):
            url = urllib.parse.urlsplit(self.path)
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urllib.parse.unquote(url.path)
            stand_in.requests.append(f"{self.command} {path}")
            query = urllib.parse.parse_qs(url.query)
            status, headers, content = stand_in.answer(self.command, path, query, body)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = handle_any

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def stop():
        server.shutdown()
        server.server_close()
        thread.join()

    stand_in.stop, stand_in.address = stop, address
    yield stand_in
    if thread.is_alive():
        stop()


@pytest.fixture
def made(tmp_path, tiny, pool):
    """Two sound artefacts on disk, by name."""
    from vprompt.artifacts import artifact
    from vprompt.models.heads import Head

    folders = {}
    for name in ("birds", "cars"):
        config = artifact.make_config(tiny, pool[name], ("x", "y"), prompt_init=None)
        head = Head(torch.zeros(2, 64), torch.zeros(2))
        made = artifact.Artifact(pool[name], head, torch.zeros(64), config, f"# A card of {name}\n")
        artifact.save(made, tmp_path / "made" / name)
        folders[name] = tmp_path / "made" / name
    return folders


def test_what_is_pushed_is_pulled_again_and_found(hub_server, made, cache):
    from vprompt.artifacts import artifact, hub

    (made["birds"] / "notes.txt").write_text("not for others")
    spec = hub.push(made["birds"], "me/birds", message="First")
    assert spec.startswith("hf-hub:me/birds@") and hub_server.visibility["me/birds"] == "private"
    files = hub_server.repos["me/birds"][spec.partition("@")[2]]
    assert set(files) == {artifact.CONFIG, artifact.TENSORS, artifact.CARD}
    folder = hub.pull("hf-hub:me/birds")
    assert folder.name == "birds" and cache in folder.parents and hub.origin(folder) == spec
    assert {path.name for path in folder.iterdir()} == set(files)
    assert not any(path.is_symlink() for path in folder.iterdir())
    before, after = artifact.load(made["birds"]), artifact.load(folder)
    assert after.digest == before.digest and after.config == before.config
    assert after.card.endswith(before.card) and "backbone:tiny" in after.card
    [found] = hub.find("bird", backbone="tiny")
    assert (found.artifact, found.backbone, found.updated) == (
        "hf-hub:me/birds",
        "tiny",
        "2026-01-02",
    )
    assert hub.find(backbone="demo") == [] and hub.find("cars") == []


def test_what_cannot_be_kept_is_pulled_for_this_process(hub_server, made, tmp_path, monkeypatch):
    from vprompt.artifacts import artifact, hub
    from vprompt.core.errors import CacheWarning

    spec = hub.push(made["birds"], "me/birds")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VPROMPT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(CacheWarning, match="VPROMPT_CACHE"):
        folder = hub.pull("hf-hub:me/birds")
    assert artifact.load(folder).classes == ["x", "y"] and hub.origin(folder) == spec
    assert hub.pull(spec) == folder and folder.name == "birds"


def test_a_branch_has_an_artefact_of_its_own(hub_server, made):
    from vprompt.artifacts import artifact, hub

    first = hub.push(made["birds"], "me/prompt")
    second = hub.push(made["cars"], "me/prompt", revision="v2", private=False)
    assert hub.origin(hub.pull("hf-hub:me/prompt")) == first
    assert hub.origin(hub.pull("hf-hub:me/prompt@v2")) == second
    digest = artifact.load(made["cars"]).digest
    assert artifact.load(hub.pull("hf-hub:me/prompt@v2")).digest == digest
    hub_server.requests.clear()
    assert artifact.load(hub.pull(second)).digest == digest
    assert hub_server.requests == []  # a commit that is here needs no one


def test_only_the_files_of_an_artefact_are_fetched(hub_server, made):
    from vprompt.artifacts import artifact, hub

    files = {path.name: path.read_bytes() for path in made["birds"].iterdir()}
    hub_server.commit("you/odd", {**files, "model.bin": b"pickle", "sub/adapter_config.json": b""})
    folder = hub.pull("hf-hub:you/odd")
    assert {path.name for path in folder.iterdir()} == set(files)
    assert not any("model.bin" in r or "sub/" in r for r in hub_server.requests)
    assert artifact.load(folder).classes == ["x", "y"]


def test_without_a_network_the_last_copy_is_used_and_it_is_said(
    hub_server, made, refused, monkeypatch
):
    from vprompt.artifacts import hub
    from vprompt.core.progress import Progress

    class Heard(Progress):
        def __init__(self):
            self.said = []

        def say(self, text):
            self.said.append(text)

    commit = hub.push(made["birds"], "me/birds").partition("@")[2]
    folder = hub.pull("hf-hub:me/birds")
    hub_server.stop()
    heard, began = Heard(), time.monotonic()
    assert hub.pull("hf-hub:me/birds", progress=heard) == folder
    assert "cannot be reached" in heard.said[0] and commit[:12] in heard.said[0]
    with refused("hf-hub:me/other cannot be fetched", "in the cache", "vprompt share pull"):
        hub.pull("hf-hub:me/other")
    assert time.monotonic() - began < 5  # refused connections are not tried again and again
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.pull("hf-hub:me/birds") == folder
    with refused("cannot be searched", "offline"):
        hub.find("birds")


@pytest.mark.parametrize(
    "spec, words",
    [
        ("hf-hub:me/none", ("hf-hub:me/none", "no such repository")),
        ("hf-hub:me/birds@none", ("no such repository or revision",)),
        ("hf-hub:birds", ("hf-hub:user/name", "hf-hub:birds")),
        ("hf-hub:me/birds/sub", ("hf-hub:user/name",)),
        ("hf-hub:me/..@main", ("hf-hub:user/name",)),
        ("hf-hub:me/birds@../../x", ("hf-hub:user/name",)),
    ],
)
def test_what_is_not_there_is_one_sentence(hub_server, made, spec, words, refused):
    from vprompt.artifacts import hub

    hub.push(made["birds"], "me/birds")
    with refused(*words):
        hub.pull(spec)


def test_a_repository_that_is_no_artefact_leaves_nothing_behind(
    hub_server, made, cache, refused, monkeypatch
):
    from vprompt.artifacts import artifact, fetching, hub

    files = {path.name: path.read_bytes() for path in made["birds"].iterdir()}
    hub_server.commit("you/pickle", {"adapter_model.bin": b"x", artifact.CONFIG: b"{}"})
    with refused("holds no artefact", artifact.TENSORS):
        hub.pull("hf-hub:you/pickle")
    hub_server.commit("you/cut", {**files, artifact.TENSORS: files[artifact.TENSORS][:-9]})
    with refused("refused", "hf-hub:you/cut", "truncated"):
        hub.pull("hf-hub:you/cut")
    monkeypatch.setitem(fetching.LARGEST, artifact.CARD, 3)
    hub_server.requests.clear()
    hub_server.commit("you/large", files)
    with refused("README.md has", "bytes"):
        hub.pull("hf-hub:you/large")
    assert not any("resolve" in each for each in hub_server.requests)
    assert not list((cache / "hub").rglob("*.json"))


def test_only_a_sound_artefact_is_pushed_and_only_where_one_may(hub_server, made, refused):
    from vprompt.artifacts import artifact, hub

    with refused("403|not allowed to", "hf auth login"):
        hub.push(made["cars"], "stranger/cars")
    hub_server.requests.clear()
    (made["birds"] / artifact.TENSORS).write_bytes(b"no")
    with refused("truncated"):
        hub.push(made["birds"], "me/birds")
    with refused("hf-hub:user/name"):
        hub.push(made["cars"], "cars")
    assert hub_server.requests == []


def test_a_pool_and_a_recipe_take_artefacts_of_the_hub(hub_server, made, tmp_path, tiny):
    from vprompt import flow
    from vprompt.artifacts import artifact, hub, pool
    from vprompt.pooling import recipe

    commits = {name: hub.push(folder, f"me/{name}") for name, folder in made.items()}
    assert [entry.name for entry in pool.entries(["hf-hub:me/cars", made["birds"]])] == [
        "birds",
        "cars",
    ]
    path = tmp_path / "recipe.yml"
    models = [
        {
            "model": f"hf-hub:me/{name}",
            "digest": artifact.load(made[name]).digest,
            "parameters": {"weight": weight},
        }
        for name, weight in (("cars", 0.75), ("birds", 0.25))
    ]
    values = {"merge_method": "linear", "models": models, "train": {"epochs": 1}}
    path.write_text(yaml.safe_dump({**values, "target": {"data": "digits", "shots": 2}}))
    arguments = recipe.read(path).arguments()
    assert arguments["method"] == "linear(weights=[0.25, 0.75])"
    outcome = flow.combine(**{**arguments, "model": tiny}, test=False, output=tmp_path / "sum")
    # The card names commits on the hub, not places on this disk, and runs again from them.
    assert [m["model"] for m in outcome.run["replay"]["models"]] == [
        commits["birds"],
        commits["cars"],
    ]
    again = recipe.read(tmp_path / "sum").arguments()
    second = flow.combine(**{**again, "model": tiny}, test=False)
    assert torch.equal(second.artifact.prompt.tokens, outcome.artifact.prompt.tokens)


def test_the_commands_share_an_artefact(hub_server, made, tmp_path, vprompt, fails):
    code, out, _ = vprompt("share", "push", made["birds"], "me/birds", "--public")
    assert code == 0 and out.startswith("hf-hub:me/birds@")
    assert hub_server.visibility["me/birds"] == "public"
    code, out, _ = vprompt("share", "find", "--backbone", "tiny", "--json")
    assert [each["artifact"] for each in json.loads(out)] == ["hf-hub:me/birds"]
    assert "hf-hub:me/birds" in vprompt("share", "find", "bird")[1]
    code, out, _ = vprompt("share", "pull", "hf-hub:me/birds", "--output", tmp_path / "copy", "-q")
    assert code == 0 and out.strip() == str(tmp_path / "copy")
    fails("share", "pull", "hf-hub:me/birds", "--output", tmp_path / "copy", saying=["--overwrite"])
    assert "A card of birds" in vprompt("pool", "show", "hf-hub:me/birds")[1]
    assert "tiny" in vprompt("pool", "ls", "hf-hub:me/birds")[1]
    fails("share", "pull", "hf-hub:me/none", saying=["no such repository"])


@pytest.mark.parametrize(
    "name, base",
    [
        ("vit_base_patch16_224.orig_in21k", "timm/vit_base_patch16_224.orig_in21k"),
        ("hf-hub:org/vit@main", "org/vit"),
        ("demo", None),
        ("vit_base_patch16_224", None),
    ],
)
@pytest.mark.parametrize(
    "card",
    [
        "",
        "# Text\n",
        "---\nlicense: mit\ntags: [mine, vprompt]\n---\n# Text\n",
        "---\n[\n---\n",
        "---\na: 2020-99-99\n---\n",
    ],
)
def test_a_card_is_tagged_for_discovery_and_keeps_what_it_says(name, base, card):
    from vprompt.artifacts import cards

    tagged = cards.tagged(card, {"base_model_name_or_path": name})
    _, head, body = tagged.split("---\n", 2)
    values = yaml.safe_load(head)
    assert values.get("base_model") == base and values["library_name"] == "vprompt"
    assert cards.backbone_of(values["tags"]) == name
    assert values["tags"].count("vprompt") == 1
    assert ("# Text" in card) == ("# Text" in body)
    if "mit" in card:
        assert values["license"] == "mit" and "mine" in values["tags"]
    assert cards.tagged(tagged, {"base_model_name_or_path": name}) == tagged


# A fetch that goes wrong


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "README.md"])
@pytest.mark.parametrize("how", ["cut short", "another digest"])
def test_a_damaged_download_is_refused_and_fetched_anew(
    hub_server, made, refused, monkeypatch, how, name
):
    from pathlib import Path

    import huggingface_hub

    from vprompt.artifacts import artifact, hub

    files = {path.name: path.read_bytes() for path in made["birds"].iterdir()}
    hub_server.commit("you/birds", files)
    whole = huggingface_hub.HfApi.snapshot_download

    def cut(*arguments, **settings):
        folder = Path(whole(*arguments, **settings))
        held = folder / name
        data = held.read_bytes()
        held.resolve().write_bytes(data[:-9] + (data[-9:-1] + b"?") * (how == "another digest"))
        return str(folder)

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.HfApi, "snapshot_download", cut)
        with refused("hf-hub:you/birds", name, f"arrived damaged: {how}"):
            hub.pull("hf-hub:you/birds")
    assert artifact.load(hub.pull("hf-hub:you/birds")).digest == artifact.load(made["birds"]).digest


def test_a_hub_that_sends_on_to_another_host_is_refused(hub_server, made, refused, monkeypatch):
    from vprompt.artifacts import hub

    files = {path.name: path.read_bytes() for path in made["birds"].iterdir()}
    hub_server.commit("you/birds", files)
    answer = hub_server.answer

    def elsewhere(method, path, query, body):
        if "/resolve/" not in path:
            return answer(method, path, query, body)
        _, headers, content = answer(method, path, query, body)
        headers = {**headers, "X-Linked-Etag": headers["ETag"], "X-Linked-Size": len(content)}
        return 302, {**headers, "Location": "http://files.elsewhere.example/x"}, b""

    monkeypatch.setattr(hub_server, "answer", elsewhere)
    with refused("sends on to files.elsewhere.example", "VPROMPT_HUB_HOSTS"):
        hub.pull("hf-hub:you/birds")


def test_a_kept_artefact_that_is_damaged_is_fetched_again(hub_server, made, damage_told):
    from vprompt.artifacts import artifact, hub

    files = {path.name: path.read_bytes() for path in made["birds"].iterdir()}
    hub_server.commit("you/birds", files)
    folder = hub.pull("hf-hub:you/birds")
    data = bytearray((folder / artifact.TENSORS).read_bytes())
    data[-1] ^= 1
    (folder / artifact.TENSORS).write_bytes(bytes(data))
    with damage_told():
        again = hub.pull(f"hf-hub:you/birds@{folder.parent.name}")
    assert again == folder
    assert artifact.load(again).digest == artifact.load(made["birds"]).digest
