"""The functions of the command line for notebooks and scripts.

::

    from pipelines import Workspace

    work = Workspace(data="/data")
    grid = work.grid({"methods": ["random"], "datasets": ["digits"], "ipc": [1], "teacher": "resnet18_w16"})
    print(grid.plan().totals())
    grid.run()
    grid.results()[["method", "ipc", "student_seed", "top1_pct"]]
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.engine.execute import Outcome, execute
from pipelines.engine.status import GridStatus, grid_status
from pipelines.engine.workers import RayWorkers, ThisProcess
from pipelines.grid.catalog import Catalog
from pipelines.grid.expand import Expansion, expanded
from pipelines.grid.plan import Plan, plan_session
from pipelines.settings import Session, prepare_home, session
from rd3.errors import BadValue, TrackingError
from rd3.plugins import other_code

if TYPE_CHECKING:
    import pandas as pd

    from rd3.datasets import Dataset
    from rd3.models import NormalisedNetwork
    from rd3.synthetic_set import SyntheticSet
    from tracking.report.charts import Drawing
    from tracking.report.results import Results


class Workspace:
    """A ledger, a tracking server and a folder of datasets; by default those set in the environment.

    ``home``: RD3's own folder (``RD3_HOME``, else ``.rd3``).  ``data``: the folder of datasets (``RD3_DATA``).
    ``tracking_uri``: of MLflow (``MLFLOW_TRACKING_URI``, else SQLite in ``home``).  ``artifacts``: a folder or
    ``s3://bucket/prefix`` (``RD3_ARTIFACTS``, else in ``home``).
    """

    def __init__(
        self,
        *,
        home: str | Path | None = None,
        data: str | Path | None = None,
        tracking_uri: str | None = None,
        artifacts: str | None = None,
    ):
        given = {"RD3_HOME": home, "RD3_DATA": data, "MLFLOW_TRACKING_URI": tracking_uri, "RD3_ARTIFACTS": artifacts}
        named = {name: str(value) for name, value in given.items() if value is not None}
        self.session: Session = session({**os.environ, **named})  # only reads; `LoadedGrid.run` prepares its home

    def grid(self, source: str | Path | Mapping[str, Any]) -> LoadedGrid:
        """Load a grid: the name of a built-in one, the path of a YAML file, or the content of such a file as a mapping.

        Raises :class:`pipelines.grid.files.GridErrors` with every mistake at once.
        """
        return LoadedGrid(self, expanded(source, self.session))

    def dataset(self, name: str) -> Dataset:
        """Open and check a dataset; raises :class:`rd3.errors.DataMissing` with the folders that were searched."""
        from rd3.datasets import open_dataset

        return open_dataset(name, self.session.roots)

    def open_set(self, key: str) -> SyntheticSet:
        """The verified synthetic set with this key or key prefix: images (N, 3, H, W) and labels (N,)."""
        from rd3.synthetic_set import SyntheticSet

        return SyntheticSet.open(self.session.store.fetch("set", self.session.ledger.resolve("set", key)))

    def teacher(self, dataset: str, role: str, *, device: str = "cpu") -> NormalisedNetwork:
        """A teacher in the ledger by role: a frozen module in eval mode with inputs in [0, 1].

        Raises :class:`rd3.errors.DataMissing` if the ledger has no such teacher.
        """
        from pipelines.byhand import teacher_of
        from rd3 import teacher
        from rd3.errors import DataMissing

        recipe, store = teacher_of(dataset, role, Catalog.of(self.session)), self.session.store
        entry = store.find("teacher", recipe.key)
        if entry is None:
            raise DataMissing(
                f"The ledger has no teacher {role} of {dataset}.", f"rd3 teacher train {dataset} --role {role}"
            )
        folder = store.fetch("teacher", recipe.key)
        return teacher.load(folder, recipe, self.dataset(dataset), device=device, formerly=entry.formerly)


def _at_least_one(name: str, count: int | None) -> None:
    if count is not None and count < 1:
        raise BadValue(f"{name} is {count}.", f"give {name} from 1, or leave it out")


class LoadedGrid:
    """A grid expanded into recipes."""

    def __init__(self, workspace: Workspace, expansion: Expansion):
        self.workspace, self.expansion = workspace, expansion
        self._digest_remark = ""
        """A remark on the last comparison of the ledger's digests with MLflow: why there was none, or what lacks."""
        self.runs: list[Any] = []
        """The ledger's MLflow runs when it was last read; empty if it was not compared with them."""

    @cached_property
    def name(self) -> str:
        """The ``name`` in the grid file, or the file's own name; ``grid`` for a mapping without one."""
        return self.expansion.source_grid.name

    def plan(self, *, device: str | None = None, devices: int | None = None) -> Plan:
        """What a run would reuse or run, what is blocked or unsupported, and the cost.  Nothing is run.

        ``device``: device for cost estimates: ``cpu``, ``cuda`` or a calibrated device's name; ``devices``: how many.
        """
        _at_least_one("devices", devices)
        return self._plan(device=device, slots=devices)

    def _plan(self, **options: Any) -> Plan:
        """The plan, with a warning of results that other code computed, for the caller's caller."""
        plan = plan_session(self.expansion, self.workspace.session, **options)
        for sentence in plan.other_code:
            warnings.warn(f"results of grid {self.name} are reused, {sentence}", stacklevel=3)
        return plan

    def run(
        self,
        *,
        address: str | None = None,
        local: bool = False,
        max_concurrent: int | None = None,
        gpu_share: float = 0.25,
        cache_logits_bytes: int = 0,
    ) -> Outcome:
        """Run every recipe that has no result yet; call it again to resume.

        ``address``: of a Ray cluster (default: this machine).  ``local``: in this process, without Ray, one trial after
        another.  ``max_concurrent``: maximum number of parallel trials (default: as many as fit).  ``gpu_share``:
        fraction of a GPU per evaluation trial.  ``cache_logits_bytes``: disk budget for teacher logits that several
        evaluations need; 0: none are kept.
        """
        _at_least_one("max_concurrent", max_concurrent)
        if not 0 < gpu_share <= 1:
            raise BadValue(f"gpu_share is {gpu_share}.", "give a fraction above 0 and of at most 1")
        if local and (address or max_concurrent):
            raise BadValue("With local, one recipe runs at a time.", "leave out address and max_concurrent")
        prepare_home(self.workspace.session)
        return execute(
            self.expansion,
            self._plan(),
            self.workspace.session,
            workers=ThisProcess() if local else RayWorkers(address),
            max_concurrent=max_concurrent,
            gpu_share=gpu_share,
            cache_logits_bytes=cache_logits_bytes,
        )

    def status(self) -> GridStatus:
        """How many recipes are done, running, failed and missing."""
        return grid_status(self.expansion, self.workspace.session.ledger, self.workspace.session.home)

    def results(self) -> pd.DataFrame:
        """One row per evaluation, with the columns :data:`tracking.report.query.COLUMNS`."""
        return self.summarised().frame

    def summarised(self) -> Results:
        """Results as they are now, with scores: mean and standard deviation over seeds.

        Raises :class:`DataCorrupt` if a ledger entry contradicts its MLflow run.
        """
        from tracking.report.entries import GridEntries
        from tracking.report.results import Results
        from tracking.runs.runs import Tracker

        here = self.workspace.session
        entries = GridEntries.of(self.expansion.cells, here.ledger)
        self._digest_remark, self.runs = "", []
        try:
            gone = entries.compare(Tracker(here.with_identity()))
            self.runs = entries.runs
            if gone:
                self._digest_remark = (
                    f"{gone} without a run in MLflow, deleted, or lost when its database was restored from a backup"
                )
        except TrackingError as error:  # results do not depend on the tracking server
            self._digest_remark = f"not compared with MLflow: {error.message}"
        if self._digest_remark:
            sys.stderr.write(f"Digests of results: {self._digest_remark}\n")
        return Results.of(self.expansion.cells, entries.find)

    def other_code(self, results: Results) -> list[str]:
        """A sentence for each plugin whose code is another one now than when sets or evaluations were computed."""
        keys = [(kind, key) for kind in ("set", "evaluation") for key in results.frame[kind].dropna().unique()]
        entries = (results.find(kind, key) for kind, key in keys)
        return list(dict.fromkeys(other_code(entry for entry in entries if entry is not None).values()))

    def charts(self, results: Results, *, embedding: bool = False) -> list[Drawing]:
        """The charts of the report that are drawn from sets and teachers, not from results alone.

        t-SNE maps of features, where the grid says ``embedding: true``; with ``embedding`` in any case.
        """
        from pipelines.embedding import drawings

        wanted = embedding or self.expansion.source_grid.embedding
        return list(drawings(self.workspace, results.frame)) if wanted else []

    def report(
        self,
        folder: str | Path | None = None,
        results: Results | None = None,
        charts: Iterable[Drawing] | None = None,
    ) -> dict[str, Path]:
        """Write the report (Markdown, CSV, HTML, charts); return the files by name.

        ``folder``: default ``reports/<grid>`` in RD3's home.  ``results``: default as they are now.  ``charts``: more
        charts, default those of :meth:`charts`.
        """
        from tracking.report.page import write_report

        here, grid = self.workspace.session, self.expansion.source_grid
        results = results or self.summarised()
        notes = {"digests": self._digest_remark, "other code": "; ".join(self.other_code(results))}
        return write_report(
            self.name,
            results,
            here.store.fetch,
            Path(folder) if folder is not None else here.home / "reports" / self.name,
            facts={"description": grid.description, "claim": grid.claim, "failures": self.status().why, **notes},
            charts=self.charts(results) if charts is None else charts,
        )
