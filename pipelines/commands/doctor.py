"""``rd3 doctor``: does everything that a grid needs answer?"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil

import typer

from pipelines.commands._show import show_table
from pipelines.settings import session
from rd3.errors import RD3Error

PACKAGES = ("torch", "torchvision", "timm", "mlflow", "optuna", "ray", "boto3")


def add_to(app: typer.Typer) -> None:
    @app.command("doctor")
    def doctor() -> None:
        """Check versions, devices, disk, tracking server, ledger and datasets."""
        rows = [{"what": "python", "state": "ok", "detail": platform.python_version()}]
        rows += [_package(name) for name in PACKAGES]
        rows += [_devices(), _disk(), _tracking(), _ledger(), *_data()]
        show_table(rows)
        if any(row["state"] == "wrong" for row in rows):
            raise typer.Exit(3)


def _package(name: str) -> dict[str, str]:
    try:
        return {"what": name, "state": "ok", "detail": importlib.metadata.version(name)}
    except importlib.metadata.PackageNotFoundError:
        return {"what": name, "state": "wrong", "detail": f"not installed; pip install {name}"}


def _devices() -> dict[str, str]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return {"what": "device", "state": "ok", "detail": names}
    return {"what": "device", "state": "ok", "detail": f"CPU only, {torch.get_num_threads()} threads"}


def _disk() -> dict[str, str]:
    home = session().home
    existing = next(path for path in (home, *home.parents) if path.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    return {"what": "disk", "state": "ok" if free_gib > 1 else "wrong", "detail": f"{free_gib:.1f} GiB free at {home}"}


def _tracking() -> dict[str, str]:
    from tracking.runs import Tracker

    place = session().place
    return _tried("tracking", place.tracking_uri, lambda: Tracker(place).check())


def _ledger() -> dict[str, str]:
    from tracking.ledger import Ledger

    root = session().place.artifacts
    return _tried("ledger", root, lambda: Ledger(root).keys("evaluation"))


def _tried(what: str, where: str, attempt) -> dict[str, str]:
    try:
        attempt()
    except RD3Error as error:
        return {"what": what, "state": "wrong", "detail": str(error)}
    return {"what": what, "state": "ok", "detail": _without_secret(where)}


def _without_secret(uri: str) -> str:
    """A URI without the user:password part."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else uri


def _data() -> list[dict[str, str]]:
    from rd3 import datasets

    return [
        {"what": f"data {one.dataset}", "state": one.state, "detail": one.message or str(one.folder)}
        for one in datasets.doctor(session().roots)
    ]
