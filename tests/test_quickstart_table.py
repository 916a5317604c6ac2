"""The quickstart's table: numbers and seconds of each run; an evaluation that differs from its training is an error."""

import re

import pytest

from scripts.miniature.quickstart_table import main, seconds_taken, table
from tests.helpers.launch import run_python
from tests.helpers.results import MEASURES, write_results

# R@1, R@5, R@10, R@50, median and mean rank
TEXT_TO_VIDEO = (42.86, 71.4, 100.0, 100.0, 2.5, 15.62)
VIDEO_TO_TEXT = (0.0, 70.94, 80.2, 95.0, 1.0, 11.0)


def write_log(run, *lines):
    run.mkdir(exist_ok=True)
    (run / "log.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return run / "log.txt"


def write_training(run):
    """100 seconds from 23:59:10 on New Year's Eve to 00:00:50."""
    write_results(run, TEXT_TO_VIDEO, VIDEO_TO_TEXT)
    return write_log(
        run,
        "12/31/2025 23:59:10 - INFO -   ***** Running training *****",
        "12/31/2025 23:59:30 - INFO -   Epoch: 1/2, Step: 12/12, Lr: 0.000021614, Loss: 1.454204, Time/step: 0.185922",
        "01/01/2026 00:00:50 - INFO -   The best model is: run/pytorch_model.bin.1, the R1 is: 42.9000",
    )


def write_evaluation(run, text_to_video=TEXT_TO_VIDEO, video_to_text=VIDEO_TO_TEXT):
    """7 seconds."""
    write_log(run, "01/01/2026 00:01:00 - INFO -   ***** Running test *****", "01/01/2026 00:01:07 - INFO -   done")
    return write_results(run, text_to_video, video_to_text)


# ---- seconds


def test_seconds_are_counted_from_the_first_to_the_last_time_stamp(tmp_path):
    assert seconds_taken(write_training(tmp_path / "wti")) == 100


def test_lines_without_a_time_stamp_do_not_count(tmp_path):
    log = write_log(
        tmp_path / "wti",
        "a warning of the launcher",
        "02/28/2026 10:00:00 - INFO -   device: cpu",
        "  newly initialized: 4",
        "03/01/2026 10:00:05 - INFO -   done - after a day",
        "12 of 12",
    )
    assert seconds_taken(log) == 24 * 60 * 60 + 5


@pytest.mark.parametrize("lines", [[], ["a warning of the launcher"]])
def test_a_log_without_time_stamps_is_an_error_that_names_it(tmp_path, lines):
    log = write_log(tmp_path / "wti", *lines)
    with pytest.raises(ValueError, match=f"{log} has no line with a time stamp"):
        seconds_taken(log)


# ---- the table


def test_a_row_for_each_run_in_the_order_given(tmp_path):
    for name in ("wti", "meanP"):
        write_training(tmp_path / name)
        write_evaluation(tmp_path / f"{name}-eval")
    header, rule, *rows = table([tmp_path / "wti", tmp_path / "meanP"]).splitlines()
    cells = "42.9 | 71.4 | 100.0 | 2.5 | 15.6 | 0.0 | 70.9 | 80.2 | 1.0 | 11.0 | 100 | 7"
    assert rows == [f"| wti | {cells} |", f"| meanP | {cells} |"]
    assert {line.count("|") for line in (header, rule, *rows)} == {14}


def test_main_prints_the_table_and_that_the_numbers_repeat(tmp_path, capsys):
    write_training(tmp_path / "wti")
    write_evaluation(tmp_path / "wti-eval")
    main([str(tmp_path / "wti")])
    printed = capsys.readouterr().out
    assert printed.startswith(table([tmp_path / "wti"]) + "\n")
    assert "repeat the numbers of the last training epoch" in printed


@pytest.mark.parametrize("place", range(2 * len(MEASURES)))
def test_other_numbers_of_the_evaluation_are_an_error(tmp_path, capsys, place):
    """Each number counts, to its last digit; the error has both results, and no table is printed."""
    changed = [*TEXT_TO_VIDEO, *VIDEO_TO_TEXT]
    changed[place] += 0.001
    write_training(tmp_path / "wti")
    evaluated = write_evaluation(tmp_path / "wti-eval", changed[: len(MEASURES)], changed[len(MEASURES) :])
    direction = "text_to_video" if place < len(MEASURES) else "video_to_text"
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "wti")])
    message = stopped.value.code
    assert message.startswith(f"quickstart_table: {evaluated}: {direction} is ")
    assert f"'{MEASURES[place % len(MEASURES)]}': {changed[place]}" in message
    assert re.search(rf"; the last epoch of {tmp_path / 'wti' / 'metrics.json'} has ", message)
    assert capsys.readouterr().out == ""


def test_the_command_exits_with_1_and_gives_the_reason(tmp_path):
    write_training(tmp_path / "wti")
    write_evaluation(tmp_path / "wti-eval", text_to_video=(1.0, *TEXT_TO_VIDEO[1:]))
    finished = run_python("-m", "scripts.miniature.quickstart_table", tmp_path / "wti")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"quickstart_table: {tmp_path / 'wti-eval' / 'metrics.json'}: ")


@pytest.mark.parametrize("damage", [None, '{"split": "test"}', "no json"])
def test_missing_or_damaged_results_end_the_command_with_their_path(tmp_path, damage):
    write_training(tmp_path / "wti")
    results = write_evaluation(tmp_path / "wti-eval")
    if damage is None:
        results.unlink()
    else:
        results.write_text(damage)
    with pytest.raises(SystemExit, match=f"quickstart_table: {tmp_path / 'wti-eval'}.*metrics.json"):
        main([str(tmp_path / "wti")])
