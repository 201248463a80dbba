"""Further tables of a grid's report.  A table is one function in one file; others come from entry points."""

from tracking.report.extra._base import TABLES, ReportTable, Table, register_table

__all__ = ["TABLES", "ReportTable", "Table", "register_table"]
