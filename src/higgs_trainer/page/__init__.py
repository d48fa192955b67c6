"""What every HTML page of this package is made with: one look, one player, and nothing fetched from elsewhere."""
