"""Run folders: files, provenance, untrusted runs."""
