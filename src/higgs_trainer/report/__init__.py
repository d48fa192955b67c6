"""Write the page of a run, or of several side by side: one HTML file that contains its audio."""
