"""The server as a process: an index of real videos, made and served by the commands, and the errors of its flags."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from benchmarks import serve_load
from scripts import index as index_videos
from scripts import serve
from scripts.miniature.tiny_clip import tiny_clip_state_dict
from tests.helpers.launch import REPOSITORY, run_python
from tests.helpers.web_cases import write_clip

pytest.importorskip("fastapi")

VIDEOS = 12


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """Of 12 videos in `videos/` beside it, by a CLIP of width 32."""
    folder = tmp_path_factory.mktemp("serve")
    weights = tiny_clip_state_dict(
        embed_dim=32, vision_width=32, vision_layers=1, patch_size=16, image_size=32, text_width=32, text_layers=1
    )
    torch.save(weights, folder / "clip.pt")
    for seed in range(VIDEOS):
        write_clip(folder / "videos" / f"clip{seed:02}.mp4", seed)
    made = run_python(
        "-m", "scripts.index", folder / "videos", "--index", folder / "index",
        "--pretrained_clip_name", folder / "clip.pt", "--max_frames", "3", "--num_workers", "0",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return folder / "index"


class Server:
    """`python -m scripts.serve` on a free port."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scripts.serve", "--port", "0", *map(str, arguments)],
            cwd=REPOSITORY, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> "Server":
        self.line = self.process.stdout.readline()
        self.port = int(re.search(r":(\d+)/", self.line)[1])
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def ask(self, method: str, address: str, body: str | None = None, **headers) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, address, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        content = response.status, response.read()
        connection.close()
        return content

    def end(self, signal_number: int) -> tuple[int, str]:
        """The exit code and what was written to stderr."""
        self.process.send_signal(signal_number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


def test_from_videos_to_an_answer(index):
    with Server("--index", index) as server:
        assert server.line == f"serve: 12 videos at http://127.0.0.1:{server.port}/ ; Ctrl-C ends it\n"
        status, content = server.ask("POST", "/api/search", json.dumps({"text": "a red circle", "top": 5}))
        hits = json.loads(content)["hits"]
        assert (status, len(hits)) == (200, 5)
        assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
        assert all(len(hit["moments"]) == 3 for hit in hits)
        first = hits[0]
        status, video = server.ask("GET", f"/video/{first['video']}")
        assert (status, video) == (200, (index.parent / "videos" / first["name"]).read_bytes())
        assert server.ask("GET", f"/frame/{first['video']}/2.jpg")[1][:3] == b"\xff\xd8\xff"
        similar = json.loads(server.ask("GET", f"/api/similar?video={first['video']}&top=11")[1])
        assert len(similar["hits"]) == 11
        assert first["name"] not in [hit["name"] for hit in similar["hits"]]
        example = server.ask("POST", "/api/example?top=1", video, **{"Content-Type": "application/octet-stream"})
        assert json.loads(example[1])["hits"][0]["name"] == first["name"]  # nothing is more like it than itself
        assert server.ask("GET", "/api/about", Host="evil.example")[0] == 400
        assert server.end(signal.SIGINT) == (0, "")


def test_an_update_of_the_index_is_seen_without_losing_a_request(index, tmp_path):
    shutil.copytree(index.parent / "videos", tmp_path / "videos", copy_function=shutil.copy2)
    shutil.copytree(index, tmp_path / "index")
    update = [str(tmp_path / "videos"), "--index", str(tmp_path / "index"), "--num_workers", "0", "--moved"]
    index_videos.main(update)
    answers, is_updated = [], threading.Event()
    with Server("--index", tmp_path / "index") as server:

        def search() -> None:
            body = json.dumps({"text": "a red circle", "top": 20})
            is_last = False
            while not is_last:
                is_last = is_updated.is_set()
                status, content = server.ask("POST", "/api/search", body)
                answers.append((status, json.loads(content)))

        searching = threading.Thread(target=search, daemon=True)
        searching.start()
        write_clip(tmp_path / "videos" / "new.mp4", 99)
        (tmp_path / "videos" / "clip03.mp4").unlink()
        index_videos.main(update)
        is_updated.set()
        searching.join(30)
        assert {status for status, _ in answers} == {200}
        names = {hit["name"] for hit in answers[-1][1]["hits"]}
        assert "new.mp4" in names and "clip03.mp4" not in names
        assert {hit["name"] for hit in answers[0][1]["hits"]} ^ names == {"new.mp4", "clip03.mp4"}
        (new,) = [hit["video"] for hit in answers[-1][1]["hits"] if hit["name"] == "new.mp4"]
        assert server.ask("GET", f"/video/{new}")[0] == 200


def test_a_server_without_standard_streams(index):
    """As some daemons start programs: its port cannot be read from its output."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    command = [sys.executable, "-m", "scripts.serve", "--index", str(index), "--port", str(port)]
    close_streams = "import os, sys; [os.close(number) for number in range(3)]; os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", close_streams, *command], cwd=REPOSITORY)
    server = Server.__new__(Server)
    server.process, server.port = process, port
    try:
        for _ in range(300):
            with contextlib.suppress(ConnectionError):
                assert server.ask("GET", "/api/about")[0] == 200
                break
            assert process.poll() is None
            time.sleep(0.1)
        else:
            pytest.fail("the server does not answer")
        body = (index.parent / "videos" / "clip00.mp4").read_bytes()
        answer = server.ask("POST", "/api/example", body, **{"Content-Type": "application/octet-stream"})
        assert answer[0] == 200
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_public_host_is_warned_of(index):
    with Server("--index", index, "--host", "0.0.0.0", "--allowed_hosts", "search.example") as server:
        printed = re.findall(rf"http://(\S+):{server.port}/", server.line)
        assert printed[0] == "127.0.0.1" and "0.0.0.0" not in printed
        asked = dict.fromkeys(("search.example", "192.168.7.7:9000", socket.gethostname(), *printed), 200)
        for host, status in {**asked, "evil.example": 400}.items():
            assert server.ask("GET", "/api/about", Host=host)[0] == status
        _, errors = server.end(signal.SIGTERM)
        assert "WARNING" in errors and "no passwords" in errors
        assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "hosts"), [("127.0.0.1", ["127.0.0.1"]), ("::1", ["::1"]), ("search.example", ["search.example"])]
)
def test_the_printed_host_is_the_one_that_was_given(host, hosts):
    assert serve.reachable_hosts(host) == hosts


def test_all_addresses_stand_for_those_of_this_machine():
    assert serve.reachable_hosts("0.0.0.0")[0] == "127.0.0.1"
    assert serve.reachable_hosts("::")[:2] == ["127.0.0.1", "::1"]


def test_load(index, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "captions.csv").write_text("key,sentence\n1,a red circle\n2,a blue star\n")
    flags = ["--captions", str(tmp_path / "captions.csv"), "--clients", "2", "--seconds", "1", "--index", str(index)]
    clients = serve_load.main([*flags, "--warmup_seconds", "0.1"])
    assert [client.errors for client in clients] == [[], []]
    assert all(client.seconds for client in clients)
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert (row[0], row[1], row[4]) == ("| 2", "12", "0")
    assert int(row[3]) == sum(len(client.seconds) for client in clients)


# ---- Errors ----


def failure(*arguments) -> str:
    with pytest.raises(SystemExit) as raised:
        serve.main(list(map(str, arguments)))
    return str(raised.value)


def test_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = failure("--index", tmp_path, "--port", port)
    assert message == (
        f"serve: cannot listen on 127.0.0.1:{port}: Address already in use; choose another --host or --port"
    )


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--port", "65536"], "--port 65536 must be from 0 to 65535"),
        (["--max_upload_mb", "0"], "--max_upload_mb 0 must be at least 1"),
        (["--allowed_hosts", "*"], "--allowed_hosts * must be a name or an address"),
        (["--allowed_hosts", "http://a"], "--allowed_hosts http://a must be a name or an address"),
        (["--media_root", "no/such/folder"], "--media_root no/such/folder is not a folder"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid:8000: "),
    ],
)
def test_bad_flags(tmp_path, flags, reason):
    message = failure("--index", tmp_path, *flags)
    assert message.startswith(f"serve: {reason}")
    assert "\n" not in message


def test_no_index(tmp_path):
    message = failure("--index", tmp_path / "nothing", "--port", "0")
    assert message.startswith("serve: ") and str(tmp_path / "nothing") in message


def test_without_the_framework(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert failure("--index", tmp_path) == "serve: uvicorn is not installed: pip install fastapi uvicorn cachetools"


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("192.168.1.5", False), ("search.example", False)],
)  # fmt: skip
def test_loopback(host, is_local):
    assert serve.is_loopback(host) == is_local
