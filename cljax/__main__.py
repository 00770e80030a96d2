"""``python -m cljax``."""

import os
import sys

# ``-m`` looks for modules in the current folder first, which may be a run of somebody else's. The
# command ``cljax`` does not, and code that the user names is looked for there all the same.
if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

from cljax.cli.command import main

if __name__ == "__main__":
    main()
