"""Jobs: recordings judged while nobody waits. A database holds their state, a private folder their sound."""
