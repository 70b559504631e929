"""``python -P -m master`` does the same as the console script ``master``."""

from master.cli import main

if __name__ == "__main__":
    main()
