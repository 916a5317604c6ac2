"""The search page under load: clients on loopback send one query after the other to a real server process.

    python -m benchmarks.serve_load --index DIR --captions CAPTIONS.txt [--init_model CKPT] [--clients 8] [--seconds 60]
        [--output FILE.md]

The server is `python -m scripts.serve` on a free port. A client opens a connection, sends POST /api/search with a
random caption, reads the whole answer, and sends the next one; every answer must have status 200 and the requested
number of hits. The time of a request ends when its answer has been read, and so includes waiting for the model, which
serves one search at a time. Clients and server share the machine's cores.
"""

import argparse
import csv
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.reporting import header, publish

START_SECONDS = 300
TOP = 10


@dataclass
class Client:
    """One connection, with the `seconds` of every answered request and the errors of the others."""

    port: int
    captions: list[str]
    hits: int  # required in every answer
    choose: random.Random
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def ask_until(self, end: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while time.perf_counter() < end:
            started = time.perf_counter()
            try:
                error = self.ask(connection)
            except (OSError, http.client.HTTPException, ValueError) as failure:
                error = repr(failure)
                connection.close()
            if error:
                self.errors.append(error)
            else:
                self.seconds.append(time.perf_counter() - started)
        connection.close()

    def ask(self, connection: http.client.HTTPConnection) -> str:
        """Send one query and return the error of its answer, or an empty string."""
        body = json.dumps({"text": self.choose.choice(self.captions), "top": TOP})
        connection.request("POST", "/api/search", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            return f"status {response.status}: {content[:200]!r}"
        found = len(json.loads(content)["hits"])
        return "" if found == self.hits else f"{found} hits instead of {self.hits}"


class Server:
    """`python -m scripts.serve` on a free port of this machine, ended by Ctrl-C."""

    def __init__(self, arguments: list[str]):
        command = [sys.executable, "-m", "scripts.serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Server":
        timer = threading.Timer(START_SECONDS, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        if found is None:
            self.process.kill()
            self.process.wait()
            raise OSError(f"the server did not start within {START_SECONDS} s: {line!r}")
        self.port = int(found[1])
        return self

    def __exit__(self, *_) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def memory(self) -> float:
        """Return the resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1]) / 1024

    def videos(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/api/about")
        videos = json.loads(connection.getresponse().read())["videos"]
        connection.close()
        return videos


def run_clients(clients: list[Client], seconds: float) -> float:
    """Run all clients for this long; return the seconds until the last answer."""
    started = time.perf_counter()
    threads = [threading.Thread(target=client.ask_until, args=(started + seconds,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def table(clients: list[Client], videos: int, elapsed: float, memory: tuple[float, float]) -> list[str]:
    """Return Markdown lines of the figures, and of each error with its count."""
    times = sorted(second for client in clients for second in client.seconds)
    errors = [error for client in clients for error in client.errors]
    percentiles = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else [float("nan")] * 99
    p50, p95, p99 = (f"{percentiles[number - 1] * 1e3:.1f}" for number in (50, 95, 99))
    worst = f"{times[-1] * 1e3:.1f}" if times else "nan"
    return [
        "| clients | videos | seconds | answers | errors | answers/s | p50 ms | p95 ms | p99 ms | most ms "
        "| server MiB at the start | at the end |",
        "|" + "---:|" * 12,
        f"| {len(clients)} | {videos} | {elapsed:.1f} | {len(times)} | {len(errors)} | {len(times) / elapsed:.1f} "
        f"| {p50} | {p95} | {p99} | {worst} | {memory[0]:.0f} | {memory[1]:.0f} |",
        *(f"\n{errors.count(error)} times: {error}" for error in sorted(set(errors))),
    ]


def read_captions(path: Path) -> list[str]:
    """Return the captions of a text file, one per line, or of a csv file's column `sentence`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".csv":
        lines = [row["sentence"] for row in csv.DictReader(lines)]
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise ValueError(f"--captions {path} has no caption")
    return captions


def main(arguments: list[str] | None = None) -> list[Client]:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="a caption per line, or a csv with `sentence`")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warmup_seconds", type=float, default=3, help="of one client, before the measurement")
    parser.add_argument("--output", type=Path, help="also write the report to this Markdown file")
    args, server_arguments = parser.parse_known_args(arguments)  # --index, --init_model and others of scripts.serve
    captions = read_captions(args.captions)
    with Server(server_arguments) as server:
        videos = server.videos()

        def client(seed: int) -> Client:
            return Client(server.port, captions, min(TOP, videos), random.Random(seed))

        run_clients([client(args.clients)], args.warmup_seconds)
        before = server.memory()
        clients = [client(seed) for seed in range(args.clients)]
        elapsed = run_clients(clients, args.seconds)
        lines = table(clients, videos, elapsed, (before, server.memory()))
    remark = f"load {os.getloadavg()[0]:.1f} at the end, clients included"
    publish("\n".join([header("serve_load", arguments, remark), *lines]), args.output)
    return clients


if __name__ == "__main__":
    main()
