"""Training: engines, time budget, resuming, and what is told meanwhile."""
