"""The quickstart's table: the last numbers of a log, its seconds, and the check that an eval-only run repeats them."""

import pytest

from scripts.miniature.quickstart_table import main, seconds_taken, table
from scripts.result_lines import last_results
from tests.helpers.launch import run_python

FIRST = (("40.1", "68.2", "79.3", "2.0", "17.4"), ("39.5", "67.0", "78.8", "2.0", "13.1"))
LAST = (("42.9", "71.4", "100.0", "2.5", "15.6"), ("0.0", "70.9", "80.2", "1.0", "11.0"))


def evaluation(stamp, results):
    """The lines that CLIP4Clip logs for one evaluation, video-to-text with its own prefix."""
    values = dict(zip("abcdefghij", results[0] + results[1], strict=True))
    lines = """
        sim matrix size: 1000, 1000
        \t Length-T: 1000, Length-V:1000
        Text-to-Video:
        \t>>>  R@1: {a} - R@5: {b} - R@10: {c} - Median R: {d} - Mean R: {e}
        Video-to-Text:
        \t>>>  V2T$R@1: {f} - V2T$R@5: {g} - V2T$R@10: {h} - V2T$Median R: {i} - V2T$Mean R: {j}
    """.format(**values)
    return [f"{stamp} - INFO -   {line.removeprefix(' ' * 8)}" for line in lines.strip("\n ").split("\n")]


def write_log(run, *lines):
    run.mkdir()
    (run / "log.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return run / "log.txt"


def write_training(run):
    """A log of two epochs, 100 seconds from 23:59:10 on New Year's Eve to 00:00:50."""
    return write_log(
        run,
        "12/31/2025 23:59:10 - INFO -   ***** Running training *****",
        "12/31/2025 23:59:30 - INFO -   Epoch: 1/2, Step: 12/12, Lr: 0.000021614, Loss: 1.454204, Time/step: 0.185922",
        "12/31/2025 23:59:40 - INFO -   Epoch 1/2 Finished, Train Loss: 1.427673",
        *evaluation("12/31/2025 23:59:45", FIRST),
        "12/31/2025 23:59:45 - INFO -   The best model is: run/pytorch_model.bin.0, the R1 is: 40.1000",
        "01/01/2026 00:00:30 - INFO -   Epoch 2/2 Finished, Train Loss: 1.352507",
        *evaluation("01/01/2026 00:00:50", LAST),
        "01/01/2026 00:00:50 - INFO -   The best model is: run/pytorch_model.bin.1, the R1 is: 42.9000",
    )


def write_evaluation(run, results):
    """A log of one evaluation, 7 seconds."""
    return write_log(
        run, "01/01/2026 00:01:00 - INFO -   ***** Running test *****", *evaluation("01/01/2026 00:01:07", results)
    )


# ---- one log


def test_last_results_are_those_of_the_last_epoch(tmp_path):
    assert last_results(write_training(tmp_path / "wti")) == LAST


@pytest.mark.parametrize(
    "lines", [[], ["01/01/2026 00:00:00 - INFO -   Epoch 1/2 Finished, Train Loss: 1.4"], evaluation("", LAST)[:-2]]
)
def test_a_log_without_a_whole_evaluation_is_an_error_that_names_it(tmp_path, lines):
    log = write_log(tmp_path / "wti", *lines)
    with pytest.raises(ValueError, match=f"{log} holds no result"):
        last_results(log)


def test_seconds_are_counted_from_the_first_to_the_last_time_stamp(tmp_path):
    assert seconds_taken(write_training(tmp_path / "wti")) == 100


def test_lines_without_a_time_stamp_do_not_count(tmp_path):
    log = write_log(
        tmp_path / "wti",
        "a warning of the launcher",
        "02/28/2026 10:00:00 - INFO -   device: cpu",
        "  weights started fresh: 4",
        "03/01/2026 10:00:05 - INFO -   done - after a day",
        "12 of 12",
    )
    assert seconds_taken(log) == 24 * 60 * 60 + 5


# ---- the table


def test_a_row_for_each_run_in_the_order_given(tmp_path):
    for name, results in (("wti", LAST), ("meanP", LAST)):
        write_training(tmp_path / name)
        write_evaluation(tmp_path / f"{name}-eval", results)
    header, rule, *rows = table([tmp_path / "wti", tmp_path / "meanP"]).splitlines()
    cells = "42.9 | 71.4 | 100.0 | 2.5 | 15.6 | 0.0 | 70.9 | 80.2 | 1.0 | 11.0 | 100 | 7"
    assert rows == [f"| wti | {cells} |", f"| meanP | {cells} |"]
    assert {line.count("|") for line in (header, rule, *rows)} == {14}


def test_main_prints_the_table_and_that_the_numbers_repeat(tmp_path, capsys):
    write_training(tmp_path / "wti")
    write_evaluation(tmp_path / "wti-eval", LAST)
    main([str(tmp_path / "wti")])
    printed = capsys.readouterr().out
    assert printed.startswith(table([tmp_path / "wti"]) + "\n")
    assert "repeat the last epoch's numbers" in printed


@pytest.mark.parametrize("place", range(10))
def test_other_numbers_of_the_eval_only_run_are_an_error(tmp_path, capsys, place):
    """Each of the ten numbers counts; the error says both results, and no table is printed."""
    flat = [*LAST[0], *LAST[1]]
    flat[place] = "3.7"
    changed = (tuple(flat[:5]), tuple(flat[5:]))
    training = write_training(tmp_path / "wti")
    evaluated = write_evaluation(tmp_path / "wti-eval", changed)
    with pytest.raises(ValueError) as error:
        table([tmp_path / "wti"])
    assert str(error.value) == f"{evaluated} gives {changed}, the last epoch in {training} gave {LAST}"
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "wti")])
    assert stopped.value.code == f"quickstart_table: {error.value}"
    assert capsys.readouterr().out == ""


def test_the_command_exits_with_1_and_says_why(tmp_path):
    write_training(tmp_path / "wti")
    write_evaluation(tmp_path / "wti-eval", FIRST)
    finished = run_python("-m", "scripts.miniature.quickstart_table", tmp_path / "wti")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"quickstart_table: {tmp_path / 'wti-eval' / 'log.txt'} gives ")


def test_numbers_of_an_earlier_epoch_are_not_enough(tmp_path):
    write_training(tmp_path / "wti")
    write_evaluation(tmp_path / "wti-eval", FIRST)
    with pytest.raises(ValueError, match="wti-eval"):
        table([tmp_path / "wti"])


def test_a_missing_log_ends_the_command_with_its_path(tmp_path):
    write_training(tmp_path / "wti")
    with pytest.raises(SystemExit, match=f"quickstart_table: .*{tmp_path / 'wti-eval' / 'log.txt'}"):
        main([str(tmp_path / "wti")])
