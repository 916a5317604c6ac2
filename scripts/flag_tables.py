"""Print the flags of `main_task_retrieval.py` as Markdown tables, one for each group: `python -m scripts.flag_tables`

docs/flags.md has them between two marker lines; `--write docs/flags.md` updates it, and a test compares.
"""

import argparse
from pathlib import Path

from engine.arguments import build_parser, has_default

FIRST_LINE = "<!-- flags: written by scripts/flag_tables.py -->"
LAST_LINE = "<!-- end of flags -->"


def flag_tables(parser: argparse.ArgumentParser) -> str:
    """Return a section for each group of the parser's flags."""
    return "\n".join(table(group) for group in parser._action_groups if flags_of(group))


def flags_of(group) -> list[argparse.Action]:
    """Return the flags of one group, without `--help`."""
    return [action for action in group._group_actions if action.dest != "help"]


def table(group) -> str:
    """Return the title of a group and a row for each flag."""
    rows = [f"| `{action.option_strings[0]}` | {default(action)} | {meaning(action)} |" for action in flags_of(group)]
    title = f"## {group.title[0].upper()}{group.title[1:]}"
    return "\n".join([title, "", "| flag | default | |", "|---|---|---|", *rows, ""])


def default(action: argparse.Action) -> str:
    """Return the value of a flag that is not given."""
    if action.required:
        return "required"
    return f"`{action.default}`" if has_default(action.default) else ""


def meaning(action: argparse.Action) -> str:
    """Return help text and choices."""
    text = (action.help or "").strip().replace("%%", "%").replace("|", "\\|")
    choices = ", ".join(f"`{choice}`" for choice in action.choices or ())
    return "; ".join(filter(None, (text, choices)))


def put_into(text: str, tables: str) -> str:
    """Return the text with these tables between its marker lines.

    Raises:
        ValueError: the text lacks a marker line.
    """
    before, first, rest = text.partition(FIRST_LINE)
    _, last, after = rest.partition(LAST_LINE)
    if not (first and last):
        raise ValueError(f"the text has no lines {FIRST_LINE} and {LAST_LINE}")
    return f"{before}{FIRST_LINE}\n\n{tables}\n{LAST_LINE}{after}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="file with the marker lines")
    args = parser.parse_args(argv)
    tables = flag_tables(build_parser())
    if args.write is None:
        print(tables)
        return
    try:
        args.write.write_text(put_into(args.write.read_text(encoding="utf-8"), tables), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SystemExit(f"flag_tables: {args.write}: {error}") from error


if __name__ == "__main__":
    main()
