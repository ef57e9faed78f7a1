"""Service addresses and cluster names: a TCP relay and a small DNS server, fed by watches."""
