# The zygote of Ruby: what a child needs to know of a fork, Ruby tells itself.
fork
