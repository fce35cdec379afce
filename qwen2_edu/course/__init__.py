"""What every lesson uses: one call that sets a notebook up, verdicts, and checked exercises."""

from .exercises import check
from .lesson import fill_by_formula, setup
from .verdicts import caught, equal

__all__ = ["caught", "check", "equal", "fill_by_formula", "setup"]
