"""scripts/flag_tables.py: what a reader of the tables learns of a flag."""

from engine.arguments import build_parser
from scripts.flag_tables import flag_tables


def test_defaults_are_shown_also_where_they_are_zero():
    rows = {line.split("`")[1]: line for line in flag_tables(build_parser()).splitlines() if line.startswith("| `")}
    assert rows["--save_steps"].startswith("| `--save_steps` | `0` | write a training checkpoint every N")
    assert rows["--slice_framepos"].startswith("| `--slice_framepos` | `0` | ")
    assert rows["--cdcr_alpha1"].startswith("| `--cdcr_alpha1` | `1.0` | ")
    assert rows["--output_dir"].startswith("| `--output_dir` | required | ")
    for name in ("--do_train", "--init_model", "--cache_dir"):  # a switch, None and an empty text
        assert rows[name].startswith(f"| `{name}` |  | ")


def test_help_shows_the_same_defaults():
    text = " ".join(build_parser().format_help().split())
    assert "only at the end of each epoch (default: 0)" in text
    assert "(default: None)" not in text and "(default: False)" not in text
