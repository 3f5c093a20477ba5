"""From the bytes of a file to samples, and how good those samples are. Nothing here looks for speech or judges it."""
