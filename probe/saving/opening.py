"""`probe.open`: whatever a command wrote, read back from its run folder."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.saving.results import Result
from probe.saving.runs import read_prompts

if TYPE_CHECKING:
    from probe.saving.manifest import Manifest


@dataclass(frozen=True, eq=False)
class Run(Mapping[str, Result]):
    """A finished run: `result` is what its command returned, and the run itself maps names to the results inside.

    The main result has the name of its analysis; a result inside another has the name of its folder.
    """

    folder: Path
    result: Result

    @property
    def manifest(self) -> Manifest:
        """Return what was run, and how."""
        return self.result.manifest

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of the command, by field name."""
        return self.result.manifest.options

    def prompts(self) -> list[dict[str, Any]]:
        """Return the full prompts that were read: hash, ids, and text where a prompt was made from one."""
        return list(read_prompts(self.folder))

    def _results(self) -> dict[str, Result]:
        return {self.manifest.analysis: self.result, **self.result.parts()}

    def __getitem__(self, name: str) -> Result:
        return self._results()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._results())

    def __len__(self) -> int:
        return len(self._results())

    def __repr__(self) -> str:
        about = f"{self.manifest.analysis} of {self.manifest.name}, {self.manifest.created[:10]}"
        lines = [f"  {name}: {type(each).__name__}, figures {', '.join(each.figures())}" for name, each in self.items()]
        return "\n".join([f"Run({str(self.folder)!r}: {about})", *lines])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>{self.result._repr_html_()}"


def open_run(folder: str | Path) -> Run:
    """Open the run folder that a command wrote, or the folder of one result inside.

    Raises ProbeError for a folder that holds no finished run, and for one that another version wrote, with the command
    that makes it again.
    """
    return Run(Path(folder), Result.load(folder))
