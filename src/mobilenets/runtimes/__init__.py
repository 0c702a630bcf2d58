"""Runtimes that execute exported files, and how their speed is measured."""
