"""Dock widgets: tissue, prediction, annotations, live learning."""
