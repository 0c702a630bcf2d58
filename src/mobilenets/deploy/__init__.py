"""From a run to files that other runtimes execute, each proven to compute the same."""
