"""What happens beside a training step: counting, averaging, scoring, drawing, saving, ending."""
