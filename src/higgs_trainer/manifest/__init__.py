"""Read and check the rows that describe utterances, in our own format and in those of other tools."""
