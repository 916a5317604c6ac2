"""modules/whole_files.py: a file is whole or as it was, errors name it, and hashes are those of other tools."""

import os

import pytest

from modules.whole_files import atomic_write, explain_write_errors, file_digest, text_sha256, write_text

# printf 'v1\nv2\n' | sha256sum, and md5sum
SHA256 = "105b2c8d7bdd46426f2067ec234b1208c89b21bd3a1bd1c1d4c780264ab019b5"
MD5 = "c80a4fa9fc4e0041feb5240f35a74105"


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "before")
    with pytest.raises(OSError, match=rf"{path} cannot be written, \d+ MB free: no room"), atomic_write(path) as part:
        part.write_text("half of what")
        raise OSError("no room")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_earlier_content_is_there_until_the_block_ends(tmp_path):
    path = tmp_path / "a"
    write_text(path, "before")
    with atomic_write(path) as part:
        part.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert os.listdir(tmp_path) == ["a"]


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda source, target: (calls.append("replace"), replace(source, target)))
    write_text(tmp_path / "a", "text")
    assert calls == ["fsync", "replace", "fsync"]


def test_line_ends_and_letters_stay(tmp_path):
    write_text(tmp_path / "a", "é\r\n\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\r\n\n"


def test_errors_of_torch_are_explained_and_others_pass(tmp_path):
    with pytest.raises(OSError, match="a cannot be written"), explain_write_errors(tmp_path / "a"):
        raise RuntimeError("PytorchStreamWriter failed writing file")
    with pytest.raises(KeyError), explain_write_errors(tmp_path / "a"):
        raise KeyError("a")


def test_hashes(tmp_path):
    (tmp_path / "list").write_bytes(b"v1\nv2\n")
    assert text_sha256("v1\nv2\n") == file_digest("sha256", tmp_path / "list") == SHA256
    assert file_digest("md5", tmp_path / "list") == MD5
