"""What a manifest row may say, and how other formats become rows."""
