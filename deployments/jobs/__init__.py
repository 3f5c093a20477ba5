"""Jobs: recordings that are judged in the background. A database holds their state, a private folder their sound."""
