"""Admission: what is checked before an adapter is published, and what is published of it."""
