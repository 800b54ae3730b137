"""The marketplace: what is found, liked and fetched. Its index lies in the platform's database, beside the counts."""

from swapmeet.marketplace.by_name import Wanted
from swapmeet.marketplace.counters import Counters, Popularity
from swapmeet.marketplace.market import Market

__all__ = ["Counters", "Market", "Popularity", "Wanted"]
