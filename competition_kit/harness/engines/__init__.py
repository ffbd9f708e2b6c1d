"""Where cells are computed: in this process, or in a pool of processes on this machine."""
