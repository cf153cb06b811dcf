"""Many runs from one command: each job is a fresh process, resumed after interruption, or proposed by a search."""
