"""Optuna's own plots of a study, drawn with matplotlib, as PNG or SVG."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from pipelines.sweep.study import Tuning, quiet_optuna

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOTS = {
    "history": "Every complete trial in order, and the best so far",
    "importance": "Importance of each field for reaching the best tenth of the trials (PED-ANOVA)",
    "parallel": "Parallel coordinates of the complete trials",
}
SCORE = "validation top-1 %"


def draw(tuning: Tuning, kind: str = "svg") -> dict[str, bytes]:
    """Name of a plot (:data:`PLOTS`) to its image; omits plots that need more trials."""
    import matplotlib

    matplotlib.use("agg")
    quiet_optuna()
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")
        return {name: _picture(axes, kind, f"{name}-{tuning.name}") for name, axes in _axes(tuning).items()}


def _axes(tuning: Tuning) -> dict[str, Axes]:
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as drawn

    study = tuning.study
    scores = [trial.value for trial in tuning.trials() if trial.state.name == "COMPLETE"]
    found = {}
    if scores:
        found["history"] = drawn.plot_optimization_history(study, target_name=SCORE)
    if len(scores) >= 3 and len(set(scores)) > 1:  # else nothing explains a difference
        evaluator = PedAnovaImportanceEvaluator()  # Optuna 4 has another by default
        found["importance"] = drawn.plot_param_importances(study, evaluator=evaluator, target_name=SCORE)
        found["parallel"] = drawn.plot_parallel_coordinate(study, target_name=SCORE)
    return found


def _picture(axes: Axes, kind: str, salt: str) -> bytes:
    """An image file; ``salt`` makes the IDs in an SVG reproducible."""
    import matplotlib
    from matplotlib import pyplot

    figure, out = axes.get_figure(root=True), io.BytesIO()
    assert figure is not None
    axes.set_title("")
    axes.set_title("", loc="left")
    figure.set_size_inches(8.0, 4.2)
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        meta = {"Date": None} if kind == "svg" else None
        figure.savefig(out, format=kind, dpi=130, bbox_inches="tight", facecolor="white", metadata=meta)
    pyplot.close(figure)
    return out.getvalue()
