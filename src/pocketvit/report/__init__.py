"""What a run found out, for people: a terminal table and a page that opens offline. Reads Rows only."""

from .budget import Budget, Verdict, verdict
from .html import write_html
from .results import load_rows, save_rows
from .table import table

__all__ = ["Budget", "Verdict", "load_rows", "save_rows", "table", "verdict", "write_html"]
