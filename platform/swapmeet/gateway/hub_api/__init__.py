"""What huggingface_hub and PEFT read: with HF_ENDPOINT at this server, adapters are a Hub's model repositories.

    routes.py       the paths, and who may ask
    repositories.py names and who may read them; revisions and which version they mean
    snapshots.py    a version's files, as they are downloaded
    describing.py   versions in the Hub's words
    listing.py      pages of repositories
    refusals.py     errors in the Hub's words

The key is the token (HF_TOKEN). Nothing can be written here. A commit is the first 40 digits of a manifest's digest.
"""

from swapmeet.gateway.hub_api.routes import install

__all__ = ["install"]
