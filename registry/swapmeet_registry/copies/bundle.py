"""Take adapters to where no network goes: some versions in one file, and from there into another registry.

`exporting` writes it, `importing` takes it in; `bundle_file` is its form, `bundle_index` what it says of itself.
"""

from swapmeet_registry.copies.exporting import export_bundle
from swapmeet_registry.copies.importing import Imported, import_bundle

__all__ = ["Imported", "export_bundle", "import_bundle"]
