module duetserve.io/bench/streams

go 1.22
