"""The report of a check of training data, for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from swapmeet_training.data.findings import Finding

COLOURS = {"mistake": "bold red", "warning": "yellow"}


def described(report: Mapping[str, Any], name: str) -> Text:
    """A report as `Report.as_dict` has it and servers answer it: a line for each finding, and what was counted."""
    form = f" ({report['form']})" if report["form"] else ""
    text = Text(f"{printable(name)}: {report['examples']:,} examples{form}, {report['bytes']:,} bytes\n")
    if tokens := report["tokens"]:
        shares = ", ".join(f"{share} % up to {length}" for share, length in tokens["percentiles"].items())
        text.append(f"tokens: {tokens['total']:,}, of which {tokens['trained']:,} are trained; ")
        text.append(f"the longest example has {tokens['longest']} ({shares})\n")
    for kind in ("mistake", "warning"):
        _add(text, kind, [Finding(**each) for each in report[f"{kind}s"]], report[f"{kind}_counts"], report["unit"])
    mistakes, warnings = (sum(report[f"{kind}_counts"].values()) for kind in ("mistake", "warning"))
    return text.append(f"{_count(mistakes, 'mistake')}, {_count(warnings, 'warning')}")


def _add(text: Text, name: str, findings: list[Finding], counts: Mapping[str, int], unit: str) -> None:
    for finding in findings:
        where = f"{unit} {finding.line}: " if finding.line else ""
        text.append(name, COLOURS[name]).append(printable(f"  {where}{finding} [{finding.kind}]\n"))
    for kind, count in counts.items():
        left = count - sum(finding.kind == kind for finding in findings)
        if left:
            text.append(name, COLOURS[name]).append(f"  {left:,} more of {kind}\n")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """A stranger's text without what could steer a terminal."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def output(errors: bool = False) -> Console:
    """What prints a report: to standard output, or to where errors go."""
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False, stderr=errors)
