"""Section 5.4, Fig. 6: flipped labels, found and restored."""
