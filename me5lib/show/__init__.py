"""Figures and maps of what the other rooms return."""
