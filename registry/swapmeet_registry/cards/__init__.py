"""An adapter's card: what it is for, on what it was trained, what it measured, what it answers.

`read_readme` takes a version's README.md apart: its front matter (YAML between two lines of `---`) and its free text.
`Card.of` puts that together with what the registry knows, `sections` has the order in which that is told, and
`markdown`, `terminal` and `as_json` show it.
"""

from swapmeet_registry.cards.card import Card, Note
from swapmeet_registry.cards.markdown import markdown
from swapmeet_registry.cards.readme import Example, Readme, parse_readme, read_readme
from swapmeet_registry.cards.terminal import terminal

__all__ = ["Card", "Example", "Note", "Readme", "markdown", "parse_readme", "read_readme", "terminal"]
