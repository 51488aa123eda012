"""Drawing of synthetic hands: people, anatomy, skin, rendering."""
