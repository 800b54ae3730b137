"""The adapter and its base while they are trained."""
