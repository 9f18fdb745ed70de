"""What is done for a release: wheels and the source distribution are built, and what they claim is checked."""
