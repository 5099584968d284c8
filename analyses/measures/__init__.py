"""Statistics that several analyses share: intervals, agreement of score maps, tables of heads."""
