"""The benchmark: what one execution costs, beside a bare interpreter and other jails, in one run.

Everything is read as a *ratio to the bare interpreter of the same run*: absolute figures of two machines, or of
two hours on one shared machine, say little. Contenders take turns (round robin), so that a noisy neighbour hits
all of them alike. Every answer is checked; a wrong one fails the row it belongs to.

The client is blocking sockets and one epoll loop, because it shares the machine with the service it measures;
its own cost is a row of the report. Nothing here imports another part of sandfork: the service is measured from
outside, through HTTP, /proc and the cgroup file systems.
"""
