"""A result is a frozen dataclass that knows its tables, figures and claims, and how it is saved and read back.

A saved result is a folder:

    manifest.json        what was run, and how (probe.saving.manifest)
    result.json          the fields; written last, so its presence means that the folder is whole
    tensors.safetensors  the tensors of the fields; result.json names them {"$tensor": "score"}
    <field>.parquet      the tables; result.json names them {"$table": "samples"}
    <field>/             results inside this one, in the same form; result.json names them {"$result": "retrieval"}
    <export>             files for other programs, such as a table of all values (`Result.exports`)
    figures/             one page per figure, all reading the plotly.min.js beside them: they open without a network

Nothing is pickled, so opening a folder runs no code from it.
"""

from __future__ import annotations

import html
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from probe.errors import ProbeError, UsageError
from probe.figures.pages import caption_of, save_figures
from probe.figures.pictures import save_pictures
from probe.saving.atomic import replacing, write_text
from probe.saving.jsonable import decode, dumps, encode, plain, unknown
from probe.saving.manifest import Manifest

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from typing_extensions import Self

    from probe.figures import Plot
    from probe.frame.findings import Claim, Estimate, Finding
    from probe.frame.scores import HeadScore
    from probe.frame.tables import Table


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Result(ABC):
    """The numbers that an analysis measured, and the manifest of the run that measured them.

    Subclasses are frozen dataclasses whose fields hold tensors, data frames, numbers, strings, heads and lists,
    tuples or dicts of these, nothing else. JSON arrays come back as tuples where the field is declared a tuple, as
    lists elsewhere. Two results are equal when all fields but the manifest are, bit for bit; NaN equals NaN here.
    """

    manifest: Manifest
    table_rows: ClassVar[int] = 10
    """The number of rows of `to_df` that a notebook shows."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # dataclass() would otherwise give every subclass its own, which compare and print whole tensors
        for name in ("__eq__", "__repr__", "__hash__"):
            if name not in cls.__dict__:
                setattr(cls, name, getattr(Result, name))

    @abstractmethod
    def to_df(self) -> pd.DataFrame:
        """Return the result as one table, most important row first."""

    @abstractmethod
    def figures(self) -> dict[str, Plot]:
        """Return every plot of this result by file name, the main one first."""

    def plot(self, name: str | None = None) -> Figure:
        """Return the plot of that name, or the main one, as a notebook shows it; it is never shown here."""
        plots = self.figures()
        name = next(iter(plots)) if name is None else name
        if name not in plots:
            raise UsageError(f"expected one of the plots {', '.join(plots)}, got {name!r}")
        return plots[name].notebook()

    def tables(self) -> dict[str, Table]:
        """Return the tables that people and programs get, by name, the main one first."""
        return {}

    def summary(self) -> tuple[str, ...]:
        """Return the result in sentences."""
        return ()

    def findings(self) -> tuple[Finding, ...]:
        """Return the claims of the analysis with what this run measured of them."""
        return ()

    def finding(self, claim: Claim, found: Estimate | None, control: Estimate | None = None) -> Finding:
        """Return a claim with what this run measured of it; without an estimate it is not applicable."""
        return claim.finding(found, control, seed=self.manifest.seed, command=self.manifest.command)

    def head_scores(self) -> dict[str, HeadScore]:
        """Return the scores of all heads by name; empty for an analysis that scores no heads."""
        return {}

    def exports(self) -> dict[str, Callable[[Path], None]]:
        """Return the files that `save` writes for other programs: the name of each, and the function that writes it."""
        return {}

    def parts(self) -> dict[str, Result]:
        """Return the results inside this one, each saved in a folder of its name."""
        return {name: value for name, value in self._values() if isinstance(value, Result)}

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain JSON values: tensors as nested lists, tables as lists of rows, NaN as null."""
        return {"manifest": self.manifest.to_dict()} | {
            name: plain(
                value.to_dict("records")
                if isinstance(value, pd.DataFrame)
                else value.to_dict()
                if isinstance(value, Result)
                else value
            )
            for name, value in self._values()
        }

    def differences(self, other: Result) -> list[str]:
        """Return the names of the fields that are not bit for bit equal, the manifest aside; ["type"] for another."""
        if type(self) is not type(other):
            return ["type"]
        mine, theirs = dict(self._values()), dict(other._values())
        return [name for name in mine if not _equal(mine[name], theirs[name])]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Result) and not self.differences(other)

    def __hash__(self) -> int:
        raise TypeError(f"unhashable type: {type(self).__name__!r}, whose tensors compare by value")

    def save(self, folder: str | Path, *, pictures: bool = False) -> Path:
        """Write the folder that this module's docstring describes and return its path; an older result is replaced.

        pictures: also write a PNG beside each page, where there is a browser to draw it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)  # until the new one is whole, there is none
        tensors: dict[str, Tensor] = {}

        def leaf(value: Any, where: str) -> dict[str, str]:
            if isinstance(value, Tensor):
                # clone: safetensors refuses tensors that share memory
                tensors[where] = value.detach().cpu().contiguous().clone()
                return {"$tensor": where}
            if isinstance(value, pd.DataFrame):
                with replacing(folder / f"{where}.parquet") as path:
                    value.to_parquet(path)
                return {"$table": where}
            if isinstance(value, Result):
                value.save(folder / where, pictures=pictures)
                return {"$result": where}
            return unknown(value, f"{type(self).__name__}.{where}")

        content = {name: encode(value, name, other=leaf) for name, value in self._values()}
        if tensors:
            with replacing(folder / "tensors.safetensors") as path:
                save_file(tensors, path)
        plots = self.figures()
        save_figures(plots, folder / "figures", caption=caption_of(self.manifest))
        if pictures and plots:
            save_pictures(plots, folder / "figures")
        for name, write in self.exports().items():
            with replacing(folder / name) as path:
                write(path)
        self.manifest.save(folder)
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        write_text(folder / "result.json", dumps({"type": kind, "fields": content}, indent=1) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return the result saved in the folder. `Result.load` reads any kind, a subclass its kind alone."""
        folder = Path(folder)
        manifest = Manifest.load(folder)
        path = folder / "result.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            kind, values = content["type"], content["fields"]
        except FileNotFoundError:
            raise ProbeError(f"the run in {folder} is not finished; repeat its command to continue it") from None
        except (ValueError, KeyError, TypeError):
            raise ProbeError(f"{path} is not a saved result; run the analysis again") from None
        found = _class_of(kind, path)
        if not issubclass(found, cls):
            raise ProbeError(f"expected a saved {cls.__name__}, got a {found.__name__} in {folder}")
        try:
            tensors = load_file(folder / "tensors.safetensors") if (folder / "tensors.safetensors").exists() else {}

            def leaf(tag: str, name: str) -> Any:
                if tag == "$result":
                    return Result.load(folder / name)
                return tensors[name] if tag == "$tensor" else pd.read_parquet(folder / f"{name}.parquet")

            read = {name: decode(value, other=leaf) for name, value in values.items()}
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ProbeError(f"the result in {folder} is damaged ({reason}); run the analysis again") from None
        expected = {field.name: str(field.type) for field in fields(found) if field.name != "manifest"}
        if read.keys() != expected.keys():
            odd = ", ".join(sorted(read.keys() ^ expected.keys()))
            raise ProbeError(f"{path} has other fields than this version's {found.__name__} ({odd})")
        for name, annotation in expected.items():
            if annotation.startswith("tuple"):
                read[name] = _tuples(read[name])
        return found(manifest=manifest, **read)  # type: ignore[return-value]

    def __repr__(self) -> str:
        parts = [f"{name}={_brief(value)}" for name, value in self._values()]
        return f"{type(self).__name__}({self.manifest.name}: {', '.join(parts)})"

    def _repr_html_(self) -> str:
        table = self.to_df()
        shown = table.head(self.table_rows)
        more = f"<p>{len(table) - len(shown)} more rows: <code>.to_df()</code></p>" if len(table) > len(shown) else ""
        title = f"{type(self).__name__} of {self.manifest.name} ({self.manifest.model})"
        return f"<p><b>{html.escape(title)}</b></p>{shown.to_html(float_format='{:.3f}'.format)}{more}"

    def _values(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self) if field.name != "manifest"]


def _class_of(kind: str, path: Path) -> type[Result]:
    """Return the class that result.json names; it must be imported already or belong to this library."""
    module, _, name = str(kind).partition(":")
    if module.startswith(("probe.analyses.", "probe.benchmarks.")):
        with suppress(ModuleNotFoundError):
            importlib.import_module(module)
    for known in reversed(_subclasses(Result)):  # the newest, where a notebook defines a class again
        if (known.__module__, known.__qualname__) == (module, name):
            return known
    raise ProbeError(f"{path} holds a {kind}, which this version does not know")


def _subclasses(cls: type[Result]) -> list[type[Result]]:
    return [each for child in cls.__subclasses__() for each in (child, *_subclasses(child))]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if type(value) is list else value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        alike = a.shape == b.shape and a.dtype == b.dtype
        return alike and torch.allclose(a.cpu(), b.cpu(), rtol=0, atol=0, equal_nan=True)
    if isinstance(a, pd.DataFrame) and isinstance(b, pd.DataFrame):
        return a.equals(b)
    if isinstance(a, Result) or isinstance(b, Result):
        return a == b
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b or (a != a and b != b))


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"Tensor{list(value.shape)}" if value.numel() > 1 or value.ndim else f"{value.item():.4g}"
    if isinstance(value, pd.DataFrame):
        return f"{len(value)} rows"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return repr(value)
    if type(value) not in (list, tuple, dict):
        return str(value)
    if len(value) > 4:
        return f"{len(value)} items"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_brief(item)}" for name, item in value.items()) + "}"
    return "[" + ", ".join(map(_brief, value)) + "]"
