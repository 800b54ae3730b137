"""A place of its own in a store, which nobody else sees and which is gone afterwards."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

from swapmeet_registry.stores.local import LocalStore
from swapmeet_registry.stores.protocol import Store

if TYPE_CHECKING:
    from swapmeet_registry.stores.s3 import S3Store


@contextmanager
def scratch(store: Store) -> Iterator[Store]:
    """An empty store inside a store: the registry looks into no folder whose name begins with a dot.

    Raises:
        StoreError: the store can not be reached, or refuses these credentials.
    """
    store.size("probe")
    if isinstance(store, LocalStore):
        with _folder(store) as place:
            yield place
    else:
        from swapmeet_registry.stores.s3 import S3Store

        assert isinstance(store, S3Store)
        with _prefix(store) as place:
            yield place


@contextmanager
def _folder(store: LocalStore) -> Iterator[LocalStore]:
    new = [store.root, *store.root.parents]
    new = new[: next(at for at, folder in enumerate(new) if folder.is_dir())]
    place = LocalStore(store.root / f".probe-{uuid4().hex}")
    try:
        place.begin()
        yield place
    finally:
        place.forget()
        shutil.rmtree(place.root, ignore_errors=True)
        with suppress(OSError):  # somebody else uses it by now
            for folder in new:
                folder.rmdir()


@contextmanager
def _prefix(store: "S3Store") -> Iterator["S3Store"]:
    place = store.below(f".probe-{uuid4().hex}")
    try:
        yield place
    finally:
        place.sweep(0)
        for _ in range(3):  # a listing may lag behind
            for key in list(place.list("")):
                place.delete(key)
