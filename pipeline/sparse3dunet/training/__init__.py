"""Training: engines, time budget, resuming and logging."""
