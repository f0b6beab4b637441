"""Judging retrieval: metrics, intervals, comparisons and costs, through the index that answers real questions.

    from mmsearch.datasets import open_dataset
    from mmsearch.evaluation import compare, evaluate

    data = open_dataset("flickr8k").split("test")
    a, b = evaluate("mini", data), evaluate("runs/mine", data)
    for row in compare(a, b).rows:
        print(row.way, row.measure, row.difference.value, row.difference.low, row.difference.high, row.difference.p)

Names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmsearch.evaluation.comparison import Comparison, compare
    from mmsearch.evaluation.cost import Cost, measure_cost
    from mmsearch.evaluation.everyday import Everyday, evaluate_everyday
    from mmsearch.evaluation.report import Report
    from mmsearch.evaluation.retrieval import Result, Way, evaluate

_HOME = {
    "Comparison": "comparison",
    "Cost": "cost",
    "Everyday": "everyday",
    "Report": "report",
    "Result": "retrieval",
    "Way": "retrieval",
    "compare": "comparison",
    "evaluate": "retrieval",
    "evaluate_everyday": "everyday",
    "measure_cost": "cost",
}

__all__ = [
    "Comparison",
    "Cost",
    "Everyday",
    "Report",
    "Result",
    "Way",
    "compare",
    "evaluate",
    "evaluate_everyday",
    "measure_cost",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
