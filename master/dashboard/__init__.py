"""The dashboard of `master serve`.

It is a live page of the searches in a checkpoint root, with the same data as JSON.
"""
