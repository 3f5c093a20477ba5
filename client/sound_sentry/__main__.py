"""`python -m sound_sentry` is the command `sound-sentry`."""

import sys

from sound_sentry.command import main

sys.exit(main())
