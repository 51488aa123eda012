"""Reports: numbers in, pages and figures out; nothing is measured here."""
