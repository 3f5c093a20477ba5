"""What scores come to: metrics, plots and the report. Nothing here trains a detector or scores a clip."""
