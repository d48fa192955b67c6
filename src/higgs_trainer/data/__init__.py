"""From files to examples: manifest, audio, codec, prepared dataset, prompt, batch."""
