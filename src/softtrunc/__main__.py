"""`python -m softtrunc`, and so `accelerate launch -m softtrunc`."""

import os
import sys

from softtrunc.cli import main

if __name__ == "__main__":
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Everything is written. Taking down gloo's threads with the interpreter now and then
        # aborts one of the processes, and the launcher would call the whole run failed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
