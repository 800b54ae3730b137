"""What keeps a store whole: collection of garbage, checks, and mending."""
