"""Compare runs: statistics, tables, report pages."""
