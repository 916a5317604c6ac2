"""Reading lists, json and csv: what is accepted, and errors that name the place."""

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.annotation_files import (
    check_entry,
    check_texts,
    read_csv,
    read_ids,
    read_json,
    read_lines,
    read_text,
    texts_of_split,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


def test_text_with_and_without_byte_order_mark(path):
    for start in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(start + "é\r\n".encode())
        assert read_text(path, "--flag") == "é\r\n"
        path.write_bytes(start + b"a\nb\n\xe9\n")
        with pytest.raises(ValueError, match=re.escape(f"{path} (--flag), line 3: not valid UTF-8")):
            read_text(path, "--flag")
    with pytest.raises(FileNotFoundError, match="--flag"):
        read_text(path.parent, "--flag")


def test_lines_end_at_line_ends_only_and_blank_ones_are_left_out(path):
    path.write_bytes("a\u2028 \x0b\r\n\n \t\rb\t".encode())
    assert read_lines(path, "--flag") == [(1, "a\u2028 \x0b"), (4, "b\t")]


def test_ids_are_distinct_and_in_order(path):
    path.write_text(" b\na \n\nb")
    assert read_ids(path, "--flag") == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "kind", "word"),
    [("{", dict, "not valid JSON"), ("1" * 5000, list, "not valid JSON"), ("null", list, "NoneType")],
)
def test_json_of_another_form(path, content, kind, word):
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} \(--flag\).*{word}"):
        read_json(path, "--flag", kind)


@given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]))] * 2)))
def test_csv_returns_what_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "written.csv"
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    path.write_bytes(text.getvalue().encode())
    assert [(row["a"], row["b"]) for _, row in read_csv(path, "--flag", ["b"])] == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,c\n1,2\n", "needs the columns a, b; it has a, c"),
        ("a,b\n1,2\n1\n", ", line 3: fewer fields than the columns a, b"),
        ("a,b\n\n1,2,3\n", ", line 3: more fields than the columns a, b"),
        ('a,b\n"1" 2,3\n', "begins in line 2: "),
        ('a,b\n1,2\n1,"2\n3,4\n', "begins in line 3: unexpected end"),
        ("a,b\n1," + "2" * 200_000, "begins in line 2: field larger"),
    ],
)
def test_csv_errors_name_the_line(path, content, message):
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(path)) + r" \(--flag\).*" + re.escape(message)):
        read_csv(path, "--flag", ["a", "b"])


@pytest.mark.parametrize(
    "content",
    [
        "a;b;c\n1;2, 3;4\n", "a\tb\tc\n1\t2, 3\t4\n", 'A, b ,C\n1,"2, 3",4\n', '\n\na,b,c,,\n1,"2, 3",4,,\n',
        b"\xef\xbb\xbfa;b;c\r\n1;2, 3;4\r\n", "a;b;c\n1;2, 3;4\n".encode("utf-16"),
    ],
)  # fmt: skip
def test_what_spreadsheets_write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    ((_, row),) = read_csv(path, "--flag", ["a", "b"], ["c"])
    assert (row["a"], row["b"], row["c"]) == ("1", "2, 3", "4")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,b\n1,2,3\n", "several columns b"), (b"a,b,B \n1,2,3\n", "several columns b"),
        (b"a;d\n1;2\n", "needs the columns a, b; it has a;d"), (b"a,b\n1,caf\xe9\n", "line 2: not valid UTF-8"),
        (b"\xff\xfea", "not valid UTF-16"),
    ],
)  # fmt: skip
def test_headers_that_are_not_clear(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path)) + r" \(--flag\).*" + re.escape(message)):
        read_csv(path, "--flag", ["a", "b"])


def test_entries_and_texts():
    check_entry({"a": "b", "c": 1, "d": None}, {"a": str, "c": (int, float)}, "file")
    for entry in ({"a": "b"}, {"a": "b", "c": "1"}, ["a", "c"], None):
        with pytest.raises(ValueError, match=r"file: an entry needs the keys a \(str\), c \(int or float\); one is"):
            check_entry(entry, {"a": str, "c": (int, float)}, "file")
    assert check_texts(["a"], "file") == ["a"]
    with pytest.raises(ValueError, match="file must be texts; one is 1"):
        check_texts(["a", 1], "file")


def test_ids_without_texts_are_named(path):
    assert texts_of_split(["b", "a"], {"a": ["1"], "b": ["2", "3"], "c": ["4"]}, path, path) == {
        "b": ["2", "3"], "a": ["1"],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"2 of 3 videos of .* have no caption in .* \(--data_path\): b, c"):
        texts_of_split(["b", "a", "c"], {"a": ["1"], "b": []}, path, path)
