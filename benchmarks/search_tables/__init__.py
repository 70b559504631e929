"""Parts of ``benchmarks/quality.py``: tables of training runs, searches on them, and figures."""
