"""`python -m sandfork.bench`."""

from sandfork.bench.command import main

raise SystemExit(main())
