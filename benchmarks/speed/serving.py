"""Load: `vprompt serve` under many clients, held against the offline `predict` of this machine.

Thirty-two clients keep a connection each and send one image a request, each with one of sixteen
artefacts of one backbone; every answer is compared with the one that `predict` gave offline. Both
begin with files on a disk and decode them. The prompts are random: nothing here depends on them.

    python -m benchmarks speed.serving --output benchmarks/results/serving.json
    python -m benchmarks speed.serving --backbone tiny --requests 300   # to see that it runs
"""

import csv
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import new_parser
from vprompt import open_backbone, predict_table
from vprompt.artifacts.artifact import Artifact, make_config, save
from vprompt.models.heads import Head
from vprompt.prompts.prompt import Prompt, place
from vprompt.results.runs import describe_machine

CLASSES, TOKENS = 10, 10
FIFTHS = 5
NEAR = 0.01  # between probabilities in bf16; docs/concepts.md


def main() -> None:
    """Measure, print and write."""
    parser = new_parser(__doc__)
    parser.add_argument("--backbone", default="demo")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--artifacts", type=int, default=16)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--images", type=int, default=256, help="different ones")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(given, Path(folder))
    print(json.dumps(found, indent=2))
    if given.output:
        given.output.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


def run(given, folder):
    """Return everything that was measured."""
    backbone = open_backbone(given.backbone, device="cpu")
    names = [f"a{index:02d}" for index in range(given.artifacts)]
    for seed, name in enumerate(names):
        write_artefact(backbone, folder / "pool" / name, seed)
    files = write_images(folder / "images", given.images)
    pairs = [(row % len(files), names[row * 7 % len(names)]) for row in range(given.requests)]
    wanted, offline, batch_seconds = measure_offline(given, backbone, folder, files, pairs)
    served = measure_server(given, folder, files, pairs, wanted)
    return {
        "backbone": given.backbone,
        "clients": given.clients,
        "artifacts": given.artifacts,
        "requests": given.requests,
        "batch_size": given.batch_size,
        "offline_images_per_second": offline,
        "seconds_of_a_full_batch": batch_seconds,
        **served,
        "share_of_offline": served["images_per_second"] / offline,
        "p99_in_full_batches": served["p99_seconds"] / batch_seconds,
        "load_average": os.getloadavg(),
        "machine": describe_machine(torch.device("cpu"), "auto"),
    }


def write_artefact(backbone, folder, seed):
    """Write an artefact with a random deep prompt."""
    randomness = torch.Generator().manual_seed(seed)
    blocks = place(TOKENS, backbone.depth, deep=True)
    prompt = Prompt(torch.randn(len(blocks), backbone.dim, generator=randomness), blocks, False)
    head = Head(
        torch.randn(CLASSES, backbone.feature_dim, generator=randomness), torch.zeros(CLASSES)
    )
    classes = tuple(f"class {label}" for label in range(CLASSES))
    config = make_config(backbone, prompt, classes, None, head)
    save(Artifact(prompt, head, torch.zeros(backbone.feature_dim), config), folder)


def write_images(folder, count):
    """Write smooth random pictures and return their files."""
    folder.mkdir()
    rng, files = np.random.default_rng(0), []
    for row in range(count):
        small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        files.append(folder / f"{row:04d}.jpg")
        Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(files[-1])
    return files


def measure_offline(given, backbone, folder, files, pairs):
    """Return what `predict` says of every pair, images a second, and the time of a full batch."""
    # Links, so that every request is an image of its own and none is known from before.
    table = folder / "all.csv"
    (folder / "links").mkdir()
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "artifact"])
        for row, (image, name) in enumerate(pairs):
            link = folder / "links" / f"{row:05d}.jpg"
            os.link(files[image], link)
            writer.writerow([f"links/{link.name}", f"pool/{name}"])
    os.environ["VPROMPT_CACHE"] = str(folder / "cache")
    predict_table(first_rows(table, folder, 64), model=backbone, batch_size=given.batch_size)
    began = time.perf_counter()
    found = predict_table(table, model=backbone, batch_size=given.batch_size)
    seconds = time.perf_counter() - began
    answers = {pair: one.probabilities for pair, one in zip(pairs, found, strict=True)}
    return answers, len(pairs) / seconds, full_batch(given, backbone, folder)


def first_rows(table, folder, count):
    """Return a table of the first rows of another."""
    short = folder / "some.csv"
    short.write_text("".join(table.read_text().splitlines(keepends=True)[: count + 1]))
    return short


def full_batch(given, backbone, folder):
    """Return the least time of a few full batches, all artefacts in each."""
    from vprompt import serve

    places = sorted((folder / "pool").iterdir())
    server = serve(places, model=backbone)
    names = [str(places[row % len(places)]) for row in range(given.batch_size)]
    _, height, width = backbone.data_config.input_size
    images = torch.zeros(given.batch_size, 3, height, width)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        server.logits(images, names)
        times.append(time.perf_counter() - began)
    return min(times)


def measure_server(given, folder, files, pairs, wanted):
    """Return what the clients saw."""
    command = [sys.executable, "-m", "vprompt", "serve", str(folder / "pool"), "--port", "0", "-q"]
    command += ["--model", given.backbone, "--device", "cpu"]
    command += ["--batch-size", str(given.batch_size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            host = server.stdout.readline().split("//")[-1].strip()
            bodies = [file.read_bytes() for file in files]
            warm = ask_all(given.clients, host, bodies, pairs[: max(given.clients * 4, 100)])
            memory, results, seconds = [resident(server.pid)], [], 0.0
            for part in np.array_split(np.arange(len(pairs)), FIFTHS):
                began = time.perf_counter()
                results += ask_all(given.clients, host, bodies, [pairs[row] for row in part])
                seconds += time.perf_counter() - began
                memory.append(resident(server.pid))
        finally:
            server.terminate()
    del warm
    times = sorted(taken for _, _, taken in results)
    lost = sum(answer is None for _, answer, _ in results)
    mixed = sum(
        answer is not None and not same(answer, pair, wanted[pair]) for pair, answer, _ in results
    )
    return {
        "images_per_second": len(pairs) / seconds,
        "p50_seconds": times[len(times) // 2],
        "p99_seconds": times[int(0.99 * (len(times) - 1))],
        "lost": lost,
        "mixed_up": mixed,
        "resident_mib": memory,  # warm, and after every fifth of the requests
        "stopped_with": server.returncode,
    }


def ask_all(clients, host, bodies, pairs):
    """Return pair, answer and seconds of every request; a client keeps its connection."""
    local = threading.local()

    def ask(pair):
        if not hasattr(local, "line"):
            local.line = http.client.HTTPConnection(host, timeout=60)
        image, name = pair
        edge = uuid.uuid4().hex
        head = 'Content-Disposition: form-data; name="{}"{}\r\n\r\n'
        body = f"--{edge}\r\n{head.format('artifact', '')}{name}\r\n--{edge}\r\n".encode()
        body += head.format("images", '; filename="a.jpg"').encode() + bodies[image]
        body += f"\r\n--{edge}--\r\n".encode()
        began = time.perf_counter()
        try:
            kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
            local.line.request("POST", "/predict", body, kind)
            answer = local.line.getresponse()
            found = json.loads(answer.read())["results"][0] if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            local.line.close()
            found = None
        return pair, found, time.perf_counter() - began

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(ask, pairs))


def same(answer, pair, wanted):
    """Say whether an answer is the one that `predict` gave for this image and artefact."""
    near = all(abs(answer["probabilities"][label] - p) < NEAR for label, p in wanted.items())
    return answer["artifact"] == pair[1] and near


def resident(pid):
    """Return the memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return None


if __name__ == "__main__":
    main()
