"""The methods of the contest, ours and those of others, behind one interface."""
