"""Clusters: Ray started here for real, with a host that dies, and as two hosts of their own.

Skipped, with the reason, where Ray is missing or the machine refuses what is needed. Whatever is
started here is ended by its process id.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from grid import RECIPE, add, on_node, plain, run_grid, serial, task

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed: pip install 'vprompt[ray]'",
    ),
]
SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    """A head and one more node, each with one processor; processes of this machine."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # for `grid`
        try:
            head = SMALL | {"include_dashboard": False}
            made = Cluster(initialize_head=True, head_node_args=head)
        except Exception as error:
            pytest.skip(f"Ray does not start here: {type(error).__name__}: {error}")
        yield made
        made.shutdown()


@pytest.fixture
def second(cluster):
    """A node beside the head, which a test may kill."""
    node = cluster.add_node(**SMALL)
    cluster.wait_for_nodes()
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node, allow_graceful=False)


def test_calls_of_a_node_that_dies_are_run_elsewhere(cluster, second, tmp_path):
    """Both nodes are at work when one is killed; all answers come, also to what needs them."""
    from vprompt.bench.calls import Call
    from vprompt.bench.executors import build

    calls = [Call(f"{i}", on_node, (tmp_path, i, second.node_id)) for i in range(4)]
    calls += [Call("sum", add, (), tuple(call.key for call in calls))]
    with contextlib.closing(build("ray", address=cluster.address).run(calls)) as answers:
        found = dict([next(answers)])  # of the head, so a call waits on the other node
        cluster.remove_node(second, allow_graceful=False)
        found |= dict(answers)
    assert found == {"0": 0, "1": 1, "2": 2, "3": 3, "sum": 6}
    [victim] = tmp_path.glob("* waits")
    assert len(list(tmp_path.glob(f"{victim.name.split()[0]} began*"))) == 2


class Killer:
    """Progress that kills a node when the first result has come."""

    def __init__(self, kill):
        self.kill, self.said = kill, []

    @contextlib.contextmanager
    def step(self, description, total):
        yield self

    def advance(self, amount=1, note=""):
        pass

    def say(self, text):
        self.said.append(text)
        if len(self.said) == 1:
            self.kill()


def test_a_benchmark_survives_the_death_of_a_node(cluster, second, tmp_path):
    from vprompt.bench.executors import build

    killer = Killer(lambda: cluster.remove_node(second, allow_graceful=False))
    report, records = run_grid(tmp_path, build("ray", address=cluster.address), progress=killer)
    assert len(report.done) == 6 and not (report.failed or report.lost or report.waiting)
    assert plain(records) == serial()


def test_what_no_host_can_hold_is_refused(cluster, refused):
    from vprompt.bench.executors import build

    with refused("No host of the cluster has 64 CPUs and 0 GPUs"):
        next(build("ray", num_cpus=64, address=cluster.address).run([]))
    with refused("would join any cluster"):
        next(build("ray", address="auto").run([]))
    with refused("a cluster's size is its own"):
        next(build("ray", workers=2, address=cluster.address).run([]))


# Two hosts


class Hosts:
    """Two network namespaces with a cable between them: two hosts on one computer."""

    def __init__(self):
        number = os.getpid() % 10000
        self.names, self.cable = (f"vpA{number}", f"vpB{number}"), (f"ve{number}a", f"ve{number}b")
        self.addresses = ("10.77.0.1", "10.77.0.2")

    def start(self):
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.cable[0], "type", "veth", "peer", "name", self.cable[1])
        for name, end, address in zip(self.names, self.cable, self.addresses, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", end, "up")

    def run(self, host, *words, seconds=500, **environment):
        command = ["ip", "netns", "exec", self.names[host], *map(str, words)]
        # Where this computer holds a token from an earlier run, Ray's head would ask for it by
        # itself, and a host that joins would not know.
        ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(
            command,
            env={**os.environ, **ray, **environment},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self):
        """End the processes of these hosts alone; some outlive a first request."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for name in self.names:
                for pid in ip("netns", "pids", name, check=False).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), sent)
            time.sleep(2 if sent == signal.SIGTERM else 0)
        for name in self.names:
            ip("netns", "del", name, check=False)


def ip(*words, check=True):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise OSError(done.stderr.strip())
    return done.stdout


@pytest.fixture
def hosts():
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` command (iproute2) to make network namespaces with")
    made = Hosts()
    try:
        made.start()
    except OSError as error:
        made.stop()
        pytest.skip(f"network namespaces are refused here: {error}")
    yield made
    made.stop()


def test_two_hosts_share_a_benchmark(hosts, tmp_path, monkeypatch):
    """Each has its own address and cache; both work, and the results are the serial ones."""
    monkeypatch.delenv("VPROMPT_CACHE")
    recipe = RECIPE | {"tasks": [task("location"), task("orientation")]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1"]
    ray += ["--object-store-memory=83886080", "--disable-usage-stats"]
    caches = [tmp_path / f"cache{host}" for host in range(2)]
    # Ray's sockets lie below this folder, and their paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="vp") as short:
        hosts.run(
            0,
            *(*ray, "--head", "--node-ip-address=10.77.0.1", "--port=6399"),
            *("--include-dashboard=false", f"--temp-dir={short}"),
            VPROMPT_CACHE=str(caches[0]),
        )
        hosts.run(
            1,
            *(*ray, "--address=10.77.0.1:6399", "--node-ip-address=10.77.0.2"),
            VPROMPT_CACHE=str(caches[1]),
        )
        said = hosts.run(
            0,
            *(sys.executable, "-m", "vprompt", "bench", "run", tmp_path / "recipe.yaml", "-q"),
            *("--output", tmp_path / "out", "--device", "cpu", "--only", "HGPrompt"),
            *("--executor", "ray", "--address", "10.77.0.1:6399"),
        )
        hosts.stop()
    assert "4 runs done" in said  # two sources, and each combined for the other's target
    assert all(list(cache.rglob("*.safetensors")) for cache in caches), "one host did nothing"
    found = plain(read(tmp_path / "out"))
    assert found == {key: serial()[key] for key in found} and len(found) == 4


def read(folder):
    from vprompt.bench.store import Store

    store = Store(Path(folder))
    return {key: store.read(key) for key in store.finished()}
