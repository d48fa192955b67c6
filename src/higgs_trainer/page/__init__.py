"""What all HTML pages share: one style, one player, one way to write them. No page loads anything from the network."""
