"""Grids, plans, runs and sweeps, on Ray Tune: the ``rd3`` command, and :class:`Workspace` for notebooks."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.workspace import LoadedGrid, Workspace

__all__ = ["LoadedGrid", "Workspace"]


def check_tracking() -> None:
    """Raise ``ImportError`` if a file of the user's hides RD3's package ``tracking``, which lies beside this one."""
    spec, ours = find_spec("tracking"), Path(__file__).parents[1] / "tracking"
    if spec is not None and spec.origin and Path(spec.origin).parent != ours:
        raise ImportError(
            f"{spec.origin} hides RD3's package 'tracking'. Fix: rename it, or start Python elsewhere and without its "
            "folder in PYTHONPATH"
        )


def __getattr__(name: str) -> Any:
    if name in __all__:  # loaded when first used
        check_tracking()
        from pipelines import workspace

        return getattr(workspace, name)
    raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
