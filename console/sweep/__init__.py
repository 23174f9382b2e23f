"""Many runs of one workflow, each with other settings and in a process of its own."""
