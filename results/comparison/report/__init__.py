"""The report and the pages of the studies: rows, tables, findings, plots."""
