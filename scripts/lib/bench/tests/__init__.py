"""Tests of what needs no target."""
