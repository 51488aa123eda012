"""From files to checked samples: CSV tables, splits, decoded photos."""
