"""`python -m lorry` is `lorry`."""

import sys

from lorry.cli import main

sys.exit(main())
