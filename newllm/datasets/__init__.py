"""The data sets, each in a file of its own, and one built-in sample for each in `samples/`.

To add one, put its file here (`base.Dataset` says what it holds) and its sample beside it.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from newllm.datasets.base import Dataset
from newllm.errors import UserError, did_you_mean


def _all_datasets() -> dict[str, Dataset]:
    """The `DATASET` of every file here: the levels first, one's own rows last."""
    modules = [import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    found: list[Dataset] = [module.DATASET for module in modules if hasattr(module, "DATASET")]
    ordered = sorted(found, key=lambda d: (d.number is None, d.number or 0, not d.hub, d.name))
    return {dataset.name: dataset for dataset in ordered}


DATASETS = _all_datasets()
"""Every data set by its name, the levels first and in the order of their numbers."""


def find_dataset(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        UserError: unknown name, with the nearest one.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name}{did_you_mean(name, DATASETS)}")
    return DATASETS[name]
