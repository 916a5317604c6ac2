"""Tables and p-values of hand-made runs whose numbers can be worked by hand."""

import json

import pytest

from metrics import BOOTSTRAP_RESAMPLES
from scripts.compare_runs import epoch_of, main, paired_difference


def write_run(folder, seed, recall, ranks=(), configuration="c", split="test"):
    """A run with one R@1 for both directions, and the given ranks of the queries q0, q1, ... of text-to-video."""
    folder.mkdir()
    numbers = {"R1": recall, "R5": 70.0, "R10": 80.0, "R50": 90.0, "MdR": 2.0, "MnR": 15.5}
    direction = {**numbers, "intervals_95": {"R1": [recall - 3, recall + 3]}, "queries": len(ranks), "gallery": 9}
    content = {
        "text_to_video": direction, "video_to_text": {**direction, "R5": 60.0}, "split": split, "epoch": 4,
        "seed": seed, "configuration_sha256_without_seed": configuration, "history": [],
        "protocol": {"epoch_picked_on": "test"}, "best": {"epoch": 3}, "holdout": None,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(content))
    rows = [f"{way},q{i},v{i},{rank}" for way in ("text-to-video", "video-to-text") for i, rank in enumerate(ranks)]
    (folder / "ranks.csv").write_text("\n".join(["direction,query,true_video,rank", *rows]) + "\n")
    return str(folder)


def queries(*ranks: int) -> dict:
    return {(f"q{number}", "v", 0): rank for number, rank in enumerate(ranks)}


def test_seeds_are_averaged_and_other_configurations_are_not(tmp_path, capsys):
    runs = [write_run(tmp_path / f"s{seed}", seed, recall) for seed, recall in ((1, 40.0), (2, 42.0), (3, 47.0))]
    runs.append(write_run(tmp_path / "other", 1, 99.0, configuration="d"))
    runs.append(write_run(tmp_path / "again", 3, 99.0))  # a seed that is there already
    runs.append(write_run(tmp_path / "held", 4, 99.0, split="holdout"))
    main(runs)
    printed = capsys.readouterr().out
    numbers = "40.0 [37.0, 43.0] | 70.0 | 80.0 | 90.0 | 2.0 | 15.5 |"
    assert f"| {runs[0]} | test | epoch 4 (last; test split picks epoch 3) | 1 | {numbers}" in printed
    # mean of 40, 42, 47 is 43; deviations -3, -1, 4: variance 26 / 2 = 13
    means = "43.0 ± 3.6 | 70.0 ± 0.0 | 80.0 ± 0.0 | 90.0 ± 0.0 | 2.0 ± 0.0 | 15.5 ± 0.0 |"
    assert f"| mean ± sd of 3 seeds: s1, s2, s3 | test |  | 1, 2, 3 | {means}" in printed
    assert printed.count("mean ± sd") == 2  # one row in each direction
    assert printed.count("60.0 ± 0.0") == 1
    assert "p =" not in printed
    assert {line.count("|") for line in printed.splitlines() if line.startswith("|")} == {11}


@pytest.mark.parametrize(
    ("epoch", "picked_on", "best", "text"),
    [
        (4, "test", 3, "epoch 4 (last; test split picks epoch 3)"),
        (3, "test", 3, "epoch 3, picked on test"),
        (2, "holdout", 2, "epoch 2, picked on holdout"),
        (4, "holdout", 2, "epoch 4 (last; holdout split picks epoch 2)"),  # a run that ended before its test split
        (4, None, None, "epoch 4"),
        (None, None, None, "-"),
    ],
)
def test_what_picked_the_epoch(epoch, picked_on, best, text):
    result = {"epoch": epoch, "protocol": {"epoch_picked_on": picked_on}, "best": {"epoch": best}}
    assert epoch_of({**result, "best": None} if best is None else result) == text


def test_one_of_two_queries_gained():
    """A resample of two queries misses the one that was gained with probability 1/4: p = 2 * 1/4."""
    difference, p_value = paired_difference(queries(1, 5), queries(1, 1))
    assert difference == 50.0
    assert p_value == pytest.approx(0.5, abs=0.02)
    assert paired_difference(queries(1, 1), queries(1, 5)) == (-50.0, pytest.approx(0.5, abs=0.02))


def test_four_gained_of_eight():
    """Four of eight gained, none lost: a resample without any has probability (1/2)^8, p = 2 / 256."""
    difference, p_value = paired_difference(queries(*[2] * 8), queries(*[1] * 4, *[2] * 4))
    assert difference == 50.0
    assert p_value == pytest.approx(2 / 256, abs=0.003)


def test_as_many_gained_as_lost_or_none_changed():
    assert paired_difference(queries(1, 2, 1, 9), queries(2, 1, 1, 9)) == (0.0, 1.0)
    assert paired_difference(queries(1, 2, 3), queries(1, 4, 9)) == (0.0, 1.0)


def test_all_gained_is_as_small_as_the_resamples_can_say():
    assert paired_difference(queries(2, 2), queries(1, 1)) == (100.0, pytest.approx(2 / (1 + BOOTSTRAP_RESAMPLES)))


def test_two_runs_are_paired_whatever_the_order_of_the_rows(tmp_path, capsys):
    first, second = write_run(tmp_path / "a", 1, 50.0, (1, 5)), write_run(tmp_path / "b", 2, 90.0, (1, 1))
    lines = (tmp_path / "b" / "ranks.csv").read_text().splitlines()
    (tmp_path / "b" / "ranks.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    main([first, second])
    printed = capsys.readouterr().out
    assert f"text-to-video: R@1 of {second} less that of {first}: +50.0 points, p = 0." in printed
    assert "video-to-text: R@1 of" in printed


def test_other_queries_are_an_error_that_names_some(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", 1, 50.0, (1, 5)), write_run(tmp_path / "b", 2, 90.0, (1, 1, 4))]
    with pytest.raises(SystemExit) as error:
        main(runs)
    assert str(error.value).startswith("compare_runs: a paired comparison needs the same queries: 2 and 3, of which 1")
    assert "'q2' of v2" in str(error.value)
    assert "| run |" in capsys.readouterr().out  # the table needs no pairs
    with pytest.raises(ValueError, match="none of this direction"):
        paired_difference({}, {})


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"compare_runs: .*nowhere/metrics\.json is missing"):
        main([str(tmp_path / "nowhere")])
