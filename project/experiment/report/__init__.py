"""Reports of runs and comparisons: tables for terminal and files, and pages of HTML."""
