"""`python -m fadeup` is `fadeup`."""

import sys

from fadeup.cli import main

sys.exit(main())
