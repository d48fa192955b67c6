"""Audio files, codecs and loudness."""
