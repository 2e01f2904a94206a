"""The readers of data sets under the public code's file name; the imports say where each lies."""

from hyperiqa.datasets.authentic import BID, FLIVE, LIVEC, SPAQ, UHDIQA, AGIQA3k, AGIQA20k, KonIQ10k
from hyperiqa.datasets.csv_table import CSVTable
from hyperiqa.datasets.demo import Demo
from hyperiqa.datasets.readers import DEFAULT_RESIZE, READERS
from hyperiqa.datasets.synthetic import CSIQ, LIVE, TID2013, KADID10k

__all__ = [
    "BID",
    "CSIQ",
    "DEFAULT_RESIZE",
    "FLIVE",
    "LIVE",
    "LIVEC",
    "READERS",
    "SPAQ",
    "TID2013",
    "UHDIQA",
    "AGIQA3k",
    "AGIQA20k",
    "CSVTable",
    "Demo",
    "KADID10k",
    "KonIQ10k",
]
