"""Read and check the rows that describe utterances, in our own format and in others."""
