"""Charts beyond those of the tables, one module each; modules here are found by their registration."""

from tracking.report.charts._base import CHARTS, Drawing, ReportChart, drawings, register_chart

__all__ = ["CHARTS", "Drawing", "ReportChart", "drawings", "register_chart"]
