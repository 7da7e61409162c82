"""`python -m softtrunc`, and so `accelerate launch -m softtrunc`."""

import sys

from softtrunc.cli import main

if __name__ == "__main__":
    sys.exit(main())
