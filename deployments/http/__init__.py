"""The HTTP in front of the graph: what a request may hold and what an answer looks like. No stage runs here, and the
order of the stages is in `deployments.graph`."""
