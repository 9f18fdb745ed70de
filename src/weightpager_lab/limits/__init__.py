"""Commands run under limits of memory, disk and processors, in a control group."""
