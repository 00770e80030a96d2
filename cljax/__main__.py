"""``python -m cljax``."""

from cljax.cli import main

if __name__ == "__main__":
    main()
