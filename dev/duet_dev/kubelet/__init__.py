"""A kubelet whose containers are ordinary local processes, each in a process group of its own."""
