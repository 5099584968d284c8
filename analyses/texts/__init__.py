"""Texts and questions that several analyses read."""
