"""Serve: every image has its own answer, and everything that is wrong has its own refusal."""

import base64
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import NAMES, Client, png, save_artefact, serving


def until(wanted, seconds=20):
    """Wait for something that a server does by itself."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := wanted():
            return found
        time.sleep(0.02)
    raise AssertionError("it never happened")


def offline(folder, tiny, tmp_path, data):
    from vprompt import predict

    path = tmp_path / "image.png"
    path.write_bytes(data)
    return predict([path], artifact=folder, model=tiny, precision="fp32")[0]


def test_an_answer_is_that_of_predict(client, shelf_folder, tiny, tmp_path):
    data = png(1)
    status, answer = client.send(data, artifact=["birch"])
    [found] = answer["results"]
    wanted = offline(shelf_folder / "birch", tiny, tmp_path, data)
    assert status == 200 and found["artifact"] == "birch" and found["label"] == wanted.label
    assert found["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
    assert found["probability"] == found["probabilities"][found["label"]]


def test_json_says_the_same_as_a_form(client):
    files = [png(seed) for seed in range(3)]
    status, form = client.send(*files, artifact=NAMES)
    pictures = [
        {"image": base64.b64encode(file).decode(), "artifact": name}
        for file, name in zip(files, NAMES, strict=True)
    ]
    kind = {"Content-Type": "application/json"}
    code, _, body = client.ask("POST", "/predict", json.dumps({"images": pictures}), kind)
    assert status == code == 200
    for one, other in zip(form["results"], json.loads(body)["results"], strict=True):
        assert one["label"] == other["label"] and one["artifact"] == other["artifact"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_many_at_once_are_neither_lost_nor_mixed_up(client):
    asked = [(seed, NAMES[seed % 3]) for seed in range(60)]
    alone = {each: client.send(png(each[0]), artifact=[each[1]])[1]["results"][0] for each in asked}
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda each: client.send(png(each[0]), artifact=[each[1]]), asked))
    for each, (status, answer) in zip(asked, found, strict=True):
        [result] = answer["results"]
        assert status == 200 and result["artifact"] == each[1]
        assert result["probabilities"] == pytest.approx(alone[each]["probabilities"], abs=1e-5)
    text = client.ask("GET", "/metrics")[2].decode()
    assert 'vprompt_images_total{artifact="ash",status="200"}' in text
    assert "vprompt_batch_images_count" in text and "vprompt_artifacts 3.0" in text


def test_what_is_wrong_with_one_image_is_its_own(client):
    status, answer = client.send(png(1), b"no image", png(2), artifact=["ash", "ash", "oak"])
    good, broken, unknown = answer["results"]
    assert status == 200 and good["label"] in ("left", "middle", "right")
    assert broken["error"]["status"] == 422 and "cannot be read" in broken["error"]["message"]
    assert unknown["error"]["status"] == 404 and "ash, birch, cedar" in unknown["error"]["message"]


@pytest.mark.parametrize(
    ("files", "names", "status", "words"),
    [
        ([b"no image"], ["ash"], 422, "cannot be read as an image"),
        ([b""], ["ash"], 422, "cannot be read as an image"),
        ([png(1)], ["oak"], 404, "No artefact 'oak' is served"),
        ([png(1)], [], 400, "Name an artefact"),
        ([png(1), png(2), png(3)], ["ash", "birch"], 400, "3 images and 2 times"),
        ([], ["ash"], 400, "no file called `images`"),
    ],
)
def test_a_request_in_which_nothing_is_right_has_a_status(client, files, names, status, words):
    code, answer = client.send(*files, artifact=names)
    assert code == status and words in answer["detail"]


@pytest.mark.parametrize(
    ("kind", "body", "status", "words"),
    [
        ("application/json", "{}", 400, "images: Field required"),
        ("application/json", "[", 400, "The JSON is"),
        ("application/json", '{"images": [{"image": "?", "artifact": "ash"}]}', 422, "cannot be"),
        ("text/plain", "hello", 415, "multipart/form-data or application/json"),
    ],
)
def test_other_bodies_are_refused(client, kind, body, status, words):
    code, _, answer = client.ask("POST", "/predict", body, {"Content-Type": kind})
    assert code == status and words in json.loads(answer)["detail"]


def test_artefacts_health_and_openapi_are_there(client):
    rows = client.json("/artifacts")
    assert [row["name"] for row in rows] == list(NAMES)
    assert rows[0]["tokens"] == 2 and rows[0]["classes"] == ["left", "middle", "right"]
    assert rows[0]["test_accuracy"] == 0.875 and not any(row["problem"] for row in rows)
    assert client.json("/health")["status"] == "ok"
    spec = client.json("/openapi.json")
    assert set(spec["paths"]["/predict"]["post"]["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/json",
    }
    assert client.ask("GET", "/docs")[0] == 404  # its page would fetch from elsewhere


def test_bodies_and_images_have_a_limit(shelf_folder, tiny):
    small = {"body_mib": 0.02, "megapixels": 0.002}
    with serving([shelf_folder], tiny, limits=small) as client:
        code, answer = client.send(png(1, (100, 90)), artifact=["ash"])
        assert code == 413 and "0.02 MiB" in answer["detail"]
        # Without a length: in chunks.
        kind = {"Content-Type": "application/json"}
        code, _, _ = client.ask("POST", "/predict", iter([b"x" * 20000] * 3), kind)
        assert code == 413
        code, answer = client.send(png(1, (60, 40)), artifact=["ash"])
        assert code == 413 and "60" in answer["detail"] and "megapixels" in answer["detail"]
        assert client.send(png(1), artifact=["ash"])[0] == 200


def test_a_token_is_asked_for(shelf_folder, tiny):
    with serving([shelf_folder], tiny, token="secret") as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            code, answer = client.send(png(1), artifact=["ash"], headers=headers)
            assert code == 401 and "Authorization" in answer["detail"]
        assert client.ask("GET", "/artifacts")[0] == 401
        assert client.ask("GET", "/health")[0] == 200
        right = {"Authorization": "Bearer secret"}
        assert client.send(png(1), artifact=["ash"], headers=right)[0] == 200


def test_another_host_name_is_refused(shelf_folder, tiny):
    with serving([shelf_folder], tiny, hosts=["127.0.0.1"]) as client:
        assert client.ask("GET", "/health")[0] == 200
        assert client.ask("GET", "/health", headers={"Host": "evil.example"})[0] == 400


@pytest.fixture
def held(shelf_folder, tiny, monkeypatch):
    """A server whose model waits for `go`, and takes three images at a time."""
    from vprompt.inference.serving import PromptServer

    go, logits = threading.Event(), PromptServer.logits

    def slow(self, *given, **more):
        go.wait(20)
        return logits(self, *given, **more)

    monkeypatch.setattr(PromptServer, "logits", slow)
    with serving([shelf_folder], tiny, limits={"queue": 3, "seconds": 1.0}) as client:
        client.go = go
        yield client
        go.set()


def test_two_batches_are_computed_at_once_on_half_of_the_cores_each(shelf_folder, tiny):
    import numpy as np
    import torch

    from vprompt.inference.serving import PromptServer, serve
    from vprompt.web.gathering import Gatherer
    from vprompt.web.limits import Limits

    there, cores = threading.Barrier(2, timeout=20), []

    class Both(PromptServer):
        def logits(self, *given, **more):
            cores.append(torch.get_num_threads())
            there.wait()  # one batch alone would get no further
            return super().logits(*given, **more)

    places = [shelf_folder / name for name in NAMES[:2]]
    server = Both(tiny, serve(places, model=tiny).artifacts)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gatherer = Gatherer(lambda: server, Limits(batch_size=1))
        pixels = np.zeros((*tiny.data_config.input_size[1:], 3), np.uint8)
        answers = [gatherer.submit(pixels, str(place)) for place in places]
        found = [each.result(20).artifact for each in answers]
        gatherer.close()
        assert found == [str(place) for place in places] and cores == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_full_queue_is_429_and_a_late_answer_504(held):
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(held.send, png(1), artifact=["ash"]) for _ in range(3)]
        until(lambda: held.app.state.service.inside == 3)
        code, answer = held.send(png(1), artifact=["ash"])
        assert code == 429 and held.headers["Retry-After"] == "1" and "wait" in answer["detail"]
        assert {each.result()[0] for each in waiting} == {504}
    held.go.set()
    until(lambda: held.send(png(1), artifact=["ash"])[0] == 200)
    code, answer = held.send(*[png(1)] * 4, artifact=["ash"])
    assert code in (400, 413)


def test_a_client_that_is_gone_leaves_no_work_behind(held):
    body = json.dumps({"images": [{"image": base64.b64encode(png(1)).decode(), "artifact": "ash"}]})
    host, port = held.host.split(":")
    service = held.app.state.service
    with socket.create_connection((host, int(port))) as line:
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        until(lambda: service.inside == 1)
    until(lambda: service.inside == 0)
    held.go.set()
    until(lambda: held.send(png(1), artifact=["ash"])[0] == 200)


def test_folders_that_change_are_read_again(own_pool, tiny):
    with serving([own_pool], tiny) as client:
        before = client.send(png(1), artifact=["ash"])[1]["results"][0]
        save_artefact(tiny, own_pool / "ash", 7, classes=("up", "down"))
        after = until(
            lambda: (
                (found := client.send(png(1), artifact=["ash"])[1]["results"][0])["label"]
                in ("up", "down")
                and found
            )
        )
        assert before["label"] not in after["probabilities"]
        save_artefact(tiny, own_pool / "elm", 8)
        until(lambda: client.send(png(1), artifact=["elm"])[0] == 200)
        (own_pool / "birch" / "adapter_model.safetensors").write_bytes(b"broken")
        until(lambda: any("birch" in text for text in client.said))
        [row] = [row for row in client.json("/artifacts") if row["name"] == "birch"]
        assert "goes on" in row["problem"]
        assert client.send(png(1), artifact=["birch"])[0] == 200
        shutil.rmtree(own_pool / "cedar")
        until(lambda: client.send(png(1), artifact=["cedar"])[0] == 404)
        assert {"ash: read again", "elm: added", "cedar: gone"} <= set(client.said)


def test_an_image_that_waits_is_answered_before_the_end(held):
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(held.send, png(1), artifact=["ash"])
        until(lambda: held.app.state.service.inside == 1)
        held.server.should_exit = True
        time.sleep(0.2)
        held.go.set()
        assert waiting.result()[0] == 200


def test_a_pool_without_an_artefact_to_serve_is_a_sentence(tmp_path, tiny, own_pool, refused):
    from vprompt.web.shelf import Shelf

    (tmp_path / "empty").mkdir()
    with refused("holds no artefact folders"):
        Shelf([tmp_path / "empty"], model=tiny)
    for name in NAMES:
        (own_pool / name / "adapter_config.json").write_text("{}")
    with refused("no artefact to serve", "not a visual prompt"):
        Shelf([own_pool], model=tiny)


def test_a_port_in_use_is_a_sentence(client, refused):
    from vprompt.web.listening import bind

    with refused("Cannot listen", "--port"):
        bind("127.0.0.1", int(client.host.split(":")[1]))


@pytest.mark.parametrize("option", ["--queue", "--body-mib", "--seconds"])
def test_a_limit_that_lets_nothing_through_is_refused(shelf_folder, fails, option):
    fails("serve", shelf_folder, option, "0", saying=[option, "above 0"])


def test_the_command_serves_until_it_is_told_to_stop(shelf_folder):
    words = [sys.executable, "-m", "vprompt", "serve", str(shelf_folder), "--port", "0", "-q"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as run:
        try:
            line = run.stdout.readline()
            assert line.startswith("3 artefacts at http://127.0.0.1:")
            assert Client(line.split()[-1]).send(png(1), artifact=["ash"])[0] == 200
            run.send_signal(signal.SIGTERM)
            assert run.wait(120) == 0
        finally:
            run.kill()
