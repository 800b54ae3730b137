"""`swapmeet data check|show`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from swapmeet.cli.options import Home, Json, read_template, show, tell
from swapmeet.cli.reports import described, output, printable
from swapmeet.settings import Settings, load_settings
from swapmeet_registry.bases import BaseLibrary
from swapmeet_training import FineTune, check_file
from swapmeet_training.data.preview import Shown, preview

app = typer.Typer(help="Training data: check it, see what of it is trained.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="JSONL, Parquet, or a folder that save_to_disk of HF datasets wrote.")]
OfBase = Annotated[str | None, typer.Option("--base", help="A base, to try its tokenizer and template on every row.")]
Template = Annotated[Path | None, typer.Option("--chat-template", help="A Jinja file to use instead of the base's.")]
TOLD_EVERY = 100_000
"""Rows between two lines about long work, where there is no terminal."""


@app.command()
def check(
    file: File,
    base: OfBase = None,
    validation: Annotated[Path | None, typer.Option(help="Held-out examples: checked, too, and for leakage.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=8, help="Longest example, in tokens; with a base, what train takes if not given.")
    ] = None,
    chat_template: Template = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Find every mistake in training data; exit code 1 if there are any."""
    if base is None and (max_length is not None or chat_template is not None):
        raise typer.BadParameter("--max-length and --chat-template need --base, whose tokenizer counts and renders.")
    settings = load_settings(home=home)
    folder = _base(base, settings) if base else None
    options: dict[str, Any] = {"base": folder, "template": read_template(chat_template)}
    if folder:
        options["max_length"] = max_length or FineTune.model_fields["max_length"].default
    reports = []
    for path, against in ((file, validation), (validation, None)):
        if path is not None:
            with _followed(path) as progress:
                reports.append(check_file(path, against=against, progress=progress, **options))
    if json:
        rest = {"validation": reports[1].as_dict()} if len(reports) > 1 else {}
        show(reports[0].as_dict() | rest, "", json)
    else:
        for report in reports:
            output().print(described(report.as_dict(), report.name))
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@app.command("show")
def show_(
    file: File,
    base: Annotated[str | None, typer.Option("--base", help="A base; the one that is served if not given.")] = None,
    line: Annotated[
        int | None, typer.Option(min=1, help="The example's line or row; the first one if not given.")
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="One token a line, with its id.")] = False,
    chat_template: Template = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Show which tokens of an example are trained: in colour on a terminal, in [[brackets]] elsewhere."""
    settings = load_settings(base=base, home=home)
    sequences = preview(file, _base(settings.base, settings), line, read_template(chat_template))
    if json:
        show({"sequences": [sequence.as_dict() for sequence in sequences]}, "", json)
        return
    out = output()
    coloured = out.is_terminal and not out.no_color
    for sequence in sequences:
        out.print(_heading(sequence))
        out.print(_token_lines(sequence, coloured) if tokens else _marked(sequence, coloured))


def _base(name: str, settings: Settings) -> Path:
    return BaseLibrary(settings.folder, tell).find(name).path


@contextmanager
def _followed(file: Path) -> Iterator[Callable[[int], object]]:
    """Tell how far a long check is, on standard error."""
    with Console(stderr=True).status(file.name) as status:

        def told(rows: int) -> None:
            if status.console.is_terminal:
                status.update(f"{file.name}: {rows:,} rows")
            elif rows % TOLD_EVERY == 0:
                tell(f"{file.name}: {rows:,} rows")

        yield told


def _heading(sequence: Shown) -> Text:
    trained = sum(token.trained for token in sequence.tokens)
    key = f", {sequence.key}" if sequence.key else ""
    return Text(
        f"{sequence.unit} {sequence.line}{key}: {len(sequence.tokens)} tokens, of which {trained} are trained", "dim"
    )


def _marked(sequence: Shown, coloured: bool) -> Text:
    text = Text()
    for span in sequence.spans:
        written = printable(span.text)
        if coloured:
            text.append(written, "bold green" if span.trained else "")
        else:
            text.append(f"[[{written}]]" if span.trained else written)
    return text


def _token_lines(sequence: Shown, coloured: bool) -> Text:
    text = Text()
    for number, token in enumerate(sequence.tokens):
        written = ascii(token.text) if "\ufffd" in token.text else repr(token.text)
        marked = f"[[{written}]]" if token.trained and not coloured else written
        text.append(f"{number:6}  {token.tokens[0]:>7}  ")
        text.append(f"{marked}\n", "bold green" if token.trained and coloured else "")
    text.rstrip()
    return text
