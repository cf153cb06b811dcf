"""Many runs with one command: each job a fresh process, started again where it was interrupted, or searched for."""
