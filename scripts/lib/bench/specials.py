"""All measurements that are no cells, by the word that `--only` takes, and how each is judged."""

from . import special, special_goals, thin, thin_goals, thin_large
from .special import Special, run

SPECIALS: dict[str, Special] = special.SPECIALS | thin.SPECIALS | thin_large.SPECIALS
JUDGES = special_goals.JUDGES | thin_goals.JUDGES

__all__ = ["JUDGES", "SPECIALS", "Special", "run"]
