"""The index: what is searched, in SQL. It can always be made again from the registry; losing it loses nothing.

    index.update(registry, "acme/legal")          after a change of one adapter
    index.refresh(registry)                       whatever changed since, by whomever; also fills an empty one
    index.search(Query("tenancy law", base="smollm2-135m", metrics=("eval_loss<0.9",)), reader="acme")

`open_index` keeps one in a file of the user's cache, for `Registry.search`. Importing this loads SQLAlchemy.
"""

from swapmeet_registry.index.cached import open_index
from swapmeet_registry.index.index import Index
from swapmeet_registry.index.query import Hit, Page, Query

__all__ = ["Hit", "Index", "Page", "Query", "open_index"]
