"""Grids, plans, runs and sweeps, on Ray Tune: the ``rd3`` command, and :class:`Workspace` for notebooks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.workspace import LoadedGrid, Workspace

__all__ = ["LoadedGrid", "Workspace"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # loaded when first used
        from pipelines import workspace

        return getattr(workspace, name)
    raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
