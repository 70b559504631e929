"""``python -P -m worker`` does the same as the console script ``worker``."""

from worker.cli import main

if __name__ == "__main__":
    main()
