"""Small files that would take gigabytes, or hours: each is refused at once, in a process whose memory is limited."""

import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

GIGABYTE = 1 << 30
SECONDS = 30
READ = """
    import json, os, resource, signal, sys, warnings
    from pathlib import Path
    from dataloaders.annotation_files import read_csv, read_json, read_lines
    from dataloaders.dataloader_msvd_retrieval import read_captions
    from modules.checkpoint import load_optimizer
    from modules.state_dicts import read_state_dict

    READERS = {
        "weights": read_state_dict,
        "optimizer": lambda path: load_optimizer(path, None),
        "captions": read_captions,
        "json": lambda path: read_json(path, "--data_path", dict),
        "csv": lambda path: read_csv(path, "--data_path", ["video_id"]),
        "lines": lambda path: read_lines(path, "--data_path"),
    }

    def read(reader, path):
        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + (2 << 30),) * 2)
        signal.alarm(int(sys.argv[1]))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            READERS[reader](Path(path))
            answer = "it was read"
        except Exception as error:
            answer = f"{', '.join(kind.__name__ for kind in type(error).__mro__)}: {error}"
        return answer, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10

    warnings.simplefilter("ignore")
    for name, reader, path in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            print(json.dumps([name, *read(reader, path)]), flush=True)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status:
            print(json.dumps([name, f"ended by status {status}", 0]), flush=True)
"""


def write_zip(path: Path, compression=zipfile.ZIP_STORED, **entries: bytes) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in {"version": b"3\n", "byteorder": b"little", **entries}.items():
            file.writestr(f"a/{name}", content)


def expanded(path: Path) -> None:
    torch.save({"w": torch.zeros(1).half().expand(10**12)}, path)


def shared(path: Path) -> None:
    half = torch.zeros(1 << 20).half()
    torch.save({f"w{number}": half for number in range(5000)}, path)


def legacy_storage(path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    place = content.index(b"K\x03N", content.index(b"cpu"))  # three elements, and no view
    path.write_bytes(content[:place] + b"J\xff\xff\xff\x7f" + content[place + 2 :])


def allocation(name: bytes):
    pickled = b"\x80\x02c" + name + b"\n(J\xff\xff\xff\x7ftR."
    return lambda path: write_zip(path, **{"data.pkl": pickled})


def compressed_pickle(path: Path) -> None:
    write_zip(path, zipfile.ZIP_DEFLATED, **{"data.pkl": bytes(GIGABYTE // 4)})


# A dict with a key of a hundred pairs inside pairs: hashing it takes 2 to the 100 steps.
NESTED_KEY = b"\x80\x02})" + b"q\x00h\x00\x86" * 100 + b"K\x00s."


def nested_lists(path: Path) -> None:
    """A list of ten times a list of ten times a list, and so on thirty times."""
    lists = b"\x80\x02]" + b"".join(b"q\x00](" + b"h\x00" * 10 + b"e" for _ in range(30)) + b"."
    write_zip(path, **{"data.pkl": lists})


def safetensors_header(path: Path) -> None:
    content = save({"w": torch.zeros(2)})
    path.write_bytes(struct.pack("<Q", 2**62) + content[8:])


def safetensors_shape(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def sparse(size: int):
    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return write


def repeated_words(path: Path) -> None:
    """A list of 1,000 times the same list of 1,000 times the same word of 100,000 letters: 100 GB of text."""
    words = ["a" * 100_000] * 1000
    path.write_bytes(pickle.dumps({"video0": [words] * 1000}))


def repeated_lists(path: Path) -> None:
    captions = [[""] * 100_000] * 100_000
    path.write_bytes(pickle.dumps({str(number): captions for number in range(100)}))


def plain(content: bytes):
    return lambda path: path.write_bytes(content)


# reader, file name, what writes the file, and the reason in the message
BOMBS = {
    "expanded tensor": ("weights", "a.pt", expanded, "only 1 elements"),
    "expanded tensor, optimizer": ("optimizer", "a.pt", expanded, "only 1 elements"),
    "one tensor 5,000 times": ("weights", "a.pt", shared, "share their data"),
    "legacy storage": ("weights", "a.pt", legacy_storage, "more than the file"),
    "bytearray": ("weights", "a.pt", allocation(b"builtins\nbytearray"), "builtins.bytearray"),
    "tensor": ("weights", "a.pt", allocation(b"torch\nFloatTensor"), "torch.FloatTensor"),
    "compressed pickle": ("weights", "a.pt", compressed_pickle, "more than the"),
    "hash of a key": ("weights", "a.pt", lambda path: write_zip(path, **{"data.pkl": NESTED_KEY}), "a tuple"),
    "list of lists": (
        "weights",
        "a.pt",
        nested_lists,
        "contain themsel",
    ),
    "safetensors header": ("weights", "a.safetensors", safetensors_header, "header"),
    "safetensors shape": ("weights", "a.safetensors", safetensors_shape, "cannot be read as safetensors"),
    "place in the memory": ("captions", "a.pkl", plain(b"\x80\x02}r\xff\xff\xff\x7f0."), "not a pickle of plain"),
    "length of a string": (
        "captions",
        "a.pkl",
        plain(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f."),
        "not a pickle of plain",
    ),
    "hash of a key, captions": ("captions", "a.pkl", plain(NESTED_KEY), "a tuple"),
    "repeated words": ("captions", "a.pkl", repeated_words, "expands to more than"),
    "repeated lists": ("captions", "a.pkl", repeated_lists, "expands to more than"),
    "large pickle": ("captions", "a.pkl", sparse(GIGABYTE), "more than the"),
    "deep json": ("json", "a.json", plain(b"[" * 10_000_000), "nests too deeply"),
    "deep json of dicts": ("json", "a.json", plain(b'{"a":' * 1_000_000), "nests too deeply"),
    "large json": ("json", "a.json", sparse(4 * GIGABYTE), "more than the"),
    "long number": ("json", "a.json", plain(b"9" * 10_000_000), "not valid JSON"),
    "long field": ("csv", "a.csv", plain(b"video_id\n" + b"a" * 10_000_000), "field larger"),
    "large list": ("lines", "a.txt", sparse(4 * GIGABYTE), "more than the"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple[str, int]]:
    """For every bomb the message that its reader gave, and by how many MB it raised the peak of the process."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("memory is limited and measured as Linux does it")
    jobs = []
    for bomb, (reader, name, write, _) in BOMBS.items():
        path = tmp_path_factory.mktemp("bomb") / name
        write(path)
        jobs.append((bomb, reader, str(path)))
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READ), str(SECONDS)],
        cwd=REPOSITORY, input=json.dumps(jobs), capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads do not survive a fork
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return {bomb: (message, megabytes) for bomb, message, megabytes in map(json.loads, result.stdout.splitlines())}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused(answers, bomb):
    _, name, _, reason = BOMBS[bomb]
    message, megabytes = answers[bomb]
    kinds, _, text = message.partition(": ")
    assert {"ValueError", "OSError"} & set(kinds.split(", ")), message
    assert f"/{name}" in text and reason in text and "MemoryError" not in text, message
    assert megabytes < 512
