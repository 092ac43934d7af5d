"""`python -m hf_unlearn.cli`, where the command is not on the path."""

import sys

from hf_unlearn.cli.main import main


if __name__ == "__main__":
    sys.exit(main())
