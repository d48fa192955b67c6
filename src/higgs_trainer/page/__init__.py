"""The style, the player and the writer that all HTML pages share. No page loads anything from the network."""
