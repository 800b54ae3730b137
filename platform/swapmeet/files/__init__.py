"""Files that tenants upload, whole or in parts: kept, checked, and swept up when they are over."""

from swapmeet.files.files import Files
from swapmeet.files.sweeping import Sweeper
from swapmeet.files.uploads import Uploads
from swapmeet.files.validator import Validator

__all__ = ["Files", "Sweeper", "Uploads", "Validator"]
