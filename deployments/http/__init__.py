"""The HTTP interface of the graph: the form of requests and answers. No stage runs here, and the order of the stages is
in `deployments.graph`."""
