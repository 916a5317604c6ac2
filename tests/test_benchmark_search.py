"""The benchmark of the search: contestants that find the same, and a report with its tables."""

import numpy as np
import pytest

from benchmarks import search
from benchmarks.search import open_index, prepared, random_query, read_queries, write_index
from scripts import index as index_script
from tests.helpers.tiny_run import write_tiny_run


def test_contestants_find_the_same(tmp_path):
    """More videos than the baseline takes at once."""
    videos = search.PLAIN_VIDEOS + 200
    write_index(tmp_path, videos, frames=3)
    index, query = open_index(tmp_path, videos, frames=3), random_query(words=5)
    np.testing.assert_allclose(np.linalg.norm(index.frames[::100], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(index.pooled[::100], axis=1), 1, atol=1e-6)
    found = {name: prepared(name, query, index)().tolist() for name in ("plain", "exact", f"shortlist {videos}")}
    assert found["exact"] == found["plain"] == found[f"shortlist {videos}"]
    assert len(set(found["exact"])) == search.TOP
    assert set(prepared(f"shortlist {search.TOP}", query, index)()) != set(found["exact"])


def test_report(tmp_path, capsys):
    output = tmp_path / "report.md"
    search.main(["--videos", "60", "--frames", "2", "--words", "3", "--shortlist", "20", "--repeats", "1",
                 "--output", str(output)])  # fmt: skip
    report = output.read_text(encoding="utf-8")
    assert report == capsys.readouterr().out
    assert "## truth" not in report
    times, *memory = (line for line in report.splitlines() if line.startswith("| 60 |"))
    assert times.count(" ms ") == 4
    assert [row.split(" | ")[1] for row in memory] == ["plain", "exact", "shortlist 20"]


def test_queries_need_a_column(tmp_path):
    file = tmp_path / "queries.csv"
    file.write_text("key,sentence\n1,a red circle\n2,a blue square\n")
    assert read_queries(file) == ["a red circle", "a blue square"]
    file.write_text("key,words\n1,a red circle\n")
    with pytest.raises(ValueError, match="queries.csv.*sentence"):
        read_queries(file)


def test_truth(tmp_path):
    """Where the score is the cosine of pooled vectors, a shortlist of 5 holds 5 of the 8 best, the best one too."""
    folder = write_tiny_run(tmp_path, train_videos=7, test_videos=1)
    index_script.main([
        str(folder / "data" / "videos"), "--index", str(tmp_path / "index"), "--num_workers", "0",
        "--pretrained_clip_name", str(folder / "clip.pt"), "--sim_header", "meanP", "--max_frames", "3",
        "--max_words", "16",
    ])  # fmt: skip
    arguments = ["--index", str(tmp_path / "index"), "--queries", str(folder / "data" / "MSRVTT_test.csv")]
    first, *_, exact, listed = search.truth(search.parse([*arguments, "--shortlist", "5", "8"]))
    assert first.startswith("8 videos of `meanP`, 1 queries.")
    assert exact.startswith("| exact | 100.0 % | 100 % |")
    assert listed.startswith("| shortlist 5 | 62.5 % | 100 % |")
