"""The life cycle of MLflow runs: one per recipe, found by the recipe's key, so that a retry reuses it.

Only ``MlflowClient`` is used, without an active run or a global tracking URI.  Tags set by RD3: ``rd3.kind`` (the
recipe's kind, or ``grid``), ``rd3.key``, ``rd3.attempt``, ``rd3.status``, ``rd3.reason``, ``rd3.grid`` (of the run of a
grid: its name), ``rd3.grids`` and ``rd3.in.GRID`` (all grids that use the result), ``rd3.ledger`` (its path),
``rd3.ledger_id`` (its identity), ``rd3.lease`` (token of the driver), ``rd3.digest`` (of the entry), ``rd3.imported``
(from where), ``rd3.files`` (where files are that were uploaded past the server).
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rd3.errors import StoreError, StoreUnavailable, TrackingError
from rd3.recipe import EvaluationRecipe, Recipe
from rd3.store import Entry
from tracking.ledger.addresses import to_relative
from tracking.ledger.object_store import open_objects
from tracking.place import Place
from tracking.runs import reachable as reach
from tracking.runs.client import mlflow_errors, open_client, quiet_mlflow
from tracking.runs.database import create_sqlite
from tracking.runs.fields import Fact, curve_points, metrics, params, read_curve, run_name, span_ms
from tracking.runs.garbage import without_collection

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_EXPERIMENT = {
    # Makes the MLflow UI open on runs and metrics instead of traces of language models.
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": (
        "RD3's results, one run per recipe: `grid NAME` is the run of a grid, with its report; below it are the runs "
        "of the teachers, sets and evaluations that it started. `top1_pct` of an evaluation is the accuracy after the "
        "last epoch on all test images. Compare only runs of one `protocol` with equal `changed`; `rd3 report GRID` "
        "prints the address of a grid's evaluations, which are tagged `rd3.in.GRID`."
    ),
}
"""Tags of a new experiment."""
DIGEST = "rd3.digest"
"""Tag with the digest of the entry, which shows whether the entry in the ledger was changed later."""
_LEDGER_ID = "rd3.ledger_id"
_LONGEST_REASON = 4000
"""Maximum characters of a reason; MLflow allows 8000."""
_MOST_POINTS, _MOST_PARAMETERS = 800, 100
"""In one request; MLflow allows 100 parameters, and 1000 metrics, parameters and tags together."""
DIRECT_ABOVE = 256 * 2**20
"""Total bytes above which files are uploaded directly to S3, if this process may, and not through the server."""
_SHOWN_BELOW = 2**20
"""Bytes below which a file is logged to MLflow as well, so that its UI can show it."""


class Tracker:
    """Access to the MLflow server or database of one :class:`Place`."""

    def __init__(self, place: Place):
        self.place = place

    @cached_property
    def client(self) -> Any:
        if self.place.tracking_uri.startswith("sqlite"):
            path = reach.sqlite_path(self.place.tracking_uri)
            quiet_mlflow()
            with self.errors():
                create_sqlite(path)
        with self.errors():
            return open_client(self.place)

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Context manager that converts MLflow's errors; see :func:`mlflow_errors`."""
        return mlflow_errors(self.place.tracking_uri, self.place.artifacts, self.place.home)

    @property
    def _ours(self) -> dict[str, str]:
        """Tag that the runs of any ledger at this ledger's path have."""
        return {"rd3.ledger": self.place.artifacts}

    @property
    def owner(self) -> dict[str, str]:
        """Tags of every run that is opened: the ledger's path and identity, the driver's lease, who started it."""
        known = {_LEDGER_ID: self.place.ledger_id, "rd3.lease": self.place.lease}
        known |= {"mlflow.user": self.place.user, "mlflow.source.name": self.place.work}
        return self._ours | {name: value for name, value in known.items() if value}

    def _is_ours(self, run: Any) -> bool:
        """Whether a run at this ledger's path belongs to this ledger; one without the tag is taken to do so."""
        mine = self.place.ledger_id
        return not mine or bool(run.data.tags.get(_LEDGER_ID, mine) == mine)

    def check(self, seconds: float = 5.0) -> None:
        """Raise :class:`TrackingError` within ``seconds`` unless the tracking server responds and accepts the login."""
        reach.check(self.place.tracking_uri, seconds)

    def experiment(self, name: str) -> str:
        """The id of the experiment, which is created if necessary.

        With a database as the tracking store, its files are stored below the artifact root; a server decides itself.
        """
        client, is_database = self.client, self.place.tracking_uri.startswith(_DATABASES)
        where = open_objects(self.place.artifacts).url("runs") if is_database else None
        with self.errors():
            from mlflow.exceptions import MlflowException

            found = client.get_experiment_by_name(name)
            if found is None:
                try:
                    return str(client.create_experiment(name, artifact_location=where, tags=_EXPERIMENT))
                except MlflowException:  # a concurrent process may have created it; otherwise the error is raised
                    found = client.get_experiment_by_name(name)
                    if found is None:
                        raise
            if found.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"Experiment {name!r} was deleted in MLflow.",
                    f"restore it: MLFLOW_TRACKING_URI={shlex.quote(self.place.tracking_uri)} "
                    f"mlflow experiments restore --experiment-id {found.experiment_id}",
                )
            return str(found.experiment_id)

    def experiment_ids(self) -> list[str]:
        """The ids of all experiments on the server."""
        with self.errors():
            found = _on_all_pages(lambda token: self.client.search_experiments(page_token=token))
            return [experiment.experiment_id for experiment in found]

    def own_runs(self, extra: str = "") -> list[Any]:
        """All runs of this ledger, in any experiment; ``extra`` as in :meth:`search`."""
        with self.errors():
            return self.search(self.experiment_ids(), self._ours, extra)

    @without_collection()
    def search(
        self, experiment_ids: list[str], wanted: Mapping[str, str], extra: str = "", *, of_any_ledger: bool = False
    ) -> list[Any]:
        """All runs with these tags, oldest first; ``extra`` is a further condition in MLflow's filter syntax.

        Runs of other ledgers at an equal path are left out, except with ``of_any_ledger``.
        """
        terms = [f"tags.`{name}` = {quoted(value)}" for name, value in wanted.items()] + ([extra] if extra else [])
        if not experiment_ids:
            return []
        found = _on_all_pages(
            lambda token: self.client.search_runs(
                experiment_ids, " and ".join(terms), order_by=["attributes.start_time ASC"], page_token=token
            )
        )
        return list(found if of_any_ledger else filter(self._is_ours, found))

    def share_view(self, experiment_id: str, key: str, view: Mapping[str, Any]) -> str:
        """Store a view of the experiment's runs, as "Share view" of the MLflow UI does; returns its path there."""
        with self.errors():
            self.client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{key}", json.dumps(view))
        return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={key}"

    def grid_run(self, experiment_id: str, name: str, *, grid_yaml: str) -> str:
        """Create or reopen the parent run of a grid, log the grid file as ``grid.yaml``, and return the run's id."""
        own = {"rd3.kind": "grid", "rd3.grid": name, **self.owner}
        with self.errors():
            found = self.search([experiment_id], {"rd3.kind": "grid", "rd3.grid": name, **self._ours})
            run_id: str = self.reopen_or_create(found, experiment_id, f"grid {name}", own).info.run_id
            self.client.log_text(run_id, grid_yaml, "grid.yaml")
        return run_id

    def find_grid(self, experiment: str, name: str) -> str | None:
        """The id of the grid's run, or None if the grid has not been run."""
        with self.errors():
            found = self.client.get_experiment_by_name(experiment)
            wanted = {"rd3.kind": "grid", "rd3.grid": name, **self._ours}
            runs = self.search([found.experiment_id], wanted) if found else []
        return runs[0].info.run_id if runs else None

    def close_grid(self, run_id: str, ok: bool) -> None:
        """End the grid's run, as FINISHED if every recipe is done (``ok``), else as FAILED."""
        with self.errors():
            self.client.set_terminated(run_id, "FINISHED" if ok else "FAILED")

    def begin(
        self,
        recipe: Recipe,
        facts: Mapping[str, Fact],
        *,
        experiment_id: str,
        parent_run_id: str | None = None,
        attempt: int = 1,
        start_ms: int | None = None,
        grid: str = "",
    ) -> OpenRun:
        """Create the run of a recipe, or reopen that of an earlier attempt, with status RUNNING.

        ``facts`` are parameters to filter by that the recipe lacks (method, ipc, name of the protocol ...).
        ``start_ms``: when it began, for a new run (default: now).  ``grid``: its grid, for a new run.
        """
        tags = {"rd3.kind": recipe.kind, "rd3.key": recipe.key, "rd3.attempt": str(attempt)}
        tags |= {"rd3.status": "running", **self.owner}
        if parent_run_id:
            tags["mlflow.parentRunId"] = parent_run_id
        shown = params(recipe, facts)
        with self.errors():
            found = self.search([experiment_id], {"rd3.key": recipe.key, **self._ours})
            if found:
                run = found[0]
                tags |= {name: run.data.tags[name] for name in ("mlflow.parentRunId",) if name in run.data.tags}
                # MLflow's parameters are immutable, and another grid may use another name for the same protocol.
                shown = {name: value for name, value in shown.items() if name not in run.data.params}
                self.reopen(run, obsolete=("rd3.reason", "rd3.imported"))
            else:
                name, tags = run_name(recipe, facts), tags | (grid_tags([grid]) if grid else {})
                run = self.client.create_run(experiment_id, start_time=start_ms, run_name=name, tags=tags)
            self.log(run.info.run_id, parameters=shown, tags=tags if found else {})
        return OpenRun(self, run, recipe, attempt)

    def reopen_or_create(self, found: Sequence[Any], experiment_id: str, name: str, tags: Mapping[str, str]) -> Any:
        """The first run of ``found``, set to RUNNING without its former end, or a new one; with these tags."""
        if not found:
            return self.client.create_run(experiment_id, run_name=name, tags=tags)
        self.reopen(found[0], obsolete=("rd3.status", "rd3.reason"))
        self.log(found[0].info.run_id, tags=tags)
        return found[0]

    def reopen(self, run: Any, obsolete: Collection[str]) -> None:
        """Set the status of an earlier run to RUNNING, and delete its ``obsolete`` tags."""
        self.client.update_run(run.info.run_id, status="RUNNING")
        for name in set(obsolete) & run.data.tags.keys():
            self.client.delete_tag(run.info.run_id, name)

    def close_dead_runs(
        self, experiment_id: str, reason: str, ends: Mapping[str, tuple[str, str]] | None = None
    ) -> int:
        """Close every run of this ledger that is still RUNNING as KILLED, and return their number.

        Only the holder of the driver's lease may call it: when it starts, such runs belong to dead drivers; when it
        ends, they are its own.  ``ends`` maps recipe keys to (status, reason) where more is known than ``reason``.
        """
        with self.errors():
            stale = self.search([experiment_id], self._ours, "attributes.status = 'RUNNING'")
            for run in stale:
                status, why = (ends or {}).get(run.data.tags.get("rd3.key", ""), ("killed", reason))
                self.log(run.info.run_id, tags={"rd3.status": status, "rd3.reason": why[:_LONGEST_REASON]})
                self.client.set_terminated(run.info.run_id, "KILLED")
        return len(stale)

    def log_entry(self, entry: Entry) -> None:
        """Log an entry and its digest to its run again, after it got a file."""
        with self.errors():
            self.client.log_text(entry.run_id, self.entry_text(entry), "entry.json")
            self.log(str(entry.run_id), tags={DIGEST: str(entry.digest)})

    def entry_text(self, entry: Entry) -> str:
        """An entry as its run keeps it, in JSON."""
        plain = to_relative(entry, open_objects(self.place.artifacts)).model_dump(mode="json")
        return json.dumps(plain, indent=1)

    def log(
        self,
        run_id: str,
        *,
        points: list[tuple[str, float, int, int]] | None = None,
        parameters: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log metrics, parameters and tags; ``points`` are (metric, value, timestamp in ms, step).

        One request, or several where there is more than MLflow takes at once; tags are in the last one.
        """
        from mlflow.entities import Metric, Param, RunTag

        metrics = _batches([Metric(name, value, when, step) for name, value, when, step in points or ()], _MOST_POINTS)
        params = _batches([Param(name, value) for name, value in (parameters or {}).items()], _MOST_PARAMETERS)
        own = [RunTag(name, value) for name, value in (tags or {}).items()]
        requests = max(len(metrics), len(params))
        pairs = zip_longest(metrics, params, fillvalue=list[Any]())
        for number, (some, others) in enumerate(pairs, 1):
            self.client.log_batch(run_id, metrics=some, params=others, tags=own if number == requests else [])


def _on_all_pages(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    """What MLflow lists, page by page; ``ask`` is given the token of a page, None for the first."""
    page = ask(None)
    yield from page
    while page.token:
        page = ask(page.token)
        yield from page


def _batches(items: list[Any], size: int) -> list[list[Any]]:
    """The items in lists of at most ``size``; a single empty list if there are none."""
    return [items[at : at + size] for at in range(0, len(items), size)] or [[]]


def member_tag(grid: str) -> str:
    """Tag of the runs of a grid, by which a filter finds them exactly."""
    return f"rd3.in.{grid}"


def grid_tags(grids: Sequence[str]) -> dict[str, str]:
    """Tags that add the last of these grids to a run, which the others use already."""
    return {"rd3.grids": " ".join(grids), member_tag(grids[-1]): "yes"}


def quoted(text: str) -> str:
    """A string literal in MLflow's filter syntax, which has both quotation marks and no escape."""
    return f'"{text}"' if "'" in text else f"'{text}'"


class OpenRun:
    """A run with status RUNNING, ended by :meth:`finish` or :meth:`fail`."""

    def __init__(self, tracker: Tracker, run: Any, recipe: Recipe, attempt: int):
        self.tracker = tracker
        self.run_id: str = run.info.run_id
        self.artifact_uri: str = run.info.artifact_uri.rstrip("/")
        self.recipe = recipe
        self.attempt = attempt
        self._opened = run
        """MLflow's run as it was opened, with the metrics and parameters of an earlier attempt."""
        self._after = -1
        """Timestamp after those of the metrics of another result; -1 until it is known."""

    def finish(
        self,
        entry: Entry,
        folder: Path,
        *,
        curve: list[dict[str, float]] | None = None,
        input_set: Mapping[str, Any] | None = None,
        note: str = "",
        end_ms: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Entry:
        """Upload ``folder``, log the metrics and end the run as FINISHED; returns the entry with run and artifact.

        The call is idempotent, so it can be repeated after a failure of the server.  ``curve`` defaults to the folder's
        ``curve.parquet``.  ``input_set`` (for evaluations: ``name``, ``digest``, ``source``, and other keys as the
        profile) becomes the run's dataset in MLflow, ``note`` (Markdown) its description.  ``end_ms``: when it ended
        (default: now).  ``tags``: more tags.
        """
        client = self.tracker.client
        entry = entry.model_copy(update={"run_id": self.run_id})
        figures, rows = metrics(entry.result), read_curve(folder) if curve is None else curve
        with self.tracker.errors():
            logged = self._logged_at(entry, figures)
            points = [(name, value, logged, 0) for name, value in figures.items()]
            points += [(name, value, logged + step, step) for name, value, step in curve_points(rows)]
            entry = entry.model_copy(update={"artifact": self._keep_files(entry, folder)}).sealed()
            own = {"rd3.status": "done", DIGEST: str(entry.digest)} | ({"mlflow.note.content": note} if note else {})
            # A forgotten result may have run at another precision: its run keeps that one, the entry has this one.
            new = {"ran_precision"} & entry.result.keys() - self._opened.data.params.keys()
            ran = {name: str(entry.result[name]) for name in new}
            self.tracker.log(self.run_id, points=points, parameters=ran, tags={**(tags or {}), **own})
            if isinstance(self.recipe, EvaluationRecipe):
                self._log_set(input_set or {}, self.recipe)
            # Logged last and complete, because the ledger can be rebuilt from these files.
            client.log_text(self.run_id, self.tracker.entry_text(entry), "entry.json")
            client.set_terminated(self.run_id, "FINISHED", end_time=end_ms)
        return entry

    def _logged_at(self, entry: Entry, figures: Mapping[str, float]) -> int:
        """Timestamp of the metrics in ms since 1970, fixed so that logging is idempotent.

        MLflow shows the latest value, and of equally late ones the largest, so that it is later than what the run has
        of another result, which was forgotten.
        """
        if self._after < 0:
            earlier = self._opened.data.metrics
            other = next((name for name, value in figures.items() if earlier.get(name, value) != value), None)
            known = self.tracker.client.get_metric_history(self.run_id, other) if other else []
            self._after = max((metric.timestamp + 1 for metric in known), default=0)
        _begun, ended = span_ms(entry) or (0, 0)
        return max(int(self._opened.info.start_time) + self.attempt, ended, self._after)

    def _keep_files(self, entry: Entry, folder: Path) -> str:
        """Upload the files; returns their address."""
        client = self.tracker.client
        sizes = {name: (folder / name).stat().st_size for name in entry.files}
        root = self._upload_directly(entry, folder) if sum(sizes.values()) > DIRECT_ABOVE else None
        if root is None:
            client.log_artifacts(self.run_id, str(folder), artifact_path=entry.kind)
            return f"{self.artifact_uri}/{entry.kind}"
        for name, size in sizes.items():
            if size < _SHOWN_BELOW and "/" not in name:
                client.log_artifact(self.run_id, str(folder / name), artifact_path=entry.kind)
        self.tracker.log(self.run_id, tags={"rd3.files": root})
        return root

    def _upload_directly(self, entry: Entry, folder: Path) -> str | None:
        """Upload the files to S3, past the server; returns their address, or None where this is not possible."""
        target = open_objects(self.tracker.place.artifacts)
        through_server = self.artifact_uri.startswith("mlflow-artifacts:")
        if not through_server or target.folder is not None or not target.has_credentials():
            return None
        place = f"files/{entry.kind}/{entry.key}"
        try:
            for name in entry.files:
                target.upload(f"{place}/{name}", folder / name)
        except StoreUnavailable:
            raise
        except StoreError:  # the credentials are not for this bucket
            return None
        return target.url(place)

    def _log_set(self, given: Mapping[str, Any], recipe: EvaluationRecipe) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        source = str(given.get("source") or "")
        profile = {name: value for name, value in given.items() if name not in ("name", "digest", "source")}
        dataset = Dataset(
            name=str(given.get("name") or f"set {recipe.set[:12]}"),
            digest=str(given.get("digest") or recipe.set)[:32],
            source_type="s3" if urlsplit(source).scheme == "s3" else "local",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"key": recipe.set, **profile}),
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        try:
            self.tracker.client.log_inputs(self.run_id, datasets=inputs)
        except MlflowException as error:
            # MLflow checks before it inserts, so one of two evaluations of a set that end at once may be rejected.
            if not any(word in str(error).lower() for word in ("unique", "duplicate")):
                raise
            self.tracker.client.log_inputs(self.run_id, datasets=inputs)

    def fail(self, status: str, reason: str) -> None:
        """End the run with the recipe's status (``failed``, ``diverged``, ``killed`` ...) and the reason."""
        with self.tracker.errors():
            self.tracker.log(self.run_id, tags={"rd3.status": status, "rd3.reason": reason[:_LONGEST_REASON]})
            self.tracker.client.set_terminated(self.run_id, "KILLED" if status == "killed" else "FAILED")
