"""Callbacks for training loops of other libraries, one module a library.

Each has a class ``Report``. It reports an epoch's metrics, saves what training resumes from, and
ends training where the trial ends. A module imports its library, and this package imports none.
"""
