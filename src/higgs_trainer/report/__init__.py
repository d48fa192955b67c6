"""Write the page of a run, or of several side by side: one HTML file to listen to, look at and pass on."""
