"""The platform's own key, under which secrets that it must be able to read again lie in the database."""

from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from swapmeet.errors import SecretKeyWrong
from swapmeet.private_file import write_private
from swapmeet.settings import Settings


class SecretKey:
    """Encrypts secrets and reads them again. Neither it nor an error of its ever shows the key.

    Args:
        text: 32 bytes in URL-safe base64, as `Fernet.generate_key()` makes them; or several such keys with commas
            between them, of which the first encrypts and all decrypt, so that a key can be replaced.

    Raises:
        SecretKeyWrong: it is no such key.
    """

    def __init__(self, text: str) -> None:
        try:
            self._keys = MultiFernet([Fernet(one.strip()) for one in text.split(",")])
        except ValueError:
            raise SecretKeyWrong(
                "The platform's secret key is not 32 bytes in URL-safe base64. Correct SWAPMEET_SECRET_KEY, or the"
                " file secret.key in the home folder."
            ) from None

    def seal(self, secret: str) -> bytes:
        """A secret, encrypted and authenticated."""
        return self._keys.encrypt(secret.encode())

    def open(self, sealed: bytes) -> str:
        """The secret that `seal` was given.

        Raises:
            SecretKeyWrong: it was sealed under another key, or changed since.
        """
        try:
            return self._keys.decrypt(sealed).decode()
        except InvalidToken:
            raise SecretKeyWrong(
                "A secret in the database was written under another key than the platform has now. Bring back"
                " HOME/secret.key or SWAPMEET_SECRET_KEY, or make the secret anew."
            ) from None


def load_secret_key(settings: Settings) -> SecretKey:
    """The key of `SWAPMEET_SECRET_KEY`, or else of `HOME/secret.key`, which the first start makes.

    Servers of several machines share one database, and so must share the key.

    Raises:
        SecretKeyWrong: it is not a key.
    """
    given = settings.secret_key.get_secret_value()
    return SecretKey(given or _kept(settings.folder / "secret.key"))


def _kept(path: Path) -> str:
    """The key in a file of the owner's only; of several that make it at once, all get the same."""
    if not path.exists():
        write_private(path, Fernet.generate_key().decode(), replace=False)
    return path.read_text().strip()
